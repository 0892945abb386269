"""What the benchmarks share: alternating rounds, and results as CSV with the machine and the versions in each row."""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opsin.runfolder import environment

RESULTS = Path(__file__).parent / "results"


def alternate(sides: Mapping[str, Callable[[], None]], rounds: int, warmup: int = 1) -> list[dict[str, float]]:
    """Seconds of each side in each round: all sides once, then all again, so that a slow minute hits all of them."""
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds = []
    for _ in range(rounds):
        row = {}
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            row[name] = time.perf_counter() - start
        seconds.append(row)
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def write(name: str, rows: Sequence[Mapping[str, Any]], part: str = "") -> None:
    """Replace `results/NAME.csv` by these rows, each with machine, threads, versions and commit. part: replace only the
    rows whose column "part" says so."""
    where = environment("cpu", torch.get_num_threads())
    facts = {
        "machine": where["processor"],
        "cores": where["cores"],
        "threads": where["threads"],
        "torch": where["torch_build"],
        "python": where["python"],
        "commit": where["commit"],
    }
    RESULTS.mkdir(exist_ok=True)
    others: list[dict[str, str]] = []
    if part and (RESULTS / f"{name}.csv").exists():
        with open(RESULTS / f"{name}.csv", newline="", encoding="utf-8") as file:
            others = [row for row in csv.DictReader(file) if row["part"] != part]
    with open(RESULTS / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts], lineterminator="\n")
        writer.writeheader()
        writer.writerows(others)
        writer.writerows({**row, **facts} for row in rows)
    print(f"written: {RESULTS / name}.csv", file=sys.stderr)
