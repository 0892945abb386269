"""The loop: what it minimises, what it counts, how it stops, and that it can be cut anywhere and go on the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from opsin import checkpoint, optim
from opsin.errors import NonFiniteLoss, StorageError
from opsin.recipe import SGD, Muon
from opsin.schedule import Constant, Linear
from opsin.train import EpochEnd, Precision, StepEnd, TrainState, train
from opsin.types import Progress


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4 * 4 * 4, 3),
    )


def batches(sizes=(4, 4, 3)):
    def epoch(number, start):
        for k, size in enumerate(sizes):
            if k >= start:
                generator = torch.Generator().manual_seed(100 * number + k)
                yield torch.randn(size, 1, 6, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)

    return epoch


def objective(model, batch, progress):
    output = model(batch[0])
    return functional.cross_entropy(output, batch[1]), output


def run(state, *, epochs=2, schedule=None, **options):
    schedule = schedule or Constant()
    return train(
        state, batches(), objective, total_steps=6, until=lambda p: p.epoch >= epochs, schedule=schedule, **options
    )


def test_losses_and_weights_equal_a_plain_loop_over_torch():
    state = TrainState(model := network(), optim.build(model, SGD(lr=0.1, momentum=0.9)))
    got = [event.loss.item() for event in run(state) if isinstance(event, StepEnd)]
    reference = network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    expected = []
    for epoch in range(2):
        for images, labels in batches()(epoch, 0):
            loss = functional.cross_entropy(reference(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert got == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_events_and_progress_come_in_order():
    state = TrainState(model := network(), optim.build(model, SGD()))
    events = [(type(e).__name__, *e.progress) for e in run(state)]
    assert events == [
        ("StepEnd", 0, 1, 1, 4),
        ("StepEnd", 0, 2, 2, 8),
        ("StepEnd", 0, 3, 3, 11),
        ("EpochEnd", 1, 0, 3, 11),
        ("StepEnd", 1, 1, 4, 15),
        ("StepEnd", 1, 2, 5, 19),
        ("StepEnd", 1, 3, 6, 22),
        ("EpochEnd", 2, 0, 6, 22),
    ]


def test_the_schedule_scales_every_groups_own_rate():
    state = TrainState(model := network(), optim.build(model, SGD(lr=0.2)))
    rates = [state.optimizer.param_groups[0]["lr"] for e in run(state, schedule=Linear()) if isinstance(e, StepEnd)]
    assert rates == pytest.approx([0.2 * (1 - k / 6) for k in range(6)])


def test_accumulated_batches_are_one_step_on_their_mean():
    # Without batch normalisation a step on two batches of four is a step on their eight pictures.
    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    state = TrainState(model := plain(), optim.build(model, SGD(lr=0.1, momentum=0.0)))
    events = list(
        train(
            state,
            batches((4, 4, 4)),
            objective,
            total_steps=4,
            until=lambda p: p.epoch >= 1,
            schedule=Constant(),
            accumulate=2,
        )
    )
    assert [e.progress.step for e in events if isinstance(e, StepEnd)] == [1, 2]
    reference = plain()
    groups = list(batches((4, 4, 4))(0, 0))
    for part in (groups[:2], groups[2:]):
        images, labels = (torch.cat(values) for values in zip(*part, strict=True))
        functional.cross_entropy(reference(images), labels).backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_bounds_the_step():
    def huge(model, batch, progress):
        loss, output = objective(model, batch, progress)
        return 1e6 * loss, output

    state = TrainState(model := network(), optim.build(model, SGD(lr=1.0, momentum=0.0)))
    before = [p.detach().clone() for p in model.parameters()]
    next(
        iter(train(state, batches(), huge, total_steps=6, until=lambda p: p.epoch >= 1, schedule=Constant(), clip=0.5))
    )
    moved = sum(((a - b) ** 2).sum() for a, b in zip(model.parameters(), before, strict=True)) ** 0.5
    assert moved.item() == pytest.approx(0.5, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    def bad(model, batch, progress):
        loss, output = objective(model, batch, progress)
        return loss * (float("nan") if progress.step == 2 else 1), output

    state = TrainState(model := network(), optim.build(model, SGD()))
    kept = None
    with pytest.raises(NonFiniteLoss, match=r"the loss became nan in step 3 \(epoch 1\)"):
        for _event in train(state, batches(), bad, total_steps=6, until=lambda p: p.epoch >= 2, schedule=Constant()):
            kept = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))


def test_learns_a_toy_set():
    torch.manual_seed(1)
    images, labels = torch.randn(30, 1, 6, 6), torch.arange(30) % 3
    images[:, 0, 0, 0] += 4 * labels
    state = TrainState(model := network(), optim.build(model, Muon(lr=0.05, sgd_lr=0.1)))
    loss = [
        e.loss.item()
        for e in train(
            state,
            lambda epoch, start: [(images, labels)][start:],
            objective,
            total_steps=60,
            until=lambda p: p.epoch >= 60,
            schedule=Linear(),
        )
        if isinstance(e, StepEnd)
    ]
    assert loss[0] > 0.9 and loss[-1] < 0.05


@pytest.mark.parametrize("spec", [SGD(lr=0.1, momentum=0.9), Muon(lr=0.1, sgd_lr=0.1)])
def test_cut_at_every_step_and_resumed_gives_the_same_bits(tmp_path, spec):
    precision = Precision()

    def fresh():
        model = network(dropout=0.5).to(memory_format=torch.channels_last)
        torch.manual_seed(7)
        return TrainState(model, optim.build(model, spec))

    whole = fresh()
    total = sum(isinstance(event, StepEnd) for event in run(whole, schedule=Linear()))
    for cut in range(1, total + 1):
        state = fresh()
        for event in run(state, schedule=Linear()):
            if event.progress.step == cut:
                break
        folder = tmp_path / str(cut)
        checkpoint.save(state, folder, precision=precision, notes={"cut": cut}, tensors={})
        torch.manual_seed(12345)  # another process has other random numbers
        resumed = fresh()
        restored = checkpoint.restore(resumed, folder, precision=precision, warn=pytest.fail)
        assert restored.notes == {"cut": cut} and resumed.progress == state.progress
        list(run(resumed, schedule=Linear()))
        for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), (cut, name)
        for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            one, other = whole.optimizer.state[a], resumed.optimizer.state[b]
            assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def checkpoints(folder, count=3):
    state = TrainState(model := network(), optim.build(model, SGD()))
    for step in range(1, count + 1):
        state.progress = Progress(step=step)
        checkpoint.save(state, folder, precision=Precision(), notes={"step": step}, tensors={"ema": model.state_dict()})
    return state


def test_the_last_two_are_kept_and_a_damaged_newest_one_is_passed_over(tmp_path):
    state = checkpoints(tmp_path)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000002", "step-00000003"]
    path = tmp_path / "step-00000003" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    said = []
    restored = checkpoint.restore(state, tmp_path, precision=Precision(), warn=said.append)
    assert restored.notes == {"step": 2} and set(restored.tensors["ema"]) == set(state.model.state_dict())
    assert len(said) == 1 and "step-00000003 cannot be used" in said[0]


def test_when_all_are_damaged_nothing_starts_afresh(tmp_path):
    state = checkpoints(tmp_path)
    for path in checkpoint.steps(tmp_path):
        (path / "state.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match="none of the 2 checkpoints"):
        checkpoint.restore(state, tmp_path, precision=Precision(), warn=lambda text: None)
    assert checkpoint.restore(state, tmp_path / "empty", precision=Precision(), warn=pytest.fail) is None


def test_epoch_ends_are_events_of_their_own():
    state = TrainState(model := network(), optim.build(model, SGD()))
    assert sum(isinstance(event, EpochEnd) for event in run(state, epochs=3)) == 3


def test_damaged_checkpoints_of_later_steps_do_not_push_out_good_ones(tmp_path):
    state = checkpoints(tmp_path, 4)
    (tmp_path / "step-00000004" / "state.json").write_bytes(b"{}")
    restored = checkpoint.restore(state, tmp_path, precision=Precision(), warn=lambda text: None)
    assert restored.notes == {"step": 3}
    (tmp_path / ".step-00000009.opsin-tmp-1").mkdir()
    state.progress = Progress(step=3)
    checkpoint.save(state, tmp_path, precision=Precision(), notes={"step": 33}, tensors={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert checkpoint.restore(state, tmp_path, precision=Precision(), warn=pytest.fail).notes == {"step": 33}
