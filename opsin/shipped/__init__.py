"""Classifiers that come with the package: they have a name instead of a folder, and need no network.

cifar10-small: the default recipe of `opsin train cifar10` (`smallnet`, 5 passes, seed 0), trained by us in 22 min 41 s
on two CPU cores: the run `cifar-s0` of benchmarks/results/runs.csv, 745 of 10,000 test pictures wrong. Its matrices and
filters are kept as float16 and computed with as float32: 745 wrong again.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("cifar10-small",)


def find(run: Path | str) -> Path:
    """The folder of the shipped classifier of that name; `run` as it is when it exists, or names none of them."""
    run = Path(run)
    return Path(__file__).parent / run if str(run) in SHIPPED and not run.exists() else run
