"""Thirteen networks, layer for layer and parameter for parameter as the original declared them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opsin.v2 import graph
from opsin.v2.graph import Layer
from opsin.v2.parameters import create, with_defaults
from opsin.v2.topology import Topology
from tests.v2_networks import GOLDEN

DATA = Path(__file__).parents[2] / "data" / "v2"
# Numbers of parameters and of their values, SPEC 1.1 and 2.22: a check on the files themselves.
COUNTS = {
    "vgg": (88, 15_264_074),
    "resnet32": (167, 469_370),
    "resnetseed56": (412, 906_938),
    "alexnet": (16, 58_699_238),
    "vgg16": (32, 134_678_438),
    "resnet_imagenet": (267, 23_770_150),
    "googlenet": (128, 10_616_930),
    "inception_v4": (896, 41_394_342),
    "inception_resnet_v2": (1102, 54_523_782),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graph.reset()
    yield
    graph.reset()
    graph.settings.use_gpu = False


def golden(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def row_of_layer(layer: Layer) -> list[Any]:
    inputs = [[x.name, p.name if p else ""] for x, p in zip(layer.inputs, layer.params, strict=True)]
    bias = layer.bias.name if layer.bias else ""
    drop = layer.drop_rate
    return [layer.name, layer.kind, layer.size, layer.height, layer.width, layer.act, drop, inputs, bias]


def row_of_conf(conf: graph.ParameterConf) -> list[Any]:
    row = [conf.name, conf.size, list(conf.dims), conf.initial_mean, conf.initial_std, conf.strategy, conf.smart]
    row += [conf.is_static, conf.is_shared, conf.learning_rate]
    return [*row, conf.momentum or 0.0, conf.decay_rate or 0.0, conf.clip or 0.0]


@pytest.mark.parametrize("name", GOLDEN)
def test_as_the_original_declared_it(name: str) -> None:
    declare, use_gpu, trained = GOLDEN[name]
    graph.settings.use_gpu = use_gpu
    topology = Topology(*[layers for layers in declare() if layers])
    expected = golden(name)
    assert [row_of_layer(layer) for layer in topology.order] == expected["layers"]
    confs = [with_defaults(c, momentum=0.9, decay_rate=0.0256) if trained else c for c in topology.confs]
    rows = [row_of_conf(conf) for conf in confs]
    assert rows == expected["params"]
    assert list(topology.data_layers()) == expected["inputs"]
    assert [layer.name for layer in topology.layers] == expected["outputs"]
    evaluators = [[e.name, e.kind, [layer.name for layer in e.inputs]] for e in topology.evaluators]
    assert evaluators == expected["evaluators"]
    if name in COUNTS:
        assert (len(rows), sum(row[1] for row in rows)) == COUNTS[name]

    proto = topology.proto()  # the same facts, as programs read them
    assert [(p.name, p.size) for p in proto.parameters] == [(row[0], row[1]) for row in rows]
    assert [(x.name, x.type, x.active_type, x.bias_parameter_name) for x in proto.layers] == [
        (row[0], row[1], row[5], row[8]) for row in expected["layers"]
    ]
    again = Topology.from_json(topology.to_json())
    needed = {layer.name for layer in graph.topological(topology.layers)}
    assert [row_of_layer(layer) for layer in again.order] == [row for row in expected["layers"] if row[0] in needed]
    assert again.to_json() == topology.to_json()


def test_the_parameters_of_a_cost_are_those_it_needs_in_the_order_of_declaration() -> None:
    declare, use_gpu, _ = GOLDEN["googlenet"]
    graph.settings.use_gpu = use_gpu
    (cost,), extra = declare()
    names = create(cost).keys()
    heads = ("_conv_o", "_fc_o", "___fc_layer_1", "___fc_layer_2")
    assert names == [row[0] for row in golden("googlenet")["params"] if not row[0].startswith(heads)]
    assert set(create([cost, *extra]).keys()) - set(names)


def test_the_chapters_names_are_printed_in_order() -> None:
    (cost,), _ = GOLDEN["vgg"][0]()
    names = create(cost).keys()
    assert isinstance(names, list) and len(names) == 88
    assert names[:6] == [
        *("___conv_0__.w0", "___conv_0__.wbias", "___batch_norm_0__.w0", "___batch_norm_0__.w1"),
        *("___batch_norm_0__.w2", "___batch_norm_0__.wbias"),
    ]
    assert names[-2:] == ["___fc_layer_2__.w0", "___fc_layer_2__.wbias"]
