"""`python -m opsin.v2`: programs in a process of their own, as a person starts them. And the names of paddle.v2."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import opsin.v2
from opsin.errors import BadInput, UsageError
from opsin.v2 import __main__ as runner
from opsin.v2 import aliases, graph, translate
from tests.conftest import write_pictures

ROOT = Path(__file__).parents[3]


def start(*arguments: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m opsin.v2 arguments…` in a process of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "opsin.v2", *map(str, arguments)]
    paths = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=os.environ | paths, capture_output=True, text=True, timeout=300)


def write(folder: Path, **texts: str) -> Path:
    """Python files; `_in_tools` at the end of a name puts it into the package tools."""
    for name, text in texts.items():
        path = folder / ("tools" if name.endswith("_in_tools") else "") / f"{name.removesuffix('_in_tools')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def notebook(path: Path, *cells: str) -> Path:
    kinds = [{"cell_type": "markdown", "source": ["print 'prose'"]}]
    kinds += [{"cell_type": "code", "source": cell.splitlines(keepends=True), "outputs": []} for cell in cells]
    path.write_text(json.dumps({"cells": kinds, "nbformat": 4, "metadata": {"kernelspec": {"name": "python3"}}}))
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


PROGRAM = """# -*- coding: utf-8 -*-
import sys, os
import paddle.v2 as paddle
from paddle.trainer_config_helpers import *
import paddle.v2.dataset.cifar as cifar, paddle.v2.dataset.common as common
from paddle.v2.plot import Ploter
from paddle.v2.inference import Inference
from paddle.v2.attr import ParamAttr as Attr
from paddle.v2.topology import Topology
from paddle.v2.config_base import Layer
from paddle.v2.reader.decorator import xmap_readers
from paddle.v2.reader.creator import np_array
from paddle.proto.ParameterConfig_pb2 import ParameterConfig
import paddle.proto.ModelConfig_pb2 as model_pb
from paddle.trainer.PyDataProvider2 import InputType, DataType
from paddle.trainer_config_helpers.default_decorators import wrap_name_default
from paddle.trainer_config_helpers.poolings import MaxPooling as Max
from nets import build, SIZE
import tools.count
from PIL import Image
import cStringIO, StringIO, cPickle
import numpy as np

def main():
    print "argv %s, in %s" % (sys.argv[1:], os.path.basename(sys.path[0]))
    paddle.init(use_gpu=False, trainer_count=1)
    image = paddle.layer.data(name="image", type=paddle.data_type.dense_vector(SIZE))
    out = build(image)
    print out.name, out.size, isinstance(out, Layer), type(paddle.activation.Relu()) is ReluActivation
    conv = img_conv_layer(input=out, filter_size=1, num_filters=2, num_channels=1, act=LinearActivation())
    pool = img_pool_layer(input=conv, pool_size=2, stride=2, pool_type=MaxPooling())
    print pool.name, pool.size, Attr is ParamAttr, Max is MaxPooling
    with open("topology.bin", "w") as f:
        Topology(layers=out).serialize_for_inference(f)
    parameters = paddle.parameters.create(out)
    with open("params.tar", "w") as f:
        parameters.to_tar(f)
    with open("params.tar", "r") as f:
        again = paddle.parameters.Parameters.from_tar(f)
    print again.keys(), (again.get("_fc.w0") == parameters.get("_fc.w0")).all()
    buffer = cStringIO.StringIO()
    parameters.to_tar(buffer)
    print len(buffer.getvalue()) == os.path.getsize("params.tar")
    with open("topology.bin") as topology, open("params.tar") as f:
        inferer = Inference(parameters=paddle.parameters.Parameters.from_tar(f), fileobj=topology)
    probs = inferer.infer(input=[(np.ones(SIZE, np.float),)])
    print probs.shape, np.argsort(-probs)[0][0] == np.argmax(probs)
    Image.fromarray(np.zeros((4, 4), np.uint8)).resize((2, 2), Image.ANTIALIAS)
    print tools.count.half(7), __name__, os.path.basename(__file__)

if __name__ == '__main__':
    main()
"""
NETS = """import paddle.v2 as paddle
from helper import double
SIZE = double(8)
def build(input):
    print "build", (9 - 2) / 2
    return paddle.layer.fc(input=input, size=SIZE / 4 * 4, name="fc", act=paddle.activation.Softmax())
"""


def test_an_unmodified_program(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "book",
        train=PROGRAM,
        nets=NETS,
        helper="def double(x):\n    print 'h\u00e9lper',\n    return x * 2\n",
        __init___in_tools="import more\nprint more.SEVEN",
        more_in_tools="SEVEN = 15 / 2",
        count_in_tools="def half(x): return x / 2",
    )
    before = everything(folder)
    done = start(folder / "train.py", "--rate", "0.1", "-h", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "h\u00e9lper 7",
        "argv ['--rate', '0.1', '-h'], in book",
        "build 3",
        "fc 16 True True",
        "__pool_0__ 8 True True",
        "['_fc.w0', '_fc.wbias'] True",
        "True",
        "(1, 16) True",
        "3 __main__ train.py",
    ]
    assert "commandline:  --use_gpu=False --trainer_count=1" in done.stderr and "output for __conv_0__" in done.stderr
    assert everything(folder) == before, "nothing on disk is touched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "params.tar", "topology.bin"]


OWN_READER = """# coding=utf-8
from multiprocessing import cpu_count
import paddle.v2 as paddle

class MyReader:
    def __init__(self, size):
        self.size = size

    def mapper(self, sample):
        path, label = sample
        im = paddle.image.load_image(path, is_color=False)
        im = paddle.image.simple_transform(im, self.size * 9 / 8, self.size, False, is_color=False)
        return im.flatten().astype('float32') / 255, label

    def reader(self, listing):
        def lines():
            with open(listing, 'r') as f:
                for line in f:
                    path, label = line.strip().split('\\t')
                    yield path, int(label)
        return paddle.reader.xmap_readers(self.mapper, lines, cpu_count(), 16)
"""
OWN_TRAIN = """# coding=utf-8
import paddle.v2 as paddle
from both import MyReader

def network(size):
    image = paddle.layer.data(name='image', type=paddle.data_type.dense_vector(size * size))
    conv = paddle.networks.simple_img_conv_pool(input=image, filter_size=3, num_filters=4, num_channel=1,
        pool_size=2, pool_stride=2, act=paddle.activation.Relu())
    return paddle.layer.fc(input=conv, size=2, act=paddle.activation.Softmax())

if __name__ == '__main__':
    paddle.init(use_gpu=False, trainer_count=2)
    label = paddle.layer.data(name='label', type=paddle.data_type.integer_value(2))  # before the picture
    cost = paddle.layer.classification_cost(input=network(16), label=label)
    parameters = paddle.parameters.create(layers=cost)
    optimizer = paddle.optimizer.Momentum(learning_rate=0.1 / 8, momentum=0.9)
    trainer = paddle.trainer.SGD(cost=cost, parameters=parameters, update_equation=optimizer)
    reader = MyReader(16).reader('train.list')
    reader = paddle.batch(reader=paddle.reader.shuffle(reader=reader, buf_size=100), batch_size=8)
    def handler(event):
        if isinstance(event, paddle.event.EndPass):
            with open('model_%d.tar' % (event.pass_id / 2), 'w') as f:
                trainer.save_parameter_to_tar(f)
            print '测试', trainer.test(reader=reader, feeding={'image': 0, 'label': 1}).metrics
    trainer.train(reader=reader, num_passes=6, event_handler=handler, feeding={'image': 0, 'label': 1})
"""
OWN_INFER = """# coding=utf-8
import numpy as np
import paddle.v2 as paddle
from both import MyReader
from nets import network

out = network(16)
with open('model_2.tar', 'r') as f:
    parameters = paddle.parameters.Parameters.from_tar(f)
samples = list(MyReader(16).reader('train.list')())
probs = paddle.infer(output_layer=out, parameters=parameters, input=[(im,) for im, label in samples])
lab = np.argsort(-probs)
print '可信度 %d/%d' % (sum(lab[i][0] == samples[i][1] for i in range(len(samples))), len(samples))
"""


def test_programs_with_pictures_of_their_own(tmp_path: Path, call: Any) -> None:
    """As in the LearnPaddle course: grey pictures from a list, threads, text-mode files; another program infers."""
    write_pictures(tmp_path / "data", 12, side=20)
    paths = sorted((tmp_path / "data").rglob("*.png"))
    lines = [f"{path.relative_to(tmp_path)}\t{int(path.parent.name == 'light')}\n" for path in paths]
    (tmp_path / "train.list").write_text("".join(lines))
    write(tmp_path, both=OWN_READER, nets=OWN_TRAIN, train=OWN_TRAIN, infer=OWN_INFER)
    code, out, err = call("train.py")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 6 and lines[-1] == "测试 {'classification_error_evaluator': 0.0}"
    code, out, err = call("infer.py")
    assert (code, out) == (0, "可信度 24/24\n"), err


def test_a_python_3_program_runs_unharmed(tmp_path: Path, call: Any) -> None:
    text = "import opsin.v2 as paddle, both\nprint(f'{7 / 2}', both.half, both.__file__, sep='|')\n"
    write(tmp_path, new=text, both="half = 7 / 2")
    assert call(tmp_path / "new.py")[:2] == (0, f"3.5|3|{tmp_path / 'both.py'}\n")
    assert call("--python3", "new.py")[:2] == (0, f"3.5|3.5|{tmp_path / 'both.py'}\n")


def test_without_the_translator(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fissix.pgen2", None)  # as if it were not installed
    translate._fissix.cache_clear()
    write(tmp_path, both="print(f'{1}')\nimport nets", nets="print 1")
    code, out, err = call("both.py")
    assert (code, out) == (2, "1\n") and "pip install 'opsin[v2]'" in err


def test_a_traceback_shows_the_program_and_nothing_of_the_runner(tmp_path: Path, call: Any) -> None:
    write(tmp_path, main="# one\nimport nets\nprint 'before'\nnets.f(\n    0)\n", nets="def f(x):\n    return 7 / x\n")
    code, out, err = call("main.py")
    assert (code, out) == (1, "before\n")
    assert err.splitlines()[:-1] == [
        "Traceback (most recent call last):",
        '  File "main.py", line 4, in <module>',
        "    nets.f(",
        f'  File "{tmp_path / "nets.py"}", line 2, in f',
        "    return 7 / x",
    ]


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("import sys\nsys.exit(7)", 7, ""),
        ("raise SystemExit, 'no data'", "no data", ""),
        (
            "print 1\nif x\n",
            1,
            '  File "main.py", line 2\n    if x\n        ^\nSyntaxError: neither Python 2 nor 3: at its end\n',
        ),
        ("import nets", 1, "SyntaxError: neither Python 2 nor 3"),
        ("import paddle.v2 as paddle\npaddle.dataset.cifar.train10()", 3, "is not here: get cifar-10-python.tar.gz"),
        ("import paddle.fluid", 1, "ModuleNotFoundError: paddle.fluid is not supported: opsin.v2 has what image"),
        ("import paddle.v2.dataset.imdb", 1, "paddle.v2.dataset.imdb is not supported"),
        ("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)", 130, "KeyboardInterrupt\n"),
    ],
)
def test_exit_codes_and_messages(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, text: str, code: int | str, error: str
) -> None:
    monkeypatch.setenv("OPSIN_OFFLINE", "1")
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    write(tmp_path, main=text, nets="x = = 1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may ignore it
    try:
        got, _, err = call("main.py")
    finally:
        signal.signal(signal.SIGINT, before)
    assert got == code and error in err


def test_usage(call: Any) -> None:
    said = "opsin.errors.UsageError: none.py: no such file; expected a program (.py) or a notebook (.ipynb)\n"
    assert call("none.py") == (2, "", said)
    assert call()[0] == 2 and "a Python file or a notebook" in call("--help")[1]


def test_a_notebook_runs_cell_by_cell(tmp_path: Path, call: Any) -> None:
    cells = [
        "%matplotlib inline\nfrom __future__ import division\nx = 3",
        "    y = x / 2\n    print y",
        "def f():\n    return 1 / (x - 3)",
    ]
    path = notebook(tmp_path / "chapter.ipynb", *cells, "print 'last',\nf()", "print 'never'")
    before = everything(tmp_path)
    code, out, err = call("chapter.ipynb")
    assert (code, out) == (1, "1.5\nlast ")
    skipped, *lines = err.splitlines()
    assert skipped == "chapter.ipynb, code cell 1, line 1: skipped, only IPython understands it: %matplotlib inline"
    assert lines[:-1] == [
        "Traceback (most recent call last):",
        '  File "chapter.ipynb, code cell 4", line 2, in <module>',
        "    f()",
        '  File "chapter.ipynb, code cell 3", line 2, in f',
        "    return 1 / (x - 3)",
    ]
    assert everything(tmp_path) == before
    new = notebook(tmp_path / "new.ipynb", "x = 7 / 2", "print(f'{x}', file=None)")
    assert call(new)[:2] == (0, "3.5\n")
    assert call(notebook(path, "x = 7 / 2", "print x"))[:2] == (0, "3\n")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}', '{"worksheets": []}']
)
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(BadInput, match=r"x\.ipynb: not a Jupyter notebook of format 4"):
        runner.read_notebook(str(tmp_path / "x.ipynb"))


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def names_after(code: str, tmp_path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_paddle_is_installed_on_demand_only_and_is_the_same_modules(tmp_path: Path) -> None:
    code = """
import sys, opsin.v2, opsin.v2.aliases
assert "paddle" not in sys.modules and "cStringIO" not in sys.modules
opsin.v2.install()
opsin.v2.install()
import paddle.v2 as paddle
assert paddle is opsin.v2 and sum(type(x).__name__ == "_NoOther" for x in sys.meta_path) == 1
import paddle.v2.reader.decorator, paddle.v2.dataset.flowers
for name, module in sorted(sys.modules.items()):
    if name.startswith("paddle.v2."):
        ours = "opsin" + name[len("paddle"):]
        assert module is sys.modules.get(ours) or name == "paddle.v2.config_base", name
        if name != "paddle.v2.config_base": print(name)
"""
    listed = names_after(code, tmp_path).split()
    assert {"paddle.v2.layer", "paddle.v2.trainer", "paddle.v2.image", "paddle.v2.dataset.cifar"} <= set(listed)
    assert "paddle.v2.translate" not in listed


def test_another_paddle_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddle", ModuleType("paddle"))
    with pytest.raises(UsageError, match="another paddle is imported in this process"):
        opsin.v2.install()


def test_names_of_version_1() -> None:
    names = aliases._v1_names()
    wanted = """
        data_layer fc_layer img_conv_layer img_pool_layer batch_norm_layer addto_layer concat_layer dropout_layer
        img_cmrnorm_layer maxid_layer mixed_layer maxout_layer spp_layer pad_layer prelu_layer slope_intercept_layer
        sum_to_one_norm_layer identity_projection full_matrix_projection classification_cost cross_entropy
        square_error_cost multi_binary_label_cross_entropy sum_cost img_conv_group simple_img_conv_pool
        img_conv_bn_pool small_vgg vgg_16_network TanhActivation SigmoidActivation SoftmaxActivation IdentityActivation
        LinearActivation ReluActivation BReluActivation MaxPooling AvgPooling CudnnMaxPooling CudnnAvgPooling ParamAttr
        ParameterAttribute ExtraAttr ExtraLayerAttribute HookAttribute MomentumOptimizer AdamOptimizer AdamaxOptimizer
        AdaGradOptimizer DecayedAdaGradOptimizer AdaDeltaOptimizer RMSPropOptimizer L2Regularization ModelAverage
        classification_error_evaluator auc_evaluator precision_recall_evaluator LayerOutput
    """
    assert set(wanted.split()) <= set(names)
    layer = names["data_layer"](name="pixel", size=12, height=2, width=2)
    assert (layer.size, layer.num_filters) == (12, 3)


def test_wrap_name_default() -> None:
    graph.reset()

    @aliases.wrap_name_default("split")
    def named(input: int, name: str | None = None) -> tuple[int, str | None]:
        return input, name

    assert [named(1), named(2, name="x"), named(3, "y"), named(input=4, name=None)] == [
        (1, "__split_0__"),
        (2, "x"),
        (3, "y"),
        (4, "__split_1__"),
    ]


def test_files_in_memory_are_of_what_they_begin_with() -> None:
    for usual, kind in ((io.BytesIO, bytes), (io.StringIO, str)):
        made = aliases._string_io(usual)
        assert type(made().getvalue()) is kind
        assert made("abc").read() == "abc" and made(b"abc").read() == b"abc"
