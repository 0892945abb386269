"""Activations: values with Paddle's names. What they compute is in `modules.py`."""

from __future__ import annotations


class Base:
    """An activation. `name` is what a topology says of it; the empty name is the identity."""

    name = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Identity(Base):
    pass


Linear = Identity


class Tanh(Base):
    name = "tanh"


class Sigmoid(Base):
    name = "sigmoid"


class Softmax(Base):
    name = "softmax"


class SequenceSoftmax(Base):
    name = "sequence_softmax"


class Relu(Base):
    name = "relu"


class BRelu(Base):
    """min(24, max(0, x))"""

    name = "brelu"


class SoftRelu(Base):
    """log(1 + exp(x)), x cut to ±40"""

    name = "softrelu"


class STanh(Base):
    """1.7159 tanh(2x / 3)"""

    name = "stanh"


class Abs(Base):
    name = "abs"


class Square(Base):
    name = "square"


class Exp(Base):
    name = "exponential"


class Log(Base):
    name = "log"


class Sqrt(Base):
    name = "sqrt"


class Reciprocal(Base):
    name = "reciprocal"


class SoftSign(Base):
    """x / (1 + |x|)"""

    name = "softsign"


BY_NAME: dict[str, type[Base]] = {kind.name: kind for kind in Base.__subclasses__()}
