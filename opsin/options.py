"""What several commands of the command line take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

RunFolder = Annotated[
    Path, Parameter(help="Folder of a run, the classifier/ folder in it, or a shipped classifier: cifar10-small.")
]
DataDir = Annotated[
    str,
    Parameter(name="--data-dir", help="Folder of a named data set that is not in the cache.", show_default=False),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, mps, or auto: the best that is there.")]
OnBadImage = Annotated[
    Literal["error", "skip"],
    Parameter(
        name="--on-bad-image", help="What an unreadable picture does: end in an error, or be counted and left out."
    ),
]
Split = Annotated[
    Literal["train", "val", "test", "all"] | None,
    Parameter(help="Part of the data. Default: test; all for what has no parts and was not trained on."),
]
Json = Annotated[bool, Parameter(name="--json", show_default=False, help="One JSON object on stdout.")]
Csv = Annotated[bool, Parameter(name="--csv", show_default=False, help="Comma-separated lines on stdout.")]
AnyPictures = Annotated[
    str,
    Parameter(help="Data set, folder of class folders or of any pictures, CSV/TSV/list, tar, or a set as published."),
]
AnySplit = Annotated[
    Literal["train", "val", "test", "all"] | None, Parameter(help="Part of the data that has parts. Default: all.")
]
Quiet = Annotated[bool, Parameter(show_default=False, help="Nothing on stderr but warnings and errors.")]
