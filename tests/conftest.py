"""What every test stands on: no network, no folder of the person's, one thread, the same random numbers each time."""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Read when torch starts its threads, here and in the processes that tests start. Torch itself is imported by the
# tests that need it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and settings in a folder of the tests; none of the person's settings for opsin or for terminals."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in [name for name in os.environ if name.startswith("OPSIN_")]:
            patch.delenv(name)
        for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS"):
            patch.delenv(name, raising=False)
        patch.setenv("OPSIN_HOME", str(home / "opsin"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
        patch.setenv("MPLBACKEND", "agg")
        yield


class Said(NamedTuple):
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def opsin_(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line in this process."""
    from opsin import cli

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = cli.call([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks as narrow as the tests' spend more time handing work to threads than on the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A test that reaches beyond this machine fails, whatever the code under test does with exceptions."""

    def is_local(address: Any) -> bool:
        host = address[0] if isinstance(address, tuple) else address
        host = host.decode() if isinstance(host, bytes) else host
        return host is None or host in ("", "localhost", "::1") or host.startswith(("127.", "/"))

    def guard(function: Any) -> Any:
        def guarded(self: socket.socket, address: Any, *rest: Any) -> Any:
            if not is_local(address):
                pytest.fail(f"the test opened a connection to {address}")
            return function(self, address, *rest)

        return guarded

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        if not is_local(host):
            pytest.fail(f"the test looked up the address of {host}")
        return resolve(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for a test, alone or among others."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """`python -m opsin.v2 arguments…` in this process, in the folder of the test: → exit code, stdout, stderr.

    All that it sets up is taken back when it returns.
    """
    from opsin.v2 import __main__ as runner
    from opsin.v2 import graph

    log = logging.getLogger("paddle")
    monkeypatch.chdir(tmp_path)
    level = log.level

    def run(*arguments: Any) -> tuple[Any, str, str]:
        before = [*sys.argv], [*sys.path], [*sys.meta_path], [*log.handlers], sys.modules["__main__"]
        known = set(sys.modules)
        graph.reset()
        try:
            code: Any = runner.main([*map(str, arguments)])
        except SystemExit as error:
            code = error.code
        finally:
            sys.argv[:], sys.path[:], sys.meta_path[:], log.handlers[:], sys.modules["__main__"] = before
            log.setLevel(level)
            for name in set(sys.modules) - known:
                file = str(getattr(sys.modules[name], "__file__", None) or "")
                if name.split(".")[0] in ("paddle", "StringIO", "cStringIO") or file.startswith(str(tmp_path)):
                    del sys.modules[name]
        return code, *capsys.readouterr()

    return run


def write_pictures(folder: Path, per_class: int, classes: tuple[str, ...] = ("dark", "light"), side: int = 8) -> Path:
    """Class folders of small PNG files whose brightness tells the class, with a little noise."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        level = 40 + 180 * label // max(1, len(classes) - 1)
        for i in range(per_class):
            pixels = np.clip(level + generator.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two class folders of 15 pictures each."""
    return write_pictures(tmp_path / "pictures", 15)
