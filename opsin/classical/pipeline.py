"""The pieces as one pipeline: what is learnt of each kind of descriptor, and pictures to vectors by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from opsin.classical import descriptors, machines, pooling, vocabulary
from opsin.classical.descriptors import Grid
from opsin.classical.encoding import (
    Encoder,
    Fisher,
    Hard,
    Lasso,
    LocalityConstrained,
    MatchingPursuit,
    Triangle,
    encode,
)
from opsin.classical.machines import Machine
from opsin.classical.solver import Start
from opsin.classical.vocabulary import Mixture, Projection
from opsin.errors import StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import Classical, Descriptor

PART = 1 << 24  # numbers of the descriptors that are there at once, 64 MiB
LARGEST = 1024  # pixels of a side that descriptors are taken of
BOXES = 1000  # of a pyramid
WIDEST = 1 << 22  # numbers of a picture's vector
EPSILON = 0.1  # of the whitening of patches (Coates and Ng 2011)
ENDS = {"sift": (3, 1), "hog": (2, 0), "lbp": (1, 0), "patches": (1, 0)}  # of a frame: a · size + b pixels
LENGTHS = {"sift": 128, "hog": 36, "lbp": 59}  # of a descriptor of one plane
VOCABULARY = {  # what each encoder needs
    "hard": "centres",
    "triangle": "centres",
    "llc": "centres",
    "omp": "atoms",
    "fista": "atoms",
    "fisher": "mixture",
}
Progress = Callable[[str], Callable[[int, int], None]]  # of a stage's name


class Pipeline:
    """Prepared pictures, uint8 [B, C, H, W], to vectors.

    tensors: what was learnt, by "KIND.WHAT" with the number of the kind of descriptor: mean, matrix, centres, atoms,
    weights, means, variances. They need not be there for `grid`.
    """

    def __init__(
        self, classical: Classical, preprocess: Preprocess, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.classical, self.preprocess, self.tensors = classical, preprocess, dict(tensors or {})
        if max(preprocess.size) > LARGEST:
            raise UsageError(f"pictures of {preprocess.size}: expected at most {LARGEST} pixels a side")
        self.boxes = pooling.regions(classical.pyramid)
        if len(self.boxes) > BOXES:
            raise UsageError(f"classical.pyramid: expected at most {BOXES} boxes, received {len(self.boxes)}")
        for one in classical.descriptors:
            self.frames(one)  # a picture that is too small is said before anything is read
        if self.width > WIDEST:
            raise UsageError(
                f"a picture's vector would have {self.width:,} numbers, at most {WIDEST:,} are; fewer words or boxes"
            )

    # -- sizes --------------------------------------------------------------------------------------------------------

    def planes(self, one: Descriptor) -> int:
        return 1 if one.space == "grey" else 3

    def length(self, one: Descriptor) -> int:
        """Numbers of a descriptor before its projection."""
        return self.planes(one) * (one.sizes[0] ** 2 if one.kind == "patches" else LENGTHS[one.kind])

    def scales(self, one: Descriptor) -> list[tuple[int, int, int]]:
        """Of each size, in the order of `grid`: pixels of a frame, and how many rows and columns of frames there are.
        `UsageError` where a picture is too small for one of them."""
        height, width = self.preprocess.size
        found = []
        for size in one.sizes:
            extent = ENDS[one.kind][0] * size + ENDS[one.kind][1]
            if min(height, width) < extent:
                raise UsageError(
                    f"{one.kind} of size {size} covers {extent} × {extent} pixels, but pictures are prepared to "
                    f"{height} × {width}; make them larger (preprocess.size) or the sizes smaller"
                )
            found.append((extent, *((side - extent) // one.step + 1 for side in (height, width))))
        return found

    def frames(self, one: Descriptor) -> int:
        """Descriptors of a picture; errors as for `scales`."""
        return sum(rows * columns for _, rows, columns in self.scales(one))

    def projected(self, one: Descriptor) -> int:
        """Numbers of a descriptor after its projection."""
        return min(one.project, self.length(one)) if one.project > 0 else self.length(one)

    @property
    def width(self) -> int:
        """Numbers of a picture's vector."""
        total = 0
        for one in self.classical.descriptors:
            for name in self.classical.encoders:
                fisher = 2 * self.projected(one) * self.classical.gaussians
                total += len(self.boxes) * (fisher if name == "fisher" else self.classical.words)
        return total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that is learnt."""
        shapes, classical = dict[str, tuple[int, ...]](), self.classical
        for i, one in enumerate(classical.descriptors):
            d = self.projected(one)
            if one.project:
                shapes |= {f"{i}.mean": (self.length(one),), f"{i}.matrix": (self.length(one), d)}
            for what in {VOCABULARY[name] for name in classical.encoders}:
                if what == "mixture":
                    k = classical.gaussians
                    shapes |= {f"{i}.weights": (k,), f"{i}.means": (k, d), f"{i}.variances": (k, d)}
                else:
                    shapes[f"{i}.{what}"] = (classical.words, d)
        return shapes

    # -- from pictures ------------------------------------------------------------------------------------------------

    def grid(self, images: Tensor, kind: int) -> Grid:
        """The descriptors of number `kind`, as they are encoded; before anything is learnt, as `learn` takes them."""
        one = self.classical.descriptors[kind]
        images = descriptors.planes(images, one.space)
        grids = []
        for size in one.sizes:
            if one.kind == "sift":
                window = "flat" if one.flat else "gaussian"
                grids.append(descriptors.sift(images, step=one.step, bin_size=size, window=window, root=one.root))
            elif one.kind == "hog":
                grids.append(descriptors.hog(images, step=one.step, cell=size))
            elif one.kind == "lbp":
                grids.append(descriptors.lbp(images, step=one.step, side=size))
            else:
                grids.append(descriptors.patches(images, step=one.step, side=size))
        found = descriptors.joined(grids)
        projection = self._projection(kind)
        if projection is not None:
            found = found._replace(vectors=projection.apply(found.vectors))
        if one.unit and (projection is not None or not one.project):
            found = found._replace(vectors=functional.normalize(found.vectors, dim=2))
        return found

    def vectors(self, images: Tensor) -> Tensor:
        """float32 [B, width], few pictures at a time: their descriptors are many."""
        classical = self.classical
        most = max(self.frames(one) * self.length(one) for one in classical.descriptors)
        encoders = [[self.encoder(i, name) for name in classical.encoders] for i in range(len(classical.descriptors))]
        rows = []
        for some in images.split(max(1, PART // most)):
            found = self._encoded(some, encoders)
            if classical.mirror:
                found = found.add_(self._encoded(some.flip(-1), encoders)).div_(2)
            rows.append(found)
        return torch.cat(rows) if rows else images.new_zeros(0, self.width, dtype=torch.float32)

    def _encoded(self, images: Tensor, encoders: list[list[Encoder | Fisher]]) -> Tensor:
        parts, classical = [], self.classical
        for i, mine in enumerate(encoders):
            grid = self.grid(images, i)
            for encoder in mine:
                pooled = "average" if isinstance(encoder, Fisher) else classical.pooling
                options = {"pooling": pooled, "power": classical.power, "norm": classical.norm}
                parts.append(encode(encoder, grid, regions=self.boxes, **options))
        return torch.cat(parts, 1)

    def _projection(self, kind: int) -> Projection | None:
        mean = self.tensors.get(f"{kind}.mean")
        return None if mean is None else Projection(mean, self.tensors[f"{kind}.matrix"])

    def encoder(self, kind: int, name: str) -> Encoder | Fisher:
        """The encoder called `name` over what was learnt of descriptors of number `kind`."""
        classical = self.classical
        if name == "fisher":
            parts = (self.tensors[f"{kind}.{part}"] for part in ("weights", "means", "variances"))
            return Fisher(Mixture(*parts, likelihood=0.0))
        table = self.tensors[f"{kind}.{VOCABULARY[name]}"]
        if name == "hard":
            return Hard(table)
        if name == "triangle":
            return Triangle(table)
        if name == "llc":
            return LocalityConstrained(table, classical.neighbours)
        return MatchingPursuit(table, classical.sparsity) if name == "omp" else Lasso(table, classical.penalty)

    # -- learnt -------------------------------------------------------------------------------------------------------

    def learn(self, kind: int, sample: Tensor, seed: int, progress: Progress) -> dict[str, Tensor]:
        """What belongs to descriptors of number `kind`, from some that are not projected, float32 [N, D]."""
        classical, one = self.classical, self.classical.descriptors[kind]
        found = dict[str, Tensor]()
        if one.project:
            made = (
                vocabulary.zca(sample, EPSILON)
                if one.project < 0
                else vocabulary.pca(sample, self.projected(one), whiten=True)
            )
            found |= {"mean": made.mean, "matrix": made.matrix}
            sample = made.apply(sample)
            if one.unit:
                sample = functional.normalize(sample)
        for what in dict.fromkeys(VOCABULARY[name] for name in classical.encoders):
            show = progress(f"learning {what} of {one.kind}")
            if what == "centres":
                batch = 0 if len(sample) <= 1 << 15 else 1 << 13
                found[what] = vocabulary.kmeans(
                    sample, classical.words, seed=seed, iterations=classical.passes, batch=batch, progress=show
                ).centres
            elif what == "mixture":
                mixture = vocabulary.mixture(
                    sample, classical.gaussians, seed=seed, iterations=classical.passes, progress=show
                )
                found |= {"weights": mixture.weights, "means": mixture.means, "variances": mixture.variances}
            else:
                sparse: dict[str, Any] = (
                    {"sparsity": classical.sparsity} if "omp" in classical.encoders else {"penalty": classical.penalty}
                )
                found[what] = vocabulary.dictionary(
                    sample, classical.words, seed=seed, iterations=classical.passes, progress=show, **sparse
                )
        return {f"{kind}.{key}": tensor for key, tensor in found.items()}

    def machine(
        self, x: Tensor, y: Tensor, classes: int, seed: int, progress: Callable[[int], None], start: Start | None = None
    ) -> Machine:
        """The machine of the recipe, fitted to vectors [N, width] and labels int64 [N] or float [N, K]. start: where a
        linear one begins and ends."""
        own = self.classical
        if own.machine == "forest":
            return machines.forest(x, y, classes, trees=own.trees, seed=seed, progress=progress)
        if own.machine == "kernel":
            return machines.kernel_svm(x, y, classes, strength=own.strength, kernel=own.kernel, progress=progress)
        fit = machines.linear_svm if own.machine == "svm" else machines.logistic
        options = {"standardise": own.standardise, "additive": own.additive, "progress": progress, "start": start}
        return fit(x, y, classes, strength=own.strength, **options)

    def to(self, device: str | torch.device) -> Pipeline:
        moved = {key: tensor.to(device) for key, tensor in self.tensors.items()}
        return Pipeline(self.classical, self.preprocess, moved)


def checked(pipeline: Pipeline, tensors: Mapping[str, Tensor], name: str) -> Pipeline:
    """The pipeline with what was learnt; `StorageError` names the file `name` and what does not fit."""
    shapes = pipeline.shapes
    if tensors.keys() != shapes.keys():
        raise StorageError(f"{name}: expected the tensors {sorted(shapes)}, received {str(sorted(tensors))[:200]}")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shapes[key]:
            raise StorageError(
                f"{name}: {key}: expected torch.float32 {shapes[key]}, received {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise StorageError(f"{name}: {key}: not finite")
        if key.endswith((".weights", ".variances")) and not bool((tensor > 0).all()):
            raise StorageError(f"{name}: {key}: expected numbers above zero")
    return Pipeline(pipeline.classical, pipeline.preprocess, tensors)
