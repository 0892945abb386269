from __future__ import annotations

import pytest
import torch
from torch import nn

from opsin import models
from opsin.optim import build as build_optimizer
from opsin.recipe import SGD, AdamW, BinaryCrossEntropy, CrossEntropy
from opsin.recipes import find
from opsin.recipes.derive import Facts, derive

GREY = {"channels": 1, "mean": (0.3,), "std": (0.3,)}
COLOUR = {"channels": 3, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def facts(n, height, width, mirror, **colours):
    return Facts("x", n, 10, height, width, mirror=mirror, **colours)


def test_the_named_recipe_is_what_cifar10_derives():
    recipe = find("small")
    assert recipe.data.name == "cifar10" and recipe.preprocess.size == (32, 32)
    assert recipe.augment.flip == "alternating" and recipe.augment.sizes[-1][1] == 32
    assert recipe.data.validation == 0 and recipe.stop.patience == 0


def test_characters_are_not_mirrored_and_tiny_pictures_keep_their_shape():
    recipe, words = derive(facts(1437, 8, 12, False, **GREY))
    assert recipe.preprocess.size == (16, 24) and not recipe.augment.flip
    assert any("enlarged to 16×24" in line for line in words) and any("not mirrored" in line for line in words)


def test_photographs_are_reduced_for_the_small_network_and_left_native_for_others():
    assert derive(facts(300, 375, 500, True, **COLOUR))[0].preprocess.size == (64, 64)
    assert derive(facts(300, 375, 500, True, **COLOUR), "resnet18")[0].preprocess.size == (224, 224)


@pytest.mark.parametrize("n", [3, 40, 1_000, 50_000, 5_000_000])
@pytest.mark.parametrize("model", ["smallnet", "lenet", "resnet20", "googlenet_cifar"])
def test_every_derived_recipe_fits_its_network(n, model):
    """Groups name parameters that exist; a pass has a batch; there are neither too few nor too many."""
    recipe, words = derive(facts(n, 20, 20, True, **COLOUR), model)
    assert 5 <= recipe.epochs <= 60 and recipe.data.batch_size >= 16 and len(words) >= 1
    net = models.build(model, 10, **recipe.model.options)
    build_optimizer(net, recipe.optimizer)
    heads = len(net.train()(torch.zeros(2, 3, 28, 28)).aux)
    assert len(recipe.loss.aux_weights) == heads == (2 if model == "googlenet_cifar" else 0)


def test_networks_without_normalisation_are_not_given_plain_descent():
    """At its usual rates they diverge, or crawl."""
    for model in ("alexnet_cifar", "nin_cifar", "vgg11", "googlenet", "googlenet_cifar", "vgg16_cifar"):
        with torch.device("meta"):
            normal = any(isinstance(m, nn.BatchNorm2d) for m in models.build(model, 10).modules())
        recipe = derive(facts(1000, 32, 32, True, **COLOUR), model)[0]
        assert isinstance(recipe.optimizer, SGD if normal else AdamW)


def test_many_labels_are_learnt_by_sigmoids_and_that_is_said():
    recipe, words = derive(facts(300, 32, 32, True, **COLOUR)._replace(many_labels=True), "googlenet_cifar")
    assert isinstance(recipe.loss, BinaryCrossEntropy) and len(recipe.loss.aux_weights) == 2
    assert any("many labels" in line and "sigmoid" in line for line in words)
    assert isinstance(derive(facts(300, 32, 32, True, **COLOUR))[0].loss, CrossEntropy)


def test_large_pictures_of_many_labels_are_shown_larger_and_nothing_is_cut_off():
    large = facts(300, 480, 640, True, **COLOUR)._replace(many_labels=True)
    recipe, words = derive(large)
    assert recipe.preprocess.size == (96, 128) and recipe.preprocess.crop == "squash"
    assert any("scaled to 96×128, nothing cut off" in line for line in words)
    recipe, words = derive(large, "resnet18")
    assert recipe.preprocess.size == (224, 224) and not any("centre" in line for line in words)
    assert derive(large._replace(many_labels=False))[0].preprocess.crop == "crop"
