"""The run folder's own business: who may write there, what is logged, what ends a run from outside, what it has said.

Nothing here imports torch before it needs it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from opsin import storage
from opsin.errors import Interrupted, StorageError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from opsin.recipe import Recipe

MAX_SPLITS = 1 << 29  # bytes of a splits.json


class Lock:
    """At most one process writes into a run folder. The kernel frees the lock when its holder dies, however it dies.

    `UsageError` names the holder. What a process that was killed left half written in the folder is removed.
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise UsageError("training needs a lock on the run folder, which Windows does not have; use Linux or macOS")
        path = folder / "run.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(f"cannot write into {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self.release()
            raise UsageError(
                f"{folder} is in use by {holder}; wait for it, or choose another folder with --out"
            ) from None
        except OSError as error:
            self.release()
            raise StorageError(f"cannot lock {path}: {error.strerror or error}; choose another disk") from error
        _HELD.add(self)
        with contextlib.suppress(OSError):  # the name is for people only
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        storage.sweep(folder)

    def _holder(self) -> str:
        """Who holds the lock, as soon as they have written it down: until then an older, dead process is named."""
        text, deadline = "", time.monotonic() + 1
        while time.monotonic() < deadline:
            text = os.pread(self._descriptor, 200, 0).decode(errors="replace")
            words = text.split(" ", 3)
            if len(words) == 4 and words[0] == "process" and words[1].isdecimal():
                try:
                    if words[3] == platform.node():
                        os.kill(int(words[1]), 0)
                    return text
                except PermissionError:  # it lives, and is somebody else's
                    return text
                except (ProcessLookupError, OverflowError):
                    pass
            time.sleep(0.01)
        return text.strip() or "another process"

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        _HELD.discard(self)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


# A forked process would hold its parent's locks as well, and keep them when the parent is killed.
_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [lock.release() for lock in list(_HELD)])


class Signals:
    """While active, the first SIGINT or SIGTERM sets a flag: the step ends and is saved. A second acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def interrupted(self, folder: Path) -> Interrupted:
        assert self.received is not None
        name, code = signal.Signals(self.received).name, 128 + self.received
        return Interrupted(f"{name}: saved; go on with: opsin resume {folder}", code)


class Log:
    """`log.jsonl`, one object a line, and `log.csv`, one row a pass.

    On resume it is cut back to the `length` bytes that the checkpoint counts; where there are fewer, `length` says so.
    """

    def __init__(self, folder: Path, length: int = 0) -> None:
        self._path, self._csv = folder / "log.jsonl", folder / "log.csv"
        self._descriptor = -1
        with self._writing():
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self.length = min(length, os.fstat(self._descriptor).st_size)
            os.ftruncate(self._descriptor, self.length)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self._writing():
            storage.write_all(self._descriptor, line)
        self.length += len(line)

    def sync(self) -> None:
        """Put on disk what was written, before a checkpoint says how much of it counts."""
        with self._writing():
            os.fsync(self._descriptor)

    def write_csv(self, history: list[dict[str, Any]]) -> None:
        if history:
            table = io.StringIO()
            writer = csv.DictWriter(table, list(history[0]), lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(history)
            storage.write_file(self._csv, table.getvalue())

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions and machine, for `environment.json`: what a number in a report depends on besides the recipe."""
    from importlib import metadata

    versions = {}
    for name in ("torch", "numpy", "pillow", "simplejpeg", "safetensors", "scikit-learn", "matplotlib"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    import torch

    import opsin

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "opsin": opsin.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "torch_build": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "gpu": gpu,
        "command": sys.argv[1:],
    }


def processor() -> str:
    """The processor's name, with the widest vector unit that matters for speed."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    name = next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown"
    )
    units = [
        unit for flag, unit in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag} " in text.replace("\n", " ")
    ]
    return f"{name} ({units[0]})" if units else name


def _commit() -> str | None:
    """The commit of the checkout that opsin runs from, "+" when files differ from it; None when it is installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# What a run said of itself
# ---------------------------------------------------------------------------------------------------------------------


def recipe_of(run: Path) -> Recipe | None:
    """The recipe of a run folder, given as itself or by its classifier/ folder; None where there is none."""
    from opsin.recipe import from_toml

    path = _of_run(run, "recipe.toml")
    return from_toml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def listed(run: Path, part: str) -> list[str] | None:
    """The names of the pictures of a part, where the run wrote them down (`splits.json`)."""
    from opsin.data.index import read

    path = _of_run(run, "splits.json")
    return listed_keys(read(path, MAX_SPLITS), path, part) if path.is_file() else None


def _of_run(run: Path, name: str) -> Path:
    """Where a run has that file; run: its folder, or the classifier/ folder in it."""
    inside = not (run / name).is_file() and run.resolve().name == "classifier"
    return (run.resolve().parent if inside else run) / name


def listed_keys(data: bytes, path: Path, part: str) -> list[str] | None:
    """The names listed for a part in the bytes of a `splits.json`; None where it lists none."""
    found = storage.read_json(data, path, MAX_SPLITS)
    of_part = found.get(part, {}) if isinstance(found, dict) else None
    keys = of_part.get("keys") if isinstance(of_part, dict) else ...
    if keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        return keys
    raise StorageError(f"{path}: expected the names of the pictures of each part")


def same_data(one: str, other: str) -> bool:
    """Whether two names, as `Data.name` has them, are of one data set."""
    return one == other or bool(
        other and os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    )
