"""Memory layout of a training step: [B, C, H, W] against [B, H, W, C]; decides what `channels_last = "auto"` means.

python benchmarks/bench_layout.py [--rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import common
import torch
from torch.nn import functional

from opsin import device, models

CASES = {"smallnet": (250, 32), "vgg16_cifar": (64, 32), "resnet20": (128, 32), "resnet56": (64, 32)}


def step(name: str, layout: torch.memory_format, batch: int, side: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = models.build(name, 10).to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=layout)
    labels = torch.arange(batch) % 10

    def run() -> None:
        functional.cross_entropy(model(images).logits, labels).backward()
        model.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device.tune()
    rows = []
    for name, (batch, side) in CASES.items():
        layouts = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}
        sides = {label: step(name, layout, batch, side) for label, layout in layouts.items()}
        for number, seconds in enumerate(common.alternate(sides, options.rounds), 1):
            first, last = seconds["channels_first"], seconds["channels_last"]
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "side": side,
                    "round": number,
                    "channels_first_seconds": round(first, 4),
                    "channels_last_seconds": round(last, 4),
                    "speedup": round(first / last, 4),
                }
            )
        print(f"{name:>12}: {common.median([r['speedup'] for r in rows[-options.rounds :]]):.2f}× with channels last")
    common.write("layout", rows)


if __name__ == "__main__":
    main()
