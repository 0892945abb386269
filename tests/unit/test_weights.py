"""Foreign weights: read as tensors only, renamed by tables, refused with everything that does not fit."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opsin.errors import BadInput, UsageError
from opsin.models import MODELS, build
from opsin.models.weights import KEY_MAPS, classes_and_channels, key_map, load_foreign, load_into, translate
from opsin.types import Model
from tests import make

pytestmark = pytest.mark.usefixtures("one_thread")


def public_resnet20() -> OrderedDict[str, Tensor]:
    """Random tensors under the names and in the shapes of the public CIFAR ResNet-20, prefixed as DataParallel does."""
    return OrderedDict(
        (f"module.{key}", torch.rand(shape) + 0.1) for key, shape in make.listed("cifar_resnet20").items()
    )


def state(model: Model) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("suffix", [".th", ".pth", ".tar", ".PT", ".bin"])
def test_a_training_scripts_checkpoint(tmp_path: Path, suffix: str, legacy: bool) -> None:
    tensors, path, notes = public_resnet20(), tmp_path / f"weights{suffix}", []
    contents = {"state_dict": tensors, "best_prec1": 91.73, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_foreign(path, notes=notes)
    assert list(loaded) == [key.removeprefix("module.") for key in tensors]
    assert all(torch.equal(loaded[key.removeprefix("module.")], value) for key, value in tensors.items())
    assert notes == ["took the tensors under 'state_dict'", "took off the prefix 'module.'"]


def test_wrappers_and_prefixes_in_any_order(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    for contents, keys, note in (
        ({"a.weight": tensor}, ["a.weight"], []),
        ({"module._orig_mod.a": tensor, "module._orig_mod.b": tensor}, ["a", "b"], ["'module.'", "'_orig_mod.'"]),
        ({"_orig_mod.module.a": tensor}, ["a"], ["'_orig_mod.'", "'module.'"]),
        ({"module.a": tensor, "b": tensor}, ["module.a", "b"], []),  # not all: left, and reported as not expected
        ({"model": {"a": tensor}, "state_dict_ema": {"a": tensor + 1}}, ["a"], ["'model' (not state_dict_ema)"]),
        ({"state_dict_ema": {"a": tensor}}, ["a"], ["'state_dict_ema'"]),
        ({"model": tensor}, ["model"], []),  # a tensor that happens to have that name
    ):
        torch.save(contents, tmp_path / "w.pt")
        notes: list[str] = []
        assert list(load_foreign(tmp_path / "w.pt", notes=notes)) == keys
        assert len(notes) == len(note) and all(part in line for part, line in zip(note, notes, strict=True))
        assert list(load_foreign(tmp_path / "w.pt")) == keys


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"module.fc.weight": torch.arange(6.0).view(2, 3)}, path)
    assert torch.equal(load_foreign(path)["fc.weight"], torch.arange(6.0).view(2, 3))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInput, match=r"w\.safetensors: not a safetensors file, or damaged"):
        load_foreign(path)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match="not a safetensors file, or damaged"):
        load_foreign(path)


class Marker:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_file_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "x": Marker(trace)}, path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(BadInput, match=r"evil.pth: cannot be read as tensors only: it holds .*mkdir.*safetensors"):
        load_foreign(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Marker(trace)))
    with pytest.raises(BadInput, match="cannot be read as tensors only"):
        load_foreign(path)
    assert not trace.exists()


def test_damaged_files(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, whole)
    old = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, old, _use_new_zipfile_serialization=False)
    path = tmp_path / "w.pth"
    for data in (b"", b"no weights", b"PK\x03\x04", *(f.getvalue()[:n] for f in (whole, old) for n in (10, 300, -900))):
        path.write_bytes(data)
        with pytest.raises(BadInput, match="cannot be read as tensors only"):
            load_foreign(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([torch.ones(1)], "expected named tensors, received a value of type list"),
        (torch.ones(1), "expected named tensors, received a value of type Tensor"),
        ({}, "received an empty mapping"),
        ({"state_dict": {}}, "received an empty mapping"),
        ({"a": torch.ones(1), "epoch": 3}, "received a value of type int under 'epoch'"),
        ({"a": torch.ones(2, 2).to_sparse()}, "expected plain dense tensors, 'a' is torch.sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "expected plain dense tensors"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, contents: Any, message: str) -> None:
    torch.save(contents, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=message):
        load_foreign(tmp_path / "w.pth")


def test_size_and_kind_of_the_file_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(5000)}, path)
    with pytest.raises(BadInput, match="bytes; at most 1000 are read"):
        load_foreign(path, max_bytes=1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
    assert path.stat().st_size < 2000
    with pytest.raises(BadInput, match="1000000 bytes once unpacked; at most 2000 are read"):
        load_foreign(path, max_bytes=2000)
    with pytest.raises(BadInput, match="No such file"):
        load_foreign(tmp_path / "absent.pth")
    with pytest.raises(BadInput, match="this is not a file"):
        load_foreign(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"expected a weights file \(.safetensors, .pth.*\), received .h5"):
        load_foreign(tmp_path / "w.h5")


# ---------------------------------------------------------------------------------------------------------------------
# Renaming and using
# ---------------------------------------------------------------------------------------------------------------------


def test_the_public_resnet20_fits_and_says_what_was_done(tmp_path: Path) -> None:
    torch.save({"state_dict": public_resnet20()}, tmp_path / "resnet20.th")
    tensors = load_foreign(tmp_path / "resnet20.th")
    assert classes_and_channels(tensors, "resnet20") == (10, 3)
    model = build("resnet20", 10)
    assert load_into(model, tensors, "resnet20") == [
        "loaded 97 tensors into resnet20, 97 of them renamed",
        "the file has no num_batches_tracked; the 19 counters stay at 0",
    ]
    ours = model.state_dict()
    pairs = {
        "conv1.weight": "stages.stem.0.weight",
        "bn1.running_var": "stages.stem.1.running_var",
        "layer1.0.conv1.weight": "stages.stage1.0.body.0.0.weight",
        "layer1.2.bn1.bias": "stages.stage1.2.body.0.1.bias",
        "layer2.0.conv2.weight": "stages.stage2.0.body.1.0.weight",
        "layer3.2.bn2.running_mean": "stages.stage3.2.body.1.1.running_mean",
        "linear.bias": "head.linear.bias",
    }
    for foreign, key in pairs.items():
        assert torch.equal(tensors[foreign], ours[key])


def test_a_foreign_residual_block_computes_what_it_did(tmp_path: Path) -> None:
    """The public network written out from its names, against ours after loading."""
    tensors = {key.removeprefix("module."): value for key, value in public_resnet20().items()}
    tensors = {key: value - 0.6 if "conv" in key else value for key, value in tensors.items()}
    model = build("resnet20", 10).eval()
    load_into(model, tensors, "resnet20")
    x = images = torch.randn(3, 3, 8, 8)
    functional = torch.nn.functional

    def conv_bn(x: Tensor, path: str, number: int, stride: int) -> Tensor:
        x = functional.conv2d(x, tensors[f"{path}conv{number}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            tensors[f"{path}bn{number}.{leaf}"].view(-1, 1, 1)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = conv_bn(x, "", 1, 1).relu()
    for layer in (1, 2, 3):
        for block in (0, 1, 2):
            stride = 2 if layer > 1 and block == 0 else 1
            y = conv_bn(x, f"layer{layer}.{block}.", 1, stride).relu()
            y = conv_bn(y, f"layer{layer}.{block}.", 2, 1)
            if stride == 2:
                quarter = y.shape[1] // 4
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            x = (x + y).relu()
    expected = x.mean((2, 3)) @ tensors["linear.weight"].T + tensors["linear.bias"]
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_torchvision_names_with_projections_and_half_precision() -> None:
    model = build("resnet18", 5, 1, width=4)
    reverse = {"stem.0": "conv1", "stem.1": "bn1", "body.0.0": "conv1", "body.0.1": "bn1", "body.1.0": "conv2"}
    reverse |= {"body.1.1": "bn2", "shortcut.": "downsample.", "head.linear": "fc", "stages.": "", "stage": "layer"}
    foreign = {}
    for key, value in state(model).items():
        for ours, theirs in reverse.items():
            key = key.replace(ours, theirs)
        foreign[key] = value.half() if value.is_floating_point() else value
    assert "layer2.0.downsample.1.running_mean" in foreign and "fc.weight" in foreign
    assert classes_and_channels(foreign, "resnet18") == (5, 1)
    other = build("resnet18", 5, 1, width=4)
    notes = load_into(other, foreign, "resnet18")
    assert notes == [
        "loaded 122 tensors into resnet18, 122 of them renamed",
        "converted 102 tensors from float16 to float32",
    ]
    torch.testing.assert_close(state(other), state(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("file", sorted(path.stem for path in make.FOREIGN.glob("t*.txt")))
def test_every_published_network_fits_without_a_missing_or_unexpected_name(file: str) -> None:
    """On the meta device: names and shapes only. That the values reach the right places: tests/test_foreign.py."""
    name = file.split("_", 1)[1]
    options: dict[str, Any] = {"aux": False} if file == "timm_inception_v3" else {}
    with torch.device("meta"):
        tensors = {
            key: torch.empty(shape, dtype=torch.float32 if shape else torch.int64)
            for key, shape in make.listed(file).items()
        }
        model = build(name, 1000, **options)
    notes = load_into(model, tensors, name)
    assert notes == [f"loaded {len(tensors)} tensors into {name}, {len(tensors)} of them renamed"]
    assert classes_and_channels(tensors, name) == (1000, 3)


def test_there_is_a_list_for_every_network_that_others_publish() -> None:
    files = {path.stem for path in make.FOREIGN.glob("t*.txt")}
    vgg, resnet = {name for name in KEY_MAPS if name.startswith("vgg")}, {f"resnet{n}" for n in (18, 34, 50, 101, 152)}
    assert {f"torchvision_{n}" for n in vgg | resnet | {"alexnet_owt", "googlenet_bn", "inception_v3"}} <= files
    assert {f"timm_{n}" for n in vgg | resnet | {"inception_v3", "inception_v4", "inception_resnet_v2"}} <= files
    assert {file.split("_", 1)[1] for file in files} - resnet == set(KEY_MAPS) - {"resnet"}


def test_our_own_names_need_no_table() -> None:
    model, other = (build("lenet", 4, 1, image_size=(16, 16)) for _ in range(2))
    assert load_into(other, state(model), "lenet") == ["loaded 8 tensors into lenet"]
    assert all(torch.equal(a, b) for a, b in zip(state(model).values(), state(other).values(), strict=True))
    assert classes_and_channels(state(model), "lenet") == (4, 1)
    resnet = state(build("resnet20", 7, 2))
    assert translate(resnet, "resnet20") == resnet
    for name in ("vgg16_cifar", "smallnet", "lenet5", "nin_cifar", "alexnet_cifar"):
        assert classes_and_channels(state(build(name, 7, 2)), name) == (7, 2)


def test_everything_that_does_not_fit_is_said_at_once_and_nothing_is_loaded() -> None:
    model = build("resnet20", 10)
    before = state(model)
    tensors = {key.removeprefix("module."): value for key, value in public_resnet20().items()}
    del tensors["layer3.2.conv2.weight"]
    tensors["fc2.weight"] = torch.ones(3)
    tensors["linear.weight"] = torch.ones(100, 64)
    tensors["bn1.bias"] = torch.ones(16, dtype=torch.int64)
    with pytest.raises(UsageError) as caught:
        load_into(model, tensors, "resnet20")
    assert str(caught.value) == (
        "the weights do not fit resnet20. missing: stages.stage3.2.body.1.0.weight. not expected: fc2.weight. "
        "of another shape: head.linear.weight (expected 10×64, received 100×64). "
        "of another kind: stages.stem.1.bias (int64)."
    )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(model).values(), strict=True))


ANSWERING = {  # what answers with a number of classes
    "lenet": ["head.weight", "head.bias"],
    "alexnet": ["head.weight", "head.bias"],
    "nin": ["stages.mlpconv4.cccp2.weight", "stages.mlpconv4.cccp2.bias"],
    "nin_cifar": ["stages.mlpconv3.cccp2.weight", "stages.mlpconv3.cccp2.bias"],
    "vgg16": ["head.weight", "head.bias"],
    "vgg16_cifar": ["head.weight", "head.bias"],
    "googlenet": ["head.linear.weight", "head.linear.bias"]
    + [f"aux.{stage}.linear.{leaf}" for stage in ("4a", "4d") for leaf in ("weight", "bias")],
    "inception_v3": ["head.linear.weight", "head.linear.bias", "aux.6e.linear.weight", "aux.6e.linear.bias"],
    "inception_resnet_v2": ["head.linear.weight", "head.linear.bias"],
    "resnet20": ["head.linear.weight", "head.linear.bias"],
    "preresnet20": ["head.linear.weight", "head.linear.bias"],
    "wrn16_2": ["head.linear.weight", "head.linear.bias"],
}


@pytest.mark.parametrize("name", ANSWERING)
def test_adapting_to_other_classes_and_channels_is_said(name: str) -> None:
    """On the meta device: every network takes weights of other classes and channels, and says which are not taken."""
    with torch.device("meta"):
        tensors, other = state(build(name, 12, 3)), build(name, 5, 1)
    with pytest.raises(UsageError, match="of another shape"):
        load_into(other, tensors, name)
    notes = load_into(other, tensors, name, adapt=True)
    first, classes, channels = notes
    assert first == f"loaded {len(tensors)} tensors into {name}"
    head, _, listing = classes.partition("not taken, but new, are ")
    assert head == "the weights are for 12 classes, here are 5: " and sorted(listing.split(", ")) == sorted(
        ANSWERING[name]
    )
    assert re.fullmatch(r"the weights are for 3 channels, the pictures have 1: stages\.\S+\.weight is summed", channels)


def test_adapted_channels_answer_as_before() -> None:
    """Grey pictures give what the same pictures in colour gave, and the other way round; the new head is untouched."""
    colour, grey = (build("resnet20", 4, channels, width=4).eval() for channels in (3, 1))
    image = torch.randn(2, 1, 8, 8)
    load_into(grey, state(colour), "resnet20", adapt=True)
    torch.testing.assert_close(grey(image).logits, colour(image.expand(-1, 3, -1, -1)).logits)
    again = build("resnet20", 4, 3, width=4).eval()
    assert "repeated and multiplied by 1/3" in load_into(again, state(grey), "resnet20", adapt=True)[-1]
    torch.testing.assert_close(again(image.expand(-1, 3, -1, -1)).logits, grey(image).logits)
    five = build("resnet20", 9, 5, width=4)
    own = state(five)["head.linear.weight"]
    load_into(five, state(colour), "resnet20", adapt=True)
    weight, old = state(five)["stages.stem.0.weight"], state(colour)["stages.stem.0.weight"]
    torch.testing.assert_close(weight, old[:, [0, 1, 2, 0, 1]] * 3 / 5)
    assert torch.equal(state(five)["head.linear.weight"], own)


def test_adapting_hides_no_other_difference() -> None:
    tensors, net = state(build("resnet20", 4, width=4)), build("resnet20", 5, width=8)
    before = state(net)
    with pytest.raises(UsageError, match=r"of another shape: stages\.stem\.0\.weight .* and \d+ more\.$") as caught:
        load_into(net, tensors | {"extra": torch.ones(1)}, "resnet20", adapt=True)
    assert "not expected: extra" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(net).values(), strict=True))
    odd = {"head.linear.bias": torch.ones(()), "stages.stem.0.weight": torch.ones(4, 0, 3, 3)}
    with pytest.raises(
        UsageError, match=r"received 4×0×3×3\), head\.linear\.bias \(expected 5, received one value\)\.$"
    ):
        load_into(build("resnet20", 5, width=4), tensors | odd, "resnet20", adapt=True)
    narrow = build("smallnet", 10, 1, widths=[4, 4])
    with pytest.raises(UsageError, match=r"stages\.whiten\.0\.weight \(expected 8×1×2×2, received 24×3×2×2\)"):
        load_into(narrow, state(build("smallnet", 10, 3, widths=[4, 4])), "smallnet", adapt=True)


def test_long_lists_are_counted() -> None:
    with pytest.raises(
        UsageError, match=r"missing: (stages\.\S+ ){8}and 89 more\. not expected: x0, .*x7 and 12 more\."
    ) as e:
        load_into(build("resnet20", 10), {f"x{i}": torch.ones(1) for i in range(20)}, "resnet20")
    assert len(str(e.value)) < 700


@pytest.mark.parametrize(
    ("given", "wanted", "hint"),
    [
        ({"shortcut": "B"}, {}, 'build the network with shortcut="B"'),
        ({}, {"shortcut": "B"}, 'build the network with shortcut="A"'),
        ({"num_classes": 100}, {}, "as many classes as the file has"),
    ],
)
def test_hints(given: dict[str, Any], wanted: dict[str, Any], hint: str) -> None:
    tensors = state(build("resnet20", **{"num_classes": 10, **given}))
    with pytest.raises(UsageError, match=hint):
        load_into(build("resnet20", **{"num_classes": 10, **wanted}), tensors, "resnet20")


def test_two_tensors_for_one_place() -> None:
    with pytest.raises(UsageError, match=r"two tensors are for head.linear.bias, one of them linear.bias"):
        translate({"fc.bias": torch.ones(1), "linear.bias": torch.ones(1)}, "resnet20")


def test_classes_and_channels_of_foreign_weights_of_another_network() -> None:
    with pytest.raises(UsageError, match=r"the weights do not fit resnet20: no last layer among encoder\.weight"):
        classes_and_channels({"encoder.weight": torch.ones(3, 3)}, "resnet20")
    with pytest.raises(UsageError, match=r"no first convolution among fc\.weight"):
        classes_and_channels({"fc.weight": torch.ones(3, 3)}, "resnet20")


def test_key_maps_are_of_networks_that_exist() -> None:
    assert set(KEY_MAPS) - {"resnet"} <= set(MODELS)
    assert key_map("resnet152") is KEY_MAPS["resnet"]
    assert key_map("lenet") == {}
    assert KEY_MAPS["vgg16"][r"features\.28"] == "stages.stage5.4"
    assert KEY_MAPS["vgg16_bn"][r"features\.41"] == "stages.stage5.7"


def test_a_tensor_that_claims_more_values_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "huge.pth"
    torch.save({"head.weight": torch.zeros(1).expand(1 << 36, 64)}, path)
    with pytest.raises(BadInput, match="claims 4398046511104 values that the file does not hold"):
        load_foreign(path)
