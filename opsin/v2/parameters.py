"""Values under Paddle's names, and the tar file in which programs keep them.

The tar: GNU headers; for each parameter, in order, a member of its name and one of its name + ".protobuf"; no blocks at
the end. The first is 16 bytes, `<IIQ`: format 0, bytes a value 4, number of values; then float32, little-endian. The
second is a `proto.ParameterConfig`. Reading takes any order, end blocks, and names after "./"; nothing is extracted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import struct
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from opsin.errors import StorageError
from opsin.v2.graph import Layer, ParameterConf, settings
from opsin.v2.proto import ParameterConfig
from opsin.v2.topology import Topology, binary

if TYPE_CHECKING:
    from opsin.v2.lower import Graph

HEADER = struct.Struct("<IIQ")
MAX_BYTES = 2 << 30  # of values in one tar: VGG-19 has 548 MiB
MAX_CONF = 1 << 16
MAX_MEMBERS = 200_000
CHUNK = 1 << 20
NO_TAR = "a header is damaged, or this is not a tar (a gzipped one is opened with gzip.open)"


class Parameters:
    """A mapping from names to float32 arrays, in the order in which the layers were declared.

    Values are drawn when first asked for, from the seed of `init` and the parameter's name. Once attached to a network,
    they are those of the network. `get` returns a copy; change it and `set` it.
    """

    def __init__(self) -> None:
        self.confs: OrderedDict[str, ParameterConf] = OrderedDict()
        self._values: dict[str, np.ndarray] = {}
        self._graphs: list[Graph] = []
        self._seed = settings.seed or secrets.randbits(63)

    # Names and shapes -------------------------------------------------------------------------------------------------

    def append(self, conf: ParameterConf) -> None:
        """Make a parameter known; one of that name may be there already, if it has the same size."""
        if not isinstance(conf, ParameterConf):
            raise ValueError(f"expected a parameter's configuration, got {conf!r}")
        known = self.confs.setdefault(conf.name, conf)
        if known.size != conf.size:
            raise ValueError(f"parameter {conf.name!r} has {known.size} values; it cannot also have {conf.size}")
        if conf.initializer is not None and known is conf:
            self.set(conf.name, np.asarray(conf.initializer(conf.name)))

    def __append_config__(self, config: Any) -> None:
        self.append(config.conf())

    def keys(self) -> list[str]:
        return list(self.confs)

    names = keys

    def has_key(self, name: str) -> bool:
        return name in self.confs

    def __contains__(self, name: object) -> bool:
        return name in self.confs

    def __iter__(self) -> Iterator[str]:
        return iter(self.confs)

    def __len__(self) -> int:
        return len(self.confs)

    def _conf(self, name: str) -> ParameterConf:
        if not isinstance(name, str):
            raise ValueError(f"parameter name should be string; got {name!r}")
        if name not in self.confs:
            raise ValueError(f"No such parameter {name}")
        return self.confs[name]

    def get_shape(self, name: str) -> tuple[int, ...]:
        """(1, size) where the configuration gives no shape, as for convolutions."""
        return self._conf(name).shape

    # Values -----------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> np.ndarray:
        """A copy, float32 of `get_shape`."""
        conf = self._conf(name)
        for graph in reversed(self._graphs):
            if name in graph.confs:
                return graph.read(name)
        if name not in self._values:
            self._values[name] = initial(conf, self._seed)
        return self._values[name].copy()

    def set(self, name: str, value: np.ndarray) -> None:
        """`value`: an array of `get_shape`. It is cast to float32 and copied."""
        if not isinstance(value, np.ndarray):
            raise ValueError(f"Must return ndarray; parameter {name} got {type(value).__name__}")
        shape = self.get_shape(name)
        if value.shape != shape:
            raise ValueError(f"Value shape mismatch, expect {shape}, should {value.shape} (parameter {name})")
        value = np.array(value, np.float32)
        graphs = [graph for graph in self._graphs if name in graph.confs]
        for graph in graphs:
            graph.write(name, value)
        if not graphs:
            self._values[name] = value

    __getitem__ = get
    __setitem__ = set

    def get_grad(self, name: str) -> np.ndarray:
        """The gradient that the last backward pass left, float32 of `get_shape`; zeros where there is none."""
        shape = self.get_shape(name)
        for graph in reversed(self._graphs):
            if name in graph.confs and (gradient := graph.tensor(name).grad) is not None:
                return gradient.to("cpu", torch.float32, copy=True).contiguous().numpy().reshape(shape)
        return np.zeros(shape, np.float32)

    def attach(self, graph: Graph) -> None:
        """Give the network these values; from then on they live in it."""
        for name in graph.confs:
            graph.write(name, self.get(name))
        for name in graph.confs:
            self._values.pop(name, None)
        self._graphs.append(graph)

    # Files ------------------------------------------------------------------------------------------------------------

    def serialize(self, name: str, f: Any) -> None:
        """One parameter: header and values."""
        binary(f).write(_to_bytes(self.get(name)))

    def deserialize(self, name: str, f: Any) -> None:
        """What `serialize` wrote, for a parameter that is known. `StorageError` where it does not fit."""
        conf = self._conf(name)
        data = binary(f).read(HEADER.size + 4 * conf.size + 1)
        self.set(name, _from_bytes(data, name).reshape(_fitting(conf, _count(data, name), name).shape))

    def to_tar(self, f: Any) -> None:
        """Write all parameters, byte for byte as in 2017."""
        f = binary(f)
        for name, conf in self.confs.items():
            _write_member(f, name, _to_bytes(self.get(name)))
            _write_member(f, f"{name}.protobuf", ParameterConfig.of(conf).SerializeToString())

    @staticmethod
    def from_tar(f: Any) -> Parameters:
        """All parameters of a tar. `StorageError` says what is wrong with it."""
        parameters = Parameters()
        for conf, value in _read_tar(f):
            parameters.append(conf)
            parameters._values[conf.name] = value
        return parameters

    def init_from_tar(self, f: Any, exclude_params: Collection[str] = ()) -> None:
        """Set those parameters of a tar that are known here and not excluded. Another size is a `ValueError`."""
        found = [(conf, value) for conf, value in _read_tar(f) if conf.name in self and conf.name not in exclude_params]
        for conf, _ in found:
            if conf.size != self.confs[conf.name].size:
                expected = self.confs[conf.name].size
                raise ValueError(
                    f"Value shape mismatch: parameter {conf.name} has {expected} values, in {_name(f)} {conf.size}"
                )
        for conf, value in found:
            self.set(conf.name, value.reshape(self.get_shape(conf.name)))


def create(layers: Layer | Sequence[Layer]) -> Parameters:
    """The parameters of a network, in the order of its declaration."""
    parameters = Parameters()
    for conf in Topology(layers).confs:
        parameters.append(conf)
    return parameters


def initial(conf: ParameterConf, seed: int) -> np.ndarray:
    """The first values of a parameter, a function of the seed and the parameter's name."""
    if conf.initial_std == 0:
        return np.full(conf.shape, conf.initial_mean, np.float32)
    digest = hashlib.sha256(f"{seed}\0{conf.name}".encode()).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    if conf.strategy == 1:
        values = random.random(conf.size, np.float32) * 2 - 1
    else:
        values = random.standard_normal(conf.size, np.float32)
    return (values * np.float32(conf.initial_std) + np.float32(conf.initial_mean)).reshape(conf.shape)


# ---------------------------------------------------------------------------------------------------------------------
# The bytes
# ---------------------------------------------------------------------------------------------------------------------


def _name(f: Any) -> str:
    return str(getattr(f, "name", "") or "the tar")


def _to_bytes(value: np.ndarray) -> bytes:
    return HEADER.pack(0, 4, value.size) + value.astype("<f4", copy=False).tobytes()


def _count(data: bytes, name: str) -> int:
    """How many values a parameter's header says."""
    if len(data) < HEADER.size:
        raise StorageError(f"parameter {name}: {len(data)} bytes, fewer than the {HEADER.size} of its header")
    kind, width, count = HEADER.unpack_from(data)
    if (kind, width) != (0, 4):
        raise StorageError(f"parameter {name}: expected format 0 of 4-byte values, found {kind} of {width}-byte values")
    return count


def _from_bytes(data: bytes, name: str) -> np.ndarray:
    """The values of one parameter, float32 [size]."""
    count, there = _count(data, name), len(data) - HEADER.size
    if there != 4 * count:
        raise StorageError(f"parameter {name}: the header says {count} values, {there} bytes follow it")
    value = np.frombuffer(data, "<f4", offset=HEADER.size).astype(np.float32)
    if not np.isfinite(value).all():
        raise StorageError(f"parameter {name}: {int((~np.isfinite(value)).sum())} of its values are not finite")
    return value


def _fitting(conf: ParameterConf, count: int, name: str) -> ParameterConf:
    if conf.size != count or (conf.dims and int(np.prod(conf.dims, dtype=object)) != count):
        raise StorageError(
            f"parameter {name}: the configuration says {conf.size} values {list(conf.dims)}, there are {count}"
        )
    return conf


def _write_member(f: Any, name: str, data: bytes) -> None:
    raw = name.encode()
    if len(raw) > 100:
        _write_block(f, b"././@LongLink", raw + b"\0", b"L")
    _write_block(f, raw[:100], data, b"0")


def _write_block(f: Any, name: bytes, data: bytes, kind: bytes) -> None:
    """A GNU header and its data, padded to 512 bytes: no time, no owner, mode 644."""
    if len(data) >= 8**11:
        raise StorageError(f"parameter {name.decode(errors='replace')}: {len(data)} bytes do not fit into a tar")
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(data) + b"0" * 11 + b"\0"
    tail = kind + bytes(100) + b"ustar  \0" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    total = sum(head) + 8 * ord(" ") + sum(tail)
    f.write(head + b"%06o\0 " % total + tail)
    f.write(data)
    f.write(bytes(-len(data) % 512))


def _read_tar(f: Any) -> list[tuple[ParameterConf, np.ndarray]]:
    """The parameters of a tar, in the order of their configurations or values, whichever comes first."""
    name = _name(f)
    values: dict[str, np.ndarray] = {}
    confs: dict[str, ParameterConf] = {}
    order: dict[str, None] = {}
    total = 0
    try:
        for number, (member, data) in enumerate(_members(binary(f))):
            total += len(data)
            if number >= MAX_MEMBERS or total > MAX_BYTES:
                raise StorageError(f"more than {MAX_MEMBERS} members or {MAX_BYTES >> 20} MiB")
            owner = member.removesuffix(".protobuf")
            order[owner] = None
            known = values if member == owner else confs
            if owner in known:
                raise StorageError(f"member {member} comes twice")
            if member == owner:
                values[owner] = _from_bytes(data, member)
                continue
            try:
                confs[owner] = ParameterConfig.FromString(data).conf()
            except StorageError as error:
                raise StorageError(f"member {member}: {error}") from error
            if confs[owner].name != owner:
                raise StorageError(f"member {member} is the configuration of {confs[owner].name!r}")
        for owner in order:
            if owner not in values or owner not in confs:
                raise StorageError(f"parameter {owner} has no {'values' if owner in confs else '.protobuf'}")
    except StorageError as error:
        raise StorageError(f"{name} is not a tar of parameters: {error}") from error
    result = []
    for owner in order:
        conf = _fitting(confs[owner], values[owner].size, f"{owner} in {name}")
        result.append((conf, values[owner].reshape(conf.shape)))
    return result


def _members(f: Any) -> Iterator[tuple[str, bytes]]:
    """(name, data) of each regular file of a tar, read once from front to back; folders are passed over.

    Not `tarfile`: it takes a damaged header for the end of the archive, and here the end is often unmarked.
    """
    long_name = ""
    while (header := _take(f, 512, "a header")) and header != bytes(512):
        if len(header) < 512:
            raise StorageError(f"a header is cut: {len(header)} of 512 bytes; or this is not a tar")
        checksum = _octal(header[148:156])
        if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise StorageError(NO_TAR)
        size, kind = _octal(header[124:136]), header[156:157]
        name = long_name or _text(header[:100])
        if not long_name and header[257:265] != b"ustar  \0":  # POSIX: the front part of a long name
            name = f"{_text(header[345:500])}/{name}".removeprefix("/") if header[257:262] == b"ustar" else name
        limit = MAX_BYTES if kind in (b"0", b"\0") and not name.endswith(".protobuf") else MAX_CONF
        if size > limit:
            raise StorageError(f"member {name} has {size} bytes; {limit} are the most")
        padded = size + -size % 512
        data = _take(f, padded, f"member {name}")
        if len(data) < padded:
            raise StorageError(f"member {name} is cut: {len(data)} of {size} bytes and {padded - size} of padding")
        data = data[:size]
        if kind in (b"L", b"x"):
            long_name = _text(data) if kind == b"L" else _pax_path(data)
            continue
        long_name = ""
        parts = name.removeprefix("./").split("/")
        if kind == b"5" or kind == b"g":
            continue
        if kind not in (b"0", b"\0"):
            raise StorageError(f"member {name} is not a regular file")
        if not parts[-1] or parts[0] == "" or ".." in parts:
            raise StorageError(f"member {name!r} is not the name of a parameter")
        yield "/".join(parts), data


def _take(f: Any, size: int, what: str) -> bytes:
    """`size` bytes, or as many as there are."""
    data = bytearray()
    try:
        while len(data) < size and (chunk := f.read(min(CHUNK, size - len(data)))):
            data += chunk
    except (OSError, EOFError, zlib.error) as error:  # of the file, or of the gzip that it was opened with
        raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
    except TypeError as error:
        raise StorageError(f"expected a file of bytes, opened with 'rb'; got {f!r}") from error
    return bytes(data)


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"a member's name is not UTF-8: {field[:100]!r}") from error


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if field[0] == 0x80:  # GNU: a binary number
        return int.from_bytes(field[1:], "big")
    try:
        return int(digits or b"0", 8)
    except ValueError as error:
        raise StorageError(NO_TAR) from error


def _pax_path(data: bytes) -> str:
    """The record "path" of an extended header, or "". Records are `length key=value`."""
    path, at = "", 0
    while at < len(data):
        length, _, _ = data[at : at + 8].partition(b" ")
        end = at + int(length) if length.isdigit() and len(length) < 8 else 0
        if not at < end <= len(data) or data[end - 1 : end] != b"\n":
            raise StorageError("an extended header is damaged")
        record = data[at + len(length) + 1 : end - 1]
        if record.startswith(b"path="):
            path = _text(record[5:])
        at = end
    return path


def with_defaults(conf: ParameterConf, **defaults: Any) -> ParameterConf:
    """The configuration with what it leaves unset (None or 0) taken from `defaults`."""
    return dataclasses.replace(conf, **{key: getattr(conf, key) or value for key, value in defaults.items()})
