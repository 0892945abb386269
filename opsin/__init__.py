"""Image classification: pictures in, a trained, measured, usable classifier out.

    run = opsin.train("path/to/folder")
    classifier = opsin.load(run.folder)
    opsin.predict(classifier, ["picture.jpg"])
    opsin.evaluate(classifier, opsin.load_data("digits")["test"])

`import opsin` is instant: a name below brings its file, and torch, when it is first used.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from opsin.classifier import Classifier as Classifier
    from opsin.classifier import FusedClassifier as FusedClassifier
    from opsin.classifier import NetClassifier as NetClassifier
    from opsin.classifier import Prediction as Prediction
    from opsin.classifier import features as features
    from opsin.classifier import load as load
    from opsin.classifier import predict as predict
    from opsin.classifier import save as save
    from opsin.data.datasets import load as load_data  # noqa: F401
    from opsin.errors import OpsinError as OpsinError
    from opsin.evaluate import LabelReport as LabelReport
    from opsin.evaluate import Report as Report
    from opsin.evaluate import evaluate as evaluate
    from opsin.evaluate import evaluate_labels as evaluate_labels
    from opsin.models import MODELS as MODELS
    from opsin.models import build as build
    from opsin.preprocess import Preprocess as Preprocess
    from opsin.recipe import Recipe as Recipe
    from opsin.run import Run as Run
    from opsin.run import fit as fit
    from opsin.run import import_weights as import_weights
    from opsin.run import resume as resume
    from opsin.run import train as train

_HOMES = {  # public name → file, and its name there when that differs
    "Classifier": "classifier",
    "FusedClassifier": "classifier",
    "LabelReport": "evaluate",
    "MODELS": "models",
    "NetClassifier": "classifier",
    "OpsinError": "errors",
    "Prediction": "classifier",
    "Preprocess": "preprocess",
    "Recipe": "recipe",
    "Report": "evaluate",
    "Run": "run",
    "build": "models",
    "evaluate": "evaluate",
    "evaluate_labels": "evaluate",
    "features": "classifier",
    "fit": "run",
    "import_weights": "run",
    "load": "classifier",
    "load_data": "data.datasets:load",
    "predict": "classifier",
    "resume": "run",
    "save": "classifier",
    "train": "run",
}

__all__ = ["__version__", *sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def _public(name: str) -> Any:
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return _public(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(types.ModuleType):
    """The package, with `opsin.train` and `opsin.evaluate` always the functions.

    Python binds a submodule to its package when it is first imported; without this class, `opsin.train(...)` would
    break as soon as train.py is loaded. Inside the package write `from opsin.train import ...`, never
    `from opsin import train`.
    """

    @property
    def train(self) -> Any:
        return _public("train")

    @train.setter
    def train(self, value: Any) -> None:
        pass

    @property
    def evaluate(self) -> Any:
        return _public("evaluate")

    @evaluate.setter
    def evaluate(self, value: Any) -> None:
        pass


sys.modules[__name__].__class__ = _Package
