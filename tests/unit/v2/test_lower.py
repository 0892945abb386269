"""Every layer's arithmetic against a slow float64 version, values and gradients; and the walk over a network.

The references are loops over windows, channels and samples. Gradients are compared with central differences of the
reference, and where Paddle's gradient is not that of the value, with the rule written out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import opsin.v2 as paddle
from opsin.errors import UsageError
from opsin.v2 import graph, layer
from opsin.v2.graph import Layer
from opsin.v2.lower import Graph, GraphNet
from opsin.v2.parameters import Parameters, create

activation, pooling, attr = paddle.activation, paddle.pooling, paddle.attr
Array = np.ndarray
LINEAR = activation.Linear()
LAYOUT: list[str] = []
FLT_MAX = 3.4028234663852886e38


@pytest.fixture(autouse=True, params=["plain", "channels last"])
def layout(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with the memory laid out either way."""
    graph.reset()
    torch.manual_seed(1)
    LAYOUT.append(request.param)
    yield request.param
    LAYOUT.pop()


def dense(name: str, size: int, height: int | None = None, width: int | None = None) -> Layer:
    return layer.data(name, paddle.data_type.dense_vector(size), height, width)


def label(classes: int) -> Layer:
    return layer.data("label", paddle.data_type.integer_value(classes))


def lowered(output: Layer, random: np.random.Generator) -> tuple[Graph, Parameters]:
    """A network whose parameters, also those that start at 0, are random; moving variances are positive."""
    parameters, net = create(output), Graph(output)
    if LAYOUT[-1] == "channels last":
        net.lay_out()
    parameters.attach(net)
    for name in parameters:
        values = random.standard_normal(parameters.get_shape(name)).astype(np.float32)
        parameters.set(name, np.abs(values) + 0.5 if name.endswith(".w2") else values)
    return net, parameters


def close(ours: Tensor | Array, reference: Array) -> None:
    ours = ours.detach().double().numpy() if isinstance(ours, Tensor) else ours
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()


def check_gradient(ours: Tensor, function: Callable[[], Array], at: Array, weights: Array) -> None:
    """`ours` is the gradient of Σ weights · function(), by central differences at up to 12 places and along all.

    `at` is the array that `function` reads; it is changed in place and put back.
    """
    random = np.random.default_rng(7)
    directions = [np.eye(1, at.size, place).reshape(at.shape) for place in random.permutation(at.size)[:12]]
    directions.append(random.standard_normal(at.shape))
    reference, kept = [], at.copy()
    for direction in directions:
        sums = []
        for step in (1e-6, -1e-6):
            at[...] = kept + step * direction
            sums.append((weights * function()).sum())
        at[...] = kept
        reference.append((sums[0] - sums[1]) / 2e-6)
    gradient = ours.detach().double().numpy().reshape(at.shape)
    close(np.array([(gradient * direction).sum() for direction in directions]), np.array(reference))


# ---------------------------------------------------------------------------------------------------------------------
# The references: x is [B, C, H, W] or [B, D]
# ---------------------------------------------------------------------------------------------------------------------


def conv(x: Array, weight: Array, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) -> Array:
    """Cross-correlation; weight [O, C/groups, ky, kx], pairs (y, x)."""
    batch, channels, height, width = x.shape
    outs, _, ky, kx = weight.shape
    oh = 1 + (height + 2 * padding[0] - ((ky - 1) * dilation[0] + 1)) // stride[0]
    ow = 1 + (width + 2 * padding[1] - ((kx - 1) * dilation[1] + 1)) // stride[1]
    y = np.zeros((batch, outs, oh, ow))
    per_in, per_out = channels // groups, outs // groups
    for o, i, j, c, a, b in itertools.product(*map(range, (outs, oh, ow, per_in, ky, kx))):
        row, col = i * stride[0] - padding[0] + a * dilation[0], j * stride[1] - padding[1] + b * dilation[1]
        if 0 <= row < height and 0 <= col < width:
            y[:, o, i, j] += weight[o, c, a, b] * x[:, o // per_out * per_in + c, row, col]
    return y


def transposed(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Each input value spreads weight [C, O, k, k] over the output."""
    batch, channels, height, width = x.shape
    _, outs, k, _ = weight.shape
    y = np.zeros((batch, outs, (height - 1) * stride + k, (width - 1) * stride + k))
    for c, o, i, j in itertools.product(*map(range, (channels, outs, height, width))):
        y[:, o, i * stride : i * stride + k, j * stride : j * stride + k] += x[:, c, i, j, None, None] * weight[c, o]
    return y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]


def pool(x: Array, kind: str, kernel, stride, padding, *, ceil=True, exclude=True) -> Array:
    """Windows are clipped to the picture; an empty one is -FLT_MAX for max and 0 for averages."""
    counts = []
    for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        steps = (n + 2 * p - k) / s
        counts.append(1 + (math.ceil(steps) if ceil else math.floor(steps)))
    y = np.zeros((*x.shape[:2], *counts))
    for i, j in np.ndindex(*counts):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        window = x[:, :, max(top, 0) : max(top + kernel[0], 0), max(left, 0) : max(left + kernel[1], 0)]
        cells = window.shape[2] * window.shape[3]
        if kind == "max":
            y[:, :, i, j] = window.max((2, 3)) if cells else -FLT_MAX
        elif cells:
            y[:, :, i, j] = window.sum((2, 3)) / (cells if exclude else kernel[0] * kernel[1])
    return y


def norm(x: Array, size: int, scale: float, power: float) -> Array:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        start = c - (size - 1) // 2
        window = x[:, max(start, 0) : start + size]
        y[:, c] = x[:, c] / (1 + scale / size * (window**2).sum(1)) ** power
    return y


def batch_norm(x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    scale, shift, mean, variance = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, shift, mean, variance))
    return scale * (x - mean) / np.sqrt(variance + epsilon) + shift


def batch_statistics(x: Array) -> tuple[Array, Array]:
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axes)
    return mean, ((x - mean.reshape(-1, *[1] * (x.ndim - 2))) ** 2).mean(axes)  # biased


def pyramid(x: Array, levels: int, kind: str) -> Array:
    parts = []
    for cells in (2**level for level in range(levels)):
        k = tuple(math.ceil(n / cells) for n in x.shape[2:])
        p = tuple((a * cells - n + 1) // 2 for a, n in zip(k, x.shape[2:], strict=True))
        parts.append(pool(x, kind, k, k, p, ceil=False).reshape(len(x), -1))
    return np.concatenate(parts, 1)


def softmax(x: Array) -> Array:
    e = np.exp(np.maximum(x - x.max(1, keepdims=True), -64))
    return e / e.sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Layers: name → (declare from data layers, reference from the same inputs and the parameters)
# ---------------------------------------------------------------------------------------------------------------------

MAPS = (2, 3, 4, 5)  # the inputs of the cases below: [B, C, H, W]


def image() -> Layer:
    return dense("x", 60, 4, 5)


def image_conv(**options: Any) -> Layer:
    return layer.img_conv(image(), options.pop("size", 3), 4, num_channels=3, act=LINEAR, **options)


def with_bias(y: Array, bias: Array) -> Array:
    return y + bias.reshape(1, -1, 1, 1) if bias.size == y.shape[1] else y + bias.reshape(1, *y.shape[1:])


def image_pool(kind: pooling.Base, **options: Any) -> Layer:
    return layer.img_pool(image(), options.pop("size", 3), num_channels=3, pool_type=kind, **options)


CASES: dict[str, tuple[Callable[[], Layer], Callable[..., Array]]] = {
    "conv": (
        lambda: image_conv(padding=1, stride=2),
        lambda x, p: with_bias(conv(x, p["w0"].reshape(4, 3, 3, 3), (2, 2), (1, 1)), p["wbias"]),
    ),
    "conv of x and y sizes, dilated": (
        lambda: image_conv(size=[3, 2], padding=[2, 1], stride=[1, 2], dilation=[2, 1], bias_attr=False),
        lambda x, p: conv(x, p["w0"].reshape(4, 3, 2, 3), (2, 1), (1, 2), (1, 2)),
    ),
    "conv in groups, a bias for each place": (
        lambda: layer.img_conv(image(), 3, 6, num_channels=3, act=LINEAR, groups=3, padding=1, shared_biases=False),
        lambda x, p: with_bias(conv(x, p["w0"].reshape(6, 1, 3, 3), padding=(1, 1), groups=3), p["wbias"]),
    ),
    "conv transposed": (
        lambda: image_conv(trans=True, stride=2, padding=1),
        lambda x, p: with_bias(transposed(x, p["w0"].reshape(3, 4, 3, 3), 2, 1), p["wbias"]),
    ),
    "max pool": (
        lambda: image_pool(pooling.Max(), stride=2),
        lambda x, p: pool(x, "max", (3, 3), (2, 2), (0, 0)),
    ),
    "max pool padded, x and y": (
        lambda: image_pool(pooling.MaxWithMask(), size=[3, 2], stride=[2, 3], padding=[1, 0]),
        lambda x, p: pool(x, "max", (2, 3), (3, 2), (0, 1)),
    ),
    "max pool rounded down": (
        lambda: image_pool(pooling.CudnnMax(), size=2, stride=2, ceil_mode=False),
        lambda x, p: pool(x, "max", (2, 2), (2, 2), (0, 0), ceil=False),
    ),
    "average over real values": (
        lambda: image_pool(pooling.Avg(), stride=2, padding=1),
        lambda x, p: pool(x, "avg", (3, 3), (2, 2), (1, 1)),
    ),
    "average over all places": (
        lambda: image_pool(pooling.CudnnAvg(), stride=2, padding=1, exclude_mode=False),
        lambda x, p: pool(x, "avg", (3, 3), (2, 2), (1, 1), exclude=False),
    ),
    "norm, odd window": (
        lambda: layer.img_cmrnorm(image(), 3, scale=0.5, num_channels=3),
        lambda x, p: norm(x, 3, 0.5, 0.75),
    ),
    "norm, even window": (
        lambda: layer.img_cmrnorm(image(), 2, scale=0.5, power=0.6, num_channels=3),
        lambda x, p: norm(x, 2, 0.5, 0.6),
    ),
    "maxout": (
        lambda: layer.maxout(dense("x", 60, 3, 5), 2, num_channels=4),
        lambda x, p: x.reshape(2, 2, 2, 3, 5).max(2),
    ),
    "spp max": (
        lambda: layer.spp(dense("x", 56, 8, 7), num_channels=1, pyramid_height=3),
        lambda x, p: pyramid(x, 3, "max"),
    ),
    "spp average": (
        lambda: layer.spp(image(), num_channels=3, pool_type=pooling.Avg(), pyramid_height=2),
        lambda x, p: pyramid(x, 2, "avg"),
    ),
    "pad": (
        lambda: layer.pad(image(), [1, 2], [0, 1], [2, 0]),
        lambda x, p: np.pad(x, ((0, 0), (1, 2), (0, 1), (2, 0))),
    ),
    "prelu, a slope a row": (
        lambda: layer.prelu(image(), partial_sum=5),
        lambda x, p: np.where(x > 0, x, x * p["w0"].reshape(1, 3, 4, 1)),
    ),
    "prelu, a slope a channel": (
        lambda: layer.prelu(image(), channel_shared=False),
        lambda x, p: np.where(x > 0, x, x * p["w0"].reshape(1, 3, 1, 1)),
    ),
    "fc": (
        lambda: layer.fc(image(), 7),
        lambda x, p: np.tanh(x.reshape(2, 60) @ p["w0"] + p["wbias"]),
    ),
    "fc of two inputs": (
        lambda: layer.fc([x := image(), layer.slope_intercept(x, slope=0.5, intercept=0.1)], 3, LINEAR),
        lambda x, p: x.reshape(2, 60) @ p["w0"] + (0.5 * x.reshape(2, 60) + 0.1) @ p["w1"] + p["wbias"],
    ),
    "addto with bias": (
        lambda: layer.addto([x := image(), layer.slope_intercept(x, slope=2.0)], activation.Sigmoid(), bias_attr=True),
        lambda x, p: 1 / (1 + np.exp(-(3 * x + p["wbias"].reshape(3, 4, 5)))),
    ),
    "concat with bias": (
        lambda: layer.concat([x := image(), layer.maxout(x, 3, num_channels=3)], bias_attr=True),
        lambda x, p: np.concatenate([x, x.max(1, keepdims=True)], 1) + p["wbias"].reshape(4, 4, 5),
    ),
    "mixed": (
        lambda: layer.mixed(
            6,
            [layer.identity_projection(x := image(), offset=10, size=6), layer.full_matrix_projection(x)],
            bias_attr=True,
        ),
        lambda x, p: x.reshape(2, 60)[:, 10:16] + x.reshape(2, 60) @ p["w1"] + p["wbias"],
    ),
    "sum to one": (
        lambda: layer.sum_to_one_norm(layer.slope_intercept(image(), intercept=9.0)),
        lambda x, p: (x + 9).reshape(2, 60) / (x + 9).reshape(2, 60).sum(1, keepdims=True),
    ),
    "softmax of a convolution is over all its values": (
        lambda: layer.img_conv(image(), 4, 2, num_channels=3, act=activation.Softmax(), bias_attr=False),
        lambda x, p: softmax(conv(x, p["w0"].reshape(2, 3, 4, 4)).reshape(2, 4)),
    ),
    "batch norm of maps": (
        lambda: layer.batch_norm(image(), LINEAR, num_channels=3, epsilon=1e-3),
        lambda x, p: batch_norm(x, p["w0"], p["wbias"], *batch_statistics(x), 1e-3),
    ),
    "batch norm of vectors": (
        lambda: layer.batch_norm(dense("x", 3), activation.Tanh()),
        lambda x, p: np.tanh(batch_norm(x, p["w0"], p["wbias"], *batch_statistics(x), 1e-5)),
    ),
}
SHAPES = {"spp max": (2, 1, 8, 7), "maxout": (2, 4, 3, 5), "batch norm of vectors": (6, 3)}  # else (2, 3, 4, 5)


def weighted_sum_and_backward(net: Graph, feed: dict[str, Tensor], name: str, weights: Array) -> Tensor:
    value = net(feed, [name])[name]
    (value * torch.from_numpy(weights.astype(np.float32))).sum().backward()
    return value


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str) -> None:
    declare, reference = CASES[case]
    random = np.random.default_rng(3)
    output = declare()
    net, parameters = lowered(output, random)
    for name in parameters:
        parameters.set(name, 0.3 * parameters.get(name))
    x = random.standard_normal(SHAPES.get(case, (2, 3, 4, 5))).astype(np.float32).astype(np.float64)
    p = {name.rsplit(".")[-1]: parameters.get(name).astype(np.float64) for name in parameters}

    def flat() -> Array:
        return reference(x, p).reshape(len(x), -1)

    weights = random.standard_normal((len(x), output.size)).astype(np.float32).astype(np.float64)
    fed = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32)).requires_grad_()
    close(weighted_sum_and_backward(net, {"x": fed}, output.name, weights), flat())
    assert fed.grad is not None
    check_gradient(fed.grad, flat, x, weights)
    for name, tensor in net.tensors().items():
        if tensor.requires_grad:
            check_gradient(torch.from_numpy(parameters.get_grad(name)), flat, p[name.rsplit(".")[-1]], weights)
            assert tensor.grad is not None


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax": softmax,
    "brelu": lambda x: np.minimum(24, np.maximum(0, x)),
    "softrelu": lambda x: np.log(1 + np.exp(np.clip(x, -40, 40))),
    "stanh": lambda x: 1.7159 * np.tanh(2 / 3 * x),
    "abs": np.abs,
    "square": np.square,
    "exponential": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "reciprocal": lambda x: 1 / x,
    "softsign": lambda x: x / (1 + np.abs(x)),
}


@pytest.mark.parametrize("name", [name for name in activation.BY_NAME if name != "sequence_softmax"])
def test_activations(name: str) -> None:
    output = layer.addto(dense("x", 8), activation.BY_NAME[name]())
    x = np.array([[-50.5, -30.0, -2.0, -0.3, 0.4, 3.0, 23.0, 60.0], [0.1, 0.2, -0.5, 1, -1.5, 2, -3, 4]])
    if name in ("log", "sqrt"):
        x = np.abs(x)
    if name == "exponential":
        x = x.clip(-5, 5)
    x = x.astype(np.float32).astype(np.float64)
    fed = torch.from_numpy(x.astype(np.float32)).requires_grad_()
    weights = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32).astype(np.float64)
    close(weighted_sum_and_backward(Graph(output), {"x": fed}, output.name, weights), FUNCTIONS[name](x))
    assert fed.grad is not None
    if name != "softmax":  # whose gradient is not that of its value: below
        check_gradient(fed.grad, lambda: FUNCTIONS[name](x), x, weights)


def test_an_unsupported_activation_is_named() -> None:
    with pytest.raises(UsageError, match="sequence_softmax"):
        Graph(layer.addto(dense("x", 8), activation.SequenceSoftmax()))


# ---------------------------------------------------------------------------------------------------------------------
# What is peculiar
# ---------------------------------------------------------------------------------------------------------------------

# SPEC 2.6 [G]: size, window, stride, padding → windows rounded up, rounded down.
WINDOWS = [
    *((28, 3, 2, 0, 14, 13), (28, 3, 2, 1, 15, 14), (27, 2, 2, 0, 14, 13), (112, 3, 2, 0, 56, 55)),
    *((5, 2, 2, 1, 4, 3), (3, 2, 2, 1, 3, 2), (8, 3, 3, 1, 4, 3)),
]


@pytest.mark.parametrize("kind", [pooling.Max(), pooling.Avg()])
@pytest.mark.parametrize("size, window, stride, padding, up, down", WINDOWS)
def test_pooling_has_paddles_windows(
    kind: pooling.Base, size: int, window: int, stride: int, padding: int, up: int, down: int
) -> None:
    """Also windows that begin in the padding on the right, which torch's ceil_mode leaves out."""
    x = np.random.default_rng(size).standard_normal((1, 1, size, size))
    net_in = torch.from_numpy(x.astype(np.float32))
    for ceil, expected in ((True, up), (False, down)):
        graph.reset()
        data = dense("x", size * size, size, size)
        out = layer.img_pool(
            data, window, stride=stride, padding=padding, pool_type=kind, ceil_mode=ceil, num_channels=1
        )
        assert (out.height, out.width, out.size) == (expected, expected, expected**2)
        pair = ((window, window), (stride, stride), (padding, padding))
        reference = pool(
            x.astype(np.float32).astype(np.float64), "max" if kind.name == "max" else "avg", *pair, ceil=ceil
        )
        close(Graph(out)({"x": net_in}, [out.name])[out.name], reference.reshape(1, -1))


def test_an_empty_window_takes_no_gradient() -> None:
    out = layer.img_pool(dense("x", 25, 5, 5), 2, stride=2, padding=1, num_channels=1)  # 4×4, the last row empty
    x = torch.randn(1, 25, requires_grad=True)
    value = Graph(out)({"x": x}, [out.name])[out.name].reshape(4, 4)
    assert (value[3] == -FLT_MAX).all() and (value[:, 3] == -FLT_MAX).all() and (value[:3, :3] > -10).all()
    value[3].sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_moving_statistics_start_at_zero_and_take_a_tenth_of_the_biased_ones() -> None:
    out = layer.batch_norm(dense("x", 12, 2, 2), LINEAR, name="n")
    net, parameters = Graph(out), create(out)
    parameters.attach(net)
    assert (parameters["_n.w0"] == 1).all() and not parameters["_n.wbias"].any()
    assert not parameters["_n.w1"].any() and not parameters["_n.w2"].any()
    random, mean, variance = np.random.default_rng(5), np.zeros(3), np.zeros(3)
    for _ in range(3):
        x = random.standard_normal((2, 3, 2, 2)) + 2
        net({"x": torch.from_numpy(x.astype(np.float32))}, [out.name])
        batch = batch_statistics(x)
        mean, variance = 0.9 * mean + 0.1 * batch[0], 0.9 * variance + 0.1 * batch[1]
        close(parameters["_n.w1"][0], mean)
        close(parameters["_n.w2"][0], variance)
    net.eval()
    value = net({"x": torch.from_numpy(x.astype(np.float32))}, [out.name])[out.name]
    close(value, batch_norm(x, np.ones(3), np.zeros(3), mean, variance, 1e-5).reshape(2, 12))
    close(parameters["_n.w1"][0], mean)  # testing changes nothing
    assert net.tensors()["_n.w1"].requires_grad is False


def test_use_global_stats() -> None:
    """True does not change training; False takes the batch's statistics in testing, and moves them."""
    x = torch.randn(4, 3)
    values = {}
    for choice in (None, True, False):
        graph.reset()
        out = layer.batch_norm(dense("x", 3), LINEAR, name="n", use_global_stats=choice, moving_average_fraction=0.5)
        net, parameters = lowered(out, np.random.default_rng(1))
        for training in (True, False):
            before = parameters["_n.w1"]
            values[choice, training] = net.train(training)({"x": x}, [out.name])[out.name].detach()
            moved = (parameters["_n.w1"] != before).any()
            assert moved == (training or choice is False)
            if moved:
                close(parameters["_n.w1"][0], 0.5 * before[0].astype(float) + 0.5 * x.double().mean(0).numpy())
    assert torch.equal(values[None, True], values[True, True]) and torch.equal(values[None, True], values[False, True])
    assert torch.equal(values[None, False], values[True, False])
    assert torch.equal(values[False, False], values[False, True])


def test_batch_norm_of_one_value_is_its_shift() -> None:
    out = layer.batch_norm(dense("x", 3), LINEAR, name="n")
    net, parameters = lowered(out, np.random.default_rng(1))
    mean, variance = parameters["_n.w1"], parameters["_n.w2"]
    x = torch.randn(1, 3, requires_grad=True)
    value = net({"x": x}, [out.name])[out.name]
    close(value, parameters["_n.wbias"].astype(float))
    value.sum().backward()
    assert x.grad is not None and not x.grad.any() and (parameters.get_grad("_n.wbias") == 1).all()
    close(parameters["_n.w1"], 0.9 * mean.astype(float) + 0.1 * x.detach().double().numpy())
    close(parameters["_n.w2"], 0.9 * variance.astype(float))


def test_dropout_is_not_inverted_and_comes_after_the_activation() -> None:
    out = layer.addto(dense("x", 2000), activation.Exp(), layer_attr=attr.Extra(drop_rate=0.3))
    net = Graph(out)
    x = torch.zeros(3, 2000, requires_grad=True)
    value = net({"x": x}, [out.name])[out.name]
    assert set(value.unique().tolist()) == {0.0, 1.0}  # not 1/0.7, and exp(0) would be 1 if it came before
    assert 0.65 < float(value.detach().mean()) < 0.75
    value.sum().backward()
    assert torch.equal(x.grad, value.detach())  # type: ignore[arg-type]
    tested = net.eval()({"x": x}, [out.name])[out.name]
    close(tested, np.full((3, 2000), 0.7))


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_and_its_cost_stop_at_64_and_the_gradient_does_not(weighted: bool) -> None:
    """The gradient is weight · (p − [label]), p with logits cut at 64 below the largest: also where the cost is cut."""
    data, truth = dense("x", 4), label(4)
    weight = dense("w", 1) if weighted else None
    out = layer.fc(data, 4, activation.Softmax(), name="f", bias_attr=False)
    cost = layer.classification_cost(out, truth, weight=weight)
    net, parameters = Graph(cost), create(cost)
    parameters.attach(net)
    parameters.set("_f.w0", np.eye(4, dtype=np.float32))
    x = np.array([[0.5, -1.0, 2.0, 0.1], [0, 100, 3, -7], [1000, 1001, 990, -1e6]])
    labels, w = np.array([2, 0, 3]), np.array([0.5, 2.0, 3.0]) if weighted else np.ones(3)
    feed = {"x": torch.tensor(x, dtype=torch.float32, requires_grad=True), "label": torch.from_numpy(labels)}
    feed |= {"w": torch.from_numpy(w.astype(np.float32)[:, None])} if weighted else {}
    values = net(feed, [cost.name, out.name, out.name + ".logits"])
    p = softmax(x)
    close(values[out.name], p)
    close(values[out.name + ".logits"], x)
    costs = -np.log(p[np.arange(3), labels])
    assert 63.9 < costs[1] < 64.1 and costs[2] > 63.9
    close(values[cost.name], w * costs)
    values[cost.name].sum().backward()
    close(feed["x"].grad, w[:, None] * (p - np.eye(4)[labels]))  # type: ignore[arg-type]


def test_softmax_layers_gradient_is_the_jacobian_of_the_probabilities() -> None:
    out = layer.fc(dense("x", 3), 3, activation.Softmax(), name="f", bias_attr=False)
    net, parameters = Graph(out), create(out)
    parameters.attach(net)
    parameters.set("_f.w0", np.eye(3, dtype=np.float32))
    x, weights = np.array([[0.0, 80, 79]]), np.array([[1e30, 2.0, -1.0]])  # the first logit is cut; its p is e^-64
    fed = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    weighted_sum_and_backward(net, {"x": fed}, out.name, weights)
    p = softmax(x)
    close(fed.grad, p * (weights - (weights * p).sum(1, keepdims=True)))  # type: ignore[arg-type]


def test_coeff_scales_the_gradient_and_not_the_cost() -> None:
    out = layer.fc(dense("x", 5), 3, activation.Softmax(), name="f")
    costs = [layer.cross_entropy_cost(out, label(3), coeff=coeff) for coeff in (1.0, 0.3)]
    gradients, values = [], []
    for cost in costs:
        net, _ = lowered(cost, np.random.default_rng(2))
        feed = {"x": torch.randn(2, 5, generator=torch.Generator().manual_seed(4)), "label": torch.tensor([0, 2])}
        values.append(net(feed, [cost.name])[cost.name])
        values[-1].sum().backward()
        gradients.append(net.tensors()["_f.w0"].grad)
    assert torch.equal(*values)
    close(gradients[1], 0.3 * gradients[0].double().numpy())


def test_error_clipping_bounds_the_gradient_at_the_layers_output() -> None:
    extra = attr.Extra(error_clipping_threshold=0.5)
    out = layer.sum_cost(layer.slope_intercept(layer.addto(dense("x", 2), layer_attr=extra), slope=3.0))
    x = torch.ones(1, 2, requires_grad=True)
    Graph(out)({"x": x}, [out.name])[out.name].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0.5, 0.5]]


def test_cost_of_probabilities_that_are_no_softmax_layer() -> None:
    cost = layer.cross_entropy_cost(layer.sum_to_one_norm(dense("x", 3)), label(3))
    x = torch.tensor([[1.0, 2, 5]], requires_grad=True)
    value = Graph(cost)({"x": x, "label": torch.tensor([1])}, [cost.name])[cost.name]
    close(value, -np.log([2 / 8]))
    value.sum().backward()
    close(x.grad, np.array([[1 / 8, 1 / 8 - 1 / 2, 1 / 8]]))  # type: ignore[arg-type]


def huber(d: Array, delta: float) -> Array:
    return np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2)).sum(1)


COSTS: dict[str, tuple[Callable[[Layer, Layer], Layer], Callable[[Array, Array], Array]]] = {
    "square": (layer.square_error_cost, lambda o, t: ((o - t) ** 2).sum(1)),
    "huber": (partial(layer.huber_regression_cost, delta=0.7), lambda o, t: huber(o - t, 0.7)),
    "smooth l1": (layer.smooth_l1_cost, lambda o, t: huber(o - t, 1.0)),
    "binary": (
        lambda o, t: layer.multi_binary_label_cross_entropy_cost(layer.addto(o, activation.Sigmoid()), t),
        lambda o, t: -(t * np.log(1 / (1 + np.exp(-o))) + (1 - t) * np.log(1 / (1 + np.exp(o)))).sum(1),
    ),
    "sum": (lambda o, t: layer.sum_cost(layer.addto([o, t])), lambda o, t: (o + t).sum(1)),
}


@pytest.mark.parametrize("case", COSTS)
def test_costs_of_dense_labels(case: str) -> None:
    declare, reference = COSTS[case]
    cost = declare(dense("x", 4), dense("t", 4))
    assert cost.size == 1
    x = np.array([[0.1, -2.0, 0.4, 3.0], [1.5, 0.2, -0.3, 0.9]])
    t = np.array([[0.0, 1, 1, 0], [1, 0, 0, 1]]) if case == "binary" else x[::-1] * 0.5
    x, t = (v.astype(np.float32).astype(np.float64) for v in (x, t))
    fed = torch.from_numpy(x.astype(np.float32)).requires_grad_()
    feed = {"x": fed, "t": torch.from_numpy(t.astype(np.float32))}
    value = Graph(cost)(feed, [cost.name])[cost.name]
    close(value, reference(x, t))
    value.sum().backward()
    assert fed.grad is not None
    check_gradient(fed.grad, lambda: reference(x, t), x, np.ones(2))


def test_square_error_has_no_half_and_no_mean_and_takes_weights() -> None:
    cost = layer.square_error_cost(dense("x", 2), dense("t", 2), weight=dense("w", 1))
    feed = {"x": torch.tensor([[3.0, 1.0]]), "t": torch.zeros(1, 2), "w": torch.tensor([[0.5]])}
    assert Graph(cost)(feed, [cost.name])[cost.name].tolist() == [5.0]


def test_huber_classification() -> None:
    cost = layer.huber_classification_cost(dense("x", 1), label(2))
    x = np.array([-3.0, 0.5, 2.0, -0.5, 1.5])
    labels = np.array([1, 1, 1, 0, 0])
    fed = torch.tensor(x[:, None], dtype=torch.float32, requires_grad=True)
    value = Graph(cost)({"x": fed, "label": torch.from_numpy(labels)}, [cost.name])[cost.name]
    close(value, np.array([12.0, 0.25, 0.0, 0.25, 6.0]))
    value.sum().backward()
    close(fed.grad[:, 0], np.array([-4.0, -1.0, 0.0, 1.0, 4.0]))  # type: ignore[index]


# ---------------------------------------------------------------------------------------------------------------------
# The walk
# ---------------------------------------------------------------------------------------------------------------------


def small_net() -> tuple[Layer, Layer, Layer]:
    x = layer.img_conv(dense("x", 48), 3, 4, num_channels=3, padding=1)
    out = layer.fc(layer.img_pool(x, 2, stride=2), 5, activation.Softmax())
    return x, out, layer.classification_cost(out, label(5))


def test_only_what_is_wanted_is_computed_and_fed() -> None:
    x, out, cost = small_net()
    best = layer.max_id(out)
    net, _ = lowered([cost, best], np.random.default_rng(0))  # type: ignore[arg-type]
    feed = {"x": torch.randn(2, 48)}
    values = net(feed, [best.name + ".id", best.name + ".prob", out.name, x.name])  # no label needed
    assert values[x.name].shape == (2, 64) and values[out.name].shape == (2, 5)
    assert torch.equal(values[best.name + ".id"], values[out.name].argmax(1))
    assert torch.equal(values[best.name + ".prob"], values[out.name].amax(1, keepdim=True))
    assert torch.equal(net(feed | {"label": torch.tensor([3, 4])}, ["label"])["label"], torch.tensor([3, 4]))
    frames = {"x": feed["x"].reshape(2, 3, 4, 4)}
    assert torch.equal(net(frames, [out.name])[out.name], values[out.name])
    for wrong, message in ((best.name, "no value"), ("nothing", "no layer 'nothing'"), (x.name + ".id", "no layer")):
        with pytest.raises(UsageError, match=message):
            net(feed, [wrong])


def test_a_layer_leaves_its_inputs_as_they_are() -> None:
    out = layer.addto(dense("x", 3), activation.Relu())
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    assert Graph(out)({"x": x}, [out.name])[out.name].tolist() == [[0, 0, 2]] and x.tolist() == [[-1, 0, 2]]


def test_pictures_of_another_size_go_through_layers_that_do_not_mind() -> None:
    x, _, cost = small_net()
    net, _ = lowered(cost, np.random.default_rng(0))
    assert net.run({"x": torch.randn(1, 3, 6, 9)}, [x.name])[x.name].shape == (1, 4, 6, 9)


def test_wrong_feeds_are_named() -> None:
    _, _, cost = small_net()
    net, _ = lowered(cost, np.random.default_rng(0))
    good = {"x": torch.randn(2, 48), "label": torch.tensor([0, 1])}
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({"x": good["x"]}, "'label' was fed nothing"),
        (good | {"label": torch.tensor([0, 5])}, r"'label': the value 5 is not in 0 … 4"),
        (good | {"label": torch.tensor([-1, 0])}, "the value -1"),
        (good | {"label": torch.tensor([0.0, 1.0])}, "expected int64"),
        (good | {"x": torch.randn(2, 47)}, "expected 48 values a sample, got 47"),
    ]
    for feed, message in wrong:
        with pytest.raises(UsageError, match=message):
            net(feed, [cost.name])


def test_a_shared_parameter_is_one_tensor_and_a_static_one_a_buffer() -> None:
    shared = attr.Param(name="Zw.shared%", initial_std=0.1)
    x = layer.fc(dense("x", 4), 4, LINEAR, param_attr=shared, bias_attr=False)
    x = layer.fc(x, 4, LINEAR, param_attr=shared, bias_attr=attr.Param(name="type", is_static=True))
    cost = layer.sum_cost(x)
    net, parameters = lowered(cost, np.random.default_rng(0))
    assert parameters.keys() == ["Zw.shared%", "type"]
    net({"x": torch.randn(2, 4)}, [cost.name])[cost.name].sum().backward()
    assert [isinstance(t, torch.nn.Parameter) for t in net.tensors().values()] == [True, False]
    assert parameters.get_grad("Zw.shared%").any() and not parameters.get_grad("type").any()
    assert net.read("Zw.shared%").shape == (4, 4) and len(list(net.parameters())) == 1


def test_gradients_are_sums_over_the_batch() -> None:
    """Twice the same samples: twice the gradient."""
    _, _, cost = small_net()
    net, parameters = lowered(cost, np.random.default_rng(0))
    gradients = []
    for times in (1, 2):
        net.zero_grad()
        feed = {"x": torch.ones(1, 48).repeat(times, 1), "label": torch.tensor([2] * times)}
        net(feed, [cost.name])[cost.name].sum().backward()
        gradients.append(parameters.get_grad("___conv_0__.w0"))
    close(gradients[1], 2 * gradients[0].astype(float))


def test_seen_as_a_network_like_any_other() -> None:
    x, out, cost = small_net()
    graph_of_it, _ = lowered(cost, np.random.default_rng(0))
    net = GraphNet(graph_of_it, "x", [out.name])
    images = torch.randn(2, 3, 4, 4)
    logits, aux = net(images)
    probabilities = graph_of_it({"x": images.flatten(1)}, [out.name])[out.name]
    assert aux == () and torch.allclose(logits.softmax(1), probabilities)
    assert net.stage_names == (x.name, "__pool_0__", out.name)
    exported = torch.export.export(net.eval(), (images,)).module()
    assert torch.equal(exported(images).logits, net(images).logits)
    assert net.features(images, x.name).shape == (2, 4, 4, 4) and net.features(images, out.name).shape == (2, 5)
    head = layer.fc(x, 5, activation.Softmax())
    heads = GraphNet(lowered([out, head], np.random.default_rng(0))[0], "x", [out.name, head.name])  # type: ignore[arg-type]
    assert [len(heads.train(training)(images).aux) for training in (True, False)] == [1, 0]
    with pytest.raises(UsageError, match="no layer 'x'"):
        net.features(images, "x")
    with pytest.raises(UsageError, match="expected a layer with softmax"):
        GraphNet(graph_of_it, "x", [x.name])
    with pytest.raises(UsageError, match="no data layer"):
        GraphNet(graph_of_it, "pixels", [out.name])


@pytest.mark.parametrize(("channels", "stride", "expected"), [(4, 2, False), (8, 2, True), (4, 1, True)])
def test_no_network_is_laid_out_so_that_torch_crashes(channels: int, stride: int, expected: bool) -> None:
    x = layer.img_conv(dense("x", 3 * 36), 3, channels, num_channels=3, padding=1)
    net = Graph(layer.img_conv(x, 1, 4, stride=stride)).lay_out()
    first = net.tensor(x.params[0].name)
    assert first.is_contiguous(memory_format=torch.channels_last) is expected
    assert first.is_contiguous() is not expected
