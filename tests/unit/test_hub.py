"""Weights from folders: what timm's config.json says of them, what is refused, and what comes from the hub."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import opsin
from opsin import hub, models, shipped
from opsin import run as runs
from opsin.classifier import NetClassifier
from opsin.errors import BadInput, StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec
from tests import make

NARROW = {"width": 4}
PUBLISHED = {
    "tag": "a1_in1k",
    "input_size": [3, 48, 40],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "num_classes": 3,
    "first_conv": "conv1",
    "classifier": "fc",
}
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "num_features": 512,
    "global_pool": "avg",
    "label_names": ["ant", "bee", "cat"],
    "pretrained_cfg": PUBLISHED,
}


def tensors() -> dict[str, Tensor]:
    """A narrow ResNet-18 of three classes under timm's names."""
    sizes = make.listed("timm_resnet18")
    narrow = {k: tuple(n if n in (1, 3, 7) else n // 16 for n in shape) for k, shape in sizes.items()}
    narrow |= {"fc.weight": (3, 32), "fc.bias": (3,)}
    values = {k: torch.rand(shape) * 0.2 + (0.9 if len(shape) == 1 else -0.1) for k, shape in narrow.items()}
    return {k: torch.tensor(7) if k.endswith("tracked") else value for k, value in values.items()}


def write(folder: Path, config: Any = CONFIG, weights: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published"))


pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------------------------------
# A folder becomes a classifier
# ---------------------------------------------------------------------------------------------------------------------


def test_import_takes_everything_from_the_folder(published: Path, tmp_path: Path, opsin_: Any) -> None:
    code, out, err = opsin_("import", published, "-o", tmp_path / "made", "--set", "width=4")
    assert (
        code == 0 and str(tmp_path / "made") in out and "loaded 122 tensors into resnet18, 122 of them renamed" in err
    )
    made = opsin.load(tmp_path / "made")
    assert isinstance(made, NetClassifier)
    assert made.classes == ("ant", "bee", "cat") and made.spec == ModelSpec(name="resnet18", options=NARROW)
    assert made.preprocess == Preprocess(
        size=(48, 40), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_fraction=0.95, interpolation="bicubic"
    )
    source = hub.find(published)
    assert torch.equal(made.model.state_dict()["head.linear.weight"], source.tensors()["fc.weight"])


def test_what_is_given_goes_before_what_the_folder_says(published: Path, tmp_path: Path, opsin_: Any) -> None:
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    arguments = ("import", published, "-o", tmp_path / "made", "--set", "width=4", "--json")
    code, out, _ = opsin_(*arguments, "--preprocess", "imagenet", "--classes", tmp_path / "names.txt")
    assert code == 0 and json.loads(out)["classes"] == ["x", "y", "z"]
    preprocess = hub.find(tmp_path / "made").preprocess()
    assert preprocess.size == (224, 224) and preprocess.crop_fraction == 0.875 and preprocess.mean[0] == 0.485
    code, _, err = opsin_(*arguments, "--model", "resnet34")
    assert code == 2 and "do not fit resnet34. missing: stages.stage1.2.body" in err
    write(tmp_path / "odd", CONFIG | {"architecture": "resnetv2_50"})
    code, _, err = opsin_("import", tmp_path / "odd", "-o", tmp_path / "no")
    assert code == 2 and "no network here for the architecture 'resnetv2_50'; did you mean" in err and "resnet50" in err
    code, _, _ = opsin_("import", tmp_path / "odd", "-o", tmp_path / "yes", "--set", "width=4", "--model", "resnet18")
    assert code == 0


def test_a_file_alone_says_nothing_of_itself(published: Path, tmp_path: Path, opsin_: Any) -> None:
    file = published / "model.safetensors"
    code, _, err = opsin_("import", file, "-o", tmp_path / "no")
    assert code == 2 and "model.safetensors does not say which network it is of; name it: --model NAME" in err
    code, _, err = opsin_("import", file, "-o", tmp_path / "no", "--model", "resnet18", "--set", "width=4")
    assert code == 2 and "does not say how its pictures were prepared; say it: --preprocess KIND" in err
    with pytest.raises(UsageError, match="no 'imagnet'; did you mean imagenet"):
        runs.import_weights(file, tmp_path / "no", model="resnet18", preprocess="imagnet")


def test_networks_whose_auxiliary_heads_are_not_published(tmp_path: Path) -> None:
    """timm's Inception v3 has none. Narrow here, under our own names."""
    net = models.build("inception_v3", 4, width=2, aux=False)
    write(
        tmp_path,
        {"architecture": "tf_inception_v3", "pretrained_cfg": PUBLISHED | {"num_classes": 4}},
        net.state_dict(),
    )
    made, notes = runs.import_weights(tmp_path, tmp_path / "made", options={"width": 2})
    assert made.spec == ModelSpec(name="inception_v3", options={"width": 2, "aux": False})
    assert notes[0] == "the weights have no auxiliary heads, which only training uses: inception_v3 is built without"
    assert made.classes == ("0", "1", "2", "3") and "classes: taken to be numbers" in notes[1]
    with pytest.raises(UsageError, match=r"build the network with aux=false\.$"):
        runs.import_weights(tmp_path, tmp_path / "no", options={"width": 2, "aux": True})


def test_torch_files_and_their_order(published: Path, tmp_path: Path) -> None:
    write(tmp_path)
    torch.save({"fc.bias": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    assert hub.find(tmp_path).file.name == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert list(hub.find(tmp_path).tensors()) == ["fc.bias"]


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("resnet50", "resnet50"),
        ("vgg16_bn.tv_in1k", "vgg16_bn"),
        ("adv_inception_v3", "inception_v3"),
        ("ens_adv_inception_resnet_v2", "inception_resnet_v2"),
        ("gluon_resnet101_v1b", "resnet101"),
    ],
)
def test_names_of_architectures(tmp_path: Path, architecture: str, name: str) -> None:
    assert hub.find(write(tmp_path, CONFIG | {"architecture": architecture}, {})).spec() == ModelSpec(name=name)
    assert set(hub.ARCHITECTURES.values()) <= set(models.MODELS)


def test_early_folders_have_everything_in_one_table(tmp_path: Path) -> None:
    source = hub.find(
        write(tmp_path, {"architecture": "resnet18", "labels": ["a", "b"], **PUBLISHED, "num_classes": 2})
    )
    assert source.preprocess().size == (48, 40) and source.classes(2) == ("a", "b")


def test_names_by_number(tmp_path: Path) -> None:
    config = CONFIG | {"label_names": {"0": "a", "2": "c", "1": "b"}}
    assert hub.find(write(tmp_path, config, {})).classes(3) == ("a", "b", "c")
    squash = PUBLISHED | {"crop_mode": "squash", "crop_pct": 1.0}
    assert hub.find(write(tmp_path, CONFIG | {"pretrained_cfg": squash}, {})).preprocess().crop == "squash"


# ---------------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "architecture: expected a name, as timm writes it, received None"),
        ({"architecture": 5, "architectures": ["ResNetForImageClassification"]}, "a folder of transformers"),
        ({"architecture": "x" * 500}, "no network here for the architecture 'x{80}'?"),
        ({"model_args": {"act_layer": "gelu", "in_chans": 3}}, "changed in a way that is not known here: act_layer"),
        ({"model_args": "odd"}, "not known here: 'odd'"),
        ({"global_pool": "max"}, "not known here: global_pool 'max'"),
        ({"pretrained_cfg": [1]}, r"pretrained_cfg: expected an object, received \[1\]"),
        ({"pretrained_cfg": {}}, "input_size: expected .*, received None"),
        ({"pretrained_cfg": PUBLISHED | {"input_size": [3, 10**9, 8]}}, "at most 4096×4096 pixels"),
        ({"pretrained_cfg": PUBLISHED | {"input_size": [3, 0, 8]}}, "expected size >= 1"),
        ({"pretrained_cfg": PUBLISHED | {"input_size": "224"}}, "input_size: expected"),
        ({"pretrained_cfg": PUBLISHED | {"mean": None}}, "mean: expected .*, received None"),
        ({"pretrained_cfg": PUBLISHED | {"std": [0, 1, 1]}}, "std > 0"),
        ({"pretrained_cfg": PUBLISHED | {"mean": [0.5]}}, "expected 3 values each"),
        ({"pretrained_cfg": PUBLISHED | {"interpolation": "lanczos"}}, "interpolation: expected one of 'bilinear'"),
        ({"pretrained_cfg": PUBLISHED | {"crop_mode": "border"}}, "crop_mode: expected center, .*received 'border'"),
        ({"pretrained_cfg": PUBLISHED | {"crop_pct": 1.5}}, "crop_fraction"),
        ({"num_classes": 1000}, "the weights have 3 classes, but num_classes 1000"),
        ({"num_classes": "3"}, "but num_classes '3'"),
        ({"label_names": ["a"]}, "num_classes 3 and 1 label_names; --classes FILE names"),
        ({"label_names": {"0": "a", "1": "b", "7": "c"}}, "label_names: expected a text for each class"),
        ({"label_names": ["a", "b", 3]}, "label_names: expected a text for each class"),
        ({"label_names": 3}, "but num_classes 3 and 0 label_names"),
        ({"label_names": ["a", "b", "a"]}, "each name may occur once"),
    ],
)
def test_what_a_config_may_not_say(published: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = write(tmp_path / "theirs", CONFIG | change, hub.find(published).tensors())
    with pytest.raises((UsageError, BadInput), match=message) as caught:
        runs.import_weights(folder, tmp_path / "made", options=NARROW)
    assert "config.json" in str(caught.value) or "once" in message
    assert not (tmp_path / "made").exists() and len(str(caught.value)) < 2000


def test_damaged_and_hostile_folders(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(BadInput, match=match):
            hub.find(tmp_path).tensors()

    refused("expected config.json and model.safetensors or pytorch_model.bin in this folder, config.json is not there")
    for text in ("", "{", "not JSON", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": 1e999}'):
        (tmp_path / "config.json").write_text(text)
        refused(r"config\.json: not the JSON expected")
    (tmp_path / "config.json").write_bytes(b'{"architecture": "\xff"}')
    refused(r"config\.json: not the JSON expected")
    (tmp_path / "config.json").write_text("[]")
    refused(r"config\.json: expected an object, received \[\]")
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 40)
    refused("1099511627776 bytes; at most 16777216 are read")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    refused("this is not a file")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused("expected model.safetensors or pytorch_model.bin beside config.json, found neither")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    refused("found neither")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": os.getcwd}))
    refused(r"pytorch_model\.bin: cannot be read as tensors only")
    (tmp_path / "pytorch_model.bin").unlink()
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        file.truncate(5 << 30)
    refused("bytes; at most 4294967296 are read")


# ---------------------------------------------------------------------------------------------------------------------
# Our own
# ---------------------------------------------------------------------------------------------------------------------


def own(folder: Path) -> NetClassifier:
    preprocess = Preprocess(size=(24, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_fraction=0.875)
    options = {"widths": [4, 6]}
    made = NetClassifier(
        models.build("smallnet", 2, **options), preprocess, ("no", "yes"), ModelSpec(name="smallnet", options=options)
    )
    opsin.save(made, folder / "classifier")
    return made


def test_a_classifier_of_ours_is_a_source(tmp_path: Path) -> None:
    made = own(tmp_path)
    for place in (tmp_path, tmp_path / "classifier", str(tmp_path)):
        source = hub.find(place)
        assert (
            source.spec() == made.spec and source.preprocess() == made.preprocess and source.classes(2) == made.classes
        )
        ours, theirs = made.model.state_dict(), source.tensors()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    weights = tmp_path / "classifier" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"weights\.safetensors: damaged"):
        hub.find(tmp_path)
    assert hub.find(shipped.SHIPPED[0]).spec().name == "smallnet"


def test_our_config_says_to_others_what_it_says_to_us(tmp_path: Path) -> None:
    """Read as any folder with timm's keys is, with the weights under the name that others give them."""
    made = own(tmp_path)
    (tmp_path / "theirs").mkdir()
    for name, other in (("config.json", "config.json"), ("weights.safetensors", "model.safetensors")):
        (tmp_path / "theirs" / other).write_bytes((tmp_path / "classifier" / name).read_bytes())
    source = hub.find(tmp_path / "theirs")
    assert source.own is None and source.spec() == ModelSpec(name="smallnet")
    assert source.preprocess() == made.preprocess and source.classes(2) == made.classes


# ---------------------------------------------------------------------------------------------------------------------
# Training from them
# ---------------------------------------------------------------------------------------------------------------------


def test_training_from_a_folder(published: Path, pictures: Path, tmp_path: Path, opsin_: Any) -> None:
    """Two classes where the weights have three: said on stderr and in the run, and everything else is taken."""
    arguments = ("train", pictures, "--weights", published, "--set", "model.options.width=4")
    code, _, err = opsin_(
        *arguments, "--epochs", 1, "--lr", 1e-9, "--set", "preprocess.size=[32,32]", "--out", tmp_path / "run", "--json"
    )
    assert code == 0
    said = "the weights are for 3 classes, here are 2: not taken, but new, are head.linear.weight, head.linear.bias"
    assert said in err and f"{published} has weights of resnet18" in err and "normalised as for those weights" in err
    assert said in json.loads((tmp_path / "run" / "environment.json").read_text())["words"]
    made = opsin.load(tmp_path / "run")
    assert isinstance(made, NetClassifier) and made.spec.name == "resnet18" and made.preprocess.mean == (0.5, 0.4, 0.3)
    trained, began = made.model.state_dict(), hub.find(published).tensors()
    torch.testing.assert_close(trained["stages.stem.0.weight"], began["conv1.weight"], rtol=0, atol=1e-6)
    assert trained["head.linear.weight"].shape == (2, 32)
    code, _, err = opsin_(*arguments, "--model", "resnet34", "--dry-run")
    assert code == 2 and "do not fit resnet34" in err


def test_grey_pictures_are_trained_from_weights_for_colour(opsin_: Any) -> None:
    code, _, err = opsin_("train", "digits", "--weights", "cifar10-small", "--dry-run")
    assert code == 0, err
    assert "pictures are made colour and normalised as for those weights" in err
    assert "narrower" not in err  # the network is as wide as its weights


def test_training_from_a_classifier_of_ours_and_from_damaged_words(pictures: Path, tmp_path: Path, opsin_: Any) -> None:
    own(tmp_path / "ours")
    code, out, err = opsin_("train", pictures, "--weights", tmp_path / "ours", "--dry-run")
    assert code == 0 and "widths" in out and "loaded 27 tensors into smallnet" in err and "classes" not in err
    code, out, err = opsin_("train", pictures, "--weights", "cifar10-small", "--dry-run")
    assert code == 0 and 'weights = "cifar10-small"' in out and "the weights are for 10 classes, here are 2" in err
    folder = write(tmp_path / "theirs", CONFIG | {"pretrained_cfg": {}})
    code, out, err = opsin_("train", pictures, "--weights", folder, "--set", "model.options.width=4", "--dry-run")
    assert code == 0 and "how their pictures were normalised is not known" in err
    code, _, err = opsin_("train", pictures, "--weights", tmp_path / "nowhere", "--dry-run")
    assert code == 3 and "nowhere: No such file" in err


# ---------------------------------------------------------------------------------------------------------------------
# The hub
# ---------------------------------------------------------------------------------------------------------------------


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch, opsin_: Any) -> None:
    for name in ("hf:", "hf:resnet", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a/b c"):
        with pytest.raises(UsageError, match="expected hf:owner/name or hf:owner/name@revision"):
            hub.find(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    code, _, err = opsin_("import", "hf:timm/resnet18.a1_in1k", "-o", "no")
    assert code == 2 and err.count("\n") == 1 and "needs the package huggingface_hub (pip install 'opsin[hub]')" in err


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download of single files uses."""

    root: Path
    commit = "c0ffee" + "0" * 34
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        owner, name, _, revision, file = (self.path.strip("/") + "/////").split("/", 4)
        file = file.rstrip("/")
        path, known = self.root / owner / name / file, revision in ("main", "v2", self.commit)
        if not path.is_file() or not known:
            self.send_response(404)
            code = "EntryNotFound" if path.parent.is_dir() and known else "RepoNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = 5 << 30 if owner == "huge" and file != "config.json" else path.stat().st_size
        self.send_response(200)
        for key, value in (
            ("ETag", f'"{name}-{file}"'),
            ("X-Repo-Commit", self.commit),
            ("Content-Length", str(size)),
            ("X-Linked-Size", str(size)),
        ):
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(path.read_bytes())

    def log_message(self, *_: Any) -> None:
        pass


def test_folders_on_the_hub(published: Path, tmp_path: Path) -> None:
    """The real package against a server on this machine, in a process of its own: it reads its address on import."""
    pytest.importorskip("huggingface_hub")
    root = tmp_path / "root"
    for owner in ("timm", "huge"):
        (root / owner).mkdir(parents=True)
        (root / owner / "resnet18").symlink_to(published)
    own(tmp_path / "ours")
    (root / "us").mkdir()
    (root / "us" / "mine").symlink_to(tmp_path / "ours" / "classifier")
    Hub.root, Hub.asked = root, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import os, sys
from opsin import hub
from opsin.errors import OpsinError
for name in sys.argv[1:]:
    if name == "offline":
        os.environ["OPSIN_OFFLINE"] = "1"
        continue
    try:
        source = hub.find(name)
        print(name, source.spec().name, len(source.tensors()), source.file.parent.name)
    except OpsinError as error:
        print(type(error).__name__, error)
"""
    names = ["hf:timm/resnet18", "hf:timm/resnet18@v2", "hf:us/mine", "hf:huge/resnet18", "hf:timm/none"]
    names += ["offline", "hf:timm/resnet18", "hf:timm/other"]
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env=environment,
        )
    finally:
        server.shutdown()
        server.server_close()
    lines = done.stdout.splitlines()
    assert lines[0] == f"hf:timm/resnet18 resnet18 122 {Hub.commit}"
    assert lines[1] == f"hf:timm/resnet18@v2 resnet18 122 {Hub.commit}"
    assert lines[2] == f"hf:us/mine smallnet 27 {Hub.commit}"
    assert lines[3] == "BadInput hf:huge/resnet18: model.safetensors: 5368709120 bytes; at most 4294967296 are fetched"
    assert lines[4].startswith("BadInput hf:timm/none: cannot be fetched from the hub: ") and "404" in lines[4]
    assert lines[5] == lines[0] and lines[6].startswith("BadInput hf:timm/other: cannot be fetched from the hub: ")
    assert len(lines) == 7 and not [line for line in Hub.asked if line.startswith("GET") and line.endswith(".bin")]
