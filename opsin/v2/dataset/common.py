"""Where archives are kept, and how they come there: opsin's own cache and downloads (`opsin.data.datasets`).

`DATA_HOME` is that cache, `$OPSIN_HOME/data` or `~/.cache/opsin/data`. A program that assigns another folder to it is
obeyed: data sets are then read from `DATA_HOME/cifar`, `DATA_HOME/mnist` …, where the original kept them.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from opsin import storage
from opsin.data import datasets
from opsin.data.checked import cache_home
from opsin.data.index import ArraySource
from opsin.errors import DataError, UsageError
from opsin.v2.minibatch import batch

log = logging.getLogger("paddle")


class DownloadFailed(DataError, RuntimeError):
    """No place gave the file with the right checksum."""


def home() -> Path:
    return Path(globals().get("DATA_HOME") or cache_home() / "data")


def __getattr__(name: str) -> Any:
    if name == "DATA_HOME":
        return str(home())
    if name == "convert":
        raise AttributeError("dataset.common.convert: RecordIO files are not supported; use the readers themselves")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def md5file(fname: str | os.PathLike[str]) -> str:
    """The MD5 of a file, in hexadecimal."""
    return datasets.md5(Path(fname))


def download(url: str, module_name: str, md5sum: str) -> str:
    """The path of a file in `DATA_HOME/module_name`, downloaded unless it is there with this MD5."""
    file = datasets.File(name=url.rpartition("/")[2], size=0, md5=md5sum, urls=(url,))
    if not file.name:
        raise UsageError(f"{url!r} does not end in the name of a file")
    return get(file, module_name)


def get(file: datasets.File, module_name: str) -> str:
    """The path of a published file, downloaded unless it is there with its MD5."""
    path = home() / module_name / file.name
    if not datasets.matches(path, file.md5):
        log.info("Cache file %s not found, downloading %s", path, file.urls[0])
        try:
            datasets.fetch_files([file], path.parent, compare=True)
        except DataError as error:
            raise DownloadFailed(str(error)) from error
    return str(path)


def arrays(name: str, module_name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, C, H, W] and labels int64 [N] of one split of a named data set of opsin."""
    own = str(home() / module_name) if "DATA_HOME" in globals() else ""
    return _arrays(name, own, str(datasets.cache_folder(name)))[split]


@lru_cache(maxsize=2)  # a program asks for both splits, and for the test again after each pass
def _arrays(name: str, data_dir: str, cache: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for split, index in datasets.load(name, data_dir=data_dir).items():
        assert isinstance(index.source, ArraySource)
        found[split] = index.source.images, index.labels
    return found


def split(
    reader: Callable[[], Iterable[Any]],
    line_count: int,
    suffix: str = "%05d.pickle",
    dumper: Callable[[list[Any], BinaryIO], Any] | None = None,
) -> None:
    """Write the samples of a reader to files of `line_count` each, numbered from 0 by `suffix`.

    Without a dumper they are NumPy archives, whatever the suffix says: no pickle is written.
    """
    for number, lines in enumerate(batch(reader, line_count)()):
        buffer = io.BytesIO()
        (dumper or _dump)(lines, buffer)
        storage.write_file(suffix % number, buffer.getvalue())


def cluster_files_reader(
    files_pattern: str, trainer_count: int, trainer_id: int, loader: Callable[[BinaryIO], Iterable[Any]] | None = None
) -> Callable[[], Iterator[Any]]:
    """The samples of every `trainer_count`th of the files that `split` wrote, from number `trainer_id` on."""

    def samples() -> Iterator[Any]:
        for path in sorted(glob.glob(files_pattern))[trainer_id::trainer_count]:
            with open(path, "rb") as file:
                yield from (loader or _load)(file)

    return samples


def _dump(lines: list[Any], file: BinaryIO) -> None:
    samples = [line if isinstance(line, (tuple, list)) else (line,) for line in lines]
    try:
        columns = [np.array(column) for column in zip(*samples, strict=True)]
    except ValueError:
        columns = []
    if not columns or any(column.dtype.hasobject for column in columns):
        raise UsageError("split: the samples are not all of one shape; give it a dumper, a function (samples, file)")
    if isinstance(lines[0], (tuple, list)):
        np.savez(file, *columns)
    else:
        np.savez(file, single=columns[0])


def _load(file: BinaryIO) -> Iterator[Any]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            columns, single = [stored[name] for name in stored.files], stored.files == ["single"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file.name}: not written by split without a dumper ({error}); give its loader") from error
    for values in zip(*columns, strict=True):
        sample = tuple(value if value.ndim else value.item() for value in values)
        yield sample[0] if single else sample


def fetch_all() -> None:
    """Download all data sets that are not here yet."""
    for name in ("cifar", "mnist", "flowers", "uci_housing"):
        import_module(f"opsin.v2.dataset.{name}").fetch()
