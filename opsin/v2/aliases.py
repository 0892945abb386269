"""What programs of 2017 import, made importable: `paddle.v2` and its companions, and names that other libraries have
dropped since. Nothing is installed by importing this; `python -m opsin.v2` does it, or `opsin.v2.install()`."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pkgutil
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

import opsin.v2
from opsin.errors import UsageError
from opsin.v2 import activation, attr, data_type, evaluator, layer, networks, optimizer, pooling, proto
from opsin.v2.graph import Layer, unique_name

# Parts of the package that a program has no use for.
OWN = ("aliases", "translate", "__main__")
HELPER_PARTS = ("activations", "attrs", "evaluators", "layers", "networks", "optimizers", "poolings")


def install() -> None:
    """Make `paddle.v2`, `paddle.trainer_config_helpers`, `paddle.trainer` and `paddle.proto` importable.

    They are the modules of `opsin.v2`, not copies. `UsageError` when another paddle has been imported already.
    """
    other = sys.modules.get("paddle")
    if other is not None:
        if getattr(other, "v2", None) is not opsin.v2:
            raise UsageError(
                "another paddle is imported in this process; opsin.v2 can take its place in a new one only"
            )
        return
    found = {"paddle.v2": opsin.v2}
    for part in pkgutil.walk_packages(opsin.v2.__path__, "opsin.v2."):
        if part.name.rpartition(".")[2] not in OWN:
            found[f"paddle{part.name.removeprefix('opsin')}"] = importlib.import_module(part.name)
    helpers = _module("paddle.trainer_config_helpers", **_v1_names())
    decorators = _module("paddle.trainer_config_helpers.default_decorators", wrap_name_default=wrap_name_default)
    found |= {"paddle.trainer_config_helpers": helpers, decorators.__name__: decorators}
    found |= {f"paddle.trainer_config_helpers.{part}": helpers for part in HELPER_PARTS}
    found |= {
        "paddle.v2.config_base": _module("paddle.v2.config_base", Layer=Layer),
        "paddle.trainer": _module("paddle.trainer"),
        "paddle.trainer.PyDataProvider2": data_type,
        "paddle.proto": _module("paddle.proto"),
        "paddle.proto.ParameterConfig_pb2": proto,
        "paddle.proto.ModelConfig_pb2": proto,
    }
    sys.modules.update(found, paddle=_module("paddle"))
    for name, module in found.items():
        above, _, last = name.rpartition(".")
        if not sys.modules[above].__name__.startswith("opsin."):
            setattr(sys.modules[above], last, module)
    sys.meta_path.insert(0, _NoOther())


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name, "Made by opsin.v2 for programs of 2017.")
    module.__path__ = []
    module.__dict__.update(names, __all__=sorted(names))
    return module


class _NoOther(MetaPathFinder):
    """Says which parts of Paddle there are, instead of Python's bare "No module named"."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] == "paddle":
            raise ModuleNotFoundError(
                f"{fullname} is not supported: opsin.v2 has what image classification needs of paddle.v2", name=fullname
            )


# ---------------------------------------------------------------------------------------------------------------------
# The names of version 1, which `from paddle.trainer_config_helpers import *` brings
# ---------------------------------------------------------------------------------------------------------------------

_V1_LAYERS = {
    "max_id": "maxid_layer",
    "cross_entropy_cost": "cross_entropy",
    "multi_binary_label_cross_entropy_cost": "multi_binary_label_cross_entropy",
}


def _v1_names() -> dict[str, Any]:
    names: dict[str, Any] = {"LayerOutput": Layer, "wrap_name_default": wrap_name_default}
    for form, module in (("{}Activation", activation), ("{}Pooling", pooling), ("{}", attr)):
        names |= {form.format(name): value for name, value in _made_in(module, inspect.isclass).items()}
    for name, kind in _made_in(optimizer, inspect.isclass).items():
        if issubclass(kind, optimizer.Optimizer):
            names[f"{name}Optimizer"] = kind
    names |= {kind.__name__: kind for kind in (optimizer.L2Regularization, optimizer.ModelAverage)}
    for name, function in _made_in(layer).items():
        whole = name.endswith(("_cost", "_projection", "network"))
        names[_V1_LAYERS.get(name, name if whole else f"{name}_layer")] = function
    names |= _made_in(networks)
    names |= {name: value for name, value in _made_in(evaluator).items() if name.endswith("_evaluator")}
    return names | {"data_layer": data_layer}


def _made_in(module: ModuleType, kind: Callable[[Any], bool] = inspect.isfunction) -> dict[str, Any]:
    """The public functions, or classes, of a module, without those that it imports."""
    found = {name: value for name, value in vars(module).items() if kind(value) and name[0] != "_"}
    return {name: value for name, value in found.items() if value.__module__ == module.__name__}


def data_layer(name: str, size: int, height: int | None = None, width: int | None = None, **other: Any) -> Layer:
    """Version 1's data layer, which says its size only: a dense vector."""
    return layer.data(name, data_type.dense_vector(size), height, width, **other)


def wrap_name_default(name_prefix: str | None = None, name_param: str = "name") -> Callable[[Any], Any]:
    """A decorator: where no name is given, the function gets `__prefix_0__`, `__prefix_1__` …, by default its name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            if inspect.signature(function).bind_partial(*args, **kwargs).arguments.get(name_param) is None:
                kwargs[name_param] = unique_name(name_prefix or function.__name__)
            return function(*args, **kwargs)

        return named

    return decorate


# ---------------------------------------------------------------------------------------------------------------------
# What other libraries had
# ---------------------------------------------------------------------------------------------------------------------


def _string_io(usual: type[io.BytesIO] | type[io.StringIO]) -> Callable[..., Any]:
    def StringIO(buffer: str | bytes | None = None) -> io.BytesIO | io.StringIO:
        """A file in memory, of text or bytes as `buffer` is."""
        if isinstance(buffer, str):
            return io.StringIO(buffer)
        return usual() if buffer is None else io.BytesIO(buffer)

    return StringIO


def restore() -> None:
    """Put back names of 2017 that Pillow and NumPy have dropped, and Python 2's modules for files in memory.

    An empty cStringIO is one of bytes, an empty StringIO one of text: what they were mostly used for.
    """
    for name, usual in (("cStringIO", io.BytesIO), ("StringIO", io.StringIO)):
        sys.modules.setdefault(name, _module(name, StringIO=_string_io(usual)))
    filters = Image.Resampling
    for name, value in {"ANTIALIAS": filters.LANCZOS, "LINEAR": filters.BILINEAR, "CUBIC": filters.BICUBIC}.items():
        if name not in vars(Image):
            setattr(Image, name, value)
    for kind in (bool, int, float, complex, object):
        if kind.__name__ not in vars(np):
            setattr(np, kind.__name__, kind)
