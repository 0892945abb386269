"""A report to `report.json` and one self-contained `report.html`; predictions to a page of pictures with their names.

Pages hold everything they show (inline styles, inline SVG, pictures as data URIs), run no script and load nothing;
their content security policy says so to the browser. Every text is escaped.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from opsin import __version__, figures, storage
from opsin.classifier import Prediction
from opsin.errors import UsageError
from opsin.evaluate import AnyReport, LabelReport, Report

MAX_CELLS, MAX_MATRIX = 20, 100  # classes up to which a table of numbers, and a shaded figure, can be read
MAX_SAMPLES, MAX_SAMPLE_CLASSES = 600, 100
MAX_LISTED = 100  # names of what a sheet could not show


class Thumbnail(NamedTuple):
    uri: str  # data:image/…
    small: bool  # whether to enlarge it without smoothing


def thumbnail(image: Tensor, side: int = 112) -> Thumbnail:
    """uint8 [1 or 3, h, w] as a data URI: small pictures unchanged (PNG), others reduced to `side` pixels (JPEG)."""
    pixels = np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0))
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small, out = max(picture.size) <= 64, io.BytesIO()
    if small:
        picture.save(out, "PNG", optimize=True)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(out, "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small)


def sample_indices(labels: Sequence[int] | np.ndarray, num_classes: int, per_class: int = 10) -> list[list[int]]:
    """Places of the first `per_class` pictures of each class, for the sample sheet (figure 11 of the chapter).

    labels: int [N], or of many labels float [N, K].
    """
    given = np.asarray(labels)
    has = (given[:, k] == 1 if given.ndim == 2 else given == k for k in range(num_classes))
    return [np.flatnonzero(one)[:per_class].tolist() for one in has]


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def write(
    folder: Path | str,
    report: AnyReport,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    recipe_toml: str = "",
    environment: Mapping[str, Any] | None = None,
    pictures: Callable[[int], Tensor] | None = None,
    samples: Mapping[str, Sequence[Tensor]] | None = None,
    title: str = "Report",
    facts: Mapping[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.json` and `report.html` into `folder`, durably; returns the page's path.

    history: the epochs' log records. pictures: place in the evaluated pictures → uint8 [C, h, w] (None: no thumbnails).
    samples: class name → a few of its training pictures. facts: about the run (minutes, epochs, parameters …), JSON
    values; they are `run` in `report.json`. beside: other pages of the folder that this one names, file → title.
    Whatever is empty has no section in the page.
    """
    folder = Path(folder)
    values = report.to_dict() | {"run": dict(facts or {})}
    try:
        text = json.dumps(values, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"report: expected finite JSON values: {error}") from error
    html = page(
        report,
        history,
        recipe_toml=recipe_toml,
        environment=environment,
        pictures=pictures,
        samples=samples,
        title=title,
        facts=facts,
        beside=beside,
    )
    storage.write_file(folder / "report.html", _bytes(html))
    storage.write_file(folder / "report.json", text + "\n")  # last: with it a run counts as finished
    return folder / "report.html"


def page(
    report: AnyReport,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    recipe_toml: str = "",
    environment: Mapping[str, Any] | None = None,
    pictures: Callable[[int], Tensor] | None = None,
    samples: Mapping[str, Sequence[Tensor]] | None = None,
    title: str = "Report",
    facts: Mapping[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
) -> str:
    """The page as a string; arguments as for `write`."""
    if isinstance(report, LabelReport):
        template, own = "labels.html.jinja", _of_labels(report, pictures)
    else:
        template, own = "report.html.jinja", _of_single(report, pictures)
    samples = {name: given for name, given in (samples or {}).items() if len(given)}
    shown = dict(list(samples.items())[:MAX_SAMPLE_CLASSES])
    per_class = max(3, min(10, MAX_SAMPLES // max(1, len(shown))))
    strips = [(name, [thumbnail(image) for image in given[:per_class]]) for name, given in shown.items()]
    has = {
        "run": facts,
        "skipped": report.skipped,
        "curve": history,
        "calibration": isinstance(report, Report),
        "confusion": isinstance(report, Report) and len(report.classes) <= MAX_MATRIX,
        "pairs": own.get("pairs"),
        "classes": True,
        "mistakes": own["mistakes"],
        "samples": strips,
        "recipe": recipe_toml,
        "environment": environment,
    }
    return _render(
        template,
        title=title,
        report=report,
        sections=[(id_, _SECTIONS[id_]) for id_, content in has.items() if content],
        beside=beside or {},
        facts=_flat(facts or {}),
        curve=Markup(figures.inline(figures.learning_curve(history))) if history else "",
        **own,
        samples=strips,
        across=max((len(strip) for _, strip in strips), default=1),
        hidden_classes=len(samples) - len(shown),
        recipe=recipe_toml,
        environment=_flat(environment or {}),
    )


def _of_single(report: Report, pictures: Callable[[int], Tensor] | None) -> dict[str, Any]:
    """What only the page of single labels shows."""
    k, classes = len(report.classes), report.classes
    matrix = figures.confusion_matrix(report.confusion, classes) if MAX_CELLS < k <= MAX_MATRIX else b""
    pairs = [
        {"true": classes[i], "taken": classes[j], "n": n, "part": n / report.per_class[i].support}
        for n, i, j in report.confused(min(24, max(10, k)))
    ]
    return {
        "chance": math.log(k),
        "reliability": Markup(figures.inline(figures.reliability_diagram(report.reliability))),
        "cells": _cells(report) if k <= MAX_CELLS else [],
        "matrix": Markup(figures.inline(matrix)) if matrix else "",
        "pairs": pairs,
        "mistakes": _mistakes(
            report.wrong, pictures, lambda m: {"true": classes[m.label], "taken": classes[m.predicted]}
        ),
    }


def _of_labels(report: LabelReport, pictures: Callable[[int], Tensor] | None) -> dict[str, Any]:
    """What only the page of many labels shows."""
    classes = report.classes
    return {
        "mistakes": _mistakes(report.wrong, pictures, lambda m: {"name": classes[m.label], "there": m.there}),
    }


def _mistakes(wrong: Sequence[Any], pictures: Callable[[int], Tensor] | None, say: Callable[[Any], dict[str, Any]]):
    """The mistakes with their pictures, where there are pictures."""
    if pictures is None:
        return []
    return [
        {**say(one), "key": one.key, "probability": one.probability, "picture": thumbnail(pictures(one.place))}
        for one in wrong
    ]


_SECTIONS = {
    "run": "The run",
    "skipped": "Left out",
    "curve": "Learning curve",
    "calibration": "Calibration",
    "confusion": "Confusion",
    "pairs": "Most often confused",
    "classes": "Class by class",
    "mistakes": "Worst mistakes",
    "samples": "The classes in pictures",
    "recipe": "Recipe",
    "environment": "Environment",
}


def _cells(report: Report) -> list[list[dict[str, Any]]]:
    """The confusion table with shades: right by the part of the row, wrong against the worst confusion."""
    worst = max((n for n, _, _ in report.confused(1)), default=1)
    rows = []
    for i, row in enumerate(report.confusion):
        cells = []
        for j, n in enumerate(row):
            part = n / max(1, sum(row)) if i == j else 0.85 * math.sqrt(n / worst)
            kind = "zero" if n == 0 else "right" if i == j else "wrong"
            cells.append({"n": n, "kind": kind + (" strong" if part > 0.6 else ""), "part": f"{part:.2f}"})
        rows.append(cells)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Sheets of pictures
# ---------------------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A picture of a sheet. text, mark: above its name, plain and in colour. bars: (name, 0 to 1), drawn beside it in
    place of all these; None: no bars."""

    name: str
    picture: Thumbnail
    text: str = ""
    mark: str = ""
    bars: Sequence[tuple[str, float]] | None = None


class Group(NamedTuple):
    """Pictures of a sheet that belong together. across: how many in a row; 0: as many as there is room for."""

    title: str
    shown: Sequence[Shown]
    note: str = ""
    across: int = 0


def sheet(groups: Sequence[Group], *, title: str, lead: str = "", unreadable: Sequence[str] = ()) -> str:
    """A page of pictures. unreadable: what could not be read, with the reasons; the first `MAX_LISTED` end the page."""
    more = len(unreadable) - MAX_LISTED
    lines = [*unreadable[:MAX_LISTED], *([f"and {in_number(more, 'other')}"] if more > 0 else [])]
    return _render("sheet.html.jinja", title=title, lead=lead, groups=groups, unreadable=lines)


def write_sheet(
    path: Path | str, groups: Sequence[Group], *, title: str, lead: str = "", unreadable: Sequence[str] = ()
) -> None:
    """Write the page of `sheet` to `path`, durably."""
    storage.write_file(path, _bytes(sheet(groups, title=title, lead=lead, unreadable=unreadable)))


def predictions(
    names: Sequence[str], answers: Sequence[Sequence[Prediction]], pictures: Callable[[int], Tensor]
) -> Group:
    """Each picture with its name and its most probable classes. pictures: place → uint8 [C, h, w]."""
    if len(names) != len(answers):
        raise UsageError(f"expected a name and predictions a picture, received {len(names)} and {len(answers)}")
    return Group(
        "",
        [
            Shown(name, thumbnail(pictures(i), side=256), bars=[(p.name, p.probability) for p in given])
            for i, (name, given) in enumerate(zip(names, answers, strict=True))
        ],
    )


def in_number(n: int, one: str = "picture", more: str = "") -> str:
    """
    >>> in_number(1), in_number(2000), in_number(2, "class", "classes")
    ('1 picture', '2,000 pictures', '2 classes')
    """
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


# ---------------------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------------------


def percent(value: float, digits: int = 2) -> str:
    """0.9154 → "91.54 %", with a space that does not break."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested table as (name, text) lines: {"cpu": {"count": 2}} → ("cpu count", "2")."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += _flat(value, f"{name} ")
        elif isinstance(value, bool) or value is None:
            lines.append((name, {True: "yes", False: "no", None: "–"}[value]))
        elif isinstance(value, int):
            lines.append((name, f"{value:,}"))
        elif isinstance(value, float):
            lines.append((name, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"))
        elif isinstance(value, Iterable) and not isinstance(value, str):
            items = [str(item) for item in value]
            lines.append((name, ("; " if any(" " in item for item in items) else ", ").join(items)))
        else:
            lines.append((name, str(value)))
    return lines


@functools.cache
def _templates() -> Environment:
    def source(name: str) -> str:
        return resources.files("opsin").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "whole": lambda n: f"{n:,}"}
    return environment


def write_page(path: Path | str, template: str, **values: Any) -> None:
    """Write the page that a template of the package makes of these values to `path`, durably."""
    storage.write_file(path, _bytes(_render(template, **values)))


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(name).render(version=__version__, **values)


def _bytes(html: str) -> bytes:
    # A name that is not Unicode (bytes of a file name, as the operating system gave them) must not stop the page.
    return html.encode("utf-8", errors="backslashreplace")
