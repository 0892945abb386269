"""Classifiers: the contract for each kind, and how they are saved, loaded and asked."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opsin import classifier as classifiers
from opsin import models, shipped, storage
from opsin.classifier import CONFIG, WEIGHTS, Classifier, NetClassifier
from opsin.data.index import Index, scan
from opsin.errors import BadInput, OpsinError, StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec
from opsin.run import import_weights
from opsin.types import Model, Output
from tests.check_classifier import check_classifier, picture

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def net(
    name: str = "resnet20", classes: int = 4, preprocess: Preprocess = PREPROCESS, *, seed: int = 0, **options: Any
) -> NetClassifier:
    """A network with batch norms that have seen something."""
    torch.manual_seed(seed)
    model = models.build(name, classes, preprocess.channels, **options)
    model.train()
    model(torch.randn(8, preprocess.channels, *preprocess.size))
    names = tuple(f"class {i}" for i in range(classes))
    return NetClassifier(model, preprocess, names, ModelSpec(name=name, options=options))


GREY = Preprocess(size=(28, 28), channels=1, mean=(0.1,), std=(0.3,), crop="pad", fill=128)
SQUASH = Preprocess(size=(16, 20), crop="squash", interpolation="bicubic")


@pytest.mark.parametrize(
    ("name", "classes", "preprocess"),
    [("resnet20", 4, PREPROCESS), ("lenet", 10, GREY), ("resnet20", 2, SQUASH), ("smallnet", 7, PREPROCESS)],
)
def test_networks_keep_the_contract(name: str, classes: int, preprocess: Preprocess, tmp_path: Path) -> None:
    check_classifier(net(name, classes, preprocess), tmp_path)


class Brightness:
    """A classifier that is no network: dark or light."""

    classes = ("dark", "light")

    def prepare(self, image: Tensor) -> Tensor:
        return image.to(torch.float32).mean()[None] / 255

    def probabilities(self, prepared: Tensor) -> Tensor:
        return torch.cat([1 - prepared, prepared], 1)


def test_another_kind_keeps_the_contract(tmp_path: Path) -> None:
    check_classifier(Brightness(), tmp_path, savable=False)
    with pytest.raises(UsageError, match="a Brightness cannot be saved"):
        classifiers.save(Brightness(), tmp_path / "x")
    with pytest.raises(UsageError, match="a Brightness has no stages"):
        classifiers.features(Brightness(), [picture(4, 4)], "stage1")


def test_the_suite_finds_a_classifier_that_breaks_the_contract(tmp_path: Path) -> None:
    class Leaking(Brightness):
        """Normalises over the batch, as batch norm in training mode does."""

        def probabilities(self, prepared: Tensor) -> Tensor:
            light = torch.sigmoid(prepared - prepared.mean())
            return torch.cat([1 - light, light], 1)

    with pytest.raises(AssertionError):
        check_classifier(Leaking(), tmp_path, savable=False)


class Broken(Brightness):
    def __init__(self, answer: list[float]) -> None:
        self.answer = answer

    def probabilities(self, prepared: Tensor) -> Tensor:
        return torch.tensor([self.answer]).expand(len(prepared), -1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [([1.0], r"expected probabilities \[1, 2\]"), ([float("nan"), 1.0], "diverged"), ([0.7, 0.7], "must sum to 1")],
)
def test_answers_that_are_no_distribution_are_refused(answer: list[float], message: str) -> None:
    with pytest.raises(OpsinError, match=message):
        classifiers.predict(Broken(answer), [picture(4, 4)])


# ---------------------------------------------------------------------------------------------------------------------
# NetClassifier
# ---------------------------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_the_normalised_network() -> None:
    classifier = net()
    stack = torch.stack([classifier.prepare(picture(16, 16, seed=i)) for i in range(3)])
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    model = net().model.double().eval()
    with torch.no_grad():
        logits = model((stack.double() / 255 - mean) / std).logits
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(classifier.probabilities(stack).double(), expected, atol=1e-5, rtol=0)


def test_asking_changes_no_weight_and_no_statistic() -> None:
    classifier = net()
    classifier.model.train()
    before = {key: value.clone() for key, value in classifier.model.state_dict().items()}
    classifier.probabilities(torch.stack([picture(16, 16, seed=i) for i in range(4)]))
    assert not classifier.model.training
    assert all(torch.equal(value, before[key]) for key, value in classifier.model.state_dict().items())


def test_wrong_input_and_wrong_class_count_are_refused() -> None:
    classifier = net()
    for wrong in (torch.zeros(1, 3, 16, 16), picture(16, 16), picture(16, 16, 1)[None]):
        with pytest.raises(UsageError, match=r"expected prepared pictures as uint8 \[B, 3, H, W\]"):
            classifier.probabilities(wrong)
    narrow = NetClassifier(classifier.model, PREPROCESS, ("a", "b"), classifier.spec)
    with pytest.raises(UsageError, match="4 outputs, but there are 2 classes"):
        narrow.probabilities(picture(16, 16)[None])


@pytest.mark.parametrize(
    ("classes", "message"), [((), "list of names"), ("ab", "list of names"), ((1, 2), "list of names"), ("aba", "list")]
)
def test_class_names_are_checked(classes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NetClassifier(net().model, PREPROCESS, classes, ModelSpec(name="resnet20"))


def test_class_names_may_occur_once() -> None:
    with pytest.raises(UsageError, match="these occur again: cat"):
        NetClassifier(net().model, PREPROCESS, ("cat", "dog", "cat", "cow"), ModelSpec(name="resnet20"))


def test_device() -> None:
    classifier = net()
    assert classifier.device == torch.device("cpu") and classifier.to("cpu") is classifier
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UsageError, match=f"device '{device}' cannot be used"):
            classifier.to(device)


# ---------------------------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------------------------


def test_features_are_pooled_maps_for_any_batch_size() -> None:
    classifier = net()
    images = [picture(20, 30, seed=i) for i in range(5)]
    stage = list(classifier.model.stages)[-1]  # type: ignore[arg-type, union-attr]
    maps = classifiers.features(classifier, images, stage, maps=True)
    vectors = classifiers.features(classifier, images, stage)
    assert maps.ndim == 4 and vectors.shape == maps.shape[:2] and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, maps.mean((2, 3)))
    torch.testing.assert_close(
        classifiers.features(classifier, images, stage, batch_size=2), vectors, atol=1e-5, rtol=1e-5
    )
    assert len(classifiers.features(classifier, [], stage)) == 0
    with pytest.raises(UsageError, match="no stage 'stage99'"):
        classifiers.features(classifier, images, "stage99")


class Vectors(Model):
    """One fully-connected layer: its only stage gives vectors, not maps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 4)

    def forward(self, images: Tensor) -> Output:
        return Output(self.features(images, "fc"))

    def features(self, images: Tensor, at: str) -> Tensor:
        return self.layer(images.flatten(1))


def test_features_of_a_stage_that_gives_vectors() -> None:
    classifier = NetClassifier(Vectors(), PREPROCESS, tuple("abcd"), ModelSpec(name="vectors"))
    images = [picture(16, 16, seed=i) for i in range(3)]
    for maps in (False, True):
        found = classifiers.features(classifier, images, "fc", maps=maps)
        torch.testing.assert_close(found.softmax(1), classifier.probabilities(torch.stack(images)))


def test_features_and_predictions_of_an_index(pictures: Path) -> None:
    index = scan(pictures)
    classifier = net()
    listed = [pictures / key for key in index.keys]
    assert classifiers.predict(classifier, index) == classifiers.predict(classifier, listed)
    stage = next(iter(classifier.model.stages))  # type: ignore[arg-type, call-overload]
    assert torch.equal(classifiers.features(classifier, index, stage), classifiers.features(classifier, listed, stage))


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def test_a_pillow_image_is_turned_as_its_file_is() -> None:
    image = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    turned = classifiers.read_picture(Image.open(io.BytesIO(out.getvalue())), "x")
    assert turned.shape == (3, 8, 12)
    assert torch.equal(turned, classifiers.read_picture(out.getvalue(), "x"))


def test_damaged_pillow_images_are_named() -> None:
    out = io.BytesIO()
    Image.fromarray(picture(64, 64)[0].numpy()).save(out, "PNG")
    with pytest.raises(BadInput, match=r"mine\.png: cannot be decoded"):
        classifiers.read_picture(Image.open(io.BytesIO(out.getvalue()[:2000])), "mine.png")
    with pytest.raises(BadInput, match="floating-point"):
        classifiers.read_picture(Image.fromarray(np.zeros((4, 4), np.float32)), "mine")


def test_batches_are_in_order_and_reading_is_not_far_ahead() -> None:
    asked: list[int] = []

    class Counting(Index):
        def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
            asked.append(i)
            return picture(4, 4, seed=i)

    index = Counting([str(i) for i in range(100)], np.zeros(100, np.int64), ("a",), None)  # type: ignore[arg-type]
    batches = classifiers.prepared_batches(Brightness(), index, batch_size=8, workers=3)
    places, prepared = next(batches)
    assert places == list(range(8)) and len(prepared) == 8
    assert len(asked) <= 8 + 16
    rest = [place for places, _ in batches for place in places]
    assert rest == list(range(8, 100)) and sorted(asked) == list(range(100))


def test_unreadable_pictures_are_raised_or_told() -> None:
    good, told = picture(4, 4), []
    images = [good, b"rubbish", good, b"", good]
    with pytest.raises(BadInput, match="picture 1"):
        list(classifiers.prepared_batches(Brightness(), images, batch_size=2, workers=2))
    batches = list(
        classifiers.prepared_batches(
            Brightness(),
            images,
            batch_size=2,
            workers=2,
            skipped=lambda place, error: told.append((place, error.reason)),
        )
    )
    assert [places for places, _ in batches] == [[0], [2], [4]]
    assert [place for place, _ in told] == [1, 3] and all(reason for _, reason in told)
    assert not list(classifiers.prepared_batches(Brightness(), [b""], batch_size=1, workers=1, skipped=lambda *_: None))


# ---------------------------------------------------------------------------------------------------------------------
# Saved and loaded
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    classifiers.save(net(), folder)
    return folder


def change(saved: Path, to: Path, config: Any = None, weights: Any = None) -> Path:
    """A copy of the folder with its config or its weights changed and the hashes made right again."""
    files = storage.read_folder(saved)
    if config is not None:
        values = json.loads(files[CONFIG])
        config(values)
        files[CONFIG] = json.dumps(values).encode()
    if weights is not None:
        tensors = storage.from_safetensors(files[WEIGHTS], "weights")
        weights(tensors)
        files[WEIGHTS] = storage.to_safetensors(tensors)
    storage.write_folder(to, files)
    return to


def test_what_is_written_is_what_other_readers_know(saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_bytes())
    assert config["kind"] == "net" and config["model"] == {"name": "resnet20", "options": {}, "in_channels": 3}
    assert config["classes"] == [f"class {i}" for i in range(4)]
    theirs = json.loads((saved / "config.json").read_bytes())
    assert theirs["architecture"] == "resnet20" and theirs["num_classes"] == 4 and theirs["num_features"] == 64
    assert theirs["label_names"] == config["classes"]
    cfg = theirs["pretrained_cfg"]
    assert cfg["input_size"] == [3, 16, 16] and cfg["mean"] == [0.5, 0.4, 0.3] and cfg["std"] == [0.2, 0.3, 0.4]
    assert (cfg["interpolation"], cfg["crop_pct"], cfg["crop_mode"]) == ("bilinear", 1.0, "center")
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, "config.json", "manifest.json", WEIGHTS]


def test_options_and_preprocessing_come_back(tmp_path: Path) -> None:
    options = {"activation": "prelu"}
    classifier = net("lenet", 3, GREY, **options)
    classifiers.save(classifier, tmp_path / "classifier")
    again = classifiers.load(tmp_path)
    assert isinstance(again, NetClassifier)
    assert again.preprocess == GREY and again.spec == ModelSpec(name="lenet", options=options)
    assert not again.model.training


def test_half_keeps_each_value_to_one_part_in_2048(tmp_path: Path) -> None:
    classifier = net()
    classifiers.save(classifier, tmp_path / "whole")
    classifiers.save(classifier, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    again = classifiers.load(tmp_path / "half")
    assert isinstance(again, NetClassifier)
    for key, tensor in classifier.model.state_dict().items():
        read = again.model.state_dict()[key]
        assert read.dtype == tensor.dtype
        rtol = 2**-11 if tensor.ndim > 1 else 0  # vectors, among them the running variances, stay as they are
        torch.testing.assert_close(read, tensor, rtol=rtol, atol=2**-25 if rtol else 0)


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_shipped_classifiers_are_whole_and_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shipped.find(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
    check_classifier(classifiers.load(name), tmp_path)
    monkeypatch.chdir(tmp_path)  # a folder of that name that is there is meant, not ours
    classifiers.save(net(), name)
    assert classifiers.load(name).classes == net().classes
    assert shipped.find("no-such") == Path("no-such")


def test_loading_leaves_the_random_numbers_alone(saved: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    classifiers.load(saved)
    assert torch.equal(state, torch.get_rng_state())


def test_names_in_any_script_come_back(tmp_path: Path) -> None:
    names = ("猫", "été", "<b>", "\U0001f431")
    classifier = net()
    classifiers.save(NetClassifier(classifier.model, PREPROCESS, names, classifier.spec), tmp_path / "c")
    assert classifiers.load(tmp_path / "c").classes == names
    with pytest.raises(UsageError, match="half a character"):
        NetClassifier(classifier.model, PREPROCESS, ("a", "b", "c", "\udcff"), classifier.spec)


def test_options_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    for value in (object(), float("nan")):
        spec = ModelSpec(name="resnet20", options={"x": value})
        with pytest.raises(UsageError, match="model options"):
            classifiers.save(NetClassifier(net().model, PREPROCESS, tuple("abcd"), spec), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def put(*path: str, value: Any) -> Any:
    """A change that sets `config[path] = value`."""

    def change_config(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change_config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (put("kind", value="magic"), "kind: expected one of net, labels, classical, fused, received 'magic'"),
        (put("kind", value=["net"]), "kind: expected one of net"),
        (put("format", value=2), "expected an object of format 1"),
        (put("model", value="resnet20"), "model: expected name, options and in_channels"),
        (put("model", "name", value="resnet21"), "nearest 20 and 26"),
        (put("model", "name", value=None), "model: expected name"),
        (put("model", "options", value={"depht": 3}), "no option 'depht'"),
        (put("model", "options", value={"num_classes": 3}), "num_classes"),
        (put("model", "in_channels", value=1), "the network takes 1 channels, preprocess gives 3"),
        (put("model", "in_channels", value=-1), "in_channels"),
        (put("classes", value=["a", "b", "a", "c"]), "these occur again: a"),
        (put("classes", value=["a", "b", 3, "c"]), "expected a list of names"),
        (put("classes", value=[]), "expected a list of names"),
        (put("classes", value="abcd"), "expected a list of classes"),
        (put("classes", value=list("abcde")), r"expected torch.float32 \(5, .*received torch.float32 \(4,"),
        (put("preprocess", value=[]), "a table preprocess"),
        (put("preprocess", "size", value="large"), r"classifier\.json: "),
        (put("preprocess", "magic", value=1), "preprocess.magic: no such field"),
        (put("preprocess", "std", value=[0, 1, 1]), "std > 0"),
    ],
)
def test_a_config_that_does_not_fit_is_named(saved: Path, tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        classifiers.load(change(saved, tmp_path / "c", config=config))


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def spoil(tensors: dict[str, Tensor]) -> None:
    key = next(key for key, value in sorted(tensors.items()) if value.is_floating_point())
    tensors[key] = torch.full_like(tensors[key], float("nan"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (drop, "missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra: unexpected"),
        (lambda t: t.update({key: v.double() for key, v in t.items() if v.ndim == 4}), "received torch.float64"),
        (lambda t: t.update({key: v[:, :, :1] for key, v in t.items() if v.ndim == 4}), r"and \d+ more"),
        (spoil, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, tmp_path: Path, weights: Any, message: str) -> None:
    with pytest.raises(StorageError, match=rf"weights\.safetensors: these weights do not fit the network: .*{message}"):
        classifiers.load(change(saved, tmp_path / "c", weights=weights))


def test_missing_and_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a run folder, its classifier/ folder"):
        classifiers.load(tmp_path)
    copy = tmp_path / "classifier"
    shutil.copytree(saved, copy)
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(StorageError, match=r"weights\.safetensors: damaged"):
        classifiers.load(tmp_path)
    (copy / WEIGHTS).unlink()
    with pytest.raises(StorageError, match=r"weights\.safetensors"):
        classifiers.load(copy)
    storage.write_folder(copy, {CONFIG: (saved / CONFIG).read_bytes()})
    with pytest.raises(StorageError, match=r"expected the file weights\.safetensors"):
        classifiers.load(copy)
    storage.write_folder(copy, {CONFIG: b"[]", WEIGHTS: b""})
    with pytest.raises(StorageError, match="expected an object"):
        classifiers.load(copy)
    storage.write_folder(copy, {CONFIG: (saved / CONFIG).read_bytes(), WEIGHTS: b"not tensors"})
    with pytest.raises(StorageError, match="not a safetensors file"):
        classifiers.load(copy)


def test_a_crash_in_the_moment_of_replacement_loses_nothing(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "classifier.old")  # the new folder was not yet in place
    for place in (tmp_path, tmp_path / "classifier"):
        assert isinstance(classifiers.load(place), Classifier)


# ---------------------------------------------------------------------------------------------------------------------
# Many labels
# ---------------------------------------------------------------------------------------------------------------------


def of_labels(thresholds: tuple[float, ...], classes: int = 4) -> NetClassifier:
    one = net("resnet20", classes)
    with torch.no_grad():  # untrained, its logits are so large that sigmoids are 0 or 1
        for parameter in one.model.get_submodule("head").parameters():
            parameter.mul_(0.05)
    return NetClassifier(one.model, one.preprocess, one.classes, one.spec, thresholds)


def test_a_classifier_for_many_labels_keeps_the_contract(tmp_path: Path) -> None:
    plain = of_labels((0.5,) * 4)
    probabilities = plain.probabilities(plain.prepare(picture(33, 21, seed=5))[None])[0]
    middle = float(probabilities.sort().values[1:3].mean())  # two of the four are named
    check_classifier(of_labels((middle,) * 4), tmp_path)


def test_its_probabilities_are_sigmoids_and_what_reaches_no_threshold_is_not_named() -> None:
    classifier, image = of_labels((0.5,) * 4), picture(16, 16)
    prepared = classifier.prepare(image)[None]
    classifier.model.eval()
    logits = classifier.model(classifier.preprocess.normalize(prepared)).logits
    torch.testing.assert_close(classifier.probabilities(prepared), torch.sigmoid(logits).detach())
    row = classifier.probabilities(prepared)[0].tolist()
    least = tuple(value - 1e-4 for value in row)  # reached, all of them; two networks need not agree to the last bit
    found = [p.probability for p in classifiers.predict(of_labels(least), [image], top=3)[0]]
    assert found == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-5)
    assert classifiers.predict(of_labels((1.0,) * 4), [image]) == [[]]


def test_a_version_that_knows_only_softmax_refuses_it_and_thresholds_are_checked(tmp_path: Path) -> None:
    classifiers.save(of_labels((0.1, 0.2, 0.3, 0.4)), tmp_path / "new")
    config = json.loads((tmp_path / "new" / CONFIG).read_text())
    assert config["kind"] != "net" and config["thresholds"] == [0.1, 0.2, 0.3, 0.4]
    for wrong in ([0.1], [0.1, 0.2, 0.3, 2], [0.1, 0.2, 0.3, True], "0.5", None):
        copy = change(tmp_path / "new", tmp_path / "copy", put("thresholds", value=wrong))
        with pytest.raises(StorageError, match="thresholds: expected 4 numbers in 0 to 1"):
            classifiers.load(copy)
        shutil.rmtree(tmp_path / "copy")
    with pytest.raises(UsageError, match="thresholds: expected 4 numbers"):
        of_labels((0.5, 0.5))
    made, _ = import_weights(tmp_path / "new", tmp_path / "imported")
    assert made.thresholds == classifiers.thresholds(classifiers.load(tmp_path / "imported")) == (0.1, 0.2, 0.3, 0.4)


def test_probabilities_of_labels_beyond_one_are_refused() -> None:
    class Sure(Broken):
        thresholds = (0.5, 0.5)

    assert [p.name for p in classifiers.predict(Sure([0.9, 0.8]), [picture(4, 4)])[0]] == ["dark", "light"]
    with pytest.raises(OpsinError, match="not all in 0 to 1"):
        classifiers.predict(Sure([1.1, 0.8]), [picture(4, 4)])
