"""Results on stdout: JSON, tables, reports and predictions, for a terminal and for a pipe."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from opsin.console import percent, printable

if TYPE_CHECKING:
    from opsin.classifier import Prediction


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of a table as what JSON can hold."""
    return json.loads(json.dumps(asdict(value), default=dict))


def in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={in_words(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)


def print_report(report: Mapping[str, Any]) -> None:
    low, high = report["top1_interval"]
    right = report["n"] - report["num_wrong"]
    interval = f"95 % interval {percent(low)} to {percent(high)}"
    print(f"right       {percent(report['top1'])}  ({right:,} of {report['n']:,}; {interval})")
    if len(report["classes"]) > 5:
        print(f"among 5     {percent(report['top5'])}")
    print(f"nll         {report['nll']:.4f} nats a picture")
    print(f"calibration {percent(report['calibration_error'])} error")
    if report.get("skipped"):
        print(f"left out    {len(report['skipped'])}, because they could not be read")


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = (), fold: bool = False
) -> None:
    """Fitted to a terminal, and plain aligned columns elsewhere. fold: no cell is cut; it takes as many lines as it
    needs, or makes its line longer."""
    cells = [[one_line(in_words(cell) if not isinstance(cell, int) else str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich import box
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(
                name,
                justify="right" if i in right else "left",
                no_wrap=i < len(header) - 1 and not fold,
                overflow="fold" if fold else "ellipsis",
            )
        for row in cells:
            table.add_row(*map(Text, row))
        Terminal().print(table)
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


class PredictionWriter:
    """Writes the predictions of one picture after the other to stdout, as text or as CSV."""

    def __init__(self, form: str) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
        if self._csv:
            self._csv.writerow(("picture", "rank", "class", "label", "probability"))

    def __call__(self, key: str, named: Sequence[Prediction]) -> None:
        if self._csv:
            for rank, p in enumerate(named, 1):
                row = (safe_cell(key), rank, safe_cell(p.name), p.label, f"{p.probability:.6f}")
                self._csv.writerow(row)
            return
        answers = (f"{percent(p.probability):>8}  {printable(p.name)}" for p in named)
        print(f"{printable(key)}\n  " + "\n  ".join(answers))


def safe_cell(text: str) -> str:
    """A CSV cell that a spreadsheet shows instead of running it as a formula.

    >>> safe_cell("=1+1"), safe_cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
