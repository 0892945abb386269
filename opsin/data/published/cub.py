"""CUB-200-2011 (Wah et al. 2011): 200 kinds of birds.

images.txt                "ID CLASS_FOLDER/FILE" of each picture in images/
classes.txt               "CLASS NAME"; the name is that of the folder
image_class_labels.txt    "ID CLASS"; where it is not there, the folder says it
train_test_split.txt      "ID 1" for training, "ID 0" for testing
bounding_boxes.txt        "ID X Y WIDTH HEIGHT" in pixels

All of it may lie in CUB_200_2011.tar, which is read in place. The published .tgz unpacks to more than is held in memory
(`opsin.data.tar`); gunzip makes the .tar of it.
"""

from __future__ import annotations

import math
import os

import numpy as np

from opsin.data.index import Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place
from opsin.errors import Absent, BadInput, DataError

IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLIT, BOXES = "train_test_split.txt", "bounding_boxes.txt"
FOLDERS = ("", "CUB_200_2011/")
ARCHIVE, PACKED = "CUB_200_2011.tar", "CUB_200_2011.tgz"


def _place(folder: str) -> Place | None:
    root = Place(folder, (ARCHIVE,))
    places = [root.below(prefix) for prefix in FOLDERS]
    wanted = (IMAGES, CLASSES, SPLIT)
    return next((p for p in places if p.has_folder("images") and all(map(p.has, wanted))), None)


def found(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, PACKED)) or _place(folder) is not None


def read(folder: str, *, on_bad_image: str = "error", boxes: bool = False) -> Parts:
    """train and test. boxes: of each picture only its bird's box."""
    place = _place(folder)
    if place is None:
        packed = os.path.isfile(os.path.join(folder, PACKED))
        way = f"; gunzip {PACKED}: the {ARCHIVE} that it becomes is read as it is; or unpack it" if packed else ""
        raise DataError(
            f"{folder}: no CUB-200-2011 here: expected {IMAGES}, {CLASSES}, {SPLIT} and images/, or {ARCHIVE}{way}"
        )
    images = {i: name for i, (name,) in place.table(IMAGES, 2).items()}
    names = {i: name for i, (name,) in place.table(CLASSES, 2).items()}
    if len(set(names.values())) < len(names):
        raise BadInput(place.label(CLASSES), "two classes have the same name")
    number = {i: k for k, i in enumerate(names)}
    bad: list[BadInput] = []
    parts = _of_images(place, SPLIT, 2, images, bad)
    labels = _labels(place, images, names, bad)
    rectangles = _of_images(place, BOXES, 5, images, bad) if boxes else {}
    listings = {}
    for part, flag in (("train", "1"), ("test", "0")):
        ids = [i for i in images if parts[i] == [flag]]
        listings[part] = Listing(
            [f"images/{images[i]}" for i in ids],
            np.array([number[labels[i]] for i in ids], dtype=np.int64),
            IMAGES,
            np.array([_box(place, i, rectangles[i]) for i in ids]).reshape(-1, 4) if boxes else None,
        )
    others = sum(parts[i] not in (["0"], ["1"]) for i in images)
    if others:
        raise BadInput(place.label(SPLIT), f"expected 1 or 0 for each picture, received other things for {others:,}")
    return parts_of(place, listings, tuple(names.values()), on_bad_image, bad)


def _of_images(place: Place, name: str, columns: int, images: dict[int, str], bad: list[BadInput]) -> dict:
    """What a file says of each picture; what it says of others is `bad`."""
    table = place.table(name, columns)
    if lacking := [i for i in images if i not in table]:
        raise BadInput(place.label(name), f"says nothing of {len(lacking):,} pictures; the first: number {lacking[0]}")
    bad += [Absent(place.label(name), f"picture {i} is not in {IMAGES}") for i in table if i not in images]
    return table


def _labels(place: Place, images: dict[int, str], names: dict[int, str], bad: list[BadInput]) -> dict[int, int]:
    """Picture → number of its class."""
    if place.has(LABELS):
        by = place.label(LABELS)
        fields = {i: field for i, (field,) in _of_images(place, LABELS, 2, images, bad).items()}
        labels = {i: place.number(LABELS, i, fields[i]) for i in images}
    else:
        by, known = place.label(CLASSES), {name: i for i, name in names.items()}
        labels = {i: known.get(name.partition("/")[0], -1) for i, name in images.items()}
    if unknown := [images[i] for i in images if labels[i] not in names]:
        raise BadInput(by, f"{len(unknown):,} pictures are of a class that {CLASSES} lacks; the first: {unknown[0]}")
    return labels


def _box(place: Place, i: int, fields: list[str]) -> list[float]:
    try:
        box = [float(field) for field in fields]
    except ValueError:
        box = []
    if not box or not all(math.isfinite(x) and abs(x) < 1e6 for x in box) or min(box[2:]) <= 0:
        raise BadInput(place.label(BOXES), f"picture {i}: expected x, y, width and height, received {fields}")
    return box
