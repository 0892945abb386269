"""Networks cut out of what was declared, as programs read them; their file; and the metrics."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

import opsin.v2 as paddle
from opsin.errors import DeclarationError, StorageError
from opsin.v2 import evaluator, graph, layer
from opsin.v2.graph import Layer
from opsin.v2.lower import Graph
from opsin.v2.parameters import create
from opsin.v2.topology import Topology

activation, data_type = paddle.activation, paddle.data_type


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graph.reset()
    yield
    graph.reset()


def dense(name: str, size: int) -> Layer:
    return layer.data(name, data_type.dense_vector(size))


def label(size: int = 10) -> Layer:
    return layer.data("label", data_type.integer_value(size))


# ---------------------------------------------------------------------------------------------------------------------
# As the original's tests had it
# ---------------------------------------------------------------------------------------------------------------------


def test_data_type_and_layers() -> None:
    pixel, truth = dense("pixel", 784), label()
    hidden = layer.fc(pixel, 100, param_attr=paddle.attr.Param(name="hidden.w"))
    inference = layer.fc(hidden, 10, activation.Softmax(), name="inference")
    cost = layer.classification_cost(inference, truth)
    topology = Topology(cost)
    kinds = dict(topology.data_type())
    assert list(kinds) == ["pixel", "label"]
    assert (kinds["pixel"].type, kinds["pixel"].dim) == (data_type.DataType.Dense, 784)
    assert (kinds["label"].type, kinds["label"].dim) == (data_type.DataType.Index, 10)
    assert topology.get_layer("inference") is inference and topology.get_layer("nothing") is None
    proto = layer.parse_network(cost)
    assert proto == topology.proto()
    fc = topology.get_layer_proto("inference")
    assert fc is not None
    assert (fc.type, fc.size, fc.active_type, fc.bias_parameter_name) == ("fc", 10, "softmax", "_inference.wbias")
    assert [(i.input_layer_name, i.input_parameter_name) for i in fc.inputs] == [("__fc_layer_0__", "_inference.w0")]
    assert proto.parameters[0].name == "hidden.w" and proto.parameters[0].dims == [784, 100]


def test_topologies_of_one_and_of_several_outputs() -> None:
    pixel, truth = dense("pixel", 784), label()
    inference = layer.fc(layer.fc(pixel, 100), 10, activation.Softmax())
    best = layer.max_id(inference)
    costs = [layer.classification_cost(inference, truth), layer.cross_entropy_cost(inference, truth)]
    for outputs in (costs[1], costs[:1], costs, (inference, best)):
        names = [outputs.name] if isinstance(outputs, Layer) else [x.name for x in outputs]
        assert list(Topology(outputs).proto().output_layer_names) == names
    for wrong in (None, [], [inference, "label"], "label"):
        with pytest.raises(ValueError, match=r"layer should have type paddle\.v2\.config_base\.Layer"):
            Topology(wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Order and names
# ---------------------------------------------------------------------------------------------------------------------


def test_the_order_of_feeding_is_that_of_declaration_among_what_is_used() -> None:
    truth, _unused, image = label(), dense("unused", 4), dense("image", 8)
    cost = layer.classification_cost(layer.fc(image, 10, activation.Softmax()), truth)
    assert [name for name, _ in Topology(cost).data_type()] == ["label", "image"]
    assert list(Topology(cost).data_layers()) == ["label", "image"]


def test_layers_declared_beside_a_network_are_not_in_it() -> None:
    """The chapter declares a second network before it trains the first."""
    image, truth = dense("image", 12), label()
    cost = layer.classification_cost(layer.fc(image, 10, activation.Softmax()), truth)
    layer.fc(layer.fc(image, 5), 10)
    assert create(cost).keys() == ["___fc_layer_0__.w0", "___fc_layer_0__.wbias"]


def declared_again() -> Layer:
    image = dense("image", 12)
    return layer.classification_cost(layer.fc(image, 10, activation.Softmax(), name="out"), label())


def test_a_notebooks_cell_can_be_run_again() -> None:
    first, second = declared_again(), declared_again()
    for cost in (first, second):
        topology = Topology(cost)
        assert [x.name for x in topology.order][-2:] == ["label", cost.name]
        assert [e.name for e in topology.evaluators] == ["classification_error_evaluator"]
    assert layer.get_layer("out") is second.inputs[0]
    assert Topology(second).get_layer("out") is second.inputs[0]


def test_one_data_layer_declared_twice_alike_is_one_input() -> None:
    twice = layer.slope_intercept(dense("x", 4), slope=2.0)
    other = dense("x", 4)
    both = layer.addto([twice, other])
    topology = Topology(both)
    assert list(topology.data_layers()) == ["x"] and topology.get_layer("x") is other
    x = torch.ones(1, 4)
    assert Graph(both)({"x": x}, [both.name])[both.name].tolist() == [[3.0] * 4]


def test_two_layers_of_one_name_in_one_network_are_refused() -> None:
    x = dense("x", 4)
    for other in (layer.fc(x, 4, name="f"), layer.fc(dense("x", 5), 4)):
        with pytest.raises(DeclarationError, match=r"Duplicated layer name: [fx]: a (fc|data) of size"):
            Topology([layer.fc(x, 4, name="f"), other])


def test_a_deep_network_is_no_recursion() -> None:
    x = dense("x", 2)
    for _ in range(3000):
        x = layer.addto(x)
    assert len(Topology(x).order) == 3001


# ---------------------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------------------


def everything() -> list[Layer]:
    image = layer.data("image", data_type.dense_vector(3 * 36), 6, 6)
    x = layer.img_conv(image, [3, 1], 6, padding=[1, 0], layer_attr=paddle.attr.Extra(drop_rate=0.1))
    x = layer.batch_norm(layer.img_cmrnorm(x, 3), use_global_stats=False)
    x = layer.pad(layer.prelu(layer.img_pool(x, 3, stride=2)), [0, 2], [1, 0], [0, 1])
    spp = layer.spp(layer.maxout(x, 2), num_channels=4, pyramid_height=2)
    mixed = layer.mixed(5, [layer.full_matrix_projection(spp), layer.identity_projection(spp, 2, 5)])
    out = layer.fc([mixed, layer.slope_intercept(spp, slope=0.5)], 4, activation.Softmax())
    return [out, layer.max_id(out)]


def test_what_was_written_is_read_and_computes_the_same() -> None:
    outputs = everything()
    stream = io.BytesIO()
    Topology(outputs).serialize_for_inference(stream)
    again = Topology.from_json(stream.getvalue())
    assert again.proto() == Topology(outputs).proto() and again.data_type() == Topology(outputs).data_type()
    ours, theirs = Graph(outputs), Graph(again.layers)
    create(outputs).attach(ours)
    theirs.load_state_dict(ours.state_dict())
    wanted = [outputs[0].name, outputs[1].name + ".id"]
    x = {"image": torch.randn(2, 108)}
    for name, value in ours.eval()(x, wanted).items():
        assert torch.equal(theirs.eval()(x, wanted)[name], value)


def test_a_text_file_of_2017_takes_it(tmp_path: Any) -> None:
    with open(tmp_path / "topology", "w") as file:
        Topology(everything()).serialize_for_inference(file)
    assert len(Topology.from_json((tmp_path / "topology").read_bytes()).layers) == 2


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(Topology(everything()).to_json())
    change(document)
    return json.dumps(document).encode()


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a pickle": (lambda: b"\x80\x02}q\x00(X\x08\x00\x00\x00protobin", "is a pickle, as PaddlePaddle wrote it"),
    "nothing": (lambda: b"", "the topology"),
    "no JSON": (lambda: Topology(everything()).to_json()[:-9], "the topology"),
    "a list": (lambda: b"[]", "is not a topology"),
    "another format": (lambda: changed(lambda d: d.update(format="x")), "expected the format"),
    "no outputs": (lambda: changed(lambda d: d.update(outputs=[])), "is not a topology"),
    "an unknown output": (lambda: changed(lambda d: d.update(outputs=["no"])), "KeyError: 'no'"),
    "an unknown input": (lambda: changed(lambda d: d["layers"][1].update(inputs=["no"])), "KeyError: 'no'"),
    "a loop": (lambda: changed(lambda d: d["layers"][1].update(inputs=["__fc_layer_0__"])), "KeyError"),
    "a name twice": (lambda: changed(lambda d: d["layers"].append(d["layers"][1])), "'__conv_0__' comes twice"),
    "an unknown activation": (lambda: changed(lambda d: d["layers"][1].update(act="boom")), "KeyError: 'boom'"),
    "an unknown field of a parameter": (
        lambda: changed(lambda d: d["layers"][1]["params"][0].update(os="rm")),
        "unexpected keyword",
    ),
    "a name that is a number": (lambda: changed(lambda d: d["layers"][1].update(name=3)), "name: expected text"),
    "a size that is text": (lambda: changed(lambda d: d["layers"][1].update(size="9")), "size: expected a number"),
    "fewer parameters than inputs": (lambda: changed(lambda d: d["layers"][1].update(params=[])), "0 parameters for 1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_clear_error(case: str) -> None:
    make, message = DAMAGED[case]
    with pytest.raises(StorageError, match=message):
        Topology.from_json(make())


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def accumulated(topology: Topology, batches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What all metrics of a network say after some batches of values."""
    found: dict[str, float] = {}
    for conf in topology.evaluators:
        accumulator = conf.accumulator()
        for _ in range(2):  # start begins anew
            accumulator.start()
            for values in batches:
                accumulator.eval({name: torch.as_tensor(value) for name, value in values.items()})
        found |= accumulator.finish()
    return found


def test_metrics_are_of_the_networks_that_hold_their_layers_and_named_by_function_or_number() -> None:
    truth, x = label(3), dense("x", 4)
    out, head = (layer.fc(x, 3, activation.Softmax(), name=name) for name in ("out", "head"))
    assert evaluator.classification_error(input=head, label=truth) is None
    evaluator.auc(head, truth)
    both = [evaluator.classification_error_evaluator, evaluator.auc_evaluator]
    cost = layer.classification_cost(out, truth, evaluator=both)
    extra = layer.cross_entropy_cost(head, truth)
    names = ["classification_error_evaluator", "auc_evaluator"]
    assert [e.name for e in Topology(cost).evaluators] == names
    assert [e.name for e in Topology(cost, [extra]).evaluators] == [
        *("__classification_error_evaluator_0__", "__auc_evaluator_0__"),
        *names,
    ]
    assert Topology(out).evaluators == [] and Topology(extra).evaluators[0].input is head
    with pytest.raises(DeclarationError, match="label: expected a layer"):
        evaluator.classification_error(out, "label")  # type: ignore[arg-type]


def test_classification_error() -> None:
    truth, x, weight = label(3), dense("x", 3), dense("w", 1)
    evaluator.classification_error(x, truth, name="one")
    evaluator.classification_error(x, truth, name="two", top_k=2)
    evaluator.classification_error(x, truth, name="weighted", weight=weight)
    topology = Topology(layer.cross_entropy_cost(x, truth, weight=weight))
    outputs = [[0.1, 0.8, 0.1], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [float("nan"), 0, 0], [0.2, 0.3, 0.5]]
    batch = {"x": outputs, "label": [1, 0, 1, 0, 0], "w": [[1.0], [1.0], [2.0], [0.0], [4.0]]}
    found = accumulated(topology, [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}])
    # Wrong: the third (of equal ones the first counts), the fourth (not a number), the fifth.
    assert found == {"one": float(np.float32(3 / 5)), "two": float(np.float32(2 / 5)), "weighted": 0.75}
    assert accumulated(topology, []) == {"one": 0.0, "two": 0.0, "weighted": 0.0}


def test_metrics_are_python_floats_of_float32() -> None:
    """As the logs of 2017 show them."""
    truth, x = label(2), dense("x", 2)
    evaluator.classification_error(x, truth, name="e")
    topology = Topology(layer.cross_entropy_cost(x, truth))
    found = accumulated(topology, [{"x": [[1.0, 0], [1, 0], [1, 0]], "label": [0, 1, 1]}])
    assert repr(found["e"]) == "0.6666666865348816" and type(found["e"]) is float


def test_classification_error_of_one_output_has_a_threshold() -> None:
    truth, x = label(2), dense("x", 1)
    evaluator.classification_error(x, truth, name="half")
    evaluator.classification_error(x, truth, name="high", threshold=0.9)
    topology = Topology(layer.huber_classification_cost(x, truth))
    found = accumulated(topology, [{"x": [[0.4], [0.6], [0.95], [0.7]], "label": [0, 1, 1, 0]}])
    assert found == {"half": 0.25, "high": 0.25}


def test_auc() -> None:
    truth, x, weight = label(3), dense("x", 2), dense("w", 1)
    evaluator.auc(x, truth, name="auc")
    evaluator.auc(x, truth, name="weighted", weight=weight)
    topology = Topology(layer.cross_entropy_cost(x, truth, weight=weight))
    random = np.random.default_rng(2)
    score = np.round(random.random(200), 2).astype(np.float32)  # with ties
    labels = random.integers(0, 3, 200)  # all but 0 are positive
    weights = random.random(200).astype(np.float32)
    values = {"x": np.stack([1 - score, score], 1), "label": labels, "w": weights[:, None]}
    found = accumulated(topology, [{k: v[:70] for k, v in values.items()}, {k: v[70:] for k, v in values.items()}])
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels > 0, score), abs=1e-6)
    assert found["weighted"] == pytest.approx(metrics.roc_auc_score(labels > 0, score, sample_weight=weights), abs=1e-6)
    assert accumulated(topology, [{**values, "label": np.ones(200, int)}])["auc"] == 0.0


def test_precision_and_recall() -> None:
    truth, x = label(4), dense("x", 4)
    evaluator.precision_recall(x, truth, name="of1", positive_label=1)
    evaluator.precision_recall(x, truth)
    topology = Topology(layer.cross_entropy_cost(x, truth))
    random = np.random.default_rng(5)
    guesses, labels = random.integers(0, 3, 60), random.integers(0, 3, 60)  # class 3 never comes: 1 by convention
    values = {"x": np.eye(4, dtype=np.float32)[guesses], "label": labels}
    found = accumulated(topology, [{k: v[:25] for k, v in values.items()}, {k: v[25:] for k, v in values.items()}])
    options: dict[str, Any] = {"labels": range(4), "average": None, "zero_division": 1.0}
    precision, recall = (
        metrics.precision_score(labels, guesses, **options),
        metrics.recall_score(labels, guesses, **options),
    )
    assert found["of1.precision"] == pytest.approx(precision[1]) and found["of1.recal"] == pytest.approx(recall[1])
    assert found["of1.F1-score"] == pytest.approx(2 * precision[1] * recall[1] / (precision[1] + recall[1]))
    name = "__precision_recall_evaluator_0__"
    assert found[f"{name}.macro-average-precision"] == pytest.approx(precision.mean())
    assert found[f"{name}.macro-average-recall"] == pytest.approx(recall.mean())
    assert found[f"{name}.micro-average-precision"] == pytest.approx((guesses == labels).mean())
    keys = ("precision", "recal", "F1-score", "macro-average-precision", "macro-average-recall")
    keys += ("macro-average-F1-score", "micro-average-precision")
    assert set(found) == {"of1." + key for key in keys[:3]} | {f"{name}.{key}" for key in keys}
