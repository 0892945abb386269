"""The table of networks, readable without torch, and `build`, which makes one of them by name."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from opsin.errors import UsageError, near
from opsin.recipe import check as check_type

if TYPE_CHECKING:
    from opsin.types import Model


@dataclass(frozen=True)
class Published:
    """An error that somebody published for a network, in per cent. of: data and measure. how: views, runs, part."""

    per_cent: float
    of: str
    how: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network. The counts hold at its native size, channels and classes.

    builder: "module:function". options: keyword arguments of the builder that belong to the name.
    params: values in parameters, frozen ones included. million_macs: multiply–adds of convolutions and
    fully-connected layers for one picture, in millions. native_size: side in pixels that it was designed for.
    least_size: smallest side that it takes. aux_weights: of the losses of its auxiliary heads, deepest last.
    error: None where nobody published one; see `PUBLISHED`.
    """

    builder: str
    summary: str
    year: int
    paper: str
    params: int
    million_macs: float
    native_size: int
    least_size: int
    classes: int = 10
    channels: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    aux_weights: tuple[float, ...] = ()
    error: Published | None = None


_VGG = "Simonyan and Zisserman 2014, table 1"
_GOOGLENET = "Szegedy et al. 2014, Going deeper with convolutions"
_INCEPTION2 = "Ioffe and Szegedy 2015, Batch normalization, figure 5"
_INCEPTION3 = "Szegedy et al. 2015, Rethinking the Inception architecture"
_INCEPTION4 = "Szegedy et al. 2016, Inception-v4, Inception-ResNet"
_RESNET = "He et al. 2015, Deep residual learning"
_PRERESNET = "He et al. 2016, Identity mappings in deep residual networks"
_CHAPTER = "PaddlePaddle book 2017, image classification"


def _vgg(depth: int, params: int, million_macs: float, *, norm: bool = False) -> Entry:
    column = {11: "A", 13: "B", 16: "D", 19: "E"}[depth]
    return Entry(
        builder="opsin.models.vgg:vgg",
        summary=f"VGG-{depth}" + (" with batch normalisation" if norm else ""),
        year=2014,
        paper=f"{_VGG}, column {column}",
        params=params,
        million_macs=million_macs,
        native_size=224,
        least_size=32,
        classes=1000,
        options={"depth": depth, "norm": norm},
    )


def _resnet_cifar(depth: int) -> Entry:
    n = (depth - 2) // 6  # every n adds the same 6 convolutions and 6 batch normalisations
    return Entry(
        builder="opsin.models.resnet:resnet_cifar",
        summary=f"ResNet-{depth} for small pictures, 3 stages of {n} blocks",
        year=2015,
        paper=f"{_RESNET}, §4.2",
        params=97_216 * n - 21_926,
        million_macs=round((14_155_776 * n - 1_916_288) / 1e6, 1),
        native_size=32,
        least_size=4,
        options={"depth": depth},
    )


def _resnet(depth: int, params: int, million_macs: float) -> Entry:
    return Entry(
        builder="opsin.models.resnet:resnet",
        summary=f"ResNet-{depth} for ImageNet",
        year=2015,
        paper=f"{_RESNET}, table 1",
        params=params,
        million_macs=million_macs,
        native_size=224,
        least_size=32,
        classes=1000,
        options={"depth": depth},
    )


def _inception(name: str, summary: str, year: int, paper: str, params: int, million_macs: float) -> Entry:
    return Entry(
        builder=f"opsin.models.inception:{name}",
        summary=summary,
        year=year,
        paper=paper,
        params=params,
        million_macs=million_macs,
        native_size=299,
        least_size=75,
        classes=1000,
    )


def _inception_cifar(full: Entry, summary: str, params: int, million_macs: float, *, least_size: int = 15) -> Entry:
    """The form for small pictures of one of the Inceptions."""
    return replace(
        full,
        builder=f"{full.builder}_cifar",
        summary=f"{summary} for small pictures, half as wide",
        paper=f"after {full.paper}",
        params=params,
        million_macs=million_macs,
        native_size=32,
        least_size=least_size,
        classes=10,
    )


_V2 = replace(
    _inception("inception_v2", "BN-Inception", 2015, _INCEPTION2, 11_285_224, 2_032.6), native_size=224, least_size=23
)
_V3 = replace(
    _inception("inception_v3", "Inception v3 with one auxiliary head", 2015, _INCEPTION3, 27_161_264, 5_713.2),
    aux_weights=(0.4,),  # the paper gives none; that of its authors' program
)
_V4 = _inception("inception_v4", "Inception v4", 2016, _INCEPTION4, 42_679_816, 12_254.0)
_RESNET_V1 = _inception("inception_resnet_v1", "Inception-ResNet v1", 2016, _INCEPTION4, 22_756_328, 6_206.4)
_RESNET_V2 = _inception(
    "inception_resnet_v2", "Inception-ResNet v2, as published", 2016, _INCEPTION4, 55_843_464, 13_155.8
)


def _preresnet(depth: int) -> Entry:
    """The basic form, as large as the ResNet of 2015 of that depth."""
    return replace(
        _resnet_cifar(depth),
        builder="opsin.models.resnet:preresnet_cifar",
        summary=f"pre-activation ResNet-{depth} for small pictures",
        year=2016,
        paper=f"{_PRERESNET}, figure 4e",
    )


def _preresnet_bottleneck(depth: int) -> Entry:
    n = (depth - 2) // 9
    return replace(
        _preresnet(depth),
        summary=f"pre-activation ResNet-{depth} for small pictures, bottlenecks",
        params=92_736 * n + 34_010,
        million_macs=round((13_369_344 * n + 6_998_528) / 1e6, 1),
        options={"depth": depth, "block": "bottleneck", "shortcut": "B"},
    )


def _wide_resnet(depth: int, widening: int) -> Entry:
    n, a = (depth - 4) // 6, 16 * widening
    spared = 0 if widening > 1 else 256  # the first block then keeps the shape and has no projection
    return Entry(
        builder="opsin.models.resnet:wide_resnet",
        summary=f"Wide ResNet of depth {depth}, {widening} times as wide",
        year=2016,
        paper="Zagoruyko and Komodakis 2016, Wide residual networks, table 1",
        params=474 + 200 * a + 28 * a * n + a**2 * (378 * n - 89) - spared,
        million_macs=round(
            (442_368 + 163_880 * a + 10_240 * a**2 + 27_648 * a**2 * (2 * n - 1) - 1024 * spared) / 1e6, 1
        ),
        native_size=32,
        least_size=4,
        options={"depth": depth, "widening": widening},
    )


MODELS: dict[str, Entry] = {
    "smallnet": Entry(
        builder="opsin.models.smallnet:smallnet",
        summary="small wide network with frozen whitening; the default for small pictures",
        year=2024,
        paper="Jordan 2024, 94 % on CIFAR-10 in 3.29 seconds",
        params=1_972_792,
        million_macs=118.1,
        native_size=32,
        least_size=9,
    ),
    "lenet5": Entry(
        builder="opsin.models.lenet:lenet5",
        summary="LeNet-5: tanh, average pooling",
        year=1998,
        paper="LeCun et al. 1998, figure 2",
        params=61_706,
        million_macs=0.4,
        native_size=32,
        least_size=16,
        channels=1,
    ),
    "lenet": Entry(
        builder="opsin.models.lenet:lenet",
        summary="the chapter's figure 5: 20 and 50 kernels, max pooling, 500 units",
        year=2010,
        paper="deeplearning.net tutorial, LeNet",
        params=431_080,
        million_macs=2.3,
        native_size=28,
        least_size=16,
        channels=1,
    ),
    "alexnet": Entry(
        builder="opsin.models.alexnet:alexnet",
        summary="AlexNet: two groups, local response normalisation",
        year=2012,
        paper="Krizhevsky et al. 2012, figure 2",
        params=60_965_224,
        million_macs=724.4,
        native_size=224,
        least_size=63,
        classes=1000,
    ),
    "alexnet_owt": Entry(
        builder="opsin.models.alexnet:alexnet_owt",
        summary="AlexNet in one column, as torchvision has it",
        year=2014,
        paper="Krizhevsky 2014, One weird trick",
        params=61_100_840,
        million_macs=714.2,
        native_size=224,
        least_size=63,
        classes=1000,
    ),
    "alexnet_cifar": Entry(
        builder="opsin.models.alexnet:alexnet_cifar",
        summary="AlexNet in one column, for small pictures",
        year=2014,
        paper="after Krizhevsky 2014, One weird trick",
        params=5_871_434,
        million_macs=182.2,
        native_size=32,
        least_size=15,
    ),
    "nin_cifar": Entry(
        builder="opsin.models.nin:nin_cifar",
        summary="Network in Network for small pictures, 3 MLPconv layers, means of maps as logits",
        year=2013,
        paper="Lin et al. 2013, Network in network, figure 2",
        params=966_986,
        million_macs=222.5,
        native_size=32,
        least_size=4,
    ),
    "nin": Entry(
        builder="opsin.models.nin:nin",
        summary="Network in Network for ImageNet, 4 MLPconv layers",
        year=2013,
        paper="Lin et al. 2013, Network in network, the authors' definition",
        params=7_595_176,
        million_macs=1_100.2,
        native_size=224,
        least_size=39,
        classes=1000,
    ),
    "vgg11": _vgg(11, 132_863_336, 7_609.1),
    "vgg13": _vgg(13, 133_047_848, 11_308.5),
    "vgg16": _vgg(16, 138_357_544, 15_470.3),
    "vgg19": _vgg(19, 143_667_240, 19_632.1),
    "vgg11_bn": _vgg(11, 132_868_840, 7_609.1, norm=True),
    "vgg13_bn": _vgg(13, 133_053_736, 11_308.5, norm=True),
    "vgg16_bn": _vgg(16, 138_365_992, 15_470.3, norm=True),
    "vgg19_bn": _vgg(19, 143_678_248, 19_632.1, norm=True),
    "googlenet": Entry(
        builder="opsin.models.googlenet:googlenet",
        summary="GoogLeNet with two auxiliary heads (parameters with them, multiply–adds without)",
        year=2014,
        paper=f"{_GOOGLENET}, table 1",
        params=13_378_280,
        million_macs=1_582.7,
        native_size=224,
        least_size=31,
        classes=1000,
        aux_weights=(0.3, 0.3),  # section 5 of the paper
    ),
    "googlenet_bn": Entry(
        builder="opsin.models.googlenet:googlenet_bn",
        summary="GoogLeNet with batch normalisation, as torchvision has it",
        year=2014,
        paper=f"after {_GOOGLENET}",
        params=13_004_888,
        million_macs=1_498.4,
        native_size=224,
        least_size=31,
        classes=1000,
        aux_weights=(0.3, 0.3),  # section 5 of the paper
    ),
    "googlenet_cifar": Entry(
        builder="opsin.models.googlenet:googlenet_cifar",
        summary="GoogLeNet with batch normalisation for small pictures, half as wide",
        year=2014,
        paper=f"after {_GOOGLENET}",
        params=2_595_886,
        million_macs=98.4,
        native_size=32,
        least_size=8,
        aux_weights=(0.3, 0.3),  # section 5 of the paper
    ),
    "inception_v2": _V2,
    "inception_v2_cifar": _inception_cifar(_V2, "BN-Inception", 2_573_706, 135.1, least_size=6),
    "inception_v3": _V3,
    "inception_v3_cifar": _inception_cifar(_V3, "Inception v3", 6_098_580, 194.9),
    "inception_v4": _V4,
    "inception_v4_cifar": _inception_cifar(_V4, "Inception v4", 10_218_138, 440.5),
    "inception_resnet_v1": _RESNET_V1,
    "inception_resnet_v1_cifar": _inception_cifar(_RESNET_V1, "Inception-ResNet v1", 5_149_402, 195.3),
    "inception_resnet_v2": _RESNET_V2,
    "inception_resnet_v2_cifar": _inception_cifar(_RESNET_V2, "Inception-ResNet v2", 13_600_490, 509.5),
    "vgg16_cifar": Entry(
        builder="opsin.models.vgg:vgg16_cifar",
        summary="the chapter's VGG-16 with batch normalisation and dropout, for small pictures",
        year=2017,
        paper=_CHAPTER,
        params=15_254_602,
        million_macs=313.7,
        native_size=32,
        least_size=32,
    ),
    **{f"resnet{depth}": _resnet_cifar(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    "resnet_chapter": Entry(
        builder="opsin.models.resnet:resnet_chapter",
        summary="the chapter's ResNet for small pictures, depth 32 (or another, 20 to 110), projection shortcuts",
        year=2017,
        paper=_CHAPTER,
        params=466_906,
        million_macs=69.1,
        native_size=32,
        least_size=4,
    ),
    "resnet18": _resnet(18, 11_689_512, 1_814.1),
    "resnet34": _resnet(34, 21_797_672, 3_663.8),
    "resnet50": _resnet(50, 25_557_032, 4_089.2),
    "resnet101": _resnet(101, 44_549_160, 7_801.4),
    "resnet152": _resnet(152, 60_192_808, 11_513.6),
    **{f"preresnet{depth}": _preresnet(depth) for depth in (20, 56, 110)},
    **{f"preresnet{depth}": _preresnet_bottleneck(depth) for depth in (164, 1001)},
    **{f"wrn{d}_{k}": _wide_resnet(d, k) for d, k in ((16, 2), (16, 8), (28, 10), (40, 1), (40, 2), (40, 4))},
}

# Not in the table: its option `topology` says what it is. Nothing here imports the builder before it is asked for.
DECLARED = Entry(
    builder="opsin.v2.classify:declared",
    summary="a network declared through opsin.v2",
    year=2017,
    paper="PaddlePaddle v2 API",
    params=0,
    million_macs=0.0,
    native_size=32,
    least_size=1,
)


def _errors(of: str, how: str, source: str, **per_cent: float) -> dict[str, Published]:
    return {name: Published(value, of, how, source) for name, value in per_cent.items()}


_TOP5 = "ImageNet top-5"
_TORCHVISION = "torchvision's documentation of its published weights"

# What others reached with these networks and published; where a paper has several figures, how says which it is.
PUBLISHED: dict[str, Published] = {
    **_errors("MNIST", "test, without distortions in training", "LeCun et al. 1998, figure 9", lenet5=0.95),
    **_errors("MNIST", "test, at the best validation", "deeplearning.net tutorial, its output", lenet=0.92),
    **_errors("CIFAR-10", "test, mirrored and shifted views, mean of runs", "airbench94, its table", smallnet=5.99),
    **_errors("CIFAR-10", "test, last pass", _CHAPTER, vgg16_cifar=8.54),
    **_errors("CIFAR-10", "test, with augmentation", "Lin et al. 2013, table 1", nin_cifar=8.81),
    **_errors("ImageNet top-1", "validation, one view", "the authors' Caffe model card", nin=40.64),
    **_errors(_TOP5, "validation, one network, ten views", "Krizhevsky et al. 2012, table 2", alexnet=18.2),
    **_errors(_TOP5, "validation, one scale, dense", "Simonyan and Zisserman 2014, table 3", vgg11=10.4, vgg13=9.9),
    **_errors(_TOP5, "validation, one scale, dense", "Simonyan and Zisserman 2014, table 3", vgg16=8.1, vgg19=8.0),
    **_errors(_TOP5, "validation, one view", _TORCHVISION, alexnet_owt=20.91, googlenet_bn=10.47, resnet18=10.92),
    **_errors(_TOP5, "validation, one view", _TORCHVISION, vgg11_bn=10.19, vgg13_bn=9.63, vgg16_bn=8.5, vgg19_bn=8.15),
    **_errors(_TOP5, "validation, one network, one view", "Szegedy et al. 2014, table 3", googlenet=10.07),
    **_errors(_TOP5, "validation, one network, one view", "Ioffe and Szegedy 2015, figure 4", inception_v2=7.82),
    **_errors(_TOP5, "validation, one network, one view", "Szegedy et al. 2015, table 3", inception_v3=5.6),
    **_errors(
        _TOP5,
        "validation without its blacklist, one network, one view",
        "Szegedy et al. 2016, table 2",
        inception_v4=5.0,
        inception_resnet_v1=5.5,
        inception_resnet_v2=4.9,
    ),
    **_errors(
        _TOP5,
        "validation, ten views",
        "He et al. 2015, table 3",
        resnet34=7.46,  # of its three, B is this one
        resnet50=6.71,
        resnet101=6.05,
        resnet152=5.71,
    ),
    **_errors(
        "CIFAR-10",
        "test; 110: best of 5 runs",
        "He et al. 2015, table 6",
        resnet20=8.75,
        resnet32=7.51,
        resnet44=7.17,
        resnet56=6.97,
        resnet110=6.43,
        resnet1202=7.93,
    ),
    **_errors(
        "CIFAR-10",
        "test",
        "He et al. 2016, table 3",
        preresnet110=6.37,
        preresnet164=5.46,
        preresnet1001=4.92,
    ),
    **_errors(
        "CIFAR-10",
        "test, ZCA-whitened pictures",
        "Zagoruyko and Komodakis 2016, table 4",
        wrn40_1=6.85,
        wrn40_2=5.33,
    ),
    **_errors(
        "CIFAR-10",
        "test, median of 5 runs",
        "Zagoruyko and Komodakis 2016, table 5",
        wrn40_4=4.53,
        wrn16_8=4.27,
        wrn28_10=4.0,
    ),
}

# Parts of networks that `opsin models` shows and draws alone: what, and where from.
FIGURES: dict[str, tuple[str, str]] = {
    "inception-module": ("The Inception module, naïve and reduced", f"{_GOOGLENET}, figure 2, channels of module 3a"),
    "residual-block": ("The two residual blocks", f"{_RESNET}, figure 5, with batch normalisation"),
}
MODELS |= {name: replace(MODELS[name], error=error) for name, error in PUBLISHED.items()}


def entry(name: str, also: Iterable[str] = ()) -> Entry:
    """The table's line of that name, or of a CIFAR ResNet of any depth: "resnet26", "preresnet32", "wrn22_8".

    "declared" is a saved network of `opsin.v2`. `UsageError` for any other name, with the near ones, also those of
    `also`. resnet18, 34, 50, 101 and 152 are the ImageNet networks.
    """
    if name in MODELS:
        return MODELS[name]
    if name == "declared":
        return DECLARED
    if match := re.fullmatch(r"(pre)?resnet(\d{1,5})", name):
        from opsin.models.resnet import blocks_per_stage

        depth = int(match[2])
        blocks_per_stage(depth)
        return _preresnet(depth) if match[1] else _resnet_cifar(depth)
    if match := re.fullmatch(r"wrn(\d{1,4})_([1-9]\d?)", name):
        from opsin.models.resnet import wide_blocks_per_stage

        wide_blocks_per_stage(int(match[1]))
        return _wide_resnet(int(match[1]), int(match[2]))
    raise UsageError(f"no network {name!r}; {near(name, [*MODELS, *also])}")


def builder(name: str) -> Callable[..., Model]:
    """The function behind a name. Imports torch."""
    module, function = entry(name).builder.split(":")
    return getattr(importlib.import_module(module), function)


def options(name: str) -> dict[str, Any]:
    """The options that `build` takes for this network, with their defaults. Imports torch."""
    fixed = {"num_classes", "in_channels", *entry(name).options}
    return {key: p.default for key, p in inspect.signature(builder(name)).parameters.items() if key not in fixed}


def build(name: str, num_classes: int, in_channels: int = 3, **options_: Any) -> Model:
    """A new network, weights drawn from torch's global generator.

    An unknown name or option, or a value that the builder cannot use, is a `UsageError` with the near names.
    """
    known, make = options(name), builder(name)
    for key in options_:
        if key not in known:
            raise UsageError(f"{name}: no option {key!r}; {near(key, known) if known else 'it has none'}")
    arguments = {"num_classes": num_classes, "in_channels": in_channels, **options_}
    hints = typing.get_type_hints(make)
    arguments = {key: check_type(value, hints[key], f"{name}.{key}") for key, value in arguments.items()}
    for key in ("num_classes", "in_channels"):
        if arguments[key] < 1:
            raise UsageError(f"{name}.{key}: expected at least 1, received {arguments[key]}")
    try:
        return make(**arguments, **entry(name).options)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:  # torch's own checks, such as a dropout above 1
        raise UsageError(f"{name}: {error}") from error
