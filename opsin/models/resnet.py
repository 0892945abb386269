"""Residual networks: for small pictures (CIFAR), the chapter's, and for ImageNet."""

from __future__ import annotations

from typing import Literal

from torch import nn

from opsin.errors import UsageError
from opsin.models.convnet import ConvNet
from opsin.models.layers import Residual, ZeroPadShortcut, at_least, conv_bn, initialize, linear_head

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
    stem = nn.Sequential(*conv_bn(in_channels, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    stages: dict[str, nn.Module] = {"stem": stem}  # [B, 64, 56, 56]
    channels = width
    for i, count in enumerate(counts):
        inside = width * 2**i
        stages[f"stage{i + 1}"] = _stage(channels, inside, count, 1 if i == 0 else 2, block, "B")
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
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, width, 3)}  # [B, 16, 32, 32]
    channels = width
    for i in range(3):
        inside = width * 2**i
        stages[f"stage{i + 1}"] = _stage(channels, inside, n, 1 if i == 0 else 2, block, shortcut)
        channels = inside * EXPANSION[block]
    net = ConvNet(stages, head=linear_head(channels, num_classes), least_size=4)
    initialize(net, conv="he_in", linear="he_in")
    return net


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


def _stage(in_channels: int, inside: int, count: int, stride: int, block: Block, shortcut: Shortcut) -> nn.Sequential:
    """`count` blocks, of which the first changes the shape."""
    out_channels = inside * EXPANSION[block]
    first = _block(in_channels, inside, out_channels, stride, block, shortcut)
    others = (_block(out_channels, inside, out_channels, 1, block, shortcut) for _ in range(count - 1))
    return nn.Sequential(first, *others)


def _block(in_channels: int, inside: int, out_channels: int, stride: int, block: Block, shortcut: Shortcut) -> Residual:
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
