"""Evaluation: exact for any batch size, classes by name, bad pictures named, reports that survive JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opsin import metrics
from opsin.classifier import NetClassifier
from opsin.data.index import ArraySource, Index, scan
from opsin.errors import BadInput, DataError, OpsinError, StorageError, UsageError
from opsin.evaluate import LabelReport, Report, evaluate, evaluate_labels, measure, report_from_dict, summarise
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec
from opsin.types import Model, Output


class Tiny(Model):
    """A convolution, batch norm with statistics that are not trivial, dropout, and a layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, num_classes)
        self.train()
        self(torch.randn(64, 3, 8, 8))

    def features(self, images: Tensor, at: str) -> Tensor:
        return torch.relu(self.norm(self.conv(images)))

    def forward(self, images: Tensor) -> Output:
        return Output(10 * self.fc(self.drop(self.features(images, "").mean((2, 3)))))


def tiny(classes: tuple[str, ...] = ("a", "b", "c", "d", "e", "f", "g")) -> NetClassifier:
    torch.manual_seed(0)
    return NetClassifier(Tiny(len(classes)), Preprocess(size=(8, 8)), classes, ModelSpec(name="tiny"))


def some(n: int = 403, num_classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(num_classes, (n,), generator=generator)


def index_of(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Index:
    return Index([f"k{i}" for i in range(len(labels))], labels.numpy(), classes, ArraySource(images.numpy()))


def test_the_same_for_any_batch_size_and_number_of_threads() -> None:
    classifier, (images, labels) = tiny(), some()
    index = index_of(images, labels, classifier.classes)
    first = evaluate(classifier, (images, labels), batch_size=403)
    assert first.probabilities is not None
    for batch_size, workers in ((1, 1), (7, 1), (7, 3), (256, 2), (402, 2), (1000, 2)):
        for pictures in ((images, labels), index):
            report = evaluate(classifier, pictures, batch_size=batch_size, workers=workers)
            assert report.probabilities is not None
            assert torch.equal(metrics.predicted(report.probabilities), metrics.predicted(first.probabilities))
            torch.testing.assert_close(report.probabilities, first.probabilities, atol=1e-6, rtol=0)
            for name in ("top1", "top5", "confusion", "per_class", "macro", "n", "top1_interval"):
                assert getattr(report, name) == getattr(first, name)
            assert report.nll == pytest.approx(first.nll, abs=1e-6)
            assert report.calibration_error == pytest.approx(first.calibration_error, abs=1e-6)
            assert [m.place for m in report.wrong] == [m.place for m in first.wrong]


def test_the_numbers_are_those_of_metrics() -> None:
    classifier, (images, labels) = tiny(), some()
    probabilities = classifier.probabilities(images)
    report = evaluate(classifier, (images, labels))
    right = int((probabilities.argmax(1) == labels).sum())
    assert report.n == 403 and report.num_wrong == 403 - right
    assert report.top1 == right / 403 and report.error == pytest.approx(1 - report.top1)
    assert report.top5 == metrics.topk(probabilities, labels, 5) and report.top5_error == 1 - report.top5
    assert report.top1_interval == metrics.wilson(right, 403)
    assert report.confusion == tuple(map(tuple, metrics.confusion(probabilities, labels).tolist()))
    assert report.nll == pytest.approx(metrics.nll(probabilities, labels))
    assert [s.name for s in report.per_class] == list(classifier.classes)
    assert sum(s.support for s in report.per_class) == 403
    assert sum(row.n for row in report.reliability) == 403


def test_wrong_lists_the_most_confident_mistakes() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 0])
    report = summarise(probabilities, labels, ("cat", "dog"), ["v", "w", "x", "y", "z"])
    assert [(m.place, m.key, m.label, m.predicted) for m in report.wrong] == [
        (2, "x", 0, 1),
        (4, "z", 0, 1),
        (1, "w", 0, 1),
    ]
    assert report.wrong[0].probability == pytest.approx(0.8)
    assert len(summarise(probabilities, labels, ("cat", "dog"), worst=2).wrong) == 2
    assert report.confused() == [(3, 0, 1)]


def test_progress_counts_up_to_all() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(tiny(), some(20), batch_size=8, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_keys() -> None:
    images, labels = some(3)
    assert list(evaluate(tiny(), (images, labels)).keys) == ["0", "1", "2"]
    assert list(evaluate(tiny(), (images, labels), keys=["x", "y", "z"]).keys) == ["x", "y", "z"]
    with pytest.raises(UsageError, match="3 pictures, 3 labels and 1 keys"):
        evaluate(tiny(), (images, labels), keys=["x"])
    with pytest.raises(UsageError, match="3 pictures, 2 labels"):
        evaluate(tiny(), (images, labels[:2]))


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name() -> None:
    classifier, (images, labels) = tiny(), some()
    expected = evaluate(classifier, (images, labels))
    backwards = index_of(images, 6 - labels, tuple(reversed(classifier.classes)))
    assert (
        evaluate(classifier, backwards).to_dict()
        == evaluate(classifier, index_of(images, labels, classifier.classes)).to_dict()
    )
    assert evaluate(classifier, backwards).confusion == expected.confusion
    two = labels < 2
    few = index_of(images[two], labels[two], ("a", "b", "never used"))
    report = evaluate(classifier, few)
    assert report.classes == classifier.classes and report.confusion[:2] == expected.confusion[:2]
    assert sum(map(sum, report.confusion[2:])) == 0


def test_unknown_classes_are_named() -> None:
    images, _ = some(10, 2)
    with pytest.raises(DataError, match=r"does not know: zebra; it knows: a, b, c"):
        evaluate(tiny(), index_of(images, torch.tensor([0, 1] * 5), ("a", "zebra")))
    with pytest.raises(UsageError, match="labels: expected 0 to 6, received 0 to 7"):
        evaluate(tiny(), (images, torch.tensor([7] * 9 + [0])))


def test_nothing_to_evaluate() -> None:
    images, labels = some(0)
    for pictures in ((images, labels), index_of(images, labels, tiny().classes)):
        with pytest.raises(DataError, match="nothing to evaluate"):
            evaluate(tiny(), pictures)
    with pytest.raises(UsageError, match="batch_size"):
        evaluate(tiny(), some(3), batch_size=0)


def test_a_diverged_network_is_named() -> None:
    classifier = tiny()
    nn.init.constant_(classifier.model.fc.bias, math.nan)  # type: ignore[arg-type, union-attr]
    with pytest.raises(OpsinError, match="pictures 0 to 3: the classifier answered with NaN"):
        evaluate(classifier, some(8), batch_size=4)


# ---------------------------------------------------------------------------------------------------------------------
# Bad pictures
# ---------------------------------------------------------------------------------------------------------------------


def test_bad_pictures_are_raised_or_counted(pictures: Path) -> None:
    classifier = tiny(("dark", "light"))
    clean = evaluate(classifier, scan(pictures))
    (pictures / "dark" / "000.png").write_bytes(b"no picture")
    (pictures / "light" / "003.png").write_bytes(b"")
    index = scan(pictures)
    with pytest.raises(BadInput, match=r"000\.png"):
        evaluate(classifier, index)
    with pytest.raises(UsageError, match="expected error or skip, received 'ignore'"):
        evaluate(classifier, index, on_bad_image="ignore")
    for batch_size in (1, 4, 100):
        report = evaluate(classifier, index, on_bad_image="skip", batch_size=batch_size)
        assert report.n == clean.n - 2 and len(report.skipped) == 2
        assert "000.png" in report.skipped[0] and "003.png" in report.skipped[1]
        kept = [i for i in range(clean.n) if i not in (0, 18)]
        assert report.probabilities is not None and clean.probabilities is not None
        torch.testing.assert_close(report.probabilities, clean.probabilities[kept], atol=1e-6, rtol=0)
        assert list(report.keys) == [index.keys[i] for i in kept]
        assert all(index.keys[mistake.place] == mistake.key for mistake in report.wrong) and report.wrong
    only = index.subset([0, 18])
    with pytest.raises(DataError, match=r"all 2 pictures were skipped: .*000\.png"):
        evaluate(classifier, only, on_bad_image="skip")


def test_what_the_index_left_out_is_in_the_report() -> None:
    classifier, (images, labels) = tiny(), some(10)
    index = replace(index_of(images, labels, classifier.classes), skipped=(BadInput("x.jpg", "damaged"),))
    assert evaluate(classifier, index).skipped == ("x.jpg: damaged",)


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------


def test_a_report_survives_json() -> None:
    report = evaluate(tiny(), some())
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report.from_dict(values | {"run": {"minutes": 1}, "unknown": 3}) == report
    for key in ("top1", "top5", "nll", "calibration_error", "n", "classes", "confusion", "per_class", "top1_interval"):
        assert key in values
    assert values["error"] == report.error and values["num_wrong"] == report.num_wrong
    assert set(values["per_class"][0]) == {"name", "precision", "recall", "f1", "support"}


def test_hostile_probabilities_give_finite_json() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float32)
    report = summarise(probabilities, torch.tensor([1, 1]), ("a", "b"))
    assert json.dumps(report.to_dict(), allow_nan=False)
    assert report.per_class[0].recall == 0 and np.isfinite(report.nll)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("nll"), "expected the key 'nll'"),
        (lambda v: v.update(n=3), "do not belong"),
        (lambda v: v.update(confusion=[[1]]), "do not belong"),
        (lambda v: v.update(classes=["a"]), "do not belong"),
        (lambda v: v.update(per_class=[{"name": "a"}]), "not a report"),
        (lambda v: v.update(top1="high"), "not a report"),
        (lambda v: v.update(top1_interval=[]), "not a report"),
        (lambda v: v.update(confusion=3), "not a report"),
        (lambda v: v.update(wrong=[3]), "not a report"),
        (lambda v: v.update(macro=None), "not a report"),
    ],
)
def test_what_is_no_report_is_named(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    values = evaluate(tiny(), some(20)).to_dict()
    change(values)
    with pytest.raises(StorageError, match=rf"old\.json: .*{message}"):
        Report.from_dict(values, "old.json")


# ---------------------------------------------------------------------------------------------------------------------
# Many labels
# ---------------------------------------------------------------------------------------------------------------------


def tiny_many(thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)) -> NetClassifier:
    one = tiny(("a", "b", "c"))
    return NetClassifier(one.model, one.preprocess, one.classes, one.spec, thresholds)


def some_many(n: int = 203) -> tuple[Tensor, Tensor]:
    images, _ = some(n)
    labels = torch.randint(-1, 2, (n, 3), generator=torch.Generator().manual_seed(2)).float()
    return images, labels


def test_a_report_of_many_labels_has_the_numbers_of_metrics_and_survives_json() -> None:
    classifier, (images, labels) = tiny_many(), some_many()
    report = evaluate_labels(classifier, index_of(images, labels, classifier.classes), batch_size=64, resamples=200)
    probabilities = classifier.probabilities(images)
    ranked = metrics.average_precisions(probabilities, labels)
    intervals, whole = metrics.bootstrap(probabilities, labels, 200)
    scores, micro = metrics.per_label(probabilities, labels, torch.tensor(classifier.thresholds))
    assert report.map == pytest.approx(sum(one.area or 0 for one in ranked) / 3) and report.error == 1 - report.map
    assert report.map_interval == pytest.approx(whole) and report.micro == pytest.approx(micro)
    for k, score in enumerate(report.per_class):
        assert (score.ap, score.ap11) == pytest.approx(tuple(ranked[k])) and score.interval == pytest.approx(
            intervals[k]
        )
        assert score.f1 == pytest.approx(float(scores.f1[k])) and score.support == int((labels[:, k] == 1).sum())
        assert score.known == int((labels[:, k] >= 0).sum())
    for mistake in report.wrong:
        label = labels[mistake.place, mistake.label]
        named = mistake.probability >= classifier.thresholds[mistake.label]
        assert label >= 0 and mistake.there == bool(label == 1) != named and mistake.key == f"k{mistake.place}"
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    again = report_from_dict(values | {"run": {}})
    assert again == report and isinstance(again, LabelReport)
    assert report_from_dict(evaluate(tiny(), some()).to_dict()) == evaluate(tiny(), some())
    without = evaluate_labels(classifier, (images, labels), resamples=0)
    assert without.map_interval is None and without.map == pytest.approx(report.map)


def test_labels_are_matched_by_name_and_what_is_not_listed_is_not_known() -> None:
    classifier, (images, labels) = tiny_many(), some_many(40)
    whole = evaluate_labels(classifier, (images, labels), resamples=0)
    other = evaluate_labels(classifier, index_of(images, labels[:, [2, 0]], ("c", "a")), resamples=0)
    assert other.per_class[0] == whole.per_class[0] and other.per_class[2] == whole.per_class[2]
    assert other.per_class[1].known == 0 and other.per_class[1].ap is None
    with pytest.raises(DataError, match="does not know: zebra"):
        evaluate_labels(classifier, index_of(images, labels, ("a", "zebra", "b")))
    with pytest.raises(DataError, match="no picture of these 40 has any label of a, b, c"):
        evaluate_labels(classifier, (images, 0 * labels))


def test_labels_of_the_other_kind_are_refused() -> None:
    classifier, (images, labels) = tiny_many(), some_many(10)
    single = index_of(images, torch.arange(10) % 3, classifier.classes)
    with pytest.raises(DataError, match="pictures have one label a picture, but the classifier is for many labels"):
        measure(classifier, single)
    with pytest.raises(DataError, match="pictures have many labels a picture, but the classifier is for one label"):
        measure(tiny(("a", "b", "c")), index_of(images, labels, classifier.classes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("map"), "expected the key 'map'"),
        (lambda v: v.update(classes=["a"]), "does not belong"),
        (lambda v: v.update(map_interval=[]), "not a report"),
        (lambda v: v["per_class"][0].pop("ap"), "not a report"),
        (lambda v: v.update(wrong=[3]), "not a report"),
    ],
)
def test_what_is_no_report_of_labels_is_named(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    values = evaluate_labels(tiny_many(), some_many(20), resamples=0).to_dict()
    change(values)
    with pytest.raises(StorageError, match=rf"old\.json: .*{message}"):
        report_from_dict(values, "old.json")
