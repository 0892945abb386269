from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from opsin.classical import descriptors as D
from opsin.errors import UsageError

CALLS = {
    "sift": lambda x, **k: D.sift(x, **{"step": 4, "bin_size": 3, "contrast": 0.0, **k}),
    "sift_flat": lambda x, **k: D.sift(x, **{"step": 4, "bin_size": 3, "contrast": 0.0, "window": "flat", **k}),
    "hog": lambda x, **k: D.hog(x, **{"step": 3, "cell": 5, **k}),
    "lbp": lambda x, **k: D.lbp(x, **{"step": 4, "side": 6, **k}),
    "patches": lambda x, **k: D.patches(x, **{"side": 6, "step": 5, **k}),
}
# Pixels a side that count for a descriptor (but for those that its outermost pixels are compared with).
REACH = {"sift": 15, "sift_flat": 15, "hog": 10, "lbp": 6, "patches": 6}


def pictures(count=2, channels=2, height=26, width=31, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8))


def near(got: torch.Tensor, expected: np.ndarray) -> None:
    assert got.dtype == torch.float32 and got.shape == expected.shape
    assert np.abs(got.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def slow_sift(plane, step, bin_size, window, root, contrast):
    """Each frame by itself, each pixel's vote for each bin and orientation, in float64."""
    down, across = np.gradient(plane.astype(np.float64))
    size, (height, width) = np.hypot(down, across), plane.shape
    angle = np.arctan2(down, across) * 8 / (2 * np.pi)
    distance = np.abs((angle[..., None] - np.arange(8) + 4) % 8 - 4)
    votes = np.maximum(0, 1 - distance) * size[..., None]
    reach = np.arange(-(5 * bin_size) // 2 - 1, (5 * bin_size) // 2 + 2)
    offsets = reach + (0.5 if 3 * bin_size % 2 else 0)  # of pixels from the frame's centre
    centres = (np.arange(4) - 1.5) * bin_size
    shares = np.maximum(0, 1 - np.abs(offsets - centres[:, None]) / bin_size)
    if window == "gaussian":
        shares = shares * np.exp(-0.5 * (offsets / (2 * bin_size)) ** 2)
    else:
        inner = np.arange(1 - bin_size, bin_size)
        shares = shares * np.exp(-0.5 * ((centres[:, None] + inner) / (2 * bin_size)) ** 2).mean(1)[:, None]
    found = []
    for top in range(0, height - 3 * bin_size, step):
        for left in range(0, width - 3 * bin_size, step):
            y = np.clip(np.round(top + 1.5 * bin_size + offsets).astype(int), 0, height - 1)
            x = np.clip(np.round(left + 1.5 * bin_size + offsets).astype(int), 0, width - 1)
            bins = np.einsum("iy,jx,yxt->ijt", shares, shares, votes[y][:, x]).ravel()
            if bins.sum() / shares.sum() ** 2 < contrast:
                found.append(np.zeros(128))
                continue
            bins = np.minimum(bins / np.linalg.norm(bins), 0.2)
            bins /= np.linalg.norm(bins)
            found.append(np.sqrt(bins / bins.sum()) if root else bins)
    return np.stack(found)


def per_plane(slow, images, **options):
    """A slow descriptor of one plane, of each picture and channel: [B, N, C · D]."""
    return np.stack([np.concatenate([slow(plane, **options) for plane in image], 1) for image in images.numpy()])


@pytest.mark.parametrize("window", ["gaussian", "flat"])
@pytest.mark.parametrize(
    ("step", "bin_size", "root", "contrast"), [(4, 3, False, 0.0), (3, 4, True, 0.0), (2, 4, False, 68)]
)
def test_sift_equals_the_slow_one(window, step, bin_size, root, contrast):
    images = pictures()
    options = {"step": step, "bin_size": bin_size, "window": window, "root": root, "contrast": contrast}
    expected = per_plane(slow_sift, images, **options)
    if contrast:
        assert 0.1 < (expected == 0).mean() < 0.99  # some are kept, some are not
    near(D.sift(images, **options).vectors, expected)


def test_smoothing_is_a_gaussian_of_that_width():
    images = pictures(3, 1, 37, 20)
    smoothed = ndimage.gaussian_filter(images.double().numpy(), (0, 0, 1.5, 1.5), mode="nearest", truncate=4)
    got = D.sift(images, step=3, bin_size=4, smooth=1.5).vectors
    near(got, D.sift(torch.from_numpy(smoothed), step=3, bin_size=4).vectors.double().numpy())
    assert (got - D.sift(images, step=3, bin_size=4).vectors).abs().max() > 0.05


def test_both_windows_nearly_agree_and_mirrored_pictures_have_mirrored_descriptors():
    images = pictures(4, 1, 40, 33)
    gaussian = D.sift(images, step=4, bin_size=4, smooth=1).vectors
    flat = D.sift(images, step=4, bin_size=4, smooth=1, window="flat").vectors
    assert (gaussian * flat).sum(-1).mean() > 0.97
    mirrored = D.sift(images.flip(3), step=4, bin_size=4, smooth=1).vectors.view(4, 7, 6, 4, 4, 8)
    turned = mirrored.flip(2).flip(4)[..., (4 - torch.arange(8)) % 8]  # a gradient to the right is one to the left
    torch.testing.assert_close(turned.reshape(4, 42, 128), gaussian, atol=1e-5, rtol=0)


def test_sift_is_opencvs_on_the_same_frames():
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    # OpenCV blurs from an assumed 0.5 to 1.6 pixels, a keypoint's size is two thirds of a bin, and angles go upwards.
    grid = D.sift(torch.from_numpy(image)[None, None], step=4, bin_size=4, smooth=(1.6**2 - 0.5**2) ** 0.5)
    centres = grid.places.numpy() * 80 - 0.5
    inner = ((centres > 16) & (centres < 63)).all(1)  # OpenCV leaves out what is beyond the border
    keypoints = [cv2.KeyPoint(float(x), float(y), 4 / 1.5, 0.0) for y, x in centres[inner]]
    theirs = torch.from_numpy(cv2.SIFT_create().compute(image, keypoints)[1])
    theirs = theirs.view(-1, 16, 8)[..., -torch.arange(8) % 8].flatten(1)
    cosines = torch.nn.functional.cosine_similarity(theirs, grid.vectors[0, torch.from_numpy(inner)])
    assert len(cosines) > 100 and cosines.min() > 0.999


def slow_hog(plane, step, cell, block, orientations):
    plane = plane.astype(np.float64)
    height, width = plane.shape
    extent, found = block * cell, []
    for top in range(0, height - extent + 1, step):
        for left in range(0, width - extent + 1, step):
            bins = np.zeros((block, block, orientations))
            for y in range(top, top + extent):
                for x in range(left, left + extent):
                    down = plane[y + 1, x] - plane[y - 1, x] if 0 < y < height - 1 else 0.0
                    across = plane[y, x + 1] - plane[y, x - 1] if 0 < x < width - 1 else 0.0
                    number = int(np.arctan2(down, across) % np.pi / np.pi * orientations + 1e-9) % orientations
                    bins[(y - top) // cell, (x - left) // cell, number] += np.hypot(down, across) / cell**2
            bins = np.minimum(bins / np.sqrt((bins**2).sum() + 1e-10), 0.2)
            found.append((bins / np.sqrt((bins**2).sum() + 1e-10)).ravel())
    return np.stack(found)


@pytest.mark.parametrize(("step", "cell", "block", "orientations"), [(3, 5, 2, 9), (4, 4, 3, 8), (7, 6, 1, 5)])
def test_hog_equals_the_slow_one(step, cell, block, orientations):
    options = {"step": step, "cell": cell, "block": block, "orientations": orientations}
    near(D.hog(pictures(), **options).vectors, per_plane(slow_hog, pictures(), **options))


@pytest.mark.parametrize(("cell", "block", "orientations"), [(8, 2, 9), (6, 3, 8)])
def test_hog_is_scikit_images(cell, block, orientations):
    feature = pytest.importorskip("skimage.feature")
    images = pictures(2, 1, 43, 50) // 16 * 16
    images[0, 0, :20] //= 32  # many equal gradients, on the edges between orientations
    expected = [
        feature.hog(i[0].double().numpy(), orientations, (cell, cell), (block, block)).reshape(
            -1, block**2 * orientations
        )
        for i in images
    ]
    near(D.hog(images, step=cell, cell=cell, block=block, orientations=orientations).vectors, np.stack(expected))


def slow_lbp(plane, step, side, points, radius, method):
    plane = plane.astype(np.float64)
    height, width = plane.shape

    def at(y, x):
        return plane[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    def code(y, x):
        bits = []
        for point in range(points):
            v = y - round(radius * np.sin(2 * np.pi * point / points), 5)
            u = x + round(radius * np.cos(2 * np.pi * point / points), 5)
            a, b = int(np.floor(v)), int(np.floor(u))
            top = (1 - u + b) * at(a, b) + (u - b) * at(a, b + 1)
            bottom = (1 - u + b) * at(a + 1, b) + (u - b) * at(a + 1, b + 1)
            bits.append((1 - v + a) * top + (v - a) * bottom >= plane[y, x] - 1e-9)
        ones, starts = sum(bits), [i for i in range(points) if bits[i] and not bits[i - 1]]
        if method == "rotation":
            return ones if len(starts) <= 1 else points + 1
        if len(starts) > 1:
            return points * (points - 1) + 2
        return (1 + (ones - 1) * points + -starts[0] % points) if starts else (points * (points - 1) + 1) * bool(ones)

    codes = np.array([[code(y, x) for x in range(width)] for y in range(height)])
    length = points + 2 if method == "rotation" else points * (points - 1) + 3
    return np.stack(
        [
            np.bincount(codes[top : top + side, left : left + side].ravel(), minlength=length) / side**2
            for top in range(0, height - side + 1, step)
            for left in range(0, width - side + 1, step)
        ]
    )


@pytest.mark.parametrize("method", ["uniform", "rotation"])
@pytest.mark.parametrize(("step", "side", "points", "radius"), [(4, 6, 8, 1.0), (3, 7, 6, 1.5)])
def test_lbp_equals_the_slow_one(method, step, side, points, radius):
    images = pictures(1)
    images[0, 0] //= 100  # many neighbours as bright as the pixel
    options = {"step": step, "side": side, "points": points, "radius": radius, "method": method}
    near(D.lbp(images, **options).vectors, per_plane(slow_lbp, images, **options))


@pytest.mark.parametrize(("method", "theirs"), [("uniform", "nri_uniform"), ("rotation", "uniform")])
@pytest.mark.parametrize(("points", "radius"), [(8, 1.0), (12, 1.5), (16, 2.0)])
def test_lbp_is_scikit_images(method, theirs, points, radius):
    feature = pytest.importorskip("skimage.feature")
    images = pictures(1, 1, 32, 32)
    padded = np.pad(images[0, 0].numpy(), 3, "edge")
    codes = feature.local_binary_pattern(padded, points, radius, theirs)[3:-3, 3:-3].astype(int)
    got = D.lbp(images, step=16, side=16, points=points, radius=radius, method=method).vectors
    squares = codes.reshape(2, 16, 2, 16).swapaxes(1, 2).reshape(4, -1)
    near(got, np.stack([np.bincount(square, minlength=got.shape[2]) / 256 for square in squares])[None])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_patches_are_cut_out_and_have_contrast_normalised(dtype):
    images = pictures().to(dtype)
    before = images.clone()
    grid = D.patches(images, side=5, step=3, contrast=12.0)
    expected = []
    for top in range(0, 26 - 4, 3):
        for left in range(0, 31 - 4, 3):
            patch = images[:, :, top : top + 5, left : left + 5].double().flatten(1).numpy()
            expected.append((patch - patch.mean(1, keepdims=True)) / np.sqrt(patch.var(1, keepdims=True) + 12))
    near(grid.vectors, np.stack(expected, 1))
    D.patches(images[:, :1], side=1, step=1)  # where the patches are the pixels
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", CALLS)
def test_places_say_what_a_descriptor_has_seen(kind):
    image = pictures(1, 1, 40, 50)
    grid = CALLS[kind](image)
    assert grid.places.shape == (grid.vectors.shape[1], 2) and grid.places.dtype == torch.float32
    assert grid.places.min() > 0 and grid.places.max() < 1
    assert torch.equal(grid.places, torch.unique(grid.places, dim=0))  # row by row, none twice
    for y, x in ((20, 17), (11, 30), (3, 44)):
        other = image.clone()
        other[0, 0, y, x] ^= 128
        changed = (CALLS[kind](other).vectors != grid.vectors).any(2)[0]
        centres = grid.places * torch.tensor([40.0, 50.0]) - 0.5
        distance = (centres - torch.tensor([y, x])).abs().amax(1) - REACH[kind] / 2
        margin = 0 if kind == "patches" else 1.5  # gradients and codes compare with the next pixel
        assert changed.any() and (distance[changed] < margin).all()
        assert changed[distance < -margin - 0.5].all()


@pytest.mark.parametrize("kind", CALLS)
def test_a_descriptor_is_the_same_whatever_the_batch_and_its_parts_are(kind, monkeypatch):
    images = pictures(7, 3, 30, 30)
    whole = CALLS[kind](images)
    assert whole.vectors.is_contiguous()
    monkeypatch.setattr(D, "PART", 1)
    torch.testing.assert_close(CALLS[kind](images).vectors, whole.vectors, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(CALLS[kind](images[4:5]).vectors, whole.vectors[4:5], atol=1e-6, rtol=1e-5)
    assert CALLS[kind](images[:0]).vectors.shape == (0, *whole.vectors.shape[1:])
    if kind != "patches":  # each channel by itself, one after the other
        channels = [CALLS[kind](images[:, c : c + 1]).vectors for c in range(3)]
        torch.testing.assert_close(torch.cat(channels, 2), whole.vectors, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_picture_has_a_defined_descriptor(kind, value):
    flat = torch.full((1, 1, 30, 30), value, dtype=torch.uint8)
    vectors = CALLS[kind](flat).vectors
    if kind == "lbp":
        assert (vectors[..., 57] == 1).all() and vectors.sum() == vectors.shape[1]  # no neighbour is darker
        rotation = CALLS[kind](flat, method="rotation").vectors
        assert (rotation[..., 8] == 1).all() and rotation.sum() == rotation.shape[1]
    else:
        assert (vectors == 0).all()
    if kind.startswith("sift"):
        assert (D.sift(flat, step=3, bin_size=3, smooth=1.0, root=True).vectors == 0).all()
        faint = flat.float() + torch.rand(30, 30)
        assert (D.sift(faint, step=3, bin_size=3).vectors == 0).all()
        assert CALLS[kind](faint).vectors.norm(dim=-1).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("call", "least"),
    [
        (lambda x: D.sift(x, step=2, bin_size=5), 16),
        (lambda x: D.hog(x, step=2, cell=6, block=3), 18),
        (lambda x: D.lbp(x, step=2, side=11), 11),
        (lambda x: D.patches(x, step=2, side=9), 9),
    ],
)
def test_the_smallest_picture_has_one_descriptor_and_a_smaller_one_is_an_error(call, least):
    assert call(pictures(1, 3, least, least + 1)).vectors.shape[1] == 1
    with pytest.raises(UsageError, match=f"at least {least} × {least} pixels.*received {least} × {least - 1}"):
        call(pictures(1, 3, least, least - 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: D.sift(x, step=0, bin_size=4), "step of at least 1"),
        (lambda x: D.sift(x, step=1, bin_size=4, window="flatt"), "did you mean flat"),
        (lambda x: D.sift(x, step=1, bin_size=4, smooth=float("nan")), "smooth"),
        (lambda x: D.hog(x, step=1, cell=4, orientations=0), "orientations of at least 1"),
        (lambda x: D.lbp(x, step=1, side=4, points=17), "at most 16 points"),
        (lambda x: D.lbp(x, step=1, side=4, method="nri"), "unknown method"),
        (lambda x: D.patches(x, step=1, side=4, contrast=0), "contrast above 0"),
        (lambda x: D.patches(x.long(), step=1, side=4), "uint8 or float"),
        (lambda x: D.sift(x[0], step=1, bin_size=4), r"\[B, C, H, W\]"),
        (lambda x: D.planes(x, "lab"), "unknown space"),
        (lambda x: D.planes(x), "1 or 3 channels"),
        (lambda x: D.joined([]), "no grid"),
        (lambda x: D.joined([D.hog(x, step=4, cell=4), D.lbp(x, step=4, side=4)]), "2 pictures × 72, 2 pictures × 118"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_so(call, message):
    with pytest.raises(UsageError, match=message):
        call(pictures())


def test_scales_join_and_planes_are_colour():
    images = pictures(2, 3)
    red, green, blue = images.double().unbind(1)
    grey = D.planes(images)
    torch.testing.assert_close(grey[:, 0], (0.299 * red + 0.587 * green + 0.114 * blue).float())
    opponent = D.planes(images, "opponent")
    torch.testing.assert_close(opponent.square().sum(1), images.double().square().sum(1).float())  # a rotation
    assert D.planes(grey, "opponent")[:, :2].abs().max() < 1e-3 and torch.equal(D.planes(grey), grey)
    torch.testing.assert_close(D.planes(grey, "rgb"), grey.expand(-1, 3, -1, -1))
    grids = [D.sift(D.planes(images, "opponent"), step=3, bin_size=size) for size in (3, 4)]
    both = D.joined(grids)
    assert both.vectors.shape == (2, len(grids[0].places) + len(grids[1].places), 3 * 128)
    assert torch.equal(both.vectors[:, : len(grids[0].places)], grids[0].vectors)
    assert torch.equal(both.places[len(grids[0].places) :], grids[1].places)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", CALLS)
def test_the_same_on_a_gpu(kind):
    images = pictures(5, 3, 64, 48)
    here, there = CALLS[kind](images), CALLS[kind](images.cuda())
    assert there.vectors.is_cuda and there.places.is_cuda
    near(there.vectors.cpu(), here.vectors.double().numpy())
