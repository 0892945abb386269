"""COCO (Lin et al. 2014), and any data set laid out like it: many labels a picture.

    annotations/instances_NAME.json    pictures, categories, and an annotation for each object
    NAME/FILE or images/NAME/FILE      the pictures; NAME is train2017, val2017, or the like

A category is there when an annotation of it is; one of a crowd counts, since the crowd is of that category. Pictures
without any annotation are kept, with no labels. Categories are in the order of their ids.

Only the ids and names of the JSON are kept while it is read, so that it takes about three times its size in memory at
most; that of train2017 has 448 MB.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from opsin import storage
from opsin.data.index import SPLIT_FOLDERS, Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError, StorageError

MAX_JSON = 1 << 30
MAX_IMAGES, MAX_ANNOTATIONS, MAX_CATEGORIES = 2_000_000, 20_000_000, 10_000
MAX_LABELS = 1 << 28  # pictures × categories
MAX_NAME = 200
KEYS = frozenset({"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"})
START, END = "instances_", ".json"


def found(folder: str) -> bool:
    return bool(_files(folder))


def read(folder: str, *, on_bad_image: str = "error") -> Parts:
    """A part for each file of instances, by the beginning of its name: train, val or test."""
    place, files = Place(folder), _files(folder)
    parts: dict[str, str] = {}
    for file in files:
        part = SPLIT_FOLDERS.get(_name(file).rstrip("0123456789_-").lower())
        if part is None or part in parts:
            also = f"; {parts[part]} is of the same part" if part else ""
            raise DataError(
                f"{place}: annotations/{file}: expected one file for each of train, val and test, "
                f"as instances_train2017.json{also}"
            )
        parts[part] = file
    if not parts:
        zips = sorted(name for name in os.listdir(folder) if name.endswith(".zip")) if os.path.isdir(folder) else []
        way = f"; unzip {', '.join(zips[:4])} there: what is in a zip is not read" if zips else ""
        raise DataError(f"{place}: no COCO here: expected annotations/instances_train2017.json or the like{way}")
    listings: dict[str, Listing] = {}
    classes: tuple[str, ...] = ()
    for part, file in parts.items():
        by = f"annotations/{file}"
        names, labels, categories = parse(place.read(by, MAX_JSON), place.label(by))
        if classes and categories != classes:
            raise BadInput(place.label(by), f"its categories are not those of annotations/{next(iter(parts.values()))}")
        classes = categories
        below = next((f for f in (_name(file), f"images/{_name(file)}") if place.has_folder(f)), _name(file))
        listings[part] = Listing([f"{below}/{name}" for name in names], labels, by)
    return parts_of(place, listings, classes, on_bad_image)


def _files(folder: str) -> list[str]:
    """The files of instances, sorted by name."""
    try:
        names = os.listdir(os.path.join(folder, "annotations"))
    except OSError:
        return []
    return sorted(name for name in names if name.startswith(START) and name.endswith(END))


def _name(file: str) -> str:
    return file.removeprefix(START).removesuffix(END)


def parse(data: bytes, name: str) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """The file names of the pictures, their labels float32 [N, K], and the categories. `BadInput` with `name` for what
    is no such JSON."""
    try:
        document = storage.read_json(data, name, MAX_JSON, keep=KEYS)
    except StorageError as error:
        raise BadInput(name, str(error).removeprefix(f"{name}: ")) from error
    del data
    document = document if isinstance(document, dict) else {}
    images = _rows(document, "images", MAX_IMAGES, {"id": int, "file_name": str}, name)
    categories = _rows(document, "categories", MAX_CATEGORIES, {"id": int, "name": str}, name)
    annotations = _rows(document, "annotations", MAX_ANNOTATIONS, {"image_id": int, "category_id": int}, name)
    categories.sort(key=lambda row: row["id"])
    classes = tuple(row["name"].strip() for row in categories)
    if not all(0 < len(kind) <= MAX_NAME and kind.isprintable() for kind in classes):
        raise BadInput(name, f"categories: expected names of 1 to {MAX_NAME} letters")
    if len(set(classes)) < len(classes):
        raise BadInput(name, "categories: two have the same name")
    if not classes or len(images) * len(classes) > MAX_LABELS:
        raise BadInput(name, f"{len(images):,} pictures in {len(classes):,} categories; at most {MAX_LABELS:,} labels")
    row_of, column_of = (_places(rows, what, name) for rows, what in ((images, "images"), (categories, "categories")))
    labels = np.zeros((len(images), len(classes)), np.float32)
    for annotation in annotations:
        row, column = row_of.get(annotation["image_id"]), column_of.get(annotation["category_id"])
        if row is None or column is None:
            raise BadInput(name, f"annotations: {annotation} is of a picture or category that is not listed")
        labels[row, column] = 1
    return [image["file_name"] for image in images], labels, classes


def _rows(document: dict[str, Any], key: str, most: int, fields: dict[str, type], name: str) -> list[dict[str, Any]]:
    rows = document.get(key)
    if not isinstance(rows, list) or len(rows) > most:
        raise BadInput(name, f"expected {key}, a list of at most {most:,} objects")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or any(type(row.get(field)) is not kind for field, kind in fields.items()):
            wanted = " and ".join(f"{field} ({kind.__name__})" for field, kind in fields.items())
            raise BadInput(name, f"{key}[{i}]: expected an object with {wanted}, received {row!r:.100}")
    return rows


def _places(rows: list[dict[str, Any]], key: str, name: str) -> dict[int, int]:
    places = {row["id"]: i for i, row in enumerate(rows)}
    if len(places) < len(rows):
        raise BadInput(name, f"{key}: two have the same id")
    return places
