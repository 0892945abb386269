"""Recipes by name, from a file, or derived from the data and the machine. Readable without torch."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from opsin import recipe
from opsin.errors import UsageError, near
from opsin.recipe import Recipe

RECIPES: dict[str, str] = {
    "small": "opsin.recipes.derive:small",
    "chapter_vgg16": "opsin.recipes.chapter:chapter_vgg16",
    "chapter_vgg16_v010": "opsin.recipes.chapter:chapter_vgg16_v010",
    "chapter_resnet": "opsin.recipes.chapter:chapter_resnet",
    "resnet20": "opsin.recipes.resnet_cifar:resnet20",
    "resnet32": "opsin.recipes.resnet_cifar:resnet32",
    "resnet44": "opsin.recipes.resnet_cifar:resnet44",
    "resnet56": "opsin.recipes.resnet_cifar:resnet56",
    "resnet110": "opsin.recipes.resnet_cifar:resnet110",
    "nin_cifar": "opsin.recipes.ladder:nin_cifar",
    "googlenet_cifar": "opsin.recipes.ladder:googlenet_cifar",
    "preresnet20": "opsin.recipes.ladder:preresnet20",
    "wrn16_2": "opsin.recipes.ladder:wrn16_2",
    "bow": "opsin.recipes.classical:bow",
    "llc": "opsin.recipes.classical:llc",
    "fisher": "opsin.recipes.classical:fisher",
    "patches": "opsin.recipes.classical:patches",
    "nec2010": "opsin.recipes.classical:nec2010",
}


def find(name: str) -> Recipe:
    """The recipe called `name` in the table, in a TOML file, or made by `FILE.py:FUNCTION` (which runs that file)."""
    if name in RECIPES:
        module, function = RECIPES[name].split(":")
        return getattr(importlib.import_module(module), function)()
    if name.endswith(".toml"):
        try:
            return recipe.from_toml(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: cannot be read: {error}") from error
    file, separator, function = name.rpartition(":")
    if separator and file.endswith(".py"):
        return _from_python(Path(file), function)
    raise UsageError(f"no recipe {name!r}; {near(name, RECIPES)}; or FILE.toml, or FILE.py:FUNCTION")


def _from_python(file: Path, function: str) -> Recipe:
    specification = importlib.util.spec_from_file_location(f"opsin_recipe_{file.stem}", file)
    if not file.is_file() or specification is None or specification.loader is None:
        raise UsageError(f"{file}: no such Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    made = getattr(module, function, None)
    if not callable(made):
        raise UsageError(f"{file}: no function {function!r}")
    value = made()
    if not isinstance(value, Recipe):
        raise UsageError(f"{file}:{function}: expected a Recipe, received {type(value).__name__}")
    return value
