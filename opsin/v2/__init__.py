"""Programs written for the PaddlePaddle v2 API: `import opsin.v2 as paddle`.

The slice of it that classifies images, with the arithmetic of release 0.11. `python -m opsin.v2 train.py` runs an
unmodified program of 2017.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opsin.errors import UsageError
from opsin.v2.graph import reset as reset
from opsin.v2.graph import settings

if TYPE_CHECKING:
    from opsin.v2 import activation as activation
    from opsin.v2 import attr as attr
    from opsin.v2 import data_feeder as data_feeder
    from opsin.v2 import data_type as data_type
    from opsin.v2 import dataset as dataset
    from opsin.v2 import evaluator as evaluator
    from opsin.v2 import event as event
    from opsin.v2 import image as image
    from opsin.v2 import inference as inference
    from opsin.v2 import layer as layer
    from opsin.v2 import minibatch as minibatch
    from opsin.v2 import networks as networks
    from opsin.v2 import optimizer as optimizer
    from opsin.v2 import parameters as parameters
    from opsin.v2 import plot as plot
    from opsin.v2 import pooling as pooling
    from opsin.v2 import reader as reader
    from opsin.v2 import topology as topology
    from opsin.v2 import trainer as trainer

MODULES = (
    *("activation", "attr", "data_feeder", "data_type", "dataset", "evaluator", "event", "image", "inference", "layer"),
    *("minibatch", "networks", "optimizer", "parameters", "plot", "pooling", "reader", "topology", "trainer"),
)
FUNCTIONS = {"infer": "inference", "batch": "minibatch", "to_classifier": "classify", "install": "aliases"}


def init(**options: Any) -> None:
    """use_gpu: compute on the GPU if there is one. trainer_count: parts of a batch. seed: 1; 0 for a new one each time.

    Other options are accepted and have no effect. An environment variable PADDLE_INIT_<OPTION> is an option, too.
    """
    prefix = "PADDLE_INIT_"
    given = {name.removeprefix(prefix).lower(): v for name, v in os.environ.items() if name.startswith(prefix)}
    given.update(options)
    logging.getLogger("paddle").info("commandline: %s", "".join(f" --{name}={value}" for name, value in given.items()))
    for name, value in given.items():
        if name == "use_gpu":
            settings.use_gpu = str(value).lower() not in ("false", "0", "none", "")
        elif name in ("trainer_count", "seed"):
            least = 1 if name == "trainer_count" else 0
            if not str(value).isdigit() or int(value) < least:
                raise UsageError(f"init: {name}: expected an integer of at least {least}, got {value!r}")
            setattr(settings, name, int(value))
    if settings.seed:
        import torch

        torch.manual_seed(settings.seed)  # of dropout


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"opsin.v2.{name}")
    if name in FUNCTIONS:
        return getattr(import_module(f"opsin.v2.{FUNCTIONS[name]}"), name)
    if name in ("op", "master", "model"):
        raise AttributeError(f"paddle.{name} is not supported: opsin.v2 has what image classification needs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, *FUNCTIONS})
