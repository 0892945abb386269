"""Values under Paddle's names, and the tar: byte for byte as the original wrote it, and hostile ones refused."""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opsin.v2 as paddle
from opsin.errors import StorageError
from opsin.v2 import graph, layer
from opsin.v2 import parameters as module
from opsin.v2.graph import ParameterConf
from opsin.v2.lower import Graph
from opsin.v2.parameters import Parameters, create, with_defaults
from opsin.v2.proto import ParameterConfig

GOLDEN = (Path(__file__).parents[2] / "data" / "v2" / "golden_params.tar").read_bytes()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graph.reset()
    yield
    graph.reset()
    graph.settings.seed = 1


def golden_net() -> layer.Layer:
    """The network whose parameters the golden tar holds: a convolution, its norm, a layer of logits."""
    x = layer.data("x", paddle.data_type.dense_vector(16))
    x = layer.img_conv(x, 3, 2, num_channels=1, padding=1, bias_attr=False)
    return layer.fc(layer.batch_norm(x), 2, paddle.activation.Softmax())


def to_bytes(parameters: Parameters) -> bytes:
    stream = io.BytesIO()
    parameters.to_tar(stream)
    return stream.getvalue()


def members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]


def packed(
    parts: list[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.GNU_FORMAT, mode: Any = "w"
) -> bytes:
    """A tar with end blocks, as anyone packs it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=format) as tar:
        for name, data in parts:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def values(*numbers: float) -> bytes:
    return struct.pack("<IIQ", 0, 4, len(numbers)) + np.array(numbers, "<f4").tobytes()


def conf_bytes(name: str = "w", size: int = 2, **options: Any) -> bytes:
    return ParameterConfig.of(ParameterConf(name, size, **options)).SerializeToString()


def read(data: bytes) -> Parameters:
    return Parameters.from_tar(io.BytesIO(data))


# ---------------------------------------------------------------------------------------------------------------------
# The tar as it was
# ---------------------------------------------------------------------------------------------------------------------


def test_the_golden_tar_is_rewritten_byte_for_byte() -> None:
    parameters = read(GOLDEN)
    assert to_bytes(parameters) == GOLDEN and len(GOLDEN) % 512 == 0 and GOLDEN[-512:] != bytes(512)
    declared = create(golden_net())  # and from a declared network, with the values of the file
    declared.init_from_tar(io.BytesIO(GOLDEN))
    assert to_bytes(declared) == GOLDEN
    assert parameters["___conv_0__.w0"].ravel().tolist() == [n / 2 for n in range(18)]
    assert declared.get_shape("___conv_0__.w0") == (1, 18) and declared.get_shape("___fc_layer_0__.w0") == (32, 2)


def test_the_golden_bytes_of_a_configuration() -> None:
    """SPEC 2.10, for a moving mean."""
    name = b"___batch_norm_0__.w1"
    expected = b"\x0a\x14" + name + b"\x10\x02" + b"\x29" + bytes(8) + b"\x31" + bytes(8)
    expected += bytes.fromhex("4801 4802 5800 6000 900101 b80101".replace(" ", ""))
    assert dict(members(GOLDEN))[name.decode() + ".protobuf"] == expected
    message = ParameterConfig.FromString(expected)
    assert (message.dims, message.is_static, message.is_shared, message.learning_rate) == ([1, 2], True, True, None)
    assert message.SerializeToString() == expected


def test_what_an_optimizer_set_is_written_and_read_again() -> None:
    conf = ParameterConf("w", 2, (1, 2), 0.5, 0.25, 1, True, 2.0, 0.9, 0.0256, 3.0)
    assert ParameterConfig.FromString(ParameterConfig.of(conf).SerializeToString()).conf() == conf
    assert with_defaults(ParameterConf("w", 2, momentum=0.1), momentum=0.9, decay_rate=0.2) == ParameterConf(
        "w", 2, momentum=0.1, decay_rate=0.2
    )


REPACKED: dict[str, Callable[[], bytes]] = {
    "with end blocks": lambda: GOLDEN + bytes(1024),
    "configurations first": lambda: packed([(n, d) for n, d in reversed(members(GOLDEN))]),
    "all configurations last": lambda: packed(sorted(members(GOLDEN), key=lambda m: m[0].endswith(".protobuf"))),  # type: ignore[arg-type]
    "after ./": lambda: packed([(folder("./"), b""), *((f"./{n}", d) for n, d in members(GOLDEN))]),  # type: ignore[list-item]
    "by POSIX": lambda: packed(members(GOLDEN), tarfile.USTAR_FORMAT),  # type: ignore[arg-type]
    "by pax": lambda: packed([(dated(n), d) for n, d in members(GOLDEN)], tarfile.PAX_FORMAT),
}


def folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def dated(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mtime = 1.5  # type: ignore[assignment]
    return info


@pytest.mark.parametrize("how", REPACKED)
def test_tars_of_other_hands_are_read(how: str) -> None:
    parameters = read(REPACKED[how]())
    assert set(parameters) == set(read(GOLDEN)) and len(parameters) == 7
    assert all((parameters[name] == read(GOLDEN)[name]).all() for name in parameters)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(format: int) -> None:
    name = "block/" + "w" * 130
    parameters = Parameters()
    parameters.append(ParameterConf(name, 2))
    assert dict(members(to_bytes(parameters)))[name] == module._to_bytes(parameters[name])
    assert read(to_bytes(parameters)).keys() == [name]
    parts: list[tuple[str | tarfile.TarInfo, bytes]] = [(name, values(1, 2)), (name + ".protobuf", conf_bytes(name))]
    assert read(packed(parts, format))[name].tolist() == [[1, 2]]


def test_files_that_programs_of_2017_open(tmp_path: Path) -> None:
    """As text, and through gzip."""
    parameters = create(golden_net())
    with open(tmp_path / "p.tar", "w") as file:
        parameters.to_tar(file)
    with open(tmp_path / "p.tar") as file:
        assert to_bytes(Parameters.from_tar(file)) == to_bytes(parameters)
    with gzip.open(tmp_path / "p.tar.gz", "w") as file:
        parameters.to_tar(file)
    with gzip.open(tmp_path / "p.tar.gz") as file:
        assert to_bytes(Parameters.from_tar(file)) == to_bytes(parameters)
    with (
        open(tmp_path / "p.tar.gz", "rb") as file,
        pytest.raises(StorageError, match=r"p\.tar\.gz is not a tar of parameters.*gzip\.open"),
    ):
        Parameters.from_tar(file)
    with pytest.raises(StorageError, match="opened with 'rb'"):
        Parameters.from_tar(io.StringIO("text" * 200))


def test_converters_leave_dims_out() -> None:
    parameters = read(packed([("w.protobuf", conf_bytes("w", 2)), ("w", values(1, 2))]))
    assert parameters.get_shape("w") == (1, 2)
    target = Parameters()
    target.append(ParameterConf("w", 2, (2, 1)))
    target.init_from_tar(io.BytesIO(packed([("w.protobuf", conf_bytes("w", 2)), ("w", values(1, 2))])))
    assert target["w"].tolist() == [[1], [2]]


# ---------------------------------------------------------------------------------------------------------------------
# Damaged and hostile
# ---------------------------------------------------------------------------------------------------------------------

PAIR: list[tuple[str | tarfile.TarInfo, bytes]] = [("w", values(1, 2)), ("w.protobuf", conf_bytes())]


def special(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def with_size(size: int) -> bytes:
    """The golden tar with another size in its first header, and the right checksum."""
    field = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    head = GOLDEN[:124] + field + GOLDEN[136:148] + b" " * 8 + GOLDEN[156:512]
    return head[:148] + b"%06o\0 " % sum(head) + head[156:] + GOLDEN[512:]


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "another format": (lambda: packed([("w", b"\1" + values(1, 2)[1:]), PAIR[1]]), "found 1 of 4-byte values"),
    "8-byte values": (lambda: packed([("w", struct.pack("<IIQ", 0, 8, 2) + bytes(16)), PAIR[1]]), "of 8-byte values"),
    "a count that lies": (
        lambda: packed([("w", struct.pack("<IIQ", 0, 4, 1 << 60) + bytes(8)), PAIR[1]]),
        "says 1152921504606846976 values, 8 bytes follow",
    ),
    "half a value": (lambda: packed([("w", values(1, 2)[:-1]), PAIR[1]]), "says 2 values, 7 bytes follow"),
    "no header": (lambda: packed([("w", b"abc"), PAIR[1]]), "3 bytes, fewer than the 16"),
    "another size": (lambda: packed([PAIR[0], ("w.protobuf", conf_bytes("w", 3))]), "says 3 values .*there are 2"),
    "other dims": (
        lambda: packed([PAIR[0], ("w.protobuf", conf_bytes("w", 2, dims=(1 << 40, 1 << 40)))]),
        "there are 2",
    ),
    "the configuration of another": (
        lambda: packed([PAIR[0], ("w.protobuf", conf_bytes("v"))]),
        "w.protobuf is the configuration of 'v'",
    ),
    "values twice": (lambda: packed([PAIR[0], *PAIR]), "member w comes twice"),
    "configuration twice": (lambda: packed([*PAIR, PAIR[1]]), "member w.protobuf comes twice"),
    "NaN": (lambda: packed([("w", values(1, np.nan)), PAIR[1]]), "1 of its values are not finite"),
    "infinite": (lambda: packed([("w", values(np.inf, -np.inf)), PAIR[1]]), "2 of its values are not finite"),
    "no configuration": (lambda: packed([PAIR[0]]), "parameter w has no .protobuf"),
    "no values": (lambda: packed([PAIR[1]]), "parameter w has no values"),
    "configuration cut": (lambda: packed([PAIR[0], ("w.protobuf", conf_bytes()[:-3])]), "member w.protobuf: .* cut"),
    "a number without end": (lambda: packed([PAIR[0], ("w.protobuf", b"\x10" + b"\xff" * 20)]), "cut or too long"),
    "an unknown wire type": (lambda: packed([PAIR[0], ("w.protobuf", b"\x0f")]), "unknown wire type 7"),
    "a name that is a number": (lambda: packed([PAIR[0], ("w.protobuf", b"\x08\x01")]), r"\(name\) is not a string"),
    "a name that is not UTF-8": (lambda: packed([PAIR[0], ("w.protobuf", b"\x0a\x01\xff")]), "not UTF-8"),
    "an absolute path": (lambda: raw_tar("/etc/passwd"), "'/etc/passwd' is not the name"),
    "a path upwards": (lambda: raw_tar("a/../../w"), r"'a/../../w' is not the name"),
    "a symbolic link": (lambda: packed([(special("w", tarfile.SYMTYPE), b""), *PAIR]), "w is not a regular file"),
    "a hard link": (lambda: packed([(special("w", tarfile.LNKTYPE), b""), *PAIR]), "w is not a regular file"),
    "a device": (lambda: packed([(special("w", tarfile.CHRTYPE), b""), *PAIR]), "w is not a regular file"),
    "a fifo": (lambda: packed([(special("w", tarfile.FIFOTYPE), b""), *PAIR]), "w is not a regular file"),
    "cut in a value": (lambda: GOLDEN[:530], "member ___conv_0__.w0 is cut: 18 of 88 bytes and 424 of padding"),
    "cut in a header": (lambda: GOLDEN[:2500], "a header is cut: 452 of 512 bytes"),
    "cut in the padding": (lambda: GOLDEN[:1000], "is cut: 488 of 88 bytes and 424"),
    "cut between the two": (lambda: GOLDEN[:1024], "parameter ___conv_0__.w0 has no .protobuf"),
    "a damaged header": (lambda: GOLDEN[:2048] + b"?" + GOLDEN[2049:], "a header is damaged"),
    "a size without end": (lambda: with_size(1 << 70), "has 1180591620717411303424 bytes"),
    "a size beyond the file": (lambda: with_size(1 << 20), f"of {1 << 20} bytes"),
    "a negative size": (lambda: GOLDEN[:124] + b"-0000000130\0" + GOLDEN[136:], "a header is damaged"),
    "a configuration of megabytes": (lambda: packed([PAIR[0], ("w.protobuf", bytes(1 << 17))]), "65536 are the most"),
    "a pax header that lies": (lambda: pax(b"99 path=w\n"), "an extended header is damaged"),
    "a pax header without end": (lambda: pax(b"path=w" * 99), "an extended header is damaged"),
    "no tar": (lambda: b"hello " * 200, "not a tar"),
    "a pickle": (lambda: b"\x80\x04" + b"cos\nsystem\n" * 100, "not a tar"),
}


def raw_tar(name: str) -> bytes:
    """Written by hand, since tarfile makes such names harmless."""
    stream = io.BytesIO()
    module._write_member(stream, name, values(1, 2))
    return stream.getvalue()


def pax(records: bytes) -> bytes:
    stream = io.BytesIO()
    module._write_block(stream, b"x", records, b"x")
    return stream.getvalue() + packed(PAIR)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tars_are_one_clear_error(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=message) as error:
        read(make())
    assert "the tar" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_has_no_parameters() -> None:
    assert len(read(b"")) == 0


def test_damage_anywhere_is_an_error_or_a_parameter() -> None:
    """Random bytes of the golden tar changed, and the file cut: never anything but a StorageError."""
    random, refused = np.random.default_rng(11), 0
    for _ in range(300):
        data = bytearray(GOLDEN)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            data[place] = random.integers(0, 256)
        if random.random() < 0.3:
            del data[random.integers(0, len(data)) :]
        try:
            read(bytes(data))
        except StorageError:
            refused += 1
    assert refused > 30  # the rest changed values, or bytes that say nothing


def test_a_bomb_is_stopped_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of zeros in kilobytes of gzip: read as far as the bound, and no further."""
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    stream = io.BytesIO()
    for i in range(40):
        module._write_member(stream, f"w{i}", values(*np.zeros(30_000)))
    bomb = io.BytesIO(gzip.compress(stream.getvalue()))
    assert len(bomb.getvalue()) < 20_000
    file = gzip.GzipFile(fileobj=bomb)
    with pytest.raises(StorageError, match="more than 200000 members or 1 MiB"):
        Parameters.from_tar(file)
    assert file.tell() < 2 << 20
    with pytest.raises(StorageError, match="EOFError"):
        Parameters.from_tar(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(GOLDEN)[:-20])))
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    with pytest.raises(StorageError, match="more than 3 members"):
        read(GOLDEN)


# ---------------------------------------------------------------------------------------------------------------------
# The mapping
# ---------------------------------------------------------------------------------------------------------------------


def test_names_shapes_and_errors() -> None:
    parameters = create(golden_net())
    names = parameters.keys()
    assert names == parameters.names() == list(parameters) and isinstance(names, list)
    assert parameters.has_key("___conv_0__.w0") and "___conv_0__.w0" in parameters and "w" not in parameters
    value = parameters.get("___fc_layer_0__.w0")
    assert value.shape == (32, 2) and value.dtype == np.float32 and value.flags.writeable
    value[:] = 7
    assert not (parameters["___fc_layer_0__.w0"] == 7).any()  # a copy
    parameters["___fc_layer_0__.w0"] = value.astype(np.float64)
    assert (parameters["___fc_layer_0__.w0"] == 7).all()
    with pytest.raises(ValueError, match="Must return ndarray"):
        parameters.set("___fc_layer_0__.w0", [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Value shape mismatch, expect \(32, 2\), should \(2, 32\)"):
        parameters.set("___fc_layer_0__.w0", value.T)
    with pytest.raises(ValueError, match="No such parameter w"):
        parameters.get("w")
    with pytest.raises(ValueError, match="parameter name should be string"):
        parameters.get_shape(3)  # type: ignore[arg-type]


def test_values_start_as_declared_from_the_seed_and_the_name() -> None:
    net = golden_net()
    first, second = create(net), create(net)
    graph.settings.seed = 2
    third = create(net)
    for name, conf in first.confs.items():
        assert (first[name] == second[name]).all()
        assert (first[name] != third[name]).all() == (conf.initial_std > 0)
    parameters = Parameters()
    for name, options in {"n": {}, "u": {"strategy": 1}, "c": {"initial_std": 0.0}}.items():
        parameters.append(dataclasses.replace(ParameterConf(name, 20_000, (100, 200), 3.0, 0.5), **options))
    assert abs(parameters["n"].mean() - 3) < 0.02 and abs(parameters["n"].std() - 0.5) < 0.02
    uniform = parameters["u"]
    assert 2.5 <= uniform.min() < 2.51 and 3.49 < uniform.max() <= 3.5 and abs(uniform.mean() - 3) < 0.02
    assert (parameters["c"] == 3).all()


def test_attached_values_are_those_of_the_network() -> None:
    net = golden_net()
    parameters = create(net)
    parameters.set("___fc_layer_0__.wbias", np.array([[1.0, 2]]))  # before the trainer: kept
    module_of_it = Graph(net)
    parameters.attach(module_of_it)
    live = module_of_it.tensors()
    assert live["___fc_layer_0__.wbias"].tolist() == [1, 2]
    assert {name: tensor.numel() for name, tensor in live.items()} == {n: c.size for n, c in parameters.confs.items()}
    live["___fc_layer_0__.wbias"].data.mul_(2)
    assert parameters["___fc_layer_0__.wbias"].tolist() == [[2, 4]]
    parameters.init_from_tar(io.BytesIO(GOLDEN), exclude_params=["___fc_layer_0__.wbias"])  # after it: kept, too
    assert live["___conv_0__.w0"].flatten().tolist() == [n / 2 for n in range(18)]
    assert live["___fc_layer_0__.wbias"].tolist() == [2, 4]
    for name in parameters:
        parameters.set(name, parameters.get(name))  # what get gives, set takes
        assert parameters.get_grad(name).shape == parameters.get_shape(name) and not parameters.get_grad(name).any()


def test_init_from_tar_takes_what_fits_and_nothing_of_a_tar_that_does_not() -> None:
    source, target = Parameters(), Parameters()
    for parameters, names in ((source, "abc"), (target, "bcd")):
        for name in names:
            parameters.append(ParameterConf(name, 2, initial_mean=float(parameters is source), initial_std=0.0))
    target.init_from_tar(io.BytesIO(to_bytes(source)), exclude_params=["c"])
    assert {name: target[name].tolist()[0] for name in target} == {"b": [1, 1], "c": [0, 0], "d": [0, 0]}
    other = Parameters()
    other.append(ParameterConf("b", 2, initial_std=0.0))
    other.append(ParameterConf("c", 3))
    with pytest.raises(ValueError, match="parameter c has 3 values, in the tar 2"):
        other.init_from_tar(io.BytesIO(to_bytes(source)))
    assert not other["b"].any()


def test_one_parameter_alone() -> None:
    parameters = create(golden_net())
    stream = io.BytesIO()
    parameters.serialize("___conv_0__.w0", stream)
    assert stream.getvalue()[:16] == struct.pack("<IIQ", 0, 4, 18)
    other = create(golden_net())
    other.deserialize("___conv_1__.w0", io.BytesIO(stream.getvalue()))
    assert (other["___conv_1__.w0"] == parameters["___conv_0__.w0"]).all()
    with pytest.raises(StorageError, match=r"says 64 values .*there are 18"):
        other.deserialize("___fc_layer_1__.w0", io.BytesIO(stream.getvalue()))
    with pytest.raises(StorageError, match="says 18 values"):
        other.deserialize("___conv_1__.w0", io.BytesIO(stream.getvalue()[:-1]))


def test_configurations_are_appended_as_messages() -> None:
    """As the original's own tests do."""
    parameters = Parameters()
    config = ParameterConfig()
    assert not config.IsInitialized()
    config.name, config.size = "fc.w", 6
    config.dims.append(2)
    config.dims.append(3)
    assert config.IsInitialized()
    parameters.__append_config__(config)
    assert parameters.get_shape("fc.w") == (2, 3)
    config.size = 7
    with pytest.raises(ValueError, match=r"'fc\.w' has 6 values; it cannot also have 7"):
        parameters.__append_config__(config)
