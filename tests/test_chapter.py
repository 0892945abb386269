"""The chapter's notebook of 2017, cell by cell, in order, unmodified but for the number of passes: two.

`data/v2/chapter_cells.json` has its code cells and says where they are from. CIFAR-10 is a small stand-in in the
published format; vgg.py and resnet.py, which the notebook imports, are made of its own cells.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.v2.dataset import common
from tests import make

CELLS = json.loads((Path(__file__).parent / "data" / "v2" / "chapter_cells.json").read_text(encoding="utf-8"))["cells"]
PASSES = ("num_passes=200", "num_passes=2")
IMPORT = "import paddle.v2 as paddle\n"
METRIC = r"\{'classification_error_evaluator': (\d\.\d+(?:e-\d+)?)\}"


def sibling(*starts: str) -> str:
    """A module of those cells that define these functions, which are indented in the notebook."""
    return IMPORT + "\n".join(textwrap.dedent(cell) for start in starts for cell in CELLS if f"def {start}(" in cell)


VGG, RESNET = sibling("vgg_bn_drop"), sibling("conv_bn_layer", "resnet_cifar10")


def write(folder: Path, notebook: dict[str, Any], vgg: str = VGG) -> Path:
    path = folder / "README.cn.ipynb"
    text = json.dumps(notebook)
    assert text.count(PASSES[0]) == 1
    path.write_text(text.replace(*PASSES), encoding="utf-8")
    (folder / "vgg.py").write_text(vgg)
    (folder / "resnet.py").write_text(RESNET)
    return path


def of_cells() -> dict[str, Any]:
    return {"nbformat": 4, "cells": [{"cell_type": "code", "source": cell} for cell in CELLS]}


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Put the published archive, with so many pictures in each of its six files, into the cache."""
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    common._arrays.cache_clear()
    return lambda n: make.named(monkeypatch, tmp_path / "home" / "data" / "cifar10", per_file=n, packed=True) and None


def check(printed: str, batches: int) -> list[str]:
    """That stdout is what the chapter's log shows; returns the names of the parameters."""
    names, _, log = printed.partition("\n")
    form = ""
    for number in range(2):
        for batch in range(batches):
            line = rf"\nPass {number}, Batch {batch}, Cost \d+\.\d{{6}}, {METRIC}\n"
            form += line if batch % 100 == 0 else r"\."
        form += rf"\nTest with Pass {number}, {METRIC}\n"
    found = re.fullmatch(form, log)
    assert found, log
    errors = [float(error) for error in found.groups()]
    assert all(0 <= error <= 1 and float(np.float32(error)) == error for error in errors)
    return json.loads(names.replace("'", '"'))


def test_the_cells_are_as_the_test_says() -> None:
    assert len(CELLS) == 16 and [i for i, cell in enumerate(CELLS) if cell.startswith(" ")] == [1, 2, 3, 4, 5]
    assert "ch_in = ch_out * 2" in RESNET and "n = (depth - 2) / 6" in RESNET and "conv_block(conv4, 512, 3" in VGG


def test_the_chapter(tmp_path: Path, call: Any, cifar: Callable[[int], None]) -> None:
    cifar(4)  # 20 pictures in one batch: this network takes seconds for a hundred
    code, out, err = call(write(tmp_path, of_cells()).name)
    assert code == 0, err
    names = check(out, batches=1)
    convolutions = [f"___conv_{i}__.{kind}" for i in range(13) for kind in ("w0", "wbias")]
    assert len(names) == 88 and [name for name in names if "conv" in name] == convolutions
    assert names[:3] == ["___conv_0__.w0", "___conv_0__.wbias", "___batch_norm_0__.w0"]
    assert names[-4:] == ["___fc_layer_1__.w0", "___fc_layer_1__.wbias", "___fc_layer_2__.w0", "___fc_layer_2__.wbias"]
    assert "output for __conv_0__: c = 64, h = 32, w = 32, size = 65536" in err


def test_the_log_of_a_hundred_batches(tmp_path: Path, call: Any, cifar: Callable[[int], None]) -> None:
    """The same cells with a network in vgg.py that is small enough for many batches."""
    small = "def vgg_bn_drop(input):\n    return paddle.layer.batch_norm(paddle.layer.fc(input=input, size=8))\n"
    cifar(2586)  # 12,930 pictures: 101 batches of 128 and one of 2
    code, out, err = call(write(tmp_path, of_cells(), IMPORT + small).name)
    assert code == 0, err
    assert len(check(out, batches=102)) == 8


@pytest.mark.slow
def test_the_whole_notebook(tmp_path: Path, call: Any, cifar: Callable[[int], None]) -> None:
    """With its prose, from the file that PADDLE_CHAPTER names."""
    place = os.environ.get("PADDLE_CHAPTER", "")
    if not place:
        pytest.skip("PADDLE_CHAPTER names no notebook")
    notebook = json.loads(Path(place).read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"] == CELLS
    assert len(notebook["cells"]) > len(CELLS)
    cifar(26)  # 130 pictures: a batch of 128 and one of 2
    code, out, err = call(write(tmp_path, notebook).name)
    assert code == 0, err
    assert len(check(out, batches=2)) == 88
