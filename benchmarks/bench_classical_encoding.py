"""k-means against scikit-learn's MiniBatchKMeans at equal inertia, and Fisher vectors against scikit-image's.

python benchmarks/bench_classical_encoding.py [--rounds 5] [--part kmeans|fisher] [--vectors 200000]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import common
import torch
from skimage.feature import fisher_vector
from sklearn.cluster import MiniBatchKMeans
from sklearn.mixture import GaussianMixture
from torch import Tensor

from opsin import device
from opsin.classical import encoding, pooling, vocabulary


def descriptors(n: int, d: int) -> Tensor:
    """Vectors ≥ 0 in loose groups with a long tail, of unit length, as gradient histograms are: float32 [n, d]."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(4096, d, generator=generator)
    x = groups[torch.randint(4096, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(x.clamp(min=0))


def kmeans(rounds: int, vectors: int, words: int = 1024, d: int = 128) -> list[dict[str, Any]]:
    """Ours with as few passes in batches as give an inertia no larger than theirs, with its own rule for stopping."""
    x = descriptors(vectors, d)
    numbers = x.numpy()
    theirs = MiniBatchKMeans(words, batch_size=4096, n_init=1, random_state=0)
    wanted = float(theirs.fit(numbers).inertia_)
    for passes in range(1, 50):
        found = vocabulary.kmeans(x, words, seed=0, iterations=passes, batch=4096, tolerance=-1)
        if found.inertia <= wanted:
            break
    else:
        sys.exit(f"k-means: an inertia of {found.inertia:g} after {passes} passes, scikit-learn's is {wanted:g}")

    def ours() -> None:
        vocabulary.kmeans(x, words, seed=0, iterations=passes, batch=4096, tolerance=-1)

    facts = {"part": "kmeans", "case": f"{vectors}x{d}, {words} words, {passes} passes against {theirs.n_iter_}"}
    facts["agreement"] = f"inertia {found.inertia:.6g} against {wanted:.6g}"
    return compared(facts, ours, lambda: theirs.fit(numbers), rounds)


def fisher(rounds: int, pictures: int = 20, places: int = 1000, words: int = 256, d: int = 64) -> list[dict[str, Any]]:
    """The improved Fisher vectors of some pictures."""
    x = descriptors(pictures * places, d)
    mixture = vocabulary.mixture(x, words, seed=0, iterations=5)
    model = GaussianMixture(words, covariance_type="diag")
    model.weights_, model.means_, model.covariances_ = (part.double().numpy() for part in mixture[:3])
    model.precisions_cholesky_ = model.covariances_**-0.5
    grid = (x.view(pictures, places, d), torch.rand(places, 2, generator=torch.Generator().manual_seed(0)))
    numbers = grid[0].numpy()
    encoder, whole = encoding.Fisher(mixture), pooling.regions("1x1")

    def ours() -> Tensor:
        return encoding.encode(encoder, grid, regions=whole, pooling="average", power=0.5, norm="whole")

    def theirs() -> list[Any]:
        return [fisher_vector(picture, model, improved=True, alpha=0.5) for picture in numbers]

    # By means alone: theirs also has gradients by the weights, and is normalised with them.
    half = slice(words, words + words * d)
    one = torch.stack([torch.from_numpy(vector[half]).float() for vector in theirs()])
    cosine = torch.nn.functional.cosine_similarity(ours()[:, : words * d], one).min()
    facts = {"part": "fisher", "case": f"{pictures} pictures of {places}x{d}, {words} Gaussians"}
    facts["agreement"] = f"least cosine by means {cosine:.6f}"
    return compared(facts, ours, theirs, rounds)


def compared(facts: dict[str, Any], ours: Any, theirs: Any, rounds: int) -> list[dict[str, Any]]:
    rows = [
        {
            **facts,
            "round": number,
            "ours_seconds": round(seconds["ours"], 4),
            "theirs_seconds": round(seconds["theirs"], 4),
            "speedup": round(seconds["theirs"] / seconds["ours"], 4),
        }
        for number, seconds in enumerate(common.alternate({"ours": ours, "theirs": theirs}, rounds), 1)
    ]
    speedup = common.median([row["speedup"] for row in rows])
    print(f"{facts['part']:>8}: {speedup:.2f}× ({facts['case']}; {facts['agreement']})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=["kmeans", "fisher"])
    parser.add_argument("--vectors", type=int, default=200_000)
    options = parser.parse_args()
    device.tune()
    if options.part != "fisher":
        common.write("classical_encoding", kmeans(options.rounds, options.vectors), "kmeans")
    if options.part != "kmeans":
        common.write("classical_encoding", fisher(options.rounds), "fisher")


if __name__ == "__main__":
    main()
