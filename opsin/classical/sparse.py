"""Sparse codes: a vector as a weighted sum of few words. Two ways to find them, both batched."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from opsin.errors import UsageError


def omp(x: Tensor, words: Tensor, sparsity: int, out: Tensor | None = None) -> Tensor:
    """Codes with at most `sparsity` numbers that are not zero, float32 [n, D] → [n, K], by orthogonal matching pursuit
    (Pati, Rezaiifar and Krishnaprasad 1993): the word of largest |correlation| with what is left, then all of the
    chosen words' weights by least squares, again and again. words: unit rows, float32 [K, D].

    The chosen words are made orthogonal as they come, so least squares are one triangular system at the end. A word
    that is a combination of those chosen before, or that comes when nothing is left, gets no weight.
    """
    if not 1 <= sparsity <= len(words):
        raise UsageError(f"omp: expected a sparsity of 1 to {len(words)}, the number of words, received {sparsity}")
    left = x.clone()
    basis = x.new_zeros(len(x), sparsity, x.shape[1])
    triangle = x.new_zeros(len(x), sparsity, sparsity)
    parts = x.new_zeros(len(x), sparsity)  # of x along each of the basis
    chosen = torch.zeros(len(x), sparsity, dtype=torch.int64, device=x.device)
    enough = 1e-6 * torch.linalg.vector_norm(x, dim=1)
    for step in range(sparsity):
        correlations = torch.mm(left, words.T, out=out).abs_().scatter_(1, chosen[:, :step], -1.0)
        chosen[:, step] = best(correlations)
        word = words[chosen[:, step]]
        rest, before = word.clone(), basis[:, :step]
        for _ in range(2):  # once leaves what rounding leaves
            along = torch.bmm(before, rest[:, :, None])
            triangle[:, :step, step] += along[:, :, 0]
            rest -= torch.bmm(along.transpose(1, 2), before)[:, 0]
        length = torch.linalg.vector_norm(rest, dim=1)
        new = (length > 1e-4) & (torch.linalg.vector_norm(left, dim=1) > enough)
        basis[:, step] = torch.where(new[:, None], rest / length.clamp(min=1e-4)[:, None], torch.zeros_like(rest))
        triangle[:, step, step] = torch.where(new, length, torch.ones_like(length))
        parts[:, step] = (basis[:, step] * left).sum(1)
        left -= parts[:, step, None] * basis[:, step]
    weights = torch.linalg.solve_triangular(triangle, parts[:, :, None], upper=True)[:, :, 0]
    codes = x.new_zeros(len(x), len(words)) if out is None else out.zero_()
    return codes.scatter_(1, chosen, weights)


def fista(
    x: Tensor,
    words: Tensor,
    penalty: float,
    *,
    iterations: int = 500,
    tolerance: float = 1e-6,
    bound: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """The codes α, float32 [n, D] → [n, K], that make ½ |x - α · words|² + penalty · |α|₁ least (Olshausen and Field
    1996, with |α|₁), by FISTA (Beck and Teboulle 2009), whose momentum starts again for a vector when it leads uphill
    (O'Donoghue and Candès 2015).

    bound: the largest eigenvalue of words · wordsᵀ, where it is known (`curvature`). It ends when no code changes by
    more than `tolerance` of the largest, or after `iterations`.
    """
    bound = bound or curvature(words)
    codes = x.new_zeros(len(x), len(words)) if out is None else out.zero_()
    ahead = codes.clone()
    momentum = x.new_ones(len(x), 1)
    for step in range(iterations):
        slope = torch.addmm(x, ahead, words, beta=-1) @ words.T
        new = functional.softshrink(ahead.sub(slope, alpha=1 / bound), penalty / bound)
        change = new - codes
        uphill = ((ahead - new) * change).sum(1, keepdim=True) > 0
        momentum = torch.where(uphill, torch.ones_like(momentum), momentum)
        after = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = torch.addcmul(new, (momentum - 1) / after, change)
        momentum = after
        codes.copy_(new)
        if step % 10 == 9 and bool(change.abs().max() <= tolerance * new.abs().max()):
            break
    return codes


def curvature(words: Tensor) -> float:
    """The largest eigenvalue of words · wordsᵀ, float32 [K, D], and a little more."""
    wide = words.double()
    gram = wide @ wide.T if len(words) < words.shape[1] else wide.T @ wide
    return 1.0001 * float(torch.linalg.eigvalsh(gram)[-1])


def best(x: Tensor, *, least: bool = False) -> Tensor:
    """The place of the largest (least: the smallest) number of each row, int64 [n]; of equal ones the first. On the CPU
    it is NumPy's, which uses vector instructions and is forty times as fast as torch's.
    """
    if x.device.type != "cpu":
        return x.argmin(1) if least else x.argmax(1)
    return torch.from_numpy(x.numpy().argmin(1) if least else x.numpy().argmax(1))
