"""Stanford Dogs (Khosla et al. 2011): 120 breeds, pictures of ImageNet.

    Images/n02085620-Chihuahua/n02085620_10074.jpg
    train_list.mat, test_list.mat    file_list: cells of "FOLDER/FILE"; labels: 1 to 120. Here or in lists/

A class is called by its breed, the folder without the number of its synset.
"""

from __future__ import annotations

import os

import numpy as np

from opsin.data import matlab
from opsin.data.index import Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError

ARCHIVES = ("images.tar", "lists.tar")
LISTS = {"train": "train_list.mat", "test": "test_list.mat"}
FOLDERS = ("", "lists/")


def found(folder: str) -> bool:
    unpacked = any(
        all(os.path.isfile(os.path.join(folder, f, name)) for name in LISTS.values())
        and os.path.isdir(os.path.join(folder, "Images"))
        for f in FOLDERS
    )
    return unpacked or all(os.path.isfile(os.path.join(folder, name)) for name in ARCHIVES)


def read(folder: str, *, on_bad_image: str = "error") -> Parts:
    """train and test."""
    place = Place(folder, ARCHIVES)
    below = next((f for f in FOLDERS if all(place.has(f + name) for name in LISTS.values())), None)
    if below is None:
        raise DataError(f"{place}: no Stanford Dogs here: expected Images/ and {' and '.join(LISTS.values())}")
    folders: dict[int, str] = {}  # label → folder
    listed: dict[str, tuple[list[str], np.ndarray]] = {}
    for part, file in LISTS.items():
        name = place.label(below + file)
        data = place.read(below + file)
        files, labels = matlab.texts(data, name, "file_list"), matlab.integers(data, name, "labels")
        if len(files) != len(labels):
            raise BadInput(name, f"{len(labels):,} labels for {len(files):,} files")
        for path, label in zip(files, labels.tolist(), strict=True):
            if (known := folders.setdefault(label, path.partition("/")[0])) != path.partition("/")[0]:
                raise BadInput(name, f"{path!r:.200} has the label {label} of {known!r:.200}")
        listed[part] = files, labels
    numbers = sorted(folders)
    classes = [folders[label].partition("-")[2] or folders[label] for label in numbers]
    if len(set(folders.values())) < len(folders) or len(set(classes)) < len(classes):
        raise BadInput(place.label(below + LISTS["train"]), "two labels have the same folder or breed")
    listings = {
        part: Listing([f"Images/{file}" for file in files], np.searchsorted(numbers, labels), below + LISTS[part])
        for part, (files, labels) in listed.items()
    }
    return parts_of(place, listings, classes, on_bad_image)
