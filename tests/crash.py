"""Processes to be killed, and calls of the system that fail: what the tests of durability stand on.

A `Nursery` is a process that has imported everything, on one thread, and forks: each child is a real `opsin` command
in its real code, there at once. A fault is at the N-th call by which opsin's own files touch the disk:
`{"nth": 3, "how": "KILL"}` or `"EIO"`, `"ENOSPC"`; a write is then half done.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opsin import storage
from opsin.errors import OpsinError

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate")
OURS = ("opsin.storage", "opsin.runfolder", "shutil")


def faults(nth: int, how: str, mark: str = "") -> None:
    """From here on the `nth` call that touches the disk kills this process, or fails. mark: a file made by then."""
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == nth

    def strike(name: str, real: Any, arguments: Any) -> None:
        if mark:
            Path(mark).touch()
        if name == "write":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if how == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, how)
        raise OSError(number, os.strerror(number))

    def broken(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"] in OURS and due():
                strike(name, real, arguments)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, broken(name, getattr(os, name)))
    storage._exchange = broken("exchange", storage._exchange)  # type: ignore[assignment]


def saves(folder: Path) -> int:
    """Three checkpoints, the third of which removes the first; a folder and a file twice each. A dot is added to
    `folder`/done after each. The exit code, with the error said as the command line says it."""
    import torch

    from opsin import checkpoint, optim
    from opsin.recipe import SGD
    from opsin.train import Precision, TrainState
    from opsin.types import Progress

    torch.manual_seed(0)
    state = TrainState(model := torch.nn.Linear(3, 2), optim.build(model, SGD()))
    verified: set[str] = set()
    try:
        for step in (1, 2, 3):
            state.progress = Progress(step=step)
            checkpoint.save(
                state, folder / "checkpoints", precision=Precision(), notes={}, tensors={}, verified=verified
            )
            _done(folder)
        replace_folder_and_file(folder)
    except OpsinError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def replace_folder_and_file(folder: Path) -> None:
    for text in (b"old", b"new"):
        storage.write_folder(folder / "classifier", {"weights": 1000 * text, "config": text})
        storage.write_file(folder / "report.json", text)
        _done(folder)


def _done(folder: Path) -> None:
    with open(folder / "done", "ab") as file:
        file.write(b".")


def leftovers(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if "opsin-tmp" in p.name or p.name.endswith(".old")]


class Trace(NamedTuple):
    """What two runs that are equal share."""

    weights: bytes
    checkpoint: bytes
    log: list[dict[str, Any]]
    table: list[dict[str, str]]
    report: dict[str, Any]


def trace(run: Path) -> Trace:
    """Final weights; the last checkpoint with optimiser, averages and random state; both logs and the report without
    what the clock says."""
    clock = ("seconds", "images_per_second", "minutes")
    last = max((run / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    with open(run / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    report = json.loads((run / "report.json").read_text())
    report["run"] = {key: value for key, value in report["run"].items() if key not in clock}
    return Trace(
        (run / "classifier" / "weights.safetensors").read_bytes(),
        (last / "tensors.safetensors").read_bytes(),
        [{key: value for key, value in row.items() if key not in clock} for row in rows],
        [{key: value for key, value in row.items() if key not in clock} for row in table],
        report,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The nursery
# ---------------------------------------------------------------------------------------------------------------------


class Child(NamedTuple):
    code: int  # as of subprocess: negative for a signal
    said: str  # on stderr


class Nursery:
    """`start` some children, do to them what you like, `wait`."""

    def __init__(self, folder: Path) -> None:
        self._said = folder
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        assert self._from.readline() == "ready\n"

    def start(self, *commands: list[str], **options: Any) -> list[int]:
        """Fork a child for each command line; their process ids. options: see `_child`."""
        self._to.write(json.dumps({"commands": commands, "said": str(self._said), "options": options}) + "\n")
        self._to.flush()
        return json.loads(self._from.readline())

    def wait(self) -> list[Child]:
        codes = json.loads(self._from.readline())
        return [Child(code, (self._said / f"said-{i}").read_text()) for i, code in enumerate(codes)]

    def call(self, *command: str, **options: Any) -> Child:
        self.start(list(command), **options)
        return self.wait()[0]

    def close(self) -> None:
        self._to.close()
        self._process.wait(30)
        self._from.close()


def _nurse() -> None:
    import torch

    torch.set_num_threads(1)
    from opsin import cli
    from tests.conftest import write_pictures

    # Once through everything: what is imported and built on first use is then there in each child.
    with tempfile.TemporaryDirectory() as made, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        saves(Path(made))
        pictures = write_pictures(Path(made) / "pictures", 5)
        words = ["--epochs", "1", "--quiet", "--set", "model.options.widths=[4, 4, 4]", "--set", "ema=0.9"]
        assert cli.call(["train", str(pictures), "--out", str(Path(made) / "run"), *words]) == 0
    assert threading.active_count() == 1
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        children = []
        for i, command in enumerate(order["commands"]):
            pid = os.fork()
            if not pid:
                code = 99
                try:
                    code = _child(command, Path(order["said"]) / f"said-{i}", **order["options"])
                finally:
                    os._exit(code)
            children.append(pid)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)


def _child(
    command: list[str],
    said: Path,
    *,
    draw: bool = True,
    fault: dict[str, Any] | None = None,
    file_bytes: int = 0,
    disk: tuple[str, int] | None = None,
) -> int:
    """draw: False leaves the figures empty, which take most of a short run's time. file_bytes: the largest file that
    can be written. disk: a folder that becomes a disk of so many bytes, for this process alone; it is copied to
    FOLDER.copy at the end."""
    from opsin import cli, figures

    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdin.close()
    if not draw:
        figures._encode = lambda *_, **__: b"<svg/>"
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if disk:
        _mount(*disk)
    if fault:
        faults(**fault)
    code = saves(Path(command[1])) if command[0] == "saves" else cli.call(command)
    sys.stdout.flush()
    sys.stderr.flush()
    if disk:
        shutil.copytree(disk[0], f"{disk[0]}.copy")
    return code


def _mount(folder: str, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x20000, 0x4000 | 1 << 18
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive_private, None):
        raise OSError(ctypes.get_errno(), "no mounts of one's own")
    if libc.mount(b"none", folder.encode(), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "no tmpfs")


@contextlib.contextmanager
def fast_folder(other: Path) -> Iterator[Path]:
    """A folder in memory, removed at the end; `other` where there is no such disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield other
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    made = Nursery(folder)
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:  # without torch, for strace
        replace_folder_and_file(Path(sys.argv[1]))
    else:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        _nurse()
