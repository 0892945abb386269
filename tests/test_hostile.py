"""Hostile files, read in a process whose every audit event is looked at: nothing is run, nothing is opened for writing
but in the run's folder and the caches, and nothing is connected to."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import make
from tests.conftest import write_pictures

ROOT = Path(__file__).parents[1]

# The child. `watched` are the events by which code is run, files are changed or connections are made.
CODE = r"""
import contextlib, json, os, sys
from dataclasses import replace
from pathlib import Path

folder, proof = Path(sys.argv[1]), Path(sys.argv[2])
if "train" in sys.argv:
    from opsin import run as runs
from opsin.data import datasets, formats
from opsin.data.loader import load_memory
from opsin.errors import OpsinError
from opsin.models.weights import load_foreign
from opsin.preprocess import Preprocess
from opsin.recipe import override
from opsin.recipes import find
from tests import make

allowed = [folder / "run", *(os.environ[name] for name in ("OPSIN_HOME", "MPLCONFIGDIR", "TMPDIR"))]
allowed = [os.path.realpath(place) for place in allowed]
changing = "os.remove os.rename os.mkdir os.rmdir os.link os.symlink os.chmod os.chown os.utime os.truncate".split()
changing += "shutil.copyfile shutil.move shutil.rmtree shutil.unpack_archive".split()
running = "os.system os.exec os.posix_spawn os.spawn os.startfile subprocess.Popen pty.spawn".split()
found = []

def inside(path):
    path = os.path.realpath(os.fsdecode(path))
    return path == os.devnull or any(path == a or path.startswith(a + os.sep) for a in allowed)

def hook(event, arguments):
    if event == "open" and not isinstance(arguments[0], int):
        path, mode, flags = arguments
        writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or set(mode or "") & set("wax+")
        if writing and not inside(path):
            found.append([event, str(path), str(mode)])
    elif event in changing:
        paths = [a for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        if not all(map(inside, paths)):
            found.append([event, *map(str, paths)])
    elif event in running:
        ours = event == "subprocess.Popen" and (arguments[0] == sys.executable or arguments[1][0] in ("git", "uname"))
        if not ours:  # decode workers, and the questions which commit and which machine this is
            found.append([event, repr(arguments)])
    elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        if not (event in ("socket.connect", "socket.bind") and arguments[0].family.name == "AF_UNIX"):
            found.append([event, repr(arguments)])
    elif event == "pickle.find_class" and tuple(arguments) not in formats._KNOWN and arguments[0].split(".")[0] not in (
        "torch", "collections"
    ):
        found.append([event, *arguments])

refused = []

def refuses(what, action):
    try:
        action()
    except OpsinError as error:
        refused.append([what, str(error)])
    else:
        refused.append([what, ""])

def see(parts):
    for index in parts.values():
        for i in range(len(index)):
            with contextlib.suppress(OpsinError):
                index.image(i)

sys.addaudithook(hook)
for name in sorted(p.name for p in folder.glob("cifar*")):
    refuses(name, lambda: datasets.load("cifar10", data_dir=folder / name))
    sums = {p.name: make.md5(p.read_bytes()) for p in (folder / name).rglob("*") if p.is_file()}
    info = datasets.DATASETS["cifar10"]
    datasets.DATASETS["cifar10"] = replace(info, checksums=sums)  # as if it were the published file
    refuses(name, lambda: datasets.load("cifar10", data_dir=folder / name))
    datasets.DATASETS["cifar10"] = info
for path in sorted(folder.glob("weights*")):
    refuses(path.name, lambda: load_foreign(path))
refuses("hostile.tar", lambda: datasets.load(folder / "hostile.tar"))
refuses("absolute.tar", lambda: datasets.load(folder / "absolute.tar"))
refuses("hostile.csv", lambda: datasets.load(folder / "hostile.csv"))
refuses("hostile.txt", lambda: datasets.load(folder / "hostile.txt"))
for name in ("hostile.tar", "absolute.tar", "hostile.csv"):
    see(datasets.scan_parts(folder / name, on_bad_image="skip"))
refuses("setting", lambda: override(find("small"), "epochs", f"__import__('os').system('touch {proof}')"))
splits = datasets.load(folder / "hostile.tar", on_bad_image="skip")
memory = load_memory(splits["train"], Preprocess(size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))
assert len(memory.images) == 16 and len(splits["train"].skipped) == 8
recipe = override(find("small"), "data.name", str(folder / "hostile.tar"))
if "train" in sys.argv:
    run = runs.fit(replace(recipe, epochs=1, data=replace(recipe.data, on_bad_image="skip")), folder / "run")
    assert run.report.n == 2
seen = list(found)
# That the hook sees what it is for:
os.system("true")
open(folder / "x", "w").close()
os.mkdir(folder / "y")
print("ANSWER", json.dumps({"found": seen, "control": [event for event, *_ in found[len(seen):]], "refused": refused}))
"""


class Harm:
    """What it would be unpickled to is the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def member(name: str) -> tuple[tarfile.TarInfo, io.BytesIO]:
    entry = tarfile.TarInfo(name)
    entry.size = 4
    return entry, io.BytesIO(b"harm")


def hostile(folder: Path, proof: Path) -> None:
    """Files that would leave `proof` behind, or reach elsewhere, with a reader that believes them."""
    touch = f"touch {proof}"
    harms = (Harm(os.system, touch), Harm(eval, f"open({str(proof)!r}, 'w')"), Harm(os.mkdir, str(proof)))
    for number, harm in enumerate(harms):
        batch = pickle.dumps({b"data": harm, b"labels": [1]}, 2)
        make.write(folder / f"cifar{number}" / "cifar-10-batches-py", make.cifar10_python(2) | {"data_batch_2": batch})
        for legacy in (False, True):
            contents = {"state_dict": {"a": torch.ones(1), "b": harm}}
            torch.save(contents, folder / f"weights{number}{legacy}.th", _use_new_zipfile_serialization=not legacy)
    (folder / "weights.pt").write_bytes(pickle.dumps(harms[0]))

    write_pictures(folder / "pictures", 10)
    with tarfile.open(folder / "hostile.tar", "w") as archive:
        archive.add(folder / "pictures", ".")
        for name in ("../../proof", f"dark/../../../{proof.name}", "dark/..\\..\\proof.txt"):
            archive.addfile(*member(name))
        for kind, name, link in (
            (tarfile.SYMTYPE, "dark/out", str(folder.parent)),  # and then a file through it
            (tarfile.SYMTYPE, "dark/link.png", "/etc/passwd"),
            (tarfile.LNKTYPE, "dark/hard.png", "../../../../etc/passwd"),
            (tarfile.FIFOTYPE, "dark/pipe.png", ""),
            (tarfile.CHRTYPE, "dark/null.png", ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            archive.addfile(entry)
        archive.addfile(*member(f"dark/out/{proof.name}.png"))
    with tarfile.open(folder / "absolute.tar", "w") as archive:
        archive.addfile(*member(f"{proof}.png"))
        archive.addfile(*member("/etc/passwd.png"))

    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("link")
    odd = [f"$({touch})", f"`{touch}`", f"|{touch}", f"; {touch}", "http://127.0.0.1:9/1.png", "file:///etc/passwd"]
    odd += ["\\\\host\\share\\1.png", "/dev/tcp/127.0.0.1/9", "/dev/zero", "pipe", "link", ".", "~/1.png", "=1+1"]
    good = [f"pictures/dark/00{i}.png" for i in range(4)]
    (folder / "hostile.csv").write_text("".join(f'"{name}",{touch}\n' for name in good + odd))
    (folder / "hostile.txt").write_text("".join(f"{name}\t{touch}\n" for name in odd))


@pytest.mark.parametrize("how", ["read", pytest.param("train", marks=pytest.mark.slow)])
def test_hostile_files_run_write_and_connect_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    folder, proof = tmp_path / "folder", tmp_path / "proof"
    (folder / "run").mkdir(parents=True)  # where relative names lead, of files opened relative to a folder, too
    hostile(folder, proof)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(tmp_path_factory.mktemp("temporary"))
    child = subprocess.run(
        [sys.executable, "-c", CODE, folder, proof, how],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
        cwd=folder / "run",
    )
    assert child.returncode == 0, child.stderr
    answer = json.loads(child.stdout.rsplit("ANSWER", 1)[1])
    assert answer["found"] == []
    assert answer["control"] == ["os.system", "open", "os.mkdir"]
    assert len(answer["refused"]) == 3 * 2 + 7 + 4 + 1 and all(reason for _, reason in answer["refused"])
    reasons = dict(answer["refused"])
    assert "is not allowed here" in reasons["cifar0"] and "posix.system" in reasons["weights0False.th"]
    after = {str(path) for path in tmp_path.rglob("*") if folder / "run" not in (path, *path.parents)}
    assert after - set(before) == {f"{folder}/x", f"{folder}/y"}
    # What was refused would have worked.
    pickle.loads((folder / "weights.pt").read_bytes())
    assert proof.exists()
