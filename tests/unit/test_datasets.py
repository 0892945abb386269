"""The named data sets: the table, where they are found, and downloads from a server on this machine."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from opsin.data import datasets
from opsin.data.datasets import DATASETS, File, cache_folder, fetch, load
from opsin.data.index import ArraySource, Index
from opsin.errors import DataError, StorageError, UsageError
from tests import make


def images_of(index: Index) -> np.ndarray:
    assert isinstance(index.source, ArraySource)
    return index.source.images


def test_the_table_is_read_without_torch_numpy_or_pillow() -> None:
    code = "import sys, opsin.data.datasets; print(sorted({'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", DATASETS)
def test_the_table_is_consistent(name: str) -> None:
    info = DATASETS[name]
    assert len(set(info.classes)) == len(info.classes) and len(info.classes) in (0, info.num_classes)
    assert info.homepage.startswith("http") and info.terms and info.summary and info.num_classes > 1
    for md5 in (*info.checksums.values(), *(file.md5 for file in info.files)):
        assert re.fullmatch("([0-9a-f]{32}( or [0-9a-f]{32})?)?", md5)
    assert all(url.endswith(f"/{file.name}") for file in info.files for url in file.urls)
    if info.layout:  # photographs: got and unpacked by a person, measured when they are needed
        assert info.size is None and not info.mean and not info.std and info.files and "train" in info.splits
        return
    assert info.size and len(info.classes) == info.num_classes == (100 if name == "cifar100" else 10)
    assert len(info.mean) == len(info.std) == info.channels and set(info.splits) == {"train", "test"}
    for file in info.files:
        assert file.size and file.md5 and len(file.urls) >= 2 and all(u.startswith("https://") for u in file.urls)


def test_digits() -> None:
    splits = load("digits")
    info = DATASETS["digits"]
    assert {name: len(index) for name, index in splits.items()} == info.splits
    original = load_digits()
    images = np.concatenate([images_of(splits[name]) for name in ("train", "test")])
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.uint8
    assert np.abs(images[:, 0] - original.images * 255 / 16).max() <= 0.5
    assert splits["test"].labels.tolist() == original.target[-360:].tolist()
    assert splits["test"].keys[0] == "test/00000" and splits["test"].classes == tuple("0123456789")
    train = images_of(splits["train"]) / 255
    assert abs(train.mean() - info.mean[0]) < 5e-5 and abs(train.std() - info.std[0]) < 5e-5
    assert splits["test"].image(0).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape"), [("cifar10", (3, 32, 32)), ("cifar100", (3, 32, 32)), ("mnist", (1, 28, 28))]
)
def test_named_set_in_a_data_folder_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]
) -> None:
    make.named(monkeypatch, tmp_path / "data", name)
    splits = load(name, data_dir=tmp_path / "data")
    assert {split: len(index) for split, index in splits.items()} == DATASETS[name].splits
    assert all(images_of(index).shape[1:] == shape for index in splits.values())
    assert splits["train"].classes == DATASETS[name].classes and splits["train"].keys[-1].startswith("train/00")
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    make.named(monkeypatch, cache_folder(name), name)
    assert np.array_equal(images_of(load(name)["test"]), images_of(splits["test"]))


def test_binary_version_and_wrong_number_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write(tmp_path, make.cifar10_binary(4))
    with pytest.raises(DataError, match=r"expected \{'train': 50000, 'test': 10000\} pictures, found \{'train': 20, "):
        load("cifar10", data_dir=tmp_path)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], splits={"train": 20, "test": 4}))
    assert len(load("cifar10", data_dir=str(tmp_path))["train"]) == 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "cifar-10-batches-py/ or cifar-10-python.tar.gz or cifar-10-batches-bin/"),
        ("mnist", "t10k-labels-idx1"),
    ],
)
def test_data_folder_without_the_set_is_an_error_not_a_download(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(DataError, match=f"no .* here: expected .*{expected}"):
        load(name, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", "/a")
    assert cache_folder("mnist") == Path("/a/data/mnist")
    monkeypatch.setenv("OPSIN_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder("mnist") == Path("/b/opsin/data/mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder("mnist") == Path("/c/.cache/opsin/data/mnist")


def test_folder_of_pictures(pictures: Path) -> None:
    splits = load(pictures, seed=1)
    assert {name: len(index) for name, index in splits.items()} == {"train": 22, "val": 4, "test": 4}
    assert load(str(pictures), seed=1)["test"].keys == splits["test"].keys
    (pictures / "dark" / "000.png").write_bytes(b"")
    assert len(load(pictures, on_bad_image="skip")["train"].skipped) == 1


def test_neither_name_nor_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cifar01' is no folder here and no data set; did you mean cifar10"):
        load("cifar01")
    file = tmp_path / "cifar-10-python.tar.gz"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="give the name and the archive as the data folder"):
        load(file)
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="expected a folder of pictures, a list of them"):
        load(tmp_path / "pictures.zip")


# ---------------------------------------------------------------------------------------------------------------------
# Downloads
# ---------------------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `cuts` maps a path to the lengths after which the next answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.path not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[self.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = self.server.cuts.get(self.path, [])
        self.wfile.write(data[start:][: cuts.pop(0) if cuts else None])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small MNIST at two mirrors, /a and /b; the table points to them and the cache is empty."""
    files = make.mnist()
    for name, data in files.items():
        server.files |= {f"/a/{name}": data, f"/b/{name}": data}
    listed = tuple(
        File(name=name, size=len(data), md5=make.md5(data), urls=tuple(server.url(f"/{m}/{name}") for m in "ab"))
        for name, data in files.items()
    )
    info = replace(DATASETS["mnist"], files=listed, splits={"train": 60, "test": 30})
    monkeypatch.setitem(DATASETS, "mnist", info)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    return files


IMAGES = "train-images-idx3-ubyte.gz"


def in_cache() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache_folder("mnist").iterdir()}


def test_download_and_then_no_more(served: dict[str, bytes], server: Server) -> None:
    seen: list[tuple[int, int]] = []
    splits = load("mnist", progress=lambda done, total: seen.append((done, total)))
    assert len(splits["train"]) == 60 and in_cache() == served
    total = sum(map(len, served.values()))
    assert seen == sorted(seen) and seen[-1] == (total, total)
    assert len(server.asked) == 4 and all(path.startswith("/a/") for path, _ in server.asked)
    load("mnist")
    assert len(server.asked) == 4
    (cache_folder("mnist") / IMAGES).unlink()
    load("mnist")
    assert server.asked[4:] == [(f"/a/{IMAGES}", None)]


def test_download_that_is_cut_goes_on_where_it_stopped(served: dict[str, bytes], server: Server) -> None:
    server.cuts[f"/a/{IMAGES}"] = [1000, 500]
    fetch("mnist")
    assert [asked for asked in server.asked if IMAGES in asked[0]] == [
        (f"/a/{IMAGES}", None),
        (f"/a/{IMAGES}", "bytes=1000-"),
        (f"/a/{IMAGES}", "bytes=1500-"),
    ]
    assert in_cache() == served


def test_part_of_an_earlier_run_is_used_also_from_another_mirror(served: dict[str, bytes], server: Server) -> None:
    make.write(cache_folder("mnist"), {f"{IMAGES}.part": served[IMAGES][:700]})
    del server.files[f"/a/{IMAGES}"]
    fetch("mnist")
    assert server.asked[:2] == [(f"/a/{IMAGES}", "bytes=700-"), (f"/b/{IMAGES}", "bytes=700-")]
    assert in_cache() == served


def test_server_without_ranges_sends_the_whole_file(served: dict[str, bytes], server: Server) -> None:
    server.ranges = False
    server.cuts[f"/a/{IMAGES}"] = [1000]
    fetch("mnist")
    assert in_cache() == served


def test_complete_part_is_not_downloaded_again(served: dict[str, bytes], server: Server) -> None:
    make.write(cache_folder("mnist"), {f"{IMAGES}.part": served[IMAGES]})
    fetch("mnist")
    assert in_cache() == served and not any(IMAGES in path for path, _ in server.asked)


@pytest.mark.parametrize("wrong", ["other", "longer", "shorter"])
def test_wrong_bytes_of_a_mirror_are_thrown_away(served: dict[str, bytes], server: Server, wrong: str) -> None:
    data = served[IMAGES]
    server.files[f"/a/{IMAGES}"] = {"other": bytes(len(data)), "longer": data + b"!", "shorter": data[:-1]}[wrong]
    fetch("mnist")
    assert in_cache() == served and (f"/b/{IMAGES}") in [path for path, _ in server.asked]


def test_damaged_part_is_thrown_away(served: dict[str, bytes], server: Server) -> None:
    make.write(cache_folder("mnist"), {f"{IMAGES}.part": bytes(900)})
    fetch("mnist")
    assert in_cache() == served


def test_dead_first_mirror(served: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as unused:
        dead = f"http://127.0.0.1:{unused.server_address[1]}"
    info = DATASETS["mnist"]
    files = tuple(replace(file, urls=(f"{dead}/{file.name}", *file.urls[1:])) for file in info.files)
    monkeypatch.setitem(DATASETS, "mnist", replace(info, files=files))
    assert len(load("mnist")["test"]) == 30


def test_when_nothing_works_the_message_says_what_to_get_by_hand(served: dict[str, bytes], server: Server) -> None:
    md5, url = make.md5(served[IMAGES]), server.url(f"/a/{IMAGES}")
    server.files[f"/a/{IMAGES}"] = bytes(len(served[IMAGES]))
    del server.files[f"/b/{IMAGES}"]
    with pytest.raises(DataError) as caught:
        load("mnist")
    for part in (
        f"expected MD5 {md5}, received",
        "404",
        f"get {IMAGES} (MD5 {md5}) from {url}",
        str(cache_folder("mnist")),
    ):
        assert part in str(caught.value)
    make.write(cache_folder("mnist"), served)  # by hand
    assert len(load("mnist")["train"]) == 60


def test_offline(served: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_OFFLINE", "1")
    with pytest.raises(DataError, match=f"OPSIN_OFFLINE is set and {IMAGES} is not here: get {IMAGES} .* put it into"):
        load("mnist")
    assert not server.asked
    monkeypatch.setenv("OPSIN_OFFLINE", "0")
    assert len(load("mnist")["train"]) == 60
    monkeypatch.setenv("OPSIN_OFFLINE", "1")
    assert len(load("mnist")["train"]) == 60


def test_cache_that_cannot_be_written(served: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file")
    with pytest.raises(StorageError, match=r"cannot write .*\.part: "):
        load("mnist")


def test_archive_of_cifar_is_downloaded_and_read_in_place(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.named(monkeypatch, tmp_path / "unused")
    data = make.tar_gz("cifar-10-batches-py", make.cifar10_python())
    server.files["/cifar-10-python.tar.gz"] = data
    file = File(
        name="cifar-10-python.tar.gz", size=len(data), md5=make.md5(data), urls=(server.url("/cifar-10-python.tar.gz"),)
    )
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], files=(file,)))
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    assert len(load("cifar10")["train"]) == 100
    assert [path.name for path in cache_folder("cifar10").iterdir()] == ["cifar-10-python.tar.gz"]
    assert datasets.load("cifar10", data_dir=cache_folder("cifar10") / file.name)["train"].keys[0] == "train/00000"
