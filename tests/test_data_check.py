"""`opsin data check`, and the same check before a training: what is looked at, said, remembered, and left out."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import opsin
from opsin import cli
from opsin.data import checked, sandbox
from opsin.data.datasets import load
from opsin.data.index import check, scan
from opsin.errors import BadInput
from tests import make
from tests.conftest import write_pictures

PNG = make.encode(make.gradient(12, 10))
JPEG = make.encode(make.photograph(60, 80), "JPEG")
FAST = ("--model", "lenet", "--epochs", "2", "--lr", "0.05", "--batch-size", "8", "--quiet")
linux = pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = os.fsencode(folder) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        os.utime(path, ns=(10**18, 10**18))  # not written only now
    return folder


GOOD = {f"{label}/{i}.png": PNG for label in "ab" for i in range(4)} | {"a/x.jpg": JPEG, "b/x.jpg": JPEG}
BAD = {
    "a/cut.jpg": JPEG[: len(JPEG) // 2],
    "a/zeros.jpg": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2),
    "b/crc.png": PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
    "b/empty.gif": b"",
    "b/text.webp": b"<html>",
}


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded to be checked, from now on."""
    names: list[str] = []
    ask = sandbox.Decoders.check
    monkeypatch.setattr(
        sandbox.Decoders,
        "check",
        lambda self, data, name: (names.append(os.path.basename(name)), ask(self, data, name)),
    )
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def test_a_sound_folder(tmp_path: Path, opsin_: Any) -> None:
    write(tmp_path / "d", {**GOOD, "b/notes.txt": b"x", "b/.hidden.png": b"x"})
    code, out, _ = opsin_("data", "check", tmp_path / "d")
    assert code == 0
    assert (
        "looked at   10 pictures: JPEG 2, PNG 8\nunusable    none\npassed over 1 other file: " in out
        and "notes.txt" in out
    )
    answer = json.loads(opsin_("data", "check", tmp_path / "d", "--json")[1])
    assert answer["pictures"] == 10 and answer["formats"] == {"JPEG": 2, "PNG": 8} and answer["bad"] == []


@pytest.mark.parametrize("split", [False, True])
def test_all_that_is_bad_is_named_with_its_reason(tmp_path: Path, split: bool, opsin_: Any) -> None:
    prefix = "test/" if split else ""
    folder = write(tmp_path / "d", {prefix + name: data for name, data in (GOOD | BAD).items()})
    if split:
        write(tmp_path / "d", {f"train/{label}/1.png": PNG for label in "ab"})
    os.mkfifo(folder / prefix / "a/pipe.png")
    (folder / prefix / "a/gone.png").symlink_to("nothing")
    code, out, _ = opsin_("data", "check", folder, "--json")
    assert code == 3
    answer = json.loads(out)
    reasons = {os.path.relpath(row["file"], folder / prefix): row["reason"] for row in answer["bad"]}
    assert list(reasons) == sorted({*BAD, "a/pipe.png", "a/gone.png"})
    for name, words in {
        "a/cut.jpg": "damaged JPEG: Premature end of JPEG file",
        "a/zeros.jpg": "damaged JPEG: ",
        "b/crc.png": "damaged PNG: wrong checksum of chunk b'IDAT'",
        "b/empty.gif": "empty file",
        "b/text.webp": "not a picture of a known format",
        "a/pipe.png": "a named pipe, not a regular file",
        "a/gone.png": "cannot be read: No such file",
    }.items():
        assert reasons[name].startswith(words), reasons[name]
    assert answer["formats"] == {"JPEG": 4, "PNG": 9 + 2 * split, "unknown": 4}
    assert answer["pictures"] == 17 + 2 * split
    code, out, _ = opsin_("data", "check", folder)
    lines = out.splitlines()
    assert code == 3 and lines[0].split() == ["file", "reason"] and "unusable    7" in lines
    assert all(any(name in line and reason in line for line in lines) for name, reason in reasons.items())


def test_what_is_listed_and_not_there_is_summed_up(tmp_path: Path, opsin_: Any) -> None:
    files = make.cub()
    more = "".join(f"{i} 002.Wren/gone_{i}.jpg\n" for i in range(5, 1205)).encode()
    files["images.txt"] += more
    for name, rest in (("image_class_labels.txt", 2), ("train_test_split.txt", 1)):
        files[name] += "".join(f"{i} {rest}\n" for i in range(5, 1206)).encode()  # one that images.txt has not
    folder = write(tmp_path / "d", files)
    code, out, _ = opsin_("data", "check", folder)
    lines = out.splitlines()
    assert code == 3 and lines[:2] == ["looked at   4 pictures: JPEG 4", "unusable    none"] and len(lines) == 3
    assert lines[2].startswith("not there   1,202 listed pictures, the first 3: ") and lines[2].count("; ") == 2
    answer = json.loads(opsin_("data", "check", folder, "--json")[1])
    assert answer["pictures"] == 4 and answer["bad"] == [] and len(answer["absent"]) == 1202
    rows = {os.path.relpath(row["file"], folder): row["reason"] for row in answer["absent"]}
    assert rows["images/002.Wren/gone_7.jpg"] == "No such file or directory"
    assert rows["train_test_split.txt"] == "picture 1205 is not in images.txt"
    assert "\nnot there   1,202 listed pictures, the first: " in opsin_("data", "show", folder)[1]
    # What is there and cannot be used still has its own line.
    (folder / "images/001.Auk/Auk_1.jpg").write_bytes(b"no picture")
    (folder / "images/002.Wren/gone_9.jpg").symlink_to("nowhere")
    code, out, _ = opsin_("data", "check", folder)
    assert code == 3 and "unusable    2\nnot there   1,201 " in out
    assert [line.split()[0].rpartition("/")[2] for line in out.splitlines()[1:3]] == ["Auk_1.jpg", "gone_9.jpg"]


NAMES = ["with space.png", "-rf.png", "ünïcödé ☃.png", "quote'\".png", "=1+1.png", "n" * 251 + ".png", "new\nline.png"]


@linux
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opsin_: Any) -> None:
    """Good files of such names pass; bad ones are said, whole, on one line each, with nothing that a terminal obeys."""
    names = [*NAMES, os.fsdecode(b"caf\xe9.png"), "\x1b[2Jclear.png", ".."[:1] + "." * 5 + "x.png"]
    visible = [name for name in names if not name.startswith(".")]
    folder = write(tmp_path / "d", {f"a/{name}": PNG for name in names} | {"b/1.png": PNG})
    code, out, _ = opsin_("data", "check", folder)
    assert code == 0 and f"{len(visible) + 1} pictures" in out
    write(folder, {f"a/{name}": b"bad" for name in names})
    code, out, _ = opsin_("data", "check", folder)
    rows = [line for line in out.splitlines() if "not a picture of a known format" in line]
    assert code == 3 and len(rows) == len(visible) and "\x1b" not in out
    for part in ("n" * 251, r"new\nline", r"caf\xe9", r"\x1b[2Jclear", "a/-rf.png", "☃"):
        assert sum(part in row for row in rows) == 1, part
    out.encode()
    # On a terminal of 80 columns no line is longer, and no name is cut.
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.call(["data", "check", os.fspath(folder), "--quiet"]) == 3
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.getvalue()), "no colours"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(len(line) for line in shown.splitlines() if "passed over" not in line) <= 80
    assert shown.count("n") >= 251 and "…" not in shown and "\x1b" not in shown


def test_wrong_extensions_are_no_damage(tmp_path: Path, opsin_: Any) -> None:
    kinds = {"a/png.jpg": PNG, "a/jpeg.png": JPEG, "b/gif.webp": make.encode(make.gradient(9, 9), "GIF")}
    folder = write(tmp_path / "d", {**kinds, "b/bmp.tiff": make.encode(make.gradient(9, 9), "BMP")})
    answer = json.loads(opsin_("data", "check", folder, "--json")[1])
    assert answer["bad"] == [] and answer["formats"] == {"BMP": 1, "GIF": 1, "JPEG": 1, "PNG": 1}


def test_named_data_sets_are_read_with_their_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opsin_: Any
) -> None:
    code, out, _ = opsin_("data", "check", "digits")
    assert code == 0 and "1,797 pictures" in out
    folder = make.named(monkeypatch, tmp_path / "named")
    code, out, _ = opsin_("data", "check", "cifar10", "--data-dir", folder, "--json")
    assert code == 0 and json.loads(out)["pictures"] == 120
    part = next(folder.rglob("data_batch_3"))
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    code, out, err = opsin_("data", "check", "cifar10", "--data-dir", folder)
    assert code == 3 and out == "" and "data_batch_3" in err


@pytest.mark.parametrize("place", ["", "nothing here"])
def test_what_is_no_data_set(tmp_path: Path, place: str, opsin_: Any) -> None:
    code, out, err = opsin_("data", "check", tmp_path / place)
    assert code == (2 if place else 3) and not out and str(tmp_path) in err


def test_a_decoder_that_runs_away_costs_one_picture(tmp_path: Path, opsin_: Any) -> None:
    """With the real limit. It is not remembered: a machine may have been busy."""
    folder = write(tmp_path / "d", {**GOOD, "a/slow.jpg": make.slow_jpeg()})
    code, out, _ = opsin_("data", "check", folder, "--json")
    assert code == 3
    assert [(Path(row["file"]).name, row["reason"]) for row in json.loads(out)["bad"]] == [
        ("slow.jpg", "took longer than 5 s to decode")
    ]
    assert set(json.loads(checked.Checked(os.fspath(folder)).path.read_bytes())["files"]) == set(GOOD)


# ---------------------------------------------------------------------------------------------------------------------
# Remembered
# ---------------------------------------------------------------------------------------------------------------------


def test_no_file_is_decoded_twice_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "d", GOOD | BAD)
    names = decoded(monkeypatch)
    first = check(scan(folder))
    assert len(names) == len(GOOD | BAD)
    names.clear()
    again = check(scan(folder))
    assert not names and again.formats == first.formats
    assert {i: str(error) for i, error in again.bad.items()} == {i: str(error) for i, error in first.bad.items()}
    # Another size, another time, a new name; what is gone is forgotten.
    write(folder, {"a/0.png": PNG + b"tail", "a/new.png": PNG})
    os.utime(folder / "b/1.png", ns=(10**18, 10**18 + 1))
    (folder / "b/2.png").unlink()
    check(scan(folder))
    assert sorted(names) == ["0.png", "1.png", "new.png"]
    names.clear()
    write(folder, {"b/2.png": PNG})
    check(scan(folder))
    assert names == ["2.png"]
    names.clear()
    monkeypatch.setattr(checked, "VERSION", checked.VERSION + 1)
    check(scan(folder))
    assert len(names) == len(GOOD | BAD) + 1, "another version of the check looks at everything anew"


def test_a_file_written_only_now_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "d", GOOD)
    names = decoded(monkeypatch)
    (folder / "a/0.png").touch()
    for _ in range(2):
        check(scan(folder).subset([0]))
    assert names == ["0.png"] * 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "files": {"a/0.png": [1]}}'])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    folder = write(tmp_path / "d", GOOD)
    check(scan(folder))
    path = checked.Checked(os.fspath(folder)).path
    assert path.is_file() and path.is_relative_to(os.environ["OPSIN_HOME"])
    path.write_bytes(content)
    names = decoded(monkeypatch)
    assert check(scan(folder)).bad == {} and len(names) == len(GOOD)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file, where the cache should be")
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    assert check(scan(write(tmp_path / "d", GOOD))).bad == {}


def test_files_that_vanish_or_change_their_kind_while_they_are_checked(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", {f"a/{i:02d}.png": PNG for i in range(40)} | {"b/1.png": PNG})
    index = scan(folder)
    (folder / "a/03.png").unlink()
    (folder / "a/05.png").unlink()
    os.mkfifo(folder / "a/05.png")
    (folder / "a/07.png").unlink()
    (folder / "a/07.png").symlink_to("07.png")
    here = os.getcwd()
    os.chdir(folder / "a")
    (folder / "a/09.png").unlink()
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("09.png")
    finally:
        os.chdir(here)
    (folder / "a/11.png").unlink()
    (folder / "a/11.png").symlink_to("/dev/zero")
    done: list[dict[int, BadInput]] = []
    thread = threading.Thread(target=lambda: done.append(check(index).bad), daemon=True)
    thread.start()
    thread.join(60)
    assert done, "it hangs"
    reasons = {i: error.reason for i, error in done[0].items()}
    assert list(reasons) == [3, 5, 7, 9, 11]
    assert "No such file" in reasons[3] and "a named pipe" in reasons[5] and "symbolic links" in reasons[7]
    assert "cannot be read" in reasons[9] and "a character device" in reasons[11]


# ---------------------------------------------------------------------------------------------------------------------
# Before a training
# ---------------------------------------------------------------------------------------------------------------------


def test_training_checks_once_and_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opsin_: Any
) -> None:
    folder = write_pictures(tmp_path / "d", 12)
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    names = decoded(monkeypatch)
    write(folder, {"light/zeros.jpg": BAD["a/zeros.jpg"]})
    code, out, err = opsin_("train", folder, *FAST, "--out", tmp_path / "a")
    assert code == 3 and not out and "zeros.jpg: damaged JPEG" in err and not (tmp_path / "a" / "checkpoints").exists()
    assert len(names) == 25
    code, _, err = opsin_("train", folder, *FAST, "--out", tmp_path / "b", "--on-bad-image", "skip")
    assert code == 0 and "left out: " in err and len(names) == 25, "checked before, remembered now"
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert len(report["skipped"]) == 1 and "zeros.jpg: damaged JPEG" in report["skipped"][0]
    assert opsin_("data", "check", folder)[0] == 3 and len(names) == 25, "the same check, the same memory"
    (folder / "light/zeros.jpg").unlink()
    shutil.copytree(folder, tmp_path / "split" / "train")
    shutil.copytree(folder, tmp_path / "split" / "val")
    assert {name: len(part) for name, part in load(tmp_path / "split").items()} == {"train": 24, "test": 24}


# ---------------------------------------------------------------------------------------------------------------------
# The eight orientations
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt to tell a light corner from a light edge: what it sees depends on how a picture lies."""
    folder = tmp_path_factory.mktemp("leaning")
    generator = np.random.default_rng(0)
    for label, area in {"left": np.s_[:, :8], "corner": np.s_[:12, :12], "top": np.s_[:8, :]}.items():
        (folder / "d" / label).mkdir(parents=True)
        for i in range(30):
            pixels = np.full((32, 32, 3), 60.0)
            pixels[area] += 130
            pixels += generator.normal(0, 20, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "d" / label / f"{i}.png")
    arguments = ("--model", "smallnet", "--epochs", "4", "--batch-size", "16", "--quiet")
    arguments += ("--set", "augment.flip=", "--set", "augment.rotate=0", "--out", str(folder / "run"))
    assert cli.call(["train", str(folder / "d"), *arguments]) == 0
    return folder


def test_the_eight_orientations_of_a_picture_give_the_same_class(leaning: Path, tmp_path: Path, opsin_: Any) -> None:
    undo = {  # what a camera that writes this orientation has done to the upright picture (Exif 2.32, section 4.6.4)
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    classifier = opsin.load(leaning / "run")
    for label in ("left", "corner", "top"):
        upright = Image.open(leaning / "d" / label / "7.png")
        paths = []
        for orientation, steps in undo.items():
            stored = upright
            for step in steps:
                stored = stored.transpose(step)
            exif = Image.Exif()
            exif[0x0112] = orientation
            paths.append(tmp_path / f"{label} {orientation}.jpg")
            stored.save(paths[-1], quality=95, subsampling=0, exif=exif)
        code, out, _ = opsin_("predict", leaning / "run", *paths, "--json")
        assert code == 0
        rows = [row["predictions"] for row in json.loads(out)["predictions"]]
        assert {row[0]["name"] for row in rows} == {label}
        chances = np.array([[p["probability"] for p in sorted(row, key=lambda p: p["label"])] for row in rows])
        assert np.abs(chances - chances[0]).max() <= 0.02
        for row, there in zip(opsin.predict(classifier, paths), rows, strict=True):
            assert row[0].name == label and abs(row[0].probability - there[0]["probability"]) < 1e-6
    # The way a picture lies does matter to this classifier: without its EXIF, "top" turned is "left".
    Image.open(leaning / "d" / "top" / "7.png").transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "plain.png")
    ((best, *_),) = opsin.predict(classifier, [tmp_path / "plain.png"])
    assert best.name == "left"
