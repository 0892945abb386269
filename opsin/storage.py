"""The one durable way to disk: written beside, synced, listed in a manifest of hashes, moved into place, read back.

A reader sees the old state or the new one, never half of either; a flipped bit or a missing byte is found on reading.
Everything is safetensors and JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
MAX_JSON = 64 << 20


def _fail(action: str, path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot {action} {path}: {error.strerror or error}; what was there before is untouched")


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is safe only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path | str, data: bytes | str) -> None:
    """Replace the file `path` by `data`, all or nothing, on disk when this returns. `StorageError` when it cannot."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _fail("write", path, error) from error


def write_folder(folder: Path | str, files: Mapping[str, bytes]) -> None:
    """Write `files` and a manifest of their sizes and SHA-256 as the folder `folder`, all or nothing, read back.

    An older folder of that name is moved aside to `folder.old` for the moment of the exchange; `read_folder` looks
    there when a crash fell into that moment.
    """
    folder = Path(os.path.abspath(folder))
    temporary, aside = _temporary(folder), _aside(folder)
    for place in (folder, aside):
        if os.path.lexists(place) and not _ours(place):
            raise StorageError(
                f"{place} is there and was not written by opsin; it is not replaced: choose another name"
            )
    manifest = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            _write_synced(temporary / name, data)
        _write_synced(temporary / MANIFEST, json.dumps({"version": 1, "files": manifest}, indent=1).encode())
        _sync_folder(temporary)
        read_folder(temporary)
        if folder.exists():
            if aside.exists():
                shutil.rmtree(aside)
            os.rename(folder, aside)
        os.rename(temporary, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not folder.exists():
            with contextlib.suppress(OSError):
                os.rename(aside, folder)
        raise _fail("write", folder, error) from error


def _ours(place: Path) -> bool:
    """Whether nothing of a person's is lost with `place`: one of our folders, or an empty one."""
    return (place / MANIFEST).is_file() or (place.is_dir() and not any(place.iterdir()))


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp-{os.getpid()}")


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def read_folder(folder: Path | str) -> dict[str, bytes]:
    """The files of a folder that `write_folder` wrote, every byte checked; `StorageError` names what is wrong."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file() and (_aside(folder) / MANIFEST).is_file():
        folder = _aside(folder)
    listed = read_json(_read(folder / MANIFEST), folder / MANIFEST)
    if not isinstance(listed, dict) or listed.get("version") != 1 or not isinstance(listed.get("files"), dict):
        raise StorageError(f"{folder / MANIFEST}: expected a manifest of version 1, received {str(listed)[:80]}")
    files = {}
    for name, entry in listed["files"].items():
        if Path(name).name != name or not isinstance(entry, dict):
            raise StorageError(f"{folder / MANIFEST}: {name!r} is not a plain file of this folder")
        data = files[name] = _read(folder / name)
        if len(data) != entry.get("size") or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise StorageError(
                f"{folder / name}: damaged: {len(data)} bytes that do not match the manifest "
                f"({entry.get('size')} bytes, SHA-256 {str(entry.get('sha256'))[:12]}…)"
            )
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise StorageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error


def read_json(data: bytes, name: Path | str, max_bytes: int = MAX_JSON) -> Any:
    """Strict JSON: UTF-8, finite numbers, whole characters, no key twice, at most `max_bytes`; `StorageError` names the
    file."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            raise ValueError("a key appears twice")
        return table

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
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
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
