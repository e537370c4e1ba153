"""The notebook that judges an engine of images and texts, on a few photographs, and what it says of wrong input."""

import json

import pytest
import torch
from PIL import Image

from robret_lib import data
from tests.judging import papermill

QUERIES = 4
WORDS = ("red", "green", "blue", "small", "large", "old", "new", "round")
FAMILIES = "noise, black box, variants, shuffled answers, engine as surrogate, ranked pairs, transfer, white box"
AND_LOSSES = (
    "AACH",
    "AACH, two surrogates",
    "AACH, new head",
    "AACH, shuffled answers",
    "AACH, engine as surrogate",
    "ranked pairs",
    "transfer",
    "transfer, triplets",
    "white box",
    "CMLA",
    "center code",
)
SHORT = {"steps": 1, "batch": 3, "surrogate_steps": 1, "search_steps": 1, "own_steps": 1, "budget": 12, "bits": 8}


def judged(folder, **parameters):
    """On the CPU."""
    return papermill("judge_cross_modal.ipynb", folder, **(parameters | {"device": "cpu"}))


@pytest.fixture
def photographs(tmp_path):
    """Small photographs in flat colors with some of three labels and a text each: 12 train, 4 ask, 8 are searched."""
    images, labels, texts = [], [], []
    for number in range(24):
        hot = [int(number % 3 == label or number % 7 == label) for label in range(3)]
        image = Image.new("RGB", (96, 96), tuple(40 + 160 * one + 2 * number for one in hot))
        image.putpixel((number, number), (255, 255, 255))
        images.append(image)
        labels.append(hot)
        texts.append(" ".join(WORDS[(number + step) % len(WORDS)] for step in (0, 1, 3)))
    path = tmp_path / "few.npz"
    split = ["train"] * 12 + ["query"] * QUERIES + ["database"] * 8
    data.write_packed(path, images, torch.tensor(labels), list("abc"), split=split, texts=texts)
    return path


@pytest.mark.slow
def test_an_engine_is_judged_from_training_to_result_file(photographs, tmp_path):
    """By every family of attacks, with and without the defense."""
    guarded = {"defense": "center_guided", "tuning_steps": 1}
    for how in ({"attacked": FAMILIES, "transfer_from": "ssah"}, {"attacked": "noise"} | guarded):
        done = judged(tmp_path, dataset=photographs, **SHORT, **how)
        assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(file.read_text()) for file in (tmp_path / "results").glob("judge_cross_modal-*.json")]
    (plain,) = [record for record in records if record["parameters"]["defense"] is None]
    metrics, details = plain["metrics"], plain["details"]
    for way, of_way in (("I2T", ("AutoPGD",)), ("T2I", ("1 words", "3 words", "5 words", "0.01", "0.01 upwards"))):
        assert {f"{way}, MAP@all", f"{way}, MAP@50", f"{way}, benign"} <= metrics.keys()
        for family in AND_LOSSES:
            assert {f"{way}, {family}, {how}" for how in of_way} <= metrics.keys()
        assert f"{way}, AACH, anchors by the engine" in metrics
        assert 1 <= metrics[f"{way}, distinct codes"]["value"] <= QUERIES
        assert 100 / QUERIES <= metrics[f"{way}, share of the commonest code"]["value"] <= 100
        assert 50 <= metrics[f"{way}, commonest bits"]["value"] <= 100
        left = details["of_query"]
        for how in of_way:
            worst = map(min, *(left[f"{way}, {name}, {how}"] for name in ("center code", "CMLA")))
            pairs = zip(left[f"{way}, white box, {how}"], worst, strict=True)
            assert all(strongest <= one + 1e-3 for strongest, one in pairs)
    assert {"I2T, noise", "T2I, noise, 3 words", "I2T, AACH, its own search", "I2T, CMLA, upwards"} <= metrics.keys()
    assert metrics["T2I, noise, 3 words, entries"]["value"] == 3
    assert metrics["T2I, AACH, 0.01, added"]["value"] == 0
    assert details["calls"] == {"pairs": 12, "encoder calls": 24, "further pairs for anchors": QUERIES}
    assert all(len(values) == QUERIES for values in details["of_query"].values())
    assert details["recipe"]["method"] == "dcmh" and details["words"] == len(WORDS)
    (tuned,) = [record for record in records if record["parameters"]["defense"]]
    assert tuned["details"]["recipe"]["origin"] == details["recipe"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"budget": 13}, "budget"),
        ({"n_queries": 5}, "n_queries"),
        ({"tuning_steps": 3}, "without a defense"),
        ({"pairwise": "squared"}, "one form only"),
        ({"attacked": "noise, magic"}, "magic"),
        ({"attacked": "noise, variants"}, 'Add "black box"'),
    ],
)
def test_wrong_parameters_are_named(photographs, tmp_path, parameters, said):
    done = judged(tmp_path, **({"dataset": photographs} | SHORT | parameters))
    assert done.returncode and said in done.stderr
