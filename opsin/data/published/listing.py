"""From what a publisher lists to the parts of a data set: names checked, absent pictures left out or said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opsin.data.index import BoxSource, Index, Parts
from opsin.data.published.place import Place, plain
from opsin.errors import BadInput, DataError

HINT = "to go on without them: --on-bad-image skip"


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of one part. names: below the place. labels: int64 [N] or float32 [N, K]. by: the file that lists
    them. boxes: float64 [N, 4], the only part of each that counts."""

    names: Sequence[str]
    labels: np.ndarray
    by: str
    boxes: np.ndarray | None = None


def parts_of(
    place: Place,
    listings: Mapping[str, Listing],
    classes: Sequence[str],
    on_bad_image: str,
    bad: Sequence[BadInput] = (),
    notes: Sequence[str] = (),
) -> Parts:
    """The parts of these listings, in their order. bad: rows that name no picture at all. notes: to be said as well.

    Raises `BadInput` for a name that leads out of its folder, or is listed twice; and for pictures that are not there,
    unless on_bad_image is "skip": then they are in `skipped`, parts and classes that lose all their pictures are left
    out, and `notes` says so.
    """
    lost, kept = list[BadInput](), dict[str, np.ndarray]()
    seen: dict[str, str] = {}
    for part, listing in listings.items():
        here = []
        for i, name in enumerate(listing.names):
            if not plain(name):
                raise BadInput(place.label(listing.by), f"lists {name!r:.200}; expected a file below its folder")
            if name in seen:
                also = "" if seen[name] == listing.by else f", which {seen[name]} lists too"
                raise BadInput(place.label(listing.by), f"lists {name} {'in another part' if also else 'twice'}{also}")
            seen[name] = listing.by
            if reason := place.lacks(name):
                lost.append(place.listed_but(name, reason))
            else:
                here.append(i)
        kept[part] = np.array(here, dtype=np.int64)
    lost += bad
    listed = ", ".join(f"{part} {len(listing.names):,}" for part, listing in listings.items())
    if not any(map(len, kept.values())):
        first = f"; the first: {lost[0]}" if lost else ""
        raise DataError(f"{place}: none of the pictures that are listed ({listed}) is here{first}")
    if lost and on_bad_image != "skip":
        many = f"; in all {len(lost):,} rows of {len(seen) + len(bad):,} cannot be used" if len(lost) > 1 else ""
        raise BadInput(lost[0].path, f"{lost[0].reason}, but it is listed{many}; {HINT}")
    whole = {
        part: Index(listing.names, listing.labels, tuple(classes), place.source([]))
        for part, listing in listings.items()
    }
    parts = {part: _part(place, listings[part], index, kept[part]) for part, index in whole.items() if len(kept[part])}
    said = [*notes, *(f"no picture of the {part} part is here" for part in whole if part not in parts)]
    parts, gone = _without_lost_classes(whole, parts)
    if gone:
        shown = ", ".join(gone[:3]) + (" …" if len(gone) > 3 else "")
        said.append(f"{len(gone):,} of {len(classes):,} classes have no picture here and are left out: {shown}")
    first = next(iter(parts))
    parts[first] = replace(parts[first], skipped=tuple(lost), notes=tuple(f"{place}: {note}" for note in said))
    return parts


def _part(place: Place, listing: Listing, index: Index, kept: np.ndarray) -> Index:
    names: list[str] = [listing.names[i] for i in map(int, kept)]
    source = place.source(names)
    if listing.boxes is not None:
        source = BoxSource(source, listing.boxes[kept])
    return replace(index, keys=names, labels=index.labels[kept], source=source)


def _without_lost_classes(whole: Parts, parts: Parts) -> tuple[Parts, list[str]]:
    """The parts without the classes of which pictures are listed, but none is left; and the names of these."""
    first = next(iter(whole.values()))
    listed = sum((index.counts() for index in whole.values()), np.zeros(len(first.classes), np.int64))
    left = sum((index.counts() for index in parts.values()), np.zeros(len(first.classes), np.int64))
    keep = (listed == 0) | (left > 0)
    if keep.all():
        return parts, []
    classes = tuple(name for name, kept in zip(first.classes, keep, strict=True) if kept)
    places = np.cumsum(keep) - 1
    parts = {
        part: replace(
            index, classes=classes, labels=index.labels[:, keep] if index.many_labels else places[index.labels]
        )
        for part, index in parts.items()
    }
    return parts, [name for name, kept in zip(first.classes, keep, strict=True) if not kept]
