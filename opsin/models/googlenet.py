"""GoogLeNet: the paper's with two auxiliary heads, torchvision's with batch normalisation, one for small pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn

from opsin.models.convnet import ConvNet
from opsin.models.layers import AuxiliaryPool, Branches, at_least, conv_bn, conv_relu, initialize, linear_head

# Szegedy et al. 2014, table 1: #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj; with 64 channels in the stem
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
Unit = Callable[
    [int, int, int], nn.Module
]  # (in_channels, out_channels, kernel_size): a convolution and what follows it


def googlenet(
    num_classes: int = 1000, in_channels: int = 3, *, aux: bool = True, dropout: float = 0.4, width: int = 64
) -> ConvNet:
    """GoogLeNet, Szegedy et al. 2014, table 1: 6,998,552 parameters, 13,378,280 with its two auxiliary heads.

    Native input 224×224, any size from 31 on. The heads at 4a and 4d answer in training, and the paper weights their
    losses .3 and .3. width: channels of the first layer; all others keep the paper's proportions. Local response
    normalisation after the first pooling and the second convolution, of which table 1 has no sizes, is that of the
    authors' framework of then (n 5, α 1e-4 over the mean, β .75). The weights start at √(2 / fan-in), the
    fully-connected ones at √(1 / fan-in).
    """
    at_least(1, width=width)
    a, b = width, width * 3
    stem = nn.Sequential(
        conv_relu(in_channels, a, 7, stride=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5),
        conv_relu(a, a, 1),
        conv_relu(a, b, 3),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    net = _googlenet(stem, conv_relu, num_classes, width, aux=aux, dropout=dropout, least_size=31)
    initialize(net, conv="he_in", linear="lecun")
    return net


def googlenet_bn(
    num_classes: int = 1000, in_channels: int = 3, *, aux: bool = True, dropout: float = 0.2, width: int = 64
) -> ConvNet:
    """torchvision's GoogLeNet: 6,624,904 parameters, 13,004,888 with its auxiliary heads.

    Batch normalisation (ε .001) instead of biases and response normalisation; the 5×5 convolutions are 3×3, an error
    that the published weights keep; the last pooling is 2×2. Native input 224×224, any size from 31 on. The published
    weights want pictures normalised by mean .5 and deviation .5.
    """
    at_least(1, width=width)
    unit = partial(conv_bn, eps=1e-3)
    stem = nn.Sequential(
        unit(in_channels, width, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        unit(width, width, 1),
        unit(width, width * 3, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    net = _googlenet(stem, unit, num_classes, width, aux=aux, dropout=dropout, least_size=31, five=3, last_pool=2)
    initialize(net, conv="he_in", linear="lecun")
    return net


def googlenet_cifar(
    num_classes: int = 10, in_channels: int = 3, *, aux: bool = True, dropout: float = 0.2, width: int = 32
) -> ConvNet:
    """GoogLeNet for small pictures: the nine modules at 16×16, 8×8 and 4×4, half as wide, with batch normalisation.

    Nobody's published network. Native input 32×32, any size from 8 on; 1,502,490 parameters, 2,595,886 with its
    auxiliary heads. width: 64 has the paper's channels. The weights start at √(2 / fan-in), the fully-connected ones
    at √(1 / fan-in).
    """
    at_least(1, width=width)
    stem = nn.Sequential(
        conv_bn(in_channels, width, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        conv_bn(width, width, 1),
        conv_bn(width, width * 3, 3),
    )
    net = _googlenet(stem, conv_bn, num_classes, width, aux=aux, dropout=dropout, least_size=8)
    initialize(net, conv="he_in", linear="lecun")
    return net


def inception(in_channels: int, channels: tuple[int, ...], unit: Unit = conv_relu, *, five: int = 5) -> Branches:
    """The module of figure 2b (the chapter's 7b): 1×1 convolutions reduce before 3×3 and 5×5, and after pooling.

    channels: #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj. Out come #1×1 + #3×3 + #5×5 + pool proj.
    """
    one, three_in, three, five_in, five_out, pool = channels
    return Branches(
        unit(in_channels, one, 1),
        nn.Sequential(unit(in_channels, three_in, 1), unit(three_in, three, 3)),
        nn.Sequential(unit(in_channels, five_in, 1), unit(five_in, five_out, five)),
        nn.Sequential(nn.MaxPool2d(3, 1, padding=1), unit(in_channels, pool, 1)),
    )


def inception_naive(in_channels: int, channels: tuple[int, int, int], unit: Unit = conv_relu) -> Branches:
    """The naïve module of figure 2a (the chapter's 7a). channels: #1×1, #3×3, #5×5.

    Out come their sum and all that came in, which pooling hands on: the channels grow from module to module, and
    with them the multiply–adds of every convolution behind.
    """
    one, three, five = channels
    branches = (unit(in_channels, one, 1), unit(in_channels, three, 3), unit(in_channels, five, 5))
    return Branches(*branches, nn.MaxPool2d(3, 1, padding=1))


def _googlenet(
    stem: nn.Module,
    unit: Unit,
    num_classes: int,
    width: int,
    *,
    aux: bool,
    dropout: float,
    least_size: int,
    five: int = 5,
    last_pool: int = 3,
) -> ConvNet:
    """Stem → nine modules with two poolings between them → average → dropout → fully-connected."""

    def scaled(channels: int) -> int:
        return max(1, channels * width // 64)

    stages, channels, out = OrderedDict(stem=stem), scaled(192), dict[str, int]()
    for name, table in MODULES.items():
        if name == "4a":
            stages["pool3"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        if name == "5a":
            stages["pool4"] = nn.MaxPool2d(last_pool, 2, ceil_mode=True)
        row = tuple(map(scaled, table))
        stages[name] = inception(channels, row, unit, five=five)
        channels = out[name] = row[0] + row[2] + row[4] + row[5]
    # torchvision pools to 4×4 at once
    pool = partial(nn.AdaptiveAvgPool2d, 4) if five == 3 else partial(AuxiliaryPool, 4)
    heads = {name: _aux_head(out[name], num_classes, unit, pool(), scaled(128), scaled(1024)) for name in ("4a", "4d")}
    return ConvNet(
        stages,
        head=linear_head(channels, num_classes, dropout=dropout),
        aux=heads if aux else None,
        least_size=least_size,
    )


def _aux_head(
    in_channels: int, num_classes: int, unit: Unit, pool: nn.Module, channels: int, hidden: int
) -> nn.Sequential:
    """§5: pooling, 1×1 convolution, a fully-connected layer, dropout of .7, and the classifier."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            pool=pool,
            conv=unit(in_channels, channels, 1),
            flatten=nn.Flatten(),
            fc=nn.Linear(channels * 16, hidden),
            act=nn.ReLU(inplace=True),
            dropout=nn.Dropout(0.7),
            linear=nn.Linear(hidden, num_classes),
        )
    )
