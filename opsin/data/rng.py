"""Randomness as pure functions: the order of an epoch, and the numbers that augmentation draws for one picture.

Both depend on the seed, the epoch and the place in the data set alone: not on the batch, not on the number of workers,
not on what was drawn before. A training resumed anywhere goes on with the very same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: the increment of splitmix64


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0 … n-1, int64 [n], from Philox4×64 (Salmon et al. 2011) keyed by seed and epoch.

    The places are sorted by raw 64-bit outputs, which NumPy promises not to change between versions (it may change
    `Generator.permutation`).
    """
    bits = np.random.Philox(key=np.array([seed & MASK, epoch & MASK], dtype=np.uint64))
    return np.argsort(bits.random_raw(n), kind="stable")


def uniform(seed: int, epoch: int, indices: Tensor | np.ndarray, draws: int) -> Tensor:
    """Float32 [B, draws] in [0, 1) on the CPU, a function of (seed, epoch, index, number of the draw) alone.

    A counter hashed by the finaliser of splitmix64 (Steele, Lea and Flood 2014, figure 16); its upper 24 bits are the
    number, so that float32 holds it exactly and 1.0 never comes. indices: int64 [B].
    """
    places = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
    start = _mix(_mix(np.full(1, seed & MASK, np.uint64)) + np.uint64(epoch & MASK))
    streams = _mix(start + places.astype(np.uint64))[:, None]  # [B, 1]
    counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(GOLDEN)  # [draws]
    return torch.from_numpy((_mix(streams + counters) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def _mix(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A bijection of 64-bit numbers in which each bit of the input moves half of the output's. Arrays wrap silently."""
    values = values + np.uint64(GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
