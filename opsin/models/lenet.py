"""The two LeNets: that of 1998, and that of the tutorials (the chapter's figure 5)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from opsin.errors import UsageError
from opsin.models.convnet import ConvNet
from opsin.models.layers import ActivationName, initialize, make_activation

LEAST_SIZE = 16  # 16 → 12 → 6 → 2 → 1: below it, nothing is left after the second pooling


def lenet5(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    activation: ActivationName = "tanh",
    image_size: tuple[int, int] = (32, 32),
) -> ConvNet:
    """LeNet-5, LeCun et al. 1998, "Gradient-based learning applied to document recognition", figure 2.

    Native input 1×32×32, 61,706 parameters. `image_size` (H, W), at least 16×16, sets the size of C5; only that size
    is taken. As in most of its descendants, S2 and S4 average without trainable coefficients, every map of C3 sees
    every map of S2 (not table I), and a linear layer replaces the radial basis functions; tanh is not scaled.
    """
    h, w = _after_two_poolings(image_size)
    net = ConvNet(
        {
            "conv1": _conv_pool(in_channels, 6, activation, nn.AvgPool2d(2)),  # C1, S2: [B,  6, 14, 14]
            "conv2": _conv_pool(6, 16, activation, nn.AvgPool2d(2)),  # C3, S4: [B, 16, 5, 5]
            "fc1": _fc(16 * h * w, 120, activation, flatten=True),  # C5
            "fc2": _fc(120, 84, activation),  # F6
        },
        head=nn.Linear(84, num_classes),
        least_size=LEAST_SIZE,
        image_size=image_size,
    )
    initialize(net, conv="lecun", linear="lecun")
    return net


def lenet(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    activation: ActivationName = "relu",
    image_size: tuple[int, int] = (28, 28),
) -> ConvNet:
    """The chapter's figure 5, from the deeplearning.net tutorial: 20 and 50 kernels 5×5, max pooling, 500 units.

    Native input 1×28×28, 431,080 parameters. `image_size` (H, W), at least 16×16, sets the size of the
    fully-connected layer; only that size is taken. The weights start as PaddlePaddle v2 drew them:
    convolutions √(2 / fan-in), fully-connected layers √(1 / fan-in), biases 0.
    """
    h, w = _after_two_poolings(image_size)
    net = ConvNet(
        {
            "conv1": _conv_pool(in_channels, 20, activation, nn.MaxPool2d(2)),  # [B, 20, 12, 12]
            "conv2": _conv_pool(20, 50, activation, nn.MaxPool2d(2)),  # [B, 50, 4, 4]
            "fc1": _fc(50 * h * w, 500, activation, flatten=True),
        },
        head=nn.Linear(500, num_classes),
        least_size=LEAST_SIZE,
        image_size=image_size,
    )
    initialize(net, conv="he_in", linear="lecun")
    return net


def _after_two_poolings(image_size: tuple[int, int]) -> tuple[int, int]:
    if min(image_size) < LEAST_SIZE:
        raise UsageError(
            f"image_size: expected at least {LEAST_SIZE}×{LEAST_SIZE} pixels, received {image_size[0]}×{image_size[1]}"
        )
    h, w = (((side - 4) // 2 - 4) // 2 for side in image_size)
    return h, w


def _conv_pool(in_channels: int, out_channels: int, act: str, pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](conv=nn.Conv2d(in_channels, out_channels, 5), act=make_activation(act), pool=pool)
    )


def _fc(in_features: int, out_features: int, act: str, *, flatten: bool = False) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module](linear=nn.Linear(in_features, out_features), act=make_activation(act))
    return nn.Sequential(OrderedDict[str, nn.Module](flatten=nn.Flatten()) | parts if flatten else parts)
