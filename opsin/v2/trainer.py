"""SGD: the trainer of the v2 API, over the one training loop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin import checkpoint
from opsin.device import tune
from opsin.errors import NonFiniteLoss, StorageError, UsageError
from opsin.train import EpochEnd, Precision, StepEnd, TrainState
from opsin.train import train as training_loop
from opsin.types import Progress
from opsin.v2 import event, machine, proto
from opsin.v2.data_feeder import DataFeeder, FeedError, Feeding
from opsin.v2.evaluator import Accumulator
from opsin.v2.graph import Layer
from opsin.v2.lower import Graph
from opsin.v2.optimizer import Optimizer
from opsin.v2.parameters import Parameters
from opsin.v2.topology import Topology

__all__ = ["SGD"]

Reader = Callable[[], Iterable[Sequence[Any]]]
Handler = Callable[[Any], None]


class MiniBatch(NamedTuple):
    rows: Sequence[Any]  # as the reader gave them
    feed: dict[str, Tensor]


class SGD:
    """Trains a declared network by any of the optimisers.

    cost: a cost layer or several, whose sum is minimised and reported. parameters: theirs; from here on they live in
    the network that is trained. extra_layers: computed and measured too; costs among them are minimised, not reported.

    The gradient is that of the sum over the mini-batch; `event.cost` is its mean.
    """

    def __init__(
        self,
        cost: Layer | Sequence[Layer],
        parameters: Parameters,
        update_equation: Optimizer,
        extra_layers: Layer | Sequence[Layer] | None = None,
        is_local: bool = True,
        pserver_spec: str | None = None,
        use_etcd: bool = True,
    ) -> None:
        if not isinstance(parameters, Parameters):
            raise TypeError(f"parameters should be parameters; received {type(parameters).__name__}")
        if not isinstance(update_equation, Optimizer):
            kind = type(update_equation).__name__
            raise TypeError(f"update equation parameter must be paddle.v2.optimizer.Optimizer; received {kind}")
        if not is_local or pserver_spec is not None:
            raise UsageError("SGD: training over several machines is not part of opsin.v2")
        topology = Topology(cost, extra_layers)
        for layer in topology.layers:
            if not _is_cost(layer):
                raise UsageError(f"SGD: cost: expected cost layers, received the {layer.kind} layer {layer.name!r}")
        tune()
        for conf in topology.confs:
            parameters.append(conf)
            parameters.confs[conf.name] = update_equation.configured(conf)
        topology.confs = [parameters.confs[conf.name] for conf in topology.confs]
        graph = Graph([*topology.layers, *topology.extra_layers]).to(machine.device()).lay_out()
        parameters.attach(graph)
        self._topology, self._parameters, self._rule = topology, parameters, update_equation
        self._updater = update_equation.bind([(parameters.confs[name], t) for name, t in graph.tensors().items()])
        self._state = TrainState(graph, self._updater)
        self._reported = [layer.name for layer in topology.layers]
        self._minimised = [*self._reported, *(layer.name for layer in topology.extra_layers if _is_cost(layer))]
        measured = {layer for evaluator in topology.evaluators for layer in evaluator.inputs}
        self._needed = _keys([*topology.layers, *topology.extra_layers, *measured])
        self._pass = self._accumulators()
        self._reader_began: dict[str, Any] = {}  # the random numbers as they were when the pass began
        self._resumed = self._reading = self._amid = False

    def _accumulators(self) -> list[Accumulator]:
        return [conf.accumulator() for conf in self._topology.evaluators]

    def get_topology_proto(self) -> proto.ModelConfig:
        """The network as the configuration message of 2017, parameters with the optimiser's decay and momentum."""
        return self._topology.proto()

    # ------------------------------------------------------------------------------------------------------------------
    # Training and testing
    # ------------------------------------------------------------------------------------------------------------------

    def train(
        self,
        reader: Reader,
        num_passes: int = 1,
        event_handler: Handler | None = None,
        feeding: Feeding = None,
    ) -> None:
        """Go through the reader's mini-batches `num_passes` times, telling the handler.

        Each call counts passes and samples, and with them the schedule, from 0; velocities and moments stay. After
        `resume` it goes on where the interrupted call was. `NonFiniteLoss` names the pass and the batch.
        """
        if not callable(reader):
            raise TypeError(f"train_data_reader should be a function, which can return a iterator; received {reader!r}")
        if event_handler is not None and not callable(event_handler):
            raise TypeError(f"event handler should be a function; received {event_handler!r}")
        if not self._resumed:
            self._state.progress = Progress()
            self._updater.restart()
        self._amid = False
        tell = event_handler or (lambda event: None)
        gm = machine.Machine(self._state.model)
        wanted = self._needed if event_handler is None else _keys(self._topology.order)
        feeder = DataFeeder(self._topology.data_type(), feeding, machine.device())
        batch_metrics, samples, done = self._accumulators(), 0, self._state.progress.batch

        def batches(pass_id: int, start: int) -> Iterator[MiniBatch]:
            nonlocal samples
            self._begin_reading()
            found = _iterator(reader, "train_data_reader")
            if start == 0:
                for accumulator in self._pass:
                    accumulator.start()
                tell(event.BeginPass(pass_id))
            for batch_id, rows in enumerate(itertools.islice(found, start, None), start):
                gm.values = {}  # before the next ones are made
                tell(event.BeginIteration(pass_id, batch_id))
                samples = self._state.progress.samples + len(rows)
                self._amid = True
                yield MiniBatch(rows, feeder(rows))

        def objective(graph: Graph, batch: MiniBatch, progress: Progress) -> tuple[Tensor, Tensor]:
            gm.values = graph.run(batch.feed, wanted)
            reported = _total(gm.values, self._reported)
            loss = reported if self._minimised == self._reported else _total(gm.values, self._minimised)
            return loss, reported.detach()

        def before_update(*_: Any) -> None:
            progress = self._state.progress
            tell(event.EndForwardBackward(progress.epoch, progress.batch - 1, gm))

        events = training_loop(
            self._state,
            batches,
            objective,
            total_steps=0,
            until=lambda progress: progress.epoch >= num_passes,
            schedule=lambda progress, total_steps: self._rule.rate(samples, progress.epoch),
        )
        hook = self._updater.register_step_pre_hook(before_update)
        try:
            for happened in _named(events, self._state):
                if isinstance(happened, StepEnd):
                    self._amid, done = False, happened.progress.batch
                    for accumulator in batch_metrics:
                        accumulator.start()
                        accumulator.eval(gm.values)
                    for accumulator in self._pass:
                        accumulator.eval(gm.values)
                    cost = happened.output.item() / len(happened.batch.rows)
                    tell(event.EndIteration(happened.progress.epoch, done - 1, cost, _metrics(batch_metrics), gm))
                else:
                    self._reading = False
                    self._updater.end_pass(done)
                    tell(event.EndPass(happened.progress.epoch - 1, _metrics(self._pass), gm))
        finally:
            hook.remove()
            self._resumed = False

    def test(self, reader: Reader, feeding: Feeding = None) -> event.TestResult:
        """The mean cost over all samples of a reader, and the metrics; nothing learns. May be called from a handler."""
        if not callable(reader):
            raise TypeError(f"test_data_reader should be a function, which can return a iterator; received {reader!r}")
        graph = self._state.model.eval()
        feeder = DataFeeder(self._topology.data_type(), feeding, machine.device())
        accumulators, cost, samples = self._accumulators(), 0.0, 0
        with torch.no_grad():
            for rows in _iterator(reader, "test_data_reader"):
                values = graph.run(feeder(rows), self._needed)
                cost += sum(float(values[name].double().sum()) for name in self._reported)
                samples += len(rows)
                for accumulator in accumulators:
                    accumulator.eval(values)
        if not samples:
            raise FeedError("trainer.test: the reader gave no sample")
        return event.TestResult(_metrics(accumulators), cost / samples)

    def save_parameter_to_tar(self, f: Any) -> None:
        """Write the parameters as `Parameters.to_tar` does, or their averages where the optimiser keeps them."""
        with self._updater.averaged():
            self._parameters.to_tar(f)

    # ------------------------------------------------------------------------------------------------------------------
    # Stopping and going on
    # ------------------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, folder: str | Path, keep: int = checkpoint.KEEP) -> None:
        """Save all that going on exactly needs, from a handler or after `train`; the last `keep` saves stay.

        Parameters, moving statistics, velocities and moments, averages, counters, metrics of the pass, and the random
        numbers of torch (dropout), of `random` and of `numpy.random` (readers). Not in `EndForwardBackward`, where half
        a step is done.
        """
        if self._amid:
            raise UsageError("save_checkpoint: half a step is done; call it in EndIteration or EndPass, or after train")
        found = {f"{i}/{k}": tensor for i, part in enumerate(self._pass) for k, tensor in part.tensors().items()}
        notes = {
            "rule": type(self._rule).__name__,
            "counts": self._updater.counts,
            "reader": self._reader_began if self._reading else _random_numbers(),
        }
        tensors = {"metrics": found}
        checkpoint.save(self._state, Path(folder), precision=Precision(), notes=notes, tensors=tensors, keep=keep)

    def resume(self, folder: str | Path) -> bool:
        """Take over the newest whole checkpoint in `folder`; False when there is none, and nothing happens.

        The next `train`, called as the interrupted one was, goes on after the last batch before the save: it calls the
        reader with the random numbers of then and passes over the batches that were done, so that a reader that draws
        from `random` or `numpy.random` in one thread gives the same ones again. It ends in the same bits.
        `StorageError` for a checkpoint of another network or optimiser.
        """
        folder = Path(folder)
        restored = checkpoint.restore(self._state, folder, precision=Precision(), warn=machine.log.warning)
        if restored is None:
            return False
        notes, rule = restored.notes, type(self._rule).__name__
        if notes.get("rule") != rule:
            raise StorageError(f"{folder}: saved by a training with {notes.get('rule')}; this one has {rule}")
        try:
            self._updater.counts = {key: int(notes["counts"][key]) for key in self._updater.counts}
            for i, accumulator in enumerate(self._pass):
                found = restored.tensors["metrics"].items()
                accumulator.restore({k.partition("/")[2]: t for k, t in found if k.partition("/")[0] == str(i)})
            self._reader_began = notes["reader"]
            before = _random_numbers()
            _set_random_numbers(self._reader_began)
            _set_random_numbers(before)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{folder}: not a checkpoint of this training: {error!r}") from error
        self._resumed = self._reading = True
        self._amid = False
        return True

    def _begin_reading(self) -> None:
        if self._resumed:
            _set_random_numbers(self._reader_began)
        else:
            self._reader_began = _random_numbers()
        self._resumed, self._reading = False, True


def _is_cost(layer: Layer) -> bool:
    return "coeff" in layer.attrs


def _keys(layers: Iterable[Layer]) -> set[str]:
    """The names of all that some layers give."""
    return {key for layer in layers for key in machine.fields(layer).values()}


def _total(values: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """The sum over the samples of the sum of these costs."""
    first, *others = (values[name].sum() for name in names)
    return sum(others, first)


def _metrics(accumulators: Sequence[Accumulator]) -> event.Metrics:
    """Name → value; of two metrics of one name the first counts, as in the original."""
    found: event.Metrics = {}
    for accumulator in accumulators:
        for name, value in accumulator.finish().items():
            found.setdefault(name, value)
    return found


def _iterator(reader: Reader, name: str) -> Iterator[Sequence[Any]]:
    found = reader()
    if not isinstance(found, Iterator):
        raise TypeError(f"{name} should be a function, which can return a iterator; it returned {type(found).__name__}")
    return found


def _named(events: Iterator[StepEnd | EpochEnd], state: TrainState[Graph]) -> Iterator[StepEnd | EpochEnd]:
    """The loop's events; a loss that is not finite names pass and batch as a handler would."""
    try:
        yield from events
    except NonFiniteLoss as error:
        what = str(error).partition(" in step ")[0]
        raise NonFiniteLoss(
            f"pass {state.progress.epoch}, batch {state.progress.batch - 1}: {what}; gradients are sums over the "
            "mini-batch, so a lower learning_rate usually helps, or gradient_clipping_threshold"
        ) from error


def _random_numbers() -> dict[str, Any]:
    """The state of `random` and `numpy.random`, as JSON holds it."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def _set_random_numbers(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
