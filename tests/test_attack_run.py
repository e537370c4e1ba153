"""The run: images from the gallery and from outside, passes counted, batches that do not matter, clear refusals."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Averaged, Gallery, Plan, Transfer, embedding, ranking
from robret_lib.attacks import run as run_module_or_function
from robret_lib.distances import pairwise_distance
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, SIZE, gallery_on, seeded, some_split, trained_model

SEARCH = PGD(0.2, 0.05, 4)
NOTHING = PGD(0, 0.1, 1)


@pytest.fixture(scope="module")
def strangers():
    """Images that are in no gallery, with labels."""
    return some_split(60, seed=30)


@pytest.fixture(scope="module")
def surrogate():
    return trained_model("E", steps=30)


def test_the_name_of_the_module_is_the_function():
    assert callable(run_module_or_function) and attacks.run is run_module_or_function


# From outside the gallery


@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_candidates_of_a_query_from_outside_come_from_the_whole_gallery_or_its_top(mode, model, gallery, strangers):
    images = strangers.images[:4]
    top = pairwise_distance(embed(model, images), gallery.embeddings).topk(5, largest=False).indices
    for direction, expected in (("raise", None), ("lower", top)):
        n_targets = 5 if direction == "lower" else 10_000
        attack = ranking.QueryAttack(direction, n_targets, mode)
        targets = attacks.run(attack, model, images, gallery, NOTHING, generator=seeded()).targets
        for row, drawn in enumerate(targets.tolist()):
            assert set(drawn) == (set(range(SIZE)) if expected is None else set(expected[row].tolist()))


@pytest.mark.parametrize("attack", [ranking.CandidateAttack, ranking.QueryAttack])
def test_ranks_from_outside_are_counted_as_by_hand(attack, model, gallery, strangers):
    result = attacks.run(attack("raise"), model, strangers.images, gallery, SEARCH, generator=seeded(1))
    for images, measured in ((strangers.images, result.benign), (result.images, result.measured)):
        found, target = embed(model, images).double(), gallery.embeddings[result.targets[:, 0]].double()
        to_target = (found - target).norm(dim=1, keepdim=True)
        judge = found if attack is ranking.QueryAttack else target
        to_all = torch.cdist(judge, gallery.embeddings.double())
        to_all.scatter_(1, result.targets, torch.inf)
        expected = 100 * (to_all < to_target).double().mean(1)
        assert (measured["rank"] - expected).abs().max() <= 100 / SIZE + 1e-9
        assert torch.isclose(measured["rank"], expected).double().mean() > 0.9


def test_an_image_from_outside_that_is_an_item_is_not_excluded(model, gallery, searched):
    """Given as own, it is left out; given as a stranger, its twin is the nearest item."""
    inside, outside = (
        attacks.run(
            ranking.QueryAttack("lower", n_targets=5),
            model,
            searched[:8],
            gallery,
            NOTHING,
            own=own,
            generator=seeded(),
        )
        for own in (torch.arange(8), None)
    )
    for position in range(8):
        assert position not in inside.targets[position].tolist()
        assert position in outside.targets[position].tolist()


def test_labels_of_strangers_are_given_and_those_of_items_known(model, gallery, searched, searched_split, strangers):
    margin = embedding.Margin()
    given = attacks.run(margin, model, strangers.images, gallery, NOTHING, labels=strangers.labels)
    hits = gallery.labels[pairwise_distance(embed(model, strangers.images), gallery.embeddings).argmin(1)]
    assert torch.equal(given.benign["recall_at_1"] > 0, hits == strangers.labels)
    known = attacks.run(margin, model, searched[:50], gallery, SEARCH, own=torch.arange(50))
    also = attacks.run(
        margin, model, searched[:50], gallery, SEARCH, own=torch.arange(50), labels=searched_split.labels[:50]
    )
    assert torch.equal(known.images, also.images)
    with pytest.raises(ValueError, match="Margin needs classes: give labels to Gallery.of, and to run for images from"):
        attacks.run(margin, model, strangers.images, gallery, NOTHING)
    with pytest.raises(ValueError, match="Margin needs classes"):
        attacks.run(margin, model, searched[:4], Gallery(gallery.embeddings), NOTHING, own=torch.arange(4))


# What a result says


@pytest.mark.parametrize(
    "search, forward, backward",
    [
        (PGD(0.2, 0.05, 7), 7, 7),
        (PGD(0, 0.05, 7), 0, 0),
        (AutoPGD(0.2, 5), 6, 5),
        (AutoPGD(0.2, 5, restarts=3), 18, 15),
        (Averaged(PGD(0.2, 0.05, 3), 4), 12, 12),
    ],
)
def test_passes_are_counted(search, forward, backward, model, gallery, searched):
    counted = []
    handle = model.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    own = torch.arange(20)
    result = attacks.run(ranking.QueryAttack("raise"), model, searched[own], gallery, search, own, batch_size=8)
    handle.remove()
    measuring, comparing = 20, 8
    assert (result.passes, result.backward_passes) == (forward, backward)
    assert sum(counted) == 20 * forward + measuring + comparing


def test_passes_of_a_surrogate_count_and_the_model_is_never_asked(model, gallery, searched, surrogate):
    asked = []
    handle = model.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    own = torch.arange(20)
    search = Transfer(surrogate, AutoPGD(0.2, 5))
    result = attacks.run(ranking.QueryAttack("raise"), model, searched[own], gallery, search, own)
    handle.remove()
    assert (result.passes, result.backward_passes) == (6, 5)
    assert asked == [False] * 2  # compared with the gallery, and measured


def test_measures_have_equal_keys_and_one_number_for_each_image(model, gallery, searched):
    own = torch.arange(12)
    for attack, names in (
        (ranking.CandidateAttack("raise"), {"rank"}),
        (ranking.SemanticsPreservingQueryAttack("lower"), {"rank", "preserved_rank"}),
        (embedding.EmbeddingShift(), {"shift", "recall_at_1"}),
        (embedding.Margin(), {"recall_at_1"}),
        (embedding.TargetedMismatch(), {"cosine"}),
        (embedding.LearningToMisrank(), {"recall_at_1"}),
        (embedding.GreedyTop1Misrank(), {"recall_at_1"}),
        (embedding.GreedyTop1Translocation(), {"retain_at_4"}),
    ):
        result = attacks.run(attack, model, searched[own], gallery, SEARCH, own, batch_size=5)
        assert set(result.benign) == set(result.measured) == names
        assert all(values.shape == (12,) for values in (*result.benign.values(), *result.measured.values()))
        assert (result.targets is None) == (attack.targets.__annotations__["return"] is None)


@pytest.mark.parametrize("device", DEVICES)
def test_images_come_back_as_floats_where_they_came_from(device, models, galleries, searched):
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
    images = (255 * searched[:6]).round().to(torch.uint8)
    gallery = Gallery.of(model, images.repeat(2, 1, 1, 1), torch.arange(6).repeat(2))
    result = attacks.run(embedding.Margin(), model, images, gallery, SEARCH, own=torch.arange(6))
    models["N"].cpu()
    assert result.images.dtype == torch.float32 and result.images.device == images.device
    assert (result.images - images.float() / 255).abs().max() <= 0.2 + 1e-6


def test_any_callable_is_a_search(model, gallery, searched):
    """Called with exactly four arguments; the loss it gets is one number for each image."""
    seen = []

    def nothing(model, images, loss_fn, generator):
        seen.append(loss_fn(model(images)).shape)
        return images

    result = attacks.run(ranking.QueryAttack("raise"), model, searched[:5], gallery, nothing, own=torch.arange(5))
    assert torch.equal(result.images, searched[:5]) and seen == [(5,)]
    assert result.passes == 1 and result.backward_passes == 0


@dataclass(frozen=True)
class ToTheFirstItem:
    """An attack of a user, as short as one can be."""

    rows = 1

    def targets(self, benign, generator):
        return None

    def plan(self, benign, targets):
        goal = benign.gallery.embeddings[0]

        def distance(embeddings):
            return (embeddings - goal).norm(dim=1)

        return Plan(distance, lambda embeddings: {"distance": distance(embeddings)})


def test_an_attack_is_a_few_lines(model, gallery, strangers):
    result = attacks.run(ToTheFirstItem(), model, strangers.images, gallery, AutoPGD(0.2, 8))
    assert (result.measured["distance"] < result.benign["distance"]).all()


# Memory and batches


@pytest.mark.slow
def test_a_wide_attack_on_a_large_gallery_runs_in_small_batches(model):
    gallery = Gallery(torch.nn.functional.normalize(torch.randn(60_000, 16, generator=seeded()), dim=1))
    sizes = {}
    for width in (1, 10):
        seen = sizes[width] = []
        attack = ranking.CandidateAttack("raise", n_targets=width)

        def nothing(model, images, loss_fn, generator, seen=seen):
            seen.append(len(images))
            return images

        attacks.run(attack, model, some_split(100, seed=1).images, gallery, nothing, generator=seeded())
    assert sizes == {1: [100], 10: [22, 22, 22, 22, 12]}


MEASURE = """
import sys

import torch
from robret_lib import attacks
from robret_lib.attacks import ranking
from tests.small_retrieval import small_model, some_split

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def attack(count, width):
    wide = getattr(ranking, sys.argv[1])("raise", n_targets=width, mode=sys.argv[2])
    attacks.run(wide, model, some_split(count, seed=1).images, gallery, attacks.PGD(0.1, 0.05, 2))

model = small_model()
gallery = attacks.Gallery(torch.nn.functional.normalize(torch.randn(60_000, 16), dim=1))
attack(2, 1)  # what is loaded once does not count
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before = kib("VmRSS")
attack(256, 10)
print(1024 * (kib("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures peak memory with Linux's /proc")
@pytest.mark.parametrize(
    "attack", [("CandidateAttack", "fixed"), ("QueryAttack", "fixed"), ("QueryAttack", "reference")], ids="-".join
)
def test_ten_targets_and_a_gallery_of_60_000_stay_below_a_gibibyte(attack):
    """The default batch of 256 would keep 2,560 rows of 60,000 distances, with their order and their sums."""
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *attack]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 2**27 < int(run.stdout) < 2**30


# What is refused


def test_what_does_not_fit_together_is_refused(models, model, gallery, searched, strangers):
    query, images, labels = ranking.QueryAttack("raise"), strangers.images, strangers.labels
    narrow, own = Gallery(gallery.embeddings[:, :8]), torch.arange(60)
    for arguments, options, message in (
        ((model, images[:0], gallery), {}, "0 images: expected at least one"),
        ((models["C"], images, gallery), {}, "the model's distance is 'C', the gallery's 'N'"),
        ((model, images * 255, gallery), {}, r"expected \[0, 1\]; pixel normalization belongs inside the model"),
        ((model, images, narrow), {}, "the model gives 16 dimensions, the gallery has 8: of another model?"),
        ((model, images, gallery), {"batch_size": 0}, "batch_size=0: expected at least 1"),
        ((model, images, gallery), {"labels": labels[:3]}, "60 images and 3 labels: expected one label per image"),
        ((model, images, gallery), {"labels": torch.zeros(60, 7)}, r"of shapes \(60, 7\) and \(500,\): expected both"),
        ((model, images, gallery), {"labels": labels[:, None]}, r"labels of shape \(60, 1\): expected whole numbers"),
        ((model, images, gallery), {"own": own}, "does not embed these images as the gallery's items"),
        ((model, images, gallery), {"own": own.tolist()}, r"own is list: expected gallery positions, int64 \[B\]"),
        ((model, images, gallery), {"own": own.float()}, r"own is torch.float32 of shape \(60,\): expected gallery"),
        ((model, images, gallery), {"own": own[:, None]}, r"own is torch.int64 of shape \(60, 1\): expected gallery"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.run(query, *arguments, SEARCH, **options)


def test_a_class_is_no_attack_and_no_search(model, gallery, searched):
    for attack, search, name in ((embedding.Margin, SEARCH, "Margin"), (embedding.Margin(), PGD, "PGD")):
        with pytest.raises(TypeError, match=rf"{name} is a class: expected {name}\(\.\.\.\)"):
            attacks.run(attack, model, searched[:4], gallery, search, torch.arange(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_and_a_gallery_on_two_devices_are_refused(models, galleries, searched):
    with pytest.raises(ValueError, match="the model is on cpu, the gallery on cuda:0: move one of them"):
        attacks.run(ranking.QueryAttack("raise"), models["N"], searched[:4], gallery_on("cuda", galleries["N"]), SEARCH)


def test_a_gallery_of_mismatched_parts_is_refused(gallery):
    with pytest.raises(
        ValueError, match=r"labels of shape \(500, 1\): expected whole numbers \[N\], or zeros and ones"
    ):
        Gallery(gallery.embeddings, labels=torch.zeros(500, 1))
    with pytest.raises(ValueError, match="3 labels of 500 embeddings: expected one each"):
        Gallery(gallery.embeddings, labels=torch.zeros(3))
    with pytest.raises(ValueError, match="2 images of 500 embeddings: expected one each"):
        Gallery(gallery.embeddings, images=torch.zeros(2, 1, 8, 8))


def test_the_spread_is_the_standard_deviation_of_the_distances(gallery):
    small = Gallery(gallery.embeddings[:40])
    distances = torch.cdist(small.embeddings.double(), small.embeddings.double())
    others = distances[~torch.eye(40, dtype=torch.bool)]
    assert small.spread == pytest.approx(others.std(correction=0).item(), rel=1e-3)
    everything = torch.cdist(gallery.embeddings.double(), gallery.embeddings.double())
    assert gallery.spread == pytest.approx(everything[~torch.eye(SIZE, dtype=torch.bool)].std().item(), rel=0.03)


def test_a_plain_module_may_be_attacked(gallery, strangers):
    """Anything with a distance that embeds: no other attribute of `EmbeddingModel` is used."""

    class Plain(nn.Module):
        distance = "N"

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 16)

        def forward(self, images):
            return nn.functional.normalize(self.layer(images.flatten(1)), dim=1)

    torch.manual_seed(0)
    model = Plain()
    gallery = Gallery.of(model, strangers.images, strangers.labels)
    result = attacks.run(ranking.QueryAttack("raise"), model, strangers.images, gallery, SEARCH, generator=seeded())
    assert result.measured["rank"].mean() < result.benign["rank"].mean()
