"""The messages of 2017 that programs read: parameters, with their bytes in protocol buffers; layers and networks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from opsin.errors import StorageError
from opsin.v2.graph import ParameterConf

MAX_VARINT = (1 << 64) - 1


@dataclass
class ParameterConfig:
    """What a `.protobuf` member says of a parameter. A field that is None is not written."""

    name: str | None = None
    size: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    initial_mean: float | None = None
    initial_std: float | None = None
    decay_rate: float | None = None
    dims: list[int] = field(default_factory=list)
    initial_strategy: int | None = None
    initial_smart: bool | None = None
    gradient_clipping_threshold: float | None = None
    is_static: bool | None = None
    is_shared: bool | None = None

    def IsInitialized(self) -> bool:
        return self.name is not None and self.size is not None

    def SerializeToString(self) -> bytes:
        """The message as bytes, fields in the order of their numbers."""
        out = bytearray()
        for number, (name, kind) in FIELDS.items():
            value = getattr(self, name)
            for item in value if name == "dims" else [] if value is None else [value]:
                if kind == "double":
                    out += _varint(number << 3 | 1) + struct.pack("<d", item)
                elif kind == "string":
                    data = item.encode()
                    out += _varint(number << 3 | 2) + _varint(len(data)) + data
                else:
                    out += _varint(number << 3) + _varint(int(item))
        return bytes(out)

    @classmethod
    def FromString(cls, data: bytes) -> ParameterConfig:
        """The message that `data` holds. Unknown fields are passed over; `StorageError` where it is damaged."""
        message = cls()
        for number, value in _fields(data):
            if number not in FIELDS:
                continue
            name, kind = FIELDS[number]
            if name == "dims":
                message.dims += [value] if isinstance(value, int) else _packed(value)
                continue
            expected = {"double": float, "string": bytes}.get(kind, int)
            if not isinstance(value, expected):
                raise StorageError(f"field {number} ({name}) is not a {kind}")
            if isinstance(value, bytes):
                try:
                    value = value.decode()
                except UnicodeDecodeError as error:
                    raise StorageError(f"field {number} ({name}) is not UTF-8") from error
            setattr(message, name, bool(value) if kind == "bool" else value)
        if not message.IsInitialized():
            raise StorageError("it names no parameter, or no size")
        return message

    @classmethod
    def of(cls, conf: ParameterConf) -> ParameterConfig:
        return cls(
            name=conf.name,
            size=conf.size,
            learning_rate=None if conf.learning_rate == 1.0 else conf.learning_rate,
            momentum=conf.momentum,
            initial_mean=conf.initial_mean,
            initial_std=conf.initial_std,
            decay_rate=conf.decay_rate,
            dims=list(conf.dims),
            initial_strategy=conf.strategy,
            initial_smart=conf.smart,
            gradient_clipping_threshold=conf.clip,
            is_static=conf.is_static or None,
            is_shared=conf.is_shared or None,
        )

    def conf(self) -> ParameterConf:
        if self.name is None or self.size is None:
            raise ValueError("a parameter's configuration needs a name and a size")
        return ParameterConf(
            name=self.name,
            size=self.size,
            dims=tuple(self.dims),
            initial_mean=self.initial_mean or 0.0,
            initial_std=0.01 if self.initial_std is None else self.initial_std,
            strategy=self.initial_strategy or 0,
            smart=bool(self.initial_smart),
            learning_rate=1.0 if self.learning_rate is None else self.learning_rate,
            momentum=self.momentum,
            decay_rate=self.decay_rate,
            clip=self.gradient_clipping_threshold,
            is_static=bool(self.is_static),
            is_shared=bool(self.is_shared),
        )


FIELDS = {
    1: ("name", "string"),
    2: ("size", "uint64"),
    3: ("learning_rate", "double"),
    4: ("momentum", "double"),
    5: ("initial_mean", "double"),
    6: ("initial_std", "double"),
    7: ("decay_rate", "double"),
    9: ("dims", "uint64"),
    11: ("initial_strategy", "int32"),
    12: ("initial_smart", "bool"),
    17: ("gradient_clipping_threshold", "double"),
    18: ("is_static", "bool"),
    23: ("is_shared", "bool"),
}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & MAX_VARINT, at
    raise StorageError("a number in it is cut or too long")


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _read_varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise StorageError(f"field {number} has the unknown wire type {wire}")
        part, at = data[at : at + length], at + length
        if len(part) < length:
            raise StorageError(f"field {number} is cut")
        yield number, struct.unpack("<d", part)[0] if wire == 1 else part


def _packed(value: float | bytes) -> list[int]:
    if not isinstance(value, bytes):
        raise StorageError("field 9 (dims) is not a number")
    numbers, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class LayerInputConfig:
    input_layer_name: str
    input_parameter_name: str = ""


@dataclass(frozen=True)
class LayerConfig:
    name: str
    type: str
    size: int
    active_type: str
    inputs: tuple[LayerInputConfig, ...]
    bias_parameter_name: str
    drop_rate: float
    height: int
    width: int
    num_filters: int
    coeff: float


@dataclass(frozen=True)
class EvaluatorConfig:
    name: str
    type: str
    input_layers: tuple[str, ...]


@dataclass(frozen=True)
class ModelConfig:
    """A network, for reading."""

    layers: tuple[LayerConfig, ...]
    parameters: tuple[ParameterConfig, ...]
    input_layer_names: tuple[str, ...]
    output_layer_names: tuple[str, ...]
    evaluators: tuple[EvaluatorConfig, ...]
