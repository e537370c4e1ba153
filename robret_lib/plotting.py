"""The field's figures in one style. Each function returns the figure and its axes, and shows nothing.

Figures have no titles, since a book's figures have captions. What color tells, a symbol, marker or linestyle
tells as well. Images are ``[C,H,W]`` tensors or arrays with one or three channels, uint8 or float in [0,1].
"""

import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Image = torch.Tensor | np.ndarray
Array = Image | Sequence[float]

CORRECT, WRONG = "#009E73", "#D55E00"
# Petroff's ten colors and seven markers: since 10 and 7 share no divisor, 70 classes differ.
CLASS_COLORS = (
    *("#3F90DA", "#FFA90E", "#BD1F01", "#94A4A2", "#832DB6"),
    *("#A96B59", "#E76300", "#B9AC70", "#717581", "#92DADD"),
)
CLASS_MARKERS = "os^DvPX"

DEFENSES = (
    *("no defense", "ACT", "HM[S,gLGA] & ICS", "HM[S,0]", "CA-TRIDE", "kept neighborhood", "HM[S,gLGA]"),
    *("SES", "REST", "EST", "FARE", "RAMD", "Panum's", "HM[S,-γ/2]"),
)
"""In the order of their `looks`, by which those that a chapter draws together differ in color."""


def style() -> None:
    """Use the book's style for all figures drawn from now on."""
    plt.style.use(Path(__file__).with_name("robret.mplstyle"))


def looks(labels: Iterable[str]) -> dict[str, dict[str, object]]:
    """What `Axes.plot` draws each label with, so that it looks the same in all figures: color, linestyle, marker."""
    styles, markers = plt.rcParams["axes.prop_cycle"](), itertools.cycle(CLASS_MARKERS + "*")
    return {
        label: {**style, "marker": marker, "markersize": 4}
        for label, style, marker in zip(labels, styles, markers, strict=False)  # the latter two have no end
    }


def retrieval_strip(
    query: Image,
    before: Sequence[Image],
    perturbation: Image,
    after: Sequence[Image],
    before_correct: Sequence[bool],
    after_correct: Sequence[bool],
    labels: tuple[str, Sequence[str], Sequence[str]] | None = None,
) -> tuple[Figure, np.ndarray]:
    """What an attack does to one ranking: query and top results above; perturbed query and top results below.

    The perturbation is magnified around gray, which stands for no change. A result of the query's class has a
    check mark and a frame of one color, any other a cross and a frame of another.

    Args:
        query: the benign query, ``[C,H,W]``.
        before: its top results, best first.
        perturbation: what is added to the query, float ``[C,H,W]``, in units of the pixel range [0,1].
        after: the top results of the perturbed query, as many as before.
        before_correct: for each result before, whether it has the query's class.
        after_correct: the same for each result after.
        labels: class names of the query, of the results before and of those after.

    Returns:
        The figure and its axes, ``[2, 2 + results]``.

    Raises:
        ValueError: where the results before and after, and what is told of them, differ in number.
    """
    numbers = [len(results) for results in (before, after, before_correct, after_correct)]
    if len(set(numbers)) > 1:
        raise ValueError(f"before, after, before_correct, after_correct differ in length: {numbers}.")
    query_name, *names = labels or ("", [""] * len(before), [""] * len(after))
    change = np.moveaxis(_array(perturbation), 0, -1)
    factor = 0.5 / max(float(np.abs(change).max()), 1e-6)
    figure, axes = _image_axes([1, 1, 0.16, *[1] * len(before)], rows=2, height=1.35)
    _write(axes[0, 0], "✓ same class\n✗ other class", fontsize=8)
    for ax in axes[:, 2]:
        _write(ax, "→", fontsize=13)
    axes = np.delete(axes, 2, axis=1)
    _show(axes[0, 1], _pixels(query), f"query\n{query_name}")
    _show(axes[1, 0], 0.5 + factor * change, f"perturbation\n× {factor:.0f}")
    _show(axes[1, 1], np.clip(_pixels(query) + change, 0, 1), f"perturbed query\n{query_name}")
    rows = zip(axes, (before, after), (before_correct, after_correct), names, strict=True)
    for row, images, correct, class_names in rows:
        for ax, image, is_correct, name in zip(row[2:], images, correct, class_names, strict=True):
            _show(ax, _pixels(image), f"{'✓' if is_correct else '✗'} {name}")
            ax.spines[:].set(visible=True, linewidth=2.5, color=CORRECT if is_correct else WRONG)
    return figure, axes


def image_grid(rows: Sequence[Sequence[Image]], row_labels: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """Rows of images, each with its label on the left; rows may differ in length."""
    figure, axes = _image_axes([1] * max(map(len, rows)), rows=len(rows), height=1)
    for row, images, label in zip(axes, rows, row_labels, strict=True):
        for ax in row[len(images) :]:
            ax.axis("off")
        for ax, image in zip(row, images, strict=False):
            _show(ax, _pixels(image))
        row[0].set_ylabel(textwrap.fill(label, 14), rotation=0, ha="right", va="center")
    return figure, axes


def searches(found: Mapping[str, tuple[Image, Sequence[Image], Sequence[bool]]]) -> tuple[Figure, np.ndarray]:
    """Searches below each other: a query and its first answers, framed by whether they are right.

    Args:
        found: By label, the query ``[C,H,W]``, up to five answers, best first, and whether each has the query's class.

    Returns:
        The figure and its axes, ``[searches, 1 + answers]``.
    """
    figure, axes = image_grid([[query, *answers] for query, answers, _ in found.values()], list(found))
    for ax, name in zip(axes[-1], ("query", "1st", "2nd", "3rd", "4th", "5th"), strict=False):
        ax.set_xlabel(name)
    for row, (_, _, correct) in zip(axes, found.values(), strict=True):
        for ax, is_correct in zip(row[1:], correct, strict=True):
            color, line = (CORRECT, "-") if is_correct else (WRONG, "--")
            ax.spines[:].set(visible=True, linewidth=2, color=color, linestyle=line)
    return figure, axes


def searches_in_words(
    found: Mapping[str, tuple[Image, Sequence[str], Sequence[bool]]], width: int = 52
) -> tuple[Figure, np.ndarray]:
    """Searches below each other, of images among texts: a query and its first answers, and whether each is right.

    Args:
        found: By label, the query ``[C,H,W]``, its answers, best first, and whether each has the query's class.
        width: Of an answer in letters; longer ones are cut.

    Returns:
        The figure and its axes, ``[searches, 2]``.
    """
    figure, axes = _image_axes([1.4, 4.6], rows=len(found), height=1.5)
    for (ax, told), (label, (query, answers, correct)) in zip(axes, found.items(), strict=True):
        _show(ax, _pixels(query))
        ax.set_ylabel(textwrap.fill(label, 14), rotation=0, ha="right", va="center")
        told.axis("off")
        for place, (answer, is_correct) in enumerate(zip(answers, correct, strict=True)):
            line = f"{'✓' if is_correct else '✗'} {textwrap.shorten(answer, width, placeholder='…')}"
            height = 1 - (place + 0.5) / len(answers)
            told.text(0.02, height, line, color=CORRECT if is_correct else WRONG, va="center", fontsize=9)
    return figure, axes


class Photograph:
    """A picture that a notebook stores as a JPEG file, many times smaller than PNG where it shows photographs."""

    def __init__(self, jpeg: bytes) -> None:
        self.jpeg = jpeg

    def _repr_jpeg_(self) -> bytes:
        return self.jpeg

    def __repr__(self) -> str:
        return f"<JPEG of {len(self.jpeg):,} bytes>"


def photograph(figure: Figure, quality: int = 75) -> Photograph:
    """A figure of photographs, closed, for the last line of a cell in place of the figure itself.

    Args:
        figure: of `retrieval_strip` or `image_grid`, say.
        quality: of the JPEG file, 1 to 100; color is kept at full resolution.
    """
    buffer = io.BytesIO()
    options = {"quality": quality, "subsampling": 0}
    figure.savefig(buffer, format="jpeg", bbox_inches="tight", pil_kwargs=options)
    plt.close(figure)
    return Photograph(buffer.getvalue())


def hardness_histogram(hardness: Mapping[str, Array], bins: int = 40) -> tuple[Figure, Axes]:
    """Histograms of triplet hardness d(a,p) - d(a,n), one for each sampler, with their means.

    Args:
        hardness: for each sampler's name the hardness of its triplets, ``[T]``.
        bins: how many bins they share.
    """
    samples = {name: _array(values) for name, values in hardness.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
    figure, ax = plt.subplots()
    for name, values in samples.items():
        density, _ = np.histogram(values, edges, density=True)
        label = f"{name} ({values.mean():.2f})".replace("-", "−")
        (line,) = ax.step(edges, [*density, density[-1]], where="post", label=label)
        ax.plot(values.mean(), 0, "^", color=line.get_color(), markersize=8, clip_on=False, zorder=5)
    ax.set(xlabel="hardness  $d(a,p) - d(a,n)$", ylabel="density", ylim=(0, None))
    ax.legend(title="sampler (mean ▲)", alignment="left")
    return figure, ax


def embedding_map(points: Array, labels: Array, class_names: Sequence[str]) -> tuple[Figure, Axes]:
    """A map of embeddings in the plane, with a marker and a color for each class.

    Args:
        points: ``[N,2]``, for instance the two leading principal components.
        labels: each point's class, int ``[N]``.
        class_names: their names, by class.
    """
    points, labels = _array(points), _array(labels)
    figure, ax = plt.subplots(figsize=(6, 3.8))
    for index, name in enumerate(class_names):
        x, y = points[labels == index].T
        look = {"color": CLASS_COLORS[index % 10], "marker": CLASS_MARKERS[index % 7]}
        ax.scatter(x, y, s=8, linewidths=0, label=name, **look)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    figure.legend(loc="outside center right", markerscale=2, handletextpad=0.2)
    return figure, ax


def training_curve(history: Sequence[Mapping[str, float]]) -> tuple[Figure, np.ndarray]:
    """The loss against the training step and, where the history has it, Recall@1.

    Args:
        history: entries with ``step``, ``loss`` and, in some or all of them, ``recall_at_1`` in percent.

    Returns:
        The figure and one or two axes, ``[1]`` or ``[2]``.
    """
    curves = {"loss": ("loss", "C0"), "recall_at_1": ("R@1 (%)", "C1")}
    shown = [key for key in curves if any(key in entry for entry in history)]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 2.6), squeeze=False)
    for ax, key in zip(axes[0], shown, strict=True):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        marker = "o" if len(points) <= 60 else ""
        ax.plot(*zip(*points, strict=True), linestyle="-", color=curves[key][1], marker=marker, markersize=4)
        ax.set(xlabel="step", ylabel=curves[key][0])
    axes[0, 0].set_ylim(bottom=0)
    return figure, axes[0]


def rank_against_eps(
    eps: Sequence[float],
    ranks: Mapping[str, Sequence[float]],
    published: Mapping[str, Sequence[float]] | None = None,
    ylabel: str = "normalized rank (%)",
) -> tuple[Figure, Axes]:
    """How far attacks move a rank, against their budget; published values are hollow markers.

    Args:
        eps: the budgets, in units of the pixel range [0,1].
        ranks: for each curve's name a rank for each budget.
        published: for some of the names the published ranks, NaN where none was published.
        ylabel: what is measured.
    """
    budgets = 255 * np.asarray(eps)
    published = published or {}
    figure, ax = plt.subplots()
    for name, values in ranks.items():
        (line,) = ax.plot(budgets, values, marker=".", label=name)
        if name in published:
            ax.plot(budgets, published[name], "o", color=line.get_color(), mfc="none", markersize=8)
    if published:
        ax.plot([], [], "o", color="#666666", mfc="none", markersize=8, label="published")
    ax.set(xlabel=r"budget $\varepsilon$ (1/255)", ylabel=ylabel)
    ax.legend()
    return figure, ax


def published_beside_ours(
    x: Sequence[float] | Sequence[str],
    published: Mapping[str, Sequence[float]],
    ours: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float]],
    xlabel: str = "",
    ylabel: str = "",
) -> tuple[Figure, np.ndarray]:
    """Published values, hollow, beside ours, filled, with bars of two standard errors: one panel for each name.

    Each panel has a vertical axis of its own, since a difference of one point is to be seen at 2 % as well as at 98 %.

    Args:
        x: where the values stand, numbers or names of rows.
        published: for each panel's name a value for each x; NaN where none was published.
        ours: for the same names our values; NaN where nothing has been run.
        errors: for the same names the standard errors of ours; NaN where unknown.
        xlabel, ylabel: of all panels.

    Returns:
        The figure and its axes, ``[panels]``.

    Raises:
        ValueError: where the names differ, or the values of one name are not as many as x.
    """
    for name in published.keys() | ours.keys() | errors.keys():
        numbers = [len(values.get(name, ())) for values in (published, ours, errors)]
        if set(numbers) != {len(x)}:
            raise ValueError(f"{name}: published, ours, errors hold {numbers} values; there are {len(x)} places x.")
    columns = min(2, len(published))
    rows = -(-len(published) // columns)
    size = (3.2 * columns, 1.9 * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False)
    axes = grid.flatten()
    for ax in axes[len(published) :]:
        ax.axis("off")
    for ax, color, name in zip(axes, _colors(), published, strict=False):
        bars = 2 * np.nan_to_num(_array(errors[name]))
        look = {"color": color, "linestyle": "none", "marker": "o"}
        ax.errorbar(x, _array(ours[name]), bars, **look, markersize=4, capsize=2, linewidth=1.2, label="ours")
        ax.plot(x, _array(published[name]), **look, mfc="none", markersize=8, label="published")
        ax.text(0.5, 1.02, name, transform=ax.transAxes, ha="center", va="bottom")
    axes[0].legend(handlelength=1)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    return figure, axes[: len(published)]


def _image_axes(widths: Sequence[float], rows: int, height: float) -> tuple[Figure, np.ndarray]:
    """Axes without ticks; ``widths`` and ``height`` in inches."""
    return plt.subplots(
        rows,
        len(widths),
        figsize=(sum(widths), height * rows),
        width_ratios=widths,
        squeeze=False,
        subplot_kw={"xticks": [], "yticks": []},
    )


def _show(ax: Axes, pixels: np.ndarray, label: str = "") -> None:
    # Small images keep their square pixels; large ones are reduced with a filter.
    ax.imshow(pixels, vmin=0, vmax=1, interpolation="nearest" if pixels.shape[0] < 100 else "auto")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("\n".join(textwrap.fill(line, 15) for line in label.splitlines()), fontsize=8)


def _colors() -> Iterator[str]:
    """The style's colors, over and over."""
    return itertools.cycle(plt.rcParams["axes.prop_cycle"].by_key()["color"])


def _write(ax: Axes, text: str, fontsize: float) -> None:
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=fontsize, linespacing=1.6)


def _array(values: Array) -> np.ndarray:
    return values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _pixels(image: Image) -> np.ndarray:
    """``[C,H,W]`` of any type to float ``[H,W,C]`` in [0,1], as matplotlib draws it."""
    scale = 255 if image.dtype in (torch.uint8, np.uint8) else 1
    pixels = np.moveaxis(_array(image) / scale, 0, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"An image must be [C,H,W] with 1 or 3 channels, not {tuple(image.shape)}.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"A float image must be in [0,1], not [{pixels.min():.3g}, {pixels.max():.3g}].")
    return pixels
