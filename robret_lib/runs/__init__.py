"""Runs: parameters checked, seeds set, provenance recorded, one result file written whole or not at all.

A chapter begins with `start` and ends with `Run.finish`. Between the two its parameters hang on the run
(``run.eps``, ``run.device``), and what happens is noted in a log beside the result file.
"""

import hashlib
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robret_lib.files import append
from robret_lib.folders import data_root
from robret_lib.runs import provenance, records
from robret_lib.runs.comparison import (
    WORKFLOW,
    comparison,
    comparison_table,
    comparison_words,
    expected,
    half_interval,
    results,
    with_deviation,
    with_error,
    with_minus,
)
from robret_lib.runs.judged import Judged, differences, doubted, judged, side_by_side
from robret_lib.runs.judged_codes import (
    JudgedCodes,
    attacks_side_by_side,
    both_protocols,
    codes_side_by_side,
    defenses_side_by_side,
    judged_codes,
    of_bits,
)
from robret_lib.runs.parameters import (
    ParameterError,
    Rule,
    boolean,
    bounds,
    checked,
    choice,
    either,
    folder,
    fraction,
    integer,
    optional,
    refuse_unknown,
    refused,
    several,
    text,
)
from robret_lib.runs.provenance import hardware
from robret_lib.runs.records import Measured, ResultError, measured
from robret_lib.runs.trainings import Trainings, trainings

__all__ = [
    "WORKFLOW",
    "Judged",
    "JudgedCodes",
    "Measured",
    "ParameterError",
    "ResultError",
    "Rule",
    "Run",
    "Trainings",
    "attacks_side_by_side",
    "boolean",
    "both_protocols",
    "choice",
    "codes_side_by_side",
    "comparison",
    "comparison_table",
    "comparison_words",
    "defenses_side_by_side",
    "differences",
    "doubted",
    "either",
    "expected",
    "folder",
    "fraction",
    "half_interval",
    "hardware",
    "integer",
    "judged",
    "judged_codes",
    "measured",
    "of_bits",
    "optional",
    "results",
    "several",
    "side_by_side",
    "start",
    "text",
    "trainings",
    "with_deviation",
    "with_error",
    "with_minus",
]


def start(chapter: str, namespace: Mapping[str, Any], /, **rules: Rule) -> "Run":
    """Check a chapter's parameters, seed every random generator, and begin the log of the run.

    Every literal in ``namespace`` must have a rule, so that a misspelt parameter is an error. A setup cell
    executed again in a living notebook is recognized by the earlier run in ``namespace``; the literals that
    the chapter has computed since are then left alone. At scale "quick" torch gets one thread, since sums,
    and with them a chapter's stored numbers, differ with the number of threads. On a GPU convolutions keep all digits
    of float32, where PyTorch would round to ten bits (TF32), so that distances agree with those of a CPU.

    Args:
        chapter: the notebook's name without its ending; the run's files begin with it.
        namespace: the notebook's ``globals()``.
        rules: one for each parameter; ``scale``, ``seed``, ``device`` and ``out_dir`` are always needed.

    Raises:
        ParameterError: where a parameter is unknown, missing or not allowed; nothing has been changed then.
        RuntimeError: where the working folder lies in a checkout of robret, and the library comes from another.
    """
    provenance.refuse_other_checkout(Path.cwd())
    if missing := {"scale", "seed", "device", "out_dir"} - rules.keys():
        raise TypeError(f"runs.start needs a rule for {', '.join(sorted(missing))}.")
    earlier = [value for value in namespace.values() if isinstance(value, Run)]
    if not earlier:
        refuse_unknown(namespace, rules)
    parameters = checked(namespace, rules)
    parameters["device"] = _torch_device(parameters["device"])
    run = Run(chapter, parameters, rules)
    for previous in earlier:
        previous.close()
    if run.scale == "quick":
        torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    seed = run.seed % 2**32  # NumPy takes no more
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return run


class Run:
    """One execution of a chapter; its parameters are attributes (``run.eps``, ``run.out_dir``). See `start`.

    Attributes:
        chapter: the chapter's name.
        parameters: all parameters, checked and converted; ``device`` is a `torch.device`, a folder a path.
        log: the log file, ``<out_dir>/<chapter>-<scale>-s<seed>-<digest of the parameters>.log``.
    """

    def __init__(self, chapter: str, parameters: dict[str, Any], rules: Mapping[str, Rule]) -> None:
        self.chapter = chapter
        self.parameters = parameters
        self._rules = rules
        # Device and folders change nothing that is computed, and folders are no matter for a published file.
        self._recorded = {name: value for name, value in parameters.items() if _is_setting(name, value)}
        digest = hashlib.sha256(json.dumps(self._recorded, sort_keys=True).encode()).hexdigest()[:8]
        self.log: Path = self.out_dir / f"{chapter}-{self.scale}-s{self.seed}-{digest}.log"
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        self._commit = provenance.commit(Path(__file__).parents[2])
        self._finished = False
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            self._note(f"start on {self.device} at commit {self._commit} with {json.dumps(self._recorded)}")
        except OSError as error:
            raise refused("out_dir", str(self.out_dir), "a folder one can write to", f"({error})") from None
        self._shell = _notebook_shell()
        if self._shell:
            self._shell.events.register("post_run_cell", self._note_failure)

    def __getattr__(self, name: str) -> Any:
        parameters = self.__dict__.get("parameters", {})
        if name not in parameters:
            raise AttributeError(f"This run has no parameter {name}; it has {', '.join(parameters)}.")
        return parameters[name]

    def require(self, name: str, *, minimum: float | None = None, maximum: float | None = None) -> None:
        """Check a limit that is known only now, such as the number of queries in the data; ``None`` passes.

        Raises:
            ParameterError: where the parameter is outside the limit.
        """
        value = getattr(self, name)
        too_small = value is not None and minimum is not None and value < minimum
        too_large = value is not None and maximum is not None and value > maximum
        if too_small or too_large:
            limit = bounds(minimum, maximum)
            raise refused(name, value, f"{self._rules[name].allowed}; with this data{limit}")

    def checkpoint(self, name: str) -> Path | None:
        """Where work that takes long goes on after a crash, until the run finishes.

        ``None`` at scale "quick", whose runs are short.

        Args:
            name: of the work, one that this run uses for nothing else.

        Returns:
            A file in a folder of this run's own, which is made, below the data folder.
        """
        if self.scale == "quick":
            return None
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        return self._checkpoints / name.replace(" ", "-")

    @property
    def _checkpoints(self) -> Path:
        return data_root() / "checkpoints" / self.log.stem

    def finish(
        self,
        metrics: Mapping[str, Measured],
        protocol: str,
        mode: str,
        details: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the run's result file.

        Args:
            metrics: each metric's `measured` value, under the name the published table gives it.
            protocol: the data set, split and ranking rule the metrics were measured with, in words.
            mode: "fixed" (the method as its paper defines it) or "reference" (as the published code has it).
            details: anything else worth keeping, as plain JSON values (no tensors).

        Returns:
            The path of the result file: the log's, with the ending ``.json``.

        Raises:
            ValueError: where a metric is no finite `measured` value, or mode or details are not allowed.
            RuntimeError: where this run has finished before.
        """
        if self._finished:
            raise RuntimeError("This run has finished. Run the setup cell again for another result file.")
        if mode not in ("fixed", "reference"):
            raise ValueError(f'mode = {mode!r} is not allowed. Allowed: "fixed" or "reference".')
        seconds = round(time.perf_counter() - self._clock, 3)
        record = {
            "schema": records.SCHEMA,
            "chapter": self.chapter,
            "parameters": self._recorded | {"device": str(self.device)},
            "metrics": records.plain(metrics),
            "protocol": protocol,
            "mode": mode,
            "seed": self.seed,
            "commit": self._commit,
            "packages": provenance.versions(),
            "device": hardware(self.device),
            "started": self._started.isoformat(timespec="seconds"),
            "wall_seconds": seconds,
            "peak_memory_bytes": provenance.peak_memory(),
            "peak_device_memory_bytes": provenance.peak_device_memory(self.device),
            "details": dict(details or {}),
        }
        path = self.log.with_suffix(".json")
        records.write(path, record)
        shutil.rmtree(self._checkpoints, ignore_errors=True)  # a later run must not take them for its own
        self._finished = True
        self._note(f"finish after {seconds} s, result in {path.name}")
        return path

    def close(self) -> None:
        """Note no more failing cells, because another run has begun in this notebook."""
        if self._shell:
            self._shell.events.unregister("post_run_cell", self._note_failure)
            self._shell = None

    def _note_failure(self, result: Any) -> None:
        if error := result.error_before_exec or result.error_in_exec:
            self._note("failure\n" + "".join(traceback.format_exception(error)))

    def _note(self, text: str) -> None:
        # Opened and closed for each note: nothing to close after a crash, and a SIGKILL loses none of it.
        append(self.log, f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


def _torch_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise refused("device", name, '"auto" or "cpu"', "torch finds no CUDA device here.")
    return torch.device("cuda" if available else "cpu") if name == "auto" else torch.device(name)


def _is_setting(name: str, value: object) -> bool:
    return name != "device" and not isinstance(value, Path)


def _notebook_shell() -> Any:
    """IPython's shell, which reports how each cell ended; ``None`` outside a notebook."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
