"""AlexNet: that of 2012 in two groups, the one-column form that torchvision publishes, and one for small pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from opsin.models.convnet import ConvNet
from opsin.models.layers import at_least, initialize

LEAST_SIZE = 63  # 63 → 15 → 7 → 3 → 1: below it, nothing is left before the third pooling


def alexnet(
    num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.5, width: int = 96, hidden: int = 4096
) -> ConvNet:
    """AlexNet, Krizhevsky et al. 2012, figure 2: 60,965,224 parameters. Native input 224×224, any size from 63 on.

    The second, fourth and fifth convolution work in two groups, as on the two cards of then; local response
    normalisation (§3.3) follows the first two. The paper's 224 gives its 55×55 maps with a padding of 2, which it does
    not mention (others take 227 and none). Maps are averaged to 6×6 before fc1, which changes nothing at 224.
    width: channels of conv1, a multiple of 6 keeps the paper's proportions. The weights start as in §5: standard
    deviation .01, biases 1 in the second, fourth and fifth convolution and in fc1 and fc2, else 0.
    """
    at_least(1, width=width, hidden=hidden)
    a, b, c = _even(width), _even(width * 8 / 3), _even(width * 4)
    net = ConvNet(
        {
            "conv1": _conv(in_channels, a, 11, stride=4, padding=2, norm=True, pool=True),  # [B,  96, 27, 27]
            "conv2": _conv(a, b, 5, groups=2, norm=True, pool=True),  # [B, 256, 13, 13]
            "conv3": _conv(b, c, 3),  # [B, 384, 13, 13]
            "conv4": _conv(c, c, 3, groups=2),  # [B, 384, 13, 13]
            "conv5": _conv(c, b, 3, groups=2, pool=True),  # [B, 256, 6, 6]
            "fc1": _fc(b * 36, hidden, after=dropout, side=6),
            "fc2": _fc(hidden, hidden, after=dropout),
        },
        head=nn.Linear(hidden, num_classes),
        least_size=LEAST_SIZE,
    )
    initialize(net, conv=0.01, linear=0.01)
    for stage, layer in (("conv2", "conv"), ("conv4", "conv"), ("conv5", "conv"), ("fc1", "linear"), ("fc2", "linear")):
        bias = net.stages[stage].get_submodule(layer).bias
        assert isinstance(bias, nn.Parameter)
        nn.init.ones_(bias)
    return net


def alexnet_owt(
    num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.5, width: int = 64, hidden: int = 4096
) -> ConvNet:
    """The one column of Krizhevsky 2014, "One weird trick", as torchvision has it: 61,100,840 parameters.

    No groups, no normalisation, dropout before fc1 and fc2. Native input 224×224, any size from 63 on.
    The weights start as there, which is as PyTorch draws them.
    """
    at_least(1, width=width, hidden=hidden)
    conv1 = _conv(in_channels, width, 11, stride=4, padding=2, pool=True)  # [B, 64, 27, 27]
    return _one_column(conv1, num_classes, dropout, width, hidden, side=6, least_size=LEAST_SIZE)


def alexnet_cifar(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.5, width: int = 64, hidden: int = 1024
) -> ConvNet:
    """The one column for small pictures: conv1 is 5×5 and keeps the size, fc1 and fc2 have 1024 units.

    Native input 32×32, any size from 15 on; 5,871,434 parameters. Nobody's published network. The weights start at
    √(2 / fan-in), the fully-connected ones at √(1 / fan-in).
    """
    at_least(1, width=width, hidden=hidden)
    conv1 = _conv(in_channels, width, 5, pool=True)  # [B, 64, 15, 15]
    net = _one_column(conv1, num_classes, dropout, width, hidden, side=3, least_size=15)
    initialize(net, conv="he_in", linear="lecun")
    return net


def _one_column(
    conv1: nn.Module, num_classes: int, dropout: float, width: int, hidden: int, *, side: int, least_size: int
) -> ConvNet:
    stages = {
        "conv1": conv1,
        "conv2": _conv(width, width * 3, 5, pool=True),  # [B, 192, 13, 13], small pictures 7×7
        "conv3": _conv(width * 3, width * 6, 3),
        "conv4": _conv(width * 6, width * 4, 3),
        "conv5": _conv(width * 4, width * 4, 3, pool=True),  # [B, 256, 6, 6], small pictures 3×3
        "fc1": _fc(width * 4 * side**2, hidden, before=dropout, side=side),
        "fc2": _fc(hidden, hidden, before=dropout),
    }
    return ConvNet(stages, head=nn.Linear(hidden, num_classes), least_size=least_size)


def _even(channels: float) -> int:
    return 2 * max(1, round(channels / 2))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    norm: bool = False,
    pool: bool = False,
) -> nn.Sequential:
    """Convolution → ReLU → local response normalisation → overlapping max pooling (§3.4), in the paper's order."""
    padding = kernel_size // 2 if padding is None else padding
    parts = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups),
        act=nn.ReLU(inplace=True),
    )
    if norm:  # §3.3: k 2, n 5, α 1e-4, β .75. PyTorch divides α by n, the paper does not
        parts["norm"] = nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
    if pool:
        parts["pool"] = nn.MaxPool2d(3, 2)
    return nn.Sequential(parts)


def _fc(
    in_features: int, out_features: int, *, before: float = 0.0, after: float = 0.0, side: int | None = None
) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module]()
    if side is not None:
        parts |= OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(side), flatten=nn.Flatten())
    if before:
        parts["dropout"] = nn.Dropout(before)
    parts |= OrderedDict[str, nn.Module](linear=nn.Linear(in_features, out_features), act=nn.ReLU(inplace=True))
    if after:
        parts["dropout"] = nn.Dropout(after)
    return nn.Sequential(parts)
