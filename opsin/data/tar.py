"""Class folders in a tar, read in place: `pictures.tar` and `pictures.tar.gz` are used as the folder that they hold.

Nothing is extracted, and no name in the archive ever reaches the file system: names are labels and keys, nothing more.
The rules are those of a folder (`opsin.data.index`): hidden files are passed over, extensions say what a picture is,
and what is no regular file (links, pipes, devices, files with holes) is a bad picture, named as such. An archive of one
folder, as `tar -cf pictures.tar pictures` makes it, is taken as that folder.

A plain tar is read by offset, from any thread; it may be of any size. A gzipped one cannot be read by offset: it is
unpacked once into memory, up to `MAX_UNPACKED` bytes, and refused beyond, where the way out costs nothing: pictures are
compressed already, so that the plain tar is hardly larger. Other compressions are not read.

A tar has no checksum over its data (the pictures have their own), but its headers have one each. `tarfile` takes a
damaged header for the end of the archive; here the end is looked at, so that a damaged or cut archive is an error.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opsin.data import index as indices
from opsin.data.decode import decode
from opsin.data.index import Index, Parts, gather, join_parts, kind_of_file, named_splits, pick, printable
from opsin.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

MAX_UNPACKED = 1 << 30
MAX_MEMBERS = 10_000_000
# Bytes of headers before one member: a long name and the like. tarfile's reader of PAX records takes time and memory
# that grow with the square of this (CVE-2024-6232), hence also a cap on their number.
MAX_HEADER = 1 << 14
MAX_RECORDS = 500
MAX_NAME, MAX_DEPTH = 4096, 64
CHUNK = 1 << 20
EXTENSIONS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
GZIP = b"\x1f\x8b"
OTHERS = {b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ\0": ("xz", "unxz"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")}
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
}


def is_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called a tar or begins like one, plain or compressed."""
    if os.fspath(path).lower().endswith(EXTENSIONS):
        return True
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 5, 257) == b"ustar"
    finally:
        os.close(descriptor)


def scan_parts(path: Path | str, *, on_bad_image: str = "error") -> Parts:
    """The parts of an archive, by the rules of `opsin.data.index.scan_parts`; no picture is decoded.

    `BadInput` names the archive when it is damaged, cut, over a limit, or holds a name twice; and it names the first
    member that is no regular file, unless on_bad_image is "skip".
    """
    archive = Archive(path)
    bad: list[BadInput] = []
    tree = _read(archive, bad)
    top = ""
    while len(folders := tree.folders(top)) == 1 and not tree.files.get(top) and tree.folders(_join(top, folders[0])):
        top = _join(top, folders[0])

    def part(name: str) -> Index:
        root = _join(top, name)
        ignored = [f"{archive.name}/{printable(_join(root, file))}" for file in sorted(tree.files.get(root, {}))]
        skipped = [*bad]
        bad.clear()  # listed once, in the first part
        return gather(
            f"{archive.name}/{printable(root)}" if root else archive.name,
            tree.folders(root),
            lambda folder: tree.pictures(root, folder, f"{archive.name}/", ignored),
            lambda names: _source(archive, tree, root, names),
            skipped,
            ignored,
            on_bad_image=on_bad_image,
            prefix=f"{name}/" if name else "",
        )

    if bad and on_bad_image != "skip":
        raise indices.first_of(bad)
    names = tree.folders(top)
    parts = named_splits(names, lambda name: bool(tree.folders(_join(top, name))))
    return join_parts(archive.name, names, parts, part)


def files(path: Path | str | os.PathLike[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each regular file of an archive, in its order, whatever folders it is in; "./" left out."""
    archive = Archive(os.fspath(path))
    for member in _members(archive):
        if member.isreg() and not member.issparse():
            name = member.name.removeprefix("./")
            if member.size > indices.MAX_FILE_BYTES:
                raise BadInput(f"{archive.name}/{printable(name)}", _problem(member, []))
            yield name, archive.read(member.offset_data, member.size)


class Members:
    """The regular files of an archive by their names, "./" left out; each is read by its offset, none is extracted."""

    def __init__(self, path: Path | str) -> None:
        self._archive = Archive(path)
        tree = _read(self._archive, [])  # what is no regular file, or has an impossible name, is not there
        self._places = {_join(folder, name): at for folder, inner in tree.files.items() for name, at in inner.items()}
        self._folders = tree.below.keys()

    def has_folder(self, name: str) -> bool:
        return name in self._folders

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file that is there."""
        offset, size = self._places[name]
        if size > max_bytes:
            raise BadInput(f"{self._archive.name}/{printable(name)}", f"{size:,} bytes; expected at most {max_bytes:,}")
        return self._archive.read(offset, size)

    def source(self, names: Sequence[str]) -> TarSource:
        return source(self._archive, [printable(name) for name in names], [self._places[name] for name in names])


@dataclass(frozen=True, eq=False)
class TarSource:
    """Pictures in tars. names: for messages. places: int64 [N, 3], number of the archive, and offset and size in bytes
    of each."""

    archives: Sequence[Archive]
    names: Sequence[str]
    places: np.ndarray

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        return decode(self.data(i), self.name(i), min_size=min_size)

    def name(self, i: int) -> str:
        return f"{self.archives[int(self.places[i, 0])].name}/{self.names[i]}"

    def data(self, i: int) -> bytes:
        """The bytes of picture number i; `BadInput` when the archive no longer holds them."""
        number, offset, size = map(int, self.places[i])
        data = self.archives[number].read(offset, size)
        if len(data) != size:
            raise BadInput(self.name(i), "the archive has become shorter since it was listed")
        return data

    def file(self, i: int) -> tuple[str, str]:
        """The archive, and where in it picture number i begins and how long it is."""
        number, offset, size = map(int, self.places[i])
        return self.archives[number].path, f":{offset}+{size}"

    def subset(self, indices: np.ndarray) -> TarSource:
        return TarSource(self.archives, pick(self.names, indices), self.places[indices])


def source(archive: Archive, names: Sequence[str], places: Sequence[tuple[int, int]]) -> TarSource:
    """Pictures in one tar. places: offset and size in bytes of each."""
    table = np.zeros((len(places), 3), dtype=np.int64)
    table[:, 1:] = np.array(places, dtype=np.int64).reshape(-1, 2)
    return TarSource((archive,), names, table)


def _source(archive: Archive, tree: _Tree, root: str, names: list[str]) -> TarSource:
    full = [_join(root, name) for name in names]
    places = [tree.files[folder][file] for folder, _, file in (name.rpartition("/") for name in full)]
    return source(archive, [printable(name) for name in full], places)


# ---------------------------------------------------------------------------------------------------------------------
# The bytes
# ---------------------------------------------------------------------------------------------------------------------


class Archive:
    """A tar, open for as long as somebody holds this. name: for messages. size: of the plain tar, in bytes.

    keep_open: False opens a plain tar anew for each read, as long as it is the same: a process may hold only some
    hundred files open, and there may be a thousand shards.
    """

    def __init__(self, path: Path | str, keep_open: bool = True) -> None:
        self.name, self.path = printable(path), os.fspath(path)
        self._unpacked: bytearray | None = None
        self._closed: tuple[Path | str, tuple[int, ...]] | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            closing = weakref.finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(self.name, f"{kind_of_file(status.st_mode)}, not a regular file")
            self.size = status.st_size
            start = os.pread(self._descriptor, 6, 0)
        except OSError as error:
            raise BadInput(self.name, f"cannot be read: {error.strerror or error}") from error
        for magic, (kind, command) in OTHERS.items():
            if start.startswith(magic):
                raise BadInput(self.name, f"compressed with {kind}; expected a plain tar: unpack it with {command}")
        if start.startswith(GZIP):
            self._unpacked = self._unpack()
            self.size = len(self._unpacked)
        if not keep_open:
            closing()
            self._closed = path, _identity(status)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on: fewer at the end. Safe in any thread."""
        if self._unpacked is not None:
            return bytes(memoryview(self._unpacked)[offset : offset + size])
        try:
            if self._closed is None:
                return os.pread(self._descriptor, size, offset)
            path, known = self._closed
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if _identity(os.fstat(descriptor)) != known:
                    raise BadInput(self.name, "has changed since it was listed")
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadInput(self.name, f"cannot be read: {error.strerror or error}") from error

    def _unpack(self) -> bytearray:
        data = bytearray()
        try:
            with open(self._descriptor, "rb", closefd=False) as file, gzip.GzipFile(fileobj=file) as stream:
                while chunk := stream.read(min(CHUNK, MAX_UNPACKED + 1 - len(data))):
                    data += chunk
                    if len(data) > MAX_UNPACKED:
                        raise BadInput(
                            self.name,
                            f"unpacks to more than {MAX_UNPACKED:,} bytes, which is as much as is held in memory; "
                            "use the plain tar: gunzip it",
                        )
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(self.name, f"damaged gzip file: {error}") from error
        return data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Inner:
    """A tar within a tar, read in place. name: for messages. start, size: of it in the outer one, in bytes."""

    def __init__(self, outer: Archive, name: str, start: int, size: int) -> None:
        self.name, self.size, self._outer, self._start = f"{outer.name}/{name}", size, outer, start

    def read(self, offset: int, size: int) -> bytes:
        return self._outer.read(self._start + offset, max(0, min(size, self.size - offset)))


class _Headers:
    """The file that `tarfile` reads headers from: forwards only, and no more than `MAX_HEADER` bytes a member. So no
    length or offset that an archive claims can make it loop, or hold more than that in memory."""

    def __init__(self, archive: Archive | Inner) -> None:
        self.archive, self.at, self.left = archive, 0, MAX_HEADER

    def tell(self) -> int:
        return self.at

    def seek(self, to: int) -> None:
        if to < self.at:
            raise ValueError(f"the header before byte {self.at:,} leads back to byte {to:,}")
        self.at = to

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise ValueError(f"the header at byte {self.at:,} is longer than {MAX_HEADER:,} bytes")
        data = self.archive.read(self.at, size)
        self.at += len(data)
        return data


def plain_files(archive: Archive | Inner) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each file of an archive of nothing else but folders, in its order; `BadInput` names a
    member that is no regular file, or has an impossible name."""
    for member in _members(archive):
        if problem := _problem(member, member.name.split("/")):
            raise BadInput(f"{archive.name}/{printable(member.name)[:MAX_NAME]}", problem)
        if not member.isdir():
            yield member.name, member.offset_data, member.size


def _members(archive: Archive | Inner) -> Iterator[tarfile.TarInfo]:
    """The members as `tarfile` reads them, each of them whole in the archive; `BadInput` for damage."""
    view, count = _Headers(archive), 0
    try:
        tar = tarfile.TarFile(fileobj=view, encoding="utf-8", errors="surrogateescape")  # pyright: ignore
        while (member := (_simple(archive, tar) if count else None) or tar.next()) is not None:
            tar.members.clear()  # it keeps them all  # pyright: ignore[reportAttributeAccessIssue]
            view.left, count = MAX_HEADER, count + 1
            if count > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS:,} members")
            if len(member.pax_headers) > MAX_RECORDS:
                raise ValueError(f"more than {MAX_RECORDS} extended header records before {printable(member.name)}")
            if member.isreg() and not member.issparse():
                blocks = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.size < 0 or member.offset_data + blocks != tar.offset:
                    raise ValueError(f"{printable(member.name)[:200]}: contradictory sizes")
                if member.offset_data + member.size > archive.size:
                    raise ValueError(f"it ends within {printable(member.name)[:200]}")
            yield member
        _check_end(archive, tar.offset)
    except BadInput:
        raise
    except Exception as error:  # tarfile raises a dozen kinds of error on damaged bytes
        raise BadInput(archive.name, f"damaged tar: {error or type(error).__name__}") from error


def _simple(archive: Archive | Inner, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, where it is a file of a short name and all about it is in its one block: `tarfile` takes four
    times as long for it. None, and nothing done, for all else, damage among it."""
    at: int = tar.offset  # pyright: ignore[reportAttributeAccessIssue]
    block = archive.read(at, tarfile.BLOCKSIZE)
    name, size, checksum = block[:100].rstrip(b"\0"), block[124:135], block[148:154]
    if (
        tar.pax_headers  # said for all that follow
        or len(block) < tarfile.BLOCKSIZE
        or block[156] not in b"0\0"
        or block[257:262] != b"ustar"
        or block[345]  # the beginning of a long name, or what GNU tar writes there
        or not name
        or b"\0" in name
        or name.endswith(b"/")
        or not (size.isdigit() and checksum.isdigit())
        or block[135] not in b" \0"
        or sum(block) - sum(block[148:156]) + 8 * 0x20 != int(checksum, 8)
    ):
        return None
    member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    member.size, member.offset, member.offset_data = int(size, 8), at, at + tarfile.BLOCKSIZE
    tar.offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # pyright: ignore
    return member


def _check_end(archive: Archive | Inner, offset: int) -> None:
    """An archive ends in at least one block of zeros, and nothing else follows."""
    if not (end := archive.read(offset, tarfile.BLOCKSIZE)):
        raise ValueError("it has no end mark; the rest is missing")
    if any(end) or len(end) < tarfile.BLOCKSIZE:
        raise ValueError(f"the header at byte {offset:,} cannot be read")
    while chunk := archive.read(offset, CHUNK):
        if any(chunk):
            raise ValueError(f"it goes on after its end mark at byte {offset:,}")
        offset += len(chunk)


# ---------------------------------------------------------------------------------------------------------------------
# The names
# ---------------------------------------------------------------------------------------------------------------------


class _Tree:
    """The folders and files of an archive that count. files: folder → file → (offset, size); below: folder → folders;
    "" is the top. Names are as `tarfile` decodes them, joined by "/"."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, tuple[int, int]]] = {}
        self.below: dict[str, set[str]] = {"": set()}

    def add_folder(self, names: Sequence[str]) -> str:
        folder = "/".join(names)
        if folder not in self.below:
            above = self.add_folder(names[:-1])
            self.below[above].add(names[-1])
            self.below[folder] = set()
        return folder

    def folders(self, folder: str) -> list[str]:
        return sorted(self.below.get(folder, ()))

    def pictures(self, root: str, folder: str, where: str, ignored: list[str]) -> list[str]:
        """Sorted names, from `folder` on, of the pictures in it and below; other files go to `ignored`."""
        found, waiting = [], [folder]
        while waiting:
            folder = waiting.pop()
            waiting += [_join(folder, name) for name in self.folders(_join(root, folder))]
            for file in self.files.get(_join(root, folder), ()):
                if os.path.splitext(file)[1].lower() in indices.EXTENSIONS:
                    found.append(_join(folder, file))
                else:
                    ignored.append(f"{where}{printable(_join(root, _join(folder, file)))}")
        return sorted(found)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _read(archive: Archive, bad: list[BadInput]) -> _Tree:
    """The tree of an archive; members that are no regular files, or of impossible names, go to `bad`."""
    tree = _Tree()
    for member in _members(archive):
        names = [name for name in member.name.split("/") if name not in ("", ".")]
        problem = _problem(member, names)
        if problem:
            bad.append(BadInput(f"{archive.name}/{printable('/'.join(names))[:MAX_NAME]}", problem))
        elif any(name.startswith(".") or name.lower() in indices.CLUTTER for name in names):
            continue
        elif member.isdir():
            tree.add_folder(names)
        elif names:
            files = tree.files.setdefault(tree.add_folder(names[:-1]), {})
            if names[-1] in files:
                raise BadInput(archive.name, f"holds {printable(member.name)} twice")
            files[names[-1]] = member.offset_data, member.size
    return tree


def _problem(member: tarfile.TarInfo, names: Sequence[str]) -> str:
    """Why a member cannot be used; "" when it can."""
    if ".." in names:
        return "its name leads out of the archive"
    if "\0" in member.name or len(member.name) > MAX_NAME:
        return f"its name holds a zero byte or is longer than {MAX_NAME} characters"
    if len(names) > MAX_DEPTH:
        return f"in more than {MAX_DEPTH} folders, one in the other"
    if member.isdir():
        return ""
    if member.issparse():
        return "a file with holes (sparse), not a plain one"
    if not member.isreg():
        return f"{KINDS.get(member.type, f'of type {member.type!r}')}, not a regular file"
    if member.size > indices.MAX_FILE_BYTES:
        return f"{member.size:,} bytes; expected at most {indices.MAX_FILE_BYTES:,}"
    return ""
