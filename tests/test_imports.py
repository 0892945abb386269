"""The order of the files is total: each imports only from those above it. And what no file may import or call."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "opsin"
TABLE = """
    types errors storage schedule preprocess recipe
    data.rng data.decode data.sandbox data.checked data.index data.formats data.matlab data.manifest data.tar
    data.shards
    data.published.place data.published.listing data.published.voc data.published.coco data.published.cub
    data.published.dogs data.published.flowers data.published.pets data.published.imagenet data.published
    data.datasets data.loader data.pack
    augment
    models models.convnet models.layers models.lenet models.alexnet models.nin models.vgg models.googlenet
    models.inception models.resnet models.smallnet models.outline models.weights
    loss optim device train checkpoint metrics
    classical classical.descriptors classical.pooling classical.sparse classical.vocabulary classical.encoding
    classical.kernels classical.solver classical.forest classical.machines classical.pipeline
    shipped classifier probe hub evaluate figures report
    recipes.derive recipes.chapter recipes.resnet_cifar recipes.ladder recipes.classical recipes
    console draw runfolder course classical.fitting fusing run samples doctor album
    v2.activation v2.pooling v2.data_type v2.graph v2.attr v2.proto v2.evaluator v2.topology v2.layer v2.networks
    v2.modules v2.lower v2.parameters v2.optimizer v2.minibatch v2.reader.decorator v2.reader.creator v2.reader
    v2.data_feeder
    v2.machine v2.event v2.inference v2.trainer v2.classify
    v2.image v2.dataset.common v2.dataset.cifar v2.dataset.mnist v2.dataset.flowers v2.dataset.uci_housing v2.dataset
    v2.plot v2 v2.aliases v2.translate v2.__main__
    show chosen options cli_data cli __main__
"""
ORDER = TABLE.split()
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FILES = {name: path for name, path in FILES.items() if name not in ("__init__", "data")}  # names only; nothing


def imports(tree: ast.AST) -> Iterator[str]:
    """The files of the package that some code imports, wherever in the file: "storage", "data.index" …"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "opsin":
                    yield alias.name.removeprefix("opsin").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module.split(".")[0] == "opsin":
                module = module.removeprefix("opsin").removeprefix(".")
                for (
                    alias
                ) in node.names:  # `from opsin.data import index` imports a file, `from opsin.errors import X` a name
                    inner = f"{module}.{alias.name}".removeprefix(".")
                    yield inner if inner in FILES else module


def test_every_file_has_its_place() -> None:
    assert set(FILES) <= set(ORDER), "a new file needs a place in ORDER (and in ARCHITECTURE.md)"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", FILES)
def test_imports_only_from_above(name: str) -> None:
    place = ORDER.index(name)
    found = set(imports(ast.parse(FILES[name].read_text(encoding="utf-8"))))
    # "" is opsin/__init__.py, which has the version and the lazy public names.
    below = sorted(other for other in found - {"", name, "data"} if ORDER.index(other) >= place)
    # A table of names may find its files lazily, below itself.
    if name == "models":
        below = [other for other in below if not other.startswith("models.")]
    if not name.startswith("v2"):
        below += [other for other in found if other.startswith("v2")]
    assert not below, f"{name}.py may not import {', '.join(below)}"


def test_the_rule_sees_imports_inside_functions() -> None:
    code = "def f():\n    from opsin import cli\n    import opsin.run\n    from opsin.errors import near"
    assert set(imports(ast.parse(code))) == {"cli", "run", "errors"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("name", [*FILES, "__init__"])
def test_nothing_dangerous(name: str) -> None:
    path = FILES.get(name, PACKAGE / "__init__.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] == "torchvision" for n in names), "torchvision is never imported"
    for function, call in calls(tree):
        if (name, function) != ("v2.__main__", "exec"):  # of the notebook that a person has asked to run
            assert function not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), f"{name}: {function}"
        assert not function.endswith((".extractall", ".extract")), f"{name}: archives are read in place"
        printing = name in ("cli", "cli_data", "console", "show")
        assert function != "print" or printing, f"{name}: only the command line prints"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if function == "torch.load":
            assert keywords.get("weights_only") == "True", f"{name}: torch.load runs code from the file"
        if function.endswith(("np.load", "numpy.load")):
            assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell") != "True"


def test_no_file_names_a_machine() -> None:
    root = PACKAGE.parent
    files = [p for folder in ("opsin", "tests", "docs", "benchmarks") for p in sorted((root / folder).rglob("*"))]
    files += [root / name for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md")]
    files = [p for p in files if p.suffix in (".py", ".md", ".toml", ".txt", ".jinja", "") and p.is_file()]
    places = re.compile(r"(?<![\w.])/" + r"(work|home|root|tmp|Users)/\w")
    found = [f"{p.relative_to(root)}: {m[0]}" for p in files if (m := places.search(p.read_text(encoding="utf-8")))]
    assert len(files) > 20
    assert not found


def modules_after(code: str) -> set[str]:
    """The modules that a new Python has loaded once `code` has run."""
    code = f"import sys\n{code}\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["models"], ["data", "list"], ["data", "check", "--help"], ["--version"]],
)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    loaded = modules_after(f"from opsin.cli import call\nassert call({arguments!r}) == 0")
    assert "opsin.cli" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "matplotlib", "sklearn", "torchvision"}


def test_recipes_need_no_torch() -> None:
    code = "from opsin import recipe, recipes\nfor name in recipes.RECIPES: recipe.to_toml(recipes.find(name))"
    assert not modules_after(code) & {"torch", "numpy", "PIL"}


def test_decode_workers_need_no_torch() -> None:
    assert "simplejpeg" in (loaded := modules_after("import opsin.data.sandbox")) and "torch" not in loaded


def test_the_package_alone_is_instant_and_train_is_always_the_function() -> None:
    assert not modules_after("import opsin") & {"torch", "numpy", "PIL", "rich", "cyclopts", "opsin.errors"}
    code = "import opsin, opsin.train, opsin.evaluate\nimport inspect\n"
    code += "assert inspect.isfunction(opsin.train) and inspect.isfunction(opsin.evaluate)\n"
    code += "assert opsin.train.__module__ == 'opsin.run' and 'train' in dir(opsin)"
    modules_after(code)


def test_every_public_name_is_there() -> None:
    import opsin

    for name in opsin.__all__:
        assert getattr(opsin, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = opsin.nothing_like_it
