"""The CIFAR-10 ResNets of He et al. 2015, section 4.2: 64,000 steps of 128, rate 0.1 divided by 10 at 32,000 and
48,000, momentum 0.9, decay 10⁻⁴, pad 4 and crop, mirror. All 50,000 training pictures, the last epoch reported.

Test errors in the paper (table 6): ResNet-20 8.75 %, 32 7.51 %, 44 7.17 %, 56 6.97 %, 110 6.43 %.
164 epochs are 64,124 steps. We have run none of these for all its epochs; ResNet-20 for
45 minutes, 15.6 of 19 epochs: 13.26 % (LOG.md).
"""

from __future__ import annotations

from dataclasses import replace

from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import SGD, Augment, Data, ModelSpec, Recipe
from opsin.schedule import MultiStep


def _resnet(name: str) -> Recipe:
    return Recipe(
        data=Data(name="cifar10", batch_size=128),
        model=ModelSpec(name=name),
        preprocess=Preprocess(size=(32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augment=Augment(shift=4, padding="zero", flip="random"),
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=MultiStep(milestones=(0.5, 0.75), gamma=0.1),
        epochs=164,
    )


def resnet20() -> Recipe:
    """opsin train cifar10 --recipe resnet20"""
    return _resnet("resnet20")


def resnet32() -> Recipe:
    """opsin train cifar10 --recipe resnet32"""
    return _resnet("resnet32")


def resnet44() -> Recipe:
    """opsin train cifar10 --recipe resnet44"""
    return _resnet("resnet44")


def resnet56() -> Recipe:
    """opsin train cifar10 --recipe resnet56"""
    return _resnet("resnet56")


def resnet110() -> Recipe:
    """With a rate that starts low, as the paper found necessary (section 4.2); here a warm-up of 1 % of the training.

    opsin train cifar10 --recipe resnet110
    """
    return replace(_resnet("resnet110"), schedule=MultiStep(milestones=(0.5, 0.75), gamma=0.1, warmup=0.01))
