"""Class folders in a tar: the same data set as the folder, whatever wrote the archive, and nothing ever extracted."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin import run as runs
from opsin.data import datasets, tar
from opsin.data.index import WHOLE, scan
from opsin.errors import BadInput, DataError
from tests import make
from tests.conftest import write_pictures

PNG = make.encode(make.gradient(6, 5))


def archive(*entries: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w", **options: object) -> bytes:
    """A tar of files (name, content) and of members as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as made:  # pyright: ignore
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                made.addfile(entry)
            else:
                member = tarfile.TarInfo(entry[0])
                member.size = len(entry[1])
                made.addfile(member, io.BytesIO(entry[1]))
    return out.getvalue()


def of_kind(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def parts(folder: Path, data: bytes, name: str = "x.tar", **options: str) -> datasets.Parts:
    (folder / name).write_bytes(data)
    return datasets.read_parts(folder / name, **options)


GOOD = (("a/1.png", PNG), ("a/2.png", PNG), ("b/1.png", PNG))


# ---------------------------------------------------------------------------------------------------------------------
# The same as the folder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("above", [".", "pictures", "./deep/er"])
@pytest.mark.parametrize("split", [False, True])
def test_the_same_classes_keys_splits_and_pictures(tmp_path: Path, split: bool, above: str, packed: bool) -> None:
    folder = tmp_path / "folder"
    for part in ("train", "val", "test") if split else ("",):
        for k, name in enumerate(("B", "a b", "ä\\", "z")):
            for i in range(3):
                place = folder / part / name / ("deep" if i == 2 else "") / f"-{i}'.PNG"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(make.encode(make.noise(5, 4, 3, seed=9 * k + i)))
    for clutter in (".hidden/1.png", "z/._1.png", "z/notes.txt", "z/Thumbs.db") if not split else ():
        (folder / clutter).parent.mkdir(exist_ok=True)
        (folder / clutter).write_bytes(PNG)
    path = tmp_path / ("x.tar.gz" if packed else "x.tar")
    with tarfile.open(path, "w:gz" if packed else "w") as made:
        made.add(folder, above)
    expected, found = datasets.load(folder, seed=4), datasets.load(path, seed=4)
    assert list(found) == list(expected) == ["train", "val", "test"]
    for name, index in expected.items():
        assert found[name].keys == index.keys and found[name].classes == index.classes
        assert np.array_equal(found[name].labels, index.labels)
        assert all((found[name].image(i) == index.image(i)).all() for i in range(len(index)))
    assert [Path(name).name for name in found["train"].ignored] == ([] if split else ["notes.txt"])


def test_training_on_a_tar_is_training_on_the_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 10)
    subprocess.run(["tar", "-cf", tmp_path / "pictures.tar", "-C", tmp_path, "pictures"], check=True)
    for name, data in {"by folder": folder, "by tar": tmp_path / "pictures.tar"}.items():
        runs.train(str(data), model="lenet", epochs=1, out=tmp_path / name)
    one, other = (json.loads((tmp_path / name / "splits.json").read_text()) for name in ("by folder", "by tar"))
    assert one == other and one["test"]["keys"]
    weights = [(tmp_path / name / "classifier/weights.safetensors").read_bytes() for name in ("by folder", "by tar")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_in_every_format(tmp_path: Path, form: int) -> None:
    long = "/".join(["a", "d" * 90, ("é" if form != tarfile.USTAR_FORMAT else "e") * 60 + ".png"])
    data = archive((long, PNG), ("b/\\..\\1.png", PNG), ("/b//./2.png", PNG), ("b/caf\udce9.png", PNG), format=form)
    index = parts(tmp_path, data)[WHOLE]
    assert index.keys == [long, "b/2.png", "b/\\..\\1.png", "b/caf\\xe9.png"]
    assert all(index.image(i).shape == (3, 6, 5) for i in range(4))


def test_made_by_gnu_tar_with_other_options(tmp_path: Path) -> None:
    write_pictures(tmp_path / "x", 3, ("one", "n" * 120))
    for number, options in enumerate((["--format=gnu"], ["--format=posix"], ["--format=v7", "--exclude=n*"], ["-z"])):
        path = tmp_path / f"{number}.tar"
        subprocess.run(["tar", *options, "-cf", path, "-C", tmp_path / "x", "."], check=True)
        assert len(datasets.read_parts(path)[WHOLE]) == (3 if number == 2 else 6)


def test_from_several_threads_after_the_name_is_gone(tmp_path: Path) -> None:
    pictures = [make.noise(9, 8, 3, seed=i) for i in range(30)]
    index = parts(tmp_path, archive(*((f"a/{i:02d}.png", make.encode(p)) for i, p in enumerate(pictures))))[WHOLE]
    (tmp_path / "x.tar").unlink()  # it stays open
    wrong: list[int] = []

    def work() -> None:
        for i in [*range(30)] * 5:
            if not np.array_equal(index.image(i).numpy().transpose(1, 2, 0), pictures[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    part = index.subset([7, 3])
    assert part.keys == ["a/07.png", "a/03.png"]
    assert np.array_equal(part.image(1).numpy().transpose(1, 2, 0), pictures[3])


def test_an_archive_is_closed_with_its_last_index(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/fd"))
    index = parts(tmp_path, archive(*GOOD))[WHOLE]
    index = index.subset([1])
    assert index.image(0).shape == (3, 6, 5) and len(set(os.listdir("/dev/fd")) - before) == 1
    del index
    assert set(os.listdir("/dev/fd")) == before


def test_a_bad_picture_is_named_by_archive_and_member(tmp_path: Path) -> None:
    data = archive(*GOOD, ("b/2.png", PNG[:-9]))
    with pytest.raises(BadInput, match=r"x\.tar/b/2\.png: truncated PNG"):
        parts(tmp_path, data)
    index = parts(tmp_path, data, on_bad_image="skip")[WHOLE]
    assert len(index) == 3 and len(index.skipped) == 1
    with open(tmp_path / "x.tar", "r+b") as file:
        file.truncate(600)
    with pytest.raises(BadInput, match=r"x\.tar/b/1\.png: the archive has become shorter"):
        index.image(2)


# ---------------------------------------------------------------------------------------------------------------------
# What is not taken
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (of_kind("b/9.png", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link, not a regular file"),
        (of_kind("b/9.png", tarfile.LNKTYPE, "a/1.png"), "a hard link, not a regular file"),
        (of_kind("b/9", tarfile.FIFOTYPE), "a named pipe, not a regular file"),
        (of_kind("b/9.png", tarfile.CHRTYPE), "a character device, not a regular file"),
        (of_kind("b/9.png", tarfile.BLKTYPE), "a block device, not a regular file"),
        (of_kind("b/9.png", b"Z"), "of type b'Z', not a regular file"),
        (of_kind("a/../../9.png", tarfile.REGTYPE), "its name leads out of the archive"),
        (of_kind("../../b", tarfile.DIRTYPE), "its name leads out of the archive"),
        (of_kind("a/" * 65 + "9.png", tarfile.REGTYPE), "in more than 64 folders"),
        (of_kind("a/" + "9" * 5000, tarfile.REGTYPE), "longer than 4096 characters"),
    ],
)
def test_members_that_are_no_plain_files_are_bad_pictures(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    data = archive(*GOOD, member)
    with pytest.raises(BadInput, match=reason) as caught:
        parts(tmp_path, data)
    assert caught.value.path.startswith(f"{tmp_path}/x.tar/")
    index = parts(tmp_path, data, on_bad_image="skip")[WHOLE]
    assert index.keys == ["a/1.png", "a/2.png", "b/1.png"] and [bad.reason for bad in index.skipped] == [
        caught.value.reason
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["x.tar"]


def test_a_file_with_holes_and_one_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    with open(tmp_path / "b/9.png", "wb") as file:
        file.truncate(10 << 20)
    for form in ("gnu", "posix"):
        path = tmp_path / "s.tar"
        subprocess.run(["tar", "-S", f"--format={form}", "-cf", path, "-C", tmp_path, "b"], check=True)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(BadInput, match=r"b/9\.png: a file with holes"):
            datasets.read_parts(path)
    monkeypatch.setattr(tar.indices, "MAX_FILE_BYTES", len(PNG))
    with pytest.raises(BadInput, match=f"a/9.png: {len(PNG) + 1} bytes; expected at most {len(PNG)}"):
        parts(tmp_path, archive(*GOOD, ("a/9.png", PNG + b"x")))


def test_names_twice(tmp_path: Path) -> None:
    for again in ("a/1.png", "./a//1.png", "/a/1.png"):
        with pytest.raises(BadInput, match=r"x\.tar: holds .*a/+1\.png twice"):
            parts(tmp_path, archive(*GOOD, (again, PNG)))


def test_no_class_folders_and_empty_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tar: expected class folders.*found 1 files"):
        parts(tmp_path, archive(("1.png", PNG)))
    with pytest.raises(DataError, match="found nothing"):
        parts(tmp_path, archive())
    with pytest.raises(DataError, match="no pictures in the class folder c"):
        parts(tmp_path, archive(*GOOD, of_kind("c", tarfile.DIRTYPE), ("c/x.txt", b"")))
    with pytest.raises(DataError, match=r"test/ and train/ must hold the same classes; test/ lacks b"):
        parts(tmp_path, archive(("train/a/1.png", PNG), ("train/b/1.png", PNG), ("test/a/1.png", PNG)))
    (tmp_path / "p.tar").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "p.tar")
    with pytest.raises(BadInput, match="a named pipe, not a regular file"):
        datasets.read_parts(tmp_path / "p.tar")


# ---------------------------------------------------------------------------------------------------------------------
# Damage and size
# ---------------------------------------------------------------------------------------------------------------------

BLOCK = 512
WHOLE_TAR = archive(*GOOD)


def test_every_cut_is_found(tmp_path: Path) -> None:
    end = WHOLE_TAR.rindex(b"\x82") + 1  # the last byte of the last picture
    ended = -(-end // BLOCK) * BLOCK
    for length in [*range(0, ended + 1, 97), *range(0, ended + 1, BLOCK), ended + 1, ended + BLOCK - 1]:
        with pytest.raises(BadInput, match=r"x\.tar: damaged tar"):
            parts(tmp_path, WHOLE_TAR[:length])
    assert len(parts(tmp_path, WHOLE_TAR[: ended + BLOCK])[WHOLE]) == 3  # one block of zeros is an end


def test_every_flipped_bit_of_a_header_is_found_or_harmless(tmp_path: Path) -> None:
    """A flip in the middle header, which `tarfile` takes for the end of the archive."""
    start = WHOLE_TAR.index(b"a/2.png")
    for bit in range(0, 8 * BLOCK, 11):
        data = bytearray(WHOLE_TAR)
        data[start + bit // 8] ^= 1 << bit % 8
        try:
            keys = parts(tmp_path, bytes(data))[WHOLE].keys
        except BadInput as error:
            assert "damaged tar" in error.reason
        else:
            assert keys == ["a/1.png", "a/2.png", "b/1.png"]


def test_a_zeroed_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    start = WHOLE_TAR.index(b"a/2.png")
    with pytest.raises(BadInput, match=f"goes on after its end mark at byte {start:,}"):
        parts(tmp_path, WHOLE_TAR[:start] + bytes(BLOCK) + WHOLE_TAR[start + BLOCK :])
    with pytest.raises(BadInput, match="goes on after its end mark"):
        parts(tmp_path, WHOLE_TAR + WHOLE_TAR)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A ustar header with any bytes as its size, and the right checksum."""
    block = bytearray(BLOCK)
    block[: len(name)], block[124 : 124 + len(size)] = name, size
    block[100:108] = block[108:116] = block[116:124] = b"0000000\0"
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: bytes | str | int) -> bytes:
    """A PAX header block and its records."""
    body = b""
    for key, value in records.items():
        text = (
            f" {key.replace('_', '.')}=".encode() + (value if isinstance(value, bytes) else str(value).encode()) + b"\n"
        )
        length = len(text) + len(str(len(text) + 2))
        body += str(length).encode() + text
    return header(b"x", b"%011o\0" % len(body), b"x") + body + bytes(-len(body) % BLOCK)


FILE = header(b"a/1.png", b"%011o\0" % len(PNG)) + PNG + bytes(-len(PNG) % BLOCK)


@pytest.mark.parametrize(
    "data",
    [
        header(b"a/1.png", b"\xff" * 12),  # size -1
        header(b"a/1.png", b"\xff" * 10 + b"\xfe\x00"),  # size -512: the next header is this one (CVE-2025-8194)
        header(b"a/1.png", b"\x80" + b"\xff" * 11),  # 2⁸⁸ bytes
        header(b"a/1.png", b"77777777777\0"),
        header(b"x", b"77777777777\0", b"x"),
        header(b"x", b"\xff" * 12, b"x"),
        header(b"x", b"\xff" * 12, b"g"),
        header(b"x", b"\xff" * 12, b"L"),
        header(b"x", b"00000200000\0", b"L") + bytes(1 << 16) + FILE,
        pax(size=-512) + FILE,
        pax(size=10**30) + FILE,
        pax(size="9" * 5000) + FILE,
        pax(GNU_sparse_major=1, GNU_sparse_minor=0) + FILE,
        pax(GNU_sparse_map="0,1,-5,x") + FILE,
        pax(GNU_sparse_size="x") + FILE,
        pax(**{f"k{i}": i for i in range(1000)}) + FILE,
        header(b"x", b"%011o\0" % 16000, b"x") + b"2 " * 7999 + b"==" + bytes(384) + FILE,  # CVE-2024-6232
        header(b"x", b"%011o\0" % 3, b"x") + b"0 =" + bytes(509) + FILE,
        pax(a=1) * 2000 + FILE,  # each says that the header proper is the next one
        header(b"a/1.png", b"0" * 11 + b"\0", b"S")[:482] + b"\x01" + bytes(29),
        header(b"a/1.png", b"nonsense", b"0"),
        b"\0" * 100,
        b"no tar",
        b"",
    ],
)
def test_crafted_headers(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput, match=r"x\.tar: damaged tar"):
        parts(tmp_path, data + FILE.replace(b"1", b"3", 1) + bytes(2 * BLOCK))


def test_a_global_size_does_not_move_pictures(tmp_path: Path) -> None:
    block = bytearray(pax(size=1000))
    block[156:157], block[148:156] = b"g", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:BLOCK])
    with pytest.raises(BadInput, match=r"a/1\.png: contradictory sizes"):
        parts(tmp_path, bytes(block) + FILE + bytes(4 * BLOCK))


def test_zero_byte_in_a_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="its name holds a zero byte"):
        parts(tmp_path, pax(path=b"a/\x001.png") + FILE + bytes(2 * BLOCK))


def test_gzipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(WHOLE_TAR)
    assert len(parts(tmp_path, packed, "x.tgz")[WHOLE]) == 3
    assert len(parts(tmp_path, gzip.compress(WHOLE_TAR[:BLOCK]) + gzip.compress(WHOLE_TAR[BLOCK:]))[WHOLE]) == 3
    for wrong in (packed[:-9], packed[:50], packed[:100] + bytes(9) + packed[109:], packed + b"junk"):
        with pytest.raises(BadInput, match=r"x\.tgz: damaged"):
            parts(tmp_path, wrong, "x.tgz")
    monkeypatch.setattr(tar, "MAX_UNPACKED", len(WHOLE_TAR) - 1)
    with pytest.raises(BadInput, match=r"unpacks to more than .* use the plain tar: gunzip it"):
        parts(tmp_path, packed, "x.tgz")


def test_other_compressions_are_named(tmp_path: Path) -> None:
    for mode, command in (("w:bz2", "bunzip2"), ("w:xz", "unxz")):
        with pytest.raises(BadInput, match=f"expected a plain tar: unpack it with {command}"):
            parts(tmp_path, archive(*GOOD, mode=mode))


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 2)
    with pytest.raises(BadInput, match="more than 2 members"):
        parts(tmp_path, WHOLE_TAR)


def test_told_by_content(tmp_path: Path) -> None:
    assert len(parts(tmp_path, WHOLE_TAR, "pictures")[WHOLE]) == 3


SEEDS = [
    archive(("a/" + "é" * 60 + ".png", PNG), ("b/1.png", PNG), of_kind("b", tarfile.DIRTYPE), format=form)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("tars")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEEDS), st.booleans(), st.data())
def test_any_bytes_are_a_data_set_or_a_data_error(
    place: Path, data: bytes, repaired: bool, draw: st.DataObject
) -> None:
    """Changes anywhere in the headers, with and without the checksum put right again."""
    changed = make.mutated(data, draw)
    if repaired:
        changed = bytearray(changed)
        for at in range(0, len(changed) - BLOCK, BLOCK):
            if changed[at + 257 : at + 262] == b"ustar":
                changed[at + 148 : at + 156] = b" " * 8
                changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    try:
        found = parts(place, bytes(changed), on_bad_image="skip")
    except DataError as error:
        assert str(error)
    else:
        assert all(index.image(i).ndim == 3 for index in found.values() for i in range(len(index)))
    assert [path.name for path in place.iterdir()] == ["x.tar"]


def test_keys_are_those_of_the_folder_even_for_names_that_are_not_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/f"
    os.makedirs(raw + b"/\xff")
    for name in (b"\xfe.png", b"\n.png", b"z.png"):
        with open(raw + b"/\xff/" + name, "wb") as file:
            file.write(PNG)
    subprocess.run([b"tar", b"-cf", raw + b".tar", b"-C", raw, b"."], check=True)
    assert datasets.read_parts(tmp_path / "f.tar")[WHOLE].keys == scan(tmp_path / "f").keys
