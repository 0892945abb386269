"""The parts that networks are put together from, and how their weights start."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import UsageError, near

ActivationName = Literal["relu", "tanh", "sigmoid", "prelu", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "prelu": nn.PReLU,  # one learnt slope a layer, He et al. 2015 §2.1 "channel-shared"
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def make_activation(name: str) -> nn.Module:
    """A new activation module by name; `UsageError` names the near ones."""
    if name not in ACTIVATIONS:
        raise UsageError(f"activation: no {name!r}; {near(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def at_least(least: int, **values: int) -> None:
    """`UsageError` for the first of the named values below `least`."""
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name}: expected at least {least}, received {value}")


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    *,
    relu: bool = True,
    pad: bool = True,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution without bias → batch normalisation → ReLU. With `pad` it keeps the size (divided by `stride`)."""
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (height // 2, width // 2) if pad else 0
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False),
        nn.BatchNorm2d(out_channels, eps=eps),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def conv_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias that keeps the size (divided by `stride`) → ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


class Branches(nn.ModuleList):
    """All branches of the same input, joined along the channels: Szegedy et al. 2014, figure 2."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class AuxiliaryPool(nn.Module):
    """Average pooling 5×5 with stride 3, then to `side` whatever the picture's size.

    The auxiliary heads of the Inceptions: the first alone makes 4×4 of 14×14 (GoogLeNet) and 5×5 of 17×17 (v3).
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 5, 3) if min(x.shape[-2:]) >= 3 * self.side + 2 else x
        return F.adaptive_avg_pool2d(x, self.side)


class Residual(nn.Module):
    """ReLU(body(x) + shortcut(x)): He et al. 2015, figure 2."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class PreResidual(nn.Module):
    """shortcut(a) + body(a), a = before(x); without a shortcut x + body(a): He et al. 2016, figure 4e and appendix."""

    def __init__(self, before: nn.Module, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.before = before
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = self.before(x)
        return (x if self.shortcut is None else self.shortcut(activated)) + self.body(activated)


class ZeroPadShortcut(nn.Module):
    """Option A of He et al. 2015 §3.3: every `stride`-th pixel, new channels filled with zeros; no parameters.

    The paper does not say where the zeros go. They go in equal numbers before and after the old channels, which is
    what published weights of this family assume.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def linear_head(in_channels: int, num_classes: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Global average pooling → dropout → fully-connected: maps [B, C, H, W] of any size to logits [B, K]."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(dropout),
            linear=nn.Linear(in_channels, num_classes),
        )
    )


Scheme = Literal["he_in", "he_out", "lecun"] | float | None


def initialize(module: nn.Module, *, conv: Scheme, linear: Scheme) -> None:
    """Draw all convolution and fully-connected weights anew, with zero biases. Uses torch's global generator.

    A scheme is a normal distribution about 0 of standard deviation
    "he_in": √(2 / fan-in) and "he_out": √(2 / fan-out) (He et al. 2015, "Delving deep", eqs. 10 and 14),
    "lecun": √(1 / fan-in) (LeCun et al. 1998, "Efficient BackProp", eq. 16), or the number given.
    None leaves PyTorch's own values, biases included. Batch normalisation starts at scale 1, shift 0 by itself.
    """
    for part in module.modules():
        scheme = conv if isinstance(part, nn.Conv2d) else linear if isinstance(part, nn.Linear) else None
        if scheme is not None and isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight, std=_std(part.weight, scheme))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _std(weight: Tensor, scheme: Literal["he_in", "he_out", "lecun"] | float) -> float:
    fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
    match scheme:
        case "he_in":
            return math.sqrt(2 / fan_in)
        case "he_out":
            return math.sqrt(2 / fan_out)
        case "lecun":
            return math.sqrt(1 / fan_in)
    return float(scheme)
