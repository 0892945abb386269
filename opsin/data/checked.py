"""What was found out about picture files: none is decoded twice only to be checked.

One JSON file for a folder of pictures, in the cache: name → [size, time of change in ns, format, reason]; the reason is
empty for a whole picture. An entry counts as long as size and time are those of the file, and the version is ours. The
file is a cache: where it is missing, damaged or cannot be written, the pictures are decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from opsin import storage
from opsin.errors import StorageError

VERSION = 1  # of the check: to be raised when it finds more, or less, than before
MAX_BYTES = 1 << 30
# A file may change again within the same tick of its file system's clock; what was written only now is not remembered.
TICK_NS = 100_000_000


def cache_home() -> Path:
    """Where what can be made or fetched again is kept."""
    home = os.environ.get("OPSIN_HOME")
    return Path(home or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsin")


class Found(NamedTuple):
    """Of one file, when it was of this size and time: the format of its content ("" unknown), and what is wrong."""

    size: int
    mtime_ns: int
    format: str
    reason: str


class Checked:
    """What is known of the files below `folder`. `get` and `put` may be called from several threads."""

    def __init__(self, folder: str) -> None:
        folder = os.path.realpath(folder)
        self.path = cache_home() / "checked" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
        self._before = self._read()
        self._now: dict[str, Found] = {}

    def _read(self) -> dict[str, Found]:
        try:
            table = storage.read_json(self.path.read_bytes(), self.path, MAX_BYTES)
            if table["version"] != VERSION:
                return {}
            found = {name: Found(*entry) for name, entry in table["files"].items()}
        except (OSError, StorageError, KeyError, TypeError, AttributeError):
            return {}
        kinds = (int, int, str, str)
        return {name: entry for name, entry in found.items() if tuple(map(type, entry)) == kinds}

    def get(self, name: str, size: int, mtime_ns: int) -> Found | None:
        found = self._before.get(name)
        if found is None or (found.size, found.mtime_ns) != (size, mtime_ns):
            return None
        self._now[name] = found
        return found

    def put(self, name: str, found: Found, now_ns: int) -> None:
        """now_ns: the time before the file was read."""
        if now_ns - found.mtime_ns > TICK_NS:
            self._now[name] = found

    def save(self) -> None:
        """Keep what was asked for or put since this was made; what is no longer there is forgotten."""
        if self._now != self._before:
            with contextlib.suppress(StorageError):
                storage.write_file(self.path, json.dumps({"version": VERSION, "files": self._now}))
