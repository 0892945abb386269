"""The recipes of the 2017 PaddlePaddle chapter "Image classification", as it writes them.

Batch 128, momentum 0.9, rate 0.1, L2 2·10⁻⁴ on the mean loss, × 0.1 every 5,000,000 samples, 200 passes, pixels / 255,
no augmentation, all 50,000 training pictures, the last pass reported. The published result is 8.54 % test error.
We have run two passes of each VGG-16: `chapter_vgg16_v010` is nearer to the log that the chapter prints (LOG.md).
"""

from __future__ import annotations

from dataclasses import replace

from opsin.preprocess import Preprocess
from opsin.recipe import SGD, Augment, Data, ModelSpec, Recipe
from opsin.schedule import DiscreteExponential


def chapter_vgg16() -> Recipe:
    """The chapter's VGG-16 with momentum and L2, as its text and code ask for.

    opsin train cifar10 --recipe chapter_vgg16
    """
    return Recipe(
        data=Data(name="cifar10", batch_size=128),
        model=ModelSpec(name="vgg16_cifar"),
        preprocess=Preprocess(size=(32, 32)),
        augment=Augment(),
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=2e-4),
        schedule=DiscreteExponential(a=0.1, b=5_000_000),
        epochs=200,
    )


def chapter_vgg16_v010() -> Recipe:
    """The same as PaddlePaddle 0.10, the release of the chapter's day, ran it: it ignored the momentum and the L2 that
    the program asked for, so this is plain gradient descent at 0.1.

    opsin train cifar10 --recipe chapter_vgg16_v010
    """
    return replace(chapter_vgg16(), optimizer=SGD(lr=0.1, momentum=0.0, weight_decay=0.0))


def chapter_resnet() -> Recipe:
    """The chapter's ResNet, depth 32 (its default) or another: --set model.options.depth=56. Not run by us yet.

    opsin train cifar10 --recipe chapter_resnet
    """
    return replace(chapter_vgg16(), model=ModelSpec(name="resnet_chapter", options={"depth": 32}))
