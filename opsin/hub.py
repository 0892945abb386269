"""Weights to start from, wherever they are: a file, one of our classifiers, or a folder as timm and the hub have them.

Such a folder holds `config.json` with timm's keys beside `model.safetensors` or `pytorch_model.bin`. Read of it are the
network (`architecture`, `num_classes`), the preprocessing (`pretrained_cfg`) and the names of the classes
(`label_names`). `hf:owner/name` is the folder of that name on the Hugging Face hub, if `huggingface_hub` is installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from opsin import classifier as classifiers
from opsin import shipped, storage
from opsin.classifier import NetClassifier
from opsin.errors import BadInput, OpsinError, StorageError, UsageError, near
from opsin.models import MODELS
from opsin.models.weights import MAX_BYTES, check_file, load_foreign
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec, check

CONFIG = classifiers.FOR_OTHERS
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
OURS = (classifiers.CONFIG, classifiers.WEIGHTS, storage.MANIFEST)
MAX_CONFIG = 16 << 20  # names and descriptions of the 21,841 classes of all of ImageNet take 2 MiB
MAX_SIDE = 4096
PREFIX = "hf:"

# timm's architectures that have another name here; all others of its that are here have ours
ARCHITECTURES = {
    **{name: "inception_v3" for name in ("tf_inception_v3", "adv_inception_v3", "gluon_inception_v3")},
    "ens_adv_inception_resnet_v2": "inception_resnet_v2",
    **{f"gluon_resnet{depth}_v1b": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"tv_resnet{depth}": f"resnet{depth}" for depth in (34, 50, 101, 152)},
    **{f"{kind}_resnet{depth}": f"resnet{depth}" for kind in ("ssl", "swsl") for depth in (18, 50)},
}
# Arguments of timm's builders that leave the network as it is, or show in the tensors
HARMLESS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "img_size", "zero_init_last"}


@dataclass(frozen=True)
class Source:
    """Where weights are, and what is said there about them.

    place: as the person named it. file: of the tensors. config: the contents of config.json; None for a file alone.
    own: the classifier, where the folder is one of ours; it is read whole, every byte checked.
    """

    place: str
    file: Path
    config: Mapping[str, Any] | None = None
    own: NetClassifier | None = None

    @property
    def alone(self) -> bool:
        """Whether there is a file of tensors and nothing else."""
        return self.own is None and self.config is None

    @property
    def where(self) -> Path:
        return self.file.parent / CONFIG

    def tensors(self, notes: list[str] | None = None) -> dict[str, Tensor]:
        """As `models.weights.load_foreign` has them, under the names that they have there."""
        return dict(self.own.model.state_dict()) if self.own else load_foreign(self.file, notes=notes)

    def spec(self) -> ModelSpec:
        """The network, by our name; `UsageError` with the near ones when it is none of ours, or is not said."""
        if self.own:
            return self.own.spec
        if self.config is None:
            raise UsageError(f"{self.place} does not say which network it is of; name it: --model NAME")
        theirs = self.config.get("architecture")
        if not isinstance(theirs, str):
            kind = " (a folder of transformers, whose networks are others)" if "architectures" in self.config else ""
            raise BadInput(
                self.where, f"architecture: expected a name, as timm writes it, received {theirs!r:.80}{kind}"
            )
        base = theirs.partition(".")[0]
        name = ARCHITECTURES.get(base, base)
        if name not in MODELS:
            known = near(base, [*ARCHITECTURES, *MODELS])
            raise UsageError(f"{self.where}: no network here for the architecture {theirs[:80]!r}; {known}")
        arguments = self.config.get("model_args") or {}
        unknown = sorted(set(arguments) - HARMLESS) if isinstance(arguments, dict) else [repr(arguments)]
        if (pool := self.config.get("global_pool", "avg")) != "avg":
            unknown.append(f"global_pool {pool!r}")
        if unknown:
            changes = ", ".join(unknown)[:200]
            raise UsageError(f"{self.where}: a {name} changed in a way that is not known here: {changes}")
        return ModelSpec(name=name)

    def preprocess(self) -> Preprocess:
        """From picture to network as there; `BadInput` for what is not said or not known here, nothing is guessed."""
        if self.own:
            return self.own.preprocess
        if self.config is None:
            raise UsageError(f"{self.place} does not say how its pictures were prepared; say it: --preprocess KIND")
        published = self._published()
        try:
            channels, *size = check(published.get("input_size"), tuple[int, int, int], "input_size")
            if max(size) > MAX_SIDE:
                raise UsageError(f"input_size: expected at most {MAX_SIDE}×{MAX_SIDE} pixels, received {size}")
            mode = published.get("crop_mode", "center")
            if mode not in ("center", "squash") or (mode == "squash" and published.get("crop_pct") != 1):
                raise UsageError(f"crop_mode: expected center, or squash with a crop_pct of 1, received {mode!r:.80}")
            values = {"size": size, "channels": channels, "crop": "crop" if mode == "center" else "squash"}
            values |= {key: published.get(key) for key in ("mean", "std", "interpolation")}
            return check(values | {"crop_fraction": published.get("crop_pct")}, Preprocess, "pretrained_cfg")
        except UsageError as error:
            raise BadInput(self.where, f"{error} (--preprocess KIND says it instead)") from error

    def classes(self, count: int) -> tuple[str, ...] | None:
        """The names of the `count` classes; None where they have none. `BadInput` for another number of them."""
        if self.own:
            return self.own.classes
        if self.config is None:
            return None
        published = self._published()
        names: Any = self.config.get("label_names", published.get("label_names", published.get("labels")))
        number = self.config.get("num_classes", published.get("num_classes", count))
        if isinstance(names, dict):  # by number
            names = [names.get(str(i)) for i in range(max(len(names), 1))]
        told = number if names is None else len(names) if isinstance(names, list) else -1
        if told != count or number != count:
            found = f"num_classes {number!r:.40}" + ("" if names is None else f" and {max(told, 0)} label_names")
            raise BadInput(
                self.where, f"the weights have {count} classes, but {found}; --classes FILE names those of the weights"
            )
        if names is not None and not all(isinstance(name, str) for name in names):
            raise BadInput(self.where, "label_names: expected a text for each class; --classes FILE names them instead")
        return None if names is None else tuple(names)

    def _published(self) -> Mapping[str, Any]:
        """timm's `pretrained_cfg`; its early folders have those keys beside the others."""
        assert self.config is not None
        published = self.config.get("pretrained_cfg", self.config)
        if not isinstance(published, dict):
            raise BadInput(self.where, f"pretrained_cfg: expected an object, received {published!r:.80}")
        return published


def find(place: str | Path) -> Source:
    """The weights at `place`: FILE, DIR or hf:owner/name. `BadInput` names the file that is missing or damaged."""
    folder = fetch(str(place)) if str(place).startswith(PREFIX) else shipped.find(place)
    if not folder.is_dir():
        if not folder.exists():
            raise BadInput(folder, "No such file or directory")
        return Source(str(place), folder)
    if any(storage.holds(own) for own in (folder, folder / "classifier")):
        own = classifiers.load(folder)
        if not isinstance(own, NetClassifier):
            raise UsageError(f"{place}: a {type(own).__name__} has no weights of a network")
        return Source(str(place), folder / classifiers.WEIGHTS, own=own)
    if not (folder / CONFIG).exists():
        raise BadInput(folder, f"expected {CONFIG} and {' or '.join(WEIGHTS)} in this folder, {CONFIG} is not there")
    check_file(folder / CONFIG, MAX_CONFIG)
    try:
        config = storage.read_json((folder / CONFIG).read_bytes(), folder / CONFIG, MAX_CONFIG)
    except StorageError as error:
        raise BadInput(folder / CONFIG, f"not the JSON expected: {error.__cause__ or error}") from error
    except OSError as error:
        raise BadInput(folder / CONFIG, error.strerror or str(error)) from error
    if not isinstance(config, dict):
        raise BadInput(folder / CONFIG, f"expected an object, received {config!r:.80}")
    files = [folder / name for name in WEIGHTS if (folder / name).exists()]
    if not files:
        raise BadInput(folder, f"expected {' or '.join(WEIGHTS)} beside {CONFIG}, found neither")
    return Source(str(place), files[0], config=config)


def fetch(name: str) -> Path:
    """hf:owner/name, or hf:owner/name@revision, as a folder in the cache of `huggingface_hub`, downloaded where needed.

    Only the files that are read here, none larger than `MAX_BYTES`. With OPSIN_OFFLINE=1 only what the cache has.
    """
    match = re.fullmatch(rf"{PREFIX}(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", name)
    if not match:
        raise UsageError(f"expected {PREFIX}owner/name or {PREFIX}owner/name@revision, received {name[:200]!r}")
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"{name}: needs the package huggingface_hub (pip install 'opsin[hub]'); a folder downloaded by other means "
            "works without it"
        ) from error
    repository, revision = match.groups()
    offline = os.environ.get("OPSIN_OFFLINE", "0") not in ("", "0")

    def get(file: str, revision: str | None) -> Path:
        if not offline:
            size = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision)).size
            if size is None or size > MAX_BYTES:
                raise BadInput(name, f"{file}: {size} bytes; at most {MAX_BYTES} are fetched")
        return Path(hub.hf_hub_download(repository, file, revision=revision, local_files_only=offline))

    try:
        folder = get(CONFIG, revision).parent  # its name is the commit, so that all files are of the same one
        for file in WEIGHTS:
            try:
                get(file, folder.name)
                return folder
            except hub.errors.EntryNotFoundError:
                continue
        for file in OURS:
            get(file, folder.name)
        return folder
    except OpsinError:
        raise
    except Exception as error:  # of a package that has a class for each of its troubles, and lets others' through
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(name, f"cannot be fetched from the hub: {reason}") from error
