"""Residual networks: for ImageNet, for small pictures (CIFAR), the chapter's; with pre-activation, and wide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from opsin.errors import UsageError
from opsin.models.convnet import ConvNet
from opsin.models.layers import (
    PreResidual,
    Residual,
    ZeroPadShortcut,
    at_least,
    conv_bn,
    initialize,
    linear_head,
)

Block = Literal["basic", "bottleneck"]
Shortcut = Literal["A", "B"]

EXPANSION: dict[Block, int] = {"basic": 1, "bottleneck": 4}  # channels that leave a block, over those inside

# He et al. 2015, table 1: block and blocks in each stage
IMAGENET: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def resnet(num_classes: int = 1000, in_channels: int = 3, *, depth: int, width: int = 64) -> ConvNet:
    """ResNet-18, 34, 50, 101, 152: He et al. 2015, table 1, projection shortcuts (option B).

    Native input 224×224, any size from 32 on. width: channels of the first stage.
    As in torchvision ("v1.5"), the 3×3 convolution of a bottleneck carries the stride, not the first 1×1 as in the
    paper; and the weights start as there: convolutions √(2 / fan-out), the last layer as PyTorch draws it.
    """
    if depth not in IMAGENET:
        raise UsageError(f"depth: expected one of {', '.join(map(str, IMAGENET))}, received {depth}")
    at_least(1, width=width)
    block, counts = IMAGENET[depth]
    unit = partial(_block, block=block, shortcut="B")
    stem = nn.Sequential(*conv_bn(in_channels, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    stages: dict[str, nn.Module] = {"stem": stem}  # [B, 64, 56, 56]
    channels = width
    for i, count in enumerate(counts):
        inside = width * 2**i
        stages[f"stage{i + 1}"] = _stage(channels, inside, count, 1 if i == 0 else 2, EXPANSION[block], unit)
        channels = inside * EXPANSION[block]
    net = ConvNet(stages, head=linear_head(channels, num_classes), least_size=32)
    initialize(net, conv="he_out", linear=None)
    return net


def resnet_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    depth: int,
    shortcut: Shortcut = "A",
    block: Block = "basic",
    width: int = 16,
) -> ConvNet:
    """ResNet of depth 6n+2 for small pictures: He et al. 2015, §4.2. Native input 32×32, any size from 4 on.

    shortcut: where the shape changes, "A" subsamples and pads with zero channels (the paper's choice here), "B" is a
    1×1 convolution with batch normalisation. block: "bottleneck" (1×1, 3×3, 1×1, four times the channels) has depth
    9n+2. width: channels inside the blocks of the first stage. All weights start at √(2 / fan-in), biases at 0.
    With the defaults 0.27 M parameters at depth 20, 0.85 M at 56, 1.7 M at 110, as in table 6.
    """
    n = blocks_per_stage(depth, block)
    at_least(1, width=width)
    unit = partial(_block, block=block, shortcut=shortcut)
    return _for_small_pictures(num_classes, in_channels, width, width, n, EXPANSION[block], unit)


def resnet_chapter(num_classes: int = 10, in_channels: int = 3, *, depth: int = 32, width: int = 16) -> ConvNet:
    """The chapter's `resnet_cifar10` (PaddlePaddle book, image classification): depth 20, 32, 44, 56, … 110.

    `resnet_cifar` with a projection where the width changes, as the chapter's text says. (The code printed in it has
    a slip, `ch_in = ch_out * 2`, that gives every block a projection; the book's later releases corrected it.)
    The weights start as PaddlePaddle v2 drew them: convolutions √(2 / fan-in), the last layer √(1 / fan-in).
    """
    if not 20 <= depth <= 110:
        raise UsageError(f"depth: expected 6n+2 from 20 to 110, received {depth}")
    net = resnet_cifar(num_classes, in_channels, depth=depth, shortcut="B", width=width)
    initialize(net.head, conv=None, linear="lecun")
    return net


def preresnet_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    depth: int,
    shortcut: Shortcut = "A",
    block: Block = "basic",
    width: int = 16,
) -> ConvNet:
    """Pre-activation ResNet of depth 6n+2, or 9n+2 with bottlenecks: He et al. 2016, "Identity mappings", figure 4e.

    As `resnet_cifar`, but normalisation and ReLU come before the convolutions, so that nothing changes what a shortcut
    carries. As in the appendix, the first activation follows the stem before the paths part, the last one ends stage3,
    and where the shape changes the shortcut takes the activated input; "B" is then a convolution alone.
    As elsewhere here, the 3×3 convolution of a bottleneck carries the stride (the authors' code: its first 1×1).
    """
    n = blocks_per_stage(depth, block)
    at_least(1, width=width)
    unit = partial(_pre_block, block=block, shortcut=shortcut, dropout=0.0)
    return _for_small_pictures(num_classes, in_channels, width, width, n, EXPANSION[block], unit)


def wide_resnet(
    num_classes: int = 10, in_channels: int = 3, *, depth: int, widening: int, dropout: float = 0.0, width: int = 16
) -> ConvNet:
    """WRN-depth-widening, Zagoruyko and Komodakis 2016, table 1: pre-activation, depth 6n+4, `widening` times as wide.

    Native input 32×32, any size from 4 on. The depth counts the projections too, so WRN-28-10 has 4 blocks a stage.
    dropout: between the two convolutions of a block (§2.4; the paper takes .3 for CIFAR). width: channels of the stem.
    """
    n = wide_blocks_per_stage(depth)
    at_least(1, widening=widening, width=width)
    unit = partial(_pre_block, block="basic", shortcut="B", dropout=dropout)
    return _for_small_pictures(num_classes, in_channels, width, width * widening, n, 1, unit)


def wide_blocks_per_stage(depth: int) -> int:
    """The n of depth 6n+4; `UsageError` names the nearest depths for another."""
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        near = (10,) if depth < 10 else (6 * n + 4, 6 * n + 10)
        raise UsageError(
            f"depth: a wide ResNet has depth 6n+4; received {depth}, nearest {' and '.join(map(str, near))}"
        )
    return n


def blocks_per_stage(depth: int, block: Block = "basic") -> int:
    """The n of depth 6n+2 (basic) or 9n+2 (bottleneck); `UsageError` names the nearest depths for another."""
    step = {"basic": 6, "bottleneck": 9}[block]
    n, rest = divmod(depth - 2, step)
    if rest or n < 1:
        near = (step + 2,) if depth < step + 2 else (step * n + 2, step * (n + 1) + 2)
        raise UsageError(
            f"depth: with {block} blocks a ResNet for small pictures has depth {step}n+2; "
            f"received {depth}, nearest {' and '.join(map(str, near))} "
            "(resnet18, resnet34, resnet50, resnet101 and resnet152 are the ImageNet networks)"
        )
    return n


Unit = Callable[[int, int, int, int], nn.Module]  # (in_channels, inside, out_channels, stride): one residual block


def _for_small_pictures(
    num_classes: int, in_channels: int, stem: int, width: int, count: int, expansion: int, unit: Unit
) -> ConvNet:
    """Stem → three stages of `count` blocks → average → fully-connected; weights √(2 / fan-in), biases 0."""
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, stem, 3)}  # [B, 16, 32, 32]
    channels = stem
    for i in range(3):
        inside = width * 2**i
        stages[f"stage{i + 1}"] = _stage(channels, inside, count, 1 if i == 0 else 2, expansion, unit)
        channels = inside * expansion
    first, last = stages["stage1"].get_submodule("0"), stages["stage3"]
    if isinstance(first, PreResidual) and isinstance(last, nn.Sequential):  # He et al. 2016, appendix
        first.before = nn.Identity()  # the stem ends in an activation, from which both paths of the first block start
        first.shortcut = first.shortcut or nn.Identity()
        last.append(_activation(channels))
    net = ConvNet(stages, head=linear_head(channels, num_classes), least_size=4)
    initialize(net, conv="he_in", linear="he_in")
    return net


def _stage(in_channels: int, inside: int, count: int, stride: int, expansion: int, unit: Unit) -> nn.Sequential:
    """`count` blocks, of which the first changes the shape."""
    out_channels = inside * expansion
    first = unit(in_channels, inside, out_channels, stride)
    return nn.Sequential(first, *(unit(out_channels, inside, out_channels, 1) for _ in range(count - 1)))


def _block(
    in_channels: int, inside: int, out_channels: int, stride: int, *, block: Block, shortcut: Shortcut
) -> Residual:
    """He et al. 2015, figure 5: left "basic", right "bottleneck"."""
    if block == "basic":
        body = nn.Sequential(
            conv_bn(in_channels, inside, 3, stride),
            conv_bn(inside, out_channels, 3, relu=False),
        )
    else:
        body = nn.Sequential(
            conv_bn(in_channels, inside, 1),
            conv_bn(inside, inside, 3, stride),
            conv_bn(inside, out_channels, 1, relu=False),
        )
    if stride == 1 and in_channels == out_channels:
        return Residual(body, nn.Identity())
    if shortcut == "A":
        return Residual(body, ZeroPadShortcut(in_channels, out_channels, stride))
    return Residual(body, conv_bn(in_channels, out_channels, 1, stride, relu=False))


def _pre_block(
    in_channels: int,
    inside: int,
    out_channels: int,
    stride: int,
    *,
    block: Block,
    shortcut: Shortcut,
    dropout: float,
) -> PreResidual:
    """He et al. 2016, figure 4e: each convolution after its normalisation and ReLU, the first of which is `before`."""
    parts: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    if block == "basic":
        parts = [conv_bn(in_channels, inside, 3, stride), *parts, _convolution(inside, out_channels, 3)]
    else:
        parts = [conv_bn(in_channels, inside, 1), conv_bn(inside, inside, 3, stride), *parts]
        parts.append(_convolution(inside, out_channels, 1))
    before, body = _activation(in_channels), nn.Sequential(*parts)
    if stride == 1 and in_channels == out_channels:
        return PreResidual(before, body, None)
    if shortcut == "A":
        return PreResidual(before, body, ZeroPadShortcut(in_channels, out_channels, stride))
    return PreResidual(before, body, _convolution(in_channels, out_channels, 1, stride))


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())  # not in place: the shortcut needs what came in


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
