"""The pipeline before 2012, descriptor × encoding × machine, and networks, on 10,000 training pictures of CIFAR-10.

python benchmarks/bench_ladder.py [--data-dir DIR] [--only TEXT …] [--page]

All learn from the first 1,000 pictures of each class in the training set and are asked the whole test set. Every row
has the settings written here or those that opsin derives, and is there once, with seed 0.
Results: `results/ladder.csv`, a row at a time, so what was interrupted goes on; --page writes `docs/ladder.md` from it.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from opsin import device, run
from opsin.classical.pipeline import Pipeline
from opsin.classical.vocabulary import Sampler
from opsin.console import Reporter
from opsin.data import datasets, rng
from opsin.data.index import Index
from opsin.preprocess import Preprocess
from opsin.recipe import Classical, Descriptor
from opsin.recipes import derive

EACH = 1000
DESCRIPTORS = {
    "SIFT": Descriptor(kind="sift", step=4, sizes=(4, 6), root=True, project=64),
    "SIFT, opponent colours": Descriptor(kind="sift", space="opponent", step=4, sizes=(4, 6), root=True, project=64),
    "HOG": Descriptor(kind="hog", step=4, sizes=(4, 6)),
    "LBP": Descriptor(kind="lbp", step=4, sizes=(8, 12), project=32),
    "whitened patches": Descriptor(kind="patches", space="rgb", step=2, sizes=(6,), project=-1, unit=True),
}
BASE = Classical(descriptors=(DESCRIPTORS["SIFT"],), words=256, gaussians=16, samples=100_000, mirror=True)
# What each paper pools by, and the length that its vectors have; what is of no length is standardised.
ENCODINGS: dict[str, dict[str, Any]] = {
    "hard": {"pooling": "average", "standardise": True},
    "triangle": {"pooling": "sum", "standardise": True},
    "llc": {"pooling": "max", "norm": "whole"},
    "omp": {"pooling": "max", "norm": "whole"},
    "fista": {"pooling": "max", "norm": "whole"},
    "fisher": {"power": 0.5, "norm": "whole"},
}
OF_HISTOGRAMS = ("hard", "triangle")  # the codes that are never negative
MACHINES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "linear SVM": ({"machine": "svm"}, tuple(ENCODINGS)),
    "logistic regression": ({"machine": "logistic"}, tuple(ENCODINGS)),
    "random forest": ({"machine": "forest"}, tuple(ENCODINGS)),
    "SVM of χ² map": ({"machine": "svm", "additive": "chi2", "standardise": False}, OF_HISTOGRAMS),
}
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
HELD = 1000  # training pictures that a machine's strength is chosen on
PAGE = Path(__file__).parent.parent / "docs" / "ladder.md"
MARKER = "<!-- what follows is written by benchmarks/bench_ladder.py --page -->"
NETWORKS = ("lenet5", "alexnet_cifar", "resnet20", derive.DEFAULT)


def subset(splits: dict[str, Index]) -> dict[str, Index]:
    train = splits["train"]
    places = np.concatenate([np.flatnonzero(train.labels == k)[:EACH] for k in range(len(train.classes))])
    return {"train": train.subset(np.sort(places)), "test": splits["test"]}


def pictures(index: Index) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    return torch.stack([index.image(i) for i in range(len(index))]), torch.from_numpy(index.labels.copy())


def quiet(_: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def encoded(classical: Classical, preprocess: Preprocess, images: list[Tensor]) -> list[Tensor]:
    """The vectors of training and test pictures, [N, D] each; the vocabulary is learnt from the former."""
    pipeline = Pipeline(classical, preprocess)
    sampler = Sampler(classical.samples, 0)
    for some in images[0].split(250):
        sampler.add(pipeline.grid(some, 0).vectors.flatten(0, 1))
    pipeline = Pipeline(classical, preprocess, pipeline.learn(0, sampler.values(), 0, quiet))
    return [torch.cat([pipeline.vectors(some) for some in each.split(250)]) for each in images]


def asked(classical: Classical, preprocess: Preprocess, x: list[Tensor], y: list[Tensor]) -> tuple[float, str]:
    """The part of the test pictures that a machine is right about, and its strength, which held-out training pictures
    choose: the smallest after which it is not better."""
    order = torch.from_numpy(rng.order(0, 0, len(x[0])))
    held, rest = order[:HELD], order[HELD:]

    def right(strength: float, fitted: Tensor | slice, vectors: Tensor, labels: Tensor) -> float:
        pipeline = Pipeline(replace(classical, strength=strength), preprocess)
        machine = pipeline.machine(x[0][fitted], y[0][fitted], 10, 0, lambda done: None)
        return float((machine.scores(vectors).argmax(1) == labels).double().mean())

    if classical.machine == "forest":
        return right(1.0, slice(None), x[1], y[1]), ""
    best, chosen = -1.0, STRENGTHS[0]
    for strength in STRENGTHS:
        found = right(strength, rest, x[0][held], y[0][held])
        if found <= best:
            break
        best, chosen = found, strength
    return right(chosen, slice(None), x[1], y[1]), f"{chosen:g}"


def classical_rows(splits: dict[str, Index], wanted: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    (images, labels), (asked_images, asked_labels) = pictures(splits["train"]), pictures(splits["test"])
    preprocess = Preprocess(size=(32, 32), channels=3)
    for descriptor, one in DESCRIPTORS.items():
        for encoding, options in ENCODINGS.items():
            names = [
                {"descriptor": descriptor, "encoding": encoding, "classifier": machine}
                for machine, (_, takes) in MACHINES.items()
                if encoding in takes
            ]
            if not any(map(wanted, names)):
                continue
            own = replace(BASE, descriptors=(one,), encoders=(encoding,), **options)
            start = time.monotonic()
            x = encoded(own, preprocess, [images, asked_images])
            seconds = time.monotonic() - start
            for row in filter(wanted, names):
                start = time.monotonic()
                settings = MACHINES[row["classifier"]][0]
                top1, strength = asked(replace(own, **settings), preprocess, x, [labels, asked_labels])
                whole = seconds + time.monotonic() - start
                yield row | {"numbers": x[0].shape[1], "strength": strength, "top1": top1, "seconds": round(whole, 1)}


def network_rows(splits: dict[str, Index], wanted: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    for name in NETWORKS:
        row = {"descriptor": "pixels", "encoding": "network", "classifier": name}
        if not wanted(row):
            continue
        facts = run.facts("cifar10", splits)
        recipe, _ = run.fitting(derive.derive(facts, name)[0])
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            made = run.fit(recipe, Path(folder) / "run", splits=splits, reporter=Reporter())
        seconds = round(time.monotonic() - start, 1)
        assert made.report is not None
        yield row | {"numbers": "", "strength": "", "top1": made.report.top1, "seconds": seconds}


def page(rows: list[dict[str, str]]) -> str:
    """The table as Markdown: a line a descriptor and encoding, a column a machine; each descriptor's best is bold."""
    kept = {(row["descriptor"], row["encoding"], row["classifier"]): float(row["top1"]) for row in rows}
    lines = ["| descriptor | encoding | numbers | " + " | ".join(MACHINES) + " |", "| --- " * (3 + len(MACHINES)) + "|"]
    for descriptor in DESCRIPTORS:
        own = [value for key, value in kept.items() if key[0] == descriptor]
        for encoding in ENCODINGS:
            values = [kept.get((descriptor, encoding, machine)) for machine in MACHINES]
            if not any(values):
                continue
            numbers = next(r["numbers"] for r in rows if (r["descriptor"], r["encoding"]) == (descriptor, encoding))
            cells = ["" if v is None else f"**{v:.1%}**" if v == max(own) else f"{v:.1%}" for v in values]
            lines.append(f"| {descriptor} | {encoding} | {numbers} | {' | '.join(cells)} |")
    networks = [row for row in rows if row["encoding"] == "network"]
    if networks:
        lines += ["", "| network, as opsin derives its recipe | top-1 | minutes |", "| --- | --- | --- |"]
    for row in networks:
        lines.append(f"| {row['classifier']} | {float(row['top1']):.1%} | {float(row['seconds']) / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--only", nargs="*", default=[], help="rows with one of these in their names")
    parser.add_argument("--page", action="store_true", help="write the page and measure nothing")
    given = parser.parse_args()
    path = common.RESULTS / "ladder.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    if given.page:
        before, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
        PAGE.write_text(f"{before}{marker}\n\n{page(rows)}\n", encoding="utf-8")
        return
    device.tune()
    known = {(row["descriptor"], row["encoding"], row["classifier"]) for row in rows}

    def wanted(row: dict[str, Any]) -> bool:
        names = tuple(row.values())
        return names not in known and (not given.only or any(text in " ".join(names) for text in given.only))

    splits = subset(dict(datasets.load("cifar10", data_dir=given.data_dir)))
    for make in (classical_rows, network_rows):
        for row in make(splits, wanted):
            print(*row.values(), sep=", ", flush=True)
            part = " · ".join(row[key] for key in ("descriptor", "encoding", "classifier"))
            common.write("ladder", [{"part": part, **row}], part=part)


if __name__ == "__main__":
    main()
