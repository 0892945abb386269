"""Samples of real data sets, in the folder that OPSIN_SAMPLES names: each loads, counts and shows, and what is odd
about it has a test. Without that folder nothing here runs; no picture of it is part of the project."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin import cli
from opsin.data import matlab
from opsin.data.datasets import load, scan_parts
from opsin.data.index import WHOLE
from opsin.data.published import flowers, imagenet
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError
from opsin.v2.graph import ParameterConf
from opsin.v2.parameters import Parameters

SAMPLES = os.environ.get("OPSIN_SAMPLES")  # read here: no test sees the person's settings


@pytest.fixture
def samples() -> Path:
    if not SAMPLES:
        pytest.skip("OPSIN_SAMPLES names no folder")
    return Path(SAMPLES)


@pytest.mark.parametrize(
    ("name", "shown", "checked", "code"),
    [
        ("captcha33", "33 classes 5,784", "looked at 5,784 pictures: PNG 5,784", 0),
        ("bccd_voc", "3 classes 205 87 72", "looked at 364 pictures: JPEG 364", 0),
        ("coco_tiny", "80 classes 50", "looked at 50 pictures: JPEG 50", 0),
        ("cub_sample", "8 classes 66 46", "looked at 112 pictures: JPEG 112", 3),
        ("pets_sample", "3 classes 71 2", "looked at 73 pictures: JPEG 72, PNG 1", 3),
    ],
)
def test_each_loads_counts_and_shows(name, shown, checked, code, samples, capsys):
    assert cli.call(["data", "show", str(samples / name)]) == 0
    assert shown in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert cli.call(["data", "check", str(samples / name), "--quiet"]) == code
    out = capsys.readouterr().out
    assert checked in " ".join(out.split()) and len(out.splitlines()) <= 4


def test_cifar10_unpacks_to_the_published_files(samples, tmp_path):
    subprocess.run([sys.executable, samples / "prepare.py", tmp_path], check=True, capture_output=True, timeout=300)
    splits = load("cifar10", data_dir=tmp_path)  # which compares their MD5s
    assert {name: len(index) for name, index in splits.items()} == {"train": 50000, "test": 10000}


def test_mnist_is_gzipped_as_published(samples):
    splits = load("mnist", data_dir=samples / "mnist")
    assert {name: len(index) for name, index in splits.items()} == {"train": 60000, "test": 10000}


def test_captcha_pictures_are_palette_pngs_of_36_by_36(samples):
    whole = scan_parts(samples / "captcha33")[WHOLE]
    counts = whole.counts()
    assert len(whole.classes) == 33 and counts.sum() == 5784 and (counts.min(), counts.max()) == (129, 248)
    pictures = [Image.open(io.BytesIO(whole.source.data(i))) for i in range(0, len(whole), 50)]
    assert {(picture.mode, picture.size) for picture in pictures} == {("P", (36, 36))}
    assert whole.image(0).shape[1:] == (36, 36)


def test_bccd_has_platelets_in_201_of_364_and_the_other_cells_in_nearly_all(samples):
    parts = scan_parts(samples / "bccd_voc")
    counts = sum(part.counts() for part in parts.values())
    assert dict(zip(parts["train"].classes, counts, strict=True)) == {"Platelets": 201, "RBC": 349, "WBC": 358}
    assert sum(map(len, parts.values())) == 364 and all(part.many_labels for part in parts.values())


def test_coco_sample_has_two_pictures_without_object(samples):
    """The README of the samples says one."""
    val = scan_parts(samples / "coco_tiny")["val"]
    assert len(val) == 50 and len(val.classes) == 80
    empty = [key for key, none in zip(val.keys, (val.labels == 0).all(1), strict=True) if none]
    assert sorted(empty) == ["val2017/000000058636.jpg", "val2017/000000226111.jpg"]


def test_cub_sample_lists_pictures_that_are_not_here_and_splits_ten_that_it_does_not_list(samples):
    folder = samples / "cub_sample"
    with pytest.raises(BadInput, match=r"images/.*: No such file or directory, but it is listed; in all .* rows of"):
        scan_parts(folder)
    assert not (folder / "image_class_labels.txt").exists()
    parts = scan_parts(folder, on_bad_image="skip")
    train = parts["train"]
    assert sum("is not in images.txt" in bad.reason for bad in train.skipped) == 10
    assert len(train.classes) == 8 and sum(part.counts() for part in parts.values()).tolist() == [14] * 8
    assert any("42 of 50 classes" in note for note in train.notes)
    boxes = load("cub200-boxes", data_dir=folder, on_bad_image="skip")["train"]
    assert list(boxes.keys) == list(train.keys)
    assert all(b < w for b, w in zip(boxes.image(0).shape[1:], train.image(0).shape[1:], strict=True))


def test_pets_sample_has_three_breeds_and_other_formats_called_jpg(samples):
    parts = scan_parts(samples / "pets_sample", on_bad_image="skip")
    assert parts["train"].classes == ("Abyssinian", "american_bulldog", "Bengal")
    data = {key: index.source.data(i) for index in parts.values() for i, key in enumerate(index.keys)}
    assert Counter(Image.open(io.BytesIO(some)).format for some in data.values()) == {"JPEG": 72, "PNG": 1}
    assert Image.open(io.BytesIO(data["images/Abyssinian_5.jpg"])).mode == "RGBA"
    gif = "images/Abyssinian_34.jpg"  # the one GIF is in neither list, as published
    assert (samples / "pets_sample" / gif).read_bytes().startswith(b"GIF8") and gif not in data
    assert all(index.image(i).shape[0] in (1, 3) for index in parts.values() for i in range(len(index)))


# Pictures → flowers, as the publisher's page of categories has them, quoted in tensorflow/datasets #1641 and
# pytorch/vision #8838.
COUNTS = {
    40: "prince of wales feathers, moon orchid, bolero deep blue, fire lily, pink primrose, canterbury bells, "
    "mexican aster",
    41: "toad lily, grape hyacinth, siam tulip, corn poppy, globe-flower",
    42: "red ginger, spring crocus",
    43: "alpine sea holly",
    45: "globe thistle, garden phlox, tiger lily",
    46: "ball moss",
    48: "blackberry lily",
    49: "balloon flower, blanket flower",
    54: "bearded iris, black-eyed susan",
    66: "bee balm",
    78: "artichoke",
    85: "bird of paradise",
    96: "azalea",
    105: "anthurium",
    109: "bishop of llandaff",
    127: "barbeton daisy",
}


def test_flowers_names_have_as_many_pictures_as_the_publisher_says(samples):
    file = samples / "flowers102_labels/imagelabels.mat"
    numbers = matlab.integers(file.read_bytes(), str(file), "labels")
    counts = dict(zip(flowers.CLASSES, np.bincount(numbers - 1, minlength=102).tolist(), strict=True))
    assert len(numbers) == 8189 and min(counts.values()) == 40 and max(counts.values()) == 258
    assert {name: counts[name] for names in COUNTS.values() for name in names.split(", ")} == {
        name: count for count, names in COUNTS.items() for name in names.split(", ")
    }


def test_flowers_labels_list_1020_1020_and_6149_pictures_that_are_not_here(samples):
    with pytest.raises(DataError, match="train 1,020, val 1,020, test 6,149"):
        scan_parts(samples / "flowers102_labels")


def test_a_thousand_synsets_have_as_many_names(samples):
    folder = samples / "imagenet_synsets"
    index = json.loads((folder / "imagenet_class_index.json").read_text())
    synsets = [index[str(i)][0] for i in range(1000)]
    names, notes = imagenet._words(Place(folder), synsets)
    assert synsets == sorted(synsets) and len(set(names.values())) == 1000 and not notes
    assert [name for name in names.values() if "(" in name] == [
        "crane (n02012849)",
        "crane (n03126707)",
        "maillot (n03710637)",
        "maillot (n03710721)",
    ]


def test_published_weights_have_a_prefix_and_are_below_a_key(samples, tmp_path, capsys):
    file = samples / "weights/resnet20-12fca82f.th"
    words = ["--model", "resnet20", "--preprocess", "imagenet", "--classes", "cifar10", "-o", str(tmp_path / "r")]
    assert cli.call(["import", str(file), *words]) == 0
    assert (tmp_path / "r" / "weights.safetensors").is_file()


def test_parameters_of_paddle_in_a_tar_and_one_in_a_file(samples):
    data = (samples / "paddle_v2/fit_a_line.tar").read_bytes()
    parameters = Parameters.from_tar(io.BytesIO(data))
    assert {name: parameters[name].size for name in parameters} == {
        "___fc_layer_0__.w0": 13,
        "___fc_layer_0__.wbias": 1,
    }
    for name in ("transtable", "wordvec"):
        alone = Parameters()
        alone.append(ParameterConf(name=name, size=25))
        with open(samples / "paddle_v2/per_parameter_files" / name, "rb") as file:
            alone.deserialize(name, file)
        assert alone.get(name).size == 25
