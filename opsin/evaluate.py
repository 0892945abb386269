"""A classifier and labelled pictures to a `Report`, or with many labels to a `LabelReport`: every number quoted about a
classifier comes from here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opsin import metrics
from opsin.classifier import Classifier, ask, prepared_batches, thresholds
from opsin.data.index import Index
from opsin.errors import BadInput, DataError, StorageError, UsageError
from opsin.metrics import Bin


class ClassScore(NamedTuple):
    """How one class fares; ratios are 0 where they are undefined."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # pictures of the class


class Macro(NamedTuple):
    """Means over the classes that have pictures; as `micro`, of all the decisions together."""

    precision: float
    recall: float
    f1: float


class Mistake(NamedTuple):
    """A picture that the classifier takes for something else."""

    place: int  # in the evaluated pictures
    key: str
    label: int  # what it is
    predicted: int  # what it is taken for
    probability: float  # of `predicted`


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found.

    n: pictures. top1, top5: fractions right (top5 is 1 where there are five classes or fewer).
    top1_interval: Wilson's 95 % interval. nll: nats, see `metrics.nll`. calibration_error: 15 bins, Guo et al. 2017.
    confusion: [K][K], rows true. wrong: the most confident mistakes, worst first.
    skipped: pictures that could not be read and were left out, with the reasons.
    probabilities [n, K], labels [n], keys: of each picture, for pages and further study; not part of `to_dict`.
    """

    n: int
    classes: tuple[str, ...]
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    nll: float
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassScore, ...]
    macro: Macro
    reliability: tuple[Bin, ...]
    wrong: tuple[Mistake, ...]
    skipped: tuple[str, ...] = ()
    probabilities: Tensor | None = field(default=None, compare=False, repr=False)
    labels: Tensor | None = field(default=None, compare=False, repr=False)
    keys: Sequence[str] = field(default=(), compare=False, repr=False)

    @property
    def error(self) -> float:
        """Top-1 error, 1 - top1."""
        return self.num_wrong / self.n

    @property
    def top5_error(self) -> float:
        return 1 - self.top5

    @property
    def micro(self) -> Macro:
        """Each picture counting alike; with one label a picture all three are `top1`. Balanced accuracy, where each
        class counts alike, is `macro.recall`."""
        return Macro(self.top1, self.top1, self.top1)

    @property
    def num_wrong(self) -> int:
        return self.n - sum(self.confusion[i][i] for i in range(len(self.classes)))

    def confused(self, most: int = 20) -> list[tuple[int, int, int]]:
        """(pictures, true class, class taken for) of the pairs most often confused, most first."""
        pairs = [(n, i, j) for i, row in enumerate(self.confusion) for j, n in enumerate(row) if i != j and n]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:most]

    def to_dict(self) -> dict[str, Any]:
        """Plain, finite JSON values: everything but the single pictures' probabilities."""
        return {
            "n": self.n,
            "top1": self.top1,
            "top5": self.top5,
            "error": self.error,
            "num_wrong": self.num_wrong,
            "top1_interval": list(self.top1_interval),
            "nll": self.nll,
            "calibration_error": self.calibration_error,
            "classes": list(self.classes),
            "confusion": [list(row) for row in self.confusion],
            "per_class": [score._asdict() for score in self.per_class],
            "macro": self.macro._asdict(),
            "micro": self.micro._asdict(),
            "reliability": [row._asdict() for row in self.reliability],
            "wrong": [mistake._asdict() for mistake in self.wrong],
            "skipped": list(self.skipped),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], name: str = "report") -> Report:
        """The report that `to_dict` wrote; other keys are passed over. `StorageError` names what is missing."""
        with _reading(name):
            report = Report(
                n=values["n"],
                classes=tuple(values["classes"]),
                confusion=tuple(tuple(row) for row in values["confusion"]),
                top1_interval=(float(values["top1_interval"][0]), float(values["top1_interval"][1])),
                per_class=tuple(ClassScore(**score) for score in values["per_class"]),
                macro=Macro(**values["macro"]),
                reliability=tuple(Bin(**row) for row in values["reliability"]),
                wrong=tuple(Mistake(**mistake) for mistake in values["wrong"]),
                skipped=tuple(values["skipped"]),
                top1=float(values["top1"]),
                top5=float(values["top5"]),
                nll=float(values["nll"]),
                calibration_error=float(values["calibration_error"]),
            )
            k = len(report.classes)
            sizes = {len(report.per_class), len(report.confusion), *map(len, report.confusion)}
            if sizes != {k} or sum(map(sum, report.confusion)) != report.n or report.n < 1:
                raise ValueError(f"confusion and per_class do not belong to {k} classes and {report.n} pictures")
        return report


class LabelScore(NamedTuple):
    """How one of many labels fares; ratios are 0 where they are undefined. None where no picture has the label."""

    name: str
    ap: float | None  # average precision, the area as in PASCAL VOC since 2010
    ap11: float | None  # of eleven points, as in PASCAL VOC 2007
    interval: tuple[float, float] | None  # of `ap`, 95 %, by the bootstrap; None without one
    threshold: float
    precision: float  # this and the next two: at the threshold
    recall: float
    f1: float
    support: int  # pictures that have it
    known: int  # pictures of which it is known whether they have it


class LabelMistake(NamedTuple):
    """A label that a picture has and the classifier does not name, or the other way round."""

    place: int  # in the evaluated pictures
    key: str
    label: int
    there: bool
    probability: float


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What an evaluation found where a picture may have many labels.

    n: pictures. map, map11: means of the classes' average precisions. map_interval: 95 %, by the bootstrap.
    nll: nats, mean over labels and pictures. macro, micro: at the thresholds. wrong: the surest mistakes, worst first.
    skipped, probabilities [n, K], labels [n, K], keys: as in `Report`.
    """

    n: int
    classes: tuple[str, ...]
    map: float
    map11: float
    map_interval: tuple[float, float] | None
    nll: float
    per_class: tuple[LabelScore, ...]
    macro: Macro
    micro: Macro
    wrong: tuple[LabelMistake, ...]
    skipped: tuple[str, ...] = ()
    probabilities: Tensor | None = field(default=None, compare=False, repr=False)
    labels: Tensor | None = field(default=None, compare=False, repr=False)
    keys: Sequence[str] = field(default=(), compare=False, repr=False)

    @property
    def error(self) -> float:
        """1 - map: what a training tries to lower."""
        return 1 - self.map

    def to_dict(self) -> dict[str, Any]:
        """Plain, finite JSON values: everything but the single pictures' probabilities."""
        return {
            "n": self.n,
            "many_labels": True,
            "map": self.map,
            "map11": self.map11,
            "map_interval": None if self.map_interval is None else list(self.map_interval),
            "nll": self.nll,
            "classes": list(self.classes),
            "per_class": [score._asdict() for score in self.per_class],
            "macro": self.macro._asdict(),
            "micro": self.micro._asdict(),
            "wrong": [mistake._asdict() for mistake in self.wrong],
            "skipped": list(self.skipped),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], name: str = "report") -> LabelReport:
        """The report that `to_dict` wrote; other keys are passed over. `StorageError` names what is missing."""

        def pair(given: Any) -> tuple[float, float] | None:
            return None if given is None else (float(given[0]), float(given[1]))

        with _reading(name):
            scores = [LabelScore(**{**score, "interval": pair(score["interval"])}) for score in values["per_class"]]
            report = LabelReport(
                n=values["n"],
                classes=tuple(values["classes"]),
                map=float(values["map"]),
                map11=float(values["map11"]),
                map_interval=pair(values["map_interval"]),
                nll=float(values["nll"]),
                per_class=tuple(scores),
                macro=Macro(**values["macro"]),
                micro=Macro(**values["micro"]),
                wrong=tuple(LabelMistake(**mistake) for mistake in values["wrong"]),
                skipped=tuple(values["skipped"]),
            )
            if report.n < 1 or [score.name for score in scores] != [*report.classes]:
                raise ValueError(f"per_class does not belong to {len(report.classes)} classes")
        return report


AnyReport = Report | LabelReport


def report_from_dict(values: Mapping[str, Any], name: str = "report") -> AnyReport:
    """The report of either kind that its `to_dict` wrote."""
    many = isinstance(values, Mapping) and values.get("many_labels")
    return (LabelReport if many else Report).from_dict(values, name)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise StorageError(f"{name}: expected the key {error}") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise StorageError(f"{name}: not a report: {error}") from error


def measure(classifier: Classifier, pictures: Index | tuple[Tensor, Tensor], **options: Any) -> AnyReport:
    """`evaluate_labels` of a classifier for many labels, `evaluate` of any other; options of both."""
    return (evaluate if thresholds(classifier) is None else evaluate_labels)(classifier, pictures, **options)


def evaluate(
    classifier: Classifier,
    pictures: Index | tuple[Tensor, Tensor],
    *,
    batch_size: int = 256,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    keys: Sequence[str] = (),
    on_bad_image: str = "error",
    worst: int = 48,
) -> Report:
    """Ask `classifier` about every picture and compare. The answer depends on no batch size and no number of threads.

    pictures: an `Index` (classes are matched by name), or (what `prepare` returned, stacked [N, …]; labels int64 [N])
    with optional `keys`. progress: is called with (pictures done, all). worst: how many mistakes are listed.
    on_bad_image: "error" raises the `BadInput` of the first unreadable picture, "skip" leaves it out and lists it.
    `DataError` where there is no picture or a class that the classifier does not know, or labels of another kind than
    its own. A classifier for many labels is for `evaluate_labels`.
    """
    if thresholds(classifier) is not None:
        raise UsageError("this classifier is for many labels a picture; expected evaluate_labels")
    found = _asked(classifier, pictures, batch_size, workers, progress, keys, on_bad_image)
    return summarise(
        found.probabilities,
        found.labels,
        classifier.classes,
        found.keys,
        places=found.places,
        skipped=found.skipped,
        worst=worst,
    )


def evaluate_labels(
    classifier: Classifier,
    pictures: Index | tuple[Tensor, Tensor],
    *,
    batch_size: int = 256,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    keys: Sequence[str] = (),
    on_bad_image: str = "error",
    worst: int = 48,
    resamples: int = 1000,
) -> LabelReport:
    """`evaluate` for many labels: labels are float [N, K] of 1, 0 and -1, not known.

    What an index says nothing of is not known. resamples: for the intervals; 0: there are none.
    """
    least = thresholds(classifier)
    if least is None:
        raise UsageError("this classifier is for one label a picture; expected evaluate")
    found = _asked(classifier, pictures, batch_size, workers, progress, keys, on_bad_image)
    return summarise_labels(
        found.probabilities,
        found.labels,
        classifier.classes,
        least,
        found.keys,
        places=found.places,
        skipped=found.skipped,
        worst=worst,
        resamples=resamples,
    )


class _Asked(NamedTuple):
    probabilities: Tensor  # float [n, K] on the CPU
    labels: Tensor  # of the same pictures
    keys: list[str]
    places: list[int]  # among those that were to be asked about
    skipped: tuple[str, ...]


def _asked(
    classifier: Classifier,
    pictures: Index | tuple[Tensor, Tensor],
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
    keys: Sequence[str],
    on_bad_image: str,
) -> _Asked:
    """What the classifier says of every picture; arguments and errors as of `evaluate`."""
    if on_bad_image not in ("error", "skip"):
        raise UsageError(f"on_bad_image: expected error or skip, received {on_bad_image!r}")
    skipped = [str(error) for error in pictures.skipped] if isinstance(pictures, Index) else []

    def skip(place: int, error: BadInput) -> None:
        skipped.append(str(error))

    if isinstance(pictures, Index):
        many = thresholds(classifier) is not None
        if pictures.many_labels != many:
            texts = ("one label a picture", "many labels a picture")
            raise DataError(f"the pictures have {texts[not many]}, but the classifier is for {texts[many]}")
        match = _match_many if many else _match
        labels, keys = match(pictures, classifier.classes), pictures.keys
        batches = prepared_batches(
            classifier,
            pictures,
            batch_size=batch_size,
            workers=workers,
            skipped=skip if on_bad_image == "skip" else None,
        )
    else:
        images, labels = pictures[0], pictures[1].cpu()
        if len(images) != len(labels) or (keys and len(keys) != len(labels)):
            raise UsageError(f"received {len(images)} pictures, {len(labels)} labels and {len(keys)} keys")
        batches = _slices(images, batch_size)

    n, places, parts = len(labels), list[int](), list[Tensor]()
    for batch_places, prepared in batches:
        parts.append(ask(classifier, prepared, f"pictures {batch_places[0]} to {batch_places[-1]}"))
        places += batch_places
        if progress is not None:
            progress(places[-1] + 1, n)
    if not parts:
        raise DataError(
            "nothing to evaluate: " + (f"all {n} pictures were skipped: {skipped[0]}" if skipped else "no pictures")
        )
    names = [keys[i] for i in places] if keys else [str(i) for i in places]
    return _Asked(torch.cat(parts), labels[places], names, places, tuple(skipped))


def summarise(
    probabilities: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    keys: Sequence[str] = (),
    *,
    places: Sequence[int] = (),
    skipped: tuple[str, ...] = (),
    worst: int = 48,
) -> Report:
    """The report of given probabilities, float [N, K] on the CPU, and labels, int64 [N].

    keys, places: of each picture; their numbers when left out. skipped: is passed on.
    """
    top1, table = metrics.topk(probabilities, labels), metrics.confusion(probabilities, labels)
    scores = metrics.per_class(probabilities, labels)
    columns = (column.tolist() for column in scores)
    n, right = len(labels), int(table.diagonal().sum())
    called = metrics.predicted(probabilities)
    confidence = probabilities.gather(1, called[:, None])[:, 0].tolist()
    mistakes = sorted(torch.nonzero(called != labels)[:, 0].tolist(), key=lambda i: (-confidence[i], i))[:worst]
    places = places or range(n)
    names = list(keys) or [str(i) for i in places]
    return Report(
        n=n,
        classes=tuple(classes),
        top1=top1,
        top5=metrics.topk(probabilities, labels, 5),
        top1_interval=metrics.wilson(right, n),
        nll=metrics.nll(probabilities, labels),
        calibration_error=metrics.calibration_error(probabilities, labels),
        confusion=tuple(tuple(row) for row in table.tolist()),
        per_class=tuple(ClassScore(*row) for row in zip(classes, *columns, strict=True)),
        macro=Macro(*metrics.macro(scores)),
        reliability=tuple(metrics.reliability(probabilities, labels)),
        wrong=tuple(Mistake(places[i], names[i], int(labels[i]), int(called[i]), confidence[i]) for i in mistakes),
        skipped=skipped,
        probabilities=probabilities,
        labels=labels,
        keys=names,
    )


def summarise_labels(
    probabilities: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    thresholds: Sequence[float],
    keys: Sequence[str] = (),
    *,
    places: Sequence[int] = (),
    skipped: tuple[str, ...] = (),
    worst: int = 48,
    resamples: int = 1000,
) -> LabelReport:
    """`summarise` for many labels: float [N, K] of 1, 0 and -1. `DataError` where no picture has any label."""
    least = torch.tensor(list(thresholds), dtype=probabilities.dtype)
    ranked = metrics.average_precisions(probabilities, labels)
    areas = [one.area for one in ranked if one.area is not None]
    if not areas:
        raise DataError(
            f"no picture of these {len(labels)} has any label of {', '.join(classes[:10])}: nothing to rank"
        )
    scores, micro = metrics.per_label(probabilities, labels, least)
    intervals, whole = [None] * len(classes), None
    if resamples:
        intervals, whole = metrics.bootstrap(probabilities, labels, resamples)
    columns = zip(*(column.tolist() for column in (*scores[:3], scores.support, (labels >= 0).sum(0))), strict=True)
    rows = zip(classes, ranked, intervals, thresholds, columns, strict=True)
    places = places or range(len(labels))
    names = list(keys) or [str(i) for i in places]
    wrong = torch.nonzero((labels >= 0) & ((probabilities >= least) != (labels == 1))).tolist()
    sure = (probabilities - (labels == 1).to(probabilities)).abs().tolist()  # 1: could not be worse
    wrong = sorted(wrong, key=lambda pair: (-sure[pair[0]][pair[1]], pair))[:worst]
    return LabelReport(
        n=len(labels),
        classes=tuple(classes),
        map=sum(areas) / len(areas),
        map11=sum(one.eleven for one in ranked if one.eleven is not None) / len(areas),
        map_interval=whole,
        nll=metrics.binary_nll(probabilities, labels),
        per_class=tuple(
            LabelScore(name, one.area, one.eleven, interval, threshold, *column)
            for name, one, interval, threshold, column in rows
        ),
        macro=Macro(*metrics.macro(scores)),
        micro=Macro(*micro),
        wrong=tuple(
            LabelMistake(places[i], names[i], k, bool(labels[i, k] == 1), float(probabilities[i, k])) for i, k in wrong
        ),
        skipped=skipped,
        probabilities=probabilities,
        labels=labels,
        keys=names,
    )


def _match(index: Index, classes: tuple[str, ...]) -> Tensor:
    """The index's labels as numbers of `classes`, int64 [N], by name; `DataError` lists the names that are missing."""
    labels = torch.as_tensor(index.labels, dtype=torch.int64)
    if tuple(index.classes) == classes:
        return labels
    number = _numbers(index, classes)
    return torch.tensor([number.get(name, -1) for name in index.classes], dtype=torch.int64)[labels]


def _match_many(index: Index, classes: tuple[str, ...]) -> Tensor:
    """The index's labels in the columns of `classes`, float32 [N, K], by name; errors as of `_match`."""
    labels = torch.full((len(index), len(classes)), -1.0)
    number = _numbers(index, classes)
    for column, name in enumerate(index.classes):
        if name in number:
            labels[:, number[name]] = torch.from_numpy(index.labels[:, column])
    return labels


def _numbers(index: Index, classes: tuple[str, ...]) -> dict[str, int]:
    """The number of each class; `DataError` lists those that pictures of the index have and that are none of these."""
    number = {name: i for i, name in enumerate(classes)}
    counts = zip(index.classes, index.counts().tolist(), strict=True)
    unknown = sorted(name for name, count in counts if count and name not in number)
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        known = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
        raise DataError(f"the pictures have classes that the classifier does not know: {shown}; it knows: {known}")
    return number


def _slices(images: Tensor, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    if batch_size < 1:
        raise UsageError(f"batch_size: expected at least 1, received {batch_size}")
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield list(range(start, start + len(batch))), batch
