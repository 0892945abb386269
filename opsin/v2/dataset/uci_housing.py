"""Boston housing (UCI): (float64 [13] scaled features, float64 [1] price). The first 80 % are the training.

Each feature has its mean over all samples taken off and is divided by its range; the price is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from opsin.data import index
from opsin.data.datasets import File
from opsin.errors import BadInput
from opsin.v2.dataset import common

Reader = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]

feature_names = ["CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT"]
DATA = File(
    name="housing.data",
    size=49082,
    md5="d4accdce7a25600298819f8e28e8d593",
    urls=(
        "https://archive.ics.uci.edu/ml/machine-learning-databases/housing/housing.data",
        "http://paddlemodels.bj.bcebos.com/uci_housing/housing.data",
    ),
)


def _table(ratio: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Training and test, float64 [N, 14]."""
    path = common.get(DATA, "uci_housing")
    columns = len(feature_names) + 1
    try:
        rows = np.array(index.read(path).split(), dtype=np.float64).reshape(-1, columns)
    except ValueError as error:
        raise BadInput(path, f"not the table of {columns} columns of numbers: {error}") from error
    features = rows[:, :-1]
    features -= features.mean(0)
    features /= np.ptp(features, axis=0)
    at = int(len(rows) * ratio)
    return rows[:at], rows[at:]


def _samples(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((row[:-1], row[-1:]) for row in rows)


def train() -> Reader:
    """404 of the 506 samples."""
    return partial(_samples, _table()[0])


def test() -> Reader:
    """The other 102."""
    return partial(_samples, _table()[1])


def fetch() -> None:
    """Download the table unless it is here."""
    common.get(DATA, "uci_housing")
