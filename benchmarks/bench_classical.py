"""The classical pipeline's parts against the libraries that are known for them, in alternation in one process.

python benchmarks/bench_classical.py [sift] [kmeans] [fisher] [--rounds 5] [--threads 2]

sift: dense SIFT against `SIFT_create().compute` of OpenCV (pip install opencv-python-headless) at the same frames of
grey crops of scikit-learn's two photographs. A frame of ours with bins of b pixels is the keypoint of its centre, of
size b / 1.5 (OpenCV's bins are 1.5 sizes apart) and angle 0, in octave 0. OpenCV describes a picture that it has
blurred from an assumed 0.5 pixels to 1.6, so ours are blurred by √(1.6² - 0.5²), and that is in the time of both. Its
angles go upwards and ours downwards, so its orientation k is our -k modulo 8. b is even, since OpenCV rounds centres to
pixels. The cosine is the mean over the frames that lie within the picture with their rotated square (OpenCV leaves out
what is beyond the border, ours goes on with the outermost gradients) and are not zeros for their lack of contrast.

kmeans: against scikit-learn's MiniBatchKMeans, with as few passes of ours as give an inertia no larger than theirs.
fisher: improved Fisher vectors against scikit-image's. Theirs also has gradients by the
weights and is normalised with them, so the cosine is of the gradients by means alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from torch.nn import functional

from opsin import device
from opsin.classical import descriptors, encoding, pooling, vocabulary

VECTORS, WORDS = 200_000, 1024  # of k-means
SIFT_CASES = (  # side of the pictures, how many, step, bin_size, window
    (256, 8, 4, 4, "gaussian"),
    (256, 8, 4, 4, "flat"),
    (256, 8, 8, 8, "gaussian"),
    (32, 128, 4, 4, "gaussian"),
)


def crops(side: int, count: int) -> torch.Tensor:
    """uint8 [count, 1, side, side]: squares of scikit-learn's photographs, all of another place."""
    from sklearn.datasets import load_sample_images

    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    grey = descriptors.planes(photographs).round().to(torch.uint8)
    height, width = (size - side for size in grey.shape[2:])
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, height, count), rng.integers(0, width, count), strict=True)
    return torch.stack([grey[i % 2, :, y : y + side, x : x + side] for i, (y, x) in enumerate(corners)])


def sift(rounds: int) -> list[dict[str, Any]]:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    engine, rows = cv2.SIFT_create(), []
    for side, count, step, bin_size, window in SIFT_CASES:
        images = crops(side, count)
        options: dict[str, Any] = {"step": step, "bin_size": bin_size, "window": window}
        options["smooth"] = (1.6**2 - 0.5**2) ** 0.5
        ours = descriptors.sift(images, **options)
        centres = ours.places * side - 0.5
        keypoints = [cv2.KeyPoint(float(x), float(y), bin_size / 1.5, 0.0) for y, x in centres]
        arrays = images[:, 0].numpy()

        theirs = torch.from_numpy(np.stack([engine.compute(image, keypoints)[1] for image in arrays]))
        theirs = theirs.unflatten(2, (16, 8))[..., -torch.arange(8) % 8].flatten(2)
        cosines = functional.cosine_similarity(ours.vectors, theirs, dim=2)
        reach = 2.5 * bin_size * 2**0.5 + 1
        inside = ((centres > reach) & (centres < side - 1 - reach)).all(1) & (ours.vectors != 0).any(2)
        cosine = float(cosines[inside].mean()) if inside.any() else float("nan")

        def run(images: torch.Tensor = images, options: dict[str, Any] = options) -> None:
            descriptors.sift(images, **options)

        def run_theirs(arrays: np.ndarray = arrays, keypoints: list[Any] = keypoints) -> None:
            for image in arrays:
                engine.compute(image, keypoints)

        name = f"{count} of {side} × {side}, step {step}, bins of {bin_size}, {window}"
        rows += compare("sift", name, "opencv", run, run_theirs, rounds, f"cosine {cosine:.5f}")
    return rows


def gradients(n: int, d: int) -> torch.Tensor:
    """Vectors ≥ 0 in loose groups with a long tail, of unit length, as gradient histograms are: float32 [n, d]."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(4096, d, generator=generator)
    x = groups[torch.randint(4096, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    return functional.normalize(x.clamp(min=0))


def kmeans(rounds: int) -> list[dict[str, Any]]:
    from sklearn.cluster import MiniBatchKMeans

    x = gradients(VECTORS, 128)
    numbers = x.numpy()
    theirs = MiniBatchKMeans(WORDS, batch_size=4096, n_init=1, random_state=0)
    wanted = float(theirs.fit(numbers).inertia_)
    for passes in range(1, 50):
        found = vocabulary.kmeans(x, WORDS, seed=0, iterations=passes, batch=16384, tolerance=-1)
        if found.inertia <= wanted:
            break
    else:
        sys.exit(f"k-means: an inertia of {found.inertia:g} after {passes} passes, scikit-learn's is {wanted:g}")

    def ours() -> None:
        vocabulary.kmeans(x, WORDS, seed=0, iterations=passes, batch=16384, tolerance=-1)

    name = f"{VECTORS} × 128, {WORDS} words, {passes} passes against {theirs.n_iter_}"
    quality = f"inertia {found.inertia:.6g} against {wanted:.6g}"
    return compare("kmeans", name, "scikit-learn", ours, lambda: theirs.fit(numbers), rounds, quality)


def fisher(rounds: int) -> list[dict[str, Any]]:
    from skimage.feature import fisher_vector
    from sklearn.mixture import GaussianMixture

    pictures, places, words, d = 20, 1000, 256, 64
    x = gradients(pictures * places, d)
    mixture = vocabulary.mixture(x, words, seed=0, iterations=5)
    model = GaussianMixture(words, covariance_type="diag")
    model.weights_, model.means_, model.covariances_ = (part.double().numpy() for part in mixture[:3])
    model.precisions_cholesky_ = model.covariances_**-0.5
    grid = (x.view(pictures, places, d), torch.rand(places, 2, generator=torch.Generator().manual_seed(0)))
    numbers = grid[0].numpy()
    encoder, whole = encoding.Fisher(mixture), pooling.regions("1x1")

    def ours() -> torch.Tensor:
        return encoding.encode(encoder, grid, regions=whole, pooling="average", power=0.5, norm="whole")

    def theirs() -> list[Any]:
        return [fisher_vector(picture, model, improved=True, alpha=0.5) for picture in numbers]

    half = slice(words, words + words * d)
    means = torch.stack([torch.from_numpy(vector[half]).float() for vector in theirs()])
    cosine = functional.cosine_similarity(ours()[:, : words * d], means).min()
    name = f"{pictures} pictures of {places} × {d}, {words} Gaussians"
    return compare("fisher", name, "scikit-image", ours, theirs, rounds, f"least cosine by means {cosine:.6f}")


def compare(
    part: str,
    name: str,
    other: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    quality: str,
) -> list[dict[str, Any]]:
    """A row a round; quality: what else was measured of the two, in words."""
    rows = []
    for number, seconds in enumerate(common.alternate({"opsin": ours, other: theirs}, rounds), 1):
        rows.append(
            {
                "part": part,
                "case": name,
                "round": number,
                "opsin_seconds": round(seconds["opsin"], 5),
                "other": other,
                "other_seconds": round(seconds[other], 5),
                "speedup": round(seconds[other] / seconds["opsin"], 3),
                "quality": quality,
            }
        )
    print(f"{part}: {name}: {common.median([row['speedup'] for row in rows]):.1f}× {other}; {quality}")
    return rows


PARTS = {"sift": sift, "kmeans": kmeans, "fisher": fisher}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="sift, kmeans, fisher; all of them where none is named"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    device.tune()
    torch.set_num_threads(options.threads)
    for part in options.parts or PARTS:
        if part not in PARTS:
            parser.error(f"no part {part!r}; parts: {', '.join(PARTS)}")
        common.write("classical", PARTS[part](options.rounds), part=part)


if __name__ == "__main__":
    main()
