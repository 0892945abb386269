"""The arithmetic that is Paddle's and not torch's. Maps are float [B, C, H, W], pairs are (height, width)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
LOWEST = -64.0  # what a logit below the largest counts for at most: a probability is never below exp(−64)


# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------


class _Floor(torch.autograd.Function):
    """max(x, LOWEST), with the gradient of the identity: Paddle forms the gradient from the probabilities alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=LOWEST)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def shifted(logits: Tensor) -> Tensor:
    """Logits minus their largest, at least −64: float [B, K]."""
    x = logits - logits.detach().amax(1, keepdim=True)
    return _Floor.apply(x) if x.requires_grad else x.clamp(min=LOWEST)  # type: ignore[return-value]


def softmax(logits: Tensor) -> Tensor:
    return shifted(logits).softmax(1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "brelu": lambda x: x.clamp(0, 24),
    "softrelu": lambda x: F.softplus(x.clamp(-40, 40), threshold=50),
    "stanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "abs": torch.abs,
    "square": torch.square,
    "exponential": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "softsign": F.softsign,
}


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Training: times 0 or 1, not scaled up. Testing: times 1 − rate."""
    return x * torch.empty_like(x).bernoulli_(1 - rate) if training else x * (1 - rate)


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------------------


def batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float,
    fraction: float,
    batch_statistics: bool,
) -> Tensor:
    """[B, C] or [B, C, H, W]. The batch's statistics, moving `mean` and `variance` [C] by 1 − fraction; or those two.

    The variance is biased both in the output and in the moving average, which torch's is not.
    """
    if not batch_statistics:
        return F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)
    n = x.numel() // x.shape[1]
    if n == 1:  # of which torch makes an error
        batch_mean, batch_variance = x.detach().flatten(), torch.zeros_like(variance)
        y = (x - x) * scale.reshape(x.shape)
        y = y if shift is None else y + shift.reshape(x.shape)
    else:
        batch_mean, batch_variance = torch.zeros_like(mean), torch.zeros_like(variance)
        y = F.batch_norm(x, batch_mean, batch_variance, scale, shift, training=True, momentum=1.0, eps=epsilon)
        batch_variance = batch_variance * ((n - 1) / n)  # not in place: the backward pass holds it
    mean.lerp_(batch_mean, 1 - fraction)
    variance.lerp_(batch_variance, 1 - fraction)
    return y


def cross_map_norm(x: Tensor, size: int, scale: float, power: float) -> Tensor:
    """x / (1 + scale/size · Σ x²)^power; the window begins (size − 1) // 2 channels before its own."""
    squares = F.pad(x.square()[:, None], (0, 0, 0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool3d(squares, (size, 1, 1), stride=1)[:, 0]
    return x * (1 + scale * means).pow(-power)


# ---------------------------------------------------------------------------------------------------------------------
# Pooling
# ---------------------------------------------------------------------------------------------------------------------


def _after(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Padding to add after the last value, so that rounding down gives all of Paddle's windows."""
    room = size + 2 * padding - kernel
    windows = 1 + (-(-room // stride) if ceil else room // stride)
    return (windows - 1) * stride + kernel - size - padding


def _pad(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil: bool, value: float) -> Tensor:
    bottom, right = (_after(n, k, s, p, ceil) for n, k, s, p in zip(x.shape[-2:], kernel, stride, padding, strict=True))
    sides = (padding[1], right, padding[0], bottom)
    return F.pad(x, sides, value=value) if any(sides) else x


def max_pool(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil: bool) -> Tensor:
    """Also of windows that begin behind the picture, which torch leaves out: those are the lowest number there is."""
    lowest = torch.finfo(x.dtype).min
    return F.max_pool2d(_pad(x, kernel, stride, padding, ceil, lowest), kernel, stride)


def avg_pool(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil: bool, exclude: bool) -> Tensor:
    """exclude: over the real values of a window, else over its area always. A window without real values gives 0."""
    padded = _pad(x, kernel, stride, padding, ceil, 0.0)
    means = F.avg_pool2d(padded, kernel, stride)
    if not exclude or padded is x:
        return means
    ones = _pad(torch.ones_like(x[:1, :1]), kernel, stride, padding, ceil, 0.0)
    share = F.avg_pool2d(ones, kernel, stride)
    return means / torch.where(share > 0, share, 1.0)


def pyramid_pool(x: Tensor, levels: int, kind: str) -> Tensor:
    """[B, C·(1 + 4 + 16 + …)]: grids of 1×1, 2×2, 4×4 … cells, one after the other."""
    parts = []
    for cells in (2**level for level in range(levels)):
        kernel = tuple(-(-n // cells) for n in x.shape[-2:])
        padding = tuple((k * cells - n + 1) // 2 for k, n in zip(kernel, x.shape[-2:], strict=True))
        pool = max_pool if kind == "max" else lambda *a: avg_pool(*a, exclude=True)
        parts.append(pool(x, kernel, kernel, padding, False).flatten(1))
    return torch.cat(parts, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Costs: float [B], one number a sample
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label]; at most about 64, and its gradient is softmax(logits) − [label] all the same."""
    return F.cross_entropy(shifted(logits), labels, reduction="none")


def cross_entropy_of_probabilities(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities.gather(1, labels[:, None])[:, 0].log()


def square_error(output: Tensor, label: Tensor) -> Tensor:
    return (output - label).square().sum(1)


def binary_cross_entropy(output: Tensor, label: Tensor) -> Tensor:
    return -(label * output.log() + (1 - label) * (1 - output).log()).sum(1)


def huber_regression(output: Tensor, label: Tensor, delta: float) -> Tensor:
    return F.huber_loss(output, label, reduction="none", delta=delta).sum(1)


def huber_classification(output: Tensor, labels: Tensor) -> Tensor:
    a = output[:, 0] * (2 * labels - 1)
    return torch.where(a < -1, -4 * a, torch.where(a < 1, (1 - a).square(), 0))


def smooth_l1(output: Tensor, label: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, label, reduction="none").sum(1)
