"""The lines that evaluate a reader's own network, on the front page and among the scores, run as they stand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robret_lib import checks, data, mining, models, scores
from robret_lib.models import EmbeddingModel
from robret_lib.objectives import TripletObjective
from robret_lib.training import Schedule, train
from tests.small_retrieval import NAMES, searched_in_itself, some_split

ROOT = Path(__file__).parents[1]


def lines_of(page, heading="Your own defense"):
    section = re.search(rf"^## {heading}\n(.*?)^## ", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)[1]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    assert max(map(len, code.splitlines())) <= 88, "the page shows no more"
    return code


def test_the_lines_about_training_with_a_defense_run(monkeypatch, capsys):
    """Four steps of them, on a few images."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "book/api/defenses.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert max(map(len, code.splitlines())) <= 88, "the page shows no more"
    images, labels = torch.randint(256, (60, 1, 28, 28), dtype=torch.uint8), torch.arange(60) % 4
    few = replace(searched_in_itself(200), **dict.fromkeys(("train", "query", "gallery"), data.Split(images, labels)))
    monkeypatch.setattr(data, "load", lambda name, scale: few)
    exec(code.replace("steps=400, pairs=64", "steps=4, pairs=8").replace("steps=8)", "steps=2)"), {})
    assert re.match(r"\{'step': 4, 'loss': .*'spread': .*\} collapsed: (None|4)\n", capsys.readouterr().out)


def trained_network(channels):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 16)
    network = nn.Sequential(*layers)
    split = some_split(1000, seed=20)
    gray = data.Split(split.images.expand(-1, channels, -1, -1), split.labels)
    model = EmbeddingModel(network, "N", (0.5,) * channels, (0.25,) * channels)
    train(model, gray, TripletObjective(mining.random), Schedule(60, pairs=32))
    return network


@pytest.mark.parametrize("page", ["README.md", "book/api/scores.md"])
def test_the_lines_of_the_page_run(page, monkeypatch, capsys):
    dataset = searched_in_itself(200)
    channels = 1 if page == "README.md" else 3
    monkeypatch.setattr(data, "load", lambda name, scale: dataset)
    images = dataset.gallery.images.expand(-1, channels, -1, -1)
    given = {"images": images, "labels": dataset.gallery.labels, "class_names": NAMES}
    exec(lines_of(page), {"network": trained_network(channels), **given})
    printed = capsys.readouterr().out
    assert re.search(r"^\d+ checks, \d+ to look at$", printed, re.MULTILINE)
    before, after = map(float, re.search(r"right: ([\d.]+) %, attacked: ([\d.]+) %", printed).groups())
    assert after < before


def test_the_lines_about_a_hash_network_run(capsys):
    dataset = searched_in_itself(60)
    given = {"mean": (0.5,), "std": (0.25,), "network": trained_network(1), "dataset": dataset}
    code = lines_of("book/api/scores.md", "Your own hash network").replace("queries=200", "queries=60")
    exec(code, {"checks": checks, "data": data, "models": models, "scores": scores} | given)
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"MAP: ([\d.]+) %, attacked: ([\d.]+) %", printed).groups())
    assert after < before
