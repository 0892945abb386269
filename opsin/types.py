"""The values that cross the seams of the system, and the one class that every network is.

Shape letters, used in docstrings everywhere:
`B` batch, `C` channels, `H W` height and width (`h w` while they still vary from picture to picture),
`K` classes, `D` length of an embedding, `N` pictures in a data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Batch(NamedTuple):
    """Some pictures of a data set, as a loader hands them on."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B]; or, of many labels, float32 [B, K] of 1, 0 and -1 (not known)
    indices: Tensor  # int64 [B]: place in the data set; with seed and epoch, all that augmentation depends on
    epoch: int
    keys: Sequence[str] = ()  # names of the pictures, for reports


class Output(NamedTuple):
    """What every network returns, in training and in evaluation alike."""

    logits: Tensor  # float [B, K]
    aux: tuple[Tensor, ...] = ()  # float [B, K] each, the deepest head last; empty outside training


class Model(nn.Module, ABC):
    """A network that the engine can train."""

    @abstractmethod
    def forward(self, images: Tensor) -> Output:
        """Normalised pictures, float [B, C, H, W], to logits."""

    @abstractmethod
    def features(self, images: Tensor, at: str) -> Tensor:
        """The output of the stage named `at`; `ValueError` lists the stages when there is none of that name."""


class Progress(NamedTuple):
    """How far a training is. Everything that varies over a training is a function of this value."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches done in the epoch that is running
    step: int = 0  # optimiser steps done, over all epochs
    samples: int = 0  # pictures seen, over all epochs
