"""Results on stdout: JSON, tables, reports and predictions, for a terminal and for a pipe."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from opsin.console import percent, printable

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.album import Album, Neighbour
    from opsin.classifier import Prediction
    from opsin.models.outline import Part


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of a table as what JSON can hold."""
    return json.loads(json.dumps(asdict(value), default=dict))


def in_words(value: Any) -> str:
    """
    >>> in_words({"train": 5994, "test": 12})
    'train 5,994, test 12'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_fact(label: str, value: str) -> None:
    """One line of a label, "" for none, and what is said under it. In a terminal as many lines as that takes: no word
    is cut, so that an address stays whole."""
    start, text = label.ljust(12) if label else "", one_line(value)
    if (columns := _columns()) is None:
        print(f"{start}{text}")
        return
    print(
        textwrap.fill(
            text,
            max(columns, 40),
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _columns() -> int | None:
    """The width of the terminal; None where there is none, or none that obeys."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return shutil.get_terminal_size().columns
    return None


def print_report(report: Mapping[str, Any]) -> None:
    (_print_labels if report.get("many_labels") else _print_single)(report)
    if report.get("skipped"):
        print(f"left out    {len(report['skipped'])}, because they could not be read")


def _print_labels(report: Mapping[str, Any]) -> None:
    interval = _interval(report["map_interval"])
    print(f"mAP         {percent(report['map'])}  ({report['n']:,} pictures{f'; {interval}' if interval else ''})")
    print(f"mAP of 11   {percent(report['map11'])}  (eleven points, as in VOC 2007)")
    micro, macro = report["micro"]["f1"], report["macro"]["f1"]
    print(f"F1          {percent(micro)} of all labels together, {percent(macro)} in the mean over classes")
    print(f"nll         {report['nll']:.4f} nats a label\n")
    rows = []
    for score in report["per_class"]:
        part = "" if not score["known"] else percent(score["support"] / score["known"])
        ap = "" if score["ap"] is None else percent(score["ap"])
        rows.append((score["name"], score["support"], part, ap, _interval(score["interval"]), percent(score["f1"])))
    print_table(("class", "pictures", "of all", "AP", "", "F1"), rows, right=(1, 2, 3, 5))
    print()


def _interval(given: Sequence[float] | None) -> str:
    return "" if given is None else f"95 % interval {percent(given[0])} to {percent(given[1])}"


def _print_single(report: Mapping[str, Any]) -> None:
    right = report["n"] - report["num_wrong"]
    interval = _interval(report["top1_interval"])
    print(f"right       {percent(report['top1'])}  ({right:,} of {report['n']:,}; {interval})")
    if len(report["classes"]) > 5:
        print(f"among 5     {percent(report['top5'])}")
    print(f"nll         {report['nll']:.4f} nats a picture")
    print(f"calibration {percent(report['calibration_error'])} error")


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    right: Sequence[int] = (),
    fold: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """Fitted to a terminal, and plain aligned columns elsewhere. fold: no cell is cut; it takes as many lines as it
    needs, or makes its line longer. spare: columns that a narrow terminal does without, the first ones first."""
    cells = [[one_line(in_words(cell)) for cell in row] for row in rows]
    if (columns := _columns()) is not None:
        from rich import box
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        terminal, kept = Terminal(width=columns), list(range(len(header)))
        widths = [max(len(row[i]) for row in [list(header), *cells]) for i in kept]
        widths[-1] = min(widths[-1], 24)  # it takes several lines where it must
        for name in spare:
            if sum(widths[i] + 2 for i in kept) > terminal.width:
                kept.remove(list(header).index(name))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(header):
            if i not in kept:
                continue
            table.add_column(
                name,
                justify="right" if i in right else "left",
                no_wrap=i < len(header) - 1 and not fold,
                overflow="fold" if fold else "ellipsis",
            )
        for row in cells:
            table.add_row(*(Text(row[i]) for i in kept))
        terminal.print(table)
        if len(kept) < len(header):
            print(f"for want of width without: {', '.join(h for i, h in enumerate(header) if i not in kept)}")
        return
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    widths = [min(width, 60) for width in widths] if fold else widths  # one name of 255 letters moves its own line only
    for row in [list(header), *cells]:
        line = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(line).rstrip())


def one_line(text: str) -> str:
    """One line, whatever the name of a file holds."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def print_models() -> None:
    """The table of networks, without torch."""
    from opsin.models import MODELS

    header = ("name", "year", "parameters", "mult–adds", "size", "least", "error in %", "paper")
    rows = [
        (
            name,
            str(entry.year),
            f"{entry.params:,}",
            f"{entry.million_macs:,.{0 if entry.million_macs >= 100 else 1}f} M",
            entry.native_size,
            entry.least_size,
            f"{entry.error.per_cent} {entry.error.of.removeprefix('ImageNet ')}" if entry.error else "",
            entry.paper,
        )
        for name, entry in MODELS.items()
    ]
    print_table(header, rows, right=(1, 2, 3, 4, 5), spare=("paper", "year", "least", "mult–adds", "size"))


def print_model(name: str, as_json: bool) -> None:
    """One network: what is known of it, its options, its stages with their heads."""
    from opsin import models
    from opsin.models import outline

    entry = models.entry(name)
    net, options = outline.of(name), models.options(name)
    stages = [_counts(stage.name, stage.part) for stage in net.stages] + [_counts("head", net.head)]
    heads = [_counts(stage.name, stage.aux) for stage in net.stages if stage.aux is not None]
    if as_json:
        print_json({"name": name, **plain(entry), "options": options, "stages": stages, "auxiliary": heads})
        return
    print(f"{name}: {entry.summary} ({entry.paper})")
    side = f"{entry.native_size}×{entry.native_size}"
    print(f"{entry.params:,} parameters, {entry.million_macs:,} million multiply–adds for {side}×{entry.channels}")
    print(f"least size {entry.least_size}×{entry.least_size}")
    if (error := entry.error) is not None:
        print(f"published error {error.per_cent} %: {error.of}, {error.how} ({error.source})")
    if options:
        print("options: " + ", ".join(f"{key}={value!r}" for key, value in options.items()))
    print()
    _print_counts("stage", [*stages, *({**head, "name": f"auxiliary head on {head['name']}"} for head in heads)])


def print_figure(name: str, as_json: bool) -> None:
    """Modules that are compared, such as the two residual blocks."""
    from opsin import models
    from opsin.models import outline

    title, source = models.FIGURES[name]
    rows = [{**_counts(panel.caption, panel.part), "input": list(panel.shape)} for panel in outline.figure(name)]
    if as_json:
        print_json({"name": name, "title": title, "source": source, "modules": rows})
        return
    print(f"{name}: {title} ({source})\n")
    _print_counts("module", rows)


def _counts(name: str, part: Part) -> dict[str, Any]:
    return {"name": name, "shape": list(part.shape), "parameters": part.params, "multiply_adds": part.macs}


def _print_counts(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    given = ("input",) if "input" in rows[0] else ()
    header = (what, *given, "output", "parameters", "multiply–adds")
    cells = []
    for row in rows:
        shapes = (" × ".join(map(str, row[key])) for key in (*given, "shape"))
        cells.append((row["name"], *shapes, f"{row['parameters']:,}", f"{row['multiply_adds']:,}"))
    print_table(header, cells, right=(len(header) - 2, len(header) - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Predictions
# ---------------------------------------------------------------------------------------------------------------------


class PredictionWriter:
    """Writes the predictions of one picture after the other to stdout, as text or as CSV.

    A picture that has none of many labels is a row of rank 0 with empty cells.
    """

    def __init__(self, form: str) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
        if self._csv:
            self._csv.writerow(("picture", "rank", "class", "label", "probability"))

    def __call__(self, key: str, named: Sequence[Prediction]) -> None:
        if self._csv:
            for rank, p in enumerate(named, 1):
                row = (safe_cell(key), rank, safe_cell(p.name), p.label, f"{p.probability:.6f}")
                self._csv.writerow(row)
            if not named:
                self._csv.writerow((safe_cell(key), 0, "", "", ""))
            return
        answers = [f"{percent(p.probability):>8}  {printable(p.name)}" for p in named] or ["none of the classes"]
        print(f"{printable(key)}\n  " + "\n  ".join(answers))


def print_neighbours(
    found: Sequence[tuple[str, Sequence[Neighbour]]], bad: Sequence[Mapping[str, str]], form: str
) -> None:
    """What was found for each picture: as text, CSV, or JSON with what could not be read."""
    if form == "json":
        rows = [{"key": key, "neighbours": [one._asdict() for one in neighbours]} for key, neighbours in found]
        print_json({"queries": rows, "unreadable": list(bad)})
    elif form == "csv":
        names = ("query", "rank", "picture", "similarity", "classes", "same")
        rows = (
            (key, rank, one.key, f"{one.similarity:.5f}", "; ".join(one.classes), int(one.same))
            for key, neighbours in found
            for rank, one in enumerate(neighbours, 1)
        )
        _print_csv(names, rows)
    else:
        for key, neighbours in found:
            print(one_line(key))
            for one in neighbours:
                classes = f"  {one_line(', '.join(one.classes))}" if one.classes else ""
                same = "  (the same picture)" if one.same else ""
                print(f"  {one.similarity:.3f}  {one_line(one.key)}{classes}{same}")


def print_album(album: Album, folders: Mapping[str, str], out: Path | None, form: str) -> None:
    """How pictures were sorted: counts as text; each picture as CSV or JSON."""
    from opsin import album as albums

    rows = albums.rows(album)
    if form == "json":
        where = {} if out is None else {"folder": str(out), "folders": dict(folders)}
        print_json({**where, "pictures": rows, "unreadable": albums.unreadable(album)})
    elif form == "csv":
        _print_csv(("picture", "class", "probability", "sure"), ((*row.values(),) for row in rows))
    else:
        counts = [(one_line(name), len(members)) for name, members in album.groups()]
        print_table(("class", "pictures"), counts, right=(1,))
        if album.bad:
            print(f"unreadable  {len(album.bad):,}")
        if out is not None:
            print(f"album       {one_line(str(out))}")


def _print_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])


def safe_cell(text: str) -> str:
    """A CSV cell that a spreadsheet shows instead of running it as a formula.

    >>> safe_cell("=1+1"), safe_cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
