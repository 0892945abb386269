"""The chapter's VGG-16 trained through opsin.v2, against the same network trained natively.

    python benchmarks/bench_v2.py [--pairs 9] [--batch 128] [--steps 1]

Both sides do the same arithmetic, each with all that it does for a person: the native one draws uint8 pictures,
normalises, counts errors and reports, as `opsin train` does; v2 makes feeds of rows of samples, keeps the layers'
outputs for `event.gm`, measures and tells an event handler. They run in turn in this process.
The ratio is v2 seconds / native seconds: 1.05 is 5 % more time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import bench_train
import common
import numpy as np

import opsin.v2 as paddle
from opsin import device, recipes
from opsin.v2.graph import Layer


def chapter_vgg() -> Layer:
    """The cost of the chapter's `vgg_bn_drop`."""
    x = paddle.layer.data("image", paddle.data_type.dense_vector(3 * 32 * 32))
    for i, (filters, drops) in enumerate(
        [(64, [0.3, 0]), (128, [0.4, 0]), (256, [0.4, 0.4, 0]), (512, [0.4, 0.4, 0]), (512, [0.4, 0.4, 0])]
    ):
        x = paddle.networks.img_conv_group(
            input=x,
            num_channels=None if i else 3,
            pool_size=2,
            pool_stride=2,
            conv_num_filter=[filters] * len(drops),
            conv_act=paddle.activation.Relu(),
            conv_with_batchnorm=True,
            conv_batchnorm_drop_rate=drops,
        )
    x = paddle.layer.fc(paddle.layer.dropout(x, 0.5), 512, act=paddle.activation.Linear())
    x = paddle.layer.batch_norm(x, act=paddle.activation.Relu(), layer_attr=paddle.attr.Extra(drop_rate=0.5))
    x = paddle.layer.fc(x, 512, act=paddle.activation.Linear())
    out = paddle.layer.fc(x, 10, act=paddle.activation.Softmax())
    return paddle.layer.classification_cost(out, paddle.layer.data("label", paddle.data_type.integer_value(10)))


def declared(batch: int, steps: int) -> Callable[[], None]:
    """A round of `steps` steps through `trainer.SGD`."""
    cost = chapter_vgg()
    rule = paddle.optimizer.Momentum(
        momentum=0.9,
        learning_rate=0.1 / batch,
        regularization=paddle.optimizer.L2Regularization(0.0002 * batch),
        learning_rate_schedule="discexp",
        learning_rate_decay_a=0.1,
        learning_rate_decay_b=5_000_000,
    )
    trainer = paddle.trainer.SGD(cost, paddle.parameters.create(cost), rule)
    generator = np.random.default_rng(0)
    rows = [(generator.random(3 * 32 * 32, np.float32), i % 10) for i in range(batch * steps)]

    def reader() -> Iterator[list[tuple[np.ndarray, int]]]:
        return (rows[start : start + batch] for start in range(0, len(rows), batch))

    def handler(event: object) -> None:
        if isinstance(event, paddle.event.EndIteration):
            assert event.cost > 0 and event.metrics

    return lambda: trainer.train(reader, event_handler=handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1, help="steps in a round")
    options = parser.parse_args()
    device.tune()
    recipe = recipes.find("chapter_vgg16")
    recipe = replace(recipe, data=replace(recipe.data, batch_size=options.batch))
    sides = {"native": bench_train.ours(recipe, options.steps), "v2": declared(options.batch, options.steps)}
    seconds = common.alternate(sides, options.pairs, warmup=2)
    rows = [
        {
            "network": "chapter_vgg16",
            "batch": options.batch,
            "steps": options.steps,
            "pair": pair,
            "native_seconds": round(row["native"], 4),
            "v2_seconds": round(row["v2"], 4),
            "ratio": round(row["v2"] / row["native"], 4),
        }
        for pair, row in enumerate(seconds, 1)
    ]
    ratios = [row["ratio"] for row in rows]
    print(f"chapter_vgg16: median ratio {common.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    common.write("v2", rows)


if __name__ == "__main__":
    main()
