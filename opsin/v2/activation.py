"""Activations: values with Paddle's names. What they compute is in `modules.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """An activation. `name` is what a topology says; the empty name is the identity."""

    name: str = ""


def _named(name: str) -> type[Base]:
    @dataclass(frozen=True)
    class Activation(Base):
        def __init__(self) -> None:
            super().__init__(name)

    return Activation
