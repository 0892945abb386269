"""Data sets of photographs as published: what each reader gives, and what it refuses."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsin import cli
from opsin.data import published
from opsin.data.datasets import DATASETS, cache_folder, load, scan_parts
from opsin.data.published import voc
from opsin.errors import BadInput, DataError, UsageError
from tests import make

SETS = {"PASCAL VOC": make.voc, "COCO": make.coco, "CUB-200-2011": make.cub, "Stanford Dogs": make.dogs}
SETS |= {"Oxford-IIIT Pet": make.pets, "Oxford Flowers-102": make.flowers}
LISTS = {
    "PASCAL VOC": ("Annotations/b.xml", "ImageSets/Main/train.txt"),
    "COCO": ("annotations/instances_val2017.json",),
    "CUB-200-2011": ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"),
    "Stanford Dogs": ("train_list.mat",),
    "Oxford-IIIT Pet": ("annotations/trainval.txt",),
    "Oxford Flowers-102": ("imagelabels.mat", "setid.mat"),
}


def labels(parts):
    return {part: index.labels.tolist() for part, index in parts.items()}


@pytest.mark.parametrize("title", SETS)
def test_a_folder_is_recognised_and_its_pictures_decode(title, tmp_path):
    folder = make.write(tmp_path, SETS[title]())
    layout = published.layout(str(folder))
    assert layout is not None and layout.title == title
    for index in scan_parts(folder).values():
        assert len(index) and all(index.image(i).ndim == 3 for i in range(len(index)))


def _published(title):
    """The files of a set in the archives that are published of it, or what gunzip makes of them."""
    files = SETS[title]()

    def tar(folder, *beginnings):
        return make.tar_of({folder + name: data for name, data in files.items() if name.startswith(beginnings)})

    if title == "PASCAL VOC":
        tests = {name: data for name, data in files.items() if "test" in name or "/c." in name}
        train = {f"VOCdevkit/VOC2007/{name}": data for name, data in files.items() if name not in tests}
        tests = {f"VOCdevkit/VOC2007/{name}": data for name, data in tests.items()}
        names = ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar")
        return dict(zip(names, map(make.tar_of, (train, tests)), strict=True))
    if title == "CUB-200-2011":
        return {"CUB_200_2011.tar": tar("CUB_200_2011/", "")}
    if title == "Stanford Dogs":
        return {"images.tar": tar("", "Images/"), "lists.tar": tar("", "train_list", "test_list")}
    if title == "Oxford-IIIT Pet":
        packed = {f"{name}.tar.gz": tar("", f"{name}/") for name in ("images", "annotations")}
        return {name: gzip.compress(data) for name, data in packed.items()}
    return files  # of Flowers, as it is made


@pytest.mark.parametrize("title", [title for title in SETS if title != "COCO"])
def test_published_archives_are_read_in_place(title, tmp_path):
    packed = _published(title)
    folder = make.write(tmp_path / "packed", packed)
    whole = SETS[title]()
    if "102flowers.tgz" in whole:
        with tarfile.open(fileobj=io.BytesIO(whole.pop("102flowers.tgz"))) as tar:
            whole |= {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    expected = scan_parts(make.write(tmp_path / "unpacked", whole))
    layout = published.layout(str(folder))
    assert layout is not None and layout.title == title
    parts = scan_parts(folder)
    assert labels(parts) == labels(expected) and sorted(os.listdir(folder)) == sorted(packed)
    for part, index in parts.items():
        assert index.classes == expected[part].classes and list(index.keys) == list(expected[part].keys)
        assert [index.source.data(i) for i in range(len(index))] == [
            expected[part].source.data(i) for i in range(len(index))
        ]
    archive = next(name for name in packed if name.startswith(("VOCtest", "CUB", "images", "102")))
    if title == "CUB-200-2011":  # it is the .tgz that is published
        (folder / (archive := "CUB_200_2011.tgz")).write_bytes(b"")
    with pytest.raises(UsageError, match=f"an archive of {title}; expected the folder that it lies in: {folder}"):
        scan_parts(folder / archive)


def test_archives_that_must_be_unpacked_are_named(tmp_path):
    for name, data_set, way in (
        (
            "CUB_200_2011.tgz",
            "cub200",
            "gunzip CUB_200_2011.tgz: the CUB_200_2011.tar that it becomes is read as it is",
        ),
        ("annotations_trainval2017.zip", "coco2017", "unzip annotations_trainval2017.zip there"),
    ):
        folder = make.write(tmp_path / data_set, {name: b"x"})
        with pytest.raises(DataError, match=f"{way}.*opsin data show {data_set}"):
            load(data_set, data_dir=folder)
    with pytest.raises(DataError, match=r"gunzip CUB_200_2011\.tgz"):
        scan_parts(tmp_path / "cub200")


def test_voc_difficult_objects_count_neither_way(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "kit/VOCdevkit/VOC2007"):
        make.write(folder, make.voc())
    for folder in (tmp_path / "one", tmp_path / "kit", tmp_path / "kit/VOCdevkit"):
        parts = scan_parts(folder)
        assert parts["train"].classes == ("cat", "dog")
        assert labels(parts) == {"train": [[0, 1], [-1, 1]], "test": [[1, 0]]}


def test_coco_crowds_count_and_pictures_of_nothing_are_kept(tmp_path):
    val = scan_parts(make.write(tmp_path, make.coco()))["val"]
    assert val.classes == ("person", "cat") and val.labels.dtype == np.float32
    assert val.labels.tolist() == [[0, 1], [1, 0], [0, 0]]


def test_cub_with_and_without_its_labels_and_boxes(tmp_path):
    folder = make.write(tmp_path, make.cub())
    parts = scan_parts(folder)
    assert labels(parts) == {"train": [0, 1], "test": [0, 1]}
    assert tuple(parts["train"].image(0).shape) == (3, 24, 32)
    boxes = published.READERS["cub200-boxes"](str(folder))["train"]
    assert tuple(boxes.image(1).shape) == (3, 6, 10)
    assert (boxes.image(1) == parts["train"].image(1)[:, 2:8, 4:14]).all()
    (folder / "image_class_labels.txt").unlink()
    assert labels(scan_parts(folder)) == labels(parts)


def test_dogs_and_pets_are_called_by_their_breeds(tmp_path):
    dogs, pets = (scan_parts(make.write(tmp_path / f.__name__, f())) for f in (make.dogs, make.pets))
    assert dogs["train"].classes == ("Pug", "Toy-Poodle") and labels(dogs) == {"train": [0, 1], "test": [0, 1]}
    assert pets["train"].classes == ("ab_c", "Bengal") and labels(pets) == {"train": [1, 0], "test": [1, 0]}


def test_flowers_swapped_trains_on_the_published_test_part(tmp_path):
    folder = str(make.write(tmp_path, make.flowers(9)))
    official, swapped = (published.READERS[name](folder) for name in ("flowers102", "flowers102-swapped"))
    assert labels(official) == {"train": [19, 49, 79], "val": [29, 59, 89], "test": [9, 39, 69]}
    assert labels(swapped) == {"train": [9, 39, 69], "val": [29, 59, 89], "test": [19, 49, 79]}


def test_absent_pictures_are_an_error_or_left_out(tmp_path):
    folder = make.write(tmp_path, make.cub())
    for name in ("Wren_1", "Wren_2"):
        (folder / f"images/002.Wren/{name}.jpg").unlink()
    with pytest.raises(BadInput, match="2 rows of 4 cannot be used; to go on without them: --on-bad-image skip"):
        scan_parts(folder)
    parts = scan_parts(folder, on_bad_image="skip")
    assert parts["train"].classes == ("001.Auk",) and len(parts["train"].skipped) == 2
    assert any("1 of 2 classes have no picture here" in note for note in parts["train"].notes)
    with pytest.raises(BadInput, match="2 rows of 4 cannot be used; to go on without them: --on-bad-image skip"):
        load("cub200", data_dir=folder)


def test_a_part_of_a_named_set_or_of_its_variant_is_read_only_when_asked(tmp_path):
    folder = make.write(tmp_path, make.cub())
    with pytest.raises(DataError, match=r"not the whole of cub200-boxes.*found train 2, test 2; .*--on-bad-image skip"):
        load("cub200-boxes", data_dir=folder)
    (folder / "images/001.Auk/Auk_2.jpg").unlink()
    (folder / "images/002.Wren/Wren_2.jpg").write_bytes(make.encode(make.gradient(30, 40), "JPEG"))
    parts = load("cub200-boxes", data_dir=folder, on_bad_image="skip")
    assert {part: len(index) for part, index in parts.items()} == {"train": 2, "test": 1}
    assert all(index.image(0).shape == (3, 6, 10) for index in parts.values())
    assert parts["train"].notes[0].startswith("a part of CUB-200-2011, birds cut out: train 2, test 1 pictures of ")
    assert cache_folder("cub200-boxes") == cache_folder("cub200")
    make.write(tmp_path / "f", make.flowers(9))
    flowers = load("flowers102-swapped", data_dir=tmp_path / "f", on_bad_image="skip")
    assert flowers["train"].labels.tolist() == [9, 39, 69]


def test_variants_are_told_where_a_person_looks(tmp_path, capsys):
    folder = make.write(tmp_path, make.cub())
    for words, expected in (
        (["show", "cub200"], "variant     cub200-boxes: cub200, of each photograph only"),
        (["show", "cub200-boxes"], "variant of  cub200: the same files"),
        (["show", str(folder)], f"variant     cub200-boxes --data-dir {folder} in place of {folder}: "),
    ):
        assert cli.call(["data", *words]) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>', "DOCTYPE"),
        (b"<annotation>" + b"<a>" * 20 + b"</a>" * 20 + b"</annotation>", "16 elements in each other"),
        (b"<annotation>" + b"<object><name>x</name></object>" * 10_001 + b"</annotation>", "10,000 objects"),
        (b"<annotation><object/></annotation>", "without a name"),
        (b"<html/>", "not annotation"),
    ],
)
def test_xml_that_is_refused(xml, reason):
    with pytest.raises(BadInput, match=reason):
        voc.parse(xml, "a.xml")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"7.jpg"', b'"../7.jpg"', "expected a file below its folder"),
        (b'"7.jpg"', b'"/etc/passwd"', "expected a file below its folder"),
        (b'"id": 8', b'"id": 7', "two have the same id"),
        (b'"image_id": 7', b'"image_id": 1', "not listed"),
        (b'"category_id": 5', b'"category_id": 4', "not listed"),
        (b'"id": 7', b'"id": "7"', "expected an object with id"),
    ],
)
def test_coco_that_is_refused(old, new, reason, tmp_path):
    files = make.coco()
    name = "annotations/instances_val2017.json"
    assert old in files[name]
    with pytest.raises(BadInput, match=reason):
        scan_parts(make.write(tmp_path, {**files, name: files[name].replace(old, new, 1)}))


@pytest.mark.parametrize(("title", "name"), [(title, name) for title, names in LISTS.items() for name in names])
def test_a_damaged_list_gives_an_index_or_one_error(title, name, tmp_path):
    files = SETS[title]()
    folder = make.write(tmp_path, files)
    (layout,) = (layout for layout in published.LAYOUTS if layout.title == title)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(draw):
        (folder / name).write_bytes(make.mutated(files[name], draw))
        try:
            parts = layout.read(str(folder), on_bad_image="skip")
        except DataError as error:
            assert str(folder) in str(error)
        else:
            assert all(len(index) == len(index.labels) > 0 for index in parts.values())

    check()


def test_names_have_readers_and_say_how_to_get_them():
    names = {name for name, info in DATASETS.items() if info.layout}
    assert names == set(published.READERS)
    assert all(DATASETS[name].files and DATASETS[name].terms and DATASETS[name].homepage for name in names)
