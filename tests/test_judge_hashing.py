"""The notebook that judges a hash network, on a handful of photographs, and what it says of wrong parameters."""

import json

import pytest
import torch
from PIL import Image

from robret_lib import data, runs
from robret_lib.scores import published_codes
from tests.judging import papermill

FAMILIES = "without target", "with target", "generated", "robust"
LEVELS = ("0.25", "0.5", 1, 2, 4, 8)
QUERIES = 4


def judged(folder, **parameters):
    """On the CPU; lists of targets end up in the folder, too."""
    parameters |= {"targets": folder / "targets", "device": "cpu"}
    return papermill("judge_hashing.ipynb", folder, **parameters)


@pytest.fixture
def photographs(tmp_path):
    """Small photographs in flat colors with some of three labels: 6 train, 4 ask, 8 are searched besides."""
    images, labels = [], []
    for number in range(18):
        hot = [int(number % 3 == label or number % 7 == label) for label in range(3)]
        image = Image.new("RGB", (96, 96), tuple(40 + 160 * one + 2 * number for one in hot))
        image.putpixel((number, number), (255, 255, 255))
        images.append(image)
        labels.append(hot)
    path = tmp_path / "few.npz"
    split = ["train"] * 6 + ["query"] * QUERIES + ["database"] * 8
    data.write_packed(path, images, torch.tensor(labels), list("abc"), split=split)
    return path


SHARED = {"method": "dpsh", "label": "DPSH", "bits": 8, "steps": 1, "batch": 3, "effort": "quick"}
SHARED |= {"most_steps": 1, "prototype_steps": 1, "generator_steps": 1}


@pytest.mark.slow
def test_a_hash_network_is_judged_from_training_to_result_file(photographs, tmp_path):
    """By every family of attacks; and once more with one query, which has no error and aims at the same target."""
    done = judged(tmp_path, **SHARED, dataset=photographs, attacked=", ".join(FAMILIES))
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "results").glob("judge_hashing-quick-s0-*.json")
    record = json.loads(file.read_text())
    metrics, details = record["metrics"], record["details"]
    assert {"MAP@all", "MAP@5000", "benign", "benign, target labels", "precision within radius 2"} <= metrics.keys()
    wanted = torch.zeros(QUERIES, 3)
    families = published_codes.without_target, published_codes.with_target
    names = [*families[0](), *families[1](wanted, 8, prototypes=torch.nn.Identity())]
    for name in names:
        assert {name, f"{name}, flipped", f"{name}, bound"} <= metrics.keys()
        assert (f"{name}, AutoPGD, alpha one" in metrics) != name.endswith(", ported")
        assert details["steps"][name] == 1
    assert {"ProS-GAN", "ProS-GAN in the ball", "collision, equal codes"} <= metrics.keys()
    assert {f"robust MAP at {level}/255" for level in LEVELS} <= metrics.keys()
    assert all(len(values) == QUERIES for values in details["of_query"].values())
    assert details["recipe"]["method"] == "dpsh" and details["recipe"]["steps"] == 1
    assert "4 queries" in record["protocol"]

    (network,) = runs.judged_codes(str(photographs), "quick", tmp_path / "results")
    assert (network.label, network.bits, network.parameters["eps"]) == ("DPSH", 8, pytest.approx(8 / 255))
    assert network.less("CgA", "HAG").count("±") == 1
    assert "not run" not in runs.attacks_side_by_side(network, names)
    targets = tmp_path / "targets" / "few-4-queries.txt"
    written = targets.read_bytes()
    assert len(written.splitlines()) == QUERIES

    again = SHARED | {"label": "one", "dataset": photographs, "attacked": "with target", "n_queries": 1}
    done = judged(tmp_path, **again)
    assert done.returncode == 0, done.stderr[-3000:]
    _, one = runs.judged_codes(str(photographs), "quick", tmp_path / "results")
    assert one.metrics["DHTA"]["spread"] is None and one.told("MAP@all") == network.told("MAP@all")
    assert targets.read_bytes() == written and len(list(targets.parent.iterdir())) == 1
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_a_defended_network_is_judged_and_its_file_tells_how_it_was_tuned(photographs, tmp_path):
    """A single step of the attack in the tuning is as long as its seven were; what is not given is the recipe's.

    The network that is tuned is that of the run without a defense.
    """
    undefended = SHARED | {"dataset": photographs, "attacked": "robust", "n_queries": 2}
    few = {"levels": "4/255, 8/255"}
    tuning = {"defense": "saat", "mode": "reference", "tuning_steps": 2, "tuning_batch": 3, "tuning_eps": "4/255"}
    for given in (undefended, undefended | tuning | {"label": "SAAT", "inner_steps": 1, "adversarial_weight": 2} | few):
        done = judged(tmp_path, **given)
        assert done.returncode == 0, done.stderr[-3000:]
    without, defended = runs.judged_codes(str(photographs), "quick", tmp_path / "results")
    recipe = defended.details["recipe"]
    assert recipe["origin"] == without.details["recipe"] and recipe["origin"]["defense"] is None
    assert (recipe["defense"], recipe["mode"], recipe["steps"], recipe["batch"]) == ("saat", "reference", 2, 3)
    assert (recipe["eps"], recipe["inner_steps"]) == (4 / 255, 1)
    assert recipe["inner_step"] == pytest.approx(7 / 255)
    assert (recipe["hashing_weight"], recipe["adversarial_weight"], recipe["quantization"]) == (1, 2, 1e-4)
    records = runs.results("judge_hashing", tmp_path / "results", "quick")
    assert {record["parameters"]["label"]: record["mode"] for record in records} == {
        "DPSH": "fixed",
        "SAAT": "reference",
    }
    assert defended.apart_from(without, "robust MAP at 8/255").count("±") == 1
    at_levels = {name for name in defended.metrics if name.startswith("robust MAP")}
    assert at_levels == {"robust MAP at 4/255", "robust MAP at 8/255"}
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 2


def assert_refused(done, folder, words):
    assert done.returncode != 0 and words in done.stderr
    assert not (folder / "models").exists() and not list(folder.glob("results/*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_queries": QUERIES + 1}, "n_queries = 5 is not allowed"),
        ({"method": "dph", "source": "saat"}, "in which all sources agree"),
        ({"mode": "reference"}, "mode = 'reference' without a defense that looks at it. Set defense as well."),
        ({"tuning_eps": "1/2", "quantization": 0}, "tuning_eps = 0.5, quantization = 0.0 without a defense"),
    ],
)
def test_what_does_not_fit_the_data_or_the_method_ends_it_before_anything_is_trained(
    photographs, tmp_path, changes, words
):
    assert_refused(judged(tmp_path, **(SHARED | {"dataset": photographs} | changes)), tmp_path, words)


@pytest.mark.parametrize(("name", "value"), [("attacked", "without target, with targets"), ("defense", "act")])
def test_a_wrong_parameter_ends_it_before_anything_is_trained(tmp_path, name, value):
    assert_refused(judged(tmp_path, **{name: value}), tmp_path, f"{name} = {value!r} is not allowed")
