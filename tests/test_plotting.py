"""Figures: what they show, that it is readable, and that two runs draw the same bytes."""

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from robret_lib import data, plotting

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _style_on_no_screen():
    matplotlib.use("agg")
    with matplotlib.rc_context():
        plotting.style()
        yield
    plt.close("all")


def images(number, channels=1, seed=0):
    """Smooth gray or color images with a dark border, about as compressible as Fashion-MNIST."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(60, 255, (number, channels, 7, 7)).astype(np.uint8)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    fine[..., :4] = fine[..., -6:] = 0
    return fine


def strip(channels=1):
    query, *results = images(11, channels)
    change = np.random.default_rng(1).integers(-1, 2, query.shape) * 8 / 255
    labels = ("Bag", ["Bag"] * 5, ["Ankle boot", "T-shirt/top", "Bag", "Sneaker", "Trouser"])
    correct = [False, False, True, False, False]
    return plotting.retrieval_strip(query, results[:5], change, results[5:], [True] * 5, correct, labels)


def grid():
    return plotting.image_grid([images(6), images(4)], ["benign", "perturbed, eps = 8/255"])


def searches():
    query, *results = images(7)
    return plotting.searches(
        {"clean": (query, results[:3], [True] * 3), "attacked": (query, results[3:], [False, True, False])}
    )


def hardness():
    generator = np.random.default_rng(0)
    samplers = ("random", "semihard", "softhard", "distance", "hard")
    return plotting.hardness_histogram(
        {name: generator.normal(i / 5 - 0.5, 0.2, 2000) for i, name in enumerate(samplers)}
    )


def embedding_map():
    generator = np.random.default_rng(0)
    labels = torch.arange(2000) % 10
    points = torch.from_numpy(5 * generator.normal(size=(10, 2))[labels] + generator.normal(size=(2000, 2)))
    return plotting.embedding_map(points, labels, [f"class {i}" for i in range(10)])


def training_curve():
    entries = [{"step": step, "loss": 1 / step, "recall_at_1": 80 - 50 / step} for step in range(1, 20)]
    return plotting.training_curve(entries)


def rank_against_eps():
    eps = [0, 7 / 255, 14 / 255]
    ranks = {"candidate attack +": [49, 33, 20], "candidate attack −": [1, 11, 26]}
    return plotting.rank_against_eps(eps, ranks, {"candidate attack +": [49.2, float("nan"), 20.2]})


def published_beside_ours():
    published = {"CA+": [49.2, 5.1, 0.9], "CA−": [1.4, 71.9, 96.5], "SPQA+": [50.0, float("nan"), 39.7]}
    ours = {"CA+": [49.2, 6.1, 1.0], "CA−": [1.3, 74.2, 97.0], "SPQA+": [49.4, 41.6, float("nan")]}
    errors = {"CA+": [1.5, 0.5, 0.1], "CA−": [0.1, 1.4, float("nan")], "SPQA+": [1.4, 1.3, float("nan")]}
    return plotting.published_beside_ours([0, 28, 77], published, ours, errors, "budget", "percentile rank (%)")


FIGURES = [strip, grid, searches, hardness, embedding_map, training_curve, rank_against_eps, published_beside_ours]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight")
    return buffer.getvalue()


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text().strip()]


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_is_small_readable_and_without_title(draw):
    figure, axes = draw()
    assert len(png(figure)) <= 60_000
    assert figure.dpi == 100
    assert figure.get_size_inches()[0] <= 8
    assert min(text.get_fontsize() for text in texts(figure)) >= 8
    assert not any(ax.get_title() for ax in figure.axes)
    assert to_hex(figure.get_facecolor()) == "#ffffff"


@pytest.mark.parametrize("draw", FIGURES)
def test_texts_do_not_overlap_and_stay_inside(draw):
    figure, _ = draw()
    figure.canvas.draw()
    everything = figure.get_tightbbox()
    assert everything.x0 >= -0.01 and everything.y0 >= -0.01
    assert np.all(everything.max <= figure.get_size_inches() + 0.01)
    # Not the labels of ticks, which exist outside the axes too without being drawn there.
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    ticks = {text for axis in axes for tick in axis.get_major_ticks() for text in tick.findobj(Text)}
    labels = [text for text in texts(figure) if text not in ticks]
    boxes = [(text.get_text(), text.get_window_extent()) for text in labels]
    for i, (text, box) in enumerate(boxes):
        for other, other_box in boxes[:i]:
            assert not box.padded(-1).overlaps(other_box.padded(-1)), (text, other)


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_figure_has_the_same_bytes(draw):
    assert png(draw()[0]) == png(draw()[0])


@pytest.mark.slow
def test_another_process_draws_the_same_bytes():
    script = "import hashlib, test_plotting as t; t.plotting.style(); t.matplotlib.use('agg')\n"
    script += "print(hashlib.sha256(b''.join(t.png(draw()[0]) for draw in t.FIGURES)).hexdigest())"
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": ""}
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script]
        environment = path | {"PYTHONHASHSEED": seed}
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strip_shows_the_attack(channels):
    figure, axes = strip(channels)
    shown = {where: axes[where].images[0].get_array() for where in ((0, 1), (1, 0), (1, 1), (0, 2), (1, 6))}
    query, *results = images(11, channels)
    change = np.random.default_rng(1).integers(-1, 2, query.shape) * 8 / 255

    def pixels(array):
        return np.moveaxis(array, 0, -1).squeeze()

    np.testing.assert_allclose(shown[0, 1], pixels(query / 255), atol=1e-6)
    np.testing.assert_allclose(shown[1, 0], pixels(0.5 + change * 255 / 16), atol=1e-6)
    np.testing.assert_allclose(shown[1, 1], pixels(np.clip(query / 255 + change, 0, 1)), atol=1e-6)
    np.testing.assert_allclose(shown[0, 2], pixels(results[0] / 255), atol=1e-6)
    np.testing.assert_allclose(shown[1, 6], pixels(results[9] / 255), atol=1e-6)
    assert axes[1, 0].get_xlabel() == "perturbation\n× 16"


def test_right_and_wrong_results_differ_in_frame_and_symbol():
    _, axes = strip()
    for ax, right in zip(axes[1, 2:], [False, False, True, False, False], strict=True):
        assert ax.get_xlabel().startswith("✓" if right else "✗")
        assert to_hex(ax.spines["left"].get_edgecolor()) == (plotting.CORRECT if right else plotting.WRONG).lower()
        assert ax.spines["left"].get_visible()


def test_answers_that_are_wrong_have_a_frame_of_their_own():
    _, axes = searches()
    assert axes.shape == (2, 4)
    shown = axes[1, 3].images[0].get_array()
    np.testing.assert_allclose(shown, images(7)[6][0] / 255, atol=1e-6)
    for ax, right in zip(axes[1, 1:], [False, True, False], strict=True):
        assert to_hex(ax.spines["left"].get_edgecolor()) == (plotting.CORRECT if right else plotting.WRONG).lower()
        assert ax.spines["left"].get_linestyle() == ("-" if right else "--")
    assert not axes[1, 0].spines["left"].get_visible()


def test_a_strip_without_any_change_or_labels_can_be_drawn():
    query, result = images(2)
    _, axes = plotting.retrieval_strip(query, [result], np.zeros(query.shape), [result], [True], [True])
    assert axes.shape == (2, 3)
    assert np.all(axes[1, 0].images[0].get_array() == 0.5)


def test_a_strip_with_uneven_results_says_so():
    query, *results = images(4)
    with pytest.raises(ValueError, match=r"differ in length: \[3, 2, 3, 3\]"):
        plotting.retrieval_strip(query, results, np.zeros(query.shape), results[:2], [True] * 3, [True] * 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((28, 28)), r"\[C,H,W\]"),
        (np.zeros((2, 8, 8)), "1 or 3 channels"),
        (torch.full((1, 8, 8), 2.0), r"in \[0,1\]"),
        (torch.full((1, 8, 8), -0.1), r"in \[0,1\]"),
        (torch.full((1, 8, 8), torch.nan), r"in \[0,1\]"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        plotting.image_grid([[image]], ["row"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_float_type_with_gradient_are_drawn(dtype):
    image = torch.full((1, 4, 4), 0.5, dtype=dtype, requires_grad=True)
    _, axes = plotting.image_grid([[image]], ["row"])
    assert np.all(axes[0, 0].images[0].get_array() == 0.5)


def test_the_hardness_histogram_is_a_density_with_its_means():
    values = torch.tensor([-1.0, -0.5, -0.5, 0.0])
    _, ax = plotting.hardness_histogram({"random": values}, bins=4)
    steps, mean = ax.lines
    edges, heights = steps.get_data()
    assert np.sum(np.diff(edges) * heights[:-1]) == pytest.approx(1)
    np.testing.assert_allclose(heights, [1, 0, 2, 1, 1])
    assert mean.get_xdata()[0] == pytest.approx(-0.5)
    assert steps.get_label() == "random (−0.50)"


def test_the_embedding_map_gives_each_class_its_points_and_look():
    points, labels = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    _, ax = plotting.embedding_map(points, labels, ["a", "b", "c"])
    assert [group.get_label() for group in ax.collections] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.collections[1].get_offsets(), points[labels == 1])
    looks = {(i % 10, i % 7) for i in range(70)}
    assert len(plotting.CLASS_COLORS) == 10 and len(plotting.CLASS_MARKERS) == 7 and len(looks) == 70


def test_the_training_curve_shows_recall_where_there_is_some():
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "recall_at_1": 50.0},
        {"step": 3, "loss": 0.5},
    ]
    _, axes = plotting.training_curve(history)
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[1, 2], [2, 1], [3, 0.5]])
    np.testing.assert_array_equal(axes[1].lines[0].get_xydata(), [[2, 50]])
    _, axes = plotting.training_curve(history[:1])
    assert axes.shape == (1,)


def test_published_ranks_are_hollow_markers_of_the_color_of_ours():
    _, ax = rank_against_eps()
    ours, published, other, key = ax.lines
    np.testing.assert_allclose(ours.get_xydata(), [[0, 49], [7, 33], [14, 20]])
    assert published.get_color() == ours.get_color() != other.get_color()
    assert (published.get_linestyle(), published.get_markerfacecolor()) == ("None", "none")
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == key.get_label() == "published"


def test_published_values_are_hollow_and_ours_filled_with_bars_of_two_standard_errors():
    _, axes = published_beside_ours()
    assert [ax.texts[0].get_text() for ax in axes] == ["CA+", "CA−", "SPQA+"]
    ours, published = axes[0].lines[0], axes[0].lines[-1]
    np.testing.assert_allclose(ours.get_xydata(), [[0, 49.2], [28, 6.1], [77, 1.0]])
    np.testing.assert_allclose(published.get_xydata(), [[0, 49.2], [28, 5.1], [77, 0.9]])
    assert published.get_color() == ours.get_color() == ours.get_markerfacecolor() != axes[1].lines[0].get_color()
    assert published.get_markerfacecolor() == "none"
    (bars,) = axes[0].containers[0].lines[2]
    np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars.get_segments()], [6.0, 2.0, 0.4])
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["published", "ours"]


def test_published_values_may_stand_at_names():
    rows = ["CA+", "CA−"]
    figure, axes = plotting.published_beside_ours(rows, {"N": [1, 97]}, {"N": [2, 96]}, {"N": [0.1, 0.4]})
    figure.canvas.draw()
    assert axes.shape == (1,)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == rows


def test_values_that_do_not_fit_together_are_named():
    with pytest.raises(ValueError, match=r"N: .* hold \[2, 1, 2\] values; there are 2 places"):
        plotting.published_beside_ours([0, 1], {"N": [1, 2]}, {"N": [1]}, {"N": [1, 2]})
    with pytest.raises(ValueError, match=r"E: .* hold \[0, 2, 0\] values"):
        plotting.published_beside_ours([0, 1], {"N": [1, 2]}, {"N": [1, 2], "E": [1, 2]}, {"N": [1, 2]})


def test_no_figure_touches_the_style_of_others():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        before = dict(matplotlib.rcParams)
        for draw in FIGURES:
            draw()
        assert dict(matplotlib.rcParams) == before


def test_a_figure_of_photographs_is_a_small_jpeg_and_closed():
    photographs = data.load("grocery").gallery.images[::64]
    figure, _ = plotting.image_grid([photographs], ["groceries"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = plotting.photograph(figure)
    with Image.open(io.BytesIO(picture._repr_jpeg_())) as opened:
        assert opened.format == "JPEG" and opened.size[0] > opened.size[1] > 90
    assert len(picture.jpeg) < len(buffer.getvalue()) / 2.5
    assert not plt.fignum_exists(figure.number)
    assert repr(picture).startswith("<JPEG of ")


def test_looks_differ_by_color_and_style_or_by_marker_and_are_the_same_again():
    """As many as a chapter has networks; eight have one more than there are colors."""
    looks = plotting.looks("abcdefgh")
    assert looks == plotting.looks("abcdefgh")
    lines = {label: plt.plot([0, 1], [0, 1], **look)[0] for label, look in looks.items()}
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 7
    assert len({line.get_marker() for line in lines.values()}) == 8


@pytest.mark.parametrize(
    "together",
    [
        ("no defense", "EST", "ACT", "FARE"),
        ("no defense", "ACT", "HM[S,gLGA]", "HM[S,gLGA] & ICS", "HM[S,0]"),
        ("no defense", "ACT", "HM[S,gLGA] & ICS", "HM[S,0]", "CA-TRIDE", "kept neighborhood"),
    ],
)
def test_defenses_that_a_chapter_draws_together_differ_in_color(together):
    looks = plotting.looks(plotting.DEFENSES)
    assert len({looks[label]["color"] for label in together}) == len(together)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(plotting.DEFENSES)
