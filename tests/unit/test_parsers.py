"""Every parser of bytes from outside: whatever they are, a correct value or the one declared error comes out.

CIFAR, pickled, binary and archive  formats.unpickle, read_cifar       BadInput      here, test_formats
IDX, gzip                           formats.read_idx                   BadInput      here, test_formats
pictures, EXIF                      decode.decode, _jpeg_orientation   BadInput      test_decode, here
CSV, TSV, list                      manifest.parse                     BadInput      test_manifest
tar                                 tar.scan_parts                     BadInput      test_tar
weights of others                   weights.load_foreign               BadInput      here
config.json of timm and the hub     hub.find and what it returns       BadInput      here, test_hub
TOML                                recipe.from_toml, override         UsageError    here, test_recipe
JSON, manifest of hashes            storage.read_json, read_folder     StorageError  here, test_storage
safetensors                         storage.from_safetensors           StorageError  here
splits.json                         runfolder.listed_keys                    StorageError  here
a checkpoint's state.json           checkpoint.restore                 StorageError  here
classifier.json                     classifier.load                    StorageError  here
report.json                         Report.from_dict                   StorageError  here
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from opsin import checkpoint, hub, models, optim, recipes, runfolder, storage
from opsin import classifier as classifiers
from opsin.classifier import NetClassifier
from opsin.data import decode, formats
from opsin.errors import BadInput, StorageError, UsageError
from opsin.evaluate import Report
from opsin.models.weights import load_foreign
from opsin.preprocess import Preprocess
from opsin.recipe import SGD, ModelSpec, from_toml, override, to_toml
from opsin.train import Precision, TrainState
from opsin.types import Progress
from tests import make

FUZZ = settings(max_examples=80, deadline=None)
FUZZ_OF_FOLDERS = settings(max_examples=30, deadline=None)  # each is written durably
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


def changed_json(document: Any, draw: st.DataObject) -> Any:
    """A JSON document of which one value, anywhere, is removed or replaced by any other."""
    paths: list[tuple[Any, ...]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in inner:
            walk(part, (*path, key))

    walk(document, ())
    path = draw.draw(st.sampled_from(paths))
    document = json.loads(json.dumps(document))
    if not path:
        return draw.draw(JSON)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if draw.draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw.draw(JSON)
    return document


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------

BATCH = make.pickle2({b"data": make.noise(1, 3072), b"labels": [3]})
BINARY = make.cifar10_binary(1)


@FUZZ
@given(st.data())
def test_cifar_pickles(draw: st.DataObject) -> None:
    data = make.mutated(BATCH, draw)
    try:
        pixels, labels = formats._pickled(formats.unpickle(data, "x", make.md5(data)), formats.CIFAR["cifar10"][0], "x")
    except BadInput as error:
        assert error.path == "x" and error.reason
    else:
        assert pixels.shape == (len(labels), 3072) and pixels.dtype == np.uint8 and labels.dtype == np.int64


@FUZZ
@given(st.binary(max_size=64))
def test_any_bytes_as_a_pickle(data: bytes) -> None:
    try:
        formats.unpickle(data, "x", make.md5(data))
    except BadInput as error:
        assert error.reason


@FUZZ_OF_FOLDERS
@given(st.sampled_from(["data_batch_3.bin", "batches.meta.txt", "test_batch.bin"]), st.data())
def test_cifar_binary(place: Path, file: str, draw: st.DataObject) -> None:
    changed = make.mutated(BINARY[file], draw)
    folder = make.write(place / "bin", BINARY | {file: changed})
    try:
        splits, classes = formats.read_cifar(formats.CIFAR["cifar10"][1], folder, {})
    except BadInput as error:
        assert file in error.path
    else:
        assert len(classes) == 10 and all(0 <= label < 10 for part in splits.values() for label in part.labels)


ARCHIVE = make.tar_gz("cifar-10-batches-bin", BINARY)


@FUZZ
@given(st.data())
def test_cifar_archive(place: Path, draw: st.DataObject) -> None:
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(make.mutated(ARCHIVE, draw))
    try:
        splits, _ = formats.read_cifar(formats.CIFAR["cifar10"][1], path, {})
    except BadInput as error:
        assert error.reason
    else:
        assert splits["test"].images.shape == (1, 3, 32, 32)


IDX = make.idx(make.noise(2, 5, 4))


@FUZZ
@given(st.data())
def test_idx(draw: st.DataObject) -> None:
    data = make.mutated(IDX, draw)
    try:
        array = formats.read_idx(data, "x", 3)
    except BadInput as error:
        assert error.reason
    else:
        assert array.ndim == 3 and array.size == len(data) - 16


@FUZZ
@given(st.binary(max_size=40), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\0", IDX[:4]]))
def test_any_bytes_as_idx(data: bytes, start: bytes) -> None:
    try:
        formats.read_idx(start + data, "x", 3)
    except BadInput as error:
        assert error.reason


def test_a_header_that_promises_much_allocates_nothing() -> None:
    huge = IDX[:4] + b"\x00\x01\x00\x00" + b"\x00\x00\x10\x00" * 2  # 2⁴⁰ bytes
    tracemalloc.start()
    try:
        for size in (huge, IDX[:4] + b"\xff" * 12):
            with pytest.raises(BadInput, match="bytes; expected"):
                formats.read_idx(size + IDX[16:], "x", 3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Metadata of pictures
# ---------------------------------------------------------------------------------------------------------------------

EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
HEAD = make.encode(make.gradient(8, 8), "JPEG")[:2] + b"\xff\xe1\0\x28Exif\0\0" + EXIF + b"\xff\xda"


@FUZZ
@given(st.binary(max_size=100), st.sampled_from([b"", b"II*\0", b"MM\0*", b"MM\0*\0\0\0\x08\xff\xff"]), st.data())
def test_exif(data: bytes, start: bytes, draw: st.DataObject) -> None:
    """An orientation is a number whatever the metadata are: they never make a picture bad."""
    assert decode._jpeg_orientation(HEAD) == decode._tiff_orientation(EXIF) == 6
    for value in (
        decode._tiff_orientation(start + data),
        decode._tiff_orientation(make.mutated(EXIF, draw)),
        decode._jpeg_orientation(make.mutated(HEAD, draw)),
        decode._jpeg_orientation(b"\xff\xd8\xff\xe1" + data),
    ):
        assert 0 <= value < 1 << 16


# ---------------------------------------------------------------------------------------------------------------------
# JSON and TOML
# ---------------------------------------------------------------------------------------------------------------------

DOCUMENT = json.dumps({"a": [1, 2.5e3, None, True, "é\n\U0001f600"], "b": {"c": {}, "d": -7}}).encode()


@FUZZ
@given(st.data())
def test_json(draw: st.DataObject) -> None:
    for data in (make.mutated(DOCUMENT, draw), draw.draw(st.binary(max_size=30))):
        try:
            value = storage.read_json(data, "x.json")
        except StorageError as error:
            assert str(error).startswith("x.json: ")
        else:  # what was read can be written, and means the same
            again = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            assert storage.read_json(again, "x.json") == value


NOT_JSON = ["1e999", "-1e999", "[NaN]", "Infinity", "9" * 5000, '"\\ud800"', '{"\\uDC00": 1}', '{"a":1,"\\u0061":2}']
NOT_JSON += ["[" * 99999, '{"a":' * 99999, "\ufeff1", "1 2", "", "'a'", "01", "\x00"]


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_is_not_strict_json(text: str) -> None:
    with pytest.raises(StorageError, match=r"x\.json: not the JSON expected"):
        storage.read_json(text.encode(), "x.json")
    assert storage.read_json(b'"\\ud83d\\ude00 \\\\ud800"', "x.json") == "\U0001f600 \\ud800"


RECIPE = recipes.find("small")
TOML = to_toml(RECIPE)


@FUZZ
@given(st.data())
def test_toml(draw: st.DataObject) -> None:
    text = make.mutated(TOML.encode(), draw).decode("utf-8", "replace")
    try:
        recipe = from_toml(text, "x.toml")
    except UsageError as error:
        assert str(error)
    else:
        assert from_toml(to_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ema = nan", "ema: expected a finite number, received nan"),
        ("clip = inf", "clip: expected a finite number"),
        ("clip = 1e999", "clip: expected a finite number"),
        (f"clip = {'9' * 400}", "clip: expected a finite number"),
        (f"seed = {'9' * 400}", "seed: expected a number of at most 19 digits"),
        (f"seed = {'9' * 5000}", "x.toml: not TOML"),
        (f"seed = {'[' * 5000}", "x.toml: not TOML"),
        (f"seed = {'[' * 5000}{']' * 5000}", "x.toml: not TOML"),
        ("seed = 1\nseed = 2", "x.toml: not TOML"),
        (f"# {'x' * (1 << 20)}", "expected at most 1,048,576"),
    ],
)
def test_numbers_and_depths_that_a_recipe_cannot_have(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_toml(
            line + "\n" + TOML.replace("\nseed = 0", "").replace("\nclip = 0.0", "").replace("\nema = 0.0", ""),
            "x.toml",
        )
    key, _, value = line.partition(" = ")
    if value in ("inf", "1e999"):
        with pytest.raises(UsageError, match=f"{key}: expected"):
            override(RECIPE, key, value)


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "c": torch.ones(3, dtype=torch.float16)}
SAFE = storage.to_safetensors(TENSORS)


@FUZZ
@given(st.data())
@example(draw=None)
def test_safetensors(draw: st.DataObject | None) -> None:
    samples = [b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f{}", (1 << 40).to_bytes(8, "little") + b"{}"]
    if draw is not None:
        samples = [make.mutated(SAFE, draw), draw.draw(st.binary(max_size=30))]
    for data in samples:
        try:
            tensors = storage.from_safetensors(data, "x")
        except StorageError as error:
            assert str(error).startswith("x: not a safetensors file")
        else:
            assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


def saved(legacy: bool) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


FOREIGN = {".safetensors": SAFE, ".pth": saved(False), ".th": saved(True)}


@FUZZ
@given(st.sampled_from(list(FOREIGN)), st.data())
def test_weights_of_others(place: Path, suffix: str, draw: st.DataObject) -> None:
    path = place / f"w{suffix}"
    for data in (make.mutated(FOREIGN[suffix], draw), draw.draw(st.binary(max_size=60))):
        path.write_bytes(data)
        try:
            tensors = load_foreign(path, max_bytes=1 << 20)
        except BadInput as error:
            assert error.path == str(path) and error.reason
        else:
            assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
            assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 1 << 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < 4 << 30


THEIR_CONFIG = {
    "architecture": "resnet18",
    "num_classes": 2,
    "label_names": {"0": "a", "1": "b"},
    "model_args": {"in_chans": 3},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    },
}


@FUZZ
@given(st.data())
def test_descriptions_of_the_weights_of_others(place: Path, draw: st.DataObject) -> None:
    folder = place / "theirs"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(SAFE)
    text = json.dumps(changed_json(THEIR_CONFIG, draw)).encode()
    (folder / "config.json").write_bytes(make.mutated(text, draw) if draw.draw(st.booleans()) else text)
    try:
        source = hub.find(folder)
    except BadInput as error:
        assert error.path == str(folder / "config.json")
        return
    for ask, kind in ((source.spec, ModelSpec), (source.preprocess, Preprocess), (lambda: source.classes(2), tuple)):
        try:
            answer = ask()
        except (BadInput, UsageError) as error:
            assert "config.json" in str(error)
        else:
            assert answer is None or isinstance(answer, kind)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(tmp_path: Path, suffix: str, value: float) -> None:
    tensors = TENSORS | {"c": torch.tensor([1.0, value])}
    if suffix == ".pth":
        torch.save(tensors, tmp_path / "w.pth")
    else:
        (tmp_path / "w.safetensors").write_bytes(storage.to_safetensors(tensors))
    with pytest.raises(BadInput, match=rf"w\{suffix}: 'c' holds NaN or infinite values"):
        load_foreign(tmp_path / f"w{suffix}")


# ---------------------------------------------------------------------------------------------------------------------
# Our own files, changed by somebody who also puts the hashes right
# ---------------------------------------------------------------------------------------------------------------------


@FUZZ_OF_FOLDERS
@given(st.data())
def test_manifest_of_hashes(place: Path, draw: st.DataObject) -> None:
    files = {"a": b"x" * 10, "b": b""}
    storage.write_folder(place / "state", files)
    path = place / "state" / storage.MANIFEST
    whole = path.read_bytes()
    if draw.draw(st.booleans()):
        path.write_bytes(make.mutated(whole, draw))
    else:
        path.write_bytes(json.dumps(changed_json(json.loads(whole), draw)).encode())
    try:
        assert storage.read_folder(place / "state").items() <= files.items()
    except StorageError as error:
        assert str(place) in str(error)
    path.write_bytes(whole)


def small_state() -> TrainState[Any]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    state: TrainState[Any] = TrainState(model, optim.build(model, SGD(lr=0.1, momentum=0.9)))
    model(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    state.progress = Progress(step=1, samples=1)
    return state


@FUZZ_OF_FOLDERS
@given(st.data())
def test_state_of_a_checkpoint(place: Path, draw: st.DataObject) -> None:
    folder, precision = place / "checkpoints", Precision("float32", "cpu")
    checkpoint.save(small_state(), folder, precision=precision, notes={"seconds": 1.5}, tensors={})
    [path] = checkpoint.steps(folder)
    files = storage.read_folder(path)
    document = changed_json(json.loads(files["state.json"]), draw)
    storage.write_folder(path, files | {"state.json": json.dumps(document).encode()})
    before = torch.get_rng_state()
    try:
        state = small_state()
        restored = checkpoint.restore(state, folder, precision=precision, warn=lambda text: None)
    except StorageError as error:
        assert str(folder) in str(error)
    else:
        assert restored is not None and isinstance(restored.notes, dict)
        assert all(type(count) is int and count >= 0 for count in state.progress)
    finally:
        torch.set_rng_state(before)


@FUZZ
@given(st.data())
def test_lists_of_splits(draw: st.DataObject) -> None:
    document = {"train": {"n": 2, "keys": ["a", "b"]}, "test": {"n": 1}}
    data = json.dumps(changed_json(document, draw)).encode() if draw.draw(st.booleans()) else None
    data = data or make.mutated(json.dumps(document).encode(), draw)
    try:
        keys = runfolder.listed_keys(data, Path("splits.json"), "train")
    except StorageError as error:
        assert "splits.json" in str(error)
    else:
        assert keys is None or all(isinstance(key, str) for key in keys)


@FUZZ_OF_FOLDERS
@given(st.data())
def test_description_of_a_classifier(place: Path, draw: st.DataObject) -> None:
    folder = place / "classifier"
    preprocess = Preprocess(size=(28, 28), channels=1, mean=(0.5,), std=(0.25,))
    if not folder.exists():
        net = models.build("lenet", 3, 1)
        made = NetClassifier(net, preprocess, ("a", "b", "c"), ModelSpec(name="lenet"))
        classifiers.save(made, place / "good")
    files = storage.read_folder(place / "good")
    document = changed_json(json.loads(files["classifier.json"]), draw)
    storage.write_folder(folder, files | {"classifier.json": json.dumps(document).encode()})
    try:
        loaded = classifiers.load(folder)
    except StorageError as error:
        assert str(folder) in str(error)
    else:
        assert len(loaded.classes) == 3
        prepared = loaded.prepare(torch.zeros(1, 9, 7, dtype=torch.uint8))
        assert loaded.probabilities(prepared[None]).shape == (1, 3)


@FUZZ
@given(st.data())
def test_reports(draw: st.DataObject) -> None:
    probabilities = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    from opsin.evaluate import summarise

    values = summarise(probabilities, torch.tensor([0, 1]), ("a", "b")).to_dict()
    try:
        report = Report.from_dict(changed_json(values, draw), "x.json")
    except StorageError as error:
        assert str(error).startswith("x.json: ")
    else:
        assert isinstance(report.error, float) and 0 <= report.num_wrong <= report.n
