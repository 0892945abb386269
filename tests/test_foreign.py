"""Published networks written out in functions from their figures, on weights under the publishers' names.

What they answer is what our networks answer once `translate` has put the same tensors into them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opsin.models import build
from opsin.models.weights import load_into
from tests import make

Weights = dict[str, Tensor]
Network = Callable[[Weights, Tensor], Tensor]


def foreign(file: str, narrow: bool = False) -> Weights:
    """Random weights of which every layer keeps the size of its input, and running statistics that do something.

    narrow: of VGG, with 8 channels in the first block for 64, and 64 units for 4096.
    """
    weights = Weights()
    for key, shape in make.listed(file).items():
        if narrow:
            shape = tuple({3: 3, 7: 7, 1: 1, 4096: 64, 1000: 1000}.get(n, n // 8) for n in shape)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(1)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            weights[key] = torch.rand(shape) + 0.5
        else:
            inputs = torch.Size(shape[1:]).numel()
            weights[key] = torch.randn(shape) * ((2 / inputs) ** 0.5 if len(shape) > 1 else 0.1)
    return weights


def norm(p: Weights, x: Tensor, key: str, eps: float) -> Tensor:
    """Batch normalisation by running statistics."""
    mean, variance, scale, shift = (p[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, scale, shift, eps=eps)


def unit(p: Weights, x: Tensor, key: str, stride: int = 1, pad: bool = True) -> Tensor:
    """Convolution, batch normalisation with ε .001, ReLU."""
    weight = p[f"{key}.conv.weight"]
    padding = (weight.shape[2] // 2, weight.shape[3] // 2) if pad else 0
    return F.relu(norm(p, F.conv2d(x, weight, stride=stride, padding=padding), f"{key}.bn", 1e-3))


def mean_and_linear(p: Weights, x: Tensor, key: str) -> Tensor:
    return F.linear(x.mean((2, 3)), p[f"{key}.weight"], p[f"{key}.bias"])


# ---------------------------------------------------------------------------------------------------------------------
# torchvision's
# ---------------------------------------------------------------------------------------------------------------------


def features_of_vgg16(p: Weights, x: Tensor) -> Tensor:
    """Simonyan and Zisserman 2014, table 1, column D, without what follows the last pooling."""
    place = 0
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = F.relu(F.conv2d(x, p[f"features.{place}.weight"], p[f"features.{place}.bias"], padding=1))
            place += 2
        x = F.max_pool2d(x, 2)
        place += 1
    return x


def vgg16_by_hand(p: Weights, x: Tensor) -> Tensor:
    x = F.adaptive_avg_pool2d(features_of_vgg16(p, x), 7).flatten(1)
    for place in (0, 3):
        x = F.relu(F.linear(x, p[f"classifier.{place}.weight"], p[f"classifier.{place}.bias"]))
    return F.linear(x, p["classifier.6.weight"], p["classifier.6.bias"])


def resnet50_by_hand(p: Weights, x: Tensor) -> Tensor:
    """He et al. 2015, table 1 and figure 5; the 3×3 convolution has the stride."""

    def layer(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = p[f"{conv}.weight"]
        return norm(p, F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2), bn, 1e-5)

    x = F.max_pool2d(F.relu(layer(x, "conv1", "bn1", 2)), 3, 2, 1)
    for number, count in enumerate((3, 4, 6, 3), 1):
        for block in range(count):
            key, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
            y = F.relu(layer(x, f"{key}.conv1", f"{key}.bn1"))
            y = F.relu(layer(y, f"{key}.conv2", f"{key}.bn2", stride))
            y = layer(y, f"{key}.conv3", f"{key}.bn3")
            x = F.relu(y + (x if block else layer(x, f"{key}.downsample.0", f"{key}.downsample.1", stride)))
    return mean_and_linear(p, x, "fc")


def units(p: Weights, x: Tensor, key: str, count: int) -> Tensor:
    for i in range(count):
        x = unit(p, x, f"{key}_{i + 1}")
    return x


def googlenet_by_hand(p: Weights, x: Tensor) -> Tensor:
    """Szegedy et al. 2014, figure 3, with torchvision's 3×3 for 5×5 and its last pooling of 2×2."""
    x = F.max_pool2d(unit(p, x, "conv1", 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit(p, unit(p, x, "conv2"), "conv3"), 3, 2, ceil_mode=True)
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if module in ("4a", "5a"):
            x = F.max_pool2d(x, 3 if module == "4a" else 2, 2, ceil_mode=True)
        key = f"inception{module}"
        two, three = (unit(p, unit(p, x, f"{key}.branch{i}.0"), f"{key}.branch{i}.1") for i in (2, 3))
        four = unit(p, F.max_pool2d(x, 3, 1, 1), f"{key}.branch4.1")
        x = torch.cat((unit(p, x, f"{key}.branch1"), two, three, four), 1)
    return mean_and_linear(p, x, "fc")


def inception_v3_by_hand(p: Weights, x: Tensor) -> Tensor:
    """Szegedy et al. 2015, Rethinking, table 1 and figures 5, 6, 7 and 10."""
    x = unit(p, unit(p, x, "Conv2d_1a_3x3", 2, False), "Conv2d_2a_3x3", 1, False)
    x = F.max_pool2d(unit(p, x, "Conv2d_2b_3x3"), 3, 2)
    x = F.max_pool2d(unit(p, unit(p, x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", 1, False), 3, 2)
    for key in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five, three = units(p, x, f"{key}.branch5x5", 2), units(p, x, f"{key}.branch3x3dbl", 3)
        x = torch.cat((unit(p, x, f"{key}.branch1x1"), five, three, pooled(p, x, key)), 1)
    double = unit(p, units(p, x, "Mixed_6a.branch3x3dbl", 2), "Mixed_6a.branch3x3dbl_3", 2, False)
    x = torch.cat((unit(p, x, "Mixed_6a.branch3x3", 2, False), double, F.max_pool2d(x, 3, 2)), 1)
    for key in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        once, twice = units(p, x, f"{key}.branch7x7", 3), units(p, x, f"{key}.branch7x7dbl", 5)
        x = torch.cat((unit(p, x, f"{key}.branch1x1"), once, twice, pooled(p, x, key)), 1)
    three = unit(p, units(p, x, "Mixed_7a.branch3x3", 1), "Mixed_7a.branch3x3_2", 2, False)
    seven = unit(p, units(p, x, "Mixed_7a.branch7x7x3", 3), "Mixed_7a.branch7x7x3_4", 2, False)
    x = torch.cat((three, seven, F.max_pool2d(x, 3, 2)), 1)
    for key in ("Mixed_7b", "Mixed_7c"):
        once, twice = units(p, x, f"{key}.branch3x3", 1), units(p, x, f"{key}.branch3x3dbl", 2)
        forks = [unit(p, once, f"{key}.branch3x3_2{fork}") for fork in "ab"]
        forks += [unit(p, twice, f"{key}.branch3x3dbl_3{fork}") for fork in "ab"]
        x = torch.cat((unit(p, x, f"{key}.branch1x1"), *forks, pooled(p, x, key)), 1)
    return mean_and_linear(p, x, "fc")


def pooled(p: Weights, x: Tensor, key: str) -> Tensor:
    return unit(p, F.avg_pool2d(x, 3, 1, 1), f"{key}.branch_pool")


# ---------------------------------------------------------------------------------------------------------------------
# timm's, where they have other names than torchvision's
# ---------------------------------------------------------------------------------------------------------------------


def timm_vgg16_by_hand(p: Weights, x: Tensor) -> Tensor:
    """Fully-connected layers as convolutions."""
    x = features_of_vgg16(p, x)
    for key in ("pre_logits.fc1", "pre_logits.fc2"):
        x = F.relu(F.conv2d(x, p[f"{key}.weight"], p[f"{key}.bias"]))
    return mean_and_linear(p, x, "head.fc")


def row(p: Weights, x: Tensor, key: str, count: int) -> Tensor:
    for i in range(count):
        x = unit(p, x, f"{key}.{i}")
    return x


def averaged(p: Weights, x: Tensor, key: str) -> Tensor:
    return unit(p, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), f"{key}.branch3.1")


def reduced(p: Weights, x: Tensor, key: str, *counts: int) -> Tensor:
    """Branches of so many layers, the last one with stride 2 and unpadded, and maximum pooling."""
    parts = []
    for branch, count in enumerate(counts):
        name = f"{key}.branch{branch}"
        last = f"{name}.{count - 1}" if count > 1 else name
        parts.append(unit(p, row(p, x, name, count - 1), last, 2, False))
    return torch.cat((*parts, F.max_pool2d(x, 3, 2)), 1)


def inception_v4_by_hand(p: Weights, x: Tensor) -> Tensor:
    """Szegedy et al. 2016, figures 3–9; in the first mixed layer timm has the pooling before the convolution."""
    x = unit(p, unit(p, unit(p, x, "features.0", 2, False), "features.1", 1, False), "features.2")
    x = torch.cat((F.max_pool2d(x, 3, 2), unit(p, x, "features.3.conv", 2, False)), 1)
    first, second = row(p, x, "features.4.branch0", 1), row(p, x, "features.4.branch1", 3)
    ends = unit(p, first, "features.4.branch0.1", 1, False), unit(p, second, "features.4.branch1.3", 1, False)
    x = torch.cat(ends, 1)
    x = torch.cat((unit(p, x, "features.5.conv", 2, False), F.max_pool2d(x, 3, 2)), 1)
    for place in range(6, 18):
        key = f"features.{place}"
        if place == 10:
            x = reduced(p, x, key, 1, 3)
            continue
        once, twice = (2, 3) if place < 10 else (3, 5)
        branches = row(p, x, f"{key}.branch1", once), row(p, x, f"{key}.branch2", twice)
        x = torch.cat((unit(p, x, f"{key}.branch0"), *branches, averaged(p, x, key)), 1)
    x = reduced(p, x, "features.18", 2, 4)
    for place in (19, 20, 21):
        key = f"features.{place}"
        once, twice = unit(p, x, f"{key}.branch1_0"), unit(p, x, f"{key}.branch2_0")
        twice = unit(p, unit(p, twice, f"{key}.branch2_1"), f"{key}.branch2_2")
        forks = [unit(p, once, f"{key}.branch1_1{fork}") for fork in "ab"]
        forks += [unit(p, twice, f"{key}.branch2_3{fork}") for fork in "ab"]
        x = torch.cat((unit(p, x, f"{key}.branch0"), *forks, averaged(p, x, key)), 1)
    return mean_and_linear(p, x, "last_linear")


def inception_resnet_v2_by_hand(p: Weights, x: Tensor) -> Tensor:
    """Szegedy et al. 2016, as its authors published it."""

    def residual(x: Tensor, key: str, scale: float, *counts: int) -> Tensor:
        branches = [row(p, x, f"{key}.branch{branch}", count) for branch, count in enumerate(counts, 1)]
        mixed = torch.cat((unit(p, x, f"{key}.branch0"), *branches), 1)
        return x + scale * F.conv2d(mixed, p[f"{key}.conv2d.weight"], p[f"{key}.conv2d.bias"])

    x = unit(p, unit(p, x, "conv2d_1a", 2, False), "conv2d_2a", 1, False)
    x = F.max_pool2d(unit(p, x, "conv2d_2b"), 3, 2)
    x = F.max_pool2d(unit(p, unit(p, x, "conv2d_3b"), "conv2d_4a", 1, False), 3, 2)
    branches = row(p, x, "mixed_5b.branch1", 2), row(p, x, "mixed_5b.branch2", 3)
    x = torch.cat((unit(p, x, "mixed_5b.branch0"), *branches, averaged(p, x, "mixed_5b")), 1)
    for i in range(10):
        x = F.relu(residual(x, f"repeat.{i}", 0.17, 2, 3))
    x = reduced(p, x, "mixed_6a", 1, 3)
    for i in range(20):
        x = F.relu(residual(x, f"repeat_1.{i}", 0.1, 3))
    x = reduced(p, x, "mixed_7a", 2, 2, 3)
    for i in range(9):
        x = F.relu(residual(x, f"repeat_2.{i}", 0.2, 3))
    x = unit(p, residual(x, "block8", 1.0, 3), "conv2d_7b")
    return mean_and_linear(p, x, "classif")


# ---------------------------------------------------------------------------------------------------------------------
# Compared
# ---------------------------------------------------------------------------------------------------------------------


def compare(file: str, by_hand: Network, side: int, **options: Any) -> None:
    """Logits of two pictures: |a − b| ≤ 1e-4 · max |b|."""
    name = file.split("_", 1)[1]
    weights, images = foreign(file, narrow=bool(options)), torch.randn(2, 3, side, side)
    net = build(name, 1000, **options).eval()
    load_into(net, weights, name)
    with torch.no_grad():
        ours, expected = net(images).logits, by_hand(weights, images)
    assert expected.std() > 0.05 and (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("file", "by_hand", "side"),
    [
        ("torchvision_vgg16", vgg16_by_hand, 64),
        ("torchvision_resnet50", resnet50_by_hand, 64),
        ("torchvision_googlenet_bn", googlenet_by_hand, 79),
        ("torchvision_inception_v3", inception_v3_by_hand, 107),
        ("timm_vgg16", timm_vgg16_by_hand, 224),
        ("timm_inception_v4", inception_v4_by_hand, 107),
        ("timm_inception_resnet_v2", inception_resnet_v2_by_hand, 107),
    ],
)
def test_published_weights_give_the_logits_that_the_papers_figures_give(file: str, by_hand: Network, side: int) -> None:
    compare(file, by_hand, side, **({"width": 8, "hidden": 64} if "vgg" in file else {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "by_hand", "side"),
    [
        ("torchvision_vgg16", vgg16_by_hand, 224),
        ("torchvision_resnet50", resnet50_by_hand, 224),
        ("torchvision_googlenet_bn", googlenet_by_hand, 224),
        ("torchvision_inception_v3", inception_v3_by_hand, 299),
        ("timm_vgg16", timm_vgg16_by_hand, 224),
        ("timm_inception_v4", inception_v4_by_hand, 299),
        ("timm_inception_resnet_v2", inception_resnet_v2_by_hand, 299),
    ],
)
def test_the_same_at_native_width_and_size(file: str, by_hand: Network, side: int) -> None:
    start = time.perf_counter()
    compare(file, by_hand, side)
    print(f"{file}: 2 pictures of {side}×{side}, seed 0, {time.perf_counter() - start:.1f} s")
