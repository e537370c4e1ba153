"""The notebook that judges a defense, on a handful of photographs, and what it says of wrong parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from robret_lib import data

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "workflow" / "judge_defense.ipynb"


def papermill(folder, **parameters):
    """Run the notebook there; a trained model and all results end up in the folder."""
    arguments = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(folder / "out.ipynb"), *arguments]
    environment = os.environ | {"ROBRET_DATA": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["-p", "out_dir", str(folder / "results")]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def photographs(tmp_path):
    """Four classes of four small photographs each, flat colors with a mark of their own; two classes train."""
    images, labels = [], []
    for label in range(4):
        for number in range(4):
            image = Image.new("RGB", (64, 64), (60 * label, 40 + 30 * number, 200 - 50 * label))
            image.putpixel((number, label), (255, 255, 255))
            images.append(image)
            labels.append(label)
    path = tmp_path / "few.npz"
    split = ["train" if label < 2 else "test" for label in labels]
    data.write_packed(path, images, labels, list("abcd"), split=split)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("n", "mode"), [(1, "fixed"), (3, "fixed"), (2, "reference")])
def test_a_defense_is_judged_from_training_to_result_file(photographs, tmp_path, n, mode):
    """Also with one query, where nothing has a spread."""
    shared = {"dataset": photographs, "defense": "hm", "invariance": 0.5, "label": "HM", "steps": 1, "inner_steps": 1}
    done = papermill(tmp_path, **shared, n_queries=n, effort="quick", mode=mode, ranks=n == 2)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "results").glob("judge_defense-quick-s0-*.json")
    record = json.loads(file.read_text())
    assert {"R@1", "R@2", "CA+", "GTT", "ERS"} <= record["metrics"].keys()
    assert ("robust recall at 8/255" in record["metrics"]) == (mode == "fixed") and record["mode"] == mode
    assert all((f"{name} at 7/255" in record["metrics"]) == (n == 2) for name in ("CA+", "CA-", "QA+", "SPQA-"))
    assert record["details"]["recipe"]["invariance"] == 0.5 and record["details"]["recipe"]["steps"] == 1
    standing = record["details"]["standing"]
    assert list(standing) == (["0", "1", "2", "4", "8"] if mode == "fixed" else [])
    assert all(len(stands) == n and set(stands) <= {"0", "1"} for stands in standing.values())


def test_a_wrong_parameter_ends_it_before_anything_is_trained(tmp_path):
    done = papermill(tmp_path, defense="act", inner_steps=0)
    assert done.returncode != 0
    assert "inner_steps = 0 is not allowed" in done.stderr
    assert not (tmp_path / "models").exists()
