"""Files that must not be taken for those of other code know code by its syntax, and all of it."""

import pytest

from robret_lib import source


def test_words_change_nothing_and_code_does():
    plain = "def f(x):\n    return x + 1\n"
    worded = '"""Module."""\n\ndef f(x):  # adds\n    """One more."""\n    return x + 1\n'
    assert source.digest([worded]) != source.digest([plain])  # a docstring is a statement
    reworded = worded.replace("One more", "Another").replace("# adds", "# counts").replace("Module", "File")
    assert source.digest([worded]) == source.digest([reworded])
    assert source.digest([plain]) != source.digest([plain.replace("1", "2")])


@pytest.mark.parametrize("edited", ["attacks/search/pgd.py", "attacks/run.py", "scores/ers.py"])
def test_what_judges_is_known_by_every_module_of_attacks_and_scores(edited, tmp_path, monkeypatch):
    assert (source.LIBRARY / edited).is_file()
    for name in ("attacks/search/pgd.py", "attacks/run.py", "scores/ers.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(source, "LIBRARY", tmp_path)
    before = source.of_evaluation.__wrapped__()
    (tmp_path / edited).write_text("x = 2\n")
    assert source.of_evaluation.__wrapped__() != before
