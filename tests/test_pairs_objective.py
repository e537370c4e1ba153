"""What images and texts learn by together: the texts of each batch, codes kept of all, and both after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robret_lib import hamming, models, training
from robret_lib.attacks import PGD
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.cross_modal import (
    DCMH,
    SSAH,
    CenterGuidedPairs,
    ImagesAndTexts,
    ImageTextModel,
    NeighboringWords,
    Pairs,
    Semantic,
    text_model,
)
from robret_lib.cross_modal.objective import similar_to
from robret_lib.data import DataError, Split
from robret_lib.hashing import KnownCodes
from robret_lib.hashing.batch import Known
from robret_lib.models import HashModel
from robret_lib.training import Schedule, train

SIZE, BITS, CLASSES, WORDS, FEATURE = 37, 8, 4, 12, 6
SCHEDULE = Schedule(steps=20, batch=8, lr=0.01, weight_decay=1e-4, seed=5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pairs(size: int = SIZE, seed: int = 1) -> tuple[Split, Tensor]:
    """A pattern and three words for each of four classes, and noise; every fifth has a label more, two have none."""
    classes = torch.arange(size) % CLASSES
    patterns = torch.rand(CLASSES, 1, 6, 6, generator=seeded())[classes]
    images = 0.4 * patterns + 0.6 * torch.rand(size, 1, 6, 6, generator=seeded(seed))
    likely = 0.1 + 0.7 * one_hot(classes, CLASSES).repeat_interleave(WORDS // CLASSES, dim=1)
    bags = (torch.rand(size, WORDS, generator=seeded(seed + 100)) < likely).float()[:, None, None]
    hot = one_hot(classes, CLASSES)
    hot[::5, 0] = 1
    hot[[7, 11]] = 0
    return Split(images, hot), bags


def small_model(bits: int = BITS, dropout: float = 0.2) -> ImageTextModel:
    """With dropout, which a resumed training could get wrong."""
    torch.manual_seed(1)
    images = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, bits))
    return ImageTextModel(HashModel(images), text_model(WORDS, bits, (16,)))


def semantic_model(bits: int = BITS, dropout: float = 0.2) -> ImageTextModel:
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(dropout))
    images = Semantic(trunk, 16, bits, CLASSES, FEATURE)
    return ImageTextModel(
        HashModel(images), HashModel(Semantic(NeighboringWords(WORDS, 16), 16, bits, CLASSES, FEATURE))
    )


def outputs_of(images: Tensor, texts: Tensor, labels: Tensor, rows: Tensor) -> Pairs:
    """A batch of which networks say what is given, ``[n, bits]`` each."""
    model = ImageTextModel(HashModel(nn.Flatten()), HashModel(nn.Flatten()))
    return Pairs(model, images[:, None, None], texts[:, None, None], labels, rows)


def batch_of(model: ImageTextModel, rows: Tensor, pairs: tuple[Split, Tensor] | None = None) -> Pairs:
    """Some of `some_pairs`, in the type of the network."""
    split, bags = some_pairs() if pairs is None else pairs
    kind = next(model.parameters()).dtype
    return Pairs(model, split.images[rows].to(kind), bags[rows].to(kind), split.labels[rows], rows)


def maps_of(model: ImageTextModel, asked: tuple[Split, Tensor], found: tuple[Split, Tensor]) -> list[float]:
    """MAP of images in texts, and of texts in images."""
    queries, items = (
        [
            hamming.codes_of(models.embed(branch, inputs))
            for branch, inputs in ((model.images, split.images), (model.texts, bags))
        ]
        for split, bags in (asked, found)
    )
    labels = asked[0].labels, found[0].labels
    return [hamming.hamming_map(queries[0], items[1], *labels), hamming.hamming_map(queries[1], items[0], *labels)]


def assert_learns(loss_of, model: ImageTextModel, schedule: Schedule, by: float = 25) -> None:
    """What it is asked for it has not seen; the loss is made for labels. By chance MAP is 35, give or take 3."""
    seen, asked = some_pairs(200), some_pairs(60, seed=9)
    before = maps_of(model, asked, seen)
    torch.manual_seed(3)
    train(model, seen[0], ImagesAndTexts(loss_of(seen[0].labels), seen[1], seen[0].labels), schedule)
    for better, worse in zip(maps_of(model, asked, seen), before, strict=True):
        assert better > worse + by


# A batch


class Noting(nn.Module):
    """It keeps the pairs it is given; its loss is the mean of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self._given: list[Pairs] = []

    def forward(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        self._given.append(pairs)
        return sum(each.square().mean() for each in pairs.outputs)


@pytest.mark.parametrize("labels", ["multi-hot", "class numbers"])
def test_every_image_comes_with_its_own_text_and_the_place_it_has(labels):
    split, bags = some_pairs()
    if labels == "class numbers":
        split = Split(split.images, torch.arange(SIZE) % CLASSES)
    hot = one_hot(split.labels, CLASSES) if split.labels.ndim == 1 else split.labels
    loss = Noting()
    train(small_model(), split, ImagesAndTexts(loss, bags, hot), SCHEDULE)
    assert len(loss._given) == 20
    assert sorted(torch.cat([pairs.rows for pairs in loss._given[:5]]).tolist()) == list(range(SIZE))
    for pairs in loss._given:
        assert torch.equal(pairs.images, split.images[pairs.rows]) and torch.equal(pairs.bags, bags[pairs.rows])
        assert torch.equal(pairs.labels, hot[pairs.rows]) and pairs.labels.dtype == torch.uint8


def test_both_networks_are_asked_once_however_often_their_outputs_are_looked_at():
    model, calls = small_model().eval(), []
    for branch in (model.images, model.texts):
        branch.register_forward_hook(lambda *_: calls.append(1))
    pairs = batch_of(model, torch.tensor([3, 0, 8]))
    first, again = pairs.outputs, pairs.outputs
    assert first is again and len(calls) == 2
    assert torch.equal(first[0], model.images(pairs.images)) and torch.equal(first[1], model.texts(pairs.bags))


def test_the_loss_is_that_of_the_pairs_with_the_generator_that_came():
    class Drawing(nn.Module):
        def forward(self, pairs, generator):
            return pairs.outputs[0].sum() * torch.rand((), generator=generator)

    (split, bags), model, rows = some_pairs(), small_model().eval(), torch.tensor([4, 2])
    objective = ImagesAndTexts(Drawing(), bags, split.labels)
    objective.hold(rows, 0)
    found = objective(model, split.images[rows], split.labels[rows], seeded(3))
    torch.testing.assert_close(found, model.images(split.images[rows]).sum() * torch.rand((), generator=seeded(3)))


def test_two_items_are_similar_where_they_share_a_label():
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    known = Known(torch.zeros(3, 5, dtype=torch.float64), torch.tensor([[0, 1, 1], [0, 1, 0], [1, 1, 1]]))
    found = similar_to(labels, known)
    assert found.tolist() == [[1, 0, 1], [0, 0, 0]] and found.dtype == torch.float64


# What is refused


@pytest.mark.parametrize(
    ("bags", "given"),
    [
        (torch.zeros(5, 9), r"bags torch.float32 \(5, 9\), labels \(5, 3\)"),
        (torch.zeros(5, 1, 9), r"bags torch.float32 \(5, 1, 9\), labels \(5, 3\)"),
        (torch.zeros(5, 1, 1, 9, dtype=torch.uint8), r"bags torch.uint8 \(5, 1, 1, 9\)"),
        (torch.zeros(4, 1, 1, 9), r"bags torch.float32 \(4, 1, 1, 9\), labels \(5, 3\)"),
    ],
)
def test_anything_but_one_bag_for_each_row_of_labels_is_refused(bags, given):
    with pytest.raises(ValueError, match=rf"{given}.*: expected float \[N, 1, 1, V\], one for each row of labels"):
        ImagesAndTexts(Noting(), bags, torch.ones(5, 3))


def test_a_batch_of_which_nobody_has_said_what_it_is_is_refused():
    split, bags = some_pairs()
    objective = ImagesAndTexts(Noting(), bags, split.labels)
    with pytest.raises(RuntimeError, match=r"a batch of 4 images: expected hold\(rows, epoch\) to be called before"):
        objective(small_model(), split.images[:4], split.labels[:4], seeded())
    objective.hold(torch.arange(3), 0)
    with pytest.raises(RuntimeError, match="a batch of 4 images"):
        objective(small_model(), split.images[:4], split.labels[:4], seeded())


def test_labels_of_other_classes_are_refused():
    split, bags = some_pairs()
    objective = ImagesAndTexts(Noting(), bags, split.labels)
    objective.hold(torch.arange(4), 0)
    with pytest.raises(DataError, match=r"labels of shape \(4, 3\): expected 4 classes"):
        objective(small_model(), split.images[:4], split.labels[:4, :3], seeded())


# In a training


def center_guided(labels: Tensor) -> CenterGuidedPairs:
    known = [KnownCodes(labels, BITS) for _ in range(2)]
    for seed, each in enumerate(known):
        each.fill(2.0 * torch.randint(0, 2, (len(labels), BITS), generator=seeded(seed)) - 1)
    inner = PGD(0.1, 0.05, 2, random_start=True), WordFlips(2, tried=1)
    return CenterGuidedPairs(DCMH(labels, BITS), *inner, *known)


LOSSES = {
    "DCMH": (lambda labels: DCMH(labels, BITS), small_model),
    "DCMH, reference": (lambda labels: DCMH(labels, BITS, "reference"), small_model),
    "SSAH": (lambda labels: SSAH(labels, BITS, feature=FEATURE, hidden=16), semantic_model),
    "center-guided": (center_guided, small_model),
}


def an_objective(name: str, bags: Tensor | None = None) -> ImagesAndTexts:
    torch.manual_seed(2)  # for weights of its own
    split, own = some_pairs()
    return ImagesAndTexts(LOSSES[name][0](split.labels), own if bags is None else bags, split.labels)


class Interrupted(Exception):
    pass


def stopping(model: ImageTextModel, calls: int) -> ImageTextModel:
    """It fails at a step."""
    seen = []

    def count(*_: object) -> None:
        seen.append(1)
        if len(seen) > calls:
            raise Interrupted

    (last,) = (module for name, module in model.texts.backbone.named_modules() if name in ("code", "3"))
    last.register_forward_pre_hook(count)
    return model


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("stop", "every"), [(1, 3), (6, 5), (14, 3)])
def test_stopped_and_resumed_it_ends_with_the_same_weights_and_the_same_codes(name, stop, every, tmp_path):
    """Before the first checkpoint, within an epoch, and from a checkpoint between two of them."""
    split, model_of = some_pairs()[0], LOSSES[name][1]
    whole, undisturbed = model_of(), an_objective(name)
    train(whole, split, undisturbed, SCHEDULE)
    arguments = SCHEDULE, tmp_path / "checkpoint", every
    looks = 5 if name == "center-guided" else 1  # at a text, in each step
    with pytest.raises(Interrupted):
        train(stopping(model_of(), looks * stop), split, an_objective(name), *arguments)
    assert (tmp_path / "checkpoint").exists() == (stop >= every)
    model, objective = model_of(), an_objective(name)
    train(model, split, objective, *arguments)
    for mine, expected in ((model, whole), (objective, undisturbed)):
        for key, value in expected.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value), key
    known = [value for key, value in objective.state_dict().items() if key.endswith(".seen")]
    assert len(known) == (4 if name == "center-guided" else 2) and all(seen.all() for seen in known)
    begun = model_of().state_dict()
    assert all(not torch.equal(value, begun[key]) for key, value in whole.state_dict().items())


def test_a_checkpoint_of_other_texts_is_refused(tmp_path):
    """Though a single word of one of them is another; it says which objective it was, and has no texts in it."""
    (split, bags), schedule, file = some_pairs(), Schedule(steps=1, batch=8), tmp_path / "checkpoint"
    train(small_model(), split, an_objective("DCMH"), schedule, file)
    state = torch.load(file, weights_only=True)
    assert "objective.loss.known_texts.codes" in state["weights"] and "objective.bags" not in state["weights"]
    bags = bags.clone()
    bags[20, 0, 0, 3] = 1 - bags[20, 0, 0, 3]
    with pytest.raises(ValueError, match=r"was written with .*ImagesAndTexts\(.*this training is .*: move it"):
        train(small_model(), split, an_objective("DCMH", bags), schedule, file)
    train(small_model(), split, an_objective("DCMH"), schedule, file)


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (lambda labels: DCMH(labels, BITS), lambda labels: DCMH(labels, BITS, "reference"), "mode='reference'"),
        (lambda labels: DCMH(labels, BITS), center_guided, "loss=CenterGuidedPairs"),
        (center_guided, lambda labels: weighing(center_guided(labels), 0.5), "weight=0.5"),
        (center_guided, lambda labels: with_more_flips(center_guided(labels)), "words=3"),
    ],
)
def test_a_checkpoint_of_another_loss_is_refused(first, other, said, tmp_path):
    (split, bags), schedule = some_pairs(), Schedule(steps=1, batch=8)
    arguments = schedule, tmp_path / "checkpoint"
    train(small_model(), split, ImagesAndTexts(first(split.labels), bags, split.labels), *arguments)
    with pytest.raises(ValueError, match=f"this training is .*{said}"):
        train(small_model(), split, ImagesAndTexts(other(split.labels), bags, split.labels), *arguments)


def weighing(loss: CenterGuidedPairs, weight: float) -> CenterGuidedPairs:
    loss.weight = weight
    return loss


def with_more_flips(loss: CenterGuidedPairs) -> CenterGuidedPairs:
    loss.of_texts = WordFlips(3, tried=1)
    return loss


def test_texts_that_lie_elsewhere_in_memory_are_told_from_others_alike():
    """As a column of a larger table, which is not in one piece."""
    split, bags = some_pairs()
    table = torch.stack([bags, 1 - bags], dim=-1)
    first, same, other = (
        ImagesAndTexts(Noting(), each, split.labels).texts for each in (bags, table[..., 0], table[..., 1])
    )
    assert first == same != other


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOSSES)
def test_a_training_on_a_gpu(name):
    model, objective = LOSSES[name][1]().cuda(), an_objective(name)
    history = train(model, some_pairs()[0], objective, Schedule(steps=6, batch=8))
    assert history[-1]["loss"] == history[-1]["loss"] and next(model.parameters()).is_cuda
    assert objective.bags.is_cuda and all(each.is_cuda for each in objective.state_dict().values())


# Several processes

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
import torch
from tests.test_pairs_objective import SCHEDULE, an_objective, plain_model, some_pairs
from robret_lib.training import process_group, train

torch.set_num_threads(1)
model, objective = plain_model(), an_objective("DCMH, reference")
with process_group("cpu") as rank:
    train(model, some_pairs()[0], objective, SCHEDULE)
    state = {{"model": model.state_dict(), "objective": objective.state_dict()}}
    torch.save(state, Path({folder!r}) / f"end{{rank}}")
"""


def plain_model() -> ImageTextModel:
    torch.manual_seed(4)
    return ImageTextModel(HashModel(nn.Sequential(nn.Flatten(), nn.Linear(36, BITS))), text_model(WORDS, BITS, (5,)))


@pytest.mark.slow
def test_two_processes_know_the_codes_of_both(tmp_path):
    """As if one held both batches at once, and took the mean of their gradients."""
    script, root = tmp_path / "worker.py", Path(__file__).parents[1]
    script.write_text(WORKER.format(root=str(root), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [torch.load(tmp_path / f"end{rank}", weights_only=True) for rank in (0, 1)]

    split, model, loss = some_pairs()[0], plain_model(), an_objective("DCMH, reference").loss
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    shards = [training._batches(split.labels, SCHEDULE, 0, rank, 2) for rank in (0, 1)]
    for _ in range(20):
        batches = [next(shard) for shard in shards]
        for rows in batches:  # now each of the two finds the other there
            loss.known_images.with_batch(rows, batch_of(model, rows).outputs[0])
            loss.known_texts.with_batch(rows, batch_of(model, rows).outputs[1])
        losses = [loss(batch_of(model, rows), seeded()) for rows in batches]
        optimizer.zero_grad()
        (sum(losses) / 2).backward()
        optimizer.step()
    for end in ends:
        torch.testing.assert_close(end["model"], model.state_dict(), rtol=0, atol=1e-5)
        for name in ("known_images", "known_texts"):
            known = getattr(loss, name)
            torch.testing.assert_close(end["objective"][f"loss.{name}.codes"], known.codes, rtol=0, atol=1e-4)
            assert end["objective"][f"loss.{name}.seen"].all()
