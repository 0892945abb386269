from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from opsin import augment as A
from opsin.augment import DRAWS, Augmenter
from opsin.data.rng import uniform
from opsin.errors import UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import Augment
from opsin.types import Batch, Progress

PREPROCESS = Preprocess(size=(12, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
EVERYTHING = Augment(
    crop=0.5, shift=3, flip="alternating", rotate=10, zoom=0.1, colour=0.3, trivial=True, erase=0.5, cutout=4
)


def pictures(n=32, height=12, width=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, height, width), np.uint8))


def batch(n=32, epoch=0, rows=None):
    rows = torch.arange(n) if rows is None else rows
    return Batch(pictures(n)[rows], (torch.arange(n) % 5)[rows], rows, epoch)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [True, False])
def test_shift_and_flip_equals_pad_cut_mirror_one_by_one(padding, flip):
    images, shift = pictures(), 3
    draws, flips = torch.rand(32, 2), torch.rand(32) < 0.5
    got = A.shift_and_flip(images, draws, flips if flip else None, shift, padding)
    for i, image in enumerate(images):
        mode = {"reflect": "reflect", "zero": "constant"}[padding]
        padded = functional.pad(image[None].double(), [shift] * 4, mode=mode)[0]
        y, x = (int(d * (2 * shift + 1)) for d in draws[i])
        mirrored = padded[:, y : y + 12, x : x + 16]
        expected = mirrored.flip(2) if flip and flips[i] else mirrored
        assert torch.equal(got[i].double(), expected)


def test_no_augmentation_is_exactly_the_classifiers_own_preprocessing():
    images, targets = Augmenter(Augment(), PREPROCESS, 5)(batch(), Progress())
    assert torch.equal(images, PREPROCESS.normalize(pictures()))
    assert torch.equal(targets, functional.one_hot(torch.arange(32) % 5, 5).float())


def test_a_picture_is_augmented_the_same_whatever_its_batch():
    augmenter = Augmenter(EVERYTHING, PREPROCESS, 5, seed=3)
    rows = torch.tensor([7, 3, 30])
    whole, _ = augmenter(batch(epoch=2), Progress())
    part, _ = augmenter(batch(epoch=2, rows=rows), Progress())
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-5)
    other, _ = augmenter(batch(epoch=3), Progress())
    assert (other - whole).abs().amax((1, 2, 3)).min() > 0.1


def test_the_dataset_itself_is_never_changed():
    images = pictures()
    before = images.clone()
    for spec in (Augment(), EVERYTHING, Augment(mixup=1.0), Augment(cutmix=1.0)):
        Augmenter(spec, PREPROCESS, 5)(Batch(images, torch.arange(32) % 5, torch.arange(32), 0), Progress())
    assert torch.equal(images, before)


def test_alternating_flip_shows_both_sides_in_any_two_epochs():
    augmenter = Augmenter(Augment(flip="alternating"), PREPROCESS, 5)
    plain = PREPROCESS.normalize(pictures())
    mirrored = []
    for epoch in range(4):
        images, _ = augmenter(batch(epoch=epoch), Progress(epoch=epoch))
        is_plain = (images == plain).flatten(1).all(1)
        assert (is_plain | (images == plain.flip(3)).flatten(1).all(1)).all()
        mirrored.append(~is_plain)
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[0], mirrored[2])
    assert 5 < mirrored[0].sum() < 27


def test_shifts_are_uniform():
    draws = uniform(0, 0, np.arange(70_000), DRAWS)[:, :2]
    counts = torch.bincount((draws * 7).long().flatten(), minlength=7).double()
    assert ((counts / counts.sum() - 1 / 7).abs() < 0.005).all()


def test_the_identity_matrix_warps_nothing_and_a_quarter_turn_is_a_quarter_turn():
    square = pictures(4, 9, 9).float()
    identity = torch.eye(3)[:2].expand(4, 2, 3)
    torch.testing.assert_close(A.warp(square, identity), square, rtol=0, atol=1e-3)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).expand(4, 2, 3)
    torch.testing.assert_close(A.warp(square, turn), square.rot90(1, (2, 3)), rtol=0, atol=1e-2)


def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for():
    draws = torch.rand(20_000, 4)
    height, width, top, left = A.crop_box(draws, 0.3)
    assert (
        (top >= 0).all() and (top + height <= 1 + 1e-6).all() and (left >= 0).all() and (left + width <= 1 + 1e-6).all()
    )
    inside = (height < 1) & (width < 1)
    assert (height * width)[inside].min() > 0.299
    ratio = (width / height)[inside]
    assert ratio.min() > 0.749 and ratio.max() < 1.334
    wide_height, wide_width, _, _ = A.crop_box(draws, 0.3, aspect=2.0)
    unclipped = (wide_height < 1) & (wide_width < 1)
    assert (2 * wide_width / wide_height)[unclipped].max() < 1.334


def test_random_crop_of_a_decoded_picture_has_the_networks_size():
    image = pictures(1, 50, 80)[0]
    for _ in range(20):
        out = A.random_crop(image, torch.rand(DRAWS), 0.08, PREPROCESS)
        assert out.shape == (3, 12, 16) and out.dtype == torch.uint8
    assert A.random_crop(image[:1], torch.rand(DRAWS), 0.5, PREPROCESS).shape == (3, 12, 16)


def test_colour_jitter_of_factor_one_changes_nothing_and_of_zero_saturation_is_grey():
    images = pictures().float()
    torch.testing.assert_close(A.colour_jitter(images, torch.ones(32, 3)), images, rtol=0, atol=1e-3)
    grey = A.colour_jitter(images, torch.tensor([[1.0, 1.0, 0.0]]).expand(32, 3))
    torch.testing.assert_close(grey[:, 0], grey[:, 2], rtol=0, atol=1e-2)
    black = A.colour_jitter(images, torch.tensor([[0.0, 1.0, 1.0]]).expand(32, 3))
    assert black.abs().max() == 0


def test_every_operation_of_trivial_augment_keeps_pixels_in_range_and_does_something():
    images = pictures(16).float()
    for operation in A.OPERATIONS:
        out = operation(images, torch.full((16,), 0.9), torch.ones(16), 0.0)
        assert out.shape == images.shape and out.min() >= -1e-3 and out.max() <= 255.001
        assert operation is A._identity or not torch.equal(out, images), operation
    chosen = A.trivial_augment(images, torch.rand(16, 3))
    assert chosen.shape == images.shape


def test_equalize_makes_a_narrow_histogram_flat():
    narrow = torch.randint(100, 120, (1, 3, 64, 64)).float()
    out = A._equalize(narrow, torch.ones(1), torch.ones(1), 0.0)
    assert out.std() > 65 and abs(out.mean() - 127.5) < 2


def test_erasing_and_cutout_set_rectangles_to_the_mean():
    images = torch.ones(2000, 1, 32, 32)
    erased = A.erase(images, torch.rand(2000, 5), 0.5)
    share = (erased == 0).flatten(1).float().mean(1)
    assert abs((share > 0).float().mean() - 0.5) < 0.05 and share.max() <= 0.45
    cut = A.cutout(images, torch.full((2000, 2), 0.5), 8)
    assert (cut == 0).flatten(1).sum(1).eq(64).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_targets_tell_what_the_picture_is_made_of(mixup, cutmix):
    images = torch.eye(8)[:, :, None, None].expand(8, 8, 16, 16).clone()  # channel k is 1 in pictures of class k
    for number in range(20):
        mixed, targets = A.mix(images, torch.eye(8), np.random.default_rng(number), mixup, cutmix)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        torch.testing.assert_close(mixed.mean((2, 3)), targets, rtol=0, atol=1e-5)


def test_progressive_resolution_follows_the_progress():
    augmenter = Augmenter(Augment(sizes=((0.0, 8), (0.5, 12), (0.75, 16))), PREPROCESS, 5, total_steps=100)
    shapes = [tuple(augmenter(batch(), Progress(step=step))[0].shape[2:]) for step in (0, 49, 50, 75, 99)]
    assert shapes == [(6, 8), (6, 8), (9, 12), (12, 16), (12, 16)]


def test_a_shift_wider_than_the_picture_is_refused():
    with pytest.raises(UsageError, match=r"augment\.shift: expected less than the picture's side 12, received 12"):
        Augmenter(Augment(shift=12), PREPROCESS, 5)


def test_many_labels_are_their_own_targets_and_what_is_unknown_stays_so():
    labels = torch.tensor([[1.0, 0, -1], [0, 1, 0], [1, 1, 0], [0, -1, 1]])
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(images, labels, torch.arange(4), 0)
    assert torch.equal(Augmenter(Augment(), Preprocess(size=(8, 8)), 3)(batch, Progress())[1], labels)
    for spec in (Augment(mixup=1.0), Augment(cutmix=1.0)):
        augmenter, between = Augmenter(spec, Preprocess(size=(8, 8)), 3), False
        for number in range(20):
            _, targets = augmenter(batch, Progress(batch=number))
            unknown = targets < 0
            assert bool(unknown[labels < 0].all()) and bool((targets[unknown] == -1).all())
            assert bool((targets[~unknown] <= 1).all())
            between |= bool(((targets > 0) & (targets < 1)).any())
        assert between
