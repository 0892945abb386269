"""Short trainings of four more networks on CIFAR-10, each meant for half an hour on two slow cores.

One cycle of the rate over all passes, pad and crop, mirror, all 50,000 training pictures, the last epoch reported. The
passes are far fewer than the papers', and dropout, the optimiser and growing pictures are meant for that; Muon was
taken for the training loss of the first 150 to 220 steps. What each reached stands in LOG.md.
"""

from __future__ import annotations

from opsin import models
from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import SGD, Augment, CrossEntropy, Data, ModelSpec, Muon, Optimizer, Recipe
from opsin.schedule import OneCycle

GROWING = ((0.0, 16), (0.5, 24), (0.8, 32))  # half of the steps cost a quarter of one at full size


def _short(
    model: ModelSpec,
    epochs: int,
    optimizer: Optimizer,
    *,
    batch: int = 128,
    schedule: OneCycle | None = None,
    sizes: tuple[tuple[float, int], ...] = GROWING,
) -> Recipe:
    return Recipe(
        data=Data(name="cifar10", batch_size=batch),
        model=model,
        preprocess=Preprocess(size=(32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augment=Augment(shift=2 if sizes else 4, padding="zero", flip="random", sizes=sizes),
        optimizer=optimizer,
        schedule=schedule or OneCycle(peak=0.15, start=0.2),
        loss=CrossEntropy(aux_weights=models.entry(model.name).aux_weights),
        epochs=epochs,
    )


MUON = Muon(lr=0.12, momentum=0.8, sgd_lr=0.1, sgd_momentum=0.9, weight_decay=5e-4)


def nin_cifar() -> Recipe:
    """Network in Network. Without normalisation: after 200 steps SGD stood at a loss of 1.9 to 2.0, Muon at 1.6.

    Dropout is .1 where the paper has .5: in so few passes it learns too little, not too much by heart.

    opsin train cifar10 --recipe nin_cifar
    """
    optimizer = Muon(lr=0.05, momentum=0.9, sgd_lr=0.02, sgd_momentum=0.9)
    return _short(ModelSpec(name="nin_cifar", options={"dropout": 0.1}), 3, optimizer, batch=64)


def googlenet_cifar() -> Recipe:
    """GoogLeNet for small pictures, the losses of its auxiliary heads weighted .3 (Szegedy et al. 2014, section 5).

    opsin train cifar10 --recipe googlenet_cifar
    """
    return _short(ModelSpec(name="googlenet_cifar"), 3, MUON)


def preresnet20() -> Recipe:
    """Pre-activation ResNet-20.

    opsin train cifar10 --recipe preresnet20
    """
    optimizer = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return _short(ModelSpec(name="preresnet20"), 12, optimizer, schedule=OneCycle(peak=0.3), sizes=())


def wrn16_2() -> Recipe:
    """Wide ResNet of depth 16, twice as wide.

    opsin train cifar10 --recipe wrn16_2
    """
    return _short(ModelSpec(name="wrn16_2"), 4, MUON)
