"""One suite for the contract of `opsin.classifier.Classifier`: every kind of classifier passes it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opsin import classifier as classifiers
from opsin import metrics
from opsin.classifier import Classifier
from opsin.data.index import ArraySource, Index
from opsin.errors import BadInput, UsageError
from opsin.evaluate import LabelReport, evaluate, evaluate_labels, measure

SIZES = [(1, 1), (3, 50), (41, 37), (64, 64), (200, 9)]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Noise, uint8 [channels, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8)


def check_classifier(classifier: Classifier, folder: Path, *, tolerance: float = 1e-5, savable: bool = True) -> None:
    """Assert the whole contract. folder: an empty one. tolerance: of probabilities in batches of different sizes."""
    check_shape(classifier)
    check_independence(classifier, tolerance)
    check_kinds(classifier, folder, tolerance)
    check_evaluation(classifier, tolerance)
    if savable:
        check_saving(classifier, folder)


def check_shape(classifier: Classifier) -> None:
    assert isinstance(classifier, Classifier)
    classes = classifier.classes
    assert isinstance(classes, tuple) and classes and all(isinstance(name, str) for name in classes)
    assert len(set(classes)) == len(classes)
    images = [picture(h, w, c, seed=h) for h, w in SIZES for c in (1, 3)]
    copies = [image.clone() for image in images]
    prepared = [classifier.prepare(image) for image in images]
    assert all(map(torch.equal, images, copies)), "prepare changed its picture"
    assert len({(p.dtype, p.shape) for p in prepared}) == 1, "prepare gives one shape whatever the picture"
    stack = torch.stack(prepared)
    kept = stack.clone()
    probabilities = classifier.probabilities(stack)
    assert torch.equal(stack, kept), "probabilities changed what it was given"
    assert probabilities.shape == (len(images), len(classes)) and probabilities.is_floating_point()
    assert not probabilities.requires_grad
    assert bool(torch.isfinite(probabilities).all()) and bool((probabilities >= 0).all())
    least = classifiers.thresholds(classifier)
    if least is None:
        torch.testing.assert_close(probabilities.sum(1).cpu(), torch.ones(len(images), dtype=probabilities.dtype))
    else:
        assert len(least) == len(classes) and all(0 <= value <= 1 for value in least)
        assert bool((probabilities <= 1).all())
    assert torch.equal(probabilities, classifier.probabilities(stack)), "the same question, another answer"


def check_independence(classifier: Classifier, tolerance: float) -> None:
    """A picture's answer depends on no other picture of its batch, on no order and on no earlier question."""
    stack = torch.stack([classifier.prepare(picture(40, 30, seed=i)) for i in range(9)])
    together = classifier.probabilities(stack)
    alone = torch.cat([classifier.probabilities(stack[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=0)
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    torch.testing.assert_close(classifier.probabilities(stack[order]), together[order], atol=tolerance, rtol=0)
    assert torch.equal(classifier.probabilities(stack), together)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def check_kinds(classifier: Classifier, folder: Path, tolerance: float) -> None:
    """Every kind of picture that `predict` takes, and the same answer for the same pixels in each kind."""
    chw = picture(33, 21, seed=5)
    hwc = chw.permute(1, 2, 0).numpy()
    pillow = Image.fromarray(hwc)
    png = encoded(pillow, "PNG")
    path = folder / "a picture.png"
    path.write_bytes(png)
    kinds = [chw, hwc, np.asfortranarray(hwc), pillow, png, path, str(path)]
    k, least = len(classifier.classes), classifiers.thresholds(classifier)
    answers = classifiers.predict(classifier, kinds, top=k)
    expected = classifier.probabilities(classifier.prepare(chw)[None]).cpu()
    order = metrics.ranking(expected, k)[0].tolist()
    if least is not None:
        order = [label for label in order if expected[0, label] >= least[label]]
        assert 0 < len(order) < k, "thresholds that this picture does not try"
    for answer in answers:
        assert [prediction.label for prediction in answer] == order
        for prediction in answer:
            assert prediction.name == classifier.classes[prediction.label]
            assert prediction.probability == pytest.approx(float(expected[0, prediction.label]), abs=tolerance)
    assert answers == classifiers.predict(classifier, kinds, top=k, workers=3)
    assert [len(a) for a in classifiers.predict(classifier, kinds, top=1)] == [1] * len(kinds)
    assert len(classifiers.predict(classifier, [chw], top=k + 7)[0]) == len(order)
    assert classifiers.predict(classifier, []) == []

    grey = picture(20, 20, 1, seed=6)
    pillow_grey = Image.fromarray(grey[0].numpy())
    same = classifiers.predict(
        classifier, [grey, grey[0].numpy(), grey[0].numpy()[:, :, None], pillow_grey], batch_size=3
    )
    assert all(answer[0].label == same[0][0].label for answer in same)
    modes = [pillow.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr")]
    wide = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    others = [*modes, wide, encoded(pillow.convert("CMYK"), "JPEG"), encoded(wide, "PNG"), encoded(modes[4], "PNG")]
    assert len(classifiers.predict(classifier, others)) == len(others)

    for wrong in (chw.float(), chw[0], chw[None], hwc.astype(np.float32), hwc[..., :2], np.zeros((0, 4), np.uint8)):
        with pytest.raises(UsageError, match=r"picture 1: expected (an array|a tensor) uint8 \[.*received"):
            classifiers.predict(classifier, [chw, wrong])
    with pytest.raises(UsageError, match=r"picture 0: expected a path, bytes.*received int"):
        classifiers.predict(classifier, [3])  # type: ignore[list-item]
    for single in (str(path), path, png, pillow):
        with pytest.raises(UsageError, match="put it into a list"):
            classifiers.predict(classifier, single)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="top: expected at least 1"):
        classifiers.predict(classifier, [chw], top=0)
    with pytest.raises(BadInput, match=r"missing\.png"):
        classifiers.predict(classifier, [chw, folder / "missing.png"])
    with pytest.raises(BadInput, match="picture 1"):
        classifiers.predict(classifier, [chw, png[:-30]])


def check_evaluation(classifier: Classifier, tolerance: float) -> None:
    """`evaluate` finds what one picture after the other gives."""
    k, n = len(classifier.classes), 11
    images = torch.stack([picture(24, 24, seed=100 + i) for i in range(n)])
    many = classifiers.thresholds(classifier) is not None
    labels = (np.arange(n) % k).astype(np.int64)
    if many:
        labels = np.eye(k, dtype=np.float32)[labels]
        labels[0] = -1
    index = Index([f"p{i}" for i in range(n)], labels, classifier.classes, ArraySource(images.numpy()))
    rows = torch.cat([classifier.probabilities(classifier.prepare(image)[None]).cpu() for image in images])
    report = measure(classifier, index, batch_size=4)
    assert report.probabilities is not None and isinstance(report, LabelReport) == many
    torch.testing.assert_close(report.probabilities, rows, atol=tolerance, rtol=0)
    assert report.classes == classifier.classes and report.n == n
    if isinstance(report, LabelReport):
        with pytest.raises(UsageError, match="evaluate_labels"):
            evaluate(classifier, index)
        return
    assert report.num_wrong == int((metrics.predicted(rows) != torch.from_numpy(labels)).sum())
    with pytest.raises(UsageError, match="one label a picture"):
        evaluate_labels(classifier, index)


def check_saving(classifier: Classifier, folder: Path) -> None:
    """Saved and loaded, it gives the same bits; also saved again over itself."""
    stack = torch.stack([classifier.prepare(picture(30, 30, seed=i)) for i in range(3)])
    expected = classifier.probabilities(stack)
    for _ in range(2):
        classifiers.save(classifier, folder / "run" / "classifier")
    for place in (folder / "run", folder / "run" / "classifier", str(folder / "run")):
        again = classifiers.load(place)
        assert type(again) is type(classifier) and again.classes == classifier.classes
        assert classifiers.thresholds(again) == classifiers.thresholds(classifier)
        assert torch.equal(again.prepare(picture(30, 30, seed=1)), stack[1])
        assert torch.equal(again.probabilities(stack), expected)
