"""Parameters refused with their names, results whole or absent, notebooks run by papermill from anywhere."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from robret_lib import runs
from robret_lib.runs import provenance

ROOT = Path(__file__).parents[1]
RULES = {
    "scale": runs.choice("quick", "full"),
    "seed": runs.integer(minimum=0),
    "eps": runs.fraction(minimum=0, maximum=1),
    "steps": runs.integer(minimum=1),
    "n_queries": runs.optional(runs.integer(minimum=1)),
    "targeted": runs.boolean(),
    "label": runs.text(),
    "losses": runs.several("ES", "LTM", "soft margin"),
    "device": runs.choice("auto", "cpu", "cuda"),
    "out_dir": runs.folder(),
}
SETUP = """
from robret_lib import runs

run = runs.start(
    "90_tiny", globals(), scale=runs.choice("quick", "full"), seed=runs.integer(minimum=0),
    eps=runs.fraction(minimum=0, maximum=1), device=runs.choice("auto", "cpu", "cuda"), out_dir=runs.folder(),
)
"""
FINISH = 'run.finish({"R@1": runs.measured(80, n=5)}, protocol="toy", mode="fixed", details=%s)'


@pytest.fixture(autouse=True)
def _threads_and_precision_as_before():
    threads, rounded = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = rounded


@pytest.fixture
def parameters(tmp_path):
    """The globals of a notebook after its parameters cell."""
    values = {"scale": "quick", "seed": 3, "eps": "8/255", "steps": 4, "n_queries": None, "targeted": True}
    values |= {"label": "no defense", "losses": "ES"}
    return values | {"device": "cpu", "out_dir": str(tmp_path / "out")}


def finish(run, **changes):
    arguments = {
        "metrics": {"R@1": runs.measured(87.6, n=10, spread=0.3)},
        "protocol": "toy",
        "mode": "fixed",
    }
    return run.finish(**(arguments | changes))


def python(script, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("scale", "huge", '"quick", "full"'),
        ("scale", 1, '"quick", "full"'),
        ("scale", ["quick"], '"quick", "full"'),
        ("seed", -1, "at least 0"),
        ("seed", True, "an integer"),
        ("seed", "7", "an integer"),
        ("seed", None, "an integer"),
        ("eps", -1, "at least 0 and at most 1"),
        ("eps", 8, "at most 1"),
        ("eps", "256/255", "at most 1"),
        ("eps", "-1/255", "at least 0"),
        ("eps", "8/0", '"8/255"'),
        ("eps", "eight", '"8/255"'),
        ("eps", "1e999999999", "finite"),
        ("eps", float("nan"), "finite"),
        ("eps", float("inf"), "finite"),
        ("eps", 10**400, "finite"),
        ("eps", True, "a finite number"),
        ("eps", None, "a finite number"),
        ("eps", [0.1], "a finite number"),
        ("steps", 0, "at least 1"),
        ("steps", 1e3, "Write 1000"),
        ("steps", 2.5, "an integer"),
        ("steps", float("inf"), "an integer"),
        ("n_queries", 0, "at least 1, or None"),
        ("n_queries", "None", "or None"),
        ("targeted", "true", "Write True"),
        ("targeted", "False", "Write False"),
        ("targeted", 1, "True or False"),
        ("label", "", "a text that is not empty"),
        ("label", " \n\t", "a text that is not empty"),
        ("label", None, "a text that is not empty"),
        ("label", 5, "a text that is not empty"),
        ("label", ["no defense"], "a text that is not empty"),
        ("losses", "", 'one or more of "ES", "LTM", "soft margin", with commas between'),
        ("losses", "ES, GTM", "It does not know 'GTM'."),
        ("losses", "GTM, ES, es", "It does not know 'GTM', 'es'."),
        ("losses", "ES,", "It does not know ''."),
        ("losses", "ES LTM", "It does not know 'ES LTM'."),
        ("losses", "ES, LTM, ES", "It names one twice."),
        ("losses", "soft margin,soft margin ", "It names one twice."),
        ("losses", None, "with commas between"),
        ("losses", ("ES", "LTM"), "with commas between"),
        ("losses", 3, "with commas between"),
        ("device", "gpu", '"auto", "cpu", "cuda"'),
        ("out_dir", "", "the path of a folder"),
        ("out_dir", 5, "the path of a folder"),
        pytest.param("out_dir", __file__, "a file of this name", id="out_dir-a file"),
        pytest.param("out_dir", __file__ + "/inside", "one can write to", id="out_dir-inside a file"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(parameters, name, value, allowed):
    with pytest.raises(runs.ParameterError) as error:
        runs.start("90_tiny", parameters | {name: value}, **RULES)
    assert str(error.value).startswith(f"{name} = ")
    assert allowed in str(error.value)


def test_another_checkout_than_that_of_the_library_is_refused(parameters, tmp_path, monkeypatch):
    (tmp_path / "robret_lib").mkdir()
    (tmp_path / "robret_lib" / "__init__.py").write_text("")
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    with pytest.raises(RuntimeError) as error:
        runs.start("90_tiny", parameters, **RULES)
    assert f"the checkout {tmp_path}," in str(error.value)
    assert f"from {ROOT.resolve() / 'robret_lib'}:" in str(error.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(ROOT / "chapters")
    runs.start("90_tiny", parameters, **RULES)


def test_nothing_has_happened_when_a_parameter_is_refused(parameters):
    random.seed(0)
    state, torch_state = random.getstate(), torch.get_rng_state()
    with pytest.raises(runs.ParameterError):
        runs.start("90_tiny", parameters | {"steps": 0}, **RULES)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert not Path(parameters["out_dir"]).exists()


@pytest.mark.parametrize("value", [1, 0.5, "x", False, None, [1, "a"], (1,), {"a": {"b": 1}}])
def test_a_literal_without_a_rule_is_an_unknown_parameter(parameters, value):
    with pytest.raises(runs.ParameterError, match=r"no parameter n_querys .*mean n_queries\?.*scale, seed, eps"):
        runs.start("90_tiny", parameters | {"n_querys": value}, **RULES)


def test_modules_functions_history_and_private_names_are_no_parameters(parameters):
    others = {
        "np": np,
        "finish": finish,
        "In": ["x"],
        "Out": {1: 2},
        "_dh": ["x"],
        "PAPERMILL_INPUT_PATH": "x",
    }
    runs.start("90_tiny", parameters | others, **RULES)


def test_a_missing_parameter_is_named(parameters):
    del parameters["steps"]
    with pytest.raises(runs.ParameterError, match="steps is missing.*an integer, at least 1"):
        runs.start("90_tiny", parameters, **RULES)


def test_a_chapter_without_a_rule_for_the_seed_is_refused(parameters):
    with pytest.raises(TypeError, match="needs a rule for seed"):
        runs.start("90_tiny", parameters, **{name: rule for name, rule in RULES.items() if name != "seed"})


@pytest.mark.parametrize(
    ("given", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1e-3", 0.001), (0, 0.0), (1, 1.0), ("255/255", 1.0)],
)
def test_a_fraction_becomes_the_nearest_float(parameters, given, value):
    run = runs.start("90_tiny", parameters | {"eps": given}, **RULES)
    assert run.eps == value
    assert isinstance(run.eps, float)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ES", ("ES",)),
        ("LTM,ES", ("LTM", "ES")),  # in the order given
        (" soft margin ,\n LTM", ("soft margin", "LTM")),
        ("ES, LTM, soft margin", ("ES", "LTM", "soft margin")),
    ],
)
def test_several_words_become_a_tuple(parameters, given, words):
    run = runs.start("90_tiny", parameters | {"losses": given}, **RULES)
    assert run.losses == words
    assert json.loads(finish(run).read_text())["parameters"]["losses"] == list(words)


@pytest.mark.parametrize("given", ["no defense", " ACT, 8 steps\n", "none", "ε = 8/255"])
def test_a_text_is_any_words_as_they_stand(parameters, given):
    assert runs.start("90_tiny", parameters | {"label": given}, **RULES).label == given


def test_parameters_are_attributes_and_an_unknown_one_says_which_there_are(parameters):
    run = runs.start("90_tiny", parameters | {"device": "auto"}, **RULES)
    assert (run.scale, run.seed, run.steps, run.n_queries, run.targeted) == ("quick", 3, 4, None, True)
    assert run.device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert run.out_dir == Path(parameters["out_dir"])
    with pytest.raises(AttributeError, match="no parameter epsilon; it has scale, seed, eps"):
        _ = run.epsilon


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the error of a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(parameters):
    with pytest.raises(runs.ParameterError, match='device = .cuda. .*"auto" or "cpu"'):
        runs.start("90_tiny", parameters | {"device": "cuda"}, **RULES)


def test_require_knows_the_data(parameters):
    run = runs.start("90_tiny", parameters | {"n_queries": 2000}, **RULES)
    run.require("n_queries", minimum=1, maximum=2000)
    with pytest.raises(runs.ParameterError, match="n_queries = 2000 .*with this data, at most 1999"):
        run.require("n_queries", maximum=1999)
    with pytest.raises(runs.ParameterError, match="steps = 4 .*with this data, at least 5"):
        run.require("steps", minimum=5)
    runs.start("90_tiny", parameters, **RULES).require("n_queries", maximum=1)  # None asks for no number


def test_start_seeds_every_generator_and_quick_scale_has_one_thread(parameters):
    def draw(seed):
        runs.start("90_tiny", parameters | {"seed": seed}, **RULES)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.set_num_threads(2)
    assert draw(5) == draw(5)
    assert all(a != b for a, b in zip(draw(5), draw(6), strict=True))
    assert torch.get_num_threads() == 1
    draw(2**80)


def test_full_scale_leaves_the_threads(parameters):
    torch.set_num_threads(2)
    runs.start("90_tiny", parameters | {"scale": "full"}, **RULES)
    assert torch.get_num_threads() == 2


def test_convolutions_keep_their_digits(parameters):
    torch.backends.cudnn.allow_tf32 = True
    runs.start("90_tiny", parameters, **RULES)
    assert not torch.backends.cudnn.allow_tf32


def test_a_setup_cell_runs_again_beside_what_the_chapter_has_computed(parameters):
    parameters["run"] = runs.start("90_tiny", parameters, **RULES)
    parameters |= {"recall": 87.6, "steps": 9}
    assert runs.start("90_tiny", parameters, **RULES).steps == 9
    with pytest.raises(runs.ParameterError, match="steps = 0"):
        runs.start("90_tiny", parameters | {"steps": 0}, **RULES)


def test_the_result_file_tells_what_was_run(parameters):
    begun = time.perf_counter()
    run = runs.start("90_tiny", parameters, **RULES)
    path = finish(run, details={"ranks": [1, 2], "name": "ε"})
    passed = time.perf_counter() - begun
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.parent == run.out_dir
    assert path.name.startswith("90_tiny-quick-s3-") and path.suffix == ".json"
    assert record["schema"] == 1
    expected = {name: parameters[name] for name in RULES if name != "out_dir"} | {"eps": 8 / 255, "losses": ["ES"]}
    assert record["parameters"] == expected
    assert record["metrics"] == {"R@1": {"value": 87.6, "n": 10, "spread": 0.3}}
    assert (record["protocol"], record["mode"], record["seed"]) == ("toy", "fixed", 3)
    assert record["packages"]["torch"] == provenance.versions()["torch"]
    assert record["device"]["name"] == "cpu" and record["device"]["torch_threads"] == 1
    assert record["started"].endswith("+00:00") and 0 <= record["wall_seconds"] <= round(passed, 3)
    assert 10**7 < record["peak_memory_bytes"] < 10**12 and record["peak_device_memory_bytes"] is None
    assert record["details"] == {"ranks": [1, 2], "name": "ε"}
    assert str(run.out_dir) not in path.read_text(encoding="utf-8")
    log = run.log.read_text(encoding="utf-8").splitlines()
    assert len(log) == 2 and " start " in log[0] and path.name in log[1]


def test_file_names_differ_with_what_is_computed_and_only_with_that(parameters, tmp_path):
    def name(**changes):
        return runs.start("90_tiny", parameters | changes, **RULES).log.name

    assert name() == name(eps=8 / 255) == name(out_dir=str(tmp_path / "elsewhere")) == name(device="auto")
    assert len({name(), name(eps=0.5), name(seed=4), name(scale="full"), name(steps=5)}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {}}, "at least one metric"),
        ({"metrics": {"R@1": 87.6}}, "The metric R@1 is 87.6; give runs.measured"),
        ({"metrics": {"R@1": runs.measured(float("nan"), n=5)}}, "The metric R@1 is .*finite"),
        ({"metrics": {"R@1": runs.measured(1, n=5, spread=float("inf"))}}, "The metric R@1 is .*finite"),
        ({"metrics": {"R@1": runs.measured(1, n=0)}}, "n at least 1"),
        ({"mode": "quick"}, 'mode = \'quick\' .*"fixed" or "reference"'),
        ({"details": {"loss": float("nan")}}, "None for NaN"),
        ({"details": {"loss": torch.zeros(1)}}, "tolist"),
    ],
)
def test_a_result_that_says_nothing_is_not_written(parameters, changes, message):
    run = runs.start("90_tiny", parameters, **RULES)
    with pytest.raises(ValueError, match=message):
        finish(run, **changes)
    assert [path.suffix for path in run.out_dir.iterdir()] == [".log"]
    finish(run)  # a mistake put right can still be finished


def test_measured_takes_tensors_and_numpy_numbers():
    assert runs.measured(torch.tensor(2.5), n=np.int64(4)) == runs.measured(2.5, n=4)
    with pytest.raises(TypeError):
        runs.measured(2.5, n=4.0)


def test_long_work_has_a_file_for_each_run_and_name_but_none_at_quick_scale(parameters, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path / "data"))
    assert runs.start("90_tiny", parameters, **RULES).checkpoint("rows") is None
    full = parameters | {"scale": "full"}
    run, again, other = (
        runs.start("90_tiny", given, **RULES) for given in (full, full, full | {"eps": "16/255", "steps": 5})
    )
    file = run.checkpoint("rows of ACT")
    assert file == again.checkpoint("rows of ACT") and file.parent.is_dir() and not file.exists()
    assert file.is_relative_to(tmp_path / "data" / "checkpoints") and " " not in file.name
    assert len({file, run.checkpoint("rows"), other.checkpoint("rows of ACT")}) == 3
    file.write_text("half of the rows")
    finish(run)
    assert not file.exists() and other.checkpoint("rows").parent.is_dir()


def test_finish_twice_is_an_error(parameters):
    run = runs.start("90_tiny", parameters, **RULES)
    finish(run)
    with pytest.raises(RuntimeError, match="has finished"):
        finish(run)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_source_tree_and_says_when_it_was_changed(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.commit(tmp_path) is None
    git("init")
    assert provenance.commit(tmp_path) is None
    source = tmp_path / "robret_lib" / "data.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    assert provenance.commit(source.parent) is None  # inside a checkout, but not its root
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "result.json").write_text("{}")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD")
    source.write_text("a = 2\n")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


WRITER = f"""
import json, os, random, signal, time
from pathlib import Path
{SETUP.split("run =")[0]}
FOLDER = Path(OUT_DIR)
RULES = dict(scale=runs.choice("full"), seed=runs.integer(), device=runs.choice("cpu"), out_dir=runs.folder())

def write(seed, letter, length):
    values = dict(scale="full", seed=seed, device="cpu", out_dir=FOLDER)
    run = runs.start("90_tiny", values, **RULES)
    {FINISH % "dict(text=letter * length, length=length)"}

def letters(path):
    details = json.loads(path.read_text())["details"]
    assert len(details["text"]) == details["length"], "cut off"
    return set(details["text"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_sigkill_at_any_moment_leaves_whole_results(tmp_path):
    # The texts are so long that most of the time goes into writing them, where a kill can do harm.
    killer = """
random.seed(0)
write(0, "a", 10)
seen = []
(result,) = FOLDER.glob("*.json")
for attempt in range(25):
    before = result.stat().st_mtime_ns
    child = os.fork()
    while child == 0:
        write(0, "b", random.randrange(1, 8_000_000))
    while attempt % 2 and result.stat().st_mtime_ns == before:  # every second child is killed after its first file
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended by itself"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(FOLDER.glob("*.json")) == [result]
    seen.append(letters(result))
    for leftover in FOLDER.glob(".*.tmp"):
        leftover.unlink()
assert {"b"} in seen
"""
    process = python(WRITER.replace("OUT_DIR", repr(str(tmp_path))) + killer)
    assert process.wait() == 0, process.stderr.read()


@pytest.mark.slow
def test_two_processes_that_write_to_one_folder_do_not_damage_each_other(tmp_path):
    loop = 'print("ready", flush=True)\ninput()\nfor seed in range(50): write(seed, %r, 200_000)'
    script = WRITER.replace("OUT_DIR", repr(str(tmp_path))) + loop
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [python(script % letter, **pipes) for letter in "ab"]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    written = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(record["seed"] for record in written) == list(range(50))
    assert all(record["details"]["text"] in ("a" * 200_000, "b" * 200_000) for record in written)
    assert len(list(tmp_path.iterdir())) == 100  # a result and a log for each, and nothing else


@pytest.fixture
def papermill(tmp_path):
    """Runs a tiny chapter with papermill from another folder; gives process, executed notebook, out_dir."""
    pytest.importorskip("papermill")
    pytest.importorskip("ipykernel")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def execute(cells, *arguments):
        parameters = 'scale: str = "quick"\nseed: int = 0\neps: float = 0.1\ndevice: str = "cpu"\nout_dir: str = "out"'
        sources = [parameters, SETUP, "recall = 80.0  # a literal, but no parameter", SETUP, *cells]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        notebook.cells[0].metadata.tags = ["parameters"]
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "90_tiny.ipynb")
        command = [
            sys.executable,
            "-m",
            "papermill",
            "--no-progress-bar",
            "--start-timeout=3600",
            "../90_tiny.ipynb",
            "executed.ipynb",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [*command, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return process, nbformat.read(elsewhere / "executed.ipynb", as_version=4), elsewhere / "out"

    return execute


@pytest.mark.slow
def test_papermill_runs_a_chapter_from_any_folder(papermill):
    arguments = ["-p", "scale", "full", "-p", "seed", "1", "-p", "eps", "8/255"]
    process, notebook, out_dir = papermill([FINISH % "None"], *arguments)
    assert process.returncode == 0, process.stderr
    (result,) = out_dir.glob("90_tiny-full-s1-*.json")
    assert json.loads(result.read_text())["parameters"]["eps"] == 8 / 255
    assert not [output for cell in notebook.cells[:-1] for output in cell.outputs]  # start prints nothing


@pytest.mark.slow
def test_papermill_with_a_misspelt_parameter_fails_before_anything_runs(papermill):
    process, notebook, out_dir = papermill([FINISH % "None"], "-p", "sed", "1")
    assert process.returncode != 0
    assert "There is no parameter sed (given: 1). Did you mean seed?" in process.stderr
    assert not out_dir.exists()


@pytest.mark.slow
def test_a_crash_leaves_the_executed_notebook_and_the_log_but_no_result(papermill):
    process, notebook, out_dir = papermill(["never = 1 / 0", FINISH % "None"])
    assert process.returncode != 0
    errors = [output.ename for cell in notebook.cells for output in cell.get("outputs", []) if "ename" in output]
    assert errors == ["ZeroDivisionError"]
    (log,) = out_dir.iterdir()
    assert log.suffix == ".log"
    text = log.read_text(encoding="utf-8")
    assert text.count("ZeroDivisionError: division by zero") == 1  # by the second run only, the first was replaced
    assert "never = 1 / 0" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_the_gpu_and_records_it(parameters):
    run = runs.start("90_tiny", parameters | {"device": "auto"}, **RULES)
    assert run.device.type == "cuda"
    torch.zeros(1000, device=run.device)
    record = json.loads(finish(run).read_text())
    assert record["device"]["name"] == torch.cuda.get_device_name()
    assert record["peak_device_memory_bytes"] >= 4000


@pytest.mark.parametrize(("given", "found"), [("benign", "benign"), (-0.1, -0.1), ("1/4", 0.25)])
def test_either_takes_what_the_first_rule_allows_that_does(given, found):
    rule = runs.either(runs.choice("gradual", "benign"), runs.fraction(minimum=-1))
    assert rule.convert(given) == found


def test_either_refuses_what_no_rule_allows_and_says_what_they_do(parameters):
    rule = runs.either(runs.choice("gradual", "benign"), runs.fraction(minimum=-1))
    with pytest.raises(
        runs.ParameterError, match="scale = 'gLGA' is not allowed. Allowed: .*\"benign\", or a finite number"
    ):
        runs.start("90_tiny", parameters | {"scale": "gLGA"}, **RULES | {"scale": rule})
