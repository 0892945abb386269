"""The published data sets, as readers."""

from __future__ import annotations

from opsin.v2.dataset import cifar as cifar
from opsin.v2.dataset import common as common
from opsin.v2.dataset import flowers as flowers
from opsin.v2.dataset import mnist as mnist
from opsin.v2.dataset import uci_housing as uci_housing


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise AttributeError(f"dataset.{name} is not supported; there are cifar, mnist, flowers, uci_housing and common")
