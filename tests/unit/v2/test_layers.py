"""Declarations: names, sizes, defaults, what programs read of a layer, and what is refused in which words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import opsin.v2 as paddle
from opsin.errors import DeclarationError, UsageError
from opsin.v2 import graph, layer, networks
from opsin.v2.graph import Layer
from opsin.v2.parameters import create

activation, pooling, attr, data_type = paddle.activation, paddle.pooling, paddle.attr, paddle.data_type


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graph.reset()
    yield
    graph.reset()
    graph.settings.use_gpu, graph.settings.trainer_count, graph.settings.seed = False, 1, 1


def dense(name: str = "x", size: int = 48, height: int | None = None, width: int | None = None) -> Layer:
    return layer.data(name, data_type.dense_vector(size), height, width)


def label(size: int = 4) -> Layer:
    return layer.data("label", data_type.integer_value(size))


def image() -> Layer:
    """A picture of 3 channels and 4×4 pixels whose channels are known."""
    return dense("image", 48, 4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Names and defaults
# ---------------------------------------------------------------------------------------------------------------------

NAMES: list[tuple[Callable[[Layer], Layer], str]] = [
    (lambda x: layer.fc(x, 2), "__fc_layer_0__"),
    (lambda x: layer.img_conv(x, 3, 2), "__conv_0__"),
    (lambda x: layer.img_pool(x, 2), "__pool_0__"),
    (lambda x: layer.batch_norm(x), "__batch_norm_0__"),
    (lambda x: layer.addto(x), "__addto_0__"),
    (lambda x: layer.concat([x, x]), "__concat_0__"),
    (lambda x: layer.dropout(x, 0.5), "__dropout_0__"),
    (lambda x: layer.img_cmrnorm(x, 5), "__crmnorm_0__"),
    (lambda x: layer.max_id(x), "__maxid_layer_0__"),
    (lambda x: layer.mixed(input=layer.identity_projection(x)), "__mixed_0__"),
    (lambda x: layer.slope_intercept(x), "__slope_intercept_layer_0__"),
    (lambda x: layer.maxout(x, 3), "__maxout_layer_0__"),
    (lambda x: layer.spp(x), "__spp_0__"),
    (lambda x: layer.pad(x, [1, 1]), "__pad_0__"),
    (lambda x: layer.prelu(x), "__prelu_layer_0__"),
    (lambda x: layer.sum_to_one_norm(x), "__sum_to_one_norm_layer_0__"),
    (lambda x: layer.classification_cost(layer.fc(x, 4, activation.Softmax()), label()), "__cost_0__"),
    (lambda x: layer.cross_entropy_cost(x, label()), "__cross_entropy_0__"),
    (lambda x: layer.square_error_cost(x, x), "__square_error_cost_0__"),
    (lambda x: layer.multi_binary_label_cross_entropy_cost(x, x), "__multi_binary_label_cross_entropy_0__"),
    (lambda x: layer.huber_classification_cost(layer.fc(x, 1), label()), "__huber_classification_cost_0__"),
    (lambda x: layer.sum_cost(x), "__sum_cost_0__"),
    (lambda x: networks.simple_img_conv_pool(x, 3, 2, 2), "__conv_pool_0___pool"),
    (lambda x: networks.img_conv_bn_pool(x, 3, 2, 2), "__conv_bn_pool_0___pool"),
    (lambda x: networks.img_separable_conv(x, 3, 2, 3, name="n"), "n_pointwise_conv"),
]


@pytest.mark.parametrize("declare, name", NAMES)
def test_automatic_names(declare: Callable[[Layer], Layer], name: str) -> None:
    assert declare(image()).name == name


def test_names_count_on_for_each_function_and_given_names_do_not_count() -> None:
    x = image()
    names = [layer.fc(x, 2, name=name).name for name in (None, "mine", None)]
    assert names == ["__fc_layer_0__", "mine", "__fc_layer_1__"]
    assert layer.dropout(x, 0.5).name == "__dropout_0__" and layer.addto(x).name == "__addto_0__"
    assert [layer.mse_cost(x, x).name, layer.regression_cost(x, x).name] == [
        "__square_error_cost_0__",
        "__square_error_cost_1__",
    ]
    paddle.reset()
    assert layer.fc(x, 2).name == "__fc_layer_0__"


def test_the_inner_names_of_groups() -> None:
    x = networks.img_conv_bn_pool(image(), 3, 2, 2)
    assert [x.name, x.parents[0].name, x.parents[0].parents[0].name] == [
        *("__conv_bn_pool_0___pool", "__conv_bn_pool_0___bn", "__conv_bn_pool_0___conv")
    ]
    depthwise = networks.img_separable_conv(image(), 3, 8, 3, padding=1, depth_multiplier=2, name="s").parents[0]
    assert (depthwise.name, depthwise.num_filters, depthwise.act) == ("s_depthwise_conv", 6, "")
    assert depthwise.params[0] is not None and depthwise.params[0].size == 6 * 9


def test_default_activations() -> None:
    x = image()
    group = networks.img_conv_group(x, [4], 2)
    acts = [layer.fc(x, 2), layer.img_conv(x, 3, 2), layer.batch_norm(x), layer.addto(x), layer.concat(x)]
    acts += [layer.mixed(input=layer.identity_projection(x)), group.parents[0]]
    assert [a.act for a in acts] == ["tanh", "relu", "relu", "", "", "", "relu"]


def test_groups_with_batch_norm_keep_the_bias_and_drop_on_the_norm() -> None:
    x = networks.img_conv_group(
        image(),
        (4, 5),
        2,
        conv_with_batchnorm=[True, False],
        conv_batchnorm_drop_rate=[0.3, 0],
        conv_act=activation.Tanh(),
    )
    second = x.parents[0]
    norm = second.parents[0]
    first = norm.parents[0]
    assert (second.kind, second.act, second.drop_rate) == ("exconv", "tanh", 0)
    assert (norm.kind, norm.act, norm.drop_rate) == ("batch_norm", "tanh", 0.3)
    assert (first.act, first.drop_rate) == ("", 0) and first.bias is not None


def test_small_vgg_takes_the_digits() -> None:
    out = networks.small_vgg(dense("x", 784), 1, 10)
    assert (out.size, out.act) == (10, "softmax") and len(create(out)) == 68


def test_num_filters_is_what_programs_read() -> None:
    x = image()
    assert (x.num_filters, dense("raw").num_filters) == (3, None)
    known = {
        "conv": (layer.img_conv(x, 3, 7), 7),
        "pool": (layer.img_pool(x, 2), 3),
        "norm": (layer.batch_norm(x), 3),
        "cmrnorm": (layer.img_cmrnorm(x, 5), 3),
        "spp": (layer.spp(x), 3),
        "pad": (layer.pad(x, [1, 1]), 5),
        "prelu": (layer.prelu(x), 3),
        "dropout": (layer.dropout(x, 0.1), 3),
        "addto of the last that has one": (layer.addto([x, layer.slope_intercept(x)]), 3),
        "fc": (layer.fc(x, 2), None),
        "concat": (layer.concat([x, x]), None),
        "maxout": (layer.maxout(x, 3), None),
        "mixed": (layer.mixed(input=layer.identity_projection(x)), None),
        "slope": (layer.slope_intercept(x), None),
        "cost": (layer.sum_cost(x), None),
        "max_id": (layer.max_id(x), None),
    }
    assert {key: made.num_filters for key, (made, _) in known.items()} == {key: n for key, (_, n) in known.items()}


def test_the_attributes_of_a_layer() -> None:
    x = image()
    conv = layer.img_conv(x, 3, 7, name="c")
    assert (conv.full_name, conv.layer_type, conv.parents, conv.size) == ("c", "exconv", [x], 28)
    assert (conv.height, conv.width, conv.depth, conv.outputs) == (2, 2, 1, ["default"])
    assert isinstance(conv.activation, activation.Relu) and layer.sum_cost(x).size == 1
    assert layer.get_layer("c") is conv and layer.get_layer("nothing") is None


def test_a_size_that_is_a_whole_float_is_taken() -> None:
    """`(filter_size - 1) / 2` and `channels / ratio` gave integers in Python 2."""
    conv = layer.img_conv(image(), 3, 8 / 2, padding=(3 - 1) / 2)  # type: ignore[arg-type]
    assert conv.size == 4 * 16 and isinstance(conv.size, int)
    assert layer.fc(conv, 20 / 2).size == 10  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=r"size: expected an integer of at least 1, got 2\.5"):
        layer.fc(conv, 5 / 2)  # type: ignore[arg-type]


def test_convolutions_round_down_pools_up() -> None:
    x = dense("x", 3 * 8 * 8)
    assert layer.img_conv(x, 3, 1, num_channels=3, stride=2).height == 3  # (8 - 3) / 2 = 2.5
    assert layer.img_pool(x, 3, num_channels=3, stride=2).height == 4
    assert layer.img_pool(x, 8, num_channels=3).height == 1  # stride 1
    wide = layer.img_conv(x, [7, 1], 1, num_channels=3, padding=[3, 0], stride=[1, 2])  # x, y
    assert (wide.width, wide.height) == (8, 4)
    assert layer.img_conv(x, 3, 1, num_channels=3, filter_size_y=1, dilation=2).width == 4
    assert layer.img_conv(x, 4, 2, num_channels=3, trans=True, stride=2, padding=1).size == 2 * 16 * 16


def test_use_gpu_decides_layer_types_as_it_did() -> None:
    paddle.init(use_gpu=True)
    x = image()
    assert layer.img_conv(x, 3, 2).kind == "cudnn_conv" and layer.batch_norm(x).kind == "cudnn_batch_norm"
    assert layer.img_conv(x, 3, 2, layer_type="exconv").kind == "exconv"
    assert not any(conf.is_shared for conf in layer.batch_norm(x).confs())
    paddle.init(use_gpu=False)
    assert [conf.is_shared for conf in layer.batch_norm(x).confs()] == [False, True, True, False]


def test_mixed_in_a_with_block() -> None:
    x = image()
    with layer.mixed(size=6, act=activation.Relu()) as m:
        m += layer.full_matrix_projection(x)
        m += layer.identity_projection(x, offset=3, size=6)
        with pytest.raises(DeclarationError, match="expected a projection"):
            m += x
    m: Any = m
    assert (m.size, m.act, m.parents, m.attrs["offsets"]) == (6, "relu", [x, x], [None, 3])
    assert [conf.name for conf in m.confs()] == ["___mixed_0__.w0"] and m.confs()[0].dims == (48, 6)
    assert graph.topological([layer.fc(m, 2)])[-2] is m
    for wrong in ([layer.identity_projection(x), layer.identity_projection(x, size=3)], []):
        with pytest.raises(DeclarationError, match="expected terms of one size"):
            layer.mixed(input=wrong, size=0 if wrong else 6)
    with pytest.raises(DeclarationError, match="more than the input's size"):
        layer.identity_projection(x, offset=40, size=9)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------------------


def weight(made: Layer) -> graph.ParameterConf:
    conf = made.params[0]
    assert conf is not None
    return conf


def test_how_weights_start() -> None:
    x = image()
    assert weight(layer.img_conv(x, 3, 6, groups=3)).initial_std == (2 / (9 * 3)) ** 0.5  # not divided by groups
    assert weight(layer.img_conv(x, [2, 4], 6)).initial_std == (2 / (4 * 3)) ** 0.5  # the width alone
    assert weight(layer.fc(x, 5)).initial_std == 1 / 48**0.5 and weight(layer.fc(x, 5)).smart
    one = weight(layer.fc(x, 5, param_attr=attr.Param(initial_std=0.3)))
    assert (one.initial_mean, one.initial_std, one.strategy, one.smart) == (0, 0.3, 0, False)
    one = weight(layer.fc(x, 5, param_attr=attr.Param(initial_mean=2)))
    assert (one.initial_mean, one.initial_std) == (2, 0.01)
    one = weight(layer.fc(x, 5, param_attr=attr.Param(initial_max=3.0, initial_min=1.0)))
    assert (one.initial_mean, one.initial_std, one.strategy) == (2, 1, 1)
    assert weight(layer.batch_norm(x, param_attr=attr.Param(name="s"))).initial_std == 1 / 3**0.5


def test_one_object_given_to_several_convolutions_keeps_the_first_deviation() -> None:
    """As it was: the first convolution writes its own into the object."""
    shared = attr.Param()
    stds = [weight(layer.img_conv(image(), size, 2, param_attr=shared)).initial_std for size in (3, 1)]
    assert stds == [(2 / 27) ** 0.5] * 2


def test_biases() -> None:
    x = image()
    plain = layer.fc(x, 5).bias
    assert plain is not None and (plain.initial_mean, plain.initial_std, plain.dims) == (0, 0, (1, 5))
    assert plain.name == "___fc_layer_0__.wbias" and layer.fc(x, 5, bias_attr=True).bias is not None
    assert layer.fc(x, 5, bias_attr=False).bias is None and layer.addto(x).bias is None
    added = layer.addto(x, bias_attr=True).bias
    assert added is not None and added.dims == (1, 48)
    trap = attr.Param(learning_rate=2.0)  # smart, so that it does not start at 0
    fc, conv = layer.fc(x, 5, bias_attr=trap).bias, layer.img_conv(x, 3, 4, bias_attr=trap).bias
    assert fc is not None and conv is not None
    assert (fc.initial_std, fc.learning_rate) == (1.0, 2.0) and (conv.initial_std, conv.dims) == (0.5, (4, 1))
    unshared = layer.img_conv(x, 3, 4, shared_biases=False).bias
    assert unshared is not None and unshared.dims == (16, 1)


def test_what_a_parameter_is_told() -> None:
    x = image()
    told = attr.Param(name="w", l2_rate=0.5, learning_rate=0.1, momentum=0.3, gradient_clipping_threshold=4.0)
    conf = weight(layer.fc(x, 5, param_attr=told))
    assert (conf.name, conf.decay_rate, conf.learning_rate, conf.momentum, conf.clip) == ("w", 0.5, 0.1, 0.3, 4.0)
    assert weight(layer.fc(x, 5, param_attr=attr.Param(l2_rate=0.0))).decay_rate is None  # 0 is not set
    fixed = weight(layer.fc(x, 5, param_attr=attr.Param(is_static=True, l2_rate=0.5)))
    assert fixed.is_static and fixed.decay_rate is None
    with pytest.raises(RuntimeError, match="Unexpected branch"):
        attr.Param(initial_max=1.0)
    for wrong, message in (
        ({"initial_max": 1.0, "initial_min": 2.0}, "expected less than"),
        ({"l1_rate": 0.1}, "L1 decay is not supported"),
        ({"update_hooks": attr.Hook("pruning", 0.5)}, "pruning"),
        ({"sparse_update": True}, "sparse_update"),
        ({"initializer": 3}, "expected a function"),
    ):
        with pytest.raises(DeclarationError, match=message):
            attr.Param(**wrong)
    with pytest.raises(DeclarationError, match="sparsity_ratio"):
        attr.Hook("pruning", 2)


def test_an_initializer_is_given_the_name_and_an_order_of_sharing() -> None:
    x = image()
    first = layer.fc(x, 5, param_attr=attr.Param("w", initializer=lambda name: np.full((48, 5), len(name))))
    both = layer.addto([first, layer.fc(x, 5, param_attr=attr.Param("w"), bias_attr=False)])
    parameters = create(both)
    assert parameters.keys() == ["w", "___fc_layer_0__.wbias"] and (parameters["w"] == 1).all()
    with pytest.raises(DeclarationError, match=r"'w' does not have same size: 240 \[48, 5\].*25 \[5, 5\] in layer"):
        create(layer.fc(both, 5, param_attr=attr.Param("w")))


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Callable[[Layer], object], str]] = [
    (lambda x: layer.img_conv(dense("raw"), 3, 2), r"channels of layer 'raw' \(a data\) is not known"),
    (lambda x: layer.img_pool(layer.concat([x, x]), 2), r"layer '__concat_0__' \(a concat\) is not known"),
    (lambda x: layer.batch_norm(layer.concat([x, x])), "Incorrect input image size 4 \\* 4"),
    (lambda x: layer.img_conv(dense("raw", 47), 3, 2, num_channels=3), "Incorrect input image size"),
    (lambda x: layer.img_conv(x, 5, 2), "a window of 5 does not fit into 4"),
    (lambda x: layer.img_conv(x, 3, 4, groups=2), "2 groups do not divide 3 channels"),
    (lambda x: layer.img_conv(x, [3, 3, 3], 4), "expected a number or a pair"),
    (lambda x: layer.img_conv(x, 3, 4, stride=0), "stride: expected an integer of at least 1"),
    (lambda x: layer.img_conv(x, 3, 4, layer_type="conv"), "expected exconv or cudnn_conv"),
    (lambda x: layer.img_pool(x, 2, pool_type=pooling.Sum()), r"expected pooling.Max\(\) or pooling.Avg\(\), got Sum"),
    (lambda x: layer.img_pool(x, 2, pool_type=pooling.Max), r"is the class; write Max\(\)"),  # type: ignore[arg-type]
    (lambda x: layer.img_pool(x, 2, pool_type=pooling.CudnnAvgInclPad()), "got CudnnAvgInclPad"),
    (lambda x: layer.batch_norm(x, epsilon=1e-6), "epsilon must be no less than 1e-5"),
    (lambda x: layer.batch_norm(x, mean_var_names=["a"]), "expected two names"),
    (lambda x: layer.addto([x, layer.fc(x, 2)]), r"different sizes: \[48, 2\]"),
    (lambda x: layer.concat([x, layer.fc(x, 2)]), r"heights and widths differ: \[\(4, 4\), \(0, 0\)\]"),
    (lambda x: layer.maxout(layer.img_conv(x, 3, 4), 2), "must have a linear activation, it has relu"),
    (lambda x: layer.fc([x, x], 2, param_attr=attr.Param(name="w")), "named 'w' for 2 inputs"),
    (lambda x: layer.fc("x", 2), "expected a layer or a list of layers, got 'x'"),  # type: ignore[arg-type]
    (lambda x: layer.fc(x, 2, act="relu"), r"such as activation.Relu\(\), got 'relu'"),  # type: ignore[arg-type]
    (lambda x: layer.fc(x, 2, name="a@b"), "may not contain @"),
    (lambda x: layer.fc(x, 2, activation.Softmax(), layer_attr=attr.Extra(drop_rate=0.5)), "softmax and drop_rate"),
    (lambda x: layer.data("d", 784), r"such as data_type.dense_vector\(3072\), got 784"),  # type: ignore[arg-type]
    (lambda x: layer.data("d", data_type.dense_vector(8, 1)), "sequences are not supported"),
    (lambda x: layer.classification_cost(label(), x), "are the arguments swapped"),
    (lambda x: layer.classification_cost(layer.fc(x, 4), label()), "must have the activation Softmax, it has tanh"),
    (
        lambda x: layer.classification_cost(y := layer.fc(x, 4, activation.Softmax()), y),
        "label '__fc_layer_0__' must be a data layer, it is a fc",
    ),
    (lambda x: layer.square_error_cost(x, label()), "input has 48 values, label has 4"),
    (lambda x: networks.img_conv_group(x, 4, 2), "expected a list of integers, got 4"),  # type: ignore[arg-type]
    (lambda x: networks.img_conv_group(x, [4, 4], 2, conv_padding=[1]), "conv_padding: 1 values for 2 convolutions"),
]


@pytest.mark.parametrize("declare, message", REFUSED)
def test_what_cannot_be_says_why(declare: Callable[[Layer], object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as error:
        declare(image())
    assert isinstance(error.value, AssertionError) and isinstance(error.value, ValueError)


def test_errors_keep_their_python_types() -> None:
    x = image()
    with pytest.raises(AttributeError, match=r"act=Relu is the class; write act=Relu\(\)"):
        layer.fc(x, 2, act=activation.Relu)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="Layer img_pool_layer does not support drop_rate"):
        layer.img_pool(x, 2, layer_attr=attr.Extra(drop_rate=0.5))
    with pytest.raises(ValueError, match="Dropout rate must > 0"):
        attr.Extra(drop_rate=-0.1)
    with pytest.raises(ValueError, match="Error clipping must > 0"):
        attr.Extra(error_clipping_threshold=-1)
    assert layer.img_pool(x, 2, layer_attr=attr.Extra(device=1)).size == 27


@pytest.mark.parametrize(
    "module, name",
    [
        *((layer, "recurrent_group"), (layer, "embedding"), (networks, "simple_lstm"), (paddle, "op")),
        *((data_type, "dense_vector_sequence"), (paddle.evaluator, "chunk")),
    ],
)
def test_what_is_out_of_scope_says_so(module: Any, name: str) -> None:
    with pytest.raises(AttributeError, match="support"):
        getattr(module, name)


# ---------------------------------------------------------------------------------------------------------------------
# init, data types, the log
# ---------------------------------------------------------------------------------------------------------------------


def test_init(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_INIT_TRAINER_COUNT", "3")
    monkeypatch.setenv("PADDLE_INIT_USE_GPU", "False")
    assert paddle.init(use_gpu=True, log_period=5) is None
    assert (graph.settings.use_gpu, graph.settings.trainer_count, graph.settings.seed) == (True, 3, 1)
    paddle.init(trainer_count=1, seed=7)
    assert (graph.settings.use_gpu, graph.settings.trainer_count, graph.settings.seed) == (False, 1, 7)
    with pytest.raises(UsageError, match="trainer_count: expected an integer of at least 1, got 0"):
        paddle.init(trainer_count=0)


def test_data_types_say_what_they_are() -> None:
    assert (
        repr(data_type.dense_vector(784))
        == "InputType(dim=784, seq_type=SequenceType.NO_SEQUENCE, type=DataType.Dense)"
    )
    assert repr(data_type.integer_value(10)).endswith("type=DataType.Index)")
    assert data_type.dense_array(3) == data_type.dense_vector(3)
    kinds = [data_type.dense_vector, data_type.sparse_binary_vector, data_type.sparse_vector, data_type.integer_value]
    assert [kind(2).type for kind in kinds] == [0, 1, 2, 3]


def test_layers_of_images_are_logged_with_their_sizes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "paddle"):
        layer.img_conv(dense("image", 3072), 3, 64, num_channels=3, padding=1)
    assert caplog.messages == ["output for __conv_0__: c = 64, h = 32, w = 32, size = 65536"]
