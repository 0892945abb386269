"""Ten pictures a class: a linear probe and fine-tuning of published weights against training from scratch.

python benchmarks/bench_few.py FOLDER --weights FILE --model NAME [--splits 5] [--first 0]

FOLDER holds class folders. For each split a seed draws `--each` training pictures a class and, of all others, `--test`
for the test. Every side is `opsin.train` with what it derives and nothing else given, but for one: the network from
scratch also has the rate that is derived for fine-tuning. Results: `results/few.csv`, a row a side and split; the table
at the end is of all splits that are there.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

import opsin
from opsin.data import index
from opsin.data.rng import order

EQUAL = "from scratch, fine-tuning's rate"


def split(pictures: index.Index, root: Path, each: int, test: int, seed: int, path: Path) -> None:
    """A list of paths, labels and parts."""
    chosen = [
        np.flatnonzero(pictures.labels == k)[order(seed, k, int(n))[:each]] for k, n in enumerate(pictures.counts())
    ]
    train = np.concatenate(chosen)
    others = np.setdiff1d(np.arange(len(pictures)), train)
    others = others[order(seed, len(chosen), len(others))[:test]]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for part, places in (("train", train), ("test", others)):
            for i in places:
                label = pictures.classes[int(pictures.labels[i])]
                writer.writerow((root / pictures.keys[int(i)], label, part))


def known(folder: str) -> list[dict[str, str]]:
    """The rows of this folder that have been measured so far."""
    with open(common.RESULTS / "few.csv", newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["part"].startswith(f"{folder} ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split")
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--sides", nargs="*", help="only these")
    given = parser.parse_args()

    weights: dict[str, Any] = {"model": given.model, "weights": given.weights}
    sides: dict[str, dict[str, Any]] = {
        "probe": {**weights, "probe": True},
        "fine-tuned": weights,
        "from scratch": {"model": given.model},
        EQUAL: {"model": given.model},
        "from scratch, default network": {},
    }
    root = given.folder.resolve()
    pictures = index.scan(root)
    for seed in range(given.first, given.first + given.splits):
        for name in given.sides or sides:
            options = sides[name]
            with tempfile.TemporaryDirectory() as folder:
                listed = Path(folder) / "pictures.csv"
                split(pictures, root, given.each, given.test, seed, listed)
                if name == EQUAL:
                    (tuned,) = (row for row in known(root.name) if row["part"] == f"{root.name} {seed} fine-tuned")
                    options = {**options, "lr": float(tuned["lr"])}
                start = time.perf_counter()
                run = opsin.train(str(listed), seed=seed, out=Path(folder) / "run", **options)
                seconds = time.perf_counter() - start
            assert run.report is not None
            recipe = run.recipe
            row = {
                "part": f"{root.name} {seed} {name}",
                "side": name,
                "model": recipe.model.name,
                "train": given.each * len(pictures.classes),
                "epochs": recipe.epochs,
                "lr": "" if recipe.tune.probe else recipe.optimizer.lr,
                "n": run.report.n,
                "right": run.report.top1,
                "seconds": round(seconds, 1),
            }
            print(f"split {seed}  {name:33}  {run.report.top1:7.2%}  {seconds:6.1f} s", flush=True)
            common.write("few", [row], part=row["part"])
    for name in sides:
        values = [float(row["right"]) for row in known(root.name) if row["side"] == name]
        if not values:
            continue
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        print(f"{name:33}  {np.mean(values):.2%} ± {spread:.2%}  (n = {len(values)} splits)")


if __name__ == "__main__":
    main()
