"""Lists of pictures as people and other programs write them, and every way in which a line can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data import manifest
from opsin.data.datasets import load, read_parts
from opsin.data.index import WHOLE
from opsin.data.manifest import parse
from opsin.errors import BadInput, DataError
from tests import make

PNG = make.encode(make.gradient(6, 5))


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def whole(path: Path, **options: str) -> tuple[list[str], list[str]]:
    """Keys and labels (by name) of a list without parts, whose pictures are all decoded."""
    index = read_parts(path, **options)[WHOLE]
    assert all(index.image(i).shape == (3, 6, 5) for i in range(len(index)))
    return list(index.keys), [index.classes[k] for k in index.labels]


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "a/1.png,cat\nb c.png,polar bear\n"),
        ("x.csv", "path,label\na/1.png,cat\nb c.png,polar bear"),
        ("x.csv", '\ufeffLabel , width,"Path"\r\ncat,3,"a/1.png"\r\n\r\n polar bear ,4,b c.png\r\n'),
        ("x.CSV", '"./a/1.png","cat"\n"a/../b c.png","polar bear"\n'),
        ("x.tsv", "path\tlabel\na/1.png\tcat\nb c.png\tpolar bear\n"),
        ("x.txt", "a/1.png \t cat\nb c.png\tpolar bear\n"),
        ("x.lst", "\ufeffa/1.png\tcat\r\n\r\n  b c.png\t polar bear  \r\n"),
    ],
)
def test_ways_to_write_the_same_list(tmp_path: Path, name: str, text: str) -> None:
    fill(tmp_path, "a/1.png", "b c.png")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert whole(tmp_path / name) == (["a/1.png", "b c.png"], ["cat", "polar bear"])


def test_numbers_keep_their_order_and_names_are_sorted(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i} x.png" for i in range(12)))
    (tmp_path / "train.txt").write_text("".join(f"{i} x.png {11 - i}\n" for i in range(12)))
    index = read_parts(tmp_path / "train.txt")[WHOLE]
    assert index.classes == tuple(map(str, range(12))) and index.labels.tolist() == list(range(11, -1, -1))
    (tmp_path / "train.txt").write_text("".join(f"{i} x.png {i if i else 'none'}\n" for i in range(12)))
    assert read_parts(tmp_path / "train.txt")[WHOLE].classes[:4] == ("1", "10", "11", "2")


def test_paths_elsewhere_and_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "pictures/1.png", "pictures/2", "lists/Ä\u2028.jpg")
    (tmp_path / "lists/l.csv").write_text(f"../pictures/1.png,x\n{tmp_path}/pictures/2,x\nÄ\u2028.jpg,y\n")
    expected = ["../pictures/1.png", f"{tmp_path}/pictures/2", "Ä\u2028.jpg"], ["x", "x", "y"]
    assert whole(tmp_path / "lists/l.csv") == expected
    monkeypatch.chdir(tmp_path / "lists")
    index = read_parts("l.csv")[WHOLE]
    monkeypatch.chdir("/")
    assert index.image(0).shape == (3, 6, 5)


def test_the_column_split(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i}.png" for i in range(6)))
    rows = ["train,a", "Training,b", "VAL,a", "test,b", "test,a", "validation,b"]
    text = "split,label,path\n" + "".join(f"{row},{i}.png\n" for i, row in enumerate(rows))
    (tmp_path / "x.csv").write_text(text)
    splits = load(tmp_path / "x.csv")
    assert {name: list(part.keys) for name, part in splits.items()} == {
        "train": ["0.png", "1.png"],
        "val": ["2.png", "5.png"],
        "test": ["3.png", "4.png"],
    }
    (tmp_path / "x.csv").write_text(text.replace("test", "train"))
    assert {name: len(part) for name, part in load(tmp_path / "x.csv").items()} == {"train": 4, "test": 2}
    # A part may lack a class, since its classes are those of the whole list; but not have one that train lacks.
    (tmp_path / "x.csv").write_text(text.replace("test,a", "test,b"))
    assert load(tmp_path / "x.csv")["test"].labels.tolist() == [1, 1]
    (tmp_path / "x.csv").write_text(text.replace("test,a", "test,c"))
    with pytest.raises(BadInput, match="1 classes are only in the test part, not in train: c"):
        load(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("path,label,split\n0.png,a,test\n")
    assert list(read_parts(tmp_path / "x.csv")) == ["test"]
    with pytest.raises(DataError, match=r"train pictures are needed; it has \['test'\]"):
        load(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(text.replace("VAL", "dev").replace("test,b", ",b"))
    with pytest.raises(BadInput, match="line 4: split: expected train, val or test, received 'dev'; line 5: split"):
        load(tmp_path / "x.csv")


def test_without_parts_80_10_10_by_the_seed(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{k}/{i}.png" for k in "ab" for i in range(10)))
    (tmp_path / "x.tsv").write_text("".join(f"{k}/{i}.png\t{k}\n" for k in "ab" for i in range(10)))
    by_list, by_folder = load(tmp_path / "x.tsv", seed=3), load(tmp_path, seed=3)
    for name in ("train", "val", "test"):
        assert by_list[name].keys == by_folder[name].keys
        assert np.array_equal(by_list[name].labels, by_folder[name].labels)


def test_a_folder_of_lists(tmp_path: Path) -> None:
    fill(tmp_path, *(f"jpg/{i}.png" for i in range(4)))
    for name, text in {"train": "jpg/0.png 0\njpg/1.png 1\n", "valid": "jpg/2.png 1\n", "test": "jpg/3.png 0"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    splits = load(tmp_path)
    assert {name: list(part.keys) for name, part in splits.items()} == {
        "train": ["jpg/0.png", "jpg/1.png"],
        "val": ["jpg/2.png"],
        "test": ["jpg/3.png"],
    }
    assert splits["val"].classes == ("0", "1") and splits["val"].labels.tolist() == [1]
    (tmp_path / "test.txt").write_text("jpg/3.png 0\n./jpg/1.png 1")
    with pytest.raises(
        BadInput, match=r"test.txt: 1 of 2 .* line 2: './jpg/1.png' is listed before, in line 2 of .*train"
    ):
        load(tmp_path)
    shutil.rmtree(tmp_path / "jpg")
    fill(tmp_path, "train/0/1.png", "val/0/1.png")  # ImageNet as it comes: folders, and lists beside them
    assert load(tmp_path)["test"].keys == ["val/0/1.png"]


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with a line
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.png,a\n2.png\n", r"1 of 2 rows cannot be used: line 2: expected 2 fields \(path,label\), received 1"),
        ("1.png,a\n2.png,b,c\n", "line 2: expected 2 fields .*, received 3"),
        ("path,label\n1.png,a,x\n", r"line 2: expected 2 fields .*received 3"),
        ("1.png,a\n\n2.png, \n", "1 of 2 rows cannot be used: line 3: no label"),
        (",a\n", "line 1: no path"),
        ("1.png,a\n3.png,a\n", "line 2: '3.png': No such file"),
        ("file,label\n1.png,a\n", r"line 1: 'file': No such file .*\(a first line that is a header must name"),
        ("1.png,a\nsub,a\n", "line 2: 'sub': a folder, not a regular file"),
        ("1.png,a\npipe,a\n", "line 2: 'pipe': a named pipe, not a regular file"),
        ("1.png,a\n./1.png,a\n", r"line 2: './1.png' is listed before, in line 1$"),
        ("1.png,a\n1.png,b\n", "line 2: '1.png' is listed before, in line 1, there as 'a'"),
        (
            '"two\nlines.png",a\n1.png,a\n9.png,b',
            "2 of 3 .* line 1: 'two\\\\nlines.png': No such file.*; line 4: '9.png'",
        ),
        ("1.png,a\n2.png,caf\udce9\n", "line 2: is not UTF-8"),
        ("1.png,a\n2.png,b\0\n", "line 2: holds a zero byte"),
        ("1.png,a\n2\0.png,b\n", "line 2: holds a zero byte"),
        (f"1.png,{'a' * 201}\n", "line 1: expected a path of at most 4096 characters and a label of at most 200"),
        (f"1.png,a\n{'a' * 5000},b\n", "line 2: expected a path of at most 4096"),
        (f"1.png,a\n{'a' * 300}.png,b\n", "line 2: 'a+.png': File name too long"),
        ('1.png,a\n"2.png"x,b\n', "line 2: not CSV: ',' expected after '\"'"),
        ('1.png,a\n2.png,"b\n3.png,c\n', "line 2: not CSV: unexpected end of data"),
        ("path,label,label\n1.png,a,b\n", "line 1: the header names the column label twice"),
        ("a,1.png\na,2.png\n", r"the labels are files: are the two columns the wrong way round\?"),
        ("\n\n", "lists no pictures"),
        ("path,label\n", "lists no pictures"),
        ("", "lists no pictures"),
        ("\ufffe1.png", "is UTF-16; expected UTF-8"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, text: str, reason: str) -> None:
    fill(tmp_path, "1.png", "2.png", "sub/1.png")
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("utf-16-be" if text[:1] == "\ufffe" else "utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=reason) as caught:
        read_parts(path)
    assert caught.value.path == str(path)
    assert str(caught.value).encode()


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"{i}.png\n" for i in range(1000)))
    with pytest.raises(
        BadInput, match=r"1,000 of 1,000 rows cannot be used: line 1: .*; line 5: .*; and 995 more"
    ) as caught:
        read_parts(tmp_path / "x.txt")
    assert "line 6" not in str(caught.value) and len(str(caught.value)) < 1000


def test_pictures_that_are_not_there_are_left_out_on_request(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes(PNG[:-20])
    text = "1.png,a\n2.png,a\n3.png,b\n4.png,b\n"
    (tmp_path / "x.csv").write_text(text)
    index = read_parts(tmp_path / "x.csv", on_bad_image="skip")[WHOLE]
    assert index.keys == ["1.png", "3.png"] and index.classes == ("a", "b")
    reasons = {Path(bad.path).name: bad.reason for bad in index.skipped}
    assert list(reasons) == ["4.png", "2.png"] and reasons["4.png"].endswith(f"(line 4 of {tmp_path}/x.csv)")
    (tmp_path / "x.csv").write_text(text + "5.png,c\n")
    with pytest.raises(DataError, match=r"no picture is left in c; .*5\.png: No such file"):
        read_parts(tmp_path / "x.csv", on_bad_image="skip")
    (tmp_path / "x.csv").write_text(text + "3.png\n")
    with pytest.raises(BadInput, match="line 5: expected 2 fields"):  # that is the list's fault, not a picture's
        read_parts(tmp_path / "x.csv", on_bad_image="skip")


def test_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.png" for i in range(1100)]
    for name in names:
        (tmp_path / name).touch()
    path = tmp_path / "x.csv"
    path.write_text("".join(f"{name},{name}x\n" for name in names))
    with pytest.raises(
        BadInput, match=r"1,100 different labels in 1,100 rows, such as '0.pngx': .* the right column\?"
    ):
        read_parts(path)
    monkeypatch.setattr(manifest, "MAX_ROWS", 1000)
    with pytest.raises(BadInput, match="more than 1,000 rows"):
        read_parts(path)
    monkeypatch.setattr(manifest, "MAX_BYTES", 1000)
    with pytest.raises(BadInput, match="bytes; expected at most 1,000"):
        read_parts(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadInput, match="a named pipe, not a regular file"):
        read_parts(path)


# ---------------------------------------------------------------------------------------------------------------------
# Any bytes
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["x.csv", "x.tsv", "x.txt"]))
def test_any_bytes_are_rows_or_bad_input(data: bytes, name: str) -> None:
    try:
        rows = list(parse(data, name))
    except BadInput as error:
        assert error.path == name and error.reason
    else:
        assert all(row.problem or (row.path and row.label) for row in rows)
        assert [row.line for row in rows] == sorted({row.line for row in rows})


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT.map(str.strip).filter(bool)), min_size=1, max_size=8), st.booleans())
def test_what_a_csv_writer_wrote_comes_back(rows: list[tuple[str, str]], header: bool) -> None:
    import csv
    import io

    out = io.StringIO(newline="")
    csv.writer(out).writerows([("path", "label")] * header + rows)
    if not header and {cell.strip().lower() for cell in rows[0]} == {"path", "label"}:
        return
    assert [(row.path, row.label) for row in parse(out.getvalue().encode(), "x.csv")] == rows


# ---------------------------------------------------------------------------------------------------------------------
# Many labels
# ---------------------------------------------------------------------------------------------------------------------


def test_a_column_labels_holds_any_number_of_names(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i}.png" for i in range(4)))
    text = "labels,path,split\nred| white ,0.png,train\n,1.png,train\nwhite,2.png,test\nwhite|blue|red,3.png,train\n"
    (tmp_path / "x.csv").write_text(text)
    parts = read_parts(tmp_path / "x.csv")
    train, test = parts["train"], parts["test"]
    assert train.classes == ("blue", "red", "white") and train.many_labels and train.labels.dtype == np.float32
    assert train.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]] and test.labels.tolist() == [[0, 0, 1]]
    assert train.counts().tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels\n0.png,a|b|a\n", r"line 2: the same label twice in 'a\|b\|a'"),
        ("path,label,labels\n0.png,a,b\n", "has the columns label and labels; expected one"),
        ("path,labels,labels\n0.png,a,b\n", "names the column labels twice"),
        ("path,labels\n0.png,\n1.png,|\n", "no picture has a label"),
        (f"path,labels\n0.png,a|{'b' * 201}\n", "a label of at most 200"),
    ],
)
def test_many_labels_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, "0.png", "1.png")
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_parts(tmp_path / "x.csv")


def test_lists_of_both_forms_and_tables_beyond_bounds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "0.png", "1.png")
    (tmp_path / "train.csv").write_text("path,labels\n0.png,a\n")
    (tmp_path / "test.csv").write_text("path,label\n1.png,a\n")
    with pytest.raises(BadInput, match=r"train\.csv: has a column labels, where .*test\.csv has one label a picture"):
        read_parts(tmp_path)
    monkeypatch.setattr(manifest, "MAX_CELLS", 1)
    (tmp_path / "test.csv").write_text("path,labels\n1.png,a\n")
    (tmp_path / "train.csv").write_text("path,labels\n0.png,a|b\n")
    with pytest.raises(BadInput, match="1 pictures by 2 labels; expected at most 1"):
        read_parts(tmp_path)
