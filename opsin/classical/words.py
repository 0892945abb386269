"""What a vocabulary is, as a page: the parts of pictures nearest to each word, and where in a picture words fire.

All of it is of a bounded sample, drawn by the seed: the time, the memory and the size of the page do not grow with the
data, the vocabulary or the pictures.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin import report
from opsin.classical import descriptors, sparse, vocabulary
from opsin.classical.encoding import Fisher, Lasso, MatchingPursuit
from opsin.classical.machines import Machine
from opsin.classical.pipeline import PART, VOCABULARY, Pipeline
from opsin.classical.vocabulary import Distances, slices
from opsin.data.rng import order
from opsin.preprocess import resize

WORDS, LEAST_WORDS, ALL_WORDS = 64, 4, 192  # shown of a vocabulary, at most and at least; of a page
PARTS = 8  # of pictures, of a word
PICTURES, ALL_MAPS = 10, 48  # in which words fire; and of their maps on a page
SAMPLED = 256  # training pictures that are looked at
DESCRIBED, KEPT, PIXELS = 1 << 29, 1 << 24, 1 << 27  # numbers of their descriptors, of those that are kept, of pixels
WORK = 1 << 36  # multiplications in comparing descriptors with words
LONG = 200  # rounds of FISTA, about, in counting that work
SIDE, MAP = 32, 128  # pixels of a part, of a picture
COLOURED = 0.6  # of a map is a word's colour, the rest the picture
SAYING = 3  # words for and against a class, and words of a picture, by name
KINDS = {"sift": "SIFT", "hog": "HOG", "lbp": "LBP", "patches": "Patches"}
SPACES = {"grey": "grey", "rgb": "red, green and blue", "opponent": "opponent colours"}
WHAT = {"centres": "centre", "mixture": "Gaussian", "atoms": "atom"}
NEAR = {
    "centres": "those least far from it",
    "mixture": "those most likely under it",
    "atoms": "those whose codes have most of it, of either sign",
}


class Vocabulary:
    """Words of descriptors of number `kind`: what = "centres", "mixture" or "atoms"."""

    def __init__(self, pipeline: Pipeline, kind: int, what: str) -> None:
        self.kind, self.what, self.one = kind, what, pipeline.classical.descriptors[kind]
        self.table = pipeline.tensors[f"{kind}.{'means' if what == 'mixture' else what}"]  # float32 [K, D]
        self._encoder = pipeline.encoder(kind, next(e for e in pipeline.classical.encoders if VOCABULARY[e] == what))
        self._distances = Distances(self.table) if what == "centres" else None

    @property
    def work(self) -> int:
        """Multiplications for one descriptor, about."""
        rounds = 1
        if isinstance(self._encoder, Fisher):
            rounds = 2
        elif isinstance(self._encoder, MatchingPursuit):
            rounds = self._encoder.sparsity
        elif isinstance(self._encoder, Lasso):
            rounds = 2 * LONG
        return rounds * self.table.numel()

    def strengths(self, x: Tensor) -> Tensor:
        """How near each word is to descriptors, float32 [n, D] → [n, K], the greater the nearer: minus the squared
        distance to a centre, the logarithm of weight · density of a Gaussian, the magnitude of an atom's code."""
        if isinstance(self._encoder, Fisher):
            gaussians = self._encoder.gaussians
            return gaussians.logarithms(gaussians.features(x))
        if self._distances is not None:
            return self._distances.squared(x).neg_()
        return self._encoder.codes(x).abs_()

    def strongest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The word that fires at each descriptor, int64 [n], -1 where none does (a code of zeros), and its strength."""
        words, strengths = [], []
        for part in self.parts(len(x)):
            found = self.strengths(x[part])
            words.append(sparse.best(found))
            strengths.append(found.gather(1, words[-1][:, None])[:, 0])
        word, strength = torch.cat(words), torch.cat(strengths)
        return (word.masked_fill(strength <= 0, -1) if self.what == "atoms" else word), strength

    def parts(self, n: int) -> Iterator[slice]:
        """Of n descriptors, as many at a time as their strengths are one chunk."""
        return slices(n, vocabulary.rows(max(self.table.shape), self.table.device))


class Sample(NamedTuple):
    """Descriptors of n frames of each of P pictures."""

    vectors: Tensor  # float32 [P, n, D]
    frames: Tensor  # int64 [P, n]


class Word(NamedTuple):
    """share: of the sample's descriptors, those at which it fires. parts: (picture, frame), the nearest first."""

    number: int
    share: float
    parts: list[tuple[int, int]]


def vocabularies(pipeline: Pipeline) -> list[Vocabulary]:
    """All that the pipeline learnt."""
    whats = dict.fromkeys(VOCABULARY[name] for name in pipeline.classical.encoders)
    return [Vocabulary(pipeline, kind, what) for kind in range(len(pipeline.classical.descriptors)) for what in whats]


def places(pipeline: Pipeline, labels: np.ndarray, num_classes: int, train: int, seed: int) -> tuple[np.ndarray, ...]:
    """Which training pictures, of `train`, the page is made from, and which test pictures, of these labels, int64 [N]
    or float [N, K], it shows: as many as the bounds allow, the first of each of some classes."""
    found, classical = vocabularies(pipeline), pipeline.classical
    described = sum(pipeline.frames(one) * pipeline.length(one) for one in classical.descriptors)
    pixels = pipeline.preprocess.channels * int(np.prod(pipeline.preprocess.size))
    n = min(train, SAMPLED, max(PARTS, min(DESCRIBED // described, PIXELS // pixels)))
    work = sum(one.work * pipeline.frames(one.one) for one in found)
    shown = min(PICTURES, num_classes, max(1, min(ALL_MAPS // len(found), WORK // work)))
    there = [some[0] for some in report.sample_indices(labels, num_classes, 1) if some] or [0]
    drawn = sorted(order(seed, 1, len(there))[:shown].tolist())
    return np.sort(order(seed, 0, train)[:n]), np.array(list(dict.fromkeys(there[i] for i in drawn)))


def sample(pipeline: Pipeline, kind: int, images: Tensor, work: int, share: int, seed: int) -> Sample:
    """Descriptors of number `kind` of pictures, uint8 [P, C, H, W]: all, or frames drawn by the seed, as many as can be
    kept and as `work` multiplications for each are within a part of one in `share` of the page's."""
    one = pipeline.classical.descriptors[kind]
    frames, length = pipeline.frames(one), max(pipeline.projected(one), WORDS)
    # Twice: once for the words that are used most, once for what is nearest to them.
    most = min(KEPT // length, WORK // (2 * work * share)) // len(images)
    n, vectors, chosen = max(1, min(frames, most)), [], []
    step = max(1, PART // (frames * pipeline.length(one)))
    for start in range(0, len(images), step):
        grid = pipeline.grid(images[start : start + step], kind)
        rows = range(start, start + len(grid.vectors))
        drawn = [np.sort(order(seed, i, frames)[:n]) if n < frames else np.arange(frames) for i in rows]
        chosen.append(torch.from_numpy(np.stack(drawn)).to(images.device))
        vectors.append(grid.vectors.gather(1, chosen[-1][:, :, None].expand(-1, -1, grid.vectors.shape[2])))
    return Sample(torch.cat(vectors), torch.cat(chosen))


def used(words: Vocabulary, found: Sample, most: int) -> tuple[list[Word], int]:
    """Up to `most` words of a vocabulary, those that fire most first, and how many never do.

    A word's parts are of different pictures, and only where there are fewer than `PARTS` pictures more of one.
    """
    pictures, n = found.frames.shape
    flat = found.vectors.flatten(0, 1)
    fires = words.strongest(flat)[0]
    counts = torch.bincount(fires[fires >= 0], minlength=len(words.table))
    chosen = counts.argsort(descending=True, stable=True)[:most]
    near = torch.cat([words.strengths(flat[part])[:, chosen] for part in words.parts(len(flat))])
    each = min(n, -(-PARTS // pictures))
    strength, at = near.view(pictures, n, -1).topk(each, 1)  # [P, each, words]
    frame = found.frames[:, :, None].expand(-1, -1, len(chosen)).gather(1, at).flatten(0, 1)
    strength, row = strength.flatten(0, 1).sort(dim=0, descending=True, stable=True)
    made = []
    for i, number in enumerate(chosen.tolist()):
        rows = row[:PARTS, i][strength[:PARTS, i] > (0 if words.what == "atoms" else -torch.inf)].tolist()
        parts = [(k // each, int(frame[k, i])) for k in rows]
        made.append(Word(number, int(counts[number]) / len(flat), parts))
    return made, int((counts == 0).sum())


def part(pipeline: Pipeline, kind: int, image: Tensor, frame: int) -> Tensor:
    """What a frame covers of a picture, uint8 [C, H, W] → [C, extent, extent]."""
    one = pipeline.classical.descriptors[kind]
    for extent, rows, columns in pipeline.scales(one):
        if frame < rows * columns:
            top, left = (one.step * place for place in divmod(frame, columns))
            return image[:, top : top + extent, left : left + extent]
        frame -= rows * columns
    raise IndexError(frame)


def fired(pipeline: Pipeline, words: Vocabulary, image: Tensor) -> Tensor:
    """The word that fires at each pixel of a picture, uint8 [C, H, W] → int64 [H, W]: that of the nearest frame; of
    frames of several sizes the strongest. -1 where none does, and beyond the outermost frames."""
    vectors = pipeline.grid(image[None], words.kind).vectors[0]
    word, strength = words.strongest(vectors)
    height, width = image.shape[1:]
    found = torch.full((height, width), -1, device=image.device)
    best = torch.full((height, width), -torch.inf, device=image.device)
    start, step = 0, words.one.step
    for extent, rows, columns in pipeline.scales(words.one):
        y, x = (
            torch.div(
                torch.arange(side, device=image.device) + 0.5 - extent / 2 + step / 2, step, rounding_mode="floor"
            )
            for side in (height, width)
        )
        inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
        at = start + y.clamp(0, rows - 1).long()[:, None] * columns + x.clamp(0, columns - 1).long()
        better = inside & (strength[at] > best)
        found, best = torch.where(better, word[at], found), torch.where(better, strength[at], best)
        start += rows * columns
    return found


def colours(table: Tensor) -> Tensor:
    """A colour for each word, float [K, 3] of 0 to 255: words that are alike have hues that are alike.

    The hue is a word's place in the order of angles in the plane of the two directions of largest variance.
    """
    d = min(3, table.shape[1])
    where = torch.zeros(len(table), 3)
    where[:, :d] = vocabulary.pca(table, d, whiten=True).apply(table).cpu()
    hue = torch.atan2(where[:, 1], where[:, 0]).argsort(stable=True).argsort() / len(table)
    light = 0.42 + 0.26 * where[:, 2].argsort(stable=True).argsort() / len(table)
    made = [colorsys.hls_to_rgb(h, v, 0.85) for h, v in zip(hue.tolist(), light.tolist(), strict=True)]
    return torch.tensor(made) * 255


def said(pipeline: Pipeline, machine: Machine, mean: Tensor, spread: Tensor) -> dict[tuple[int, str], Tensor]:
    """By vocabulary: how much a class's score grows with a word, float32 [classes, K]: by as much more of it as it
    varies from picture to picture, added over the boxes of the pyramid and the encoders. Nothing of a machine that is
    not linear, nor of a mixture, whose vector has no number for a word alone.

    mean, spread: of the numbers of a picture's vector, float [width].
    """
    found, start, lift = dict[tuple[int, str], Tensor](), 0, machine.settings.lift
    if machine.settings.kind != "linear":
        return found
    weight = machine.tensors["weight"]
    weight = weight.view(len(weight), -1, pipeline.width)  # a part for each number that the map makes of one
    for kind, one in enumerate(pipeline.classical.descriptors):
        for name in pipeline.classical.encoders:
            boxes, words = len(pipeline.boxes), pipeline.classical.words
            if name == "fisher":
                start += boxes * 2 * pipeline.projected(one) * pipeline.classical.gaussians
                continue
            some = slice(start, start + boxes * words)
            before = mean[some].float()[None]
            after = before + spread[some].float()
            more = (after - before if lift is None else lift(after) - lift(before)).view(-1, boxes * words)
            effect = (weight[:, :, some] * more).sum(1).view(-1, boxes, words).sum(1)
            key = kind, VOCABULARY[name]
            found[key] = found[key] + effect if key in found else effect
            start = some.stop
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What the page is made from. named: the classes of each test picture. spread: of the numbers of a vector."""

    pipeline: Pipeline
    machine: Machine
    classes: Sequence[str]
    train: Tensor  # uint8 [P, C, H, W], as are those of the test
    test: Tensor
    named: Sequence[str]
    mean: Tensor
    spread: Tensor


def write(path: Path | str, given: Given, *, title: str, seed: int, progress: Callable[[int, int], None]) -> None:
    """Write the page to `path`, durably."""
    pipeline = given.pipeline
    found = vocabularies(pipeline)
    sizes = [len(one.table) for one in found]
    fits = (k for k in range(WORDS, LEAST_WORDS, -1) if sum(min(k, size) for size in sizes) <= ALL_WORDS)
    most, effects = next(fits, LEAST_WORDS), said(pipeline, given.machine, given.mean, given.spread)
    sections, maps, kept = [], [list[dict[str, Any]]() for _ in given.test], (-1, Sample(given.mean, given.mean))
    for number, words in enumerate(found):
        if kept[0] != words.kind:
            work = max(one.work for one in found if one.kind == words.kind)
            kept = words.kind, sample(pipeline, words.kind, given.train, work, len(found), seed)
        tints = colours(words.table)
        section = _section(given, number, words, kept[1], most, tints, effects.get((words.kind, words.what)))
        sections.append(section)
        shown = {int(word["number"]) for word in section["words"]}
        for picture, mine in zip(given.test, maps, strict=True):
            mine.append(_map(pipeline, number, words, picture, tints, shown, section["title"]))
        progress(number + 1, len(found))
    fires = [
        {"name": name, "picture": report.thumbnail(picture, MAP), "maps": mine}
        for name, picture, mine in zip(given.named, given.test, maps, strict=True)
    ]
    report.write_page(path, "vocabulary.html.jinja", title=title, sections=sections, fires=fires)


def _section(
    given: Given, number: int, words: Vocabulary, found: Sample, most: int, tints: Tensor, effect: Tensor | None
) -> dict[str, Any]:
    """A vocabulary: its words with their parts, and what they say of classes."""
    made, unused = used(words, found, most)
    one, total, what = words.one, len(words.table), WHAT[words.what]
    known = " and ".join(f"{extent}×{extent}" for extent, _, _ in given.pipeline.scales(one))
    of = (
        f"{report.in_number(found.frames.numel(), 'part')} of {report.in_number(len(found.frames), 'training picture')}"
    )
    lead = (
        f"Of parts of {known} pixels, one every {report.in_number(one.step, 'pixel')}. "
        f"{'All' if len(made) == total else f'The {len(made)} that are used most'} are shown, as they are in {of}"
        f"{f'; {unused:,} are used by none of these' if unused else ''}. The parts beside each are "
        f"{NEAR[words.what]}, of different pictures where there are enough."
    )
    cards = [_card(given, number, words, word, tints, effect) for word in made]
    return {
        "id": f"v{number}",
        "title": f"{KINDS[one.kind]} of {SPACES[one.space]}: {report.in_number(total, what)}",
        "lead": lead,
        "words": cards,
        "more": max(0, len(given.classes) - PICTURES),
        "classes": [] if effect is None else _classes(given, number, made, tints, effect),
    }


def _card(
    given: Given, number: int, words: Vocabulary, word: Word, tints: Tensor, effect: Tensor | None
) -> dict[str, Any]:
    cut = [part(given.pipeline, words.kind, given.train[i], frame).cpu() for i, frame in word.parts]
    largest = max((extent for extent, _, _ in given.pipeline.scales(words.one)), default=1)
    side = largest if largest <= 64 // PARTS else SIDE  # small ones stay as they are, pixel for pixel
    strip = torch.cat([resize(one, side, side) for one in cut], 2) if cut else None
    speaks = ()
    if effect is not None:
        mine = effect[:, word.number]
        speaks = given.classes[int(mine.argmax())], given.classes[int(mine.argmin())]
    return {
        **_named(number, word.number, tints),
        "number": word.number,
        "share": word.share,
        "parts": len(cut),
        "strip": None if strip is None else report.thumbnail(strip, PARTS * SIDE),
        "speaks": speaks,
    }


def _classes(
    given: Given, number: int, made: Sequence[Word], tints: Tensor, effect: Tensor
) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """For the first classes: those of the words shown that speak most for each, and most against it."""
    numbers = [word.number for word in made]
    rows = []
    for name, row in list(zip(given.classes, effect[:, numbers], strict=True))[:PICTURES]:
        ranked = row.argsort(stable=True).tolist()
        lists = ([i for i in reversed(ranked) if row[i] > 0], [i for i in ranked if row[i] < 0])
        rows.append((name, *([_named(number, numbers[i], tints) for i in some[:SAYING]] for some in lists)))
    return rows


def _named(number: int, word: int, tints: Tensor) -> dict[str, str]:
    return {
        "id": f"v{number}-{word}",
        "label": str(word + 1),
        "colour": "#" + "".join(f"{round(value):02x}" for value in tints[word].tolist()),
    }


def _map(
    pipeline: Pipeline, number: int, words: Vocabulary, picture: Tensor, tints: Tensor, shown: set[int], title: str
) -> dict[str, Any]:
    """A picture in grey under the colours of the words that fire, and which of those shown fire most."""
    where = fired(pipeline, words, picture).cpu()
    grey = descriptors.planes(picture[None].cpu())[0].expand(3, -1, -1)
    coloured = tints[where.clamp(min=0)].permute(2, 0, 1)
    mixed = torch.where(where >= 0, COLOURED * coloured + (1 - COLOURED) * grey, grey).round().to(torch.uint8)
    counts = torch.bincount(where[where >= 0], minlength=len(tints))
    first = [k for k in counts.argsort(descending=True, stable=True).tolist() if counts[k] and k in shown][:SAYING]
    return {
        "title": title,
        "picture": report.thumbnail(mixed, MAP),
        "words": [{**_named(number, k, tints), "share": int(counts[k]) / where.numel()} for k in first],
    }
