"""Kernels of histograms and of vectors, by blocks, and the maps that make additive ones linear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from opsin.errors import UsageError

Additive = Literal["chi2", "intersection", "jensen-shannon"]
Kind = Literal["chi2", "intersection", "rbf"]
TILE, TILE_GPU = 1 << 17, 1 << 25  # numbers of a tile where a kernel is summed up by features: what fits a core's cache
ROWS = 1024  # vectors of a block against all others
MAX_ORDER = 10


def kernel(a: Tensor, b: Tensor, kind: Kind, gamma: float = 1.0) -> Tensor:
    """float32 [N, D] and [M, D] to [N, M].

    chi2: exp(-γ Σ (a - b)² / (a + b)) (Zhang et al. 2007); intersection: Σ min(a, b) (Swain and Ballard 1991), without
    γ; rbf: exp(-γ Σ (a - b)²). The first two are of histograms: `UsageError` for a negative number.
    """
    if kind == "intersection":
        _histograms(a, b)
        # min(a, b) = (a + b - |a - b|) / 2
        return (a.sum(1)[:, None] + b.sum(1) - torch.cdist(a, b, p=1)) / 2
    return torch.exp(distance(a, b, kind).mul_(-gamma))


def distance(a: Tensor, b: Tensor, kind: Kind) -> Tensor:
    """The distance in the exponent of "chi2" or "rbf", float32 [N, M]."""
    if kind == "rbf":
        return torch.cdist(a, b).square_()
    _histograms(a, b)
    # (a - b)² / (a + b) = a + b - 4 / (1 / a + 1 / b), and 1 / 0 is infinite, as it has to be.
    inverse_a, inverse_b = a.reciprocal(), b.reciprocal()
    columns = max(1, (TILE if a.device.type == "cpu" else TILE_GPU) // max(1, a.shape[1]))
    shared = a.new_empty(len(a), len(b))
    for i in range(len(a)):
        for start in range(0, len(b), columns):
            part = inverse_b[start : start + columns] + inverse_a[i]
            shared[i, start : start + columns] = part.reciprocal_().sum(1)
    return (a.sum(1)[:, None] + b.sum(1) - 4 * shared).clamp_(min=0)


def gram(a: Tensor, b: Tensor, kind: Kind, gamma: float, progress: Callable[[int], None] | None = None) -> Tensor:
    """`kernel`, a block of rows of `a` after the other; progress: is called with the rows done."""
    result = a.new_empty(len(a), len(b))
    for start in range(0, len(a), ROWS):
        result[start : start + ROWS] = kernel(a[start : start + ROWS], b, kind, gamma)
        if progress is not None:
            progress(min(start + ROWS, len(a)))
    return result


def usual_gamma(x: Tensor, kind: Kind) -> float:
    """One over the mean distance between vectors, of at most 500 of them (Zhang et al. 2007); 1 where all are alike."""
    some = x[torch.linspace(0, len(x) - 1, min(len(x), 500), device=x.device).long()]
    if kind == "intersection" or len(some) < 2:
        return 1.0
    mean = float(distance(some, some, kind).sum()) / (len(some) * (len(some) - 1))
    return 1 / mean if mean > 0 else 1.0


def _histograms(*vectors: Tensor) -> None:
    if any(bool((x < 0).any()) for x in vectors):
        raise UsageError("vectors: expected histograms, none of whose numbers is negative; the kernel rbf takes any")


# The Fourier transforms κ(λ) of K(ω) in k(x, y) = √(x y) · K(log(y / x)) (Vedaldi and Zisserman 2012, table 1).
SPECTRA: dict[Additive, Callable[[Tensor], Tensor]] = {
    "chi2": lambda v: 1 / torch.cosh(math.pi * v),
    "intersection": lambda v: 2 / (math.pi * (1 + 4 * v * v)),
    "jensen-shannon": lambda v: 2 / math.log(4) / torch.cosh(math.pi * v) / (1 + 4 * v * v),
}


def additive(x: Tensor, y: Tensor, kind: Additive) -> Tensor:
    """The kernel of two numbers, elementwise; its sum over features is that of histograms. 0 ≤ x, y.

    chi2: 2xy / (x + y); intersection: min(x, y); jensen-shannon: x/2 · log₂((x + y) / x) + y/2 · log₂((x + y) / y).
    """
    if kind == "intersection":
        return torch.minimum(x, y)
    both = x + y
    if kind == "chi2":
        return torch.where(both > 0, 2 * x * y / both, 0)
    return (torch.special.xlogy(x, both / x).nan_to_num(0) + torch.special.xlogy(y, both / y).nan_to_num(0)) / math.log(
        4
    )


@dataclass(frozen=True)
class AdditiveMap:
    """Vectors whose scalar products are nearly an additive kernel (Vedaldi and Zisserman 2012): a linear machine of
    them is nearly a kernel machine. [N, D] of histograms to float32 [N, (2 · order + 1) · D].

    step: the distance of the frequencies at which the spectrum is sampled; 0: that with the least worst error between
    numbers in 0 to 1.
    """

    kind: Additive = "chi2"
    order: int = 1
    step: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Additive):
            raise UsageError(
                f"additive map: expected one of {', '.join(get_args(Additive))}, received {self.kind!r:.80}"
            )
        if type(self.order) is not int or not 1 <= self.order <= MAX_ORDER:
            raise UsageError(f"additive map: expected an order of 1 to {MAX_ORDER}, received {self.order!r:.80}")
        if not isinstance(self.step, float) or not 0 <= self.step < 10:
            raise UsageError(f"additive map: expected a step of 0 to 10, received {self.step!r:.80}")
        if not self.step:
            object.__setattr__(self, "step", _best_step(self.kind, self.order))

    @property
    def widening(self) -> int:
        return 2 * self.order + 1

    def __call__(self, x: Tensor) -> Tensor:
        _histograms(x)
        x = x.float()
        places = self.step * torch.arange(self.order + 1, device=x.device)
        weights = SPECTRA[self.kind](places).mul(self.step)
        root = x.sqrt()
        logs = x.clamp(min=torch.finfo(torch.float32).tiny).log()  # of 0, whose root wipes it out
        parts = [root * weights[0].sqrt()]
        for place, weight in zip(places[1:].tolist(), weights[1:].tolist(), strict=True):
            part = root * math.sqrt(2 * weight)
            parts += [part * torch.cos(place * logs), part * torch.sin(place * logs)]
        return torch.cat(parts, 1)


@cache
def _best_step(kind: Additive, order: int) -> float:
    """The step whose worst error |k̂(1, y) - k(1, y)| over y in e⁻²⁰ to 1 is least. Two numbers in 0 to 1 are never
    worse, as the kernel of both times a number is the kernel times that number."""
    logs = -torch.linspace(0, 20, 2001, dtype=torch.float64)
    root, exact = torch.exp(logs / 2), additive(torch.ones_like(logs), logs.exp(), kind)

    def worst(step: float) -> float:
        places = step * torch.arange(order + 1, dtype=torch.float64)
        weights = step * SPECTRA[kind](places)
        weights[1:] *= 2
        return float((root * (torch.cos(logs[:, None] * places) @ weights) - exact).abs().max())

    return min((k / 200 for k in range(10, 400)), key=worst)


def additive_map(x: Tensor, kind: Additive = "chi2", order: int = 1) -> Tensor:
    """`AdditiveMap` of vectors, float [N, D] ≥ 0 to float32 [N, (2 · order + 1) · D]."""
    return AdditiveMap(kind, order)(x)
