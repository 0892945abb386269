"""The layout of tensors is never one that the machine's convolutions crash in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opsin import device, models, recipes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("width", "last"), [(4, False), (7, False), (8, True), (64, True)])
def test_narrow_strided_projections_keep_the_ordinary_layout(width: int, last: bool) -> None:
    """torch 2.13 writes beyond its memory in their gradient; tests/unit/test_hub.py trains one as narrow."""
    recipe = recipes.find("small")
    with torch.device("meta"):
        net = models.build("resnet18", 2, width=width)
    assert device.channels_last(recipe, CPU, net) is last
    assert device.channels_last(replace(recipe, channels_last="on"), CPU, net) is last
    assert not device.channels_last(replace(recipe, channels_last="off"), CPU, net)
    assert device.channels_last(recipe, torch.device("cuda"), net)
