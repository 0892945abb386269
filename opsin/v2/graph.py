"""The declared network: plain data, no torch. Names, the order of creation, and what an output needs."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opsin.errors import DeclarationError
from opsin.v2.activation import Base as Activation


@dataclass
class Settings:
    """What `init` was told. `use_gpu` also decides layer types, as it did in 2017."""

    use_gpu: bool = False
    trainer_count: int = 1
    seed: int = 1


settings = Settings()
next_serial = itertools.count().__next__  # the order of creation of layers and evaluators


@dataclass(frozen=True)
class ParameterConf:
    """What is known of a parameter before it has values.

    size: number of elements. dims: Paddle's shape, empty where Paddle gives none (convolutions, scales).
    strategy: 0 normal(mean, std), 1 uniform(mean − std, mean + std). smart: std was derived from dims[0].
    learning_rate: factor of the global rate. momentum, decay_rate, clip: None or 0 for the global value.
    initializer: name → array of the parameter's shape, instead of drawing it.
    """

    name: str
    size: int
    dims: tuple[int, ...] = ()
    initial_mean: float = 0.0
    initial_std: float = 0.01
    strategy: int = 0
    smart: bool = False
    learning_rate: float = 1.0
    momentum: float | None = None
    decay_rate: float | None = None
    clip: float | None = None
    is_static: bool = False
    is_shared: bool = False
    initializer: Callable[[str], Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that programs see: (1, size) where Paddle gives none."""
        return self.dims or (1, self.size)


@dataclass(eq=False)
class Layer:
    """A declared layer. It is compared by identity, and does not change once its function has returned it.

    kind: Paddle's layer type ("exconv", "batch_norm" …). size: elements a sample. height, width: 0 where unknown.
    inputs and params go together, one (possibly None) parameter an input; batch norm names its input three times.
    num_filters: what programs read of it, None where the original had None.
    attrs: what the arithmetic needs besides.
    """

    name: str
    kind: str
    inputs: tuple[Layer, ...] = ()
    size: int = 0
    height: int = 0
    width: int = 0
    activation: Activation = Activation()
    drop_rate: float = 0.0
    num_filters: int | None = None
    params: tuple[ParameterConf | None, ...] = ()
    bias: ParameterConf | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    evaluators: list[Any] = field(default_factory=list, repr=False)  # those that take it as their input
    serial: int = field(default_factory=next_serial, repr=False)

    def __repr__(self) -> str:
        return f"<{self.kind} layer {self.name!r}, size {self.size}>"

    @property
    def act(self) -> str:
        return self.activation.name

    @property
    def full_name(self) -> str:
        return self.name

    @property
    def layer_type(self) -> str:
        return self.kind

    @property
    def parents(self) -> list[Layer]:
        return list(self.inputs)

    @property
    def depth(self) -> int:
        return 1

    @property
    def outputs(self) -> list[str]:
        return ["default"]

    def confs(self) -> list[ParameterConf]:
        """Its parameters, in the order of their creation: weights, then bias."""
        return [conf for conf in (*self.params, self.bias) if conf is not None]


_counters: Counter[str] = Counter()
_layers: dict[str, Layer] = {}


def unique_name(prefix: str) -> str:
    """`__prefix_0__`, `__prefix_1__` …: a count of its own for each prefix, over the whole process."""
    number = _counters[prefix]
    _counters[prefix] += 1
    return f"__{prefix}_{number}__"


def remember(layer: Layer) -> Layer:
    """Make a layer known to `get_layer`. A name declared again names the newest layer."""
    _layers[layer.name] = layer
    return layer


def get_layer(name: str) -> Layer | None:
    """The newest layer of that name made by a function of `layer`, or None."""
    return _layers.get(name)


def reset() -> None:
    """Forget all names, so that the next network is numbered from 0 again. Networks already declared stay usable."""
    _counters.clear()
    _layers.clear()


def topological(outputs: Iterable[Layer]) -> list[Layer]:
    """The outputs and all that they need, in the order of creation, which puts inputs first.

    Two data layers of one name and type are one input: the newest is in the list, in the place of the oldest. Any
    other two layers of one name are a `DeclarationError`.
    """
    found: dict[int, Layer] = {}
    pending = list(outputs)
    while pending:
        layer = pending.pop()
        if layer.serial not in found:
            found[layer.serial] = layer
            pending.extend(layer.inputs)
    by_name: dict[str, Layer] = {}
    for _, layer in sorted(found.items()):
        other = by_name.get(layer.name)
        if other is not None and (layer.kind != "data" or _declared(layer) != _declared(other)):
            raise DeclarationError(
                f"Duplicated layer name: {layer.name}: a {other.kind} of size {other.size} and a {layer.kind} of "
                f"size {layer.size} are both in this network; declare the network again from its data layers, "
                "or give one of them another name"
            )
        by_name[layer.name] = layer
    return list(by_name.values())


def _declared(layer: Layer) -> tuple[Any, ...]:
    return layer.kind, layer.size, layer.height, layer.width, layer.attrs


def conf_order(layers: Sequence[Layer]) -> list[ParameterConf]:
    """The parameters of some layers in the order of creation; one that several layers share comes once."""
    confs: OrderedDict[str, ParameterConf] = OrderedDict()
    for layer in layers:
        for conf in layer.confs():
            first = confs.setdefault(conf.name, conf)
            if (first.size, first.dims) != (conf.size, conf.dims):
                raise DeclarationError(
                    f"Shared parameter {conf.name!r} does not have same size: {first.size} {list(first.dims)} where it "
                    f"was made, {conf.size} {list(conf.dims)} in layer {layer.name!r}; give one of them another name"
                )
    return list(confs.values())
