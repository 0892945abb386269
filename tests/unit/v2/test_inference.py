"""infer, Inference, and what becomes a classifier."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opsin.v2 as paddle
from opsin import classifier as classifiers
from opsin import models, storage
from opsin.errors import StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.v2.graph import Layer
from tests.check_classifier import check_classifier, picture

SIDE, CLASSES = 8, 4


@pytest.fixture(autouse=True)
def fresh_names() -> None:
    paddle.reset()


def network() -> tuple[Layer, Layer, Layer]:
    """(convolutions, hidden, output) over a colour picture; each kind of layer whose evaluation is peculiar."""
    x = paddle.layer.data("x", paddle.data_type.dense_vector(3 * SIDE * SIDE))
    conv = paddle.networks.img_conv_group(
        x,
        conv_num_filter=[4, 5],
        pool_size=3,
        num_channels=3,
        conv_with_batchnorm=True,
        conv_batchnorm_drop_rate=[0.4, 0],
        conv_act=paddle.activation.Relu(),
        pool_stride=2,
    )
    hidden = paddle.layer.fc(paddle.layer.dropout(conv, 0.5), 7)
    return conv, hidden, paddle.layer.fc(hidden, CLASSES, act=paddle.activation.Softmax())


def trained(out: Layer) -> Any:
    """Parameters after a few steps, so that the moving statistics are not zero."""
    cost = paddle.layer.classification_cost(out, paddle.layer.data("y", paddle.data_type.integer_value(CLASSES)))
    parameters = paddle.parameters.create(cost)
    trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Momentum(momentum=0.5, learning_rate=0.01))
    trainer.train(lambda: iter([[(row[0], i % CLASSES) for i, row in enumerate(rows(8))]] * 4))
    return parameters


def rows(n: int = 5) -> list[tuple[np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(generator.random(3 * SIDE * SIDE, np.float32),) for _ in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# infer
# ---------------------------------------------------------------------------------------------------------------------


def test_one_output_is_one_array_several_are_a_list() -> None:
    conv, hidden, out = network()
    best = paddle.layer.max_id(out)
    parameters = trained(out)
    p = paddle.infer(output_layer=out, parameters=parameters, input=rows())
    assert p.dtype == np.float32 and p.shape == (5, CLASSES)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    # Features of an inner layer: maps are flat, channel first.
    features = paddle.infer(output_layer=conv, parameters=parameters, input=rows())
    assert features.shape == (5, 5 * 4 * 4)

    several = paddle.inference.Inference(parameters, [out, hidden, best])
    value = several.infer(rows(), field="value")
    assert isinstance(value, list) and np.array_equal(value[0], p) and value[1].shape == (5, 7) and value[2] is None
    found = several.infer(rows(), field=["id", "prob", "value"])
    assert len(found) == 9 and found[0] is found[1] is None
    assert np.array_equal(found[2], p.argmax(1)) and np.array_equal(found[5], p.max(1, keepdims=True))
    assert np.array_equal(found[6], p)
    nested = several.infer(rows(), field=["id", "value"], flatten_result=False)
    assert len(nested) == 2 and np.array_equal(nested[0][2], p.argmax(1)) and np.array_equal(nested[1][0], p)
    assert np.array_equal(several.infer(rows(), flatten_result=False)[0], p)

    one = paddle.inference.Inference(parameters, best)
    ids, probabilities = one.infer(rows(), field=["id", "prob"])
    assert ids.shape == (5,) and ids.dtype == np.int64 and probabilities.shape == (5, 1)
    assert one.infer([], field="id") == []
    assert [len(batch) for batch in several.iter_infer(rows())] == [3]
    with pytest.raises(ValueError, match="expected value, id or prob, received 'values'"):
        one.infer(rows(), field="values")
    with pytest.raises(TypeError, match="a list of samples, received generator"):
        one.infer(row for row in rows())  # type: ignore[arg-type]


def test_the_parameters_are_those_of_the_construction() -> None:
    *_, out = network()
    parameters = trained(out)
    inference = paddle.inference.Inference(parameters, out)
    before = inference.infer(rows())
    for name in parameters.names():
        parameters.set(name, np.zeros(parameters.get_shape(name), np.float32))
    assert np.array_equal(inference.infer(rows()), before)
    assert not np.array_equal(paddle.infer(out, parameters, rows()), before)


def test_columns_of_other_layers_and_missing_parameters() -> None:
    _, hidden, out = network()
    parameters = trained(out)
    swapped = [(0, row[0]) for row in rows()]
    assert np.array_equal(
        paddle.infer(out, parameters, swapped, feeding={"x": 1}), paddle.infer(out, parameters, rows())
    )
    with pytest.raises(ValueError, match="Either output_layer or fileobj must be set"):
        paddle.inference.Inference(parameters)
    other = paddle.layer.fc(hidden, 2, name="other")
    with pytest.raises(ValueError, match=r"No such parameter _other\.w0"):
        paddle.infer(other, parameters, rows())
    narrow = paddle.layer.fc(hidden, 2, param_attr=paddle.attr.Param(name="___fc_layer_1__.w0"), bias_attr=False)
    with pytest.raises(ValueError, match="the network has 14 values, the parameters 28"):
        paddle.infer(narrow, parameters, rows())


def test_threads_share_one_inference() -> None:
    *_, out = network()
    inference = paddle.inference.Inference(trained(out), out)
    expected = [inference.infer([row]) for row in rows(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(np.array_equal, pool.map(lambda row: inference.infer([row]), rows(8)), expected))


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_a_served_network_comes_from_two_files(tmp_path: Path) -> None:
    """As book/serve did: topology and parameters on disk, both opened as text, nothing declared."""
    *_, out = network()
    parameters = trained(out)
    expected = paddle.infer(out, parameters, rows())
    with open(tmp_path / "topology", "wb") as file:
        paddle.topology.Topology(layers=out).serialize_for_inference(file)
    with open(tmp_path / "parameters.tar", "w") as file:
        parameters.to_tar(file)
    paddle.reset()
    with open(tmp_path / "topology") as topology, open(tmp_path / "parameters.tar") as file:
        loaded = paddle.parameters.Parameters.from_tar(file)
        inference = paddle.inference.Inference(parameters=loaded, fileobj=topology)
    assert np.array_equal(inference.infer(rows(), feeding={"x": 0}, field=["value"]), expected)


class Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_is_never_loaded() -> None:
    *_, out = network()
    for protocol in (2, 4):
        file = io.BytesIO(pickle.dumps({"protobin": b"", "data_type": Danger()}, protocol))
        with pytest.raises(StorageError, match="a pickle, as PaddlePaddle wrote it; a pickle can run any code"):
            paddle.inference.Inference(trained(out) if protocol == 2 else paddle.parameters.Parameters(), fileobj=file)


def _set(*path: Any) -> Callable[[Any], None]:
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


HOSTILE: dict[str, Callable[[Any], None]] = {
    "another format": _set("format", "opsin.v2 topology 9"),
    "no layers": _set("layers", {}),
    "an unknown output": _set("outputs", ["nobody"]),
    "an unknown kind": _set("layers", 1, "kind", "lstmemory"),
    "an unknown activation": _set("layers", 1, "act", "gelu"),
    "an input from below": _set("layers", 1, "inputs", ["__fc_layer_1__"]),
    "no attributes": _set("layers", 1, "attrs", {}),
    "a size of text": _set("layers", 1, "size", "256"),
    "a size that lies": _set("layers", 1, "size", 255),
    "a huge input": _set("layers", 0, "attrs", "type", [1 << 60, 0, 0]),
    "a huge number of filters": _set("layers", 1, "num_filters", 1 << 40),
    "a negative stride": _set("layers", 1, "attrs", "stride", [-1, -1]),
    "a stride of nothing": _set("layers", 1, "attrs", "stride", [0, 0]),
    "a parameter that lies": _set("layers", 1, "params", 0, "size", 3),
    "a parameter that is none": _set("layers", 1, "params", [7]),
    "the same layer twice": lambda document: document["layers"].append(document["layers"][1]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_topologies_are_one_clear_error(what: str) -> None:
    *_, out = network()
    document = json.loads(paddle.topology.Topology(out).to_json())
    HOSTILE[what](document)
    parameters = paddle.parameters.create(out)
    with pytest.raises(StorageError, match="topology"):
        paddle.inference.Inference(parameters, fileobj=io.BytesIO(json.dumps(document).encode()))
    with pytest.raises(UsageError, match="topology"):
        models.build("declared", CLASSES, 3, topology=document)


# ---------------------------------------------------------------------------------------------------------------------
# A classifier like any other
# ---------------------------------------------------------------------------------------------------------------------

NAMES = [f"class {i}" for i in range(CLASSES)]


def test_the_whole_contract_of_a_classifier(tmp_path: Path) -> None:
    *_, out = network()
    check_classifier(paddle.to_classifier(out, trained(out), Preprocess(size=(SIDE, SIDE)), NAMES), tmp_path)


def test_a_classifier_answers_as_infer_does_and_outlives_its_declaration(tmp_path: Path) -> None:
    conv, hidden, out = network()
    parameters = trained(out)
    preprocess = Preprocess(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    classifier = paddle.to_classifier(out, parameters, preprocess, NAMES)
    pictures = [picture(SIDE, SIDE, seed=i) for i in range(3)]
    fed = [((image.numpy().astype(np.float32) / 255 * 2 - 1).ravel(),) for image in pictures]
    classifiers.save(classifier, tmp_path / "classifier")
    expected, maps = (paddle.infer(layer, parameters, fed) for layer in (out, conv))
    for name in parameters.names():  # the classifier has copies
        parameters.set(name, np.zeros(parameters.get_shape(name), np.float32))
    paddle.reset()
    for one in (classifier, classifiers.load(tmp_path)):
        found = one.probabilities(torch.stack([one.prepare(image) for image in pictures]))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
        features = classifiers.features(one, pictures, at=conv.name, maps=True)
        assert features.shape == (3, 5, 4, 4)
        np.testing.assert_allclose(features.flatten(1).numpy(), maps, atol=1e-5)
        assert classifiers.features(one, pictures, at=hidden.name).shape == (3, 7)
        with pytest.raises(UsageError, match="no layer 'pool5'"):
            classifiers.features(one, pictures, at="pool5")


def test_what_does_not_fit_a_classifier() -> None:
    _, hidden, out = network()
    parameters = trained(out)
    cost = paddle.layer.classification_cost(out, paddle.layer.data("z", paddle.data_type.integer_value(CLASSES)))
    for layer, size, classes, message in [
        (out, 9, NAMES, "3 × 9 × 9 = 243 values a picture, the data layer 'x' takes 192"),
        (out, SIDE, NAMES[:-1], "has 4 outputs for 3 classes"),
        (hidden, SIDE, [*NAMES, "5", "6", "7"], "expected a layer with softmax or without activation"),
        (cost, SIDE, NAMES, "pass the layer of the probabilities, not the cost"),
    ]:
        with pytest.raises(UsageError, match=message):
            paddle.to_classifier(layer, parameters, Preprocess(size=(size, size)), classes)


def test_a_damaged_classifier_names_its_file(tmp_path: Path) -> None:
    *_, out = network()
    classifiers.save(paddle.to_classifier(out, trained(out), Preprocess(size=(SIDE, SIDE)), NAMES), tmp_path / "c")
    files = storage.read_folder(tmp_path / "c")
    config = json.loads(files[classifiers.CONFIG])
    config["model"]["options"]["topology"]["layers"][1]["kind"] = "mystery"
    storage.write_folder(tmp_path / "d", {**_plain(files), classifiers.CONFIG: json.dumps(config).encode()})
    with pytest.raises(StorageError, match=r"classifier\.json: .*no arithmetic for the kind 'mystery'"):
        classifiers.load(tmp_path / "d")
    del config["model"]["options"]["topology"]
    storage.write_folder(tmp_path / "e", {**_plain(files), classifiers.CONFIG: json.dumps(config).encode()})
    with pytest.raises(StorageError, match=r"classifier\.json: declared: .*'topology'"):
        classifiers.load(tmp_path / "e")


def _plain(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != storage.MANIFEST}
