"""The page of a vocabulary: the parts are the nearest, a word fires where it should, and all of it is bounded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opsin import run as runs
from opsin.classical import descriptors, machines, words
from opsin.classical.pipeline import Pipeline, checked
from opsin.preprocess import Preprocess
from opsin.recipe import Classical, Descriptor
from tests.classical.test_pipeline import ALL, SMALL, made, parts
from tests.unit.test_report import HOSTILE, check_self_contained

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = (
    Descriptor(kind="sift", step=4, sizes=(3, 4), project=8),
    Descriptor(kind="hog", space="opponent", step=3, sizes=(4, 6)),
    Descriptor(kind="lbp", space="rgb", step=4, sizes=(6, 8), project=6),
    Descriptor(kind="patches", space="rgb", step=2, sizes=(4,), project=-1),
)
GREY = {"channels": 1, "mean": (0.0,), "std": (1.0,)}


def pictures(n: int, seed: int = 0, size: int = 16, channels: int = 3) -> Tensor:
    """Blurred noise, so that parts differ and none is alike."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, channels, size // 4, size // 4, generator=generator) * 255
    large = torch.nn.functional.interpolate(small, (size, size), mode="bicubic")
    return (large + 20 * torch.rand(large.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def learnt(classical: Classical, images: Tensor) -> Pipeline:
    size: tuple[int, int] = (images.shape[2], images.shape[3])
    preprocess = Preprocess(size=size, **({} if images.shape[1] == 3 else GREY))
    pipeline, found = Pipeline(classical, preprocess), dict[str, Tensor]()
    for kind in range(len(classical.descriptors)):
        vectors = pipeline.grid(images, kind).vectors.flatten(0, 1)
        found |= pipeline.learn(kind, vectors[:2000], 0, lambda _: lambda done, total: None)
    return checked(pipeline, {key: tensor.float() for key, tensor in found.items()}, "made")


def slow_strengths(pipeline: Pipeline, what: str, kind: int, x: Tensor) -> Tensor:
    """float64 [n, K] from the definitions."""
    x, tensors = x.double(), {key: tensor.double() for key, tensor in pipeline.tensors.items()}
    if what == "centres":
        return -(x[:, None] - tensors[f"{kind}.centres"]).square().sum(2)
    if what == "mixture":
        weights, means, variances = (tensors[f"{kind}.{key}"] for key in ("weights", "means", "variances"))
        normal = torch.distributions.Normal(means, variances.sqrt())
        return weights.log() + normal.log_prob(x[:, None]).sum(2)
    found = torch.zeros(len(x), len(tensors[f"{kind}.atoms"]), dtype=torch.float64)
    for row, one in zip(found, x, strict=True):  # matching pursuit, one vector at a time
        chosen, left = list[int](), one
        for _ in range(pipeline.classical.sparsity):
            atoms = tensors[f"{kind}.atoms"]
            chosen.append(int((atoms @ left).abs().argmax()))
            code = torch.linalg.lstsq(atoms[chosen].T, one[:, None]).solution[:, 0]
            left = one - code @ atoms[chosen]
        row[chosen] = code.abs()
    return found


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("what", ["centres", "mixture", "atoms"])
def test_the_parts_are_the_nearest_by_a_slow_search(kind: int, what: str) -> None:
    encoder = {"centres": "hard", "mixture": "fisher", "atoms": "omp"}[what]
    classical = replace(ALL, descriptors=(KINDS[kind],), encoders=(encoder,), words=12, gaussians=5)
    images = pictures(20)
    pipeline = learnt(classical, images)
    (vocabulary,) = words.vocabularies(pipeline)
    sample = words.sample(pipeline, 0, images, vocabulary.work, 1, seed=0)
    grid = pipeline.grid(images, 0)
    assert torch.equal(sample.vectors, grid.vectors)  # so few that all of them are looked at
    shown, unused = words.used(vocabulary, sample, 6)

    slow = slow_strengths(pipeline, what, 0, grid.vectors.flatten(0, 1)).view(20, -1, len(vocabulary.table))
    fires = slow.flatten(0, 1).argmax(1)
    counts = torch.bincount(fires, minlength=len(vocabulary.table))
    assert [word.share for word in shown] == [c / len(fires) for c in sorted(counts.tolist(), reverse=True)[:6]]
    assert unused == int((counts == 0).sum())
    for word in shown:
        assert word.share == int(counts[word.number]) / len(fires)
        best = slow[:, :, word.number].amax(1).sort(descending=True).values[: words.PARTS]  # of each picture
        best = best[best > 0] if what == "atoms" else best
        got = torch.stack([slow[i, frame, word.number] for i, frame in word.parts])
        assert torch.allclose(got, best, rtol=1e-4, atol=1e-4)
        assert len({i for i, _ in word.parts}) == len(word.parts)  # of different pictures


def test_few_pictures_give_several_parts_each() -> None:
    classical = replace(ALL, descriptors=KINDS[3:], encoders=("hard",), words=5)
    images = pictures(3)
    pipeline = learnt(classical, images)
    (vocabulary,) = words.vocabularies(pipeline)
    sample = words.sample(pipeline, 0, images, vocabulary.work, 1, seed=0)
    for word in words.used(vocabulary, sample, 5)[0]:
        assert len(set(word.parts)) == words.PARTS and max(np.bincount([i for i, _ in word.parts])) <= 3


@pytest.mark.parametrize("one", KINDS, ids=lambda one: one.kind)
def test_a_part_is_cut_out_where_its_descriptor_is(one: Descriptor) -> None:
    pipeline = Pipeline(replace(ALL, descriptors=(one,)), Preprocess(size=(20, 31)))
    y, x = torch.meshgrid(torch.arange(20), torch.arange(31), indexing="ij")
    image = torch.stack([y, x, y]).to(torch.uint8)
    places = pipeline.grid(image[None], 0).places
    sizes = [extent for extent, rows, columns in pipeline.scales(one) for _ in range(rows * columns)]
    assert len(places) == len(sizes)
    for frame, (place, extent) in enumerate(zip(places, sizes, strict=True)):
        cut = words.part(pipeline, 0, image, frame).double()
        assert cut.shape == (3, extent, extent)
        centre = cut[:2].mean((1, 2)) + 0.5
        assert torch.allclose(centre, place.double() * torch.tensor([20, 31]), atol=1e-4)


def test_the_descriptor_of_a_part_is_that_of_its_frame() -> None:
    pipeline = Pipeline(replace(ALL, descriptors=(replace(KINDS[3], project=0),)), Preprocess(size=(16, 16)))
    image = pictures(1)[0]
    vectors = pipeline.grid(image[None], 0).vectors[0]
    for frame in (0, 3, 17, len(vectors) - 1):
        cut = words.part(pipeline, 0, image, frame)
        assert torch.equal(descriptors.patches(cut[None], side=4, step=1).vectors[0, 0], vectors[frame])


def test_a_made_picture_fires_the_words_it_should() -> None:
    """One half lies and the other stands; each of two words is a descriptor of either."""
    one = Descriptor(kind="sift", step=2, sizes=(2,))
    lying = torch.zeros(1, 24, 24, dtype=torch.uint8)
    lying[:, ::4] = lying[:, 1::4] = 200
    standing = lying.transpose(1, 2).clone()
    both = torch.cat([lying[:, :, :12], standing[:, :, 12:]], 2)
    pipeline = Pipeline(Classical(descriptors=(one,), words=2), Preprocess(size=(24, 24), **GREY))
    middle = [pipeline.grid(image[None], 0).vectors[0].mean(0) for image in (lying, standing)]
    pipeline = Pipeline(pipeline.classical, pipeline.preprocess, {"0.centres": torch.stack(middle)})
    (vocabulary,) = words.vocabularies(pipeline)
    where = words.fired(pipeline, vocabulary, both)
    assert (where[5:19, 4:9] == 0).all() and (where[5:19, 15:20] == 1).all()
    assert (where[:2] == -1).all() and (where[:, -2:] == -1).all()  # no frame has its centre so near the border
    tints = words.colours(vocabulary.table)
    shown = words._map(pipeline, 0, vocabulary, both, tints, {0, 1}, "")
    assert [one["label"] for one in shown["words"]] in (["1", "2"], ["2", "1"])
    assert shown["words"][0]["share"] == pytest.approx(
        float((where == int(shown["words"][0]["label"]) - 1).float().mean())
    )


@pytest.mark.parametrize("one", KINDS, ids=lambda one: one.kind)
def test_each_pixel_has_the_strongest_of_the_nearest_frames(one: Descriptor) -> None:
    images = pictures(6, size=24)
    pipeline = learnt(replace(ALL, descriptors=(one,), encoders=("hard",), words=9), images)
    (vocabulary,) = words.vocabularies(pipeline)
    where = words.fired(pipeline, vocabulary, images[0])
    grid = pipeline.grid(images[:1], 0)
    strength, word = slow_strengths(pipeline, "centres", 0, grid.vectors[0]).max(1)
    for y, x in itertools.product(range(24), range(0, 24, 5)):
        start, best = 0, (-float("inf"), -1)
        for _, rows, columns in pipeline.scales(one):
            some = slice(start, start + rows * columns)
            away = (grid.places[some] * 24 - torch.tensor([y + 0.5, x + 0.5])).abs().amax(1)
            near = start + int(away.argmin())
            if float(away.min()) < one.step / 2 - 1e-3 and float(strength[near]) > best[0]:
                best = float(strength[near]), int(word[near])
            start = some.stop
        edges = [
            abs(abs(float(d)) - one.step / 2) < 1e-3
            for d in (grid.places * 24 - torch.tensor([y + 0.5, x + 0.5])).flatten()
        ]
        assert int(where[y, x]) == best[1] or any(edges)  # between two frames either will do


def test_colours_are_far_apart_for_words_that_are() -> None:
    angles = torch.arange(12) * 2 * torch.pi / 12
    found = words.colours(torch.stack([angles.cos(), angles.sin()], 1))
    assert found.shape == (12, 3) and float(found.min()) >= 0 and float(found.max()) <= 255
    away = torch.cdist(found, found)
    assert float((away + 1e9 * torch.eye(12)).min()) > 20
    assert float(away.diagonal(1).mean()) < 0.5 * float(away.diagonal(6).mean())  # neighbours, opposites
    assert words.colours(torch.ones(1, 1)).shape == (1, 3) and len(words.colours(torch.zeros(7, 5)).unique(dim=0)) == 7


@pytest.mark.parametrize("additive", ["", "chi2"])
def test_what_is_said_of_classes_is_what_the_machine_does(additive) -> None:
    """More of a word in all boxes and encoders moves the scores by the numbers that the page goes by."""
    encoders = ("hard", "triangle") if additive else ("hard", "fisher", "llc")
    classical = replace(
        ALL,
        descriptors=KINDS[2:],
        encoders=encoders,
        words=6,
        pyramid="1x1+2x1",
        norm="none",
        power=1.0,
        additive=additive,
    )
    images = pictures(40)
    pipeline = learnt(classical, images)
    x = pipeline.vectors(images)
    machine = machines.linear_svm(
        x, torch.arange(40) % 3, 3, strength=1.0, standardise=False, additive=additive, iterations=5
    )
    mean, spread = x.mean(0), x.std(0)
    found = words.said(pipeline, machine, mean, spread)
    assert set(found) == {(0, "centres"), (1, "centres")}
    assert words.said(pipeline, machines.forest(x, torch.arange(40) % 3, 3, trees=2), mean, spread) == {}
    columns, start = dict[tuple[int, int], list[int]](), 0
    for kind, one in enumerate(classical.descriptors):
        for name in encoders:
            if name == "fisher":
                start += 3 * 2 * classical.gaussians * pipeline.projected(one)
                continue
            for box, word in itertools.product(range(3), range(6)):
                columns.setdefault((kind, word), []).append(start + box * 6 + word)
            start += 18
    assert start == pipeline.width
    for (kind, word), some in columns.items():
        more = mean.clone()
        more[some] += spread[some]
        moved = machine.scores(more[None]) - machine.scores(mean[None])
        assert torch.allclose(moved[0], found[kind, "centres"][:, word], atol=1e-4)


@pytest.mark.parametrize("sparse", ["omp", "fista"])
def test_every_descriptor_and_vocabulary_has_its_place_on_the_page(tmp_path: Path, sparse) -> None:
    classical = replace(ALL, descriptors=KINDS, encoders=("triangle", "fisher", sparse), words=10, sparsity=3, passes=2)
    names = tuple(name for name in HOSTILE if name.isprintable())[:2]
    splits = {part: replace(index, classes=names) for part, index in parts(many=True).items()}
    run = runs.fit(replace(SMALL, classical=classical), tmp_path / "run", splits=splits)
    page = check_self_contained((run.folder / "vocabulary.html").read_text(encoding="utf-8"))
    for kind, what in itertools.product(words.KINDS.values(), ("10 centres", "2 Gaussians", "10 atoms")):
        assert any(line.startswith(kind) and line.endswith(what) for line in page.text.splitlines()), (kind, what)
    assert (
        all(name in page.text for name in names)
        and 'href="vocabulary.html"' in (run.folder / "report.html").read_text()
    )
    assert len([1 for tag, values in page.elements if tag == "figure" and "id" in values]) == 4 * (10 + 2 + 10)
    # A test picture of each class, with a map of each vocabulary; and a strip for each word that has parts.
    assert len([1 for _, values in page.elements if values.get("alt", "").startswith("where words fire in")]) == 2 * 12


@pytest.mark.parametrize("machine", ["forest", "kernel"])
def test_other_machines_and_pictures_that_stay_on_disk(tmp_path: Path, machine) -> None:
    recipe = replace(
        SMALL, data=replace(SMALL.data, loader="disk"), classical=replace(SMALL.classical, machine=machine)
    )
    recipe = replace(recipe, preprocess=Preprocess(size=(16, 16), **GREY))
    recipe = replace(recipe, classical=replace(recipe.classical, trees=3, descriptors=KINDS[:1]))
    run = runs.fit(recipe, tmp_path / "run", splits=parts(channels=1))
    page = check_self_contained((run.folder / "vocabulary.html").read_text(encoding="utf-8"))
    assert "speak for" not in page.text and "lying" in page.text and "8 centres" in page.text
    again = runs.fit(recipe, tmp_path / "again", splits=parts(channels=1))
    one, other = ((each.folder / "vocabulary.html").read_bytes() for each in (run, again))
    assert one.replace(b"on made", b"") == other.replace(b"on made", b"")


def write(tmp_path: Path, pipeline: Pipeline, train: Tensor, test: Tensor, classes: tuple[str, ...]) -> str:
    x = torch.rand(len(classes) * 2, pipeline.width, generator=torch.Generator().manual_seed(0))
    machine = machines.linear_svm(x, torch.arange(len(x)) % len(classes), len(classes), strength=0.1, iterations=2)
    given = words.Given(pipeline, machine, classes, train, test, classes[: len(test)], x.mean(0), x.std(0))
    words.write(tmp_path / "page.html", given, title="made", seed=0, progress=lambda done, total: None)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_flat_pictures_have_a_page(tmp_path: Path) -> None:
    """Codes of zeros: no atom fires and none has parts; every SIFT is the same."""
    images = pictures(20)
    pipeline = learnt(replace(ALL, descriptors=KINDS[:1], encoders=("hard", "omp"), words=4), images)
    pipeline.tensors["0.mean"] = torch.zeros(128)  # so that the zeros of a flat part stay zeros
    flat = torch.full((9, 3, 16, 16), 77, dtype=torch.uint8)
    page = check_self_contained(write(tmp_path, pipeline, flat, flat[:2], ("one", "other")))
    strips = [values for tag, values in page.elements if tag == "img" and values["alt"].startswith("parts")]
    assert len(strips) == 4 and "4 are used by none" in page.text  # of the centres alone


@pytest.mark.parametrize("case", ["words", pytest.param("vocabularies", marks=pytest.mark.slow), "pictures"])
def test_the_page_and_the_work_are_bounded(tmp_path: Path, case: str) -> None:
    """Noise is the largest that a JPEG can be."""
    size, kinds, encoders = 32, (replace(KINDS[3], step=1, sizes=(6,)),), ("triangle",)
    if case == "vocabularies":
        kinds, encoders = KINDS * 4, ("llc", "fisher", "omp")
    elif case == "pictures":
        size, kinds, encoders = (
            160,
            (Descriptor(kind="sift", step=8, sizes=(6, 8), project=16), KINDS[2]),
            ("hard", "fisher"),
        )
    classical = replace(ALL, descriptors=kinds, encoders=encoders, words=4000 if case == "words" else 70, gaussians=70)
    pipeline = Pipeline(classical, Preprocess(size=(size, size)))
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.rand(shape, generator=generator) + 0.01 for key, shape in pipeline.shapes.items()}
    pipeline = Pipeline(classical, pipeline.preprocess, tensors)
    labels = np.arange(5000) % 50
    train, test = words.places(pipeline, labels, 50, 5000, seed=0)
    assert words.PARTS <= len(train) <= words.SAMPLED and 1 <= len(test) <= words.PICTURES
    assert len(set(labels[test])) == len(test)
    noise = torch.randint(0, 256, (len(train), 3, size, size), generator=generator, dtype=torch.uint8)
    found = words.vocabularies(pipeline)
    for one in found[:3]:
        sample = words.sample(pipeline, one.kind, noise[:8], one.work, len(found), seed=0)
        assert 2 * sample.frames.numel() * one.work * len(found) <= words.WORK
        assert sample.vectors.numel() <= words.KEPT
    page = write(tmp_path, pipeline, noise[:24], noise[: len(test)], tuple(f"class {i}" for i in range(50)))
    assert len(page.encode()) <= 3e6
    shown = len([1 for tag, values in check_self_contained(page).elements if tag == "figure" and "id" in values])
    assert shown == {"words": 64, "vocabularies": 192, "pictures": 192}[case]


def test_large_pictures_are_few() -> None:
    classical = Classical(descriptors=(Descriptor(kind="patches", space="rgb", step=1, sizes=(8,)),), words=4000)
    pipeline = Pipeline(classical, Preprocess(size=(1024, 1024)))
    pipeline = Pipeline(classical, pipeline.preprocess, {"0.centres": torch.zeros(4000, 192)})
    train, test = words.places(pipeline, np.arange(1000) % 10, 10, 50_000, seed=0)
    assert len(train) == words.PARTS and len(test) == 1


def test_labels_that_no_test_picture_has() -> None:
    pipeline = learnt(replace(ALL, descriptors=KINDS[:1], encoders=("hard",)), pictures(10))
    assert words.places(pipeline, np.zeros((5, 2), np.float32), 2, 10, seed=0)[1].tolist() == [0]
    index = made(6, many=True)
    assert set(words.places(pipeline, index.labels, 2, 10, seed=0)[1]) <= set(range(6))
