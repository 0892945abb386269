"""The one durable way to disk: written beside, synced, listed in a manifest of hashes, moved into place, read back.

A reader sees the old state or the new one, never half of either; a flipped bit or a missing byte is found on reading.
Everything is safetensors and JSON. What this promises, and what it cannot: docs/decisions/0006-durable-saves.md.

Whatever touches the disk here is a call of `os` (or `_exchange`): the tests put calls in its place that fail or kill.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from opsin.errors import Interrupted, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

MANIFEST = "manifest.json"
MAX_JSON = 64 << 20
TRIES = 100  # of a reader whose folder is replaced while it reads


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def _fail(action: str, path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot {action} {path}: {error.strerror or error}; what was saved before is still whole")


def _sync(descriptor: int) -> None:
    """On disk when this returns. macOS keeps a drive's own cache out of fsync, and has a call that does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)  # type: ignore[union-attr]
            return
        except OSError as error:  # network file systems
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is safe only once its folder is on disk."""
    if os.name == "nt":  # has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on disk in the one that holds it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        _sync_folder(folder.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, however little the system takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_synced(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        write_all(descriptor, data)
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step. False where the system or the file system has no such call."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    swap, here = 2, -100  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS; AT_FDCWD
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), swap)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(os.fsencode(one), os.fsencode(other), swap)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def write_file(path: Path | str, data: bytes | str) -> None:
    """Replace the file `path` by `data`, all or nothing, on disk when this returns. `StorageError` when it cannot."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        _make_folder(path.parent)
        _write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _fail("write", path, error) from error
        raise


def write_folder(folder: Path | str, files: Mapping[str, bytes]) -> None:
    """Write `files` and a manifest of their sizes and SHA-256 as the folder `folder`, all or nothing, read back.

    An older folder of that name changes places with the new one in one step, and is then removed. Where the file
    system has no such step, it is moved aside to `folder.old` for a moment; `read_folder` looks there.
    """
    folder = Path(os.path.abspath(folder))
    temporary, aside = _temporary(folder), _aside(folder)
    for place in (folder, aside):
        if os.path.lexists(place) and not _ours(place):
            raise StorageError(
                f"{place} is there and was not written by opsin; it is not replaced: choose another name"
            )
    placed = False
    try:
        _make_folder(folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        os.mkdir(temporary)
        for name, data in files.items():
            _write_synced(temporary / name, data)
        table = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        _write_synced(temporary / MANIFEST, _manifest(table))
        _sync_folder(temporary)
        read_folder(temporary)
        if not os.path.lexists(folder):
            os.rename(temporary, folder)
        elif not _exchange(temporary, folder):
            _remove(aside)
            os.rename(folder, aside)
            os.rename(temporary, folder)
        placed = True
        _sync_folder(folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        _remove(aside)
    except BaseException as error:
        if not placed:  # else an older folder is left, until the next save: the new name may not be on disk yet
            if aside.exists() and not folder.exists():
                with contextlib.suppress(OSError):
                    os.rename(aside, folder)
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _fail("write", folder, error) from error
        raise


def check_new(folder: Path | str) -> None:
    """`StorageError` when there is something at `folder` already, a link included; an empty folder is nothing."""
    place = Path(os.path.abspath(folder))
    if os.path.lexists(place) and (place.is_symlink() or not place.is_dir() or any(place.iterdir())):
        raise StorageError(f"{place} is there already; it is not replaced: choose another name, or remove it")


@contextlib.contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A folder to be filled, which takes its name once all of it is on disk, and is removed when that fails: for what
    is too large to be in memory. It has no manifest. `StorageError` when its name is taken, except by an empty folder.
    SIGTERM ends it as an error does (`Interrupted`); what a process that was killed left of it, the next one removes.
    """
    check_new(folder)
    folder = Path(os.path.abspath(folder))
    temporary = _temporary(folder)
    try:
        _make_folder(folder.parent)
        _sweep_unheld(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        os.mkdir(temporary)
        with _held(temporary), _terminated(folder):
            yield temporary
        for place, _, names in os.walk(temporary, topdown=False):
            for path in (Path(place, name) for name in names):
                if not path.is_symlink():  # what it points to is not ours
                    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
                    try:
                        _sync(descriptor)
                    finally:
                        os.close(descriptor)
            _sync_folder(Path(place))
        os.rename(temporary, folder)  # over an empty folder too; a full one makes it fail
        _sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _fail("write", folder, error) from error
        raise


@contextlib.contextmanager
def _held(temporary: Path) -> Iterator[bool]:
    """Lock a folder, so that others see that somebody fills it; the kernel frees it when this process dies, however it
    dies. False where it is locked, or the system or the disk knows no such locks."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _sweep_unheld(folder: Path) -> None:
    """Remove what killed processes left of `new_folder(folder)`, and leave what a living one fills."""
    for place in _unfinished(folder.parent):
        if place.name.startswith(f".{folder.name}.opsin-tmp-") and place.is_dir() and not place.is_symlink():
            with contextlib.suppress(OSError), _held(place) as free:
                if free:
                    shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _terminated(folder: Path) -> Iterator[None]:
    """SIGTERM raises `Interrupted`, once, where nobody else has a use for it. In the main thread only."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(SIGTERM, signal.SIG_DFL)
        raise Interrupted(f"SIGTERM: {folder} was not finished, and nothing is left of it", 128 + SIGTERM)

    signal.signal(SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(SIGTERM, signal.SIG_DFL)


def _manifest(table: Mapping[str, Any]) -> bytes:
    """The only way to write the manifest of these files, so that no bit of it can differ unnoticed."""
    return json.dumps({"version": 1, "files": dict(sorted(table.items()))}, indent=1).encode()


def _ours(place: Path) -> bool:
    """Whether nothing of a person's is lost with `place`: one of our folders, or an empty one."""
    return (place / MANIFEST).is_file() or (place.is_dir() and not any(place.iterdir()))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.opsin-tmp-{os.getpid()}")


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def discard(folder: Path) -> None:
    """Remove a folder that `write_folder` wrote, never seen half removed. What cannot be removed stays."""
    for place in (folder, _aside(folder)):
        _remove(place)


def _remove(place: Path) -> None:
    """Under a hidden name, so that nobody finds it half removed under its own. What cannot be removed stays."""
    hidden = _temporary(place)
    with contextlib.suppress(OSError):
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(place, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`. Only for the holder of its lock."""
    for place in _unfinished(folder):
        with contextlib.suppress(OSError):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                os.unlink(place)


def _unfinished(folder: Path) -> list[Path]:
    return [p for p in folder.glob(".*.opsin-tmp-*") if re.fullmatch(r"\..+\.opsin-tmp-[0-9]+", p.name)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def holds(folder: Path | str) -> bool:
    """Whether there is a folder here that `write_folder` wrote, or was about to replace when it was cut short."""
    places = (Path(folder), _aside(Path(folder)))
    # Twice: between the two looks it may have been put back into its place.
    return any((place / MANIFEST).is_file() for place in 2 * places)


def read_folder(folder: Path | str) -> dict[str, bytes]:
    """The files of a folder that `write_folder` wrote, every byte checked; `StorageError` names what is wrong.

    All files are of one state, though the folder be replaced meanwhile: the folder itself is held open, not its name.
    """
    folder = Path(folder)
    for _ in range(TRIES):
        for place in (folder, _aside(folder)):
            try:
                with _Opened(place) as opened:
                    try:
                        return opened.files()
                    except (OSError, StorageError):
                        if opened.in_place():
                            raise
            except FileNotFoundError:
                continue
            except OSError as error:
                name = error.filename or place
                raise StorageError(f"cannot read {name}: {error.strerror or error}") from error
            break  # replaced while it was read: once more
        else:
            if not holds(folder):
                break
    raise StorageError(f"cannot read {folder / MANIFEST}: {os.strerror(errno.ENOENT)}")


class _Opened:
    """One of our folders, held open: whatever happens to its name, what is read through it belongs together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Windows opens no folders; nobody trains there, so nobody replaces one either.
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if os.name != "nt" else None

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def in_place(self) -> bool:
        """Whether the folder still has its name. While it is open, no other can have its number."""
        try:
            return self._descriptor is None or os.path.samestat(os.fstat(self._descriptor), os.stat(self.folder))
        except FileNotFoundError:
            return False

    def files(self) -> dict[str, bytes]:
        name = self.folder / MANIFEST
        text = self._read(MANIFEST, MAX_JSON)
        listed = read_json(text, name)
        if not isinstance(listed, dict) or listed.get("version") != 1 or not isinstance(listed.get("files"), dict):
            raise StorageError(f"{name}: expected a manifest of version 1, received {str(listed)[:80]}")
        for key, entry in listed["files"].items():
            plain = Path(key).name == key not in ("", "..") and "\0" not in key
            if not plain or not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
                raise StorageError(f"{name}: {key!r} is not a plain file of this folder")
        if text != _manifest(listed["files"]):
            raise StorageError(f"{name}: damaged: not as it was written")
        files = {}
        for key, entry in listed["files"].items():
            try:
                data = files[key] = self._read(key, entry["size"])
            except FileNotFoundError as error:
                if not self.in_place():
                    raise
                raise StorageError(f"cannot read {self.folder / key}: {error.strerror}") from error
            if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
                raise StorageError(
                    f"{self.folder / key}: damaged: it does not match the manifest "
                    f"({entry['size']} bytes, SHA-256 {str(entry.get('sha256'))[:12]}…)"
                )
        return files

    def _read(self, name: str, most: int) -> bytes:
        """A regular file's bytes, no more than `most` + 1; `OSError` with its name."""
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            if self._descriptor is None:
                descriptor = os.open(self.folder / name, flags)
            else:
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise StorageError(f"{self.folder / name}: not a regular file")
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read(max(0, min(most, status.st_size)) + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            error.filename = self.folder / name
            raise
        except ValueError as error:  # a name that no file can have
            raise StorageError(f"{self.folder / MANIFEST}: {name!r}: {error}") from error


def read_json(data: bytes, name: Path | str, max_bytes: int = MAX_JSON, *, keep: Collection[str] | None = None) -> Any:
    """Strict JSON: UTF-8, finite numbers, whole characters, no key twice, at most `max_bytes`; `StorageError` names the
    file. keep: of every object only these keys, the rest of it forgotten as soon as it is read; numbers with a fraction
    are then not looked at. So a large file takes little more memory than its text."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            raise ValueError("a key appears twice")
        return table if keep is None else {key: value for key, value in items if key in keep}

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:40]} is too large a number")
        return value

    if len(data) > max_bytes:
        raise StorageError(f"{name}: {len(data)} bytes of JSON; at most {max_bytes} are read")
    try:
        text = data.decode()
        del data
        fraction = number if keep is None else float  # a function of Python's own is fifty times as fast
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=fraction)
        if "\\ud" in text or "\\uD" in text:  # perhaps half a character, which could never be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{name}: not the JSON expected: {error}") from error


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors of any device and layout as the bytes of a safetensors file. Two names may be the same tensor."""
    import torch
    from safetensors.torch import save

    # A copy each: the format refuses tensors that share memory.
    contiguous = torch.contiguous_format
    return save({name: tensor.detach().cpu().clone(memory_format=contiguous) for name, tensor in tensors.items()})


def from_safetensors(data: bytes, name: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `StorageError` names the file when it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise StorageError(f"{name}: not a safetensors file: {error}") from error
