"""Can this evaluation be trusted? A wrong setting raises no error: it prints a robustness that is not there.

`inspect` a model before any attack; `diagnose` it with a handful of cheap ones; and let the functions of `evaluation`
judge what attacks have done. Each finding has a paragraph on the book's page "Warnings".
"""

from robret_lib.checks import evaluation, model, normalization
from robret_lib.checks.diagnosis import diagnose
from robret_lib.checks.findings import Finding, Report
from robret_lib.checks.model import inspect
from robret_lib.checks.overheard import Overheard

__all__ = ["Finding", "Overheard", "Report", "diagnose", "evaluation", "inspect", "model", "normalization"]
