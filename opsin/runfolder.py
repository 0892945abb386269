"""The run folder's own business: who may write there, what is logged, and what ends a run from outside."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from opsin import storage
from opsin.errors import Interrupted, StorageError, UsageError


class Lock:
    """At most one process writes into a run folder. The kernel frees the lock when its holder dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (held as long as the lock)
        except OSError as error:
            raise StorageError(f"cannot write into {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read(200).strip() or "unknown"
            self._file.close()
            raise UsageError(
                f"{folder} is in use by {holder}; wait for it, or choose another folder with --out"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}")
        self._file.flush()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


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
    """`log.jsonl`, one object a line, and `log.csv`, one row a pass. On resume it is cut back to the checkpoint."""

    def __init__(self, folder: Path, length: int = 0) -> None:
        self._path, self._csv = folder / "log.jsonl", folder / "log.csv"
        try:
            self._file = open(self._path, "ab")  # noqa: SIM115 (held as long as the run)
            self._file.truncate(length)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.length = length

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.length += len(line)

    def sync(self) -> None:
        """Put on disk what was written, before a checkpoint says how much of it counts."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error

    def write_csv(self, history: list[dict[str, Any]]) -> None:
        if history:
            table = io.StringIO()
            writer = csv.DictWriter(table, list(history[0]), lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(history)
            storage.write_file(self._csv, table.getvalue())

    def close(self) -> None:
        self._file.close()


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
