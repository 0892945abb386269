"""The errors that a user can meet. Each says what was expected, what came, and what would work.

OpsinError                exit code 1
├── UsageError            2   a wrong name, value or combination in a command or a recipe (also a ValueError)
│   └── DeclarationError      a layer, declared through opsin.v2, that cannot be (also an AssertionError)
├── DataError             3   the pictures, their labels or their folder
│   └── BadInput              one file: unreadable, damaged, of a wrong format, over a limit
│       ├── Absent            it is listed, but not there
│       └── DecoderStopped    its decoding crashed or took too long
├── GateNotMet            4   a quality asked for was not reached
├── NonFiniteLoss         5   the loss became NaN or infinite; the last good checkpoint is kept
├── StorageError          1   a file of ours is missing, damaged or cannot be written
└── Interrupted           130 SIGINT, 143 SIGTERM: saved, can be resumed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class OpsinError(Exception):
    """An error with a message for a person; `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(OpsinError, ValueError):
    """A name, a value or a combination that cannot be used."""

    exit_code = 2


class DeclarationError(UsageError, AssertionError):
    """A layer, declared through `opsin.v2`, that cannot be. The API of 2017 raised an AssertionError without a text."""


class DataError(OpsinError):
    """Something about the pictures, their labels or their folder."""

    exit_code = 3


class BadInput(DataError):
    """One file that cannot be used: `path` names it, `reason` says why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class Absent(BadInput):
    """One file that a list names and that is not there, as most are where only a part of a data set is."""


class DecoderStopped(BadInput):
    """One file whose decoding crashed the decoder or took too long. Another time it may do neither."""


class GateNotMet(OpsinError):
    """A quality that was asked for was not reached."""

    exit_code = 4


class NonFiniteLoss(OpsinError):
    """The loss became NaN or infinite."""

    exit_code = 5


class StorageError(OpsinError):
    """A file of ours is missing, damaged or cannot be written."""


class Interrupted(OpsinError):
    """A signal ended the command after it had saved its state."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, or all of them when none is near.

    >>> near("resnet21", ["resnet20", "vgg16"])
    'did you mean resnet20?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
