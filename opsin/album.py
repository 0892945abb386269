"""Finding and grouping: the nearest pictures by features, and albums sorted by predicted class. Pictures are only read.

An album is a new folder that appears once it is whole. Names of classes may come from a stranger's classifier, those of
files from a stranger's archive: both are made safe for any system, and told apart by a number where they then collide.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opsin import __version__, classifier, metrics, report, storage
from opsin.classifier import Classifier, Picture, Skipped
from opsin.data.decode import format_of
from opsin.data.index import EXTENSIONS, Index, Source
from opsin.data.sandbox import Decoders
from opsin.errors import BadInput, OpsinError, UsageError

DIGITS = 5  # of a similarity; what differs by less is a tie, for networks answer a little differently in other batches
SURE = 0.6  # then no other class can have more than 0.4
UNSURE, LISTING = "unsure", "album.json"
MAX_GROUPS, MAX_SHOWN, PER_GROUP = 200, 1200, 24  # of a sheet: groups, pictures, pictures of one group
MAX_NAME = 120  # bytes of a safe name
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{p}{i}" for p in ("com", "lpt") for i in "123456789¹²³"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------------------


class Neighbour(NamedTuple):
    """place: in the index. similarity: the cosine, -1 to 1. same: pixel for pixel the picture that was asked about."""

    key: str
    place: int
    similarity: float
    classes: tuple[str, ...]
    same: bool


def search(
    asked: Classifier,
    data: Index,
    queries: Sequence[Picture],
    *,
    at: str = "",
    top: int = 10,
    batch_size: int = 64,
    workers: int = 2,
    decoders: Decoders | None = None,
    bad_query: Skipped | None = None,
    bad_picture: Skipped | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, list[Neighbour]]:
    """The `top` pictures of `data` nearest to each query by the cosine of their features, best first.

    at: a stage of the network, the last one by default. Exact: every picture is compared, a batch of them in memory at
    a time. Similarities are rounded to `DIGITS` decimals; ties go by key, then by place. Keys of the answer: places of
    the queries. bad_query, bad_picture: told of each that cannot be read, which is left out; without them the
    `BadInput` is raised. decoders: of the queries; `data` is taken as checked.
    """
    if top < 1:
        raise UsageError(f"top: expected at least 1, received {top}")
    at = at or _last_stage(asked)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    places, vectors = [], []
    for some, part in classifier.feature_batches(asked, queries, at, decoders=decoders, skipped=bad_query, **options):
        places += some
        vectors.append(_directions(part, "the pictures asked about"))
    if not places:
        return {}
    directions = torch.cat(vectors)
    best: list[list[tuple[float, str, int]]] = [[] for _ in places]
    for some, part in classifier.feature_batches(asked, data, at, skipped=bad_picture, **options):
        similarities = (directions @ _directions(part, data.keys[some[0]]).T).numpy().round(DIGITS)
        for mine, row in zip(best, similarities, strict=True):
            near = np.flatnonzero(row >= -mine[-1][0]) if len(mine) == top else range(len(row))
            # The order is total, so the same pictures win in whatever batches they come.
            mine += [(-float(row[j]), data.keys[some[j]], some[j]) for j in near]
            mine.sort()
            del mine[top:]
        if progress:
            progress(some[-1] + 1, len(data))

    def answer(place: int, found: list[tuple[float, str, int]]) -> list[Neighbour]:
        pixels: Tensor | None = None
        neighbours = []
        for negative, key, i in found:
            same = False
            if -negative > 1 - 1e-4:
                with contextlib.suppress(BadInput):  # it was readable a moment ago
                    if pixels is None:
                        pixels = classifier.read_picture(queries[place], f"picture {place}", decoders=decoders)
                    same = torch.equal(pixels, data.image(i))
            neighbours.append(Neighbour(key, i, -negative + 0.0, data.named(i), same))
        return neighbours

    return {place: answer(place, found) for place, found in zip(places, best, strict=True)}


def _last_stage(asked: Classifier) -> str:
    stages = getattr(asked, "stage_names", ())
    if not stages:
        raise UsageError(f"a {type(asked).__name__} has no stages to take features from")
    return stages[-1]


def _directions(features: Tensor, where: str) -> Tensor:
    """Vectors of length 1, float64 [B, D]; nought stays nought and is like nothing."""
    vectors = features.flatten(1).double()
    if not bool(torch.isfinite(vectors).all()):
        raise OpsinError(f"{where}: the features are NaN or infinite; the classifier's weights have diverged")
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def neighbours_page(
    data: Index, keys: Sequence[str], picture: Callable[[int], Tensor], found: Mapping[int, Sequence[Neighbour]]
) -> tuple[list[report.Group], str]:
    """Groups of a sheet, each query with what was found, and what is not shown, in words.

    keys: of the queries. picture: the place of a query → uint8 [c, h, w].
    """
    groups, room = list[report.Group](), MAX_SHOWN
    for place, neighbours in found.items():
        if room < 2:
            break
        some = neighbours[: room - 1]
        shown = _shown(keys[place], lambda place=place: picture(place), mark="asked")
        for one in some:
            text = f"{one.similarity:.3f} {', '.join(one.classes)}"
            shown += _shown_of(data, one.place, text, "the same picture" if one.same else "")
        note = "" if len(some) == len(neighbours) else f"{len(some):,} of {len(neighbours):,} are shown"
        groups.append(report.Group(keys[place], shown, note))
        room -= 1 + len(some)
    hidden = len(found) - len(groups)
    return groups, f" Not shown: {report.in_number(hidden, 'more picture')} that were asked about." if hidden else ""


def _shown_of(data: Index, i: int, text: str, mark: str = "") -> list[report.Shown]:
    return _shown(data.keys[i], lambda: data.image(i, (112, 112)), text, mark)


def _shown(name: str, read: Callable[[], Tensor], text: str = "", mark: str = "") -> list[report.Shown]:
    """A picture for a sheet; none where it cannot be read any more."""
    try:
        return [report.Shown(name, report.thumbnail(read()), text, mark)]
    except BadInput:
        return []


# ---------------------------------------------------------------------------------------------------------------------
# Group
# ---------------------------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """Where a picture belongs. label: its most probable class, or one that it has, of many; sure: False: set apart."""

    place: int
    label: int
    probability: float
    sure: bool


@dataclass(frozen=True)
class Album:
    """The pictures of `data` by predicted class. bad: those that could not be read."""

    data: Index
    classes: tuple[str, ...]
    placed: list[Placed]
    bad: list[BadInput]

    def groups(self) -> list[tuple[str, list[Placed]]]:
        """(class name, its pictures), only those that have any; the unsure ones last, named `UNSURE`."""
        members: dict[int, list[Placed]] = {}
        for one in self.placed:
            members.setdefault(one.label if one.sure else len(self.classes), []).append(one)
        names = (*self.classes, UNSURE)
        return [(names[k], members[k]) for k in sorted(members)]


def group(
    asked: Classifier,
    data: Index,
    *,
    sure: float | None = None,
    batch_size: int = 64,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Album:
    """Sort pictures by their most probable class; those whose probability is below `sure` (`SURE`) are set apart.

    Of a classifier for many labels a picture is in each class that reaches its threshold, and set apart where none
    does; `sure` is a `UsageError` then. `data` is taken as checked; what cannot be read even so is in `bad`.
    """
    least = classifier.thresholds(asked)
    if sure is not None and least is not None:
        raise UsageError("sure: this classifier is for many labels, and has a threshold for each class")
    sure = SURE if sure is None else sure
    if not 0 <= sure <= 1:
        raise UsageError(f"sure: expected a probability between 0 and 1, received {sure}")
    placed, bad = list[Placed](), list(data.skipped)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    batches = classifier.prepared_batches(asked, data, skipped=lambda _, error: bad.append(error), **options)
    for places, prepared in batches:
        rows = classifier.ask(asked, prepared, data.keys[places[0]])
        first = metrics.ranking(rows, 1)[:, 0].tolist()
        for place, row, k in zip(places, rows.tolist(), first, strict=True):
            has = [j for j, limit in enumerate(least) if row[j] >= limit] if least else [k] if row[k] >= sure else []
            placed += [Placed(place, j, row[j], True) for j in has] or [Placed(place, k, row[k], False)]
        if progress:
            progress(places[-1] + 1, len(data))
    return Album(data, asked.classes, placed, bad)


def write(
    album: Album,
    out: Path | str,
    *,
    link: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Write the album as the new folder `out`: a folder a class, `unsure/`, and `album.json`; class → its folder.

    Files are copied byte for byte (pictures of arrays, which have no files, as PNG). link: symbolic links instead, to
    absolute paths, so that the album may be moved; the pictures may not. `StorageError` when there is something at
    `out`; nothing is left behind when it fails.
    """
    if link:
        check_linkable(album.data)
    folders, done, listed = dict[str, str](), 0, []
    names = _Names((UNSURE, LISTING))
    with storage.new_folder(out) as root:
        for name, members in album.groups():
            unsure = not members[0].sure
            folder = UNSURE if unsure else names.take(safe_name(name))
            if not unsure:
                folders[name] = folder
            os.mkdir(root / folder)
            files = _Names()
            for one in members:
                path, row = "", {"picture": album.data.keys[one.place], **_named(album, one)}
                try:
                    data = b"" if link else _bytes(album.data.source, one.place)
                    stem, ending = _file_name(album.data, one.place, data)
                    path = f"{folder}/{files.take(stem, ending)}"
                    if link:
                        os.symlink(os.path.abspath(album.data.file(one.place)), root / path)
                    else:
                        with open(root / path, "xb") as file:
                            file.write(data)
                except BadInput as error:  # it was readable a moment ago
                    album.bad.append(error)
                listed.append({**row, "file": path})
                done += 1
                if progress:
                    progress(done, len(album.placed))
        text = json.dumps({"version": 1, "opsin": __version__, "pictures": listed, "unreadable": unreadable(album)})
        (root / LISTING).write_text(text, encoding="utf-8")
    return folders


def check_linkable(data: Index) -> None:
    """`UsageError` where some pictures are not files of their own: parts of an archive, or of an array."""
    for i in range(len(data)):
        if not data.file(i):
            raise UsageError(
                f"--link: {data.keys[i]} is not a file of its own, so there is nothing to link to; --copy it"
            )


def _named(album: Album, one: Placed) -> dict[str, Any]:
    return {"class": album.classes[one.label], "probability": round(one.probability, 6), "sure": one.sure}


def rows(album: Album) -> list[dict[str, Any]]:
    """picture, class, probability, sure: in the order of the data."""
    return [{"picture": album.data.keys[one.place], **_named(album, one)} for one in album.placed]


def unreadable(album: Album) -> list[dict[str, str]]:
    return [{"key": error.path, "reason": error.reason} for error in album.bad]


def album_page(album: Album) -> tuple[list[report.Group], str]:
    """Groups of a sheet, the most probable pictures of each class first (of the unsure ones the least), and what is not
    shown, in words."""
    groups = album.groups()
    shown = groups[: MAX_GROUPS - 1] + groups[-1:] if len(groups) > MAX_GROUPS else groups
    each = max(3, min(PER_GROUP, MAX_SHOWN // max(1, len(shown))))
    made = []
    for name, members in shown:
        unsure = not members[0].sure
        first = sorted(members, key=lambda one: (one.probability if unsure else -one.probability, one.place))[:each]
        pictures = []
        for one in first:
            text = f"{report.percent(one.probability, 1)}{f' {album.classes[one.label]}' if unsure else ''}"
            pictures += _shown_of(album.data, one.place, text)
        some = "" if len(first) == len(members) else f"; {len(first)} are shown"
        title = f"{UNSURE}, and what they are most like" if unsure else name
        made.append(report.Group(title, pictures, f"{report.in_number(len(members))}{some}"))
    return made, "" if len(shown) == len(groups) else f" Not shown: {len(groups) - len(shown):,} more classes."


# ---------------------------------------------------------------------------------------------------------------------
# Names and files of an album
# ---------------------------------------------------------------------------------------------------------------------


def safe_name(text: str) -> str:
    """`text` as a name that any file system takes, of at most `MAX_NAME` bytes, neither hidden nor a way out.

    >>> safe_name("../../x"), safe_name("CON"), safe_name("a\\nb "), safe_name("")
    ('_.._.._x', '_CON', 'a_b', '_')
    """
    text = "".join("_" if c in '<>:"/\\|?*' or not c.isprintable() else c for c in text).strip()
    text = text.encode()[:MAX_NAME].decode(errors="ignore").rstrip(". ")
    if not text or text.startswith((".", "~")) or text.split(".")[0].strip().lower() in RESERVED:
        text = f"_{text}"
    return text


class _Names:
    """Names of one folder, no two alike on any file system: those that collide get a number."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = {self._alike(name) for name in taken}
        self._last: Counter[str] = Counter()

    @staticmethod
    def _alike(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

    def take(self, stem: str, ending: str = "") -> str:
        name, wanted = f"{stem}{ending}", self._alike(f"{stem}{ending}")
        while self._alike(name) in self._taken:
            self._last[wanted] += 1
            name = f"{stem}-{self._last[wanted] + 1}{ending}"
        self._taken.add(self._alike(name))
        return name


def _bytes(source: Source, i: int) -> bytes:
    """The file of picture `i`; of an array, which has none, a PNG."""
    try:
        return source.data(i)
    except NotImplementedError:
        out, pixels = io.BytesIO(), source.image(i).permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
        return out.getvalue()


def _file_name(data: Index, i: int, content: bytes) -> tuple[str, str]:
    """(stem, ending) for picture `i`: its own where its name ends like a picture's, else one by its content."""
    stem, ending = os.path.splitext(os.path.basename(data.file(i) or data.keys[i]))
    if ending.lower() not in EXTENSIONS:
        kind = format_of(content).lower()
        stem, ending = f"{stem}{ending}", f".{kind}" if f".{kind}" in EXTENSIONS else ""
    return safe_name(stem), ending
