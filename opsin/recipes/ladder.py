"""Short trainings of four more networks on CIFAR-10, each meant for half an hour on two slow cores.

One cycle of the rate over all passes, momentum 0.9, pad 4 and crop, mirror, all 50,000 training pictures, the last
epoch reported. The passes are far fewer than the papers', and decay and dropout are chosen for that. preresnet20 with
6 passes: 83.52 % after 27 minutes on one core (1 seed, LOG.md). The others have not been run yet.
"""

from __future__ import annotations

from opsin import models
from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import SGD, Augment, CrossEntropy, Data, ModelSpec, Recipe
from opsin.schedule import OneCycle


def _short(
    model: ModelSpec,
    epochs: int,
    *,
    batch: int = 128,
    lr: float = 0.1,
    clip: float = 0.0,
) -> Recipe:
    return Recipe(
        data=Data(name="cifar10", batch_size=batch),
        model=model,
        preprocess=Preprocess(size=(32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augment=Augment(shift=4, padding="zero", flip="random"),
        optimizer=SGD(lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=OneCycle(peak=0.3),
        loss=CrossEntropy(aux_weights=models.entry(model.name).aux_weights),
        epochs=epochs,
        clip=clip,
    )


def nin_cifar() -> Recipe:
    """Network in Network. It has no normalisation: gradients are clipped, which lets it take a rate five times higher.

    Dropout is .1 where the paper has .5: in so few passes it learns too little, not too much by heart.

    opsin train cifar10 --recipe nin_cifar
    """
    return _short(ModelSpec(name="nin_cifar", options={"dropout": 0.1}), 5, batch=64, lr=0.05, clip=1.0)


def googlenet_cifar() -> Recipe:
    """GoogLeNet for small pictures, the losses of its auxiliary heads weighted .3 (Szegedy et al. 2014, section 5).

    opsin train cifar10 --recipe googlenet_cifar
    """
    return _short(ModelSpec(name="googlenet_cifar"), 6)


def preresnet20() -> Recipe:
    """Pre-activation ResNet-20.

    opsin train cifar10 --recipe preresnet20
    """
    return _short(ModelSpec(name="preresnet20"), 12)


def wrn16_2() -> Recipe:
    """Wide ResNet of depth 16, twice as wide.

    opsin train cifar10 --recipe wrn16_2
    """
    return _short(ModelSpec(name="wrn16_2"), 7)
