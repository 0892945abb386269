"""The published data sets as readers, from archives in the published formats; what the original's own tests asked for
(cifar_test.py, mnist_test.py, flowers_test.py, common_test.py at v0.11.0), with smaller counts."""

from __future__ import annotations

import http.server
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.data import datasets
from opsin.errors import BadInput, DataError, UsageError
from opsin.v2 import dataset
from opsin.v2.dataset import cifar, common, flowers, mnist, uci_housing
from tests import make


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    monkeypatch.setenv("OPSIN_OFFLINE", "1")
    common._arrays.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "train", "test", "files"),
    [
        ("cifar10", cifar.train10, cifar.test10, make.CIFAR10_FILES),
        ("cifar100", cifar.train100, cifar.test100, ["train", "test"]),
    ],
)
def test_cifar(
    name: str, train: Callable, test: Callable, files: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.named(monkeypatch, own_cache / "data" / name, name)
    arrays = make.cifar10_arrays() if name == "cifar10" else make.cifar100_arrays()
    for made, parts in ((train(), files[:-1]), (test(), files[-1:])):
        expected = [(x, int(y)) for part in parts for x, y in zip(*arrays[part][:2], strict=True)]
        got = list(made())
        assert len(got) == len(expected) == len(list(made()))
        for (pixels, label), (image, number) in zip(got, expected, strict=True):
            assert pixels.dtype == np.float32 and pixels.shape == (3072,) and type(label) is int and label == number
            assert np.array_equal(pixels, (image.reshape(-1) / 255).astype(np.float32))
    assert max(label for _, label in train()()) == len(datasets.DATASETS[name].classes) - 1


def test_mnist(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.named(monkeypatch, own_cache / "data" / "mnist", "mnist")
    arrays = make.mnist_arrays()
    for made, part in ((mnist.train(), "train"), (mnist.test(), "t10k")):
        samples = list(made())
        assert [label for _, label in samples] == arrays[part][1].tolist()
        pixels = np.stack([pixels for pixels, _ in samples])
        assert pixels.dtype == np.float32 and pixels.shape == (len(samples), 784)
        assert (pixels.min(), pixels.max()) == (-1, 1)
        np.testing.assert_allclose(pixels, arrays[part][0].reshape(-1, 784) / 255 * 2 - 1, atol=1e-6)


def test_the_archive_is_looked_for_when_the_function_is_called() -> None:
    with pytest.raises(DataError, match=r"OPSIN_OFFLINE is set and cifar-10-python\.tar\.gz is not here"):
        cifar.train10()


def test_a_program_may_say_where_its_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path / "data") == common.DATA_HOME
    make.named(monkeypatch, tmp_path / "old" / "cifar", "cifar10")
    monkeypatch.setattr(common, "DATA_HOME", str(tmp_path / "old"), raising=False)
    assert len(list(cifar.test10()())) == 20


def test_flowers(own_cache: Path) -> None:
    make.write(own_cache / "data" / "flowers", make.flowers())
    with pytest.raises(DataError, match=r"OPSIN_OFFLINE is set and 102flowers\.tgz is not here"):
        flowers.test()  # it is no published file


@pytest.fixture
def some_flowers(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Nine flowers whose checksums are taken for the published ones."""
    files = make.flowers()
    make.write(own_cache / "data" / "flowers", files)
    for name, file in (("DATA", "102flowers.tgz"), ("LABELS", "imagelabels.mat"), ("SETS", "setid.mat")):
        assert getattr(flowers, name).name == file
        monkeypatch.setattr(flowers, name, replace(getattr(flowers, name), md5=f"0 or {make.md5(files[file])}"))
    return files


def test_flowers_by_their_published_division(some_flowers: dict[str, bytes]) -> None:
    same = partial(flowers.train, mapper=lambda sample: sample)
    for made, numbers in ((same(), (1, 4, 7)), (flowers.test(), (2, 5, 8)), (flowers.valid(use_xmap=False), (3, 6, 9))):
        assert [label for _, label in made()] == [10 * i - 1 for i in numbers]
    assert all(data[:2] == b"\xff\xd8" for data, _ in same()())
    pixels = next(iter(flowers.test()()))[0]
    assert pixels.shape == (224 * 224 * 3,) and pixels.dtype == np.float32
    # The pictures are half as bright as `gradient`: the more green further down, the more red to the right.
    _, green, red = pixels.reshape(3, 224, 224) + np.array(flowers.MEAN, np.float32)[:, None, None]
    assert green[0].mean() < 25 < 100 < green[-1].mean() and red[:, 0].mean() < 25 < 100 < red[:, -1].mean()
    assert len(list(flowers.train(use_xmap=True, buffered_size=2)())) == 3


def test_flowers_that_are_not_all_there(
    some_flowers: dict[str, bytes], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {name: np.arange(1, 12, dtype=np.uint16)[None] for name in ("tstid", "trnid", "valid")}
    files = {"setid.mat": make.mat(sets), "imagelabels.mat": make.mat({"labels": sets["valid"]})}
    for name, file in (("LABELS", "imagelabels.mat"), ("SETS", "setid.mat")):
        monkeypatch.setattr(flowers, name, replace(getattr(flowers, name), md5=make.md5(files[file])))
    make.write(own_cache / "data" / "flowers", files)
    with pytest.raises(BadInput, match=r"lacks 2 of the pictures of trnid, for instance jpg/image_00010\.jpg"):
        list(flowers.test()())


def test_uci_housing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(5, 3, (10, 14)).round(2)
    text = "\n".join("  ".join(map(str, row)) for row in table.tolist()).encode()
    monkeypatch.setattr(uci_housing, "DATA", replace(uci_housing.DATA, md5=make.md5(text)))
    make.write(own_cache / "data" / "uci_housing", {"housing.data": text})
    train, test = list(uci_housing.train()()), list(uci_housing.test()())
    assert (len(train), len(test)) == (8, 2)
    x = table[:, :13]
    scaled = (x - x.mean(0)) / (x.max(0) - x.min(0))
    np.testing.assert_allclose([x for x, _ in train + test], scaled, rtol=1e-12)
    assert [y.tolist() for _, y in train + test] == table[:, 13:].tolist()
    monkeypatch.setattr(uci_housing, "DATA", replace(uci_housing.DATA, md5=make.md5(text + b" 1")))
    (own_cache / "data" / "uci_housing" / "housing.data").write_bytes(text + b" 1")
    with pytest.raises(BadInput, match="not the table of 14 columns"):
        uci_housing.train()


def test_md5file(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"Hello\n")
    assert common.md5file(str(tmp_path / "hello")) == "09f7e02f1290be211da707a266f153b3"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A server on this machine: its address, its files, what it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("OPSIN_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_download(served: tuple[str, dict[str, bytes], list[str]], own_cache: Path) -> None:
    url, files, asked = served
    files["/a/words.txt"] = b"1 2 3"
    path = common.download(f"{url}/a/words.txt", "mine", make.md5(b"1 2 3"))
    assert path == str(own_cache / "data" / "mine" / "words.txt") and Path(path).read_bytes() == b"1 2 3"
    assert common.download(f"{url}/a/words.txt", "mine", make.md5(b"1 2 3")) == path and len(asked) == 1
    Path(path).write_bytes(b"another file")
    with pytest.raises(RuntimeError, match="expected MD5 0123, received"):  # as in the original
        common.download(f"{url}/a/words.txt", "mine", "0123")
    assert Path(path).read_bytes() == b"another file"
    common.download(f"{url}/a/words.txt", "mine", make.md5(b"1 2 3"))
    assert Path(path).read_bytes() == b"1 2 3"
    with pytest.raises(RuntimeError, match=r"404.*: get none\.txt \(MD5 0\) from .* and put it into"):
        common.download(f"{url}/none.txt", "mine", "0")
    with pytest.raises(UsageError, match="does not end in the name of a file"):
        common.download(f"{url}/", "mine", "0")


def test_download_goes_on_where_it_stopped(served: tuple[str, dict[str, bytes], list[str]], own_cache: Path) -> None:
    url, files, asked = served
    files["/x"] = bytes(1000)
    make.write(own_cache / "data" / "m", {"x.part": bytes(1000)})  # complete, but never renamed
    common.download(f"{url}/x", "m", make.md5(bytes(1000)))
    assert asked == []


def test_split_and_cluster_files_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = [(np.full(3, i, np.float32), i) for i in range(10)]
    common.split(lambda: iter(samples), 4, suffix="part-%02d")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["part-00", "part-01", "part-02"]
    one, two = (list(common.cluster_files_reader("part-*", 2, i)()) for i in range(2))
    assert [label for _, label in one] == [0, 1, 2, 3, 8, 9] and [label for _, label in two] == [4, 5, 6, 7]
    assert type(one[0][1]) is int and one[5][0].tolist() == [9, 9, 9] and one[5][0].dtype == np.float32
    common.split(lambda: iter("abc"), 2, suffix="single-%d")
    assert list(common.cluster_files_reader("single-*", 1, 0)()) == ["a", "b", "c"]
    common.split(lambda: iter([{"any": 1}]), 2, "%d.json", lambda lines, file: file.write(json.dumps(lines).encode()))
    assert list(common.cluster_files_reader("*.json", 1, 0, json.load)()) == [{"any": 1}]


def test_split_files_hold_and_read_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for samples in ([(np.zeros(2), 0), (np.zeros(3), 1)], [(None, 1)], [(1, 2), (1,)]):
        with pytest.raises(UsageError, match="not all of one shape"):
            common.split(lambda samples=samples: iter(samples), 4)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match=r"evil\.pickle: not written by split"):
        list(common.cluster_files_reader("*.pickle", 1, 0)())


def test_names_that_are_out_of_scope() -> None:
    with pytest.raises(AttributeError, match=r"dataset\.imdb is not supported; there are cifar"):
        _ = dataset.imdb
    with pytest.raises(AttributeError, match=r"convert: RecordIO files are not supported"):
        _ = common.convert
