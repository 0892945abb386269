"""Networks and their history as SVG: text as text, no library, the same bytes for the same network.

`network` draws an outline as volumes of maps (the chapter's figures 5 and 6) where it is one plain chain, else as a
chain of stages with what is in each (figures 8 and 10); `panels` draws modules side by side (figures 7 and 9);
`history` the winners of ILSVRC (figure 4).
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from opsin.console import printable

if TYPE_CHECKING:  # these need torch, drawing does not
    from opsin.models.outline import Outline, Panel, Part, Shape, Stage

# Told apart by eyes with any colour vision (Okabe and Ito 2008); what each is, its text says too.
INK, FAINT, PALE = "#1f2933", "#5b6672", "#f6f7f9"
_COLOURS = {  # fill and line of each kind of layer
    "conv": ("#d6e8f5", "#0072b2"),
    "pool": ("#fbe3d3", "#c24f00"),
    "dense": ("#d3efe4", "#007d5c"),
    "change": ("#eceef1", "#6b7580"),
}
_LEGEND = {"conv": "convolution", "pool": "pooling", "dense": "fully connected", "change": "other"}
_JOIN, _AUX = "#e69f00", "#a8527f"


# ---------------------------------------------------------------------------------------------------------------------
# Lines, boxes and text
# ---------------------------------------------------------------------------------------------------------------------


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """At least the width of `text` in the usual sans-serif fonts, of which DejaVu Sans is the widest."""
    total = 0.0
    for c in text:
        if c in " .,:;'|!()[]/·ijltfrI-":
            total += 0.45
        elif c in "mwMWOQGNUHDCK%@×→+=<>—" or not c.isascii():
            total += 1.0
        else:
            total += 0.7
    return total * size * (1.12 if bold else 1.0)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


Point = tuple[float, float]


class Canvas:
    """SVG elements, and the rectangle that they fill."""

    def __init__(self) -> None:
        self._elements: list[str] = []
        self._left = self._top = math.inf
        self._right = self._bottom = -math.inf

    @property
    def right(self) -> float:
        return self._right

    @property
    def bottom(self) -> float:
        return self._bottom

    def _see(self, *points: Point) -> None:
        for x, y in points:
            self._left, self._right = min(self._left, x), max(self._right, x)
            self._top, self._bottom = min(self._top, y), max(self._bottom, y)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, line: str = "none", *, dash: bool = False, r: float = 3
    ) -> None:
        self._see((x, y), (x + w, y + h))
        dashed = ' stroke-dasharray="4 3"' if dash else ""
        self._elements.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" rx="{_n(r)}" '
            f'fill="{fill}" stroke="{line}"{dashed}/>'
        )

    def polygon(self, points: Sequence[Point], fill: str, line: str = "none") -> None:
        self._see(*points)
        corners = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._elements.append(f'<polygon points="{corners}" fill="{fill}" stroke="{line}"/>')

    def line(self, *points: Point, arrow: bool = False, colour: str = FAINT, dash: bool = False) -> None:
        """Through all points; an arrow ends in its point."""
        self._see(*points)
        path = " ".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
        dashed = ' stroke-dasharray="4 3"' if dash else ""
        self._elements.append(f'<path d="{path}" fill="none" stroke="{colour}"{dashed}/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = math.hypot(x - x0, y - y0) or 1.0
            u, v = 6 * (x - x0) / length, 6 * (y - y0) / length
            self.polygon([(x, y), (x - u - v / 2, y - v + u / 2), (x - u + v / 2, y - v - u / 2)], colour)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 11,
        *,
        anchor: str = "middle",
        bold: bool = False,
        colour: str = INK,
    ) -> None:
        """On the base line `y`."""
        text = printable(text)
        width = text_width(text, size, bold=bold)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self._see((left, y - size), (left + width, y + 0.3 * size))
        style = ' font-weight="bold"' if bold else ""
        self._elements.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" text-anchor="{anchor}" fill="{colour}"{style}>'
            f"{escape(text)}</text>"
        )

    def group(self, title: str) -> None:
        """What is drawn until `end` belongs together, and says so where a pointer rests on it."""
        self._elements.append(f'<g class="stage"><title>{escape(printable(title))}</title>')

    def end(self) -> None:
        self._elements.append("</g>")

    def svg(self, title: str, description: str, margin: float = 20) -> str:
        """The whole file."""
        x, y = self._left - margin, self._top - margin
        w, h = self._right - self._left + 2 * margin, self._bottom - self._top + 2 * margin
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(w)}" height="{_n(h)}" '
            f'viewBox="{_n(x)} {_n(y)} {_n(w)} {_n(h)}" role="img" aria-labelledby="title desc" '
            "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">",
            f'<title id="title">{escape(printable(title))}</title>',
            f'<desc id="desc">{escape(printable(description))}</desc>',
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" fill="#ffffff"/>',
            *self._elements,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def shape_text(shape: Shape) -> str:
    """
    >>> shape_text((64, 56, 56)), shape_text((1000,))
    ('64 × 56 × 56', '1000')
    """
    return " × ".join(map(str, shape))


def millions(count: int) -> str:
    """
    >>> millions(650), millions(2_293_000), millions(15_470_264_320)
    ('650', '2.29 M', '15,470 M')
    """
    value = count / 1e6
    return f"{count:,}" if value < 0.1 else f"{value:.3g} M" if value < 100 else f"{value:,.0f} M"


def _said(name: str, part: Part) -> str:
    return f"{name}: {shape_text(part.shape)}, {part.params:,} parameters, {millions(part.macs)} multiply–adds"


def _title(canvas: Canvas, lines: Sequence[str], x: float = 0, y: float = 0) -> float:
    """A heading and lines below it; returns where the drawing can begin."""
    canvas.text(x, y, lines[0], 18, anchor="start", bold=True)
    for line in lines[1:]:
        y += 18
        canvas.text(x, y, line, 11, anchor="start", colour=FAINT)
    return y + 30


# ---------------------------------------------------------------------------------------------------------------------
# Layers, branches and sums: cells with a way through
# ---------------------------------------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    """Something with a way through it. along, across: its size; axis: where, across it, the way goes in and out.

    draw: with its corner, (along, across). lines: whether it begins with a line, to which no arrow needs to point.
    """

    along: float
    across: float
    axis: float
    draw: Callable[[Canvas, float, float], None]
    lines: bool = False


class _Flow:
    """Lays parts out along a way to the right, or down."""

    GAP, LEAD, STEP = 20.0, 18.0, 9.0  # between two layers; before and after what lies side by side; between branches

    def __init__(self, *, down: bool = False) -> None:
        self.down = down

    def at(self, along: float, across: float) -> Point:
        return (across, along) if self.down else (along, across)

    def _line(self, canvas: Canvas, *points: Point, arrow: bool = False) -> None:
        canvas.line(*(self.at(*point) for point in points), arrow=arrow)

    def cell(self, part: Part) -> _Cell:
        if part.kind == "chain":
            return self.chain([self.repeated(inner, count) for inner, count in runs(part.parts)])
        if part.kind == "branches":
            return self._branches([self.cell(inner) for inner in part.parts])
        if part.kind == "sum":
            body, shortcut = part.parts
            lane = self.cell(shortcut) if shortcut.kind != "chain" or shortcut.parts else self._word("identity")
            added = self._sum(self.cell(body), lane)
            return self.chain([added, self._box("change", part.note)]) if part.note else added
        return self._box(part.kind, part.text, part.note)

    def repeated(self, part: Part, count: int) -> _Cell:
        return self._framed(self.cell(part), f"× {count}") if count > 1 else self.cell(part)

    def _box(self, kind: str, text: str, note: str = "") -> _Cell:
        least = 24.0 if kind == "change" else 92.0  # layers of one column are mostly as wide as each other
        width = max(text_width(text, 11), text_width(note, 9), least) + 12
        height = 35.0 if note else 22.0
        fill, line = _COLOURS[kind]

        def draw(canvas: Canvas, along: float, across: float) -> None:
            x, y = self.at(along, across)
            canvas.rect(x, y, width, height, fill, line)
            canvas.text(x + width / 2, y + 15, text)
            if note:
                canvas.text(x + width / 2, y + 28, note, 9, colour=FAINT)

        along, across = (height, width) if self.down else (width, height)
        return _Cell(along, across, across / 2, draw)

    def _word(self, text: str) -> _Cell:
        """A word on the way itself."""
        width, height = text_width(text, 9) + 6, 12.0

        def draw(canvas: Canvas, along: float, across: float) -> None:
            x, y = self.at(along, across)
            canvas.rect(x, y, width, height, "#ffffff", r=6)
            canvas.text(x + width / 2, y + 9, text, 9, colour=FAINT)

        along, across = (height, width) if self.down else (width, height)
        return _Cell(along, across, across / 2, draw)

    def chain(self, cells: Sequence[_Cell]) -> _Cell:
        """One after the other, with arrows between them."""
        axis = max((cell.axis for cell in cells), default=0.0)
        below = max((cell.across - cell.axis for cell in cells), default=0.0)
        along = sum(cell.along for cell in cells) + self.GAP * max(0, len(cells) - 1)

        def draw(canvas: Canvas, start: float, across: float) -> None:
            for i, cell in enumerate(cells):
                cell.draw(canvas, start, across + axis - cell.axis)
                start += cell.along
                if i + 1 < len(cells):
                    arrow = not cells[i + 1].lines
                    self._line(canvas, (start, across + axis), (start + self.GAP, across + axis), arrow=arrow)
                start += self.GAP

        return _Cell(along, axis + below, axis, draw, bool(cells) and cells[0].lines)

    def _branches(self, cells: Sequence[_Cell]) -> _Cell:
        """Side by side from one point, joined in a bar."""
        starts = list(itertools.accumulate((cell.across + self.STEP for cell in cells[:-1]), initial=0.0))
        axes = [start + cell.axis for start, cell in zip(starts, cells, strict=True)]
        axis, longest = (axes[0] + axes[-1]) / 2, max(cell.along for cell in cells)
        along = self.LEAD + longest + self.LEAD + 6

        def draw(canvas: Canvas, start: float, across: float) -> None:
            fork, bar = start + 6, start + along - 6
            self._line(canvas, (start, across + axis), (fork, across + axis))
            self._line(canvas, (fork, across + axes[0]), (fork, across + axes[-1]))
            for cell, top, middle in zip(cells, starts, axes, strict=True):
                self._line(canvas, (fork, across + middle), (start + self.LEAD, across + middle), arrow=not cell.lines)
                cell.draw(canvas, start + self.LEAD, across + top)
                end = start + self.LEAD + cell.along
                self._line(canvas, (end, across + middle), (bar, across + middle), arrow=True)
            first, last = self.at(bar, across + axes[0] - 9), self.at(start + along, across + axes[-1] + 9)
            canvas.rect(*first, last[0] - first[0], last[1] - first[1], _JOIN, r=2)

        return _Cell(along, starts[-1] + cells[-1].across, axis, draw, lines=True)

    def _sum(self, body: _Cell, lane: _Cell) -> _Cell:
        """The body, and beside it the shortcut, which meet in a plus sign."""
        radius, beside = 8.0, lane.across + self.STEP
        inside = max(body.along, lane.along)
        along = self.LEAD + inside + self.LEAD + 2 * radius
        axis = beside + body.axis

        def draw(canvas: Canvas, start: float, across: float) -> None:
            fork, plus, main, aside = start + 6, start + along - radius, across + axis, across + lane.axis
            self._line(canvas, (start, main), (start + self.LEAD, main), arrow=not body.lines)
            self._line(canvas, (fork, main), (fork, aside), (plus, aside), (plus, main - radius), arrow=True)
            lane.draw(canvas, start + self.LEAD + (inside - lane.along) / 2, across)
            body.draw(canvas, start + self.LEAD, across + beside)
            self._line(canvas, (start + self.LEAD + body.along, main), (plus - radius, main), arrow=True)
            x, y = self.at(plus, main)
            canvas.rect(x - radius, y - radius, 2 * radius, 2 * radius, "#ffffff", INK, r=radius)
            canvas.line((x - 4, y), (x + 4, y), colour=INK)
            canvas.line((x, y - 4), (x, y + 4), colour=INK)

        return _Cell(along, beside + body.across, axis, draw, lines=True)

    def _framed(self, cell: _Cell, label: str) -> _Cell:
        head, pad = 22.0, 8.0
        before, above = (head, pad) if self.down else (pad, head)
        along, across = before + cell.along + pad, above + cell.across + pad

        def draw(canvas: Canvas, start: float, top: float) -> None:
            (x, y), (w, h) = self.at(start, top), self.at(along, across)
            canvas.rect(x, y, w, h, "none", FAINT, dash=True, r=6)
            canvas.text(x + 8, y + 15, label, 12, anchor="start", bold=True)
            cell.draw(canvas, start + before, top + above)
            axis, end = top + above + cell.axis, start + before + cell.along
            self._line(canvas, (start, axis), (start + before, axis), arrow=not cell.lines)
            self._line(canvas, (end, axis), (start + along, axis))

        return _Cell(along, across, above + cell.axis, draw, lines=True)


def runs(parts: Iterable[Part]) -> Iterator[tuple[Part, int]]:
    """Equal ones that follow each other, counted; single layers are not taken together."""
    for part, equal in itertools.groupby(parts):
        count = len(list(equal))
        yield from [(part, count)] if part.parts else [(part, 1)] * count


# ---------------------------------------------------------------------------------------------------------------------
# A network as a chain of stages
# ---------------------------------------------------------------------------------------------------------------------


def network(outline: Outline) -> str:
    """The SVG of a network."""
    canvas = Canvas()
    parts = [stage.part for stage in outline.stages] + [outline.head]
    heads = [stage.aux for stage in outline.stages if stage.aux is not None]
    params, macs = sum(part.params for part in parts + heads), sum(part.macs for part in parts)
    counts = f"{params:,} parameters, {millions(macs)} multiply–adds for {shape_text(outline.shape)}"
    top = _title(canvas, [outline.name, outline.about, counts])
    plain = not heads and all(not inner.parts for part in parts for inner in layers(part))
    (_volumes if plain else _stages)(canvas, outline, top)
    bottom = canvas.bottom + 34
    if outline.family:
        bottom = _family(canvas, outline, bottom, "convolutions" if plain else "blocks")
    _legend(canvas, bottom, set[str]().union(*map(_kinds, parts + heads), ["change"] if plain else []))
    names = ", ".join(f"{stage.name} {shape_text(stage.part.shape)}" for stage in outline.stages)
    return canvas.svg(
        f"The network {outline.name}",
        f"{outline.about}. {counts}. From {shape_text(outline.shape)} by the stages {names} "
        f"to {shape_text(outline.head.shape)}.",
    )


def _kinds(part: Part) -> set[str]:
    own = {part.kind, "change"} if part.kind == "sum" and part.note else {part.kind}
    return own.union(*map(_kinds, part.parts))


def layers(part: Part) -> tuple[Part, ...]:
    return part.parts if part.kind == "chain" else (part,)


def _stages(canvas: Canvas, outline: Outline, top: float) -> None:
    flow = _Flow()
    rows = [*_alike(outline.stages), (["head"], outline.head, None)]
    boxes = [(_names(names), _counts(part, len(names))) for names, part, _ in rows]
    width = max(text_width(line, 13, bold=True) for names, counts in boxes for line in names + counts) + 8
    middle, inside = width / 2, width + 30
    _stage_box(canvas, 0, top, width, ["picture"], [shape_text(outline.shape)])
    y = top + _height(2)
    for (names, part, aux), (shown, counts) in zip(rows, boxes, strict=True):
        cell, high = flow.cell(part), _height(len(shown + counts))
        space = max(cell.across + 16, high)
        box = y + 24 + (space - high) / 2
        canvas.line((middle, y), (middle, box), arrow=True)
        y += 24
        canvas.group(_said(", ".join(names), part))
        _stage_box(canvas, 0, box, width, shown, counts)
        _way_through(canvas, flow, cell, inside, y + (space - cell.across) / 2, FAINT)
        canvas.line((width, y + space / 2), (inside, y + space / 2), dash=True)
        canvas.end()
        bottom = box + high
        y += space
        if aux is not None:
            head = flow.cell(aux)
            canvas.group(_said(f"auxiliary head on {names[-1]}", aux))
            middle_of_head = y + 38 + head.axis
            canvas.line((middle, y), (middle, middle_of_head), (inside, middle_of_head), arrow=True, colour=_AUX)
            _way_through(canvas, flow, head, inside, y + 38, _AUX, dash=True)
            label = f"auxiliary head on {names[-1]}, in training only: {shape_text(aux.shape)}"
            canvas.text(inside, y + 22, label, 10, anchor="start", colour=_AUX)
            canvas.end()
            y += 38 + head.across + 8
        canvas.line((middle, bottom), (middle, y))
    canvas.text(middle, y + 20, shape_text(outline.head.shape) + " logits", bold=True)
    canvas.line((middle, y), (middle, y + 8), arrow=True)


def _alike(stages: Sequence[Stage]) -> Iterator[tuple[list[str], Part, Part | None]]:
    """Stages that follow each other and are equal but for their names, with the names."""
    for (part, aux), equal in itertools.groupby(stages, key=lambda stage: (stage.part, stage.aux)):
        names = [stage.name for stage in equal]
        yield from ((group, part, aux) for group in ([names] if aux is None else [[name] for name in names]))


def _names(names: Sequence[str]) -> list[str]:
    return [" · ".join(names[i : i + 4]) for i in range(0, len(names), 4)]


def _counts(part: Part, stages: int) -> list[str]:
    each = " each" if stages > 1 else ""
    lines = [shape_text(part.shape)]
    lines += [f"{part.params:,} parameters{each}"] if part.params else []
    return lines + ([f"{millions(part.macs)} multiply–adds{each}"] if part.macs else [])


def _height(lines: int) -> float:
    return 12.0 + 15 * lines


def _stage_box(canvas: Canvas, x: float, y: float, width: float, names: Sequence[str], counts: Sequence[str]) -> None:
    """Names in bold, the shape, then the counts in small letters."""
    canvas.rect(x, y, width, _height(len(names) + len(counts)), PALE, INK, r=6)
    y += 18
    for name in names:
        canvas.text(x + width / 2, y, name, 13, bold=True)
        y += 15
    for i, line in enumerate(counts):
        canvas.text(x + width / 2, y + 15 * i, line, 10 if i else 12, colour=FAINT if i else INK)


def _way_through(
    canvas: Canvas, flow: _Flow, cell: _Cell, x: float, y: float, colour: str, *, dash: bool = False
) -> None:
    """A cell in its frame, with arrows in and out."""
    canvas.rect(x, y - 8, cell.along + 52, cell.across + 16, PALE, colour if dash else "#d9dee4", dash=dash, r=6)
    canvas.line((x + 4, y + cell.axis), (x + 26, y + cell.axis), arrow=not cell.lines)
    cell.draw(canvas, x + 26, y)
    canvas.line((x + 26 + cell.along, y + cell.axis), (x + 48 + cell.along, y + cell.axis), arrow=True)


def _family(canvas: Canvas, outline: Outline, y: float, units: str) -> float:
    """The table of the networks that differ in depth alone: He et al. 2015, table 1, in the chapter's figure 10."""
    names = [stage.name for stage in outline.stages if stage.name.startswith("stage")]
    column = max(text_width(name, 11, bold=True) for name in [*names, "stage9"]) + 14
    first = max(text_width(name, 11, bold=True) for name in outline.family) + 14
    canvas.text(0, y, f"Deeper and shallower ones: {units} in each stage", 11, anchor="start", bold=True)
    y += 20
    for i, name in enumerate(names):
        canvas.text(first + column * (i + 0.5), y, name, 11, colour=FAINT)
    canvas.line((0, y + 6), (first + column * len(names), y + 6))
    for name, counts in outline.family.items():
        y += 20
        own = name == outline.name
        if own:
            canvas.rect(0, y - 14, first + column * len(names), 19, "#e8eef5", r=2)
        canvas.text(6, y, name, 11, anchor="start", bold=own)
        for i, count in enumerate(counts):
            canvas.text(first + column * (i + 0.5), y, f"× {count}", 11, bold=own)
    return y + 34


def _legend(canvas: Canvas, y: float, kinds: set[str]) -> None:
    x = 0.0
    for kind, word in _LEGEND.items():
        if kind not in kinds:
            continue
        canvas.rect(x, y - 10, 14, 12, *_COLOURS[kind], r=2)
        canvas.text(x + 19, y, word, 10, anchor="start", colour=FAINT)
        x += 19 + text_width(word, 10) + 14
    if "branches" in kinds:
        canvas.rect(x + 4, y - 12, 6, 16, _JOIN, r=2)
        canvas.text(x + 19, y, "joined along the channels", 10, anchor="start", colour=FAINT)
        x += 19 + text_width("joined along the channels", 10) + 14
    note = "“3×3 conv, 64 /2”: window 3×3, 64 channels, stride 2. Sizes are channels × height × width."
    canvas.text(0, y + 20, note, 10, anchor="start", colour=FAINT)


# ---------------------------------------------------------------------------------------------------------------------
# A network as volumes of maps
# ---------------------------------------------------------------------------------------------------------------------


class _Room(NamedTuple):
    """Where volumes stand, and what they are drawn in proportion to."""

    floor: float
    height: float  # of the largest map
    largest: int  # side of that map in pixels
    widest: int  # most channels or units of any layer
    planes: bool  # every map a sheet (figure 5), or all maps of a layer one block (figure 6)


def _volumes(canvas: Canvas, outline: Outline, top: float) -> None:
    """Maps as planes where there are few layers (figure 5), as blocks where there are many (figure 6)."""
    stages = [(stage.name, stage.part) for stage in outline.stages] + [("head", outline.head)]
    every = [part for _, whole in stages for part in layers(whole)]
    room = _Room(
        floor=top + 190,
        height=150,
        largest=max(outline.shape[1:], default=1),
        widest=max(part.shape[0] for part in every),
        planes=len(every) <= 8,
    )
    x, before = _column(canvas, 0, room, [("change", outline.shape)], [shape_text(outline.shape), "picture"])
    shape = outline.shape
    for name, whole in stages:
        canvas.group(_said(name, whole))
        start = x + 22
        for parts in [[part] for part in layers(whole)] if room.planes else [layers(whole)]:
            canvas.line((x + 3, room.floor - 8), (x + 19, room.floor - 8), arrow=True)
            drawn = [(part.kind, part.shape) for part in parts if part.kind != "change" or len(parts) == 1]
            x, at = _column(canvas, x + 22, room, drawn, list(_captions(parts)))
            if room.planes:
                _window(canvas, room, before, shape, at, parts[0])
            before, shape = at, parts[-1].shape
        end = max(x, start + text_width(name, 12, bold=True))
        canvas.line((start, top + 8), (end, top + 8), colour=INK)
        canvas.text((start + end) / 2, top, name, 12, bold=True)
        canvas.end()
        x = end


def _window(canvas: Canvas, room: _Room, before: float, shape: Shape, at: float, part: Part) -> None:
    """What one place of a layer's maps sees of the maps before it, as in figure 5."""
    if not part.window or len(part.shape) < 3 or len(shape) < 3:
        return
    side, after = _side(room, shape), _side(room, part.shape)
    w = max(4.0, side * min(1.0, part.window / shape[1]))
    x, y = before + (side - w) * 0.75, room.floor - side + (side - w) * 0.3
    colour = _COLOURS[part.kind][1]
    canvas.rect(x, y, w, w, "#ffffff", colour, r=0)
    end = (at + after * 0.35, room.floor - after * 0.65)
    canvas.line((x + w, y), end, (x + w, y + w), colour=colour)


def _column(
    canvas: Canvas, x: float, room: _Room, drawn: Sequence[tuple[str, Shape]], captions: Sequence[str]
) -> tuple[float, float]:
    """Volumes close together from x on, lines of text below, the first bold: where it ends, where the first stands."""
    widths = [_volume(Canvas(), 0, room, kind, shape) for kind, shape in drawn]
    total = sum(widths) + 4 * (len(widths) - 1)
    texts = [text_width(line, 11 if i == 0 else 10, bold=i == 0) for i, line in enumerate(captions)]
    width = max(total, *texts)
    first = at = x + (width - total) / 2
    for (kind, shape), one in zip(drawn, widths, strict=True):
        _volume(canvas, at, room, kind, shape)
        at += one + 4
    canvas.text(x + width / 2, room.floor + 20, captions[0], bold=True)
    for i, line in enumerate(captions[1:], 1):
        canvas.text(x + width / 2, room.floor + 20 + 14 * i, line, 10, colour=FAINT)
    return x + width, first


def _side(room: _Room, shape: Shape) -> float:
    """How high a map of this shape is drawn."""
    full = room.height * (0.72 if room.planes else 1)
    return max(10.0, full * (max(shape[1:]) / room.largest) ** 0.6)


def _volume(canvas: Canvas, x: float, room: _Room, kind: str, shape: Shape) -> float:
    """The maps or the vector that a layer gives, from x on; returns the width."""
    colours, floor = _COLOURS[kind], room.floor
    part = math.sqrt(shape[0] / room.widest)
    if len(shape) == 1:
        height = 24 + 106 * part
        canvas.rect(x, floor - height, 12, height, *colours, r=1)
        return 12
    side = _side(room, shape)
    if room.planes:
        back = 4 * (min(shape[0], 7) - 1)
        for shift in range(back, -1, -4):
            canvas.rect(x + shift, floor - side - shift, side, side, *colours, r=0)
        return side + back
    thick, right, up = 3 + 20 * part, 0.3 * side, 0.18 * side
    near, far, y = x + thick, x + thick + right, floor - side
    canvas.rect(x, y, thick, side, *colours, r=0)
    canvas.polygon([(x, y), (x + right, y - up), (far, y - up), (near, y)], *colours)
    canvas.polygon([(near, y), (far, y - up), (far, floor - up), (near, floor)], *colours)
    return thick + right


def _captions(parts: Sequence[Part]) -> Iterator[str]:
    """What stands below some layers: the shape that comes out, and what was done."""
    yield shape_text(parts[-1].shape)
    for (text, note), equal in itertools.groupby(parts, key=lambda part: (part.text, part.note)):
        count = len(list(equal))
        yield f"{count} times {text}" if count > 1 else text
        if note:
            yield note


# ---------------------------------------------------------------------------------------------------------------------
# Modules side by side
# ---------------------------------------------------------------------------------------------------------------------


def panels(title: str, source: str, shown: Sequence[Panel]) -> str:
    """The SVG of modules side by side, the way through them downwards, with what goes in and comes out."""
    canvas, flow, x = Canvas(), _Flow(down=True), 0.0
    top = _title(canvas, [title, source])
    cells = [flow.cell(panel.part) for panel in shown]
    lowest = top + max(cell.along for cell in cells) + 70
    for panel, cell in zip(shown, cells, strict=True):
        part = panel.part
        lines = [
            f"{shape_text(panel.shape)} → {shape_text(part.shape)}",
            f"{part.params:,} parameters, {millions(part.macs)} multiply–adds",
            panel.caption,
        ]
        width = max(cell.across, *(text_width(line, 12, bold=True) for line in lines))
        left = x + (width - cell.across) / 2
        middle = left + cell.axis
        canvas.group(_said(panel.caption, part))
        canvas.text(middle, top, shape_text(panel.shape), 12, bold=True)
        canvas.line((middle, top + 6), (middle, top + 28), arrow=not cell.lines)
        cell.draw(canvas, top + 28, left)
        end = top + 28 + cell.along
        canvas.line((middle, end), (middle, end + 22), arrow=True)
        canvas.text(middle, end + 38, shape_text(part.shape), 12, bold=True)
        canvas.text(x + width / 2, lowest + 24, lines[2], 12, bold=True)
        canvas.text(x + width / 2, lowest + 42, lines[1], 11, colour=FAINT)
        canvas.end()
        x += width + 60
    _legend(canvas, lowest + 80, set[str]().union(*(_kinds(panel.part) for panel in shown)))
    said = ". ".join(_said(panel.caption, panel.part) for panel in shown)
    return canvas.svg(title, f"{source}. {said}.")


# ---------------------------------------------------------------------------------------------------------------------
# The history
# ---------------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A line of ilsvrc.csv. error: top-5 classification error in per cent."""

    year: int
    entry: str
    kind: str
    error: float
    source: str


def results() -> list[Result]:
    """The winners of ILSVRC, with VGG, and a person, from the file in this package."""
    text = resources.files("opsin").joinpath("ilsvrc.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return [Result(int(r["year"]), r["entry"], r["kind"], float(r["top5_error"]), r["source"]) for r in rows]


def history(rows: Sequence[Result]) -> str:
    """The SVG of figure 4: the error of each year's entries, and a person's as a line across."""
    canvas, high, wide, gap = Canvas(), 300.0, 66.0, 26.0
    title = "Top-5 error in the ImageNet challenge, in per cent"
    top = _title(
        canvas, [title, "ILSVRC classification, test pictures: each year's winner and VGG, without outside data."]
    )
    entries = [row for row in rows if row.kind != "human"]
    most = 10 * math.ceil(max(row.error for row in rows) / 10)
    floor, right = top + high, len(entries) * (wide + gap) + gap

    def level(error: float) -> float:
        return floor - high * error / most

    for tick in range(0, most + 1, 5):
        canvas.line((0, level(tick)), (right, level(tick)), colour=INK if tick == 0 else "#e3e6ea")
        canvas.text(-8, level(tick) + 4, str(tick), 11, anchor="end", colour=FAINT)
    for i, row in enumerate(entries):
        x = gap + i * (wide + gap)
        colours = _COLOURS["change" if row.kind == "features" else "conv"]
        canvas.rect(x, level(row.error), wide, floor - level(row.error), *colours, r=1)
    lines = [row for row in rows if row.kind == "human"]
    for row in lines:
        canvas.group(f"{row.entry}: {row.error:g} %. {row.source}")
        canvas.line((0, level(row.error)), (right, level(row.error)), colour=_COLOURS["pool"][1], dash=True)
        canvas.text(right + 6, level(row.error) + 4, f"{row.entry} {row.error:g}", 12, anchor="start", bold=True)
        canvas.end()
    for i, row in enumerate(entries):
        x = gap + i * (wide + gap) + wide / 2
        canvas.group(f"{row.year} {row.entry}: {row.error:g} %. {row.source}")
        low = level(row.error) - 7
        crossed = [level(line.error) for line in lines if low - 12 < level(line.error) < low + 5]
        canvas.text(x, min([low, *(y - 6 for y in crossed)]), f"{row.error:g}", 12, bold=True)
        canvas.text(x, floor + 18, str(row.year), 12, bold=True)
        canvas.text(x, floor + 34, row.entry, 11)
        canvas.end()
    x, y = 0.0, floor + 66
    for colours, word in (
        (_COLOURS["change"], "features and a classifier"),
        (_COLOURS["conv"], "convolutional networks"),
    ):
        canvas.rect(x, y - 10, 14, 12, *colours, r=2)
        canvas.text(x + 19, y, word, 10, anchor="start", colour=FAINT)
        x += 19 + text_width(word, 10) + 14
    said = "; ".join(f"{row.year} {row.entry} {row.error:g}" for row in entries)
    people = "; ".join(f"{row.entry} {row.error:g}" for row in lines)
    return canvas.svg(title, f"{said}. {people}. Sources: {'; '.join(dict.fromkeys(row.source for row in rows))}.")
