"""Figures of a run, drawn by matplotlib without its global state: bytes in memory, the same for the same values.

No pyplot, no display. Texts are taken as they are: a class named `$x$` is no formula.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from opsin.errors import UsageError
from opsin.metrics import Bin

# Told apart by eyes with any colour vision (Okabe and Ito 2008), and in grey by line style.
TRAIN, TEST, INK, FAINT, GAP = "#0072b2", "#d55e00", "#1f2933", "#c9ced6", "#e69f00"
_VARIABLES = {TRAIN: "--train", TEST: "--test", INK: "--ink", FAINT: "--line", GAP: "--gap"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Format = Literal["svg", "png"]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def printable(text: str) -> str:
    """`text` without characters that no page and no figure can hold (control characters, halves of surrogate pairs)."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _encode(figure: Figure, form: Format, salt: str, dpi: int = 144) -> bytes:
    """The figure's bytes. Ids in the SVG come from `salt` and no date is written: equal figures are equal files."""
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in any script
        figure.savefig(out, format=form, dpi=dpi, metadata=metadata, transparent=form == "svg")
    return out.getvalue()


def inline(svg: bytes) -> str:
    """An SVG of this module to stand inside a page: it scales with its column and takes the page's colours and font."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*pt"', r"\1", re.sub(r'(<svg [^>]*?)height="[^"]*pt"', r"\1", text))
    text = re.sub(r'<g id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|legend)_\d+">', "<g>", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # as matplotlib 3.11 writes it
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # as others do
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def curve_points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(epoch, value) of the epochs of a history that have a finite value under `key`."""
    rows = [(row.get("epoch"), row.get(key)) for row in history]
    return [(float(x), float(y)) for x, y in rows if _number(x) and _number(y)]  # type: ignore[arg-type]


def learning_curve(history: Sequence[Mapping[str, Any]], form: Format = "svg") -> bytes:
    """Train and test error per pass in per cent: figure 12 of the chapter.

    history: one mapping an epoch, with "epoch", "train_error" and "test_error" or "val_error" (fractions); of many
    labels "test_map" or "val_map", of which 1 - mAP is drawn. Values that are missing or not finite leave a gap; a
    history without any gives an empty figure that says so.
    """
    figure, axes = _figure(6.4, 4.0)
    series = (
        ("train_error", "training error", TRAIN, "--"),
        ("val_error", "validation error", GAP, "-."),
        ("test_error", "test error", TEST, "-"),
        ("val_map", "validation", GAP, "-."),
        ("test_map", "test", TEST, "-"),
    )
    top, last, what = 0.0, 1.0, "error in per cent"
    for key, name, colour, style in series:
        points = curve_points(history, key)
        if not points:
            continue
        x, y = np.array(points).T
        if key.endswith("_map"):
            y, what = 1 - y, "1 − mean average precision, in per cent"
        marker = "o" if len(x) <= 25 else ""
        axes.plot(x, 100 * y, style, color=colour, linewidth=2, marker=marker, markersize=4, label=name, clip_on=False)
        top, last = max(top, float(y.max())), max(last, float(x.max()))
    axes.set_xlabel("passes over the training pictures")
    axes.set_ylabel(what)
    axes.set_ylim(0, min(100.0, 105 * top) if top else 100.0)
    axes.set_xlim(0 if last > 1 else 0.5, last if last > 1 else 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.6)
    if axes.lines:
        axes.legend(frameon=False, loc="upper right", labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "no pass finished", ha="center", color=INK, transform=axes.transAxes)
    return _encode(figure, form, "learning_curve")


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str], form: Format = "svg") -> bytes:
    """Rows true, columns taken for; shade: the part of the row. Numbers up to 20 classes, names up to 100."""
    table = np.array(confusion, dtype=np.float64)
    k = len(classes)
    if table.shape != (k, k) or k == 0:
        raise UsageError(f"confusion: expected [{k}, {k}] for {k} classes, received {table.shape}")
    parts = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.5 * min(k, 20) + 0.12 * max(0, k - 20))
    figure, axes = _figure(side, side)
    # The shade is opacity, so that the figure stands on light and on dark pages. Square root: small parts matter.
    rgb = to_rgb(TRAIN)
    shades = LinearSegmentedColormap.from_list("shade", [(*rgb, 0.0), (*rgb, 1.0)])
    axes.imshow(np.sqrt(parts), cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    if k <= 20:
        for i, j in zip(*np.nonzero(table), strict=True):
            colour = "#ffffff" if parts[i, j] > 0.25 else INK
            axes.text(j, i, f"{int(table[i, j])}", ha="center", va="center", color=colour, fontsize=9)
    names = [printable(name) if len(name) <= 24 else printable(name[:23]) + "…" for name in classes]
    if k <= 100:
        size = min(10.0, 0.6 * 72 * side / k)
        axes.set_xticks(range(k), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(k), names, fontsize=size, parse_math=False)
        axes.tick_params(length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    return _encode(figure, form, "confusion_matrix")


def reliability_diagram(bins: Sequence[Bin], form: Format = "svg") -> bytes:
    """Accuracy against confidence; a calibrated classifier lies on the diagonal. Bars below: where the pictures are."""
    figure, axes = _figure(6.4, 4.0)
    filled = [row for row in bins if row.n]
    total = sum(row.n for row in bins)
    axes.bar(
        [100 * row.low for row in filled],
        [100 * row.n / total for row in filled],
        width=[100 * (row.high - row.low) for row in filled],
        align="edge",
        color=FAINT,
        label="part of the pictures",
    )
    axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=1.2, label="calibrated")
    points = [(100 * row.confidence, 100 * row.accuracy) for row in filled]
    x, y = [p[0] for p in points], [p[1] for p in points]
    axes.vlines(x, x, y, colors=GAP, linewidth=2)
    axes.plot(x, y, "o-", color=TEST, markersize=5, linewidth=1.6, label="accuracy")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.set_xlabel("confidence in per cent")
    axes.set_ylabel("right in per cent")
    axes.legend(frameon=False, loc="upper left", labelcolor=INK)
    return _encode(figure, form, "reliability")


def picture_grid(images: Tensor, titles: Sequence[str] = (), columns: int = 8) -> bytes:
    """Pictures, uint8 [N, C, H, W] with C of 1 or 3, as one PNG of a grid; small ones enlarged without smoothing."""
    pixels = images.detach().cpu().numpy()
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise UsageError(f"expected pictures as uint8 [N, 1 or 3, H, W], received {images.dtype} {tuple(images.shape)}")
    if columns < 1 or (titles and len(titles) != len(pixels)):
        raise UsageError(f"expected columns >= 1 and {len(pixels)} titles, received {columns} and {len(titles)}")
    n, _, height, width = pixels.shape
    columns, zoom = min(columns, n), max(1, round(96 / max(height, width)))
    rows = math.ceil(n / columns)
    cell_h, cell_w, gap, text = height * zoom, width * zoom, 8, 18 if titles else 0
    sheet = np.full((rows * (cell_h + gap + text) + gap, columns * (cell_w + gap) + gap, 3), 255, np.uint8)
    for i in range(n):
        top, left = gap + (i // columns) * (cell_h + gap + text), gap + (i % columns) * (cell_w + gap)
        tile = pixels[i].transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1)
        sheet[top : top + cell_h, left : left + cell_w] = tile
    dpi = 100
    figure = Figure(figsize=(sheet.shape[1] / dpi, sheet.shape[0] / dpi), dpi=dpi)
    figure.figimage(sheet, resize=False)
    letters = max(6, cell_w // 7)
    for i, title in enumerate(titles):
        shown = printable(title if len(title) <= letters else title[: letters - 1] + "…")
        x = gap + (i % columns) * (cell_w + gap) + cell_w / 2
        y = gap + (i // columns) * (cell_h + gap + text) + cell_h + 2
        figure.text(
            x / sheet.shape[1], 1 - y / sheet.shape[0], shown, ha="center", va="top", fontsize=7.5, parse_math=False
        )
    return _encode(figure, "png", "pictures", dpi=dpi)
