"""What was trained through v2, as a classifier like any other: evaluated, asked, saved and loaded by the same code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from opsin.classifier import NetClassifier
from opsin.errors import StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec
from opsin.v2 import machine
from opsin.v2.data_type import DataType
from opsin.v2.graph import Layer
from opsin.v2.inference import Inference, checked
from opsin.v2.lower import Graph, GraphNet
from opsin.v2.parameters import Parameters
from opsin.v2.topology import Topology

__all__ = ["to_classifier"]


def to_classifier(
    output: Layer | Sequence[Layer], parameters: Parameters, preprocess: Preprocess, classes: Sequence[str]
) -> NetClassifier:
    """A classifier with a copy of the parameters.

    output: a layer with softmax, or of logits, with one value a class; of several layers the first answers, and the
    others can be asked for by `features`. preprocess: makes of a picture what the reader fed: size=(32, 32) alone for
    the pixels / 255 of the CIFAR reader; channels=1, mean=(0.5,), std=(0.5,) for the -1 to 1 of MNIST's.
    """
    inference = Inference(parameters, output)
    topology = inference.topology
    image = _image(topology)
    size = preprocess.channels * preprocess.size[0] * preprocess.size[1]
    if size != image.size:
        raise UsageError(
            f"preprocess gives {preprocess.channels} × {preprocess.size[0]} × {preprocess.size[1]} = {size} values a "
            f"picture, the data layer {image.name!r} takes {image.size}"
        )
    if topology.layers[0].size != len(classes):
        raise UsageError(
            f"layer {topology.layers[0].name!r} has {topology.layers[0].size} outputs for {len(classes)} classes"
        )
    net = GraphNet(inference.graph, image.name, [layer.name for layer in topology.layers])
    spec = ModelSpec(name="declared", options={"topology": json.loads(topology.to_json())})
    return NetClassifier(net.to(machine.device()).eval(), preprocess, classes, spec)


def declared(num_classes: int, in_channels: int, *, topology: dict[str, Any]) -> GraphNet:
    """The network of a topology that `to_classifier` wrote down; what `opsin.models.build("declared", …)` calls.

    Its parameters are zeros. `UsageError` for a topology that cannot be computed, or does not fit the two numbers.
    """
    try:
        found = checked(json.dumps(topology).encode(), "topology")
    except StorageError as error:
        raise UsageError(str(error)) from error
    image, answer = _image(found), found.layers[0]
    if answer.size != num_classes or image.size % in_channels:
        raise UsageError(
            f"topology: {answer.size} outputs and an input of {image.size} values "
            f"do not fit {num_classes} classes and {in_channels} channels"
        )
    return GraphNet(Graph(found.layers), image.name, [layer.name for layer in found.layers])


def _image(topology: Topology) -> Layer:
    """The one data layer of a network of pictures."""
    layers: Mapping[str, Layer] = topology.data_layers()
    dense = [layer for layer in layers.values() if layer.attrs["type"].type == DataType.Dense]
    if len(layers) != 1 or len(dense) != 1:
        raise UsageError(
            f"a classifier needs one dense data layer, this network has {', '.join(layers) or 'none'}; "
            "pass the layer of the probabilities, not the cost"
        )
    return dense[0]
