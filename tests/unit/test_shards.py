"""Shards and arrays: read as WebDataset lays them out, written by `opsin data pack`, trained on to the same bits."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opsin import cli
from opsin import run as runs
from opsin.data import datasets, pack
from opsin.data.index import WHOLE, Index, Names, check
from opsin.data.loader import load_memory
from opsin.data.sandbox import Decoders
from opsin.errors import BadInput, DataError, Interrupted, StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import SGD, Augment, Data, ModelSpec, Recipe
from tests import make
from tests.conftest import write_pictures
from tests.test_run import Cut, final

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(level: int = 0, side: int = 20) -> bytes:
    return make.encode(make.gradient(side, side + 4) // 2 + np.uint8(level), "JPEG", quality=95)


def shard(folder: Path, name: str, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w") as made:
        for key, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(key)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return folder


def samples(count: int, classes: int = 2, first: int = 0) -> dict[str, bytes]:
    """KEY.jpg, KEY.cls, and a KEY.json that nobody asks for."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members |= {
            f"s/{i:04d}.jpg": picture(100 * (i % classes)),
            f"s/{i:04d}.cls": b"%d" % (i % classes),
            f"s/{i:04d}.json": b"{}",
        }
    return members


# ---------------------------------------------------------------------------------------------------------------------
# Reading what others wrote
# ---------------------------------------------------------------------------------------------------------------------


def test_parts_classes_and_pictures_of_shards(tmp_path: Path) -> None:
    shard(tmp_path, "set-train-0000.tar", samples(3))
    shard(tmp_path, "set-train-0001.tar", samples(2, first=3))
    shard(tmp_path, "set-val-0000.tar", samples(2))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    parts = datasets.read_parts(tmp_path)
    assert {part: len(index) for part, index in parts.items()} == {"train": 5, "test": 2}
    train = parts["train"]
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 1, 0, 1, 0]
    assert list(train.keys[2:4]) == ["set-train-0000/s/0002", "set-train-0001/s/0003"]
    assert train.source.data(3) == picture(100)
    assert train.subset([3, 0]).source.name(0) == f"{tmp_path}/set-train-0001.tar/s/0003.jpg"


def test_classes_by_name_or_number_without_a_list(tmp_path: Path) -> None:
    for name, said, expected in (("n", ("10", "9", "10"), ("9", "10")), ("w", ("owl", "auk", "owl"), ("auk", "owl"))):
        members = {f"{i}.jpg": picture() for i in range(3)} | {f"{i}.cls": said[i].encode() for i in range(3)}
        index = datasets.scan_parts(shard(tmp_path / name, "0.tar", members))[WHOLE]
        assert index.classes == expected and index.labels.tolist() == [1, 0, 1]


GOOD = {"a.jpg": b"x", "a.cls": b"0", "b.jpg": b"x", "b.cls": b"1"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({**GOOD, "c.jpg": b"x"}, "c has a picture but no cls"),
        ({**GOOD, "c.cls": b"1"}, "c has a label but no picture"),
        ({**GOOD, "b.cls": b"fox"}, r"0\.tar/b\.jpg: its class is 'fox'; expected a number below 2 or a name"),
        ({**GOOD, "b.cls": b"2"}, "its class is '2'"),
        ({**GOOD, "b.cls": b"-1"}, "its class is '-1'"),
        ({**GOOD, "b.cls": b"9" * 4000}, "its class is '9999"),
        ({**GOOD, "b.cls": b"9" * 5000}, r"b\.cls: 5,000 bytes; expected at most 4,096"),
        ({**GOOD, "b.cls": b"\xff\xfe"}, r"b\.cls: is not UTF-8"),
        ({**GOOD, "b.png": b"x"}, "b has more than one picture"),
        ([*GOOD.items(), ("a.cls", b"1")], "a has more than one label"),
        ({**GOOD, "../c.jpg": b"x"}, "leads out of the archive"),
        ({"a.txt": b"x"}, "no pictures with a cls member"),
        ({**GOOD, "b.cls": b"", "a.labels": b"0"}, "a has more than one label"),
    ],
)
def test_malformed_shards(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    shard(tmp_path, "0.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=reason):
        datasets.scan_parts(tmp_path, on_bad_image="skip")


def test_what_else_is_wrong_with_shards(tmp_path: Path) -> None:
    whole = (shard(tmp_path / "a", "0.tar", samples(3)) / "0.tar").read_bytes()
    for at in (100, 600, len(whole) // 2):
        (tmp_path / "a" / "0.tar").write_bytes(whole[:at])
        with pytest.raises(BadInput, match=r"0\.tar: damaged tar"):
            datasets.scan_parts(tmp_path / "a")
    shard(shard(tmp_path / "b", "train-0.tar", samples(2)), "more.tar", samples(2))
    with pytest.raises(DataError, match=r"in the name of each shard, or of none; .*more\.tar says no part"):
        datasets.scan_parts(tmp_path / "b")
    shard(tmp_path / "c", "0.tar", {"a.jpg": b"x", "a.labels": b"0 ?1"})
    with pytest.raises(DataError, match=r"\.labels need classes\.txt"):
        datasets.scan_parts(tmp_path / "c")
    (shard(tmp_path / "d", "0.tar", samples(2)) / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(BadInput, match=r"classes\.txt: expected a name a line, each of them once"):
        datasets.scan_parts(tmp_path / "d")


def test_a_shard_that_changes_is_noticed_and_few_files_are_open(tmp_path: Path) -> None:
    index = datasets.scan_parts(shard(tmp_path, "0.tar", samples(3)))[WHOLE]
    (tmp_path / "0.tar").write_bytes(b"other")
    with pytest.raises(BadInput, match="has changed since it was listed"):
        index.image(0)


def test_pictures_in_shards_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    shard(tmp_path / "x", "0.tar", {**samples(3), "bad.jpg": b"\xff\xd8 no", "bad.cls": b"1"})
    os.utime(tmp_path / "x/0.tar", (1, 1))  # what was written only now is not remembered
    for looked in (4, 0, 4):
        asked: list[str] = []
        with Decoders(1) as decoders:
            ask = decoders.check

            def counted(data: bytes, name: str, ask=ask, asked=asked) -> None:
                asked.append(name)
                ask(data, name)

            monkeypatch.setattr(decoders, "check", counted)
            found = check(datasets.scan_parts(tmp_path / "x")[WHOLE], decoders=decoders)
        assert len(asked) == looked and list(found.bad) == [3] and found.formats["JPEG"] == 4
        if not looked:
            os.utime(tmp_path / "x/0.tar", (2, 2))


def test_names_take_no_more_memory_than_their_letters() -> None:
    said = ["", "ab", "é€", "x" * 50]
    names = Names(said)
    assert (
        list(names) == said and list(names[1:3]) == said[1:3] and list(names.take(np.array([3, 1]))) == ["x" * 50, "ab"]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------------


def same(one: Index, other: Index) -> bool:
    return one.classes == other.classes and np.array_equal(one.labels, other.labels) and len(one) == len(other)


def test_packed_jpegs_are_those_of_the_folder_where_they_need_no_change(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack, "SHARD_BYTES", 8000)
    before = datasets.scan_parts(write_pictures(tmp_path / "p", 4))[WHOLE]
    (tmp_path / "p" / before.classes[0] / "large.jpg").write_bytes(picture(side=200))
    (tmp_path / "p" / before.classes[0] / "grey.png").write_bytes(make.encode(make.gradient(90, 60, 1)[..., 0]))
    before = datasets.scan_parts(tmp_path / "p")[WHOLE]
    packed = pack.pack(tmp_path / "p", tmp_path / "out", size=64)
    assert len(list((tmp_path / "out").glob("all-*.tar"))) > 1 and packed.pictures == {WHOLE: len(before)}
    after = datasets.read_parts(tmp_path / "out")[WHOLE]
    assert same(before, after)
    small = []
    for i in range(len(before)):
        one, other = before.image(i), after.image(i)
        scale = min(1, 64 / min(one.shape[1:]))
        assert other.shape == (len(one), *(round(side * scale) for side in one.shape[1:]))
        small.append(before.source.data(i) == after.source.data(i))
        if scale == 1 and not small[-1]:
            assert (one.int() - other.int()).abs().float().mean() < 12  # noise, encoded anew
    note = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert note["size"] == 64 and note["quality"] == 90 and note["source"] == str(tmp_path / "p")
    place = list(before.keys).index(f"{before.classes[0]}/large.jpg")
    assert not small[place] and after.keys[place].endswith("large_jpg")
    reference = Preprocess(size=(64, round(64 * 204 / 200)), crop="squash").prepare(before.image(place, (128, 128)))
    assert (after.image(place).int() - reference.int()).abs().float().mean() < 3


def test_packed_arrays_are_the_prepared_pictures_and_lie_on_disk(tmp_path: Path) -> None:
    before = datasets.scan_parts(write_pictures(tmp_path / "p", 4))[WHOLE]
    pack.pack(tmp_path / "p", tmp_path / "out", size=8, uint8=True)
    after = datasets.read_parts(tmp_path / "out")[WHOLE]
    channels = len(after.image(0))
    preprocess = Preprocess(size=(8, 8), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    assert same(before, after)
    assert torch.equal(load_memory(before, preprocess).images, load_memory(after, preprocess).images)
    assert isinstance(after.source.images, np.memmap)  # type: ignore[attr-defined]
    some = after.subset([5, 2]).subset([1])
    assert isinstance(some.source.images, np.memmap) and torch.equal(some.image(0), after.image(2))  # type: ignore


def test_grey_pictures_stay_grey_until_one_is_in_colour(tmp_path: Path) -> None:
    for name, last, channels in (("grey", make.gradient(9, 9, 1)[..., 0], 1), ("mixed", make.gradient(9, 9), 3)):
        for label in ("a", "b"):
            make.write(tmp_path / name / label, {"0.png": make.encode(make.gradient(9, 9, 1)[..., 0])})
        make.write(tmp_path / name / "b", {"1.png": make.encode(last)})
        pack.pack(tmp_path / name, tmp_path / f"{name}-out", uint8=True)
        index = datasets.scan_parts(tmp_path / f"{name}-out")[WHOLE]
        assert [len(index.image(i)) for i in range(3)] == [channels] * 3
        assert torch.equal(index.image(2)[0], torch.from_numpy(np.atleast_3d(last)[..., 0]))


@pytest.mark.parametrize("uint8", [False, True])
def test_many_labels_and_all_parts_are_packed(tmp_path: Path, uint8: bool) -> None:
    before = datasets.scan_parts(make.write(tmp_path / "voc", make.voc()))
    pack.pack(tmp_path / "voc", tmp_path / "out", size=16, uint8=uint8)
    after = datasets.read_parts(tmp_path / "out")
    assert list(before) == list(after) == ["train", "test"]
    for part in before:
        assert same(before[part], after[part]) and after[part].many_labels and after[part].labels.dtype == np.float32
    assert (after["train"].labels == -1).any()


def test_skipped_pictures_are_listed_and_nothing_is_there_after_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 4)
    bad = tmp_path / "p" / datasets.scan_parts(tmp_path / "p")[WHOLE].classes[0] / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(BadInput, match=r"bad\.jpg"):
        pack.pack(tmp_path / "p", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    packed = pack.pack(tmp_path / "p", tmp_path / "out", on_bad_image="skip")
    assert len(packed.skipped) == 1 and "bad.jpg" in (tmp_path / "out" / "skipped.txt").read_text()
    with pytest.raises(StorageError, match="is there already"):
        pack.pack(tmp_path / "p", tmp_path / "out", on_bad_image="skip")
    bad.write_bytes(picture(side=77))
    with pytest.raises(DataError, match="arrays are of one size: give --size"):
        pack.pack(tmp_path / "p", tmp_path / "arrays", uint8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "p"]
    for options in ({"size": 0}, {"quality": 101}):
        with pytest.raises(UsageError):
            pack.pack(tmp_path / "p", tmp_path / "arrays", **options)


def test_the_command_packs_and_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "p", 4)
    out = tmp_path / "out"
    assert cli.call(["data", "pack", str(tmp_path / "p"), "-o", str(out), "--size", "8", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(out) and said["nbytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert cli.call(["data", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == said["pictures"]
    assert cli.call(["data", "check", str(out), "--quiet"]) == 0
    assert cli.call(["data", "pack", str(tmp_path / "p"), "-o", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_what_is_lost_from_packed_data_is_noticed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 4)
    pack.pack(tmp_path / "p", tmp_path / "out", size=8, uint8=True)
    for name, data, reason in (
        ("all.npy", (tmp_path / "out/all.npy").read_bytes()[:-1], r"all\.npy: cannot be read"),
        ("all.npy", b"\x93NUMPY\x01\x00 \x00garbage", r"all\.npy: cannot be read"),
        ("all.labels.npy", _npy(np.array([99] * 12)), r"all\.labels\.npy: expected int64 \[\d+\] below"),
        ("all.labels.npy", _npy(np.array([None], dtype=object), allow_pickle=True), "cannot be read: Object arrays"),
        ("all.keys.txt", b"one\n", r"all\.keys\.txt: 1 names for"),
        ("classes.txt", b"", r"expected int64|expected shards|a name a line"),
        ("pack.json", b'{"pictures": {"all": 3}}', r"lists \{'all': 3\} pictures"),
        ("pack.json", b"[]", "cannot be read"),
    ):
        whole = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(data)
        with pytest.raises(DataError, match=reason):
            datasets.scan_parts(tmp_path / "out")
        (tmp_path / "out" / name).write_bytes(whole)
    pack.pack(tmp_path / "p", tmp_path / "tars")
    (tmp_path / "tars/all-000000.tar").rename(tmp_path / "away.tar")
    with pytest.raises(DataError, match="expected shards"):
        datasets.scan_parts(tmp_path / "tars")


def _npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Training on them
# ---------------------------------------------------------------------------------------------------------------------


def recipe(data: Path) -> Recipe:
    return Recipe(
        data=Data(name=str(data), batch_size=8, loader="disk"),
        model=ModelSpec(name="smallnet", options={"widths": [8, 8, 8]}),
        preprocess=Preprocess(size=(10, 10), mean=(0.5,) * 3, std=(0.3,) * 3),
        augment=Augment(shift=1, flip="random", crop=0.5),
        optimizer=SGD(lr=0.05, momentum=0.9),
        epochs=2,
        save_every=1,
    )


@pytest.mark.parametrize("uint8", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch, uint8: bool) -> None:
    write_pictures(tmp_path / "p", 12)
    pack.pack(tmp_path / "p", tmp_path / "packed", size=12, uint8=uint8)
    setting = recipe(tmp_path / "packed")
    runs.fit(setting, tmp_path / "whole")
    runs.fit(replace(setting, data=replace(setting.data, workers=0)), tmp_path / "again")
    assert final(tmp_path / "whole")[:2] == final(tmp_path / "again")[:2]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 4}))
        with pytest.raises(Interrupted):
            runs.fit(setting, tmp_path / "cut")
    torch.manual_seed(99)
    runs.resume(tmp_path / "cut")
    assert final(tmp_path / "whole") == final(tmp_path / "cut")
