"""Network in Network: a small fully-connected network at every place of a map, and averages of maps as logits."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from opsin.models.convnet import ConvNet
from opsin.models.layers import at_least, initialize


def nin_cifar(num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.5, width: int = 192) -> ConvNet:
    """Network in Network for CIFAR, Lin et al. 2013, figure 2: 966,986 parameters.

    Three MLPconv layers; the last gives one map a class, and a map's mean is the logit. Unlike theirs, these maps pass
    no ReLU: with it all ten went dark in the first steps of a training, and a dark map is never learnt again. Sizes are
    those of the authors' published definition: they are not in the paper. Native input 32×32, any size from 4 on.
    width: channels of the first convolution. The weights start as `_start` says; theirs had a standard deviation of
    .05, with which the logits of all pictures start alike and stay so for hundreds of steps.
    """
    at_least(1, width=width)
    a, b = max(1, width * 5 // 6), max(1, width // 2)  # 160, 96
    net = ConvNet(
        {
            "mlpconv1": _mlpconv(in_channels, width, a, b, 5, pool=_max(), dropout=dropout),  # [B,  96, 16, 16]
            "mlpconv2": _mlpconv(b, width, width, width, 5, pool=_average(), dropout=dropout),  # [B, 192, 8, 8]
            "mlpconv3": _mlpconv(width, width, width, num_classes, 3, relu=False),  # [B, K, 8, 8]
        },
        head=_mean(),
        least_size=4,
    )
    _start(net)
    return net


def nin(num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.5, width: int = 96) -> ConvNet:
    """Network in Network for ImageNet: 7,595,176 parameters. Native input 224×224, any size from 39 on.

    Four MLPconv layers, as the authors published it with Caffe; the paper has no ImageNet network. Without ReLU after
    the maps of the classes, and with the same start, as `nin_cifar`; their weights started with standard deviations of
    .01 and .05. width: channels of the first layer.
    """
    at_least(1, width=width)
    a, b, c, d = width, max(1, width * 8 // 3), width * 4, max(1, width * 32 // 3)  # 96, 256, 384, 1024
    net = ConvNet(
        {
            "mlpconv1": _mlpconv(in_channels, a, a, a, 11, stride=4, padding=0, pool=_max()),  # [B, 96, 27, 27]
            "mlpconv2": _mlpconv(a, b, b, b, 5, pool=_max()),  # [B, 256, 13, 13]
            "mlpconv3": _mlpconv(b, c, c, c, 3, pool=_max(), dropout=dropout),  # [B, 384, 6, 6]
            "mlpconv4": _mlpconv(c, d, d, num_classes, 3, relu=False),  # [B, K, 6, 6]
        },
        head=_mean(),
        least_size=39,
    )
    _start(net)
    return net


def _mlpconv(
    in_channels: int,
    channels: int,
    hidden: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    pool: nn.Module | None = None,
    dropout: float = 0.0,
    relu: bool = True,
) -> nn.Sequential:
    """§3.1: a convolution and two 1×1 ("cascaded cross-channel") ones, each with ReLU; then pooling and dropout."""
    padding = kernel_size // 2 if padding is None else padding
    parts = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, channels, kernel_size, stride, padding),
        act=nn.ReLU(inplace=True),
        cccp1=nn.Conv2d(channels, hidden, 1),
        act1=nn.ReLU(inplace=True),
        cccp2=nn.Conv2d(hidden, out_channels, 1),
    )
    if relu:
        parts["act2"] = nn.ReLU(inplace=True)
    if pool is not None:
        parts["pool"] = pool
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)


def _max() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe rounds up: 32 → 16


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 2, ceil_mode=True)


def _mean() -> nn.Sequential:
    """§3.2: global average pooling, without a layer behind it."""
    return nn.Sequential(OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


@torch.no_grad()
def _start(net: ConvNet) -> None:
    """Weights √(2 / fan-in), biases 0; and behind a ReLU the weights of a filter sum to 0 over its input channels.

    Values behind a ReLU are never negative, so that what all pictures have in common grows from layer to layer beside
    what tells them apart; without normalisation, its gradient kills the network at rates that would teach it. Weights
    that sum to 0 take out most of it (Brock et al. 2021, "Characterizing signal propagation", §4.2 on the mean shift;
    there all through the training, here at its start), and are larger by √(1 / (1 - 1/π)) to keep the variance.
    """
    initialize(net, conv="he_in", linear=None)
    for convolution in [part for part in net.modules() if isinstance(part, nn.Conv2d)][1:]:
        channels = convolution.in_channels
        if channels > 1:
            weight = convolution.weight
            weight.sub_(weight.mean(1, keepdim=True)).mul_(((1 - 1 / math.pi) * (1 - 1 / channels)) ** -0.5)
