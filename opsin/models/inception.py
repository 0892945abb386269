"""The Inceptions after GoogLeNet: v2 with batch normalisation, v3, v4, and Inception-ResNet v1 and v2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from opsin.models.convnet import ConvNet
from opsin.models.layers import AuxiliaryPool, Branches, at_least, conv_bn, initialize, linear_head

Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel] | tuple[int, Kernel, int]  # channels and kernel; with a stride it is not padded ("V")
Scale = Callable[[int], int]


SMALL = 15  # least size of those for small pictures: 15 → 7 → 3 → 1


class ReducingPool(nn.Module):
    """3×3 maximum with stride 2 from the first pixel on, the last window clipped: ⌈n / 2⌉, as a padded convolution."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), value=float("-inf"))
        return F.max_pool2d(x, 3, 2, ceil_mode=True)


class ScaledResidual(nn.Module):
    """x + scale · body(x), then ReLU: Szegedy et al. 2016, §3.3 and figure 20."""

    def __init__(self, body: nn.Module, scale: float, *, relu: bool = True) -> None:
        super().__init__()
        self.body = body
        self.scale = scale
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.body(x)
        return F.relu(x, inplace=True) if self.relu else x


# Ioffe and Szegedy 2015, figure 5: #1×1, #3×3 reduce, #3×3, double #3×3 reduce, double #3×3, pool, pool proj
V2 = {
    "3a": (64, 64, 64, 64, 96, "average", 32),
    "3b": (64, 64, 96, 64, 96, "average", 64),
    "3c": (0, 128, 160, 64, 96, "reduce", 0),
    "4a": (224, 64, 96, 96, 128, "average", 128),
    "4b": (192, 96, 128, 96, 128, "average", 128),
    "4c": (160, 128, 160, 128, 160, "average", 128),
    "4d": (96, 128, 192, 160, 192, "average", 128),
    "4e": (0, 128, 192, 192, 256, "reduce", 0),
    "5a": (352, 192, 320, 160, 224, "average", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}


def inception_v2(num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.0, width: int = 64) -> ConvNet:
    """BN-Inception, Ioffe and Szegedy 2015, figure 5, with the channels of the authors' published network.

    11,285,224 parameters: published weights have another 10,016 biases, which the normalisation takes out again.
    Native input 224×224, any size from 23 on. width: channels of the first layer.
    """
    return _v2(in_channels, num_classes, width, dropout=dropout, small=False)


def inception_v2_cifar(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.2, width: int = 32
) -> ConvNet:
    """BN-Inception for small pictures: another stem, all modules at 16×16, 8×8 and 4×4, half as wide.

    Nobody's published network. Native input 32×32, any size from 6 on; 2,573,706 parameters.
    width: 64 has the paper's channels.
    """
    return _v2(in_channels, num_classes, width, dropout=dropout, small=True)


def _v2(in_channels: int, num_classes: int, width: int, *, dropout: float, small: bool) -> ConvNet:
    at_least(1, width=width)
    scaled = _scaled(width, 64)
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    first = conv_bn(in_channels, width, 3) if small else conv_bn(in_channels, width, 7, 2)
    stem = nn.Sequential(first, pool(), *_layers(width, [(64, 1), (192, 3)], scaled, eps=1e-5))
    if not small:
        stem.append(pool())
    stages, channels = OrderedDict[str, nn.Module](stem=stem), scaled(192)  # [B, 192, 28, 28]
    for name, (one, three_in, three, double_in, double, kind, proj) in V2.items():
        branch = partial(_conv_branch, channels, scaled)
        if kind == "reduce":
            stages[name] = Branches(
                nn.Sequential(conv_bn(channels, scaled(three_in), 1), conv_bn(scaled(three_in), scaled(three), 3, 2)),
                nn.Sequential(
                    *_layers(channels, [(double_in, 1), (double, 3)], scaled, eps=1e-5),
                    conv_bn(scaled(double), scaled(double), 3, 2),
                ),
                ReducingPool(),
            )
            channels += scaled(three) + scaled(double)
            continue
        pooling = nn.AvgPool2d(3, 1, padding=1) if kind == "average" else nn.MaxPool2d(3, 1, padding=1)
        stages[name] = Branches(
            branch([(one, 1)], eps=1e-5),
            branch([(three_in, 1), (three, 3)], eps=1e-5),
            branch([(double_in, 1), (double, 3), (double, 3)], eps=1e-5),
            nn.Sequential(pooling, conv_bn(channels, scaled(proj), 1)),
        )
        channels = scaled(one) + scaled(three) + scaled(double) + scaled(proj)
    head = linear_head(channels, num_classes, dropout=dropout)
    net = ConvNet(stages, head=head, least_size=6 if small else 23)
    initialize(net, conv="he_in", linear="lecun")
    return net


def inception_v3(
    num_classes: int = 1000, in_channels: int = 3, *, aux: bool = True, dropout: float = 0.5, width: int = 32
) -> ConvNet:
    """Inception v3, Szegedy et al. 2015, "Rethinking", table 1 and figures 5–7, 10, as torchvision has it.

    23,834,568 parameters, 27,161,264 with the auxiliary head on the last 17×17 maps. Native input 299×299, any size
    from 75 on. width: channels of the first layer. The paper trains it with label smoothing .1 (§7).
    The published weights want pictures normalised by mean .5 and deviation .5.
    """
    net = _with_stem(in_channels, width, count_padding=True)
    return _v3(net, num_classes, aux=aux, dropout=dropout, least_size=75)


def inception_v3_cifar(
    num_classes: int = 10, in_channels: int = 3, *, aux: bool = True, dropout: float = 0.2, width: int = 16
) -> ConvNet:
    """Inception v3 for small pictures: another stem, all modules at 15×15, 7×7 and 3×3, half as wide.

    Nobody's published network. Native input 32×32, any size from 15 on; 5,454,858 parameters, 6,098,580 with its
    auxiliary head. width: 32 has the paper's channels.
    """
    net = _with_small_stem(in_channels, width, 192, count_padding=True)
    return _v3(net, num_classes, aux=aux, dropout=dropout, least_size=SMALL)


def _v3(net: _Builder, num_classes: int, *, aux: bool, dropout: float, least_size: int) -> ConvNet:
    scaled = net.scaled
    for name, proj in (("5b", 32), ("5c", 64), ("5d", 64)):
        net.mix(name, [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], average=proj)
    net.mix("6a", [[(384, 3, 2)], [(64, 1), (96, 3), (96, 3, 2)]], reduce=True)  # [B, 768, 17, 17]
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        once: list[Layer] = [(c, 1), (c, (1, 7)), (192, (7, 1))]
        twice: list[Layer] = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
        net.mix(name, [[(192, 1)], once, twice], average=192)
    on_aux = net.channels
    seven: list[Layer] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
    net.mix("7a", [[(192, 1), (320, 3, 2)], seven], reduce=True)  # [B, 1280, 8, 8]
    for name in ("7b", "7c"):
        net.mix(name, [[(320, 1)]], forks=[([(384, 1)], 384), ([(448, 1), (384, 3)], 384)], average=192)
    head = OrderedDict[str, nn.Module](  # figure 8; the 5×5 convolution sees the whole map
        pool=AuxiliaryPool(5),
        conv1=conv_bn(on_aux, scaled(128), 1, eps=1e-3),
        conv2=conv_bn(scaled(128), scaled(768), 5, pad=False, eps=1e-3),
        flatten=nn.Flatten(),
        linear=nn.Linear(scaled(768), num_classes),
    )
    return net.finish(num_classes, dropout, least_size, aux={"6e": nn.Sequential(head)} if aux else None)


def inception_v4(num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.2, width: int = 32) -> ConvNet:
    """Inception v4, Szegedy et al. 2016, "Inception-v4", figures 3–9: 42,679,816 parameters.

    Native input 299×299, any size from 75 on. width: channels of the first layer.
    """
    net = _Builder(width)
    first = nn.Sequential(*_layers(in_channels, [(32, 3, 2), (32, 3, 1), (64, 3)], net.scaled))
    net.add("stem", first, net.scaled(64))
    net.mix("3a", [[(96, 3, 2)]], reduce=True)  # [B, 160, 73, 73]
    net.mix("4a", [[(64, 1), (96, 3, 1)], [(64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)]])  # [B, 192, 71, 71]
    net.mix("5a", [[(192, 3, 2)]], reduce=True)  # [B, 384, 35, 35]
    return _v4(net, num_classes, dropout=dropout, least_size=75)


def inception_v4_cifar(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.2, width: int = 16
) -> ConvNet:
    """Inception v4 for small pictures: another stem, all modules at 15×15, 7×7 and 3×3, half as wide.

    Nobody's published network. Native input 32×32, any size from 15 on; 10,218,138 parameters.
    width: 32 has the paper's channels.
    """
    return _v4(_with_small_stem(in_channels, width, 384), num_classes, dropout=dropout, least_size=SMALL)


def _v4(net: _Builder, num_classes: int, *, dropout: float, least_size: int) -> ConvNet:
    for name in ("5b", "5c", "5d", "5e"):
        net.mix(name, [[(96, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)]], average=96)
    net.mix("6a", [[(384, 3, 2)], [(192, 1), (224, 3), (256, 3, 2)]], reduce=True)  # [B, 1024, 17, 17]
    once: list[Layer] = [(192, 1), (224, (1, 7)), (256, (7, 1))]
    twice: list[Layer] = [(192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))]
    for letter in "bcdefgh":
        net.mix(f"6{letter}", [[(384, 1)], once, twice], average=128)
    seven: list[Layer] = [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)]
    net.mix("7a", [[(192, 1), (192, 3, 2)], seven], reduce=True)  # [B, 1536, 8, 8]
    for name in ("7b", "7c", "7d"):
        double: list[Layer] = [(384, 1), (448, (3, 1)), (512, (1, 3))]
        net.mix(name, [[(256, 1)]], forks=[([(384, 1)], 256), (double, 256)], average=256)
    return net.finish(num_classes, dropout, least_size)


def inception_resnet_v1(
    num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.2, width: int = 32
) -> ConvNet:
    """Inception-ResNet v1, Szegedy et al. 2016, figures 10–15: 22,756,328 parameters.

    5, 10 and 5 residual modules, their sums scaled by .17, .10 and .20 as the authors do. Native input 299×299, any
    size from 75 on. width: channels of the first layer.
    """
    net = _Builder(width)
    layers: list[Layer] = [(80, 1), (192, 3, 1), (256, 3, 2)]
    stem = nn.Sequential(
        *_layers(in_channels, [(32, 3, 2), (32, 3, 1), (64, 3)], net.scaled),
        nn.MaxPool2d(3, 2),
        *_layers(net.scaled(64), layers, net.scaled),
    )
    net.add("stem", stem, net.scaled(256))  # [B, 256, 35, 35]
    return _resnet_v1(net, num_classes, dropout=dropout, least_size=75)


def inception_resnet_v1_cifar(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.2, width: int = 16
) -> ConvNet:
    """Inception-ResNet v1 for small pictures: another stem, all modules at 15×15, 7×7 and 3×3, half as wide.

    Nobody's published network. Native input 32×32, any size from 15 on; 5,149,402 parameters.
    width: 32 has the paper's channels.
    """
    return _resnet_v1(_with_small_stem(in_channels, width, 256), num_classes, dropout=dropout, least_size=SMALL)


def _resnet_v1(net: _Builder, num_classes: int, *, dropout: float, least_size: int) -> ConvNet:
    net.residuals("5a", 5, 0.17, [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (32, 3), (32, 3)]])
    net.mix("6a", [[(384, 3, 2)], [(192, 1), (192, 3), (256, 3, 2)]], reduce=True)  # [B, 896, 17, 17]
    net.residuals("6b", 10, 0.1, [[(128, 1)], [(128, 1), (128, (1, 7)), (128, (7, 1))]])
    reduction: list[list[Layer]] = [[(256, 1), (384, 3, 2)], [(256, 1), (256, 3, 2)], [(256, 1), (256, 3), (256, 3, 2)]]
    net.mix("7a", reduction, reduce=True)  # [B, 1792, 8, 8]
    net.residuals("7b", 5, 0.2, [[(192, 1)], [(192, 1), (192, (1, 3)), (192, (3, 1))]])
    return net.finish(num_classes, dropout, least_size)


def inception_resnet_v2(
    num_classes: int = 1000, in_channels: int = 3, *, dropout: float = 0.2, width: int = 32
) -> ConvNet:
    """Inception-ResNet v2, Szegedy et al. 2016, as its authors published it: 55,843,464 parameters.

    Their network has v3's stem, a module 5b, and 10, 20 and 10 residual modules, the last without ReLU and scale, where
    the paper draws v4's stem and 5, 10 and 5. Native input 299×299, any size from 75 on.
    """
    return _resnet_v2(_with_stem(in_channels, width), num_classes, dropout=dropout, least_size=75)


def inception_resnet_v2_cifar(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.2, width: int = 16
) -> ConvNet:
    """Inception-ResNet v2 for small pictures: another stem, all modules at 15×15, 7×7 and 3×3, half as wide.

    Nobody's published network. Native input 32×32, any size from 15 on; 13,600,490 parameters.
    width: 32 has the paper's channels.
    """
    return _resnet_v2(_with_small_stem(in_channels, width, 192), num_classes, dropout=dropout, least_size=SMALL)


def _resnet_v2(net: _Builder, num_classes: int, *, dropout: float, least_size: int) -> ConvNet:
    net.mix("5b", [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], average=64)
    net.residuals("5c", 10, 0.17, [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]])
    net.mix("6a", [[(384, 3, 2)], [(256, 1), (256, 3), (384, 3, 2)]], reduce=True)  # [B, 1088, 17, 17]
    net.residuals("6b", 20, 0.1, [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]])
    reduction: list[list[Layer]] = [[(256, 1), (384, 3, 2)], [(256, 1), (288, 3, 2)], [(256, 1), (288, 3), (320, 3, 2)]]
    net.mix("7a", reduction, reduce=True)  # [B, 2080, 8, 8]
    last: list[list[Layer]] = [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]]
    net.residuals("7b", 9, 0.2, last)
    net.residuals("7c", 1, 1.0, last, relu=False)
    net.add("7d", conv_bn(net.channels, net.scaled(1536), 1, eps=1e-3), net.scaled(1536))
    return net.finish(num_classes, dropout, least_size)


def _scaled(width: int, base: int) -> Scale:
    return lambda channels: max(1, channels * width // base)


def _with_stem(in_channels: int, width: int, *, count_padding: bool = False) -> _Builder:
    """Szegedy et al. 2015, "Rethinking", table 1, as published: 299 → 149 → 147 → 147 → 73 → 73 → 71 → 35."""
    net = _Builder(width, count_padding=count_padding)
    stem = nn.Sequential(
        *_layers(in_channels, [(32, 3, 2), (32, 3, 1), (64, 3)], net.scaled),
        nn.MaxPool2d(3, 2),
        *_layers(net.scaled(64), [(80, 1), (192, 3, 1)], net.scaled),
        nn.MaxPool2d(3, 2),
    )
    net.add("stem", stem, net.scaled(192))  # [B, 192, 35, 35]
    return net


def _with_small_stem(in_channels: int, width: int, channels: int, *, count_padding: bool = False) -> _Builder:
    """For small pictures: as many channels as the paper's stem gives, of one pooling: 32 → 15."""
    net = _Builder(width, count_padding=count_padding)
    stem = nn.Sequential(
        *_layers(in_channels, [(32, 3), (64, 3)], net.scaled),
        nn.MaxPool2d(3, 2),
        *_layers(net.scaled(64), [(channels, 3)], net.scaled),
    )
    net.add("stem", stem, net.scaled(channels))  # small pictures [B, 192, 15, 15]
    return net


def _layers(in_channels: int, layers: Iterable[Layer], scaled: Scale, eps: float = 1e-3) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for out_channels, kernel, *stride in layers:
        modules.append(conv_bn(in_channels, scaled(out_channels), kernel, *stride, pad=not stride, eps=eps))
        in_channels = scaled(out_channels)
    return modules


def _conv_branch(in_channels: int, scaled: Scale, layers: Iterable[Layer], eps: float = 1e-3) -> nn.Sequential:
    return nn.Sequential(*_layers(in_channels, layers, scaled, eps))


class _Builder:
    """Stages as they come, and how many channels the last one gives."""

    def __init__(self, width: int, *, count_padding: bool = False) -> None:
        at_least(1, width=width)
        self.scaled = _scaled(width, 32)
        self.count_padding = count_padding  # in average pooling; torchvision's v3 does, the authors' TensorFlow did not
        self.stages = OrderedDict[str, nn.Module]()
        self.channels = 0

    def add(self, name: str, stage: nn.Module, channels: int) -> None:
        self.stages[name] = stage
        self.channels = channels

    def mix(
        self,
        name: str,
        branches: list[list[Layer]],
        *,
        forks: Iterable[tuple[list[Layer], int]] = (),
        average: int = 0,
        reduce: bool = False,
    ) -> None:
        """One module: branches of convolutions, then those that fork, then a pooling.

        forks: layers, then 1×3 and 3×1 side by side of so many channels. average: channels of the 1×1 convolution
        after average pooling. reduce: max pooling with stride 2.
        """
        parts: list[nn.Module] = [_conv_branch(self.channels, self.scaled, layers) for layers in branches]
        channels = sum(self.scaled(layers[-1][0]) for layers in branches)
        for layers, out in forks:
            inside = self.scaled(layers[-1][0])
            fork = Branches(*(conv_bn(inside, self.scaled(out), kernel, eps=1e-3) for kernel in ((1, 3), (3, 1))))
            parts.append(nn.Sequential(*_layers(self.channels, layers, self.scaled), fork))
            channels += 2 * self.scaled(out)
        if average:
            pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=self.count_padding)
            parts.append(nn.Sequential(pool, conv_bn(self.channels, self.scaled(average), 1, eps=1e-3)))
            channels += self.scaled(average)
        if reduce:
            parts.append(nn.MaxPool2d(3, 2))
            channels += self.channels
        self.add(name, Branches(*parts), channels)

    def residuals(self, name: str, count: int, scale: float, branches: list[list[Layer]], *, relu: bool = True) -> None:
        """One stage of `count` modules x + scale · (1×1 convolution of all branches)."""
        inside = sum(self.scaled(layers[-1][0]) for layers in branches)
        blocks = []
        for _ in range(count):
            mixed = Branches(*(_conv_branch(self.channels, self.scaled, layers) for layers in branches))
            body = nn.Sequential(mixed, nn.Conv2d(inside, self.channels, 1))
            blocks.append(ScaledResidual(body, scale, relu=relu))
        self.stages[name] = nn.Sequential(*blocks)

    def finish(
        self, num_classes: int, dropout: float, least_size: int, aux: dict[str, nn.Module] | None = None
    ) -> ConvNet:
        head = linear_head(self.channels, num_classes, dropout=dropout)
        net = ConvNet(self.stages, head=head, aux=aux, least_size=least_size)
        initialize(net, conv="he_in", linear="lecun")
        return net
