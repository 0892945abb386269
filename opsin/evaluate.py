"""A classifier and labelled pictures to a `Report`: every number quoted about a classifier comes from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opsin import metrics
from opsin.classifier import Classifier, check_probabilities, prepared_batches
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
    """Means over the classes that have pictures."""

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
            "reliability": [row._asdict() for row in self.reliability],
            "wrong": [mistake._asdict() for mistake in self.wrong],
            "skipped": list(self.skipped),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], name: str = "report") -> Report:
        """The report that `to_dict` wrote; other keys are passed over. `StorageError` names what is missing."""
        try:
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
        except KeyError as error:
            raise StorageError(f"{name}: expected the key {error}") from error
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise StorageError(f"{name}: not a report: {error}") from error
        return report


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
    `DataError` where there is no picture or a class that the classifier does not know.
    """
    if on_bad_image not in ("error", "skip"):
        raise UsageError(f"on_bad_image: expected error or skip, received {on_bad_image!r}")
    k = len(classifier.classes)
    skipped = [str(error) for error in pictures.skipped] if isinstance(pictures, Index) else []

    def skip(place: int, error: BadInput) -> None:
        skipped.append(str(error))

    if isinstance(pictures, Index):
        labels, keys = _match(pictures, classifier.classes), pictures.keys
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
        answer = classifier.probabilities(prepared)
        check_probabilities(answer, len(batch_places), k, f"pictures {batch_places[0]} to {batch_places[-1]}")
        parts.append(answer.cpu())
        places += batch_places
        if progress is not None:
            progress(places[-1] + 1, n)
    if not parts:
        raise DataError(
            "nothing to evaluate: " + (f"all {n} pictures were skipped: {skipped[0]}" if skipped else "no pictures")
        )
    labels = labels[places]
    names = [keys[i] for i in places] if keys else [str(i) for i in places]
    return summarise(
        torch.cat(parts), labels, classifier.classes, names, places=places, skipped=tuple(skipped), worst=worst
    )


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


def _match(index: Index, classes: tuple[str, ...]) -> Tensor:
    """The index's labels as numbers of `classes`, int64 [N], by name; `DataError` lists the names that are missing."""
    labels = torch.as_tensor(index.labels, dtype=torch.int64)
    if tuple(index.classes) == classes:
        return labels
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted({index.classes[i] for i in labels.unique().tolist()} - set(number))
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        known = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
        raise DataError(f"the pictures have classes that the classifier does not know: {shown}; it knows: {known}")
    return torch.tensor([number.get(name, -1) for name in index.classes], dtype=torch.int64)[labels]


def _slices(images: Tensor, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    if batch_size < 1:
        raise UsageError(f"batch_size: expected at least 1, received {batch_size}")
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield list(range(start, start + len(batch))), batch
