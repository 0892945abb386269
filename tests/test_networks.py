"""What the papers say about their networks: maps at every stage, multiply–adds, and the parts that are theirs alone.

Sizes, names, gradients and least sizes of all networks are in test_models.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from opsin.models import entry
from tests.test_models import native, small

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
}

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


# Networks of which some layer has no input left below the least size; the others only have nothing more to shrink
HARD_LEAST = ["alexnet", "alexnet_owt", "alexnet_cifar", "nin_cifar", "nin"]


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
