"""ImageNet-2012 as published, on small archives of its form: inner tars read in place, names, labels, hostile forms."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from opsin.data import datasets, matlab
from opsin.data.published import imagenet, layout
from opsin.errors import BadInput, DataError
from tests import make

TRAIN, VAL, DEVKIT = imagenet.TRAIN, imagenet.VAL, f"{imagenet.DEVKIT}.tar.gz"
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")
MAPPING = "".join(f"{synset} {words}\n" for synset, words in make.SYNSETS.items()).encode()


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def as_folders(flat: bool) -> dict[str, bytes]:
    """The same pictures as people unpack them; flat: val in no folders, with the devkit."""
    files = make.imagenet()
    made = {
        f"train/{name.partition('_')[0]}/{name}": data
        for inner in unpacked(files[TRAIN]).values()
        for name, data in unpacked(inner).items()
    }
    synsets = ["n01440764", "n02012849", "n03126707", "n01440764"]
    for name, data in unpacked(files[VAL]).items():
        folder = "" if flat else f"{synsets[int(name[-9:-5]) - 1]}/"
        made[f"val/{folder}{name}"] = data
    return made | (make.imagenet_devkit() if flat else {imagenet.MAPPING: MAPPING})


SOLUTION = """ImageId,PredictionString
ILSVRC2012_val_00000004,n01440764 85 1 499 272 n01440764 0 0 9 20
ILSVRC2012_val_00000001,n01440764 1 2 3 4
ILSVRC2012_val_00000003,n03126707 1 2 3 4
ILSVRC2012_val_00000002,n02012849 1 2 3 4 
"""  # with the blank at the end of a line that it has


def as_kaggle() -> dict[str, bytes]:
    """The same in Kaggle's folders, with pictures to be tested on that have no label."""
    files = {f"{imagenet.KAGGLE}/{name}": data for name, data in as_folders(True).items() if "devkit" not in name}
    files[f"{imagenet.KAGGLE}/test/ILSVRC2012_test_00000001.JPEG"] = b"x"
    return files | {imagenet.MAPPING: MAPPING, imagenet.SOLUTION: SOLUTION.encode()}


@pytest.mark.parametrize("files", [make.imagenet, lambda: as_folders(True), lambda: as_folders(False), as_kaggle])
def test_the_same_from_tars_and_from_folders(tmp_path: Path, files: Callable[[], dict[str, bytes]]) -> None:
    make.write(tmp_path, files())
    found = layout(str(tmp_path))
    assert found is not None and found.title == "ImageNet-2012"
    before = sorted(os.listdir(tmp_path))
    parts = datasets.read_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    train, val = parts["train"], parts["test"]  # of train and val, val is what is reported
    assert train.classes == val.classes == NAMES
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.keys[5].endswith("n03126707/n03126707_22.JPEG")
    of = {key[-9:-5]: NAMES[label] for key, label in zip(val.keys, val.labels.tolist(), strict=True)}
    assert of == {"0001": NAMES[0], "0002": NAMES[1], "0003": NAMES[2], "0004": NAMES[0]}
    assert train.image(3).shape == (3, 24, 32) and train.subset([4]).source.data(0) == train.source.data(4)
    assert any("a part of ImageNet-2012: train 6, val 4 pictures of train 1,281,167" in note for note in train.notes)


def test_by_its_name_the_published_counts_are_asked_for(tmp_path: Path) -> None:
    make.write(tmp_path, make.imagenet())
    with pytest.raises(DataError, match=r"3 synsets; expected 1,000.*opsin data show imagenet2012"):
        datasets.read_parts("imagenet2012", data_dir=tmp_path)


def test_counts_of_each_synset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write(tmp_path, make.imagenet())
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    with pytest.raises(DataError, match=r"2 pictures of n01440764 in train; expected 732 to 1,300"):
        imagenet.read_parts(str(tmp_path), whole=True)
    monkeypatch.setattr(imagenet, "FEWEST", 2)
    with pytest.raises(DataError, match=r"2 pictures of n01440764 in val; expected 50"):
        imagenet.read_parts(str(tmp_path), whole=True)


def test_without_names_classes_are_synsets_and_it_is_said(tmp_path: Path) -> None:
    make.write(tmp_path, {TRAIN: make.imagenet()[TRAIN]})
    index = datasets.scan_parts(tmp_path)["train"]
    assert index.classes == tuple(make.SYNSETS) and any("classes are synsets" in note for note in index.notes)
    make.write(tmp_path, {imagenet.MAPPING: MAPPING})
    assert datasets.scan_parts(tmp_path)["train"].classes == NAMES


def train_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {TRAIN: make.tar_of(files)}


INNER = make.tar_of({"n01440764_1.JPEG": b"x"})
TWICE = make.tar_of({"n01440764_1.JPEG": b"x"})[:1024] + make.tar_of({"n01440764_1.JPEG": b"x"})
TRUTH, META = imagenet.TRUTH, imagenet.META


def devkit(**changed: bytes) -> dict[str, bytes]:
    files = make.imagenet_devkit() | {{"truth": TRUTH, "meta": META}[name]: data for name, data in changed.items()}
    return {VAL: make.imagenet()[VAL], DEVKIT: gzip.compress(make.tar_of(files))}


def kaggle(solution: str | None) -> dict[str, bytes]:
    files = as_kaggle() | {imagenet.SOLUTION: (solution or "").encode()}
    return {name: data for name, data in files.items() if solution is not None or name != imagenet.SOLUTION}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (train_of({"n01440764.tar": INNER[:700]}), r"img_train\.tar/n01440764\.tar: damaged tar"),
        (train_of({"n01440764.tar": INNER[:1024]}), r"n01440764\.tar: damaged tar: it has no end mark"),
        (train_of({"n01440764.tar": b""}), r"n01440764\.tar: damaged tar"),
        (train_of({"n01440764.tar": TWICE}), "n01440764_1.JPEG: is there twice"),
        (train_of({"n01440765.tar": INNER}), r"n01440764_1\.JPEG: expected pictures such as n01440765_10026\.JPEG"),
        (train_of({"n01440764": INNER}), "expected the tar of a synset"),
        (train_of({"../n01440764.tar": INNER}), "leads out of the archive"),
        (train_of({"n01440764.tar": make.tar_of({"n01440764_1/../x.JPEG": b"x"})}), "leads out of the archive"),
        (train_of({}), "holds nothing"),
        ({TRAIN: make.imagenet()[TRAIN][:5000]}, r"img_train\.tar: damaged tar"),
        ({VAL: make.imagenet()[VAL]}, r"has no labels of its own; expected ILSVRC2012_devkit_t12\.tar\.gz in this"),
        (
            kaggle(SOLUTION.replace("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002")),
            "line 5: expected a picture that is not",
        ),
        (
            kaggle(SOLUTION.replace(" n01440764 0 0", " n01440765 0 0")),
            "line 2: expected a picture that .* and one synset",
        ),
        (kaggle(SOLUTION.replace(",", ";")), "line 1: expected a picture"),
        (kaggle("".join(SOLUTION.splitlines(True)[:2])), "to number 4, as many as have labels"),
        (kaggle("\0"), "holds a zero byte"),
        (kaggle(None), "or Kaggle's LOC_val_solution.csv: give the folder that holds it"),
        (devkit(truth=b"3\n1\n"), "to number 2, as many as have labels"),
        (devkit(truth=b"3\n1\n2\n77\n"), "line 4: no synset has the number 77"),
        (devkit(truth=b"3\n1\n2\nfour\n"), "line 4: expected a number, received 'four'"),
        (devkit(truth=b"3\n1\n2\n99999999999999999999\n"), "line 4: expected a number"),
        (devkit(meta=b"no file"), "meta.mat: not a MATLAB 5 file"),
        (devkit(meta=make.mat({"synsets": np.ones((2, 2))})), "meta.mat: synsets: expected structures"),
        ({**devkit(), VAL: make.tar_of({"ILSVRC2012_val_00000000.JPEG": b"x"})}, r"expected ILSVRC2012_val_00000001"),
        ({**devkit(), VAL: make.tar_of({"x.JPEG": b"x"})}, r"expected ILSVRC2012_val_00000001"),
    ],
)
def test_hostile_and_damaged(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    make.write(tmp_path, files)
    with pytest.raises(DataError, match=reason):
        datasets.scan_parts(tmp_path, on_bad_image="skip")


def test_an_inner_tar_ends_where_it_ends(tmp_path: Path) -> None:
    """Its last header claims bytes that belong to the next."""
    inner = bytearray(make.tar_of({"n01440764_1.JPEG": bytes(100)})[:1024] + bytes(1024))
    inner[124:136] = b"%011o\0" % 5000
    inner[148:156] = b"        "
    inner[148:156] = b"%06o\0 " % sum(inner[:512])
    make.write(tmp_path, train_of({"n01440764.tar": bytes(inner), "n01440765.tar": INNER}))
    with pytest.raises(BadInput, match=r"n01440764\.tar: damaged tar: it ends within"):
        datasets.scan_parts(tmp_path)


def test_structures_of_a_mat_file_are_what_scipy_wrote() -> None:
    table = np.zeros((2, 2), dtype=[("a", "O"), ("long_name", "O")])
    for i, at in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        table[at] = float(i), f"text {i}"
    file = io.BytesIO()
    scipy.io.savemat(file, {"s": table, "n": np.ones((1, 1))})
    rows = matlab.structures(file.getvalue(), "x.mat", "s")
    assert [row["long_name"] for row in rows] == [f"text {i}" for i in range(4)]
    assert [float(row["a"][0, 0]) for row in rows] == [0, 1, 2, 3]  # type: ignore[index]
    with pytest.raises(BadInput, match="n: expected structures"):
        matlab.structures(file.getvalue(), "x.mat", "n")
    whole = file.getvalue()
    for at in range(130, len(whole), 7):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            try:
                matlab.structures(data, "x.mat", "s")
            except BadInput as error:
                assert "x.mat" in str(error)
