"""Random forests (Breiman 2001): scikit-learn grows them, arrays hold them, and all trees are asked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin.errors import StorageError, UsageError

ASKED = 1 << 22  # places in trees that are followed at once: pictures × trees
DEPTH = 1000  # of a tree, at most


class Trees(NamedTuple):
    """The nodes of T trees, one tree after the other, each node before its children. M nodes, L leaves that differ.

    A picture goes left where its feature is at most the threshold. A leaf is its own child on both sides. The trees
    are G groups of as many each, and of G · V classes a group knows V: (1, K) for one label a picture, (K, 1) for many.
    """

    feature: Tensor  # int32 [M]
    threshold: Tensor  # float32 [M]
    left: Tensor  # int32 [M]
    right: Tensor  # int32 [M]
    leaf: Tensor  # int32 [M]: its row of `values`; 0 of a node that is none
    roots: Tensor  # int32 [T]
    values: Tensor  # float32 [L, V]: which part of the leaf's pictures was of each class
    groups: Tensor  # int32 [1]: G

    def scores(self, x: Tensor) -> Tensor:
        """float32 [B, D] to the mean over trees of their leaves' parts, float32 [B, K]."""
        rows = max(1, ASKED // len(self.roots))
        return torch.cat([self._scores(block) for block in x.float().split(rows)])

    def _scores(self, x: Tensor) -> Tensor:
        node = self.roots.long().expand(len(x), -1)
        while True:  # a child is behind its parent, so this ends
            below = torch.where(
                x.gather(1, self.feature[node].long()) <= self.threshold[node], self.left[node], self.right[node]
            )
            if torch.equal(below, node.int()):
                break
            node = below.long()
        found = self.values[self.leaf[node].long()]  # [B, T, V]
        groups = int(self.groups)
        return found.view(len(x), groups, len(self.roots) // groups, self.values.shape[1]).mean(2).flatten(1)


def grow(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    trees: int,
    leaf: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Trees:
    """Trees on bootstraps of the rows, √D features tried at a split, leaves of at least `leaf` pictures.

    y: int64 [N], or float [N, K] of 1, 0, -1: then a forest for each label, of the pictures where it is known.
    """
    vectors = np.ascontiguousarray(x.cpu().float().numpy())
    if y.ndim == 1:
        problems = [(vectors, y.cpu().numpy(), np.arange(num_classes))]
    else:
        labels = y.cpu().numpy()
        known = labels >= 0
        problems = [
            (vectors if known[:, k].all() else vectors[known[:, k]], labels[known[:, k], k] == 1, np.array([1]))
            for k in range(num_classes)
        ]
    found: list[Trees] = []
    for k, (rows, truth, classes) in enumerate(problems):
        if not len(rows):
            raise UsageError(
                f"labels: expected some picture of which it is known whether it has label {k}, received none"
            )
        found.append(_grow(rows, truth, classes, trees, leaf, seed + k))
        if progress is not None:
            progress(k + 1)
    return _joined(found)


def _grow(x: np.ndarray, y: np.ndarray, classes: np.ndarray, trees: int, leaf: int, seed: int) -> Trees:
    from sklearn.ensemble import RandomForestClassifier

    grown = RandomForestClassifier(
        trees, min_samples_leaf=leaf, max_depth=DEPTH, random_state=seed, n_jobs=torch.get_num_threads()
    )
    grown.fit(x, y)
    column = np.searchsorted(grown.classes_, classes)  # a class without a picture is nobody's
    there = np.isin(classes, grown.classes_)
    parts = []
    start = rows = 0
    for estimator in grown.estimators_:
        tree = estimator.tree_
        end = tree.children_left < 0
        own = np.arange(start, start + tree.node_count)
        value = tree.value[end, 0]
        value = value / value.sum(1, keepdims=True)
        values = np.where(there, value[:, np.minimum(column, value.shape[1] - 1)], 0).astype(np.float32)
        values, which = np.unique(values, axis=0, return_inverse=True)  # most leaves are pure
        leaves = np.zeros(tree.node_count, np.int32)
        leaves[end] = rows + which.reshape(-1)
        # The largest float32 that is not above: a float32 is at most the one exactly where it is at most the other.
        threshold = tree.threshold.astype(np.float32)
        threshold = np.where(threshold > tree.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
        parts.append(
            (
                np.where(end, 0, tree.feature),
                np.where(end, 0, threshold),
                np.where(end, own, start + tree.children_left),
                np.where(end, own, start + tree.children_right),
                leaves,
                np.array([start]),
                values,
            )
        )
        start += tree.node_count
        rows += len(values)
    feature, threshold, left, right, leaves, roots, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Trees(
        feature=torch.from_numpy(feature.astype(np.int32)),
        threshold=torch.from_numpy(threshold.astype(np.float32)),
        left=torch.from_numpy(left.astype(np.int32)),
        right=torch.from_numpy(right.astype(np.int32)),
        leaf=torch.from_numpy(leaves.astype(np.int32)),
        roots=torch.from_numpy(roots.astype(np.int32)),
        values=torch.from_numpy(values),
        groups=torch.tensor([1], dtype=torch.int32),
    )


def _joined(forests: list[Trees]) -> Trees:
    """Forests of one group each as the groups of one."""
    nodes = np.cumsum([0] + [len(each.left) for each in forests]).tolist()
    rows = np.cumsum([0] + [len(each.values) for each in forests]).tolist()
    if nodes[-1] >= 2**31:
        raise UsageError("a forest of more than 2³¹ nodes; fewer trees, or leaves of more pictures, would do")
    return Trees(
        feature=torch.cat([each.feature for each in forests]),
        threshold=torch.cat([each.threshold for each in forests]),
        left=torch.cat([each.left + start for each, start in zip(forests, nodes, strict=False)]),
        right=torch.cat([each.right + start for each, start in zip(forests, nodes, strict=False)]),
        leaf=torch.cat([each.leaf + start for each, start in zip(forests, rows, strict=False)]),
        roots=torch.cat([each.roots + start for each, start in zip(forests, nodes, strict=False)]),
        values=torch.cat([each.values for each in forests]),
        groups=torch.tensor([len(forests)], dtype=torch.int32),
    )


def checked(trees: Trees, features: int, name: str) -> Trees:
    """The same, when every vector of so many features finds its way to a leaf; `StorageError` names what is wrong."""
    nodes, own = len(trees.feature), torch.arange(len(trees.feature), device=trees.feature.device)
    many, groups = len(trees.roots), trees.groups.tolist()
    if len(groups) != 1 or groups[0] < 1 or many % groups[0]:
        raise StorageError(f"{name}: groups: expected a number that divides {many} trees, received {str(groups)[:80]}")
    for key in ("threshold", "left", "right", "leaf"):
        if len(getattr(trees, key)) != nodes:
            raise StorageError(f"{name}: {key}: expected {nodes} nodes, received {len(getattr(trees, key))}")
    for key, low, high in (
        ("feature", 0, features),
        ("left", own, nodes),
        ("right", own, nodes),
        ("leaf", 0, len(trees.values)),
        ("roots", 0, nodes),
    ):
        tensor = getattr(trees, key)
        if not bool(((tensor >= low) & (tensor < high)).all()):
            what = (
                "a loop, or a child that is none" if key in ("left", "right") else f"a number that is not below {high}"
            )
            raise StorageError(f"{name}: {key}: {what}")
    if not bool(((trees.left == own) == (trees.right == own)).all()):
        raise StorageError(f"{name}: left, right: a node that is its own child on one side only")
    # Every node but the roots has one parent, and with the ranges above that is what makes trees of them.
    inner = trees.left != own
    children = torch.cat([trees.left[inner], trees.right[inner]]).long()
    parents = torch.bincount(torch.cat([children, trees.roots.long()]), minlength=nodes)
    if not bool((parents == 1).all()):
        raise StorageError(f"{name}: left, right, roots: a node that belongs to no tree, or twice to one")
    level = trees.roots.long()
    for _ in range(DEPTH + 1):
        level = level[inner[level]]
        level = torch.cat([trees.left[level], trees.right[level]]).long()
    if len(level):
        raise StorageError(f"{name}: left, right: a tree of more than {DEPTH} levels")
    if not bool(((trees.values >= 0) & (trees.values <= 1)).all()):
        raise StorageError(f"{name}: values: expected parts, 0 to 1")
    return trees
