"""One function a layer: a declaration, its sizes computed at once.

Everywhere: samples are flat in the order channel, row, column; `x` sizes are widths, `_y` sizes heights, and a pair is
(x, y). act=None, name=None … take the default that the function's text names. bias_attr: None or True a bias that
starts at 0, False none, an `attr.Param` one of that description. layer_attr: an `attr.Extra`.
What cannot be is a `DeclarationError`, which is an AssertionError and a ValueError.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opsin.errors import DeclarationError
from opsin.v2 import activation, evaluator, pooling
from opsin.v2.activation import Base as Activation
from opsin.v2.attr import ExtraLayerAttribute, ParameterAttribute
from opsin.v2.data_type import InputType, SequenceType
from opsin.v2.graph import Layer, ParameterConf, next_serial, remember, settings, unique_name
from opsin.v2.graph import get_layer as get_layer
from opsin.v2.topology import parse_network as parse_network

Size = int | float | Sequence[int]
BiasAttr = ParameterAttribute | bool | None
Inputs = Layer | Sequence[Layer]

log = logging.getLogger("paddle")


# ---------------------------------------------------------------------------------------------------------------------
# What the functions share
# ---------------------------------------------------------------------------------------------------------------------


def _whole(value: Any, what: str, least: int = 0) -> int:
    """An integer; 3.0 is one too, since `/` between integers gave integers in 2017."""
    if isinstance(value, bool) or (not isinstance(value, int | float) and not hasattr(value, "__index__")):
        raise DeclarationError(f"{what}: expected an integer, got {value!r}")
    if value != int(value) or value < least:
        raise DeclarationError(f"{what}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def _pair(value: Size, value_y: int | None, what: str, least: int = 0) -> tuple[int, int]:
    """(x, y) of `value` and `value_y`, where `value` may be the pair itself."""
    if isinstance(value, Sequence):
        if len(value) != 2:
            raise DeclarationError(f"{what}: expected a number or a pair (x, y), got {value!r}")
        value, value_y = value
    return _whole(value, what, least), _whole(value if value_y is None else value_y, f"{what}_y", least)


def _layers(input: Any, what: str) -> list[Layer]:
    """One layer or several, as a list."""
    layers = [input] if isinstance(input, Layer) else list(input) if isinstance(input, list | tuple) else []
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise DeclarationError(f"{what}: expected a layer or a list of layers, got {input!r}")
    return layers


def _one(input: Any, what: str) -> Layer:
    layers = _layers(input, what)
    if len(layers) != 1:
        raise DeclarationError(f"{what}: expected one layer, got {len(layers)}")
    return layers[0]


def _activation(act: Any, default: type[Activation]) -> Activation:
    if isinstance(act, type):
        raise AttributeError(f"act={act.__name__} is the class; write act={act.__name__}()")
    if act is not None and not isinstance(act, Activation):
        raise DeclarationError(f"act: expected an activation, such as activation.Relu(), got {act!r}")
    return default() if act is None else act


def _param(param_attr: Any, **default: float) -> ParameterAttribute:
    if param_attr is None:
        return ParameterAttribute(**default)  # type: ignore[arg-type]
    if not isinstance(param_attr, ParameterAttribute):
        raise DeclarationError(f"param_attr: expected an attr.Param, got {param_attr!r}")
    return param_attr


def _bias(name: str, bias_attr: Any, size: int, dims: tuple[int, ...]) -> ParameterConf | None:
    if bias_attr is None or bias_attr is True:
        bias_attr = ParameterAttribute(initial_std=0.0, initial_mean=0.0)
    return bias_attr.conf(f"_{name}.wbias", size, dims) if isinstance(bias_attr, ParameterAttribute) else None


def _extra(layer_attr: Any, function: str, act: Activation | None = None) -> dict[str, float]:
    """(drop_rate, error_clipping) of a layer that supports both; a layer without `act` supports neither."""
    if layer_attr is None:
        return {}
    if not isinstance(layer_attr, ExtraLayerAttribute):
        raise DeclarationError(f"layer_attr: expected an attr.Extra, got {layer_attr!r}")
    given = {"drop_rate": layer_attr.drop_rate, "error_clipping_threshold": layer_attr.error_clipping_threshold}
    given = {key: float(value) for key, value in given.items() if value}
    for key in given:
        if act is None:
            raise NotImplementedError(f"Layer {function} does not support {key}")
    if "drop_rate" in given and isinstance(act, activation.Softmax):
        raise DeclarationError(f"{function}: softmax and drop_rate on one layer; put layer.dropout before it")
    return given


def _declare(
    kind: str,
    name: str,
    inputs: Sequence[Layer],
    size: int,
    *,
    act: Activation | None = None,
    extra: dict[str, float] | None = None,
    hw: tuple[int, int] = (0, 0),
    num_filters: int | None = None,
    params: Sequence[ParameterConf | None] = (),
    bias: ParameterConf | None = None,
    **attrs: Any,
) -> Layer:
    if "@" in name:
        raise DeclarationError(f"layer {name!r}: the name may not contain @")
    extra = dict(extra or {})
    drop_rate = extra.pop("drop_rate", 0.0)
    layer = Layer(
        name=name,
        kind=kind,
        inputs=tuple(inputs),
        size=size,
        height=hw[0],
        width=hw[1],
        activation=act or activation.Linear(),
        drop_rate=drop_rate,
        num_filters=num_filters,
        params=tuple(params) or (None,) * len(inputs),
        bias=bias,
        attrs={**attrs, **extra},
    )
    return remember(layer)


def _channels(input: Layer, num_channels: int | None, function: str) -> int:
    if num_channels is not None:
        return _whole(num_channels, "num_channels", 1)
    if input.num_filters is None:
        raise DeclarationError(
            f"{function}: the number of channels of layer {input.name!r} (a {input.kind}) is not known; "
            "pass num_channels"
        )
    return input.num_filters


def _height_width(input: Layer, channels: int) -> tuple[int, int]:
    """(height, width) of a layer's map; a square where nothing is known."""
    pixels, rest = divmod(input.size, channels)
    width = input.width or math.isqrt(pixels) or 1
    height = input.height or pixels // width
    if rest or height * width != pixels:
        raise DeclarationError(
            f"Input layer {input.name!r}: Incorrect input image size {width} * {height} for {input.size} values "
            f"in {channels} channels; pass num_channels, or height and width where the data layer is declared"
        )
    return height, width


def _window(size: int, kernel: int, stride: int, padding: int, what: str, *, ceil: bool = False) -> int:
    """How many windows there are along one side: rounded down for convolutions, by default up for pooling."""
    room = size + 2 * padding - kernel
    out = 1 + (-(-room // stride) if ceil else room // stride)
    if out < 1:
        raise DeclarationError(f"{what}: a window of {kernel} does not fit into {size} with padding {padding}")
    return out


def _report(layer: Layer, channels: int) -> Layer:
    log.info(
        "output for %s: c = %d, h = %d, w = %d, size = %d", layer.name, channels, layer.height, layer.width, layer.size
    )
    return layer


# ---------------------------------------------------------------------------------------------------------------------
# Inputs, images
# ---------------------------------------------------------------------------------------------------------------------


def data(
    name: str,
    type: InputType,
    height: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """An input. Its channels are known to the layers after it only where height and width are given."""
    if not isinstance(type, InputType):
        raise DeclarationError(f"data {name!r}: type: expected such as data_type.dense_vector(3072), got {type!r}")
    if type.seq_type != SequenceType.NO_SEQUENCE:
        raise DeclarationError(f"data {name!r}: sequences are not supported; this is for image classification")
    if depth not in (None, 0, 1):
        raise DeclarationError(f"data {name!r}: depth={depth}: volumes are not supported")
    _extra(layer_attr, "data_layer")
    size = _whole(type.dim, f"data {name!r}: size", 1)
    hw = (_whole(height or 0, "height"), _whole(width or 0, "width"))
    filters = size // (hw[0] * hw[1]) if all(hw) else None
    return _declare("data", name, (), size, hw=hw, num_filters=filters, type=type)


def img_conv(
    input: Layer,
    filter_size: Size,
    num_filters: int,
    name: str | None = None,
    num_channels: int | None = None,
    act: Activation | None = None,
    groups: int = 1,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    bias_attr: BiasAttr = None,
    param_attr: ParameterAttribute | None = None,
    shared_biases: bool = True,
    layer_attr: ExtraLayerAttribute | None = None,
    filter_size_y: int | None = None,
    stride_y: int | None = None,
    padding_y: int | None = None,
    dilation_y: int | None = None,
    trans: bool = False,
    layer_type: str | None = None,
) -> Layer:
    """Convolution (cross-correlation), then `act` (Relu). Sizes are rounded down.

    The weights start as normal(0, √(2 / (filter width² · num_channels))), whatever `groups` is. trans: the transposed
    convolution, in which the input plays the part of the output.
    """
    input = _one(input, "img_conv: input")
    channels = _channels(input, num_channels, "img_conv")
    filters, groups = _whole(num_filters, "num_filters", 1), _whole(groups, "groups", 1)
    kernel, strides = _pair(filter_size, filter_size_y, "filter_size", 1), _pair(stride, stride_y, "stride", 1)
    pads, gaps = _pair(padding, padding_y, "padding"), _pair(dilation, dilation_y, "dilation", 1)
    if channels % groups or filters % groups:
        raise DeclarationError(f"img_conv: {groups} groups do not divide {channels} channels and {filters} filters")
    kinds = ("exconvt", "cudnn_convt") if trans else ("exconv", "cudnn_conv")
    if layer_type not in (None, *kinds):
        raise DeclarationError(f"img_conv: layer_type: expected {' or '.join(kinds)}, got {layer_type!r}")
    kind = kinds[1] if layer_type == kinds[1] or (settings.use_gpu and layer_type is None) else kinds[0]

    param_attr = _param(param_attr)
    if param_attr.smart:  # written back, so that an object used again keeps this deviation: as it was in 2017
        param_attr.smart = False
        param_attr.mean, param_attr.std = 0.0, (2.0 / (kernel[0] ** 2 * channels)) ** 0.5
    in_hw = _height_width(input, channels)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
    name = name or unique_name("conv")
    sides = list(zip((in_hw[1], in_hw[0]), spans, strides, pads, strict=True))  # x, y
    if trans:
        width, height = ((n - 1) * s + k - 2 * p for n, k, s, p in sides)
    else:
        width, height = (_window(n, k, s, p, f"img_conv {name!r}") for n, k, s, p in sides)
    size = filters * height * width
    if size < 1:
        raise DeclarationError(f"img_conv {name!r}: nothing is left of {in_hw[1]}x{in_hw[0]}")
    fan = (channels * filters // groups) * kernel[0] * kernel[1]
    biases = filters if shared_biases else size
    act = _activation(act, activation.Relu)
    layer = _declare(
        kind,
        name,
        [input],
        size,
        act=act,
        extra=_extra(layer_attr, "img_conv_layer", act),
        hw=(height, width),
        num_filters=filters,
        params=[param_attr.conf(f"_{name}.w0", fan)],
        bias=_bias(name, bias_attr, biases, (biases, 1)),
        channels=channels,
        in_hw=in_hw,
        groups=groups,
        kernel=kernel,
        stride=strides,
        padding=pads,
        dilation=gaps,
        shared_biases=bool(shared_biases),
    )
    return _report(layer, filters)


POOLS = {
    pooling.Max: "max",
    pooling.MaxWithMask: "max",
    pooling.CudnnMax: "max",
    pooling.Avg: "avg",
    pooling.CudnnAvg: "avg",
}


def _pool(pool_type: Any, function: str) -> str:
    if isinstance(pool_type, type):
        raise DeclarationError(f"{function}: pool_type={pool_type.__name__} is the class; write {pool_type.__name__}()")
    kind = POOLS.get(type(pooling.Max() if pool_type is None else pool_type))
    if kind is None:
        raise DeclarationError(f"{function}: pool_type: expected pooling.Max() or pooling.Avg(), got {pool_type!r}")
    return kind


def img_pool(
    input: Layer,
    pool_size: Size,
    name: str | None = None,
    num_channels: int | None = None,
    pool_type: pooling.Base | None = None,
    stride: Size = 1,
    padding: Size = 0,
    layer_attr: ExtraLayerAttribute | None = None,
    pool_size_y: int | None = None,
    stride_y: int | None = None,
    padding_y: int | None = None,
    ceil_mode: bool = True,
    exclude_mode: bool | None = None,
) -> Layer:
    """Pooling by `pool_type` (Max). Sizes are rounded up unless ceil_mode is False.

    exclude_mode: an average is over the real values of a window (None, True) or over pool_size² always (False).
    """
    input = _one(input, "img_pool: input")
    _extra(layer_attr, "img_pool_layer")
    kind = _pool(pool_type, "img_pool")
    channels = _channels(input, num_channels, "img_pool")
    kernel, strides = _pair(pool_size, pool_size_y, "pool_size", 1), _pair(stride, stride_y, "stride", 1)
    pads = _pair(padding, padding_y, "padding")
    in_hw = _height_width(input, channels)
    name = name or unique_name("pool")
    width, height = (
        _window(n, k, s, p, f"img_pool {name!r}", ceil=ceil_mode)
        for n, k, s, p in zip((in_hw[1], in_hw[0]), kernel, strides, pads, strict=True)
    )
    layer = _declare(
        "pool",
        name,
        [input],
        channels * height * width,
        hw=(height, width),
        num_filters=channels,
        channels=channels,
        in_hw=in_hw,
        pool=kind,
        kernel=kernel,
        stride=strides,
        padding=pads,
        ceil_mode=bool(ceil_mode),
        exclude=exclude_mode is None or bool(exclude_mode),
    )
    return _report(layer, channels)


def batch_norm(
    input: Layer,
    act: Activation | None = None,
    name: str | None = None,
    img3D: bool = False,
    num_channels: int | None = None,
    bias_attr: BiasAttr = None,
    param_attr: ParameterAttribute | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
    batch_norm_type: str | None = None,
    epsilon: float = 1e-5,
    moving_average_fraction: float = 0.9,
    use_global_stats: bool | None = None,
    mean_var_names: Sequence[str] | None = None,
) -> Layer:
    """Batch normalisation over each channel, or each value after a layer without channels; then `act` (Relu).

    Moving mean and variance both start at 0. use_global_stats=False: testing takes the batch's, too.
    """
    input = _one(input, "batch_norm: input")
    if img3D:
        raise DeclarationError("batch_norm: img3D: volumes are not supported")
    if epsilon < 1e-5:
        raise DeclarationError(f"batch_norm: epsilon must be no less than 1e-5; got {epsilon}")
    if batch_norm_type not in (None, "", "batch_norm", "cudnn_batch_norm"):
        raise DeclarationError(f"batch_norm_type: expected batch_norm or cudnn_batch_norm, got {batch_norm_type!r}")
    channels = _whole(num_channels or input.num_filters or input.size, "num_channels", 1)
    in_hw = _height_width(input, channels)
    name = name or unique_name("batch_norm")
    scale = _param(param_attr, initial_mean=1.0, initial_std=0.0).conf(f"_{name}.w0", channels)
    statistics = mean_var_names or (f"_{name}.w1", f"_{name}.w2")
    if len(statistics) != 2:
        raise DeclarationError(f"mean_var_names: expected two names, got {mean_var_names!r}")
    moving = ParameterAttribute(is_static=True, initial_std=0.0, initial_mean=0.0)
    mean, variance = (moving.conf(n, channels, (1, channels), is_shared=not settings.use_gpu) for n in statistics)
    act = _activation(act, activation.Relu)
    layer = _declare(
        "cudnn_batch_norm" if settings.use_gpu and batch_norm_type != "batch_norm" else "batch_norm",
        name,
        [input] * 3,
        input.size,
        act=act,
        extra=_extra(layer_attr, "batch_norm_layer", act),
        hw=in_hw if input.height or input.width else (0, 0),
        num_filters=channels,
        params=[scale, mean, variance],
        bias=_bias(name, bias_attr, channels, (1, channels)),
        channels=channels,
        in_hw=in_hw,
        epsilon=float(epsilon),
        fraction=float(moving_average_fraction),
        use_global_stats=use_global_stats,
    )
    return _report(layer, channels)


def img_cmrnorm(
    input: Layer,
    size: int,
    scale: float = 0.0128,
    power: float = 0.75,
    name: str | None = None,
    num_channels: int | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """x / (1 + scale/size · Σ x²)^power, the sum over `size` channels around each, from (size − 1) // 2 before it."""
    input = _one(input, "img_cmrnorm: input")
    _extra(layer_attr, "img_cmrnorm_layer")
    channels = _channels(input, num_channels, "img_cmrnorm")
    hw = _height_width(input, channels)
    return _declare(
        "norm",
        name or unique_name("crmnorm"),
        [input],
        input.size,
        hw=hw,
        num_filters=channels,
        channels=channels,
        in_hw=hw,
        window=_whole(size, "size", 1),
        scale=float(scale),
        power=float(power),
    )


def maxout(
    input: Layer,
    groups: int,
    num_channels: int | None = None,
    name: str | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """The largest of each `groups` channels that follow one another."""
    input = _one(input, "maxout: input")
    _extra(layer_attr, "maxout_layer")
    if input.act:
        raise DeclarationError(f"maxout: layer {input.name!r} must have a linear activation, it has {input.act}")
    channels, groups = _channels(input, num_channels, "maxout"), _whole(groups, "groups", 2)
    if channels % groups:
        raise DeclarationError(f"maxout: {groups} groups do not divide {channels} channels")
    hw = _height_width(input, channels)
    name = name or unique_name("maxout_layer")
    return _declare("maxout", name, [input], input.size // groups, hw=hw, channels=channels, in_hw=hw, groups=groups)


def spp(
    input: Layer,
    name: str | None = None,
    num_channels: int | None = None,
    pool_type: pooling.Base | None = None,
    pyramid_height: int | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Pooling into 1×1, 2×2, 4×4 … cells, `pyramid_height` grids one after the other: He et al. 2014."""
    input = _one(input, "spp: input")
    _extra(layer_attr, "spp_layer")
    channels = _channels(input, num_channels, "spp")
    levels = _whole(1 if pyramid_height is None else pyramid_height, "pyramid_height", 1)
    cells = (4**levels - 1) // 3
    return _declare(
        "spp",
        name or unique_name("spp"),
        [input],
        channels * cells,
        hw=(1, cells),
        num_filters=channels,
        channels=channels,
        in_hw=_height_width(input, channels),
        pool=_pool(pool_type, "spp"),
        levels=levels,
    )


def pad(
    input: Layer,
    pad_c: Sequence[int] | None = None,
    pad_h: Sequence[int] | None = None,
    pad_w: Sequence[int] | None = None,
    name: str | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Zeros before and after along channels, rows and columns: a pair each."""
    input = _one(input, "pad: input")
    _extra(layer_attr, "pad_layer")
    channels = _channels(input, None, "pad")
    in_hw = _height_width(input, channels)
    pads = [_pair(p or (0, 0), None, what) for what, p in (("pad_c", pad_c), ("pad_h", pad_h), ("pad_w", pad_w))]
    c, h, w = (n + sum(p) for n, p in zip((channels, *in_hw), pads, strict=True))
    name = name or unique_name("pad")
    return _declare(
        "pad", name, [input], c * h * w, hw=(h, w), num_filters=c, channels=channels, in_hw=in_hw, pads=pads
    )


def prelu(
    input: Layer,
    name: str | None = None,
    partial_sum: int = 1,
    channel_shared: bool | None = None,
    num_channels: int | None = None,
    param_attr: ParameterAttribute | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """max(0, x) + slope · min(0, x). Each `partial_sum` values that follow one another share a slope, 0.25 at first.

    channel_shared: one slope for all values (True), or one a channel (False).
    """
    input = _one(input, "prelu: input")
    _extra(layer_attr, "prelu_layer")
    channels = _channels(input, num_channels, "prelu")
    hw = _height_width(input, channels)
    if channel_shared is not None:
        partial_sum = input.size if channel_shared else hw[0] * hw[1]
    partial_sum = _whole(partial_sum, "partial_sum", 1)
    if input.size % partial_sum:
        raise DeclarationError(f"prelu: partial_sum={partial_sum} does not divide the size {input.size}")
    slopes = input.size // partial_sum
    name = name or unique_name("prelu_layer")
    param = _param(param_attr, initial_mean=0.25, initial_std=0.0).conf(f"_{name}.w0", slopes, (1, slopes))
    return _declare(
        "prelu", name, [input], input.size, hw=hw, num_filters=channels, params=[param], partial_sum=partial_sum
    )


# ---------------------------------------------------------------------------------------------------------------------
# Vectors, and layers of several inputs
# ---------------------------------------------------------------------------------------------------------------------


def fc(
    input: Inputs,
    size: int,
    act: Activation | None = None,
    name: str | None = None,
    param_attr: ParameterAttribute | Sequence[ParameterAttribute] | None = None,
    bias_attr: BiasAttr = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """act(Σ x·W + b), a W of [size of the input, size] for each input; `act` is Tanh."""
    inputs, size = _layers(input, "fc: input"), _whole(size, "size", 1)
    attrs = list(param_attr) if isinstance(param_attr, list | tuple) else [param_attr] * len(inputs)
    if len(attrs) != len(inputs):
        raise DeclarationError(f"fc: {len(attrs)} param_attr for {len(inputs)} inputs")
    if len(inputs) > 1 and isinstance(param_attr, ParameterAttribute) and param_attr.name:
        raise DeclarationError(f"fc: one param_attr named {param_attr.name!r} for {len(inputs)} inputs; pass a list")
    act = _activation(act, activation.Tanh)
    name = name or unique_name("fc_layer")
    params = [
        _param(attr).conf(f"_{name}.w{i}", source.size * size, (source.size, size))
        for i, (source, attr) in enumerate(zip(inputs, attrs, strict=True))
    ]
    bias = _bias(name, bias_attr, size, (1, size))
    return _declare(
        "fc", name, inputs, size, act=act, extra=_extra(layer_attr, "fc_layer", act), params=params, bias=bias
    )


def addto(
    input: Inputs,
    act: Activation | None = None,
    name: str | None = None,
    bias_attr: BiasAttr = False,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """act(the sum of the inputs); `act` is linear, and there is no bias unless asked for."""
    inputs = _layers(input, "addto: input")
    sizes = [source.size for source in inputs]
    if len(set(sizes)) > 1:
        raise DeclarationError(f"addto: the inputs are of different sizes: {sizes}")
    act = _activation(act, activation.Linear)
    name = name or unique_name("addto")
    filters = [source.num_filters for source in inputs if source.num_filters is not None]
    return _declare(
        "addto",
        name,
        inputs,
        sizes[0],
        act=act,
        extra=_extra(layer_attr, "addto_layer", act),
        hw=(inputs[0].height, inputs[0].width),
        num_filters=filters[-1] if filters else None,
        bias=_bias(name, bias_attr or False, sizes[0], (1, sizes[0])),
    )


def dropout(input: Layer, dropout_rate: float, name: str | None = None) -> Layer:
    """The input; training sets the share `dropout_rate` of its values to 0, testing multiplies by 1 − dropout_rate."""
    extra = ExtraLayerAttribute(drop_rate=dropout_rate)
    return addto(_one(input, "dropout: input"), name=name or unique_name("dropout"), layer_attr=extra)


def concat(
    input: Inputs,
    act: Activation | None = None,
    name: str | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
    bias_attr: BiasAttr = False,
) -> Layer:
    """The inputs one after the other: maps of one height and width along their channels. It has no `num_filters`."""
    inputs = _layers(input, "concat: input")
    shapes = [(source.height, source.width) for source in inputs]
    if len(set(shapes)) > 1:
        raise DeclarationError(f"concat: the inputs' heights and widths differ: {shapes}")
    act = _activation(act, activation.Linear)
    name = name or unique_name("concat")
    size = sum(source.size for source in inputs)
    return _declare(
        "concat",
        name,
        inputs,
        size,
        act=act,
        extra=_extra(layer_attr, "concat_layer", act),
        hw=shapes[0],
        bias=_bias(name, bias_attr or False, size, (1, size)),
    )


def slope_intercept(
    input: Layer,
    name: str | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """slope · x + intercept"""
    input = _one(input, "slope_intercept: input")
    _extra(layer_attr, "slope_intercept_layer")
    name = name or unique_name("slope_intercept_layer")
    slope, intercept = float(slope), float(intercept)
    return _declare("slope_intercept", name, [input], input.size, slope=slope, intercept=intercept)


def sum_to_one_norm(input: Layer, name: str | None = None, layer_attr: ExtraLayerAttribute | None = None) -> Layer:
    """x / Σ x"""
    input = _one(input, "sum_to_one_norm: input")
    _extra(layer_attr, "sum_to_one_norm_layer")
    return _declare("sum_to_one_norm", name or unique_name("sum_to_one_norm_layer"), [input], input.size)


def max_id(input: Layer, name: str | None = None, layer_attr: ExtraLayerAttribute | None = None) -> Layer:
    """The place of the largest value; it has no value of its own, only the fields "id" and "prob"."""
    input = _one(input, "max_id: input")
    _extra(layer_attr, "maxid_layer")
    return _declare("maxid", name or unique_name("maxid_layer"), [input], input.size)


@dataclass(frozen=True)
class Projection:
    """A term of a `mixed` layer. offset: None for a full matrix, else where the slice of the input begins."""

    input: Layer
    size: int
    offset: int | None
    param_attr: ParameterAttribute | None = None


def identity_projection(input: Layer, offset: int | None = None, size: int | None = None) -> Projection:
    """The input, or `size` of its values from `offset` on."""
    input = _one(input, "identity_projection: input")
    start = _whole(offset or 0, "offset")
    size = input.size - start if size is None else _whole(size, "size", 1)
    if start + size > input.size:
        raise DeclarationError(f"identity_projection: {start} + {size} is more than the input's size {input.size}")
    return Projection(input, size, start)


def full_matrix_projection(input: Layer, size: int = 0, param_attr: ParameterAttribute | None = None) -> Projection:
    """x·W; size 0 takes that of the mixed layer."""
    return Projection(_one(input, "full_matrix_projection: input"), _whole(size, "size"), None, _param(param_attr))


class Mixed(Layer):
    """A mixed layer, filled in a `with` block: `with layer.mixed(size=10) as m: m += layer.identity_projection(x)`."""

    def __enter__(self) -> Mixed:
        self.terms: list[Projection] = []
        return self

    def __iadd__(self, term: Projection) -> Mixed:
        if not hasattr(self, "terms"):
            raise DeclarationError(f"mixed {self.name!r}: terms are added inside `with layer.mixed(…) as m:`")
        if not isinstance(term, Projection):
            raise DeclarationError(f"mixed {self.name!r}: expected a projection, got {term!r}")
        self.terms.append(term)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._fill(self.terms)
        del self.terms

    def _fill(self, terms: Sequence[Projection]) -> None:
        sizes = {term.size for term in terms} - {0} | ({self.size} - {0})
        if len(sizes) != 1 or not terms:
            raise DeclarationError(f"mixed {self.name!r}: expected terms of one size, got the sizes {sorted(sizes)}")
        self.size = sizes.pop()
        self.inputs = tuple(term.input for term in terms)
        self.params = tuple(
            term.param_attr.conf(f"_{self.name}.w{i}", term.input.size * self.size, (term.input.size, self.size))
            if term.param_attr is not None
            else None
            for i, term in enumerate(terms)
        )
        bias_attr = self.attrs["bias_attr"]
        self.bias = _bias(self.name, bias_attr, self.size, (1, self.size))
        extra = {k: v for k, v in self.attrs.items() if k != "bias_attr"}
        self.attrs = {"offsets": [term.offset for term in terms], **extra}
        self.serial = next_serial()


def mixed(
    size: int = 0,
    input: Projection | Sequence[Projection] | None = None,
    name: str | None = None,
    act: Activation | None = None,
    bias_attr: BiasAttr = False,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """act(the sum of projections); `act` is linear. Without `input` it is filled in a `with` block."""
    act = _activation(act, activation.Linear)
    extra = _extra(layer_attr, "mixed_layer", act)
    layer = Mixed(
        name=name or unique_name("mixed"),
        kind="mixed",
        size=_whole(size, "size"),
        activation=act,
        drop_rate=extra.pop("drop_rate", 0.0),
        attrs={**extra, "bias_attr": bias_attr or False},
    )
    if input is not None:
        with layer:
            for term in [input] if isinstance(input, Projection) else input:
                layer += term
    remember(layer)
    return layer


# ---------------------------------------------------------------------------------------------------------------------
# Costs: one number a sample. `weight` multiplies it; `coeff` multiplies its gradient, and not the number.
# ---------------------------------------------------------------------------------------------------------------------


def _cost(
    kind: str,
    prefix: str,
    name: str | None,
    inputs: Sequence[Layer | None],
    layer_attr: ExtraLayerAttribute | None,
    coeff: float = 1.0,
    **attrs: Any,
) -> Layer:
    layers = [_one(layer, f"{prefix}: input") for layer in inputs if layer is not None]
    _extra(layer_attr, prefix)
    return _declare(kind, name or unique_name(prefix), layers, 1, coeff=float(coeff), **attrs)


def _same_size(input: Layer, label: Layer, function: str) -> None:
    if _one(input, f"{function}: input").size != _one(label, f"{function}: label").size:
        raise DeclarationError(f"{function}: input has {input.size} values, label has {label.size}; they must agree")


def cross_entropy_cost(
    input: Layer,
    label: Layer,
    name: str | None = None,
    coeff: float = 1.0,
    weight: Layer | None = None,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """−log input[label]; the input is probabilities."""
    inputs = [input, label, weight]
    return _cost("multi-class-cross-entropy", "cross_entropy", name, inputs, layer_attr, coeff)


def classification_cost(
    input: Layer,
    label: Layer,
    weight: Layer | None = None,
    name: str | None = None,
    evaluator: Callable[..., None] | Sequence[Callable[..., None]] | None = evaluator.classification_error_evaluator,
    layer_attr: ExtraLayerAttribute | None = None,
    coeff: float = 1.0,
    top_k: int | None = None,
) -> Layer:
    """`cross_entropy_cost` of a softmax layer and a data layer, with metrics named after their functions."""
    if _one(input, "classification_cost: input").kind == "data":
        raise DeclarationError(f"classification_cost: input {input.name!r} is a data layer; are the arguments swapped?")
    if input.act != "softmax":
        raise DeclarationError(
            f"classification_cost: layer {input.name!r} must have the activation Softmax, it has {input.act or 'none'}"
        )
    if _one(label, "classification_cost: label").kind != "data":
        raise DeclarationError(f"classification_cost: label {label.name!r} must be a data layer, it is a {label.kind}")
    inputs = [input, label, weight]
    cost = _cost("multi-class-cross-entropy", "cost", name, inputs, layer_attr, coeff)
    for function in [evaluator] if callable(evaluator) else evaluator or ():
        options = {} if top_k is None else {"top_k": top_k}
        function(name=function.__name__, input=input, label=label, weight=weight, **options)
    return cost


def square_error_cost(
    input: Layer,
    label: Layer,
    weight: Layer | None = None,
    name: str | None = None,
    coeff: float = 1.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Σ (input − label)², without ½ and without a mean."""
    _same_size(input, label, "square_error_cost")
    return _cost("square_error", "square_error_cost", name, [input, label, weight], layer_attr, coeff)


mse_cost = regression_cost = square_error_cost


def multi_binary_label_cross_entropy_cost(
    input: Layer,
    label: Layer,
    name: str | None = None,
    coeff: float = 1.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """−Σ (label · log input + (1 − label) · log(1 − input)); the input is probabilities, the label 0 or 1 each."""
    _same_size(input, label, "multi_binary_label_cross_entropy_cost")
    kind = "multi_binary_label_cross_entropy"
    return _cost(kind, kind, name, [input, label], layer_attr, coeff)


def huber_regression_cost(
    input: Layer,
    label: Layer,
    name: str | None = None,
    delta: float = 1.0,
    coeff: float = 1.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Σ of ½ d² where |d| ≤ delta, delta · (|d| − ½ delta) elsewhere; d = input − label."""
    _same_size(input, label, "huber_regression_cost")
    inputs, delta = [input, label], float(delta)
    return _cost("huber_regression", "huber_regression_cost", name, inputs, layer_attr, coeff, delta=delta)


def huber_classification_cost(
    input: Layer,
    label: Layer,
    name: str | None = None,
    coeff: float = 1.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """−4a where a < −1, (1 − a)² where a < 1, else 0; a = input · (2 label − 1), the label 0 or 1."""
    if _one(input, "huber_classification_cost: input").size != 1:
        raise DeclarationError(f"huber_classification_cost: input must have the size 1, it has {input.size}")
    return _cost("huber_classification", "huber_classification_cost", name, [input, label], layer_attr, coeff)


def smooth_l1_cost(
    input: Layer,
    label: Layer,
    name: str | None = None,
    coeff: float = 1.0,
    layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Σ of ½ d² where |d| < 1, |d| − ½ elsewhere; d = input − label."""
    _same_size(input, label, "smooth_l1_cost")
    return _cost("smooth_l1", "smooth_l1_cost", name, [input, label], layer_attr, coeff)


def sum_cost(input: Layer, name: str | None = None, layer_attr: ExtraLayerAttribute | None = None) -> Layer:
    """The sum of the input's values."""
    return _cost("sum_cost", "sum_cost", name, [input], layer_attr)


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"layer.{name} is not supported: opsin.v2 has the layers of image classification, "
        "not sequences, language, detection or volumes"
    )
