"""The list of target labels: drawn once, written whole, read back, and refused where it is that of something else."""

import errno
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robret_lib.attacks import Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.target_labels import draw_labels, kept_labels
from robret_lib.attacks.targeted_codes import PointToSet
from robret_lib.data import multi_hot, relevance
from tests.small_codes import seeded

SINGLE = torch.arange(12) % 4, torch.arange(40) % 4
SEVERAL = tuple((torch.rand(size, 5, generator=seeded(size)) < 0.3).to(torch.uint8) for size in (12, 80))
KINDS = {"single": SINGLE, "several": SEVERAL}
of_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "lists" / "few.txt"


@of_kinds
def test_a_list_is_written_once_and_read_back_equal(kind, path):
    """Whatever seed is asked for later: attacks and networks that are compared aim at the same."""
    drawn = kept_labels(path, *KINDS[kind], seed=3)
    written = path.read_bytes()
    for seed in (3, 4):
        read = kept_labels(path, *KINDS[kind], seed=seed)
        assert torch.equal(read, drawn) and read.dtype == drawn.dtype == KINDS[kind][1].dtype
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == ["few.txt"]


def test_the_path_may_be_a_word(path):
    drawn = kept_labels(str(path), *SINGLE)
    assert torch.equal(kept_labels(path, *SINGLE), drawn)
    path.write_text("")
    with pytest.raises(ValueError, match="few.txt is no list"):
        kept_labels(str(path), *SINGLE)


@of_kinds
def test_what_is_drawn_depends_on_the_seed_alone(kind, path):
    lists = [kept_labels(path.with_name(f"{i}.txt"), *KINDS[kind], seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(lists[0], lists[1]) and not torch.equal(lists[0], lists[2])
    assert torch.equal(lists[0], draw_labels(*KINDS[kind], seeded(0)))


@of_kinds
def test_no_target_shares_a_label_with_its_query_and_all_are_those_of_items(kind, path):
    labels, gallery = KINDS[kind]
    for seed in range(20):
        wanted = kept_labels(path.with_name(f"{seed}.txt"), labels, gallery, seed)
        assert not relevance(wanted, labels).diagonal().any()
        assert {str(row) for row in wanted.tolist()} <= {str(row) for row in gallery.tolist()}


def test_the_list_is_lines_of_zeros_and_ones(path):
    """As published; single labels likewise."""
    found = kept_labels(path, torch.tensor([0, 2]), torch.tensor([0, 1, 1]))
    assert found.tolist() == [1, int(path.read_text().splitlines()[1] == "0 1")]
    assert path.read_text().splitlines()[0] == "0 1" and path.read_text().endswith("\n")
    kept_labels(path.with_name("hot.txt"), multi_hot(torch.tensor([0]), 3), multi_hot(torch.tensor([0, 2]), 3))
    assert path.with_name("hot.txt").read_text() == "0 0 1\n"


@of_kinds
def test_the_list_of_other_queries_is_refused(kind, path):
    labels, gallery = KINDS[kind]
    wanted = kept_labels(path, labels, gallery)
    for other in (labels[:-1], torch.cat([labels, labels[:1]])):
        with pytest.raises(ValueError, match=rf"few.txt has target labels \(12.*, the queries \({len(other)}"):
            kept_labels(path, other, gallery)
    with pytest.raises(ValueError, match="few.txt has targets that share a label with their query: the list of other"):
        kept_labels(path, wanted, gallery)


@of_kinds
def test_the_list_of_another_gallery_is_refused(kind, path):
    """Without the items that one query aims at; nothing is written."""
    labels, gallery = KINDS[kind]
    wanted = kept_labels(path, labels, gallery)
    written = path.read_bytes()
    same = gallery == wanted[0]
    others = gallery[~(same if same.ndim == 1 else same.all(1))]
    with pytest.raises(ValueError, match="few.txt has target labels that no gallery item has: the list of another gal"):
        kept_labels(path, labels, others)
    assert path.read_bytes() == written


def test_a_list_with_more_labels_is_refused(path):
    """Also where the queries have one each, and a row of the list none or two."""
    kept_labels(path, *SEVERAL)
    labels, gallery = (torch.nn.functional.pad(part, (0, 1)) for part in SEVERAL)
    with pytest.raises(ValueError, match=r"has target labels \(12, 5\), the queries \(12, 6\)"):
        kept_labels(path, labels, gallery)
    for row in ("0 1 1 0", "0 0 0 0"):
        path.write_text("0 1 0 0\n" + row + "\n")
        with pytest.raises(ValueError, match="few.txt has targets of no class or several, the gallery one class"):
            kept_labels(path, torch.tensor([0, 3]), SINGLE[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a b\n", b"0 1\n0 1 0\n", b"0 2\n", b"0 -1\n", b"1\n0\n", b"0.5 0\n", b"\xff\xfe", b"0 1\n\n1 0\n"],
)
def test_garbage_is_no_list(content, path):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="few.txt is no list of target labels: expected lines of zeros and ones"):
        kept_labels(path, *SEVERAL)
    assert path.read_bytes() == content


def test_a_list_is_written_whole_or_not_at_all(path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            kept_labels(path, *SEVERAL)
    assert list(path.parent.iterdir()) == []
    assert len(kept_labels(path, *SEVERAL)) == 12


def test_where_a_query_has_no_target_no_list_is_written(path):
    with pytest.raises(ValueError, match="1 images share a label with every label vector"):
        kept_labels(path, torch.ones(1, 5, dtype=torch.uint8), SEVERAL[1])
    assert not path.exists()


class Largest(TorchDispatchMode):
    """Notes how many bytes the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        self.bytes = max(self.bytes, *(part.nbytes for part in tree_leaves(made) if isinstance(part, torch.Tensor)), 0)
        return made


def test_labels_are_looked_up_without_a_comparison_of_all_with_all_label_by_label(path):
    """Which takes 47 GB of the 5,000 queries, 117,000 items and 80 labels of MS-COCO."""
    hot = torch.eye(50, dtype=torch.uint8)
    labels, items = hot[torch.arange(200) % 50], hot[torch.arange(2_000) % 50]
    wanted = kept_labels(path, labels, items)
    gallery = Gallery(torch.randn(2_000, 8, generator=seeded()), "H", items)
    with Largest() as read:
        kept_labels(path, labels, items)
    attack, benign = PointToSet(wanted=wanted), Benign(gallery, torch.zeros(200, 8))
    with Largest() as found:
        same = attack.having_them(benign)
    assert read.bytes < found.bytes == 200 * 2_000
    assert torch.equal(same, (wanted[:, None] == items).all(2))
    with Largest() as drawn:
        attack.targets(benign, seeded())
    assert drawn.bytes == found.bytes  # weights, of eight bytes each, are those of one image at a time
