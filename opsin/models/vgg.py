"""VGG for ImageNet, with and without batch normalisation, and the chapter's VGG-16 for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from opsin.errors import UsageError
from opsin.models.convnet import ConvNet
from opsin.models.layers import ActivationName, at_least, initialize, make_activation

# Simonyan and Zisserman 2014, table 1, columns A, B, D, E: 3×3 convolutions in each of the five blocks
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDENING = (1, 2, 4, 8, 8)  # the blocks have 64, 128, 256, 512, 512 channels


def vgg(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    depth: int,
    norm: bool = False,
    activation: ActivationName = "relu",
    dropout: float = 0.5,
    width: int = 64,
    hidden: int = 4096,
) -> ConvNet:
    """VGG-11, 13, 16, 19: Simonyan and Zisserman 2014, table 1. Native input 224×224, any size from 32 on.

    norm: batch normalisation after every convolution. width: channels of the first block. hidden: units of fc1, fc2.
    Maps are averaged to 7×7 before fc1, which changes nothing at 224. The weights start as torchvision's:
    convolutions √(2 / fan-out), fully-connected layers 0.01, biases 0.
    """
    if depth not in CONVOLUTIONS:
        raise UsageError(f"depth: expected one of {', '.join(map(str, CONVOLUTIONS))}, received {depth}")
    at_least(1, width=width, hidden=hidden)
    stages: dict[str, nn.Module] = {}
    channels = in_channels
    for i, (count, widening) in enumerate(zip(CONVOLUTIONS[depth], WIDENING, strict=True), 1):
        stages[f"stage{i}"] = _block(channels, width * widening, count, activation, norm=norm)
        channels = width * widening
    stages["fc1"] = _fc(channels * 7 * 7, hidden, activation, dropout, pool=True)
    stages["fc2"] = _fc(hidden, hidden, activation, dropout)
    net = ConvNet(stages, head=nn.Linear(hidden, num_classes), least_size=32)
    initialize(net, conv="he_out", linear=0.01)
    return net


def vgg16_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    activation: ActivationName = "relu",
    width: int = 64,
    hidden: int = 512,
) -> ConvNet:
    """The chapter's `vgg_bn_drop` (PaddlePaddle book, image classification): 15,254,602 trainable values.

    Convolution → batch normalisation → activation → dropout after every convolution of a block but its last, .3 in
    block 1 and .4 in the others; two fully-connected layers of 512, of which the second is linear.
    Native input 32×32; larger maps are averaged to 1×1 before fc1, which changes nothing at 32.
    The weights start as PaddlePaddle v2 drew them: convolutions √(2 / fan-in), fully-connected layers √(1 / fan-in),
    biases 0. Dropout scales in training; v2 scaled in use, which is the same in expectation.
    """
    at_least(1, width=width, hidden=hidden)
    drops = (0.3, 0.4, 0.4, 0.4, 0.4)
    stages: dict[str, nn.Module] = {}
    channels = in_channels
    for i, (count, widening, dropout) in enumerate(zip(CONVOLUTIONS[16], WIDENING, drops, strict=True), 1):
        stages[f"stage{i}"] = _block(channels, width * widening, count, activation, norm=True, dropout=dropout)
        channels = width * widening
    stages["fc1"] = nn.Sequential(
        OrderedDict[str, nn.Module](
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.5),
            linear=nn.Linear(channels, hidden),
            norm=nn.BatchNorm1d(hidden),
            act=make_activation(activation),
            dropout2=nn.Dropout(0.5),
        )
    )
    stages["fc2"] = nn.Sequential(OrderedDict(linear=nn.Linear(hidden, hidden)))
    net = ConvNet(stages, head=nn.Linear(hidden, num_classes), least_size=32)
    initialize(net, conv="he_in", linear="lecun")
    return net


def _block(
    in_channels: int, out_channels: int, count: int, act: str, *, norm: bool, dropout: float = 0.0
) -> nn.Sequential:
    """`count` 3×3 convolutions, each normalised and activated, dropout between them, then 2×2 max pooling."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers.append(nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(make_activation(act))
        if dropout and i < count - 1:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _fc(in_features: int, out_features: int, act: str, dropout: float, *, pool: bool = False) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(7), flatten=nn.Flatten()) if pool else OrderedDict()
    parts["linear"] = nn.Linear(in_features, out_features)
    parts["act"] = make_activation(act)
    parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)
