"""SGD: what is minimised, what a handler sees, what test reports, and that a cut training goes on exactly."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opsin.v2 as paddle
from opsin.errors import NonFiniteLoss, StorageError, UsageError
from opsin.v2 import machine
from opsin.v2.graph import Layer, settings

N, DIM, CLASSES = 10, 6, 3
Reader = Callable[[], Iterator[Any]]


@pytest.fixture(autouse=True)
def fresh_names() -> Iterator[None]:
    paddle.reset()
    yield
    settings.use_gpu, settings.trainer_count, settings.seed = False, 1, 1


def samples(n: int = N, dim: int = DIM) -> list[tuple[np.ndarray, int]]:
    generator = np.random.default_rng(0)
    return [(generator.normal(size=dim).astype(np.float32), int(generator.integers(CLASSES))) for _ in range(n)]


def batches(rows: list[Any], size: int = 4) -> Reader:
    """10 samples by 4: the last batch has two."""
    return lambda: iter([rows[start : start + size] for start in range(0, len(rows), size)])


def linear(bias: bool = True) -> tuple[Layer, Layer]:
    """(output, cost) of a softmax of one fully-connected layer."""
    x = paddle.layer.data("x", paddle.data_type.dense_vector(DIM))
    out = paddle.layer.fc(x, CLASSES, act=paddle.activation.Softmax(), bias_attr=bias)
    return out, paddle.layer.classification_cost(out, paddle.layer.data("y", paddle.data_type.integer_value(CLASSES)))


def convnet() -> Layer:
    """The cost of a small network with everything that has a state: batch norm, dropout, moments."""
    x = paddle.layer.data("x", paddle.data_type.dense_vector(2 * 5 * 5))
    conv = paddle.networks.img_conv_group(
        x,
        conv_num_filter=[3],
        pool_size=2,
        num_channels=2,
        conv_with_batchnorm=True,
        conv_batchnorm_drop_rate=[0.4],
        conv_act=paddle.activation.Relu(),
        pool_stride=2,
    )
    out = paddle.layer.fc(conv, CLASSES, act=paddle.activation.Softmax())
    y = paddle.layer.data("y", paddle.data_type.integer_value(CLASSES))
    paddle.evaluator.auc(out, y)
    return paddle.layer.classification_cost(out, y)


def train(trainer: Any, reader: Reader, passes: int = 1, **options: Any) -> list[Any]:
    events: list[Any] = []
    trainer.train(reader, passes, events.append, **options)
    return events


def of(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def values(parameters: Any) -> dict[str, np.ndarray]:
    return {name: parameters.get(name) for name in parameters.names()}


# ---------------------------------------------------------------------------------------------------------------------
# What is minimised
# ---------------------------------------------------------------------------------------------------------------------


def test_gradients_are_sums_and_costs_means_also_in_the_last_short_batch() -> None:
    """Two passes of 4, 4 and 2 samples equal float64 NumPy: decay and momentum on the bias too, no rescaling."""
    _, cost = linear()
    parameters = paddle.parameters.create(cost)
    w, b = (parameters.get(name).astype(float) for name in parameters.names())
    rule = paddle.optimizer.Momentum(
        momentum=0.9,
        learning_rate=0.1 / 4,
        learning_rate_schedule="discexp",
        learning_rate_decay_a=0.5,
        learning_rate_decay_b=8,
        regularization=paddle.optimizer.L2Regularization(rate=0.02 * 4),
        batch_size=4,
    )
    events = train(paddle.trainer.SGD(cost, parameters, rule), batches(samples()), 2)
    costs, velocity, seen = [], [np.zeros_like(w), np.zeros_like(b)], 0
    for _ in range(2):
        for rows in batches(samples())():
            x, y = np.stack([row[0] for row in rows]).astype(float), np.array([row[1] for row in rows])
            logits = x @ w + b
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            costs.append(-np.log(p[np.arange(len(y)), y]).mean())
            p[np.arange(len(y)), y] -= 1
            gradients = (x.T @ p, p.sum(0, keepdims=True))
            seen += len(rows)  # the second batch is the first at half the rate: it counts itself
            for i, (v, weights, g) in enumerate(zip(velocity, (w, b), gradients, strict=True)):
                velocity[i] = 0.9 * v - 0.025 * 0.5 ** (seen // 8) * (g + 0.08 * weights)
            w, b = w + velocity[0], b + velocity[1]
    assert [event.cost for event in of(events, paddle.event.EndIteration)] == pytest.approx(costs, rel=1e-5)
    for name, expected in zip(parameters.names(), (w, b), strict=True):
        assert np.abs(parameters.get(name) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_parameter_gets_the_decay_also_biases_and_those_that_ask_for_zero() -> None:
    x = paddle.layer.data("x", paddle.data_type.dense_vector(DIM))
    hidden = paddle.layer.fc(x, 4, param_attr=paddle.attr.Param(name="own", l2_rate=6e-4))
    zero = paddle.attr.Param(name="zero", l2_rate=0.0)
    out = paddle.layer.fc(hidden, CLASSES, act=paddle.activation.Softmax(), param_attr=zero)
    cost = paddle.layer.classification_cost(out, paddle.layer.data("y", paddle.data_type.integer_value(CLASSES)))
    rule = paddle.optimizer.Adam(regularization=paddle.optimizer.L2Regularization(8e-4))
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), rule)
    found = {conf.name: conf.decay_rate for conf in trainer.get_topology_proto().parameters}
    assert found == {"own": 6e-4, "___fc_layer_0__.wbias": 8e-4, "zero": 8e-4, "___fc_layer_1__.wbias": 8e-4}


def test_several_costs_and_extra_layers() -> None:
    """Both costs are reported, an extra one is not; all three are minimised, the extra one times its coeff."""
    x = paddle.layer.data("x", paddle.data_type.dense_vector(DIM))
    y = paddle.layer.data("y", paddle.data_type.integer_value(CLASSES))
    outs = [paddle.layer.fc(x, CLASSES, act=paddle.activation.Softmax(), name=f"out{i}") for i in range(3)]
    costs = [paddle.layer.cross_entropy_cost(out, y, coeff=(1, 1, 0.3)[i]) for i, out in enumerate(outs)]
    paddle.evaluator.classification_error(outs[2], y, name="extra")
    parameters = paddle.parameters.create(costs[:2])
    assert "_out2.w0" not in parameters
    trainer = paddle.trainer.SGD(
        costs[:2], parameters, paddle.optimizer.Momentum(learning_rate=0.0), extra_layers=[costs[2], outs[2]]
    )
    assert "_out2.w0" in parameters
    before, gradients = values(parameters), {}
    seen = []

    def handler(event: Any) -> None:
        if isinstance(event, paddle.event.EndForwardBackward):
            gradients.update({name: parameters.get_grad(name) for name in parameters.names()})
        if isinstance(event, paddle.event.EndIteration):
            seen.append(event)

    trainer.train(batches(samples(4)), event_handler=handler)
    x_, y_ = np.stack([row[0] for row in samples(4)]).astype(float), np.array([row[1] for row in samples(4)])
    reported = 0.0
    for i, coeff in enumerate((1, 1, 0.3)):
        logits = x_ @ before[f"_out{i}.w0"] + before[f"_out{i}.wbias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        reported += -np.log(p[np.arange(4), y_]).mean() if i < 2 else 0
        p[np.arange(4), y_] -= 1
        np.testing.assert_allclose(gradients[f"_out{i}.w0"], coeff * x_.T @ p, rtol=1e-4, atol=1e-6)
    assert seen[0].cost == pytest.approx(reported, rel=1e-5) and list(seen[0].metrics) == ["extra"]
    assert trainer.test(batches(samples(4))).cost == pytest.approx(reported, rel=1e-5)


def test_each_call_counts_anew_and_velocities_stay() -> None:
    """Two calls of one pass are not one of two, since the schedule starts again. But velocities are carried on."""
    settings_of_rule = {"learning_rate_schedule": "discexp", "learning_rate_decay_a": 0.1, "learning_rate_decay_b": N}

    def trained(passes: list[int], momentum: float) -> np.ndarray:
        paddle.reset()
        _, cost = linear()
        parameters = paddle.parameters.create(cost)
        rule = paddle.optimizer.Momentum(momentum=momentum, learning_rate=0.1, **settings_of_rule)
        trainer = paddle.trainer.SGD(cost, parameters, rule)
        for count in passes:
            trainer.train(batches(samples()), num_passes=count)
        return parameters.get(parameters.names()[0])

    assert not np.array_equal(trained([1, 1], 0.9), trained([2], 0.9))
    x = paddle.layer.data("x1", paddle.data_type.dense_vector(1))
    w = paddle.layer.fc(x, 1, act=paddle.activation.Linear(), bias_attr=False, param_attr=paddle.attr.Param(name="w"))
    cost = paddle.layer.sum_cost(w)
    parameters = paddle.parameters.create(cost)
    parameters.set("w", np.zeros((1, 1)))
    trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Momentum(momentum=0.5, learning_rate=1.0))
    for expected in (-1.0, -2.5, -4.25):  # velocities 1, 1.5, 1.75
        trainer.train(lambda: iter([[([1.0],)]]))
        assert parameters.get("w").item() == expected


# ---------------------------------------------------------------------------------------------------------------------
# What a handler sees
# ---------------------------------------------------------------------------------------------------------------------


def test_events_come_in_order_with_plain_numbers() -> None:
    _, cost = linear()
    parameters = paddle.parameters.create(cost)
    trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Momentum(learning_rate=0.01))
    events = train(trainer, batches(samples()), 2)
    one = ["BeginPass", *["BeginIteration", "EndForwardBackward", "EndIteration"] * 3, "EndPass"]
    assert [type(event).__name__ for event in events] == 2 * one
    ends = of(events, paddle.event.EndIteration)
    assert [(event.pass_id, event.batch_id) for event in ends] == [(p, b) for p in (0, 1) for b in (0, 1, 2)]
    errors = [event.metrics["classification_error_evaluator"] for event in ends]
    assert all(type(error) is float and error == float(np.float32(error)) for error in errors)
    assert all(type(event.cost) is float for event in ends)
    passes = of(events, paddle.event.EndPass)
    for i, event in enumerate(passes):  # kept events still say what they said: of this batch, of that pass
        wrong = sum(error * n for error, n in zip(errors[3 * i : 3 * i + 3], (4, 4, 2), strict=True))
        assert event.metrics == {"classification_error_evaluator": pytest.approx(wrong / N)}
        assert not hasattr(event, "cost")
    assert f"{ends[0].metrics}" == f"{{'classification_error_evaluator': {errors[0]}}}"  # as the chapter prints it


def test_thirds_are_float32_thirds() -> None:
    _, cost = linear()
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), paddle.optimizer.Adam())
    values = {0.0, 0.3333333432674408, 0.6666666865348816, 1.0}
    assert trainer.test(batches(samples(3))).metrics["classification_error_evaluator"] in values
    assert trainer.test(batches(samples(3), 1)).metrics["classification_error_evaluator"] in values


def test_outputs_of_layers_are_those_before_the_update() -> None:
    out, cost = linear()
    best = paddle.layer.max_id(out, name="best")
    parameters = paddle.parameters.create(cost)
    rule = paddle.optimizer.Momentum(learning_rate=1.0)
    trainer = paddle.trainer.SGD(cost, parameters, rule, extra_layers=best)
    rows = samples(4)
    before = paddle.infer(out, parameters, [row[:1] for row in rows])
    seen: list[str] = []

    def handler(event: Any) -> None:
        if isinstance(event, paddle.event.EndForwardBackward | paddle.event.EndIteration | paddle.event.EndPass):
            found = event.gm.getLayerOutputs([out.name, "best", "y", cost.name])
            np.testing.assert_allclose(found[out.name]["value"], before, rtol=1e-6)
            assert found["best"]["value"] is None and found["best"]["prob"].shape == (4, 1)
            assert found["best"]["id"].tolist() == before.argmax(1).tolist()
            assert found["y"]["id"].tolist() == [row[1] for row in rows] and found[cost.name]["value"].shape == (4, 1)
            assert event.gm.getLayerOutputs(out.name)[out.name]["id"] is None
            with pytest.raises(UsageError, match=r"no layer 'bets'.*best"):
                event.gm.getLayerOutputs("bets")
            seen.append(type(event).__name__)

    trainer.train(batches(rows), event_handler=handler)
    assert seen == ["EndForwardBackward", "EndIteration", "EndPass"]
    assert not np.allclose(paddle.infer(out, parameters, [row[:1] for row in rows]), before)


def test_columns_are_in_the_order_of_declaration_unless_feeding_says_otherwise() -> None:
    y = paddle.layer.data("y", paddle.data_type.integer_value(CLASSES))
    x = paddle.layer.data("x", paddle.data_type.dense_vector(DIM))
    out = paddle.layer.fc(x, CLASSES, act=paddle.activation.Softmax())
    cost = paddle.layer.classification_cost(out, y)
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), paddle.optimizer.Adam())
    turned = [(label, picture) for picture, label in samples()]
    trainer.train(batches(turned))
    with pytest.raises(ValueError, match="data layer 'y', column 0"):
        trainer.train(batches(samples()))
    trainer.train(batches(samples()), feeding={"x": 0, "y": 1})
    trainer.test(batches(samples()), feeding=["x", "y"])


# ---------------------------------------------------------------------------------------------------------------------
# Testing
# ---------------------------------------------------------------------------------------------------------------------


def conv_samples(n: int = N) -> list[tuple[np.ndarray, int]]:
    return samples(n, 50)


def test_a_test_changes_nothing_and_weighs_by_samples() -> None:
    """The same training with and without tests in its handler, bit for bit, dropout and batch norm included."""

    def trained(test: bool) -> dict[str, np.ndarray]:
        paddle.reset()
        paddle.init(seed=3)
        cost = convnet()
        parameters = paddle.parameters.create(cost)
        trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Adam(learning_rate=0.01))

        def handler(event: Any) -> None:
            if test:
                before = values(parameters)
                result = trainer.test(batches(conv_samples()))
                assert all(np.array_equal(before[name], value) for name, value in values(parameters).items())
                parts = [trainer.test(batches(rows)) for rows in (conv_samples()[:4], conv_samples()[4:])]
                assert result.cost == pytest.approx((4 * parts[0].cost + 6 * parts[1].cost) / 10, rel=1e-6)
                assert set(result.metrics) == {"__auc_evaluator_0__", "classification_error_evaluator"}

        trainer.train(batches(conv_samples()), 2, handler)
        return values(parameters)

    plain, tested = trained(False), trained(True)
    assert all(np.array_equal(plain[name], value) for name, value in tested.items())


def test_an_empty_reader_says_so() -> None:
    _, cost = linear()
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), paddle.optimizer.Adam())
    with pytest.raises(ValueError, match="the reader gave no sample"):
        trainer.test(lambda: iter([]))
    assert [type(event).__name__ for event in train(trainer, lambda: iter([]))] == ["BeginPass", "EndPass"]
    with pytest.raises(ValueError, match="empty mini-batch"):
        trainer.train(lambda: iter([[]]))


def test_the_average_goes_into_the_file_and_nowhere_else() -> None:
    _, cost = linear()
    parameters = paddle.parameters.create(cost)
    average = paddle.optimizer.ModelAverage(average_window=0.5)
    trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Adam(learning_rate=0.1, model_average=average))
    each: list[dict[str, np.ndarray]] = []

    def handler(event: Any) -> None:
        if isinstance(event, paddle.event.EndIteration):
            each.append(values(parameters))

    trainer.train(batches(samples()), 2, handler)
    raw, file = values(parameters), io.BytesIO()
    trainer.save_parameter_to_tar(file)
    file.seek(0)
    saved = paddle.parameters.Parameters.from_tar(file)
    for name in parameters.names():
        assert np.array_equal(parameters.get(name), raw[name])
        np.testing.assert_allclose(
            saved.get(name), np.mean([step[name] for step in each], axis=0), rtol=1e-5, atol=1e-7
        )
        assert not np.allclose(saved.get(name), raw[name])


# ---------------------------------------------------------------------------------------------------------------------
# Stopped and resumed
# ---------------------------------------------------------------------------------------------------------------------

RULES: dict[str, Callable[[], Any]] = {
    "momentum": lambda: paddle.optimizer.Momentum(
        momentum=0.9,
        learning_rate=0.02,
        learning_rate_schedule="discexp",
        learning_rate_decay_a=0.5,
        learning_rate_decay_b=15,
        regularization=paddle.optimizer.L2Regularization(0.01),
        model_average=paddle.optimizer.ModelAverage(0.5, 4),
    ),
    "adam": lambda: paddle.optimizer.Adam(learning_rate=0.01),
    "rmsprop": lambda: paddle.optimizer.RMSProp(learning_rate=0.01),
}


class Stop(Exception):
    pass


def shuffled() -> Iterator[Any]:
    """Draws from both generators that readers of 2017 drew from, when it is called and while it is read."""
    rows = conv_samples()
    random.shuffle(rows)
    for batch in batches(rows, 3)():
        yield [(picture + np.random.normal(size=50).astype(np.float32) * random.random(), y) for picture, y in batch]


def declared(rule: str) -> tuple[Any, Any]:
    paddle.reset()
    paddle.init(seed=5)
    cost = convnet()
    parameters = paddle.parameters.create(cost)
    return parameters, paddle.trainer.SGD(cost, parameters, RULES[rule]())


@pytest.mark.parametrize(
    ("rule", "stop"),
    [("momentum", (1, 1)), ("adam", (0, 0)), ("rmsprop", (0, 3)), ("momentum", "pass"), ("adam", "begin")],
)
def test_resumed_equals_uninterrupted_bit_for_bit(rule: str, stop: Any, tmp_path: Path) -> None:
    """Cut in the middle of a pass, after its last batch, at its end and at its beginning."""

    def run(trainer: Any, handler: Callable[[Any], None]) -> None:
        trainer.train(shuffled, 3, handler)

    def numbers(event: Any) -> Any:
        return [getattr(event, key, None) for key in ("pass_id", "batch_id", "cost", "metrics")]

    random.seed(1)
    np.random.seed(1)
    parameters, trainer = declared(rule)
    whole: list[Any] = []
    run(trainer, lambda event: whole.append((type(event).__name__, numbers(event))))
    expected, file = values(parameters), io.BytesIO()
    trainer.save_parameter_to_tar(file)

    random.seed(1)
    np.random.seed(1)
    parameters, trainer = declared(rule)
    part: list[Any] = []

    def stopping(event: Any) -> None:
        part.append((type(event).__name__, numbers(event)))
        end, begin = paddle.event.EndIteration, paddle.event.BeginIteration
        here = isinstance(event, end) and (event.pass_id, event.batch_id) == stop
        here |= stop == "pass" and isinstance(event, paddle.event.EndPass)
        here |= stop == "begin" and isinstance(event, begin) and (event.pass_id, event.batch_id) == (1, 0)
        if here:
            trainer.save_checkpoint(tmp_path / "saved")
            raise Stop

    with pytest.raises(Stop):
        run(trainer, stopping)

    # Another process would have other random numbers, and a network of other values.
    random.seed(77)
    np.random.seed(77)
    parameters, trainer = declared(rule)
    for name in parameters.names():
        parameters.set(name, np.zeros(parameters.get_shape(name), np.float32))
    torch.rand(3)
    assert trainer.resume(tmp_path / "saved")
    rest: list[Any] = []
    run(trainer, lambda event: rest.append((type(event).__name__, numbers(event))))
    again = [entry for entry in rest if entry not in part]
    assert part + again == whole and len(again) > 3
    for name, value in expected.items():
        assert np.array_equal(parameters.get(name), value), name
    other = io.BytesIO()
    trainer.save_parameter_to_tar(other)
    assert other.getvalue() == file.getvalue()


def test_resume_takes_what_fits_and_says_what_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parameters, trainer = declared("adam")
    assert not trainer.resume(tmp_path / "none")
    saved: list[dict[str, np.ndarray]] = []

    def handler(event: Any) -> None:
        if isinstance(event, paddle.event.EndIteration):
            trainer.save_checkpoint(tmp_path)
            saved.append(values(parameters))
        if isinstance(event, paddle.event.EndForwardBackward):
            with pytest.raises(UsageError, match="half a step"):
                trainer.save_checkpoint(tmp_path)

    trainer.train(batches(conv_samples()), 1, handler)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000002", "step-00000003"]
    with pytest.raises(StorageError, match="saved by a training with Adam; this one has Momentum"):
        declared("momentum")[1].resume(tmp_path)
    paddle.reset()
    _, cost = linear()
    with pytest.raises(StorageError, match="not a checkpoint of this network"):
        paddle.trainer.SGD(cost, paddle.parameters.create(cost), RULES["adam"]()).resume(tmp_path)

    path = tmp_path / names[1] / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    parameters, trainer = declared("adam")
    with caplog.at_level(logging.WARNING, "paddle"):
        assert trainer.resume(tmp_path)
    assert "step-00000003 cannot be used" in caplog.text
    assert all(np.array_equal(parameters.get(name), value) for name, value in saved[1].items())


# ---------------------------------------------------------------------------------------------------------------------
# Machines and mistakes
# ---------------------------------------------------------------------------------------------------------------------


def test_any_trainer_count_gives_the_same_numbers(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for count in (1, 4):
        paddle.reset()
        paddle.init(use_gpu=False, trainer_count=count)
        cost = convnet()
        parameters = paddle.parameters.create(cost)
        trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Adam())
        events = train(trainer, batches(conv_samples()))
        found.append(([event.cost for event in of(events, paddle.event.EndIteration)], values(parameters)))
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][name], value) for name, value in found[1][1].items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_the_cpu_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    machine._say_no_gpu.cache_clear()
    paddle.init(use_gpu=True)
    _, cost = linear()
    with caplog.at_level(logging.WARNING, "paddle"):
        trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), paddle.optimizer.Adam())
        trainer.train(batches(samples()))
    assert caplog.text.count("torch sees no CUDA device") == 1


@pytest.mark.gpu
def test_the_gpu_gives_the_numbers_of_the_cpu() -> None:
    found = []
    for use_gpu in (False, True):
        paddle.reset()
        paddle.init(use_gpu=use_gpu)
        _, cost = linear()
        parameters = paddle.parameters.create(cost)
        trainer = paddle.trainer.SGD(cost, parameters, paddle.optimizer.Momentum(momentum=0.9, learning_rate=0.05))
        assert next(trainer._state.model.parameters()).is_cuda == use_gpu
        costs = [event.cost for event in of(train(trainer, batches(samples()), 3), paddle.event.EndIteration)]
        found.append((costs, values(parameters), trainer.test(batches(samples())).cost))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4) and found[0][2] == pytest.approx(found[1][2], rel=1e-4)
    for name, value in found[0][1].items():
        assert np.abs(found[1][1][name] - value).max() <= 1e-4 * np.abs(value).max()


def test_a_loss_that_is_not_finite_names_pass_and_batch() -> None:
    _, cost = linear()
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), paddle.optimizer.Momentum(learning_rate=0.1))
    rows = samples()
    rows[5] = (np.full(DIM, np.nan, np.float32), 0)
    with pytest.raises(NonFiniteLoss, match="pass 0, batch 1: the loss became nan; gradients are sums"):
        trainer.train(batches(rows))


def test_wrong_arguments() -> None:
    out, cost = linear()
    parameters, rule = paddle.parameters.create(cost), paddle.optimizer.Adam()
    sgd = paddle.trainer.SGD
    with pytest.raises(TypeError, match="parameters should be parameters; received dict"):
        sgd(cost, {}, rule)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be paddle\.v2\.optimizer\.Optimizer; received str"):
        sgd(cost, parameters, "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected cost layers, received the fc layer"):
        sgd(out, parameters, rule)
    with pytest.raises(UsageError, match="several machines"):
        sgd(cost, parameters, rule, is_local=False)
    trainer = sgd(cost, parameters, rule)
    for wrong in (batches(samples())(), lambda: batches(samples()), lambda: [samples()]):
        with pytest.raises(TypeError, match="which can return a iterator"):
            trainer.train(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="event handler should be a function"):
        trainer.train(batches(samples()), event_handler=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="which can return a iterator"):
        trainer.test(samples())  # type: ignore[arg-type]
