"""Groups of layers that programs use as one. Their layers are named as if they were declared one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opsin.errors import DeclarationError
from opsin.v2 import layer, pooling
from opsin.v2.activation import Base as Activation
from opsin.v2.activation import Linear, Relu, Softmax
from opsin.v2.attr import ExtraLayerAttribute, ParameterAttribute
from opsin.v2.graph import Layer, unique_name
from opsin.v2.layer import BiasAttr


def simple_img_conv_pool(
    input: Layer,
    filter_size: int,
    num_filters: int,
    pool_size: int,
    name: str | None = None,
    pool_type: pooling.Base | None = None,
    act: Activation | None = None,
    groups: int = 1,
    conv_stride: int = 1,
    conv_padding: int = 0,
    bias_attr: BiasAttr = None,
    num_channel: int | None = None,
    param_attr: ParameterAttribute | None = None,
    shared_bias: bool = True,
    conv_layer_attr: ExtraLayerAttribute | None = None,
    pool_stride: int = 1,
    pool_padding: int = 0,
    pool_layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Convolution with `act` (Relu), then pooling (Max)."""
    name = name or unique_name("conv_pool")
    conv = layer.img_conv(
        input,
        filter_size,
        num_filters,
        name=f"{name}_conv",
        num_channels=num_channel,
        act=act,
        groups=groups,
        stride=conv_stride,
        padding=conv_padding,
        bias_attr=bias_attr,
        param_attr=param_attr,
        shared_biases=shared_bias,
        layer_attr=conv_layer_attr,
    )
    return layer.img_pool(
        conv,
        pool_size,
        name=f"{name}_pool",
        pool_type=pool_type,
        stride=pool_stride,
        padding=pool_padding,
        layer_attr=pool_layer_attr,
    )


def img_conv_bn_pool(
    input: Layer,
    filter_size: int,
    num_filters: int,
    pool_size: int,
    name: str | None = None,
    pool_type: pooling.Base | None = None,
    act: Activation | None = None,
    groups: int = 1,
    conv_stride: int = 1,
    conv_padding: int = 0,
    conv_bias_attr: BiasAttr = None,
    num_channel: int | None = None,
    conv_param_attr: ParameterAttribute | None = None,
    shared_bias: bool = True,
    conv_layer_attr: ExtraLayerAttribute | None = None,
    bn_param_attr: ParameterAttribute | None = None,
    bn_bias_attr: BiasAttr = None,
    bn_layer_attr: ExtraLayerAttribute | None = None,
    pool_stride: int = 1,
    pool_padding: int = 0,
    pool_layer_attr: ExtraLayerAttribute | None = None,
) -> Layer:
    """Convolution, batch normalisation with `act` (Relu), pooling (Max)."""
    name = name or unique_name("conv_bn_pool")
    conv = layer.img_conv(
        input,
        filter_size,
        num_filters,
        name=f"{name}_conv",
        num_channels=num_channel,
        act=Linear(),
        groups=groups,
        stride=conv_stride,
        padding=conv_padding,
        bias_attr=conv_bias_attr,
        param_attr=conv_param_attr,
        shared_biases=shared_bias,
        layer_attr=conv_layer_attr,
    )
    norm = layer.batch_norm(
        conv, act, name=f"{name}_bn", bias_attr=bn_bias_attr, param_attr=bn_param_attr, layer_attr=bn_layer_attr
    )
    return layer.img_pool(
        norm,
        pool_size,
        name=f"{name}_pool",
        pool_type=pool_type,
        stride=pool_stride,
        padding=pool_padding,
        layer_attr=pool_layer_attr,
    )


def img_conv_group(
    input: Layer,
    conv_num_filter: Sequence[int],
    pool_size: int,
    num_channels: int | None = None,
    conv_padding: int | Sequence[int] = 1,
    conv_filter_size: int | Sequence[int] = 3,
    conv_act: Activation | Sequence[Activation] | None = None,
    conv_with_batchnorm: bool | Sequence[bool] = False,
    conv_batchnorm_drop_rate: float | Sequence[float] = 0,
    pool_stride: int = 1,
    pool_type: pooling.Base | None = None,
    param_attr: ParameterAttribute | None = None,
) -> Layer:
    """Convolutions, each with `conv_act` (Relu) or with batch normalisation that has it; then pooling (Max).

    An option is one value for all convolutions, or a list of one for each. With batch normalisation the convolutions
    are linear and keep their biases; the drop rate is the normalisation's.
    """
    if not isinstance(conv_num_filter, list | tuple):
        raise DeclarationError(f"conv_num_filter: expected a list of integers, got {conv_num_filter!r}")

    def each(value: Any, what: str) -> Sequence[Any]:
        values = value if isinstance(value, list | tuple) else [value] * len(conv_num_filter)
        if len(values) != len(conv_num_filter):
            raise DeclarationError(f"{what}: {len(values)} values for {len(conv_num_filter)} convolutions")
        return values

    columns = zip(
        conv_num_filter,
        each(conv_padding, "conv_padding"),
        each(conv_filter_size, "conv_filter_size"),
        each(conv_act, "conv_act"),
        each(conv_with_batchnorm, "conv_with_batchnorm"),
        each(conv_batchnorm_drop_rate, "conv_batchnorm_drop_rate"),
        strict=True,
    )
    for i, (filters, padding, size, act, with_norm, drop_rate) in enumerate(columns):
        input = layer.img_conv(
            input,
            size,
            filters,
            num_channels=num_channels if i == 0 else None,
            act=Linear() if with_norm else act,
            padding=padding,
            param_attr=param_attr,
        )
        if with_norm:
            extra = None if abs(drop_rate) < 1e-5 else ExtraLayerAttribute(drop_rate=drop_rate)
            input = layer.batch_norm(input, act, layer_attr=extra)
    return layer.img_pool(input, pool_size, pool_type=pool_type, stride=pool_stride)


def small_vgg(input_image: Layer, num_channels: int, num_classes: int) -> Layer:
    """For pictures of 32×32: four groups of convolutions with batch normalisation, a hidden layer, softmax."""
    x, channels = input_image, num_channels
    for filters, times, drops in (
        (64, 2, [0.3, 0]),
        (128, 2, [0.4, 0]),
        (256, 3, [0.4, 0.4, 0]),
        (512, 3, [0.4, 0.4, 0]),
    ):
        x = img_conv_group(
            x,
            [filters] * times,
            2,
            num_channels=channels,
            conv_act=Relu(),
            conv_with_batchnorm=True,
            conv_batchnorm_drop_rate=drops,
            pool_stride=2,
            pool_type=pooling.Max(),
        )
        channels = filters
    x = layer.img_pool(x, 2, stride=2, pool_type=pooling.Max())
    x = layer.dropout(x, 0.5)
    x = layer.fc(x, 512, Linear(), layer_attr=ExtraLayerAttribute(drop_rate=0.5))
    x = layer.batch_norm(x, Relu())
    return layer.fc(x, num_classes, Softmax())


def vgg_16_network(input_image: Layer, num_channels: int, num_classes: int = 1000) -> Layer:
    """VGG-16 without batch normalisation: Simonyan and Zisserman 2014, table 1, column D."""
    x, channels = input_image, num_channels
    for filters, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        x = img_conv_group(
            x,
            [filters] * times,
            2,
            num_channels=channels,
            conv_act=Relu(),
            pool_stride=2,
            pool_type=pooling.Max(),
        )
        channels = filters
    for _ in range(2):
        x = layer.fc(x, 4096, Relu(), layer_attr=ExtraLayerAttribute(drop_rate=0.5))
    return layer.fc(x, num_classes, Softmax())


def img_separable_conv(
    input: Layer,
    num_channels: int,
    num_out_channels: int,
    filter_size: int,
    stride: int = 1,
    padding: int = 0,
    depth_multiplier: int = 1,
    act: Activation | None = None,
    bias_attr: BiasAttr = None,
    param_attr: ParameterAttribute | None = None,
    shared_bias: bool = True,
    layer_type: str | None = "exconv",
    name: str | None = None,
) -> Layer:
    """A filter (or `depth_multiplier`) for each channel, then a 1×1 convolution with `act` (Relu)."""
    name = name or unique_name("separable_conv")
    depthwise = layer.img_conv(
        input,
        filter_size,
        num_channels * depth_multiplier,
        name=f"{name}_depthwise_conv",
        num_channels=num_channels,
        act=Linear(),
        groups=num_channels,
        stride=stride,
        padding=padding,
        bias_attr=bias_attr,
        param_attr=param_attr,
        shared_biases=shared_bias,
        layer_type=layer_type,
    )
    return layer.img_conv(
        depthwise,
        1,
        num_out_channels,
        name=f"{name}_pointwise_conv",
        act=act,
        bias_attr=bias_attr,
        param_attr=param_attr,
        shared_biases=shared_bias,
    )


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"networks.{name} is not supported: opsin.v2 has the networks of image classification, not of sequences"
    )
