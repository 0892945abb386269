"""The chapter's components against slow float64 versions written here, gradients by central differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opsin.errors import UsageError
from opsin.loss import compare
from opsin.models.layers import (
    ACTIVATIONS,
    Residual,
    ZeroPadShortcut,
    at_least,
    conv_bn,
    initialize,
    linear_head,
    make_activation,
)
from opsin.recipe import CrossEntropy
from opsin.types import Output

Array = NDArray[np.float64]
STEP = 1e-5


def agree(
    ours: Callable[..., Tensor], slow: Callable[..., Array], *inputs: Array, rtol: float = 1e-7, atol: float = 1e-8
) -> None:
    """Values, and gradients of a random weighting of them with respect to every input; in float64 and float32."""
    expected = slow(*inputs)
    weighting = np.random.default_rng(1).normal(size=expected.shape)
    gradients = []
    for which, array in enumerate(inputs):
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = [a.copy() for a in inputs]
                moved[which][place] += sign * STEP
                sides.append((slow(*moved) * weighting).sum())
            gradient[place] = (sides[0] - sides[1]) / (2 * STEP)
        gradients.append(gradient)

    for dtype, loose in ((torch.float64, 1.0), (torch.float32, 1e3)):
        tensors = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in inputs]
        out = ours(*(t.clone() for t in tensors))  # a clone: our activations may work in place
        assert out.dtype == dtype
        np.testing.assert_allclose(out.detach().numpy(), expected, rtol=rtol * loose, atol=atol * loose)
        (out * torch.tensor(weighting, dtype=dtype)).sum().backward()
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert tensor.grad is not None
            np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-6 * loose, atol=1e-7 * loose)


def normal(*size: int, seed: int = 0) -> Array:
    """Random numbers, none of them within 1e-3 of zero or of one another: kinks stay away from the differences."""
    count = math.prod(size)
    generator = np.random.default_rng(seed)
    values = generator.normal(size=count)
    order = np.argsort(values)
    spread = np.sort(values) + 2e-3 * np.arange(count)
    spread += np.where(spread >= 0, 2e-3, -2e-3)
    values[order] = spread
    return values.reshape(size)


# ---------------------------------------------------------------------------------------------------------------------
# Convolution and pooling
# ---------------------------------------------------------------------------------------------------------------------


def slow_convolution(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    batch, channels, height, width = x.shape
    filters, _, kh, kw = weight.shape
    out_h, out_w = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    out = np.zeros((batch, filters, out_h, out_w))
    for b, f, i, j in np.ndindex(out.shape):
        total = bias[f]
        for c, u, v in product(range(channels), range(kh), range(kw)):
            row, column = i * stride + u - padding, j * stride + v - padding
            if 0 <= row < height and 0 <= column < width:
                total += x[b, c, row, column] * weight[f, c, u, v]
        out[b, f, i, j] = total
    return out


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_convolution(kernel: int, stride: int, padding: int) -> None:
    layer = nn.Conv2d(2, 3, kernel, stride, padding=padding)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    def slow(x: Array, weight: Array, bias: Array) -> Array:
        return slow_convolution(x, weight, bias, stride, padding)

    agree(ours, slow, normal(1, 2, 5, 4), normal(3, 2, kernel, kernel, seed=2), normal(3, seed=3))


def slow_pooling(x: Array, kernel: int, stride: int, reduce: Callable[[Array], float]) -> Array:
    batch, channels, height, width = x.shape
    out = np.zeros((batch, channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1))
    for b, c, i, j in np.ndindex(out.shape):
        out[b, c, i, j] = reduce(x[b, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel])
    return out


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
def test_max_pooling(kernel: int, stride: int) -> None:
    """An odd side loses its last row, as in our networks."""
    agree(nn.MaxPool2d(kernel, stride), lambda x: slow_pooling(x, kernel, stride, np.max), normal(2, 2, 5, 7))


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
def test_average_pooling(kernel: int, stride: int) -> None:
    agree(nn.AvgPool2d(kernel, stride), lambda x: slow_pooling(x, kernel, stride, np.mean), normal(2, 2, 5, 7))


def test_linear_head_is_global_average_and_fully_connected() -> None:
    head = linear_head(3, 4, dropout=0.5).eval()  # in use, dropout does nothing

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(head, {"linear.weight": weight, "linear.bias": bias}, (x,))

    def slow(x: Array, weight: Array, bias: Array) -> Array:
        return slow_linear(x.mean(axis=(2, 3)), weight, bias)

    agree(ours, slow, normal(2, 3, 2, 4), normal(4, 3, seed=2), normal(4, seed=3))


# ---------------------------------------------------------------------------------------------------------------------
# Fully-connected layer, activations, dropout
# ---------------------------------------------------------------------------------------------------------------------


def slow_linear(x: Array, weight: Array, bias: Array) -> Array:
    out = np.zeros((len(x), len(weight)))
    for b, k in np.ndindex(out.shape):
        out[b, k] = bias[k] + sum(x[b, d] * weight[k, d] for d in range(x.shape[1]))
    return out


def test_fully_connected() -> None:
    layer = nn.Linear(4, 3)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    agree(ours, slow_linear, normal(2, 4), normal(3, 4, seed=2), normal(3, seed=3))


SLOW_ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: x if x > 0 else 0.0,
    "tanh": lambda x: (math.exp(x) - math.exp(-x)) / (math.exp(x) + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "prelu": lambda x: x if x > 0 else 0.25 * x,  # the slope starts at .25, He et al. 2015 §2.1
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    def ours(x: Tensor) -> Tensor:
        return make_activation(name).to(x.dtype)(x)

    def slow(x: Array) -> Array:
        return np.array([SLOW_ACTIVATIONS[name](value) for value in x.ravel().tolist()]).reshape(x.shape)

    agree(ours, slow, 2 * normal(3, 7))


def test_prelu_learns_its_slope() -> None:
    x, slope = normal(3, 4), np.array([0.3])
    layer = make_activation("prelu")

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    agree(ours, lambda x, weight: np.where(x > 0, x, weight[0] * x), x, slope)


def test_an_unknown_activation_names_the_near_ones() -> None:
    with pytest.raises(UsageError, match="activation: no 'reul'; did you mean relu"):
        make_activation("reul")


def test_dropout() -> None:
    """A value is zero with probability p and else divided by 1 - p; the gradient has the same mask; none in use."""
    layer, p = nn.Dropout(0.3), 0.3
    x = torch.tensor(normal(200, 50), requires_grad=True)
    out = layer.train()(x)
    kept = out != 0
    expected = np.where(kept.numpy(), x.detach().numpy() / (1 - p), 0)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-12)
    share = kept.double().mean().item()
    assert share == pytest.approx(1 - p, abs=4 * math.sqrt(p * (1 - p) / 10_000))
    columns = kept.double().mean(0)  # no column is favoured
    assert (columns - (1 - p)).abs().max() < 5 * math.sqrt(p * (1 - p) / 200)
    out.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), kept.numpy() / (1 - p), rtol=1e-12)
    assert torch.equal(layer.eval()(x), x)


# ---------------------------------------------------------------------------------------------------------------------
# Batch normalisation
# ---------------------------------------------------------------------------------------------------------------------


def slow_batch_norm(x: Array, scale: Array, shift: Array, mean: Array | None = None, var: Array | None = None) -> Array:
    """Ioffe and Szegedy 2015, algorithm 1: each channel over the batch and the map, with the biased variance."""
    out = np.zeros_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].ravel().tolist()
        m = sum(values) / len(values) if mean is None else mean[c]
        v = sum((value - m) ** 2 for value in values) / len(values) if var is None else var[c]
        out[:, c] = scale[c] * (x[:, c] - m) / math.sqrt(v + 1e-5) + shift[c]
    return out


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation(training: bool) -> None:
    layer = nn.BatchNorm2d(2).train(training)
    mean, var = np.array([0.3, -0.2]), np.array([1.5, 0.7])

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        state = {
            "weight": weight,
            "bias": bias,
            "running_mean": torch.tensor(mean, dtype=x.dtype),
            "running_var": torch.tensor(var, dtype=x.dtype),
            "num_batches_tracked": torch.tensor(0),
        }
        return torch.func.functional_call(layer, state, (x,))

    def slow(x: Array, scale: Array, shift: Array) -> Array:
        return slow_batch_norm(x, scale, shift) if training else slow_batch_norm(x, scale, shift, mean, var)

    agree(ours, slow, normal(3, 2, 2, 3), normal(2, seed=2), normal(2, seed=3))


def test_running_statistics() -> None:
    """0.9 of the old and 0.1 of the batch, with the unbiased variance, from mean 0 and variance 1."""
    layer = nn.BatchNorm2d(2)
    mean, var = np.zeros(2), np.ones(2)
    for seed in range(3):
        x = normal(3, 2, 2, 2, seed=seed)
        layer(torch.tensor(x, dtype=torch.float32))
        for c in range(2):
            values = x[:, c].ravel()
            m = values.sum() / len(values)
            mean[c] = 0.9 * mean[c] + 0.1 * m
            var[c] = 0.9 * var[c] + 0.1 * ((values - m) ** 2).sum() / (len(values) - 1)
    assert layer.running_mean is not None and layer.running_var is not None
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and cross-entropy
# ---------------------------------------------------------------------------------------------------------------------


def slow_softmax(x: Array) -> Array:
    out = np.zeros_like(x)
    for b in range(len(x)):
        exponentials = [math.exp(value - max(x[b])) for value in x[b]]
        out[b] = [value / sum(exponentials) for value in exponentials]
    return out


def test_softmax() -> None:
    agree(lambda x: x.softmax(1), slow_softmax, 3 * normal(3, 5))


def slow_cross_entropy(x: Array, targets: Array) -> Array:
    total = 0.0
    for b, k in np.ndindex(x.shape):
        highest = max(x[b])
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in x[b]))
        total += targets[b, k] * (log_sum - x[b, k])
    return np.array(total / len(x))


def test_cross_entropy_of_labels() -> None:
    labels, targets = [2, 0, 4], np.eye(5)[[2, 0, 4]]

    def ours(x: Tensor) -> Tensor:
        return compare(Output(x), torch.tensor(targets, dtype=x.dtype), CrossEntropy())[0]

    def slow(x: Array) -> Array:
        probabilities = slow_softmax(x)
        return np.array(-sum(math.log(probabilities[b, k]) for b, k in enumerate(labels)) / len(labels))

    agree(ours, slow, 3 * normal(3, 5))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_distributions(smoothing: float) -> None:
    """Targets as mixup makes them, label smoothing, auxiliary heads; also where a naive softmax overflows."""
    targets = slow_softmax(normal(3, 5, seed=4))

    def ours(x: Tensor, aux: Tensor) -> Tensor:
        spec = CrossEntropy(label_smoothing=smoothing, aux_weights=(0.3,))
        return compare(Output(x, (aux,)), torch.tensor(targets, dtype=x.dtype), spec)[0]

    def slow(x: Array, aux: Array) -> Array:
        smooth = (1 - smoothing) * targets + smoothing / 5
        return slow_cross_entropy(x, smooth) + 0.3 * slow_cross_entropy(aux, smooth)

    agree(ours, slow, 3 * normal(3, 5), 2 * normal(3, 5, seed=5))
    huge = 1e4 * normal(3, 5)
    np.testing.assert_allclose(ours(*torch.tensor(np.stack([huge, huge]))).item(), slow(huge, huge), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Put together
# ---------------------------------------------------------------------------------------------------------------------


def test_residual_block_of_convolutions_and_norms() -> None:
    block = Residual(nn.Sequential(conv_bn(1, 2, 3, 2), conv_bn(2, 2, 3, relu=False)), ZeroPadShortcut(1, 2, 2))
    names = ("body.0.0.weight", "body.1.0.weight")
    ones, zeros = np.ones(2), np.zeros(2)

    def ours(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        for part in block.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.to(x.dtype)
        return torch.func.functional_call(block, dict(zip(names, (first, second), strict=True)), (x,))

    def slow(x: Array, first: Array, second: Array) -> Array:
        y = slow_batch_norm(slow_convolution(x, first, zeros, 2, 1), ones, zeros)
        y = slow_batch_norm(slow_convolution(np.maximum(y, 0), second, zeros, 1, 1), ones, zeros)
        y[:, 0] += x[:, 0, ::2, ::2]
        return np.maximum(y, 0)

    agree(ours, slow, normal(2, 1, 4, 4), normal(2, 1, 3, 3, seed=2), normal(2, 2, 3, 3, seed=3), atol=1e-7)


def test_initialize() -> None:
    net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.Linear(400, 100), nn.BatchNorm2d(4), nn.Conv2d(1, 4, 1, bias=False))
    conv, linear = net[0], net[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(linear, nn.Linear)
    expected = {
        "he_in": (math.sqrt(2 / 72), math.sqrt(2 / 400)),
        "he_out": (math.sqrt(2 / 288), math.sqrt(2 / 100)),
        "lecun": (math.sqrt(1 / 72), math.sqrt(1 / 400)),
        0.01: (0.01, 0.01),
    }
    for scheme, stds in expected.items():
        initialize(net, conv=scheme, linear=scheme)  # type: ignore[arg-type]
        for layer, std in zip((conv, linear), stds, strict=True):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.07)
            assert layer.bias is not None and not layer.bias.any()
    before = linear.weight.clone()
    initialize(net, conv="he_in", linear=None)
    assert torch.equal(linear.weight, before)


def test_at_least_names_the_value() -> None:
    at_least(1, width=1)
    with pytest.raises(UsageError, match="hidden: expected at least 1, received 0"):
        at_least(1, width=3, hidden=0)
