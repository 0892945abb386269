"""PASCAL VOC (Everingham et al. 2010), and any data set laid out like it: many labels a picture.

    ImageSets/Main/train.txt, val.txt, test.txt   which pictures are in which part (trainval.txt where train is not)
    Annotations/ID.xml                            the objects in each
    JPEGImages/ID.jpg

A class is there when one of its objects is not "difficult"; when all are, it counts neither way, as in the benchmark's
own evaluation. The lists CLASS_PART.txt in ImageSets/Main say the same once more (1, -1 and 0) and are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.parsers import expat

import numpy as np

from opsin.data.index import Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place, plain
from opsin.errors import BadInput, DataError

ARCHIVES = ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar")
PREFIXES = ("", "VOC{}/", "VOCdevkit/VOC{}/")
MAIN = "ImageSets/Main"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG")
MAX_XML = 4 << 20
MAX_OBJECTS = 10_000
MAX_DEPTH = 16
MAX_CLASSES = 10_000
MAX_CLASS = 200  # letters of a name


def found(folder: str) -> bool:
    """Whether a folder is laid out like this, or holds one such year."""
    try:
        place = _place(folder, "")
    except DataError:
        return True  # several: to be said when it is read
    return place is not None


def read(
    folder: str,
    *,
    on_bad_image: str = "error",
    year: str = "",
    classes: Sequence[str] = (),
    parts: Sequence[str] = ("train", "val", "test"),
) -> Parts:
    """The parts that are listed. year: of several. classes: by default those of the annotations, sorted by name."""
    place = _place(folder, year)
    if place is None:
        raise DataError(f"{folder}: no PASCAL VOC{year} here: expected Annotations, JPEGImages and {MAIN}")
    lists = {part: f"{MAIN}/{part}.txt" for part in parts}
    if not place.has(lists["train"]):
        lists = {"train": f"{MAIN}/trainval.txt", **{part: lists[part] for part in parts if part == "test"}}
    ids = {part: _ids(place, name) for part, name in lists.items() if place.has(name)}
    if not ids:
        raise DataError(f"{place}: no lists of pictures: expected {MAIN}/train.txt, val.txt and test.txt")
    bad: list[BadInput] = []
    objects = {part: _annotations(place, part, some, bad) for part, some in ids.items()}
    # The annotations of a test part may never have been published, as in 2012.
    notes = [f"no picture of the {part} part has an annotation; it is left out" for part in ids if not objects[part]]
    objects = {part: rows for part, rows in objects.items() if rows}
    names = set().union(*(row for rows in objects.values() for row in rows.values()))
    if classes and (others := sorted(names - set(classes))):
        raise DataError(f"{place}: objects of the class {others[0]!r}; expected {', '.join(classes)}")
    classes = tuple(classes) or tuple(sorted(names))
    if not 0 < len(classes) <= MAX_CLASSES:
        raise DataError(f"{place}: {len(classes):,} classes in the annotations; expected 1 to {MAX_CLASSES:,}")
    listings = {part: _listing(place, rows, classes, lists[part]) for part, rows in objects.items()}
    return parts_of(place, listings, classes, on_bad_image, bad, notes)


def _place(folder: str, year: str) -> Place | None:
    """The folder of the year, at `folder` or below; `DataError` when there are several and none is named."""
    root = Place(folder, [name for name in ARCHIVES if not year or f"-{year}." in name])
    years = (year,) if year else ("2007", "2008", "2009", "2010", "2011", "2012")
    prefixes = dict.fromkeys(prefix.format(of) for of in years for prefix in PREFIXES)
    places = [root.below(prefix) for prefix in prefixes]
    places = [place for place in places if place.has_folder(MAIN) and place.has_folder("JPEGImages")]
    if len(places) > 1:
        raise DataError(f"{folder}: several years: {', '.join(map(str, places))}; name one of these folders")
    return places[0] if places else None


def _ids(place: Place, name: str) -> list[str]:
    ids = []
    for line, (text,) in place.rows(name, 1):
        if not plain(text) or "/" in text:
            raise BadInput(place.label(name), f"line {line}: {text!r:.100} is no name of a picture")
        ids.append(text)
    return ids


def _listing(place: Place, rows: dict[str, dict[str, bool]], classes: Sequence[str], by: str) -> Listing:
    number = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(classes)), np.float32)
    for row, objects in zip(labels, rows.values(), strict=True):
        for name, sure in objects.items():
            row[number[name]] = 1 if sure else -1
    return Listing([_picture(place, i) for i in rows], labels, by)


def _picture(place: Place, i: str) -> str:
    names = [f"JPEGImages/{i}{extension}" for extension in EXTENSIONS]
    return next((name for name in names if not place.lacks(name)), names[0])


# ---------------------------------------------------------------------------------------------------------------------
# What is in the pictures: id → class → whether an object of it is not "difficult"
# ---------------------------------------------------------------------------------------------------------------------


def _annotations(place: Place, part: str, ids: Sequence[str], bad: list[BadInput]) -> dict[str, dict[str, bool]]:
    rows: dict[str, dict[str, bool]] = {}
    lacking = {i: reason for i in ids if (reason := place.lacks(f"Annotations/{i}.xml"))}
    if part != "test" or len(lacking) < len(set(ids)):
        bad += [place.listed_but(f"Annotations/{i}.xml", reason) for i, reason in lacking.items()]
    for i in ids:
        if i in rows:
            raise BadInput(place.label(f"{MAIN}/{part}.txt"), f"lists {i} twice")
        if i in lacking:
            continue
        name, objects = f"Annotations/{i}.xml", rows.setdefault(i, {})
        for kind, difficult in parse(place.read(name, MAX_XML), place.label(name)):
            objects[kind] = objects.get(kind, False) or not difficult
    return rows


def parse(data: bytes, name: str) -> list[tuple[str, bool]]:
    """(class, difficult) of each object of an annotation. `BadInput` with `name` for anything else, and for a DOCTYPE:
    it could declare entities, which grow without end or read other files."""
    parser = expat.ParserCreate()
    objects: list[tuple[str, bool]] = []
    path: list[str] = []
    texts: dict[str, str] = {}  # of the object that is open

    def start(tag: str, _: dict[str, str]) -> None:
        path.append(tag)
        if path[0] != "annotation":
            raise ValueError(f"its root is {tag[:40]!r}, not annotation")
        if len(path) > MAX_DEPTH or len(objects) >= MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS:,} objects, or more than {MAX_DEPTH} elements in each other")
        if path == ["annotation", "object"]:
            texts.clear()

    def text(some: str) -> None:
        if len(path) == 3 and path[1] == "object" and path[2] in ("name", "difficult"):
            texts[path[2]] = texts.get(path[2], "") + some

    def end(_: str) -> None:
        if path == ["annotation", "object"]:
            kind, difficult = texts.get("name", "").strip(), texts.get("difficult", "0").strip()
            if not 0 < len(kind) <= MAX_CLASS:
                raise ValueError(f"an object without a name, or with one of more than {MAX_CLASS} letters")
            if difficult not in ("0", "1"):
                raise ValueError(f"difficult: expected 0 or 1, received {difficult!r:.40}")
            objects.append((kind, difficult == "1"))
        path.pop()

    def doctype(*_: object) -> None:
        raise ValueError("it has a DOCTYPE, which no annotation needs")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: of its encoding
        raise BadInput(name, f"not the XML of an annotation: {error}") from error
    return objects
