"""CIFAR and MNIST as published, and everything that is not quite that."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data import formats
from opsin.data.formats import find_cifar, find_mnist, read_cifar, read_idx, read_mnist, unpickle
from opsin.errors import BadInput, DataError
from tests import make

CIFAR10, CIFAR10_BINARY = formats.CIFAR["cifar10"]
CIFAR100, CIFAR100_BINARY = formats.CIFAR["cifar100"]
SMALL = make.cifar10_python(4)


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: make.md5(data) for name, data in files.items()}


def expected_cifar10(per_file: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    arrays = make.cifar10_arrays(per_file)
    train = [arrays[name] for name in make.CIFAR10_FILES[:-1]]
    return {
        "train": (np.concatenate([images for images, _ in train]), np.concatenate([labels for _, labels in train])),
        "test": arrays["test_batch"],
    }


def same(splits: dict[str, formats.Arrays], expected: dict[str, tuple[np.ndarray, ...]]) -> bool:
    assert all(arrays.images.dtype == np.uint8 and arrays.labels.dtype == np.int64 for arrays in splits.values())
    assert all(arrays.images.flags.writeable for arrays in splits.values())
    return splits.keys() == expected.keys() and all(
        np.array_equal(splits[name].images, arrays[0]) and np.array_equal(splits[name].labels, arrays[1])
        for name, arrays in expected.items()
    )


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("version", [CIFAR10, CIFAR10_BINARY, CIFAR100, CIFAR100_BINARY], ids=lambda v: v.folder)
def test_every_published_version(tmp_path: Path, version: formats.Cifar, packed: bool) -> None:
    files, name = {
        CIFAR10: (make.cifar10_python(7), "cifar10"),
        CIFAR10_BINARY: (make.cifar10_binary(7), "cifar10"),
        CIFAR100: (make.cifar100_python(), "cifar100"),
        CIFAR100_BINARY: (make.cifar100_binary(), "cifar100"),
    }[version]
    if packed:
        make.write(tmp_path, {version.archive: make.tar_gz(version.folder, files)})
    else:
        make.write(tmp_path / version.folder, files)
    inner = tmp_path / (version.archive if packed else version.folder)
    for place in (tmp_path, inner):
        assert find_cifar(name, place) == (version, inner)
    splits, classes = read_cifar(version, inner, sums(files))
    if name == "cifar10":
        assert same(splits, expected_cifar10(7)) and classes[:2] == ("airplane", "automobile")
    else:
        assert same(splits, {name: arrays[:2] for name, arrays in make.cifar100_arrays().items()})
        assert len(classes) == 100 and classes[99] == "worm"


def test_nothing_there_a_part_there_and_an_archive_beside_the_part(tmp_path: Path) -> None:
    assert find_cifar("cifar10", tmp_path) is None and find_cifar("cifar10", tmp_path / "not there") is None
    folder = make.write(tmp_path / CIFAR10.folder, SMALL)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="not the whole data set: lacks data_batch_4"):
        find_cifar("cifar10", tmp_path)
    make.write(tmp_path, {CIFAR10.archive: b""})
    assert find_cifar("cifar10", tmp_path) == (CIFAR10, tmp_path / CIFAR10.archive)


def test_class_folders_named_train_and_test_are_no_cifar100(tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / name).mkdir()
    assert find_cifar("cifar100", tmp_path) is None


@pytest.mark.parametrize("file", list(SMALL))
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_wrong_checksum_names_file_and_both_sums(tmp_path: Path, file: str, packed: bool) -> None:
    changed = SMALL | {file: SMALL[file][:-1] + b" ."}
    place = make.write(tmp_path / CIFAR10.folder, changed)
    if packed:
        place = make.write(tmp_path, {CIFAR10.archive: make.tar_gz(CIFAR10.folder, changed)}) / CIFAR10.archive
    old, new = make.md5(SMALL[file]), make.md5(changed[file])
    with pytest.raises(BadInput, match=f"{file}: is not the published file: expected MD5 {old}, received {new}"):
        read_cifar(CIFAR10, place, sums(SMALL))


def test_file_without_known_checksum_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected MD5 none known"):
        read_cifar(CIFAR10, make.write(tmp_path, SMALL), {})


def opened(value: object, name: str = "data_batch_1") -> BadInput | None:
    """The error for a CIFAR-10 folder in which one file, with its right checksum, is a pickle of `value`."""
    data = value if isinstance(value, bytes) else make.pickle2(value)
    files = SMALL | {name: data}
    with tempfile.TemporaryDirectory() as folder:
        place = make.write(Path(folder), files)
        try:
            splits, _ = read_cifar(CIFAR10, place, sums(files))
        except BadInput as error:
            return error
    assert splits["train"].images.shape[1:] == (3, 32, 32)
    return None


BATCH = {b"data": make.noise(2, 3072), b"labels": [0, 9]}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (BATCH | {b"labels": [0, 10]}, "labels from 0 to 10; expected 0 to 9"),
        (BATCH | {b"labels": [0]}, "1 labels for 2 pictures"),
        (BATCH | {b"labels": [0, b"1"]}, "labels: expected a list of numbers"),
        (BATCH | {b"labels": [0, -1]}, "labels: expected a list of numbers"),
        (BATCH | {b"data": make.noise(2, 3071)}, r"shape \(2, 3071\); expected N × 3072"),
        (BATCH | {b"data": make.noise(6144)}, "expected N × 3072"),
        (BATCH | {b"data": b"x" * 6144}, "expected an array of bytes"),
        ({b"labels": [0]}, "expected a dictionary with the keys data and labels"),
        ([1], "expected a dictionary"),
        (b"", "cannot be unpickled"),
    ],
)
def test_pickle_of_something_else(value: object, reason: str) -> None:
    assert opened(BATCH) is None
    error = opened(value)
    assert error is not None and error.path.endswith("data_batch_1")
    with pytest.raises(BadInput, match=reason):
        raise error


def test_class_names_are_checked() -> None:
    for value in ({b"label_names": [b"cat"] * 9}, {b"label_names": [1] * 10}, [], {b"label_names": [b"\xff"] * 10}):
        error = opened(value, "batches.meta")
        assert error is not None and error.reason == "expected 10 class names"


class Harm:
    """What it would be unpickled to is the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    for harm in (Harm(os.mkdir, str(proof)), Harm(eval, f"open({str(proof)!r}, 'w')"), Harm(getattr, 1, "real")):
        data = pickle.dumps({b"data": harm, b"labels": []}, protocol)
        with pytest.raises(BadInput, match="is not allowed here"):
            unpickle(data, "x", make.md5(data))
    assert not proof.exists()
    pickle.loads(pickle.dumps(Harm(os.mkdir, str(proof)), protocol))
    assert proof.exists()  # what was refused would have worked


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",  # BUILD on an allowed name must not change it
        b"\x80\x02c_codecs\nencode\n}U\x01aK\x01sb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0f__getattribute__K\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # room for two billion values
        b"\x80\x02(lp0\n.",
        b"\x80\x02\x8a\xff.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
    ],
)
def test_crafted_pickles(data: bytes) -> None:
    state = {cls: dict(vars(cls)) for cls in (formats._Array, formats._Encode)}
    with pytest.raises(BadInput, match="cannot be unpickled"):
        unpickle(data, "x", make.md5(data))
    assert all(dict(vars(cls)) == before for cls, before in state.items())


def test_arrays_as_python_3_and_numpy_2_pickle_them() -> None:
    for protocol in (2, 3, 4):
        data = pickle.dumps(BATCH, protocol)
        values = unpickle(data, "x", make.md5(data))
        assert values[b"labels"] == [0, 9] and np.array_equal(formats._array(values[b"data"], "x"), BATCH[b"data"])
    for other in (np.zeros((2, 3072), np.float32), np.array([[None]]), np.asfortranarray(make.noise(2, 3072))):
        data = pickle.dumps({b"data": other}, 2)
        try:
            value = unpickle(data, "x", make.md5(data))[b"data"]
        except BadInput:
            continue
        with pytest.raises(BadInput, match="expected an array of bytes"):
            formats._array(value, "x")


def test_binary_records_are_checked(tmp_path: Path) -> None:
    files = make.cifar10_binary(3)
    for changed, reason in (
        (files["data_batch_2.bin"][:-1], "9,218 bytes; expected a multiple of 3,073"),
        (b"", "0 bytes; expected a multiple"),
        (b"\x0a" + files["data_batch_2.bin"][1:], "labels from .* to 10; expected 0 to 9"),
    ):
        place = make.write(tmp_path, files | {"data_batch_2.bin": changed})
        with pytest.raises(BadInput, match=f"data_batch_2.bin: {reason}"):
            read_cifar(CIFAR10_BINARY, place, {})


# ---------------------------------------------------------------------------------------------------------------------
# Archives
# ---------------------------------------------------------------------------------------------------------------------


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def test_members_that_are_links_or_pipes_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SMALL["test_batch"])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        link = tarfile.TarInfo("x/test_batch")
        link.type, link.linkname = kind, str(tmp_path / "secret")
        members = [(tarfile.TarInfo(f"x/{name}"), data) for name, data in SMALL.items() if name != "test_batch"]
        place = make.write(tmp_path, {CIFAR10.archive: tar_of((link, b""), *members)}) / CIFAR10.archive
        with pytest.raises(BadInput, match="lacks test_batch"):
            read_cifar(CIFAR10, place, sums(SMALL))


def test_archive_is_read_in_place_whatever_its_member_names(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"../../{name}"), data) for name, data in SMALL.items()]
    for mode in ("w:gz", "w"):
        place = make.write(tmp_path / "a", {CIFAR10.archive: tar_of(*members, mode=mode)}) / CIFAR10.archive
        splits, _ = read_cifar(CIFAR10, place, sums(SMALL))
        assert same(splits, expected_cifar10(4))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", CIFAR10.archive]
    twice = tar_of(*members[:1], *((tarfile.TarInfo("y/" + m.name.rpartition("/")[2]), d) for m, d in members))
    place = make.write(tmp_path, {CIFAR10.archive: twice}) / CIFAR10.archive
    with pytest.raises(BadInput, match="holds data_batch_1 twice"):
        read_cifar(CIFAR10, place, sums(SMALL))


def test_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tar_of((tarfile.TarInfo("x/zeros"), bytes(1 << 20)), (tarfile.TarInfo("x/meta"), b""))
    place = make.write(tmp_path, {CIFAR100.archive: bomb}) / CIFAR100.archive
    with pytest.raises(BadInput, match="lacks train, test"):
        read_cifar(CIFAR100, place, {})
    monkeypatch.setattr(formats, "MAX_UNPACKED", 1 << 19)
    with pytest.raises(BadInput, match="unpacks to more than 524,288 bytes"):
        read_cifar(CIFAR100, place, {})


TINY_100 = make.cifar100_python((2, 1))
ARCHIVE = make.tar_gz(CIFAR100.folder, TINY_100)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_change_of_an_archive_gives_the_data_or_bad_input(archives: Path, draw: st.DataObject) -> None:
    data = bytearray(ARCHIVE)
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.sampled_from([None, len(data) // 2, len(data) - 1, 20, 1, 0]))
    path = archives / CIFAR100.archive
    path.write_bytes(bytes(data[:cut]))
    try:
        splits, _ = read_cifar(CIFAR100, path, sums(TINY_100))
    except BadInput as error:
        assert error.reason
    else:  # a change beside the contents, such as the time in the header
        assert same(splits, {name: arrays[:2] for name, arrays in make.cifar100_arrays((2, 1)).items()})


SHORT = make.pickle2({b"data": make.noise(1, 64), b"labels": [3], b"filenames": [b"a" * 300, b"b"], b"n": 70000})


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_change_of_a_pickle_gives_a_value_or_bad_input(draw: st.DataObject) -> None:
    data = bytearray(SHORT)
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with pytest.raises(BadInput, match="is not the published file") if data != SHORT else pytest.raises(KeyError):
        unpickle(bytes(data), "x", make.md5(SHORT))[b"none"]
    try:  # and were its checksum right:
        values = unpickle(bytes(data), "x", make.md5(bytes(data)))
        formats._array(values.get(b"data") if isinstance(values, dict) else None, "x")
    except BadInput as error:
        assert error.reason


# ---------------------------------------------------------------------------------------------------------------------
# MNIST
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw", "raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist(tmp_path: Path, packed: bool, below: str) -> None:
    assert find_mnist(tmp_path) is None
    make.write(tmp_path / below, make.mnist(packed=packed))
    found = find_mnist(tmp_path)
    assert found is not None
    arrays = make.mnist_arrays()
    expected = {"train": arrays["train"], "test": arrays["t10k"]}
    assert same(
        {split: read_mnist(*paths) for split, paths in found.items()},
        {split: (images[:, None], labels.astype(np.int64)) for split, (images, labels) in expected.items()},
    )


def test_mnist_with_dots_in_its_names_and_with_a_file_missing(tmp_path: Path) -> None:
    files = {name.replace("-idx", ".idx"): data for name, data in make.mnist(packed=False).items()}
    make.write(tmp_path, files)
    assert find_mnist(tmp_path) is not None
    (tmp_path / "t10k-labels.idx1-ubyte").unlink()
    assert find_mnist(tmp_path) is None


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (make.noise(3, 28, 27), [1, 2, 3], "images: pictures of 28×27; expected 28×28"),
        (make.noise(3, 28, 28), [1, 2], "labels: 2 labels for 3 pictures"),
        (make.noise(3, 28, 28), [1, 2, 10], "labels: label 10; expected 0 to 9"),
        (make.noise(3, 784), [1, 2, 3], r"images: begins with 00 00 08 02; expected 00 00 08 03"),
    ],
)
def test_mnist_of_wrong_shape(tmp_path: Path, images: np.ndarray, labels: list[int], reason: str) -> None:
    make.write(tmp_path, {"images": make.idx(images), "labels": make.idx(np.array(labels, np.uint8))})
    with pytest.raises(BadInput, match=reason):
        read_mnist(tmp_path / "images", tmp_path / "labels")


def test_idx_length_is_exact() -> None:
    data = make.idx(make.noise(2, 3, 4))
    assert read_idx(data, "x", 3).shape == (2, 3, 4)
    for wrong in (data[:-1], data + b"\0", data[:10], data[:4], b"", data[:4] + b"\xff" * 12):
        with pytest.raises(BadInput):
            read_idx(wrong, "x", 3)
    assert read_idx(make.idx(make.noise(0, 3, 4)), "x", 3).shape == (0, 3, 4)


def test_gzip_damage_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(make.idx(make.noise(50, 28, 28)))
    middle = len(data) // 2
    for wrong in (data[:-4], data[:middle], data[:middle] + b"\xff\xff" + data[middle + 2 :], data[:-8] + bytes(8)):
        with pytest.raises(BadInput, match="damaged gzip file"):
            read_idx(wrong, "x", 3)
    monkeypatch.setattr(formats, "MAX_UNPACKED", 1 << 15)
    with pytest.raises(BadInput, match="unpacks to more than 32,768 bytes"):
        read_idx(data, "x", 3)


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.data())
def test_any_bytes_give_an_array_or_bad_input(packed: bool, draw: st.DataObject) -> None:
    original = make.idx(make.noise(2, 5, 4))
    data = bytearray(gzip.compress(original, mtime=0) if packed else original)
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert read_idx(bytes(data), "x", 3).size == 40
    except BadInput as error:
        assert error.reason
