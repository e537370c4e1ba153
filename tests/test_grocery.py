"""The photographs that are part of the library: what they are, where they are found, how they were made."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from robret_lib import data, models, recipes
from robret_lib.data.packed import read_packed
from robret_lib.metrics import recall_at_k

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "data_scripts" / "grocery.py"
SHA256 = "d7904f753c7bb76cbc1840b6d130b87e08cf0549f0397b400e682c303d989d9b"


@pytest.fixture(scope="module")
def grocery() -> data.RetrievalData:
    return data.load("grocery")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grocery_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_the_one_whose_numbers_the_book_shows():
    content = data.GROCERY.read_bytes()
    assert len(content) < 3_000_000
    assert hashlib.sha256(content).hexdigest() == SHA256


def test_twenty_classes_train_and_twenty_others_are_searched(grocery):
    assert grocery.train.images.shape == grocery.query.images.shape == (320, 3, 96, 96)
    assert grocery.query is grocery.gallery and grocery.protocol.self_excluded and grocery.protocol.class_disjoint
    assert len(set(grocery.class_names)) == 40
    for part in (grocery.train, grocery.gallery):
        assert part.labels.bincount()[part.labels.unique()].tolist() == [16] * 20


def test_both_scales_are_the_same_set(grocery):
    assert torch.equal(data.load("grocery", "full").gallery.images, grocery.gallery.images)


def test_coarse_classes_license_and_citation_stand_beside_the_format():
    packed = read_packed(data.GROCERY)
    with np.load(data.GROCERY) as file:
        coarse, names = file["coarse_label"], [name.decode() for name in file["coarse_class_names"]]
        license_text, citation = (file[member][0].decode() for member in ("license", "citation"))
    assert len(names) == 26 and coarse.shape == (640,)
    for fine, label, path in zip(packed.labels.tolist(), coarse.tolist(), packed.names, strict=True):
        assert f"/{names[label]}/" in path or names[label] in packed.class_names[fine]  # single kinds have no folder
    assert {names[c] for c in coarse[packed.labels.numpy() == packed.class_names.index("Royal-Gala")]} == {"Apple"}
    assert "MIT License" in license_text and "Copyright (c) 2019 Marcus Klasson" in license_text
    assert "Hedvig Kjellström" in citation and "2019" in citation


def test_it_is_found_without_a_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path / "nowhere"))
    assert len(data.load("grocery").gallery) == 320


@pytest.mark.slow
def test_it_is_in_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel).read("robret_lib/data/photographs/grocery.npz")
    assert hashlib.sha256(packed).hexdigest() == SHA256


@pytest.mark.slow
def test_the_recipe_reaches_what_the_book_promises(grocery):
    trained = recipes.trained(recipes.photographs(), grocery, torch.device("cpu"))
    searched, labels = models.embed(trained.model, grocery.gallery.images), grocery.gallery.labels
    found = recall_at_k(searched, searched, labels, labels, (1, 5), self_excluded=True)
    pixels = data.as_float(grocery.gallery.images).flatten(1)
    by_pixels = recall_at_k(pixels, pixels, labels, labels, (1,), self_excluded=True)
    assert searched.shape == (320, 128) and trained.history == []
    assert found[1] > 75 and found[5] > 90 and by_pixels[1] < 50


def make_official_set(root: Path, classes: int = 45, most: int = 24) -> Path:
    """A checkout in the layout of the official repository; class c has ``most - c // 5`` photographs."""
    folder = root / "dataset"
    lines: dict[str, list[str]] = {"train.txt": [], "val.txt": [], "test.txt": []}
    table = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic,Description"]
    for number in range(classes):
        table.append(f"Kind-{number},{number},Coarse-{number // 2},{number // 2},/a.jpg,/b.txt")
        for place in range(most - number // 5):
            part = list(lines)[place % 3]
            path = f"{part[:-4]}/Kind-{number}/{place:03}.jpg"
            lines[part].append(f"{path}, {number}, {number // 2}")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (130, 110), (5 * number, 10 * place, 99)).save(folder / path)
    (folder / "classes.csv").write_text("\n".join(table))
    for part, paths in lines.items():
        (folder / part).write_text("\n".join(paths) + "\n")
    (root / "LICENSE").write_text("MIT License\nCopyright (c) 2019 Somebody")
    return root


def test_the_script_takes_the_largest_classes_and_spreads_over_each(script, tmp_path, capsys):
    made = tmp_path / "made.npz"
    assert script.main([str(make_official_set(tmp_path / "official")), "--output", str(made)]) == 0
    assert "640 photographs" in capsys.readouterr().out
    packed = read_packed(made)
    assert packed.class_names == tuple(f"Kind-{number}" for number in range(40))
    first = sorted(name for name in packed.names if "Kind-0/" in name)
    everything = sorted(f"{part}/Kind-0/{p:03}.jpg" for p in range(24) for part in [("train", "val", "test")[p % 3]])
    assert first == [everything[int((place + 0.5) * 1.5)] for place in range(16)]
    assert packed.split[packed.labels == 0].tolist() == ["train"] * 16
    assert packed.split[packed.labels == 1].tolist() == ["test"] * 16
    assert packed._open(0).size == (113, 96)  # the short side reduced, the aspect kept
    with np.load(made) as file:
        assert file["coarse_label"][packed.labels.numpy() == 3].tolist() == [1] * 16


def test_the_script_says_what_is_missing(script, tmp_path, capsys):
    assert script.main([str(tmp_path), "--output", str(tmp_path / "made.npz")]) == 1
    assert "classes.csv" in capsys.readouterr().err
    assert not (tmp_path / "made.npz").exists()


def test_without_an_argument_it_says_that_there_is_nothing_to_get(script, capsys):
    assert script.main([]) == 0
    assert str(data.GROCERY) in capsys.readouterr().out
