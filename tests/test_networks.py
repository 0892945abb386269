"""What the papers say about their networks: maps at every stage, multiply–adds, and the parts that are theirs alone.

Sizes, names, gradients and least sizes of all networks are in test_models.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from opsin.loss import compare
from opsin.models import build, entry
from opsin.models.googlenet import MODULES, inception, inception_naive
from opsin.models.inception import ReducingPool, ScaledResidual
from opsin.recipe import CrossEntropy
from tests.test_models import native, small

GOOGLENET = {  # Szegedy et al. 2014, table 1, "output size"
    "stem": (192, 28, 28),
    "3a": (256, 28, 28),
    "3b": (480, 28, 28),
    "pool3": (480, 14, 14),
    "4a": (512, 14, 14),
    "4b": (512, 14, 14),
    "4c": (512, 14, 14),
    "4d": (528, 14, 14),
    "4e": (832, 14, 14),
    "pool4": (832, 7, 7),
    "5a": (832, 7, 7),
    "5b": (1024, 7, 7),
}

# Output of every stage at the native size, from the papers' tables and figures
STAGES: dict[str, dict[str, tuple[int, ...]]] = {
    "alexnet": {  # Krizhevsky et al. 2012, figure 2, both cards together, after pooling
        "conv1": (96, 27, 27),
        "conv2": (256, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 6, 6),
        "fc1": (4096,),
        "fc2": (4096,),
    },
    "alexnet_owt": {  # torchvision
        "conv1": (64, 27, 27),
        "conv2": (192, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (256, 13, 13),
        "conv5": (256, 6, 6),
        "fc1": (4096,),
        "fc2": (4096,),
    },
    "alexnet_cifar": {  # ours
        "conv1": (64, 15, 15),
        "conv2": (192, 7, 7),
        "conv3": (384, 7, 7),
        "conv4": (256, 7, 7),
        "conv5": (256, 3, 3),
        "fc1": (1024,),
        "fc2": (1024,),
    },
    "nin_cifar": {"mlpconv1": (96, 16, 16), "mlpconv2": (192, 8, 8), "mlpconv3": (10, 8, 8)},  # the authors' definition
    "nin": {  # the authors' definition
        "mlpconv1": (96, 27, 27),
        "mlpconv2": (256, 13, 13),
        "mlpconv3": (384, 6, 6),
        "mlpconv4": (1000, 6, 6),
    },
    "googlenet": GOOGLENET,
    "googlenet_bn": GOOGLENET,
    "googlenet_cifar": {  # ours: half the channels
        "stem": (96, 16, 16),
        "3a": (128, 16, 16),
        "3b": (240, 16, 16),
        "pool3": (240, 8, 8),
        "4a": (256, 8, 8),
        "4b": (256, 8, 8),
        "4c": (256, 8, 8),
        "4d": (264, 8, 8),
        "4e": (416, 8, 8),
        "pool4": (416, 4, 4),
        "5a": (416, 4, 4),
        "5b": (512, 4, 4),
    },
    "inception_v2": {  # Ioffe and Szegedy 2015, figure 5; channels of 4c and 4d as published
        "stem": (192, 28, 28),
        **{"3a": (256, 28, 28), "3b": (320, 28, 28), "3c": (576, 14, 14)},
        **{"4a": (576, 14, 14), "4b": (576, 14, 14), "4c": (608, 14, 14), "4d": (608, 14, 14), "4e": (1056, 7, 7)},
        **{"5a": (1024, 7, 7), "5b": (1024, 7, 7)},
    },
    "inception_v2_cifar": {  # ours, as the others for small pictures: half the channels
        "stem": (96, 16, 16),
        **{"3a": (128, 16, 16), "3b": (160, 16, 16), "3c": (288, 8, 8)},
        **{"4a": (288, 8, 8), "4b": (288, 8, 8), "4c": (304, 8, 8), "4d": (304, 8, 8), "4e": (528, 4, 4)},
        **{"5a": (512, 4, 4), "5b": (512, 4, 4)},
    },
    "inception_v3": {  # Szegedy et al. 2015, Rethinking, table 1
        "stem": (192, 35, 35),
        **{"5b": (256, 35, 35), "5c": (288, 35, 35), "5d": (288, 35, 35)},
        **{f"6{letter}": (768, 17, 17) for letter in "abcde"},
        **{"7a": (1280, 8, 8), "7b": (2048, 8, 8), "7c": (2048, 8, 8)},
    },
    "inception_v3_cifar": {
        "stem": (96, 15, 15),
        **{"5b": (128, 15, 15), "5c": (144, 15, 15), "5d": (144, 15, 15)},
        **{f"6{letter}": (384, 7, 7) for letter in "abcde"},
        **{"7a": (640, 3, 3), "7b": (1024, 3, 3), "7c": (1024, 3, 3)},
    },
    "inception_v4": {  # Szegedy et al. 2016, figures 3 and 9
        **{"stem": (64, 147, 147), "3a": (160, 73, 73), "4a": (192, 71, 71), "5a": (384, 35, 35)},
        **{f"5{letter}": (384, 35, 35) for letter in "bcde"},
        **{f"6{letter}": (1024, 17, 17) for letter in "abcdefgh"},
        **{f"7{letter}": (1536, 8, 8) for letter in "abcd"},
    },
    "inception_v4_cifar": {
        "stem": (192, 15, 15),
        **{f"5{letter}": (192, 15, 15) for letter in "bcde"},
        **{f"6{letter}": (512, 7, 7) for letter in "abcdefgh"},
        **{f"7{letter}": (768, 3, 3) for letter in "abcd"},
    },
    "inception_resnet_v1": {  # the same, figures 14 and 15
        **{"stem": (256, 35, 35), "5a": (256, 35, 35), "6a": (896, 17, 17), "6b": (896, 17, 17)},
        **{"7a": (1792, 8, 8), "7b": (1792, 8, 8)},
    },
    "inception_resnet_v1_cifar": {
        **{"stem": (128, 15, 15), "5a": (128, 15, 15), "6a": (448, 7, 7), "6b": (448, 7, 7)},
        **{"7a": (896, 3, 3), "7b": (896, 3, 3)},
    },
    "inception_resnet_v2": {  # as published
        **{"stem": (192, 35, 35), "5b": (320, 35, 35), "5c": (320, 35, 35), "6a": (1088, 17, 17), "6b": (1088, 17, 17)},
        **{"7a": (2080, 8, 8), "7b": (2080, 8, 8), "7c": (2080, 8, 8), "7d": (1536, 8, 8)},
    },
    "inception_resnet_v2_cifar": {
        **{"stem": (96, 15, 15), "5b": (160, 15, 15), "5c": (160, 15, 15), "6a": (544, 7, 7), "6b": (544, 7, 7)},
        **{"7a": (1040, 3, 3), "7b": (1040, 3, 3), "7c": (1040, 3, 3), "7d": (768, 3, 3)},
    },
    **{
        name: {"stem": (16, 32, 32), "stage1": (a, 32, 32), "stage2": (2 * a, 16, 16), "stage3": (4 * a, 8, 8)}
        for name, a in {
            "preresnet20": 16,
            "preresnet110": 16,
            "preresnet164": 64,
            "wrn16_2": 32,
            "wrn28_10": 160,
        }.items()
    },  # He et al. 2016, §4 as in 2015; Zagoruyko and Komodakis 2016, table 1
}

# Multiply–adds a pixel of the nine modules of GoogLeNet, by hand, with 5×5 convolutions; and what 3×3 ones save
MODULES_3, MODULES_4, MODULES_5 = (
    163_328 + 388_096,
    375_552 + 448_512 + 509_440 + 604_672 + 867_328,
    1_042_432 + 1_442_816,
)
SAVED_3, SAVED_4, SAVED_5 = 57_344, 159_744, 163_840


def chain(inputs: int, *layers: tuple[int, int]) -> int:
    """Multiply–adds a pixel, and so weights, of one convolution after the other: (outputs, pixels of its kernel)."""
    return sum(i * o * area for i, (o, area) in zip((inputs, *(o for o, _ in layers)), layers, strict=False))


def v2_module(inputs: int, one: int, reduce: int, three: int, reduce2: int, double: int, proj: int) -> int:
    """Ioffe and Szegedy 2015, figure 5; a module that reduces has no 1×1 branches and its strided layers elsewhere."""
    branches = ((one, 1),), ((reduce, 1), (three, 9)), ((reduce2, 1), (double, 9), (double, 9)), ((proj, 1),)
    return sum(chain(inputs, *layers) for layers in branches)


# Of the modules of the Inceptions, from the papers' figures: at the largest maps, at the middle ones, at the smallest
MODULES_OF = {
    "inception_v2": (
        v2_module(192, 64, 64, 64, 64, 96, 32)
        + v2_module(256, 64, 64, 96, 64, 96, 64)
        + chain(320, (128, 1))
        + chain(320, (64, 1), (96, 9)),
        chain(128, (160, 9))
        + chain(96, (96, 9))
        + v2_module(576, 224, 64, 96, 96, 128, 128)
        + v2_module(576, 192, 96, 128, 96, 128, 128)
        + v2_module(576, 160, 128, 160, 128, 160, 128)
        + v2_module(608, 96, 128, 192, 160, 192, 128)
        + chain(608, (128, 1))
        + chain(608, (192, 1), (256, 9)),
        chain(128, (192, 9))
        + chain(256, (256, 9))
        + v2_module(1056, 352, 192, 320, 160, 224, 128)
        + v2_module(1024, 352, 192, 320, 192, 224, 128),
    ),
    "inception_v3": (  # 5b–5d, 6a; 6a, 6b–6e, 7a; 7a–7c
        254_976 + 276_480 + 284_160 + 18_432 + 55_296,
        995_328 + 82_944 + 1_294_336 + 2 * 1_687_552 + 2_138_112 + 811_008,
        884_736 + 5_038_080 + 6_070_272,
    ),
    "inception_v4": (
        4 * (2 * chain(384, (96, 1)) + chain(384, (64, 1), (96, 9)) + chain(384, (64, 1), (96, 9), (96, 9)))
        + chain(384, (192, 1), (224, 9)),
        chain(384, (384, 9))
        + chain(224, (256, 9))
        + 7
        * (
            chain(1024, (384, 1))
            + chain(1024, (192, 1), (224, 7), (256, 7))
            + chain(1024, (192, 1), (192, 7), (224, 7), (224, 7), (256, 7))
            + chain(1024, (128, 1))
        )
        + chain(1024, (192, 1))
        + chain(1024, (256, 1), (256, 7), (320, 7)),
        chain(192, (192, 9))
        + chain(320, (320, 9))
        + 3
        * (
            2 * chain(1536, (256, 1))
            + chain(1536, (384, 1), (512, 3))
            + chain(1536, (384, 1), (448, 3), (512, 3), (512, 3))
        ),
    ),
    "inception_resnet_v1": (
        5 * (3 * 32 * 256 + 3 * 32 * 288 + 96 * 256) + 192 * 256 + 192 * 1728,
        384 * 2304 + 256 * 1728 + 10 * (2 * 128 * 896 + 2 * 128 * 896 + 256 * 896) + 3 * 256 * 896 + 256 * 2304,
        (384 + 256 + 256) * 2304 + 5 * (2 * 192 * 1792 + 2 * 192 * 576 + 384 * 1792),
    ),
    "inception_resnet_v2": (  # as published
        chain(192, (96, 1))
        + chain(192, (48, 1), (64, 25))
        + chain(192, (64, 1), (96, 9), (96, 9))
        + chain(192, (64, 1))
        + 10 * (3 * chain(320, (32, 1)) + chain(32, (32, 9)) + chain(32, (48, 9), (64, 9)) + chain(128, (320, 1)))
        + chain(320, (256, 1), (256, 9)),
        chain(320, (384, 9))
        + chain(256, (384, 9))
        + 20 * (chain(1088, (192, 1)) + chain(1088, (128, 1), (160, 7), (192, 7)) + chain(384, (1088, 1)))
        + 3 * chain(1088, (256, 1))
        + chain(256, (288, 9)),
        chain(256, (384, 9))
        + chain(256, (288, 9))
        + chain(288, (320, 9))
        + 10 * (chain(2080, (192, 1)) + chain(2080, (192, 1), (224, 3), (256, 3)) + chain(448, (2080, 1)))
        + chain(2080, (1536, 1)),
    ),
}
# Stems as (pixels of a side of the map, weights) for each size of map, and the channels of all their layers together
V3_STEM = (149, 32 * 27), (147, 32 * 288 + 64 * 288), (73, 80 * 64), (71, 192 * 720)
V4_STEM = V3_STEM[:2]
V4_STEM += (73, 96 * 576 + 2 * 64 * 160 + 2 * 64 * 64 * 7), (71, 2 * 96 * 576), (35, 192 * 1728)
STEMS = {
    "inception_v2": (((112, 64 * 147), (56, 64 * 64 + 192 * 576)), 64 + 64 + 192),
    "inception_v3": (V3_STEM, 400),
    "inception_v4": (V4_STEM, 128 + 96 + (64 + 96) + (3 * 64 + 96) + 192),
    "inception_resnet_v1": ((*V3_STEM, (35, 256 * 1728)), 400 + 256),
    "inception_resnet_v2": (V3_STEM, 400),
}
LAST = {"inception_v2": 1024, "inception_v3": 2048, "inception_v4": 1536, "inception_resnet_v1": 1792}
LAST["inception_resnet_v2"] = 1536


def small_stem(name: str) -> tuple[tuple[tuple[int, int], ...], int]:
    """The same of the form for small pictures. Its last layer gives half as many channels as the stem of the paper."""
    if name == "inception_v2":
        return ((32, 32 * 27), (16, 32 * 32 + 96 * 288)), 32 + 32 + 96
    last = STAGES[f"{name}_cifar"]["stem"][0]
    return ((32, 16 * 27 + 32 * 144), (15, last * 288)), 16 + 32 + last


def multiply_adds(name: str, stem: tuple[tuple[int, int], ...], sides: tuple[int, int, int], outputs: int) -> int:
    """Of an Inception at its native size, `sides` being those of its maps, or of its half with as few `outputs`."""
    part, last = (1, LAST[name]) if outputs == 1000 else (4, LAST[name] // 2)
    in_modules = sum(side**2 * weights for side, weights in zip(sides, MODULES_OF[name], strict=True)) // part
    return sum(side**2 * weights for side, weights in stem) + in_modules + last * outputs


# Pixels × outputs × inputs of every layer, written from the papers' tables. In brackets: who published the same sum.
MULTIPLY_ADDS = {
    # two groups halve the inputs of conv2, conv4, conv5 [Sze et al. 2017, table II: 724 M, of which 666 M convolutions]
    "alexnet": 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728) + 58_621_952,
    # [torchvision's documentation: 0.71 G]
    "alexnet_owt": 55**2 * 64 * 363 + 27**2 * 192 * 1600 + 13**2 * (384 * 1728 + 256 * 3456 + 256 * 2304) + 58_621_952,
    "alexnet_cifar": 32**2 * 64 * 75 + 15**2 * 192 * 1600 + 7**2 * (384 * 1728 + 256 * 3456 + 256 * 2304) + 3_418_112,
    # [osmr/imgclsmob: 222.97 M, which counts ReLU and pooling too]
    "nin_cifar": 32**2 * (192 * 75 + 160 * 192 + 96 * 160)
    + 16**2 * (192 * 2400 + 2 * 192**2)
    + 8**2 * (192 * 1728 + 192**2 + 10 * 192),
    # [no published sum known; ours from the authors' definition]
    "nin": 54**2 * (96 * 363 + 2 * 96**2)
    + 27**2 * (256 * 2400 + 2 * 256**2)
    + 13**2 * (384 * 2304 + 2 * 384**2)
    + 6**2 * (1024 * 3456 + 1024**2 + 1000 * 1024),
    # [the BVLC's Caffe definition: 1.58 G; the paper's column "ops" sums to 1.50 G, see below]
    "googlenet": 112**2 * 64 * 147
    + 56**2 * (64 * 64 + 192 * 576)
    + 28**2 * MODULES_3
    + 14**2 * MODULES_4
    + 7**2 * MODULES_5
    + 1_024_000,
    # [torchvision's documentation: 1.50 G]
    "googlenet_bn": 112**2 * 64 * 147
    + 56**2 * (64 * 64 + 192 * 576)
    + 28**2 * (MODULES_3 - SAVED_3)
    + 14**2 * (MODULES_4 - SAVED_4)
    + 7**2 * (MODULES_5 - SAVED_5)
    + 1_024_000,
    "googlenet_cifar": 32**2 * 32 * 27
    + 16**2 * (32 * 32 + 96 * 288 + MODULES_3 // 4)
    + 8**2 * MODULES_4 // 4
    + 4**2 * MODULES_5 // 4
    + 5_120,
    # First block of each stage with its projection, then the others; [osmr/imgclsmob: 5,246.98 M with ReLU and norms]
    **{
        f"wrn{depth}_{k}": 1024 * 16 * 27
        + 1024 * (16 * a * 10 + a * a * 9 * (2 * n - 1))
        + 256 * (a * 2 * a * 10 + 4 * a * a * 9 * (2 * n - 1))
        + 64 * (2 * a * 4 * a * 10 + 16 * a * a * 9 * (2 * n - 1))
        + 4 * a * 10
        for depth, k, n, a in ((16, 2, 2, 32), (28, 10, 4, 160), (40, 4, 6, 64))
    },
    # [no published sum with the stride on the 3×3; ours. osmr/imgclsmob's 255 M count normalisation and ReLU too]
    "preresnet164": 1024 * 16 * 27
    + 1024 * (16 * 16 + 16 * 144 + 16 * 64 + 16 * 64 + 17 * (64 * 16 + 16 * 144 + 16 * 64))
    + (1024 * 64 * 32 + 256 * (32 * 288 + 32 * 128 + 64 * 128))
    + 256 * 17 * (128 * 32 + 32 * 288 + 32 * 128)
    + (256 * 128 * 64 + 64 * (64 * 576 + 64 * 256 + 128 * 256))
    + 64 * 17 * (256 * 64 + 64 * 576 + 64 * 256)
    + 2560,
    # [v3: torchvision's documentation: 5.71 G; others below, but no published sum known of Inception-ResNet v1]
    **{
        name: multiply_adds(name, stem, (28, 14, 7) if name == "inception_v2" else (35, 17, 8), 1000)
        for name, (stem, _) in STEMS.items()
    },
    **{
        f"{name}_cifar": multiply_adds(
            name, small_stem(name)[0], (16, 8, 4) if name == "inception_v2" else (15, 7, 3), 10
        )
        for name in STEMS
    },
}
# Sums by others, in millions, which count normalisation and ReLU too: osmr/imgclsmob
PUBLISHED = {
    "inception_v2": 2_048.06,
    "inception_v3": 5_743.06,
    "inception_v4": 12_304.93,
    "inception_resnet_v2": 13_188.64,
    "wrn28_10": 5_246.98,
    "nin_cifar": 222.97,
    "alexnet_owt": 714.83,
}


@pytest.mark.parametrize("name", STAGES)
def test_maps_at_every_stage(name: str) -> None:
    net, table = native(name), entry(name)
    x = torch.empty(1, table.channels, table.native_size, table.native_size, device="meta")
    shapes = {}
    for stage, module in net.stages.items():
        x = module(x)
        shapes[stage] = tuple(x.shape[1:])
    assert shapes == STAGES[name]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_by_hand(name: str) -> None:
    """test_models.py compares the table of networks with what the network does; this compares it with the papers."""
    assert entry(name).million_macs == round(MULTIPLY_ADDS[name] / 1e6, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_just_below_what_others_count(name: str) -> None:
    assert 0.99 * PUBLISHED[name] < entry(name).million_macs < PUBLISHED[name]


# ---------------------------------------------------------------------------------------------------------------------
# Least sizes, and what is of one paper alone
# ---------------------------------------------------------------------------------------------------------------------

# Networks of which some layer has no input left below the least size; the others only have nothing more to shrink
HARD_LEAST = [
    "alexnet",
    "alexnet_owt",
    "alexnet_cifar",
    "nin_cifar",
    "nin",
    "googlenet",
    "googlenet_cifar",
    *(f"inception_{form}{size}" for form in ("v3", "v4", "resnet_v1", "resnet_v2") for size in ("", "_cifar")),
]


@pytest.mark.parametrize("name", HARD_LEAST)
def test_the_least_size_is_the_least(name: str) -> None:
    def run(side: int) -> torch.Tensor:
        x = torch.empty(1, 3, side, side, device="meta")
        for stage in native(name).stages.values():  # without the network's own check
            x = stage(x)
        return native(name).head(x)

    least = entry(name).least_size
    assert run(least).shape == (1, entry(name).classes)
    with pytest.raises(RuntimeError, match=r"too small|greater than"):
        run(least - 1)


@pytest.mark.parametrize("name", ["googlenet_bn", "inception_v2", "inception_v2_cifar"])
def test_below_the_least_size_some_stage_has_nothing_to_shrink(name: str) -> None:
    def shrinking(side: int) -> list[str]:
        x, found = torch.empty(1, 3, side, side, device="meta"), []
        for stage, module in native(name).stages.items():
            x, before = module(x), x
            found += [stage] if x.shape[-1] < before.shape[-1] else []
        return found

    least = entry(name).least_size
    assert shrinking(least) == shrinking(224)
    assert len(shrinking(least - 1)) < len(shrinking(224))


def test_response_normalisation_is_the_papers_formula() -> None:
    """Krizhevsky et al. 2012, §3.3: b_i = a_i / (2 + 1e-4 · Σ a_j²)^.75 over the channels i-2 … i+2."""
    norm = native("alexnet").stages["conv1"].get_submodule("norm")
    a = 100 * torch.randn(2, 7, 3, 3, dtype=torch.float64)
    b = np.empty(a.shape)
    for i in range(7):
        squares = a[:, max(0, i - 2) : i + 3].square().sum(1).numpy()
        b[:, i] = a[:, i].numpy() / (2 + 1e-4 * squares) ** 0.75
    np.testing.assert_allclose(norm(a).numpy(), b, rtol=1e-12)


def test_alexnet_2012_starts_as_the_paper_says() -> None:
    net = small("alexnet", width=12)
    layers = {key: m for key, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert [m.groups for m in layers.values() if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 2]
    ones = [key.split(".")[1] for key, m in layers.items() if m.bias is not None and bool((m.bias == 1).all())]
    assert ones == ["conv2", "conv4", "conv5", "fc1", "fc2"]
    assert all(m.weight.std().item() == pytest.approx(0.01, rel=0.3) for m in layers.values())


def test_network_in_network_has_no_fully_connected_layer_and_two_dropouts() -> None:
    net = native("nin_cifar")
    assert not any(isinstance(m, nn.Linear) for m in net.modules())
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert [m.kernel_size[0] for m in net.modules() if isinstance(m, nn.Conv2d)] == [5, 1, 1, 5, 1, 1, 3, 1, 1]
    net = small("nin_cifar").eval()
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(net(images).logits, net.features(images, "mlpconv3").mean((2, 3)))
    assert bool((net(images).logits < 0).any())  # no ReLU after the maps of the classes


def test_googlenet_modules_cost_what_table_1_says() -> None:
    """Column "ops", in millions. It is rounded, and 5a is 5 % more there than the numbers beside it give.

    Its 34 million for the first convolution are not compared: 64 kernels 7×7×3 at 112×112 places are 118 million.
    """
    ops = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5a": 54, "5b": 71}
    for stage, millions in ops.items():
        weights = sum(m.weight.numel() for m in native("googlenet").stages[stage].modules() if isinstance(m, nn.Conv2d))
        assert weights * GOOGLENET[stage][1] ** 2 / 1e6 == pytest.approx(millions, rel=0.06 if stage == "5a" else 0.01)


def test_auxiliary_heads_of_googlenet() -> None:
    """Szegedy et al. 2014, §5: at 4a and 4d; 14×14 maps become 4×4, then 128 channels, 1024 units, dropout .7."""
    for name, without in (("googlenet", 6_998_552), ("googlenet_bn", 6_624_904), ("googlenet_cifar", 1_502_490)):
        with torch.device("meta"):
            assert sum(p.numel() for p in build(name, entry(name).classes, aux=False).parameters()) == without
    net = native("googlenet")
    assert list(net.aux) == ["4a", "4d"]
    for stage, channels in (("4a", 512), ("4d", 528)):
        x, shapes = torch.empty(1, channels, 14, 14, device="meta"), []
        for part in net.aux[stage].children():
            x = part(x)
            shapes.append(tuple(x.shape[1:]))
        assert shapes == [(channels, 4, 4), (128, 4, 4), (2048,), (1024,), (1024,), (1024,), (1000,)]
    maps = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(net.aux["4a"].get_submodule("pool")(maps), F.avg_pool2d(maps, 5, 3))
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.4, 0.7, 0.7]


def test_three_losses_are_summed_with_their_weights() -> None:
    """The paper's .3 and .3 for 4a and 4d, in that order."""
    net, targets = small("googlenet_cifar").train(), torch.eye(3)[[0, 1, 2, 0]]
    output = net(torch.randn(4, 3, 8, 8))
    losses = [F.cross_entropy(logits, targets) for logits in (output.logits, *output.aux)]
    torch.testing.assert_close(
        compare(output, targets, CrossEntropy(aux_weights=(0.3, 0.2)))[0],
        losses[0] + 0.3 * losses[1] + 0.2 * losses[2],
    )


def test_naive_module_grows_and_the_reduced_one_does_not() -> None:
    """Szegedy et al. 2014, figure 2, with the sizes of 3a and 3b: pooling hands on all channels that come in."""
    with torch.device("meta"):
        x = naive = reduced = torch.empty(1, 192, 28, 28)
        macs = []
        for name in ("3a", "3b"):
            one, _, three, _, five, _ = row = MODULES[name]
            modules = inception_naive(naive.shape[1], (one, three, five)), inception(reduced.shape[1], row)
            macs.append(
                [sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d)) for module in modules]
            )
            naive, reduced = modules[0](naive), modules[1](reduced)
    assert naive.shape[1] == 192 + (64 + 128 + 32) + (128 + 192 + 96) and reduced.shape[1] == 480
    assert x.shape[-2:] == naive.shape[-2:] == reduced.shape[-2:]
    assert macs == [[192 * (64 + 128 * 9 + 32 * 25), 163_328], [416 * (128 + 192 * 9 + 96 * 25), 388_096]]


def test_preactivation_is_the_papers() -> None:
    """He et al. 2016, eq. 5 and the appendix, written out for one stage after the other."""
    net = small("preresnet20", shortcut="B").eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.3)  # pyright: ignore[reportArgumentType]
    p = net.state_dict()

    def activated(x: torch.Tensor, key: str) -> torch.Tensor:
        values = (p[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *values))

    images = torch.randn(2, 3, 8, 8)
    x = activated(F.conv2d(images, p["stages.stem.0.weight"], padding=1), "stages.stem.1")
    for stage in (1, 2, 3):
        for i in range(3):
            key, changes = f"stages.stage{stage}.{i}", stage > 1 and i == 0
            a = x if stage == 1 and i == 0 else activated(x, f"{key}.before.0")
            b = F.conv2d(a, p[f"{key}.body.0.0.weight"], stride=2 if changes else 1, padding=1)
            b = F.conv2d(activated(b, f"{key}.body.0.1"), p[f"{key}.body.1.weight"], padding=1)
            x = b + (F.conv2d(a, p[f"{key}.shortcut.weight"], stride=2) if changes else x)
    torch.testing.assert_close(net.features(images, "stage3"), activated(x, "stages.stage3.3.0"))


def test_wide_and_preactivation_variants() -> None:
    def params(name: str, **options_: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(name, 10, **options_).parameters())

    # projections add 16·32 and 32·64 values; osmr/imgclsmob has the sums
    assert params("preresnet20", shortcut="B") == 272_282 and params("preresnet56", shortcut="B") == 855_578
    assert params("preresnet110", shortcut="B") == 1_730_522
    assert params("wrn16_10") == entry("wrn16_10").params == 17_116_634  # the same source; table 4: 17.1 million
    assert params("wrn40_8") == entry("wrn40_8").params == 35_748_314
    for name, millions in {"wrn16_8": 11.0, "wrn22_8": 17.2, "wrn40_1": 0.6, "wrn40_2": 2.2, "wrn40_4": 8.9}.items():
        assert round(entry(name).params / 1e6, 1) == millions
    drops = [m for m in small("wrn16_2", dropout=0.3).modules() if isinstance(m, nn.Dropout) and m.p == 0.3]
    assert len(drops) == 6  # one a block


@pytest.mark.parametrize("name", STEMS)
def test_small_inceptions_are_the_published_ones_of_half_the_width(name: str) -> None:
    """Weights by hand; what is left of the published count are normalisations and biases, which go with the width."""
    modules, last = sum(MODULES_OF[name]), LAST[name]
    stem, channels = STEMS[name]
    without = {"aux": False} if name == "inception_v3" else {}
    rest = 23_834_568 if without else entry(name).params
    rest -= sum(weights for _, weights in stem) + 2 * channels + modules + 1000 * (last + 1)
    stem, channels = small_stem(name)
    expected = sum(weights for _, weights in stem) + 2 * channels + modules // 4 + rest // 2 + 10 * (last // 2 + 1)
    with torch.device("meta"):
        small_one = build(f"{name}_cifar", 10, **without)
    assert sum(p.numel() for p in small_one.parameters()) == expected


def test_auxiliary_head_of_inception_v3() -> None:
    """Szegedy et al. 2015, figure 8: after the last 17×17 maps."""
    with torch.device("meta"):
        assert sum(p.numel() for p in build("inception_v3", 1000, aux=False).parameters()) == 23_834_568
    assert list(native("inception_v3").aux) == ["6e"]
    maps = torch.empty(1, 768, 17, 17, device="meta")
    shapes = []
    for part in native("inception_v3").aux["6e"].children():
        maps = part(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(768, 5, 5), (128, 5, 5), (768, 1, 1), (768,), (1000,)]


def test_reducing_pool_meets_the_convolution_beside_it_at_any_size() -> None:
    for side in (1, 2, 7, 8, 28):
        x = torch.randn(1, 2, side, side)
        pooled = ReducingPool()(x)
        assert pooled.shape[-1] == F.conv2d(x, torch.ones(1, 2, 3, 3), stride=2, padding=1).shape[-1]
        assert torch.equal(pooled[..., -1, 0], x[..., 2 * (pooled.shape[-1] - 1) :, :3].amax((2, 3)))
    x = torch.randn(1, 2, 28, 28)
    assert torch.equal(ReducingPool()(x), F.max_pool2d(x, 3, 2, ceil_mode=True))


def test_residual_modules_of_inception_are_scaled() -> None:
    counts = {"inception_resnet_v1": (5, 10, 5), "inception_resnet_v2": (10, 20, 9, 1)}
    scales = {"inception_resnet_v1": (0.17, 0.1, 0.2), "inception_resnet_v2": (0.17, 0.1, 0.2, 1.0)}
    for name in counts:
        blocks = [m for m in native(name).modules() if isinstance(m, ScaledResidual)]
        expected = [s for count, s in zip(counts[name], scales[name], strict=True) for _ in range(count)]
        assert [block.scale for block in blocks] == expected
    x, body = torch.randn(1, 2, 3, 3), nn.Conv2d(2, 2, 1)
    torch.testing.assert_close(ScaledResidual(body, 0.2)(x), (x + 0.2 * body(x)).clamp_min(0))
