"""The networks of the golden files, declared through opsin.v2 from their published structure.

Each function declares its data layers and returns (outputs, extra layers) as a trainer is given them. Structure: the
papers, with the sizes, names and order of the model collection of 2017 where it differs from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import opsin.v2 as paddle
from opsin.v2 import layer, networks
from opsin.v2.graph import Layer

Relu, Linear, Softmax = paddle.activation.Relu, paddle.activation.Linear, paddle.activation.Softmax
Max, Avg, Extra = paddle.pooling.Max, paddle.pooling.Avg, paddle.attr.Extra
Declared = tuple[list[Layer], list[Layer]]


def picture(size: int) -> Layer:
    return layer.data("image", paddle.data_type.dense_vector(3 * size * size))


def label(classes: int, name: str = "label") -> Layer:
    return layer.data(name, paddle.data_type.integer_value(classes))


def channels(x: Layer) -> int:
    return 3 if x.kind == "data" else x.size // (x.height * x.width)


def conv(x: Layer, filters: int, size: int | Sequence[int], **options) -> Layer:
    return layer.img_conv(x, size, filters, num_channels=channels(x), **options)


def conv_bn(x: Layer, filters, size, stride=1, padding=0, act=None, name=None, bias=False, groups=1) -> Layer:
    x = conv(x, filters, size, name=name, stride=stride, padding=padding, act=Linear(), bias_attr=bias, groups=groups)
    return layer.batch_norm(x, act, name=name and f"{name}_norm")


def pool(
    x: Layer, size: int, stride: int, kind: paddle.pooling.Base, padding: int = 0, name: str | None = None
) -> Layer:
    return layer.img_pool(x, size, name=name, num_channels=channels(x), pool_type=kind, stride=stride, padding=padding)


def classify(x: Layer, classes: int, name: str | None = None) -> Layer:
    return layer.fc(x, classes, Softmax(), name=name)


def chapter_vgg() -> Declared:
    x = picture(32)
    for filters, drops in (
        (64, [0.3, 0]),
        (128, [0.4, 0]),
        (256, [0.4, 0.4, 0]),
        (512, [0.4, 0.4, 0]),
        (512, [0.4, 0.4, 0]),
    ):
        x = networks.img_conv_group(
            input=x,
            num_channels=channels(x),
            pool_size=2,
            pool_stride=2,
            conv_num_filter=[filters] * len(drops),
            conv_filter_size=3,
            conv_act=Relu(),
            conv_with_batchnorm=True,
            conv_batchnorm_drop_rate=drops,
            pool_type=Max(),
        )
    x = layer.dropout(input=x, dropout_rate=0.5)
    x = layer.fc(input=x, size=512, act=Linear())
    x = layer.batch_norm(input=x, act=Relu(), layer_attr=Extra(drop_rate=0.5))
    x = classify(layer.fc(input=x, size=512, act=Linear()), 10)
    return [layer.classification_cost(x, label(10))], []


def resnet_of_cifar(x: Layer, depth: int, *, always: bool = False, shortcut_first: bool = False) -> Layer:
    """He et al. 2015 §4.2, with projections where the width changes, or (as the chapter has it) in every block."""
    x = conv_bn(x, 16, 3, 1, 1)
    for filters in (16, 32, 64):
        for i in range((depth - 2) // 6):
            stride = 2 if i == 0 and filters > 16 else 1

            def shortcut(x: Layer = x, filters: int = filters, stride: int = stride) -> Layer:
                return conv_bn(x, filters, 1, stride, 0, Linear()) if always or channels(x) != filters else x

            short = shortcut() if shortcut_first else None
            body = conv_bn(conv_bn(x, filters, 3, stride, 1), filters, 3, 1, 1, Linear())
            x = layer.addto([body, shortcut()] if short is None else [short, body], Relu())
    return pool(x, 8, 1, Avg())


def resnet32() -> Declared:
    x = classify(resnet_of_cifar(picture(32), 32), 10)
    return [layer.classification_cost(x, label(10))], []


def resnet_seed_56() -> Declared:
    x = classify(resnet_of_cifar(picture(32), 56, always=True), 10)
    return [layer.classification_cost(x, label(10))], []


def resnet_cifar10() -> Declared:
    image, truth = picture(32), label(102)
    x = classify(resnet_of_cifar(image, 32, shortcut_first=True), 102)
    return [layer.classification_cost(x, truth)], []


def digits_cnn() -> Declared:
    x = layer.data("pixel", paddle.data_type.dense_vector(784))
    truth = label(10)
    for filters, planes in ((20, 1), (50, 20)):
        x = networks.simple_img_conv_pool(
            input=x,
            filter_size=5,
            num_filters=filters,
            num_channel=planes,
            pool_size=2,
            pool_stride=2,
            act=Relu(),
        )
    return [layer.classification_cost(classify(x, 10), truth)], []


def alexnet() -> Declared:
    image, truth = picture(224), label(102)
    x = conv(image, 96, 11, stride=4, padding=1)
    x = pool(layer.img_cmrnorm(x, size=5, scale=0.0001, power=0.75), 3, 2, Max())
    x = conv(x, 256, 5, padding=2)
    x = pool(layer.img_cmrnorm(x, size=5, scale=0.0001, power=0.75), 3, 2, Max())
    for filters in (384, 384, 256):
        x = conv(x, filters, 3, padding=1)
    x = pool(x, 3, 2, Max())
    for _ in range(2):
        x = layer.fc(x, 4096, Relu(), layer_attr=Extra(drop_rate=0.5))
    return [layer.classification_cost(classify(x, 102), truth)], []


def vgg16() -> Declared:
    image, truth = picture(224), label(102)
    return [layer.classification_cost(networks.vgg_16_network(image, 3, 102), truth)], []


def resnet_imagenet() -> Declared:
    image, truth = picture(224), label(102)
    x = pool(conv_bn(image, 64, 7, 2, 3), 3, 2, Max())
    for filters, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            stride = 2 if i == 0 and filters > 64 else 1
            short = conv_bn(x, filters * 4, 1, stride, 0, Linear()) if i == 0 else x
            body = conv_bn(conv_bn(x, filters, 1, stride), filters, 3, 1, 1)
            x = layer.addto([short, conv_bn(body, filters * 4, 1, 1, 0, Linear())], Relu())
    x = classify(pool(x, 7, 1, Avg()), 102)
    return [layer.classification_cost(x, truth)], []


def resnext_50() -> Declared:
    image, truth = picture(224), label(102)
    x = pool(conv_bn(image, 64, 7, 2, 3, name="conv0", bias=True), 3, 2, Max(), name="resnext_pool0")
    for stage, (filters, blocks) in enumerate(((128, 3), (256, 4), (512, 6), (1024, 3)), 1):
        for i in range(blocks):
            stride = 2 if i == 0 and stage > 1 else 1
            name = f"conv{stage}_{i}"
            body = conv_bn(x, filters, 1, name=f"{name}_0", bias=True)
            body = conv_bn(body, filters, 3, stride, 1, name=f"{name}_1", bias=True, groups=32)
            body = conv_bn(body, filters * 2, 1, act=Linear(), name=f"{name}_2", bias=True)
            short = x
            if i == 0:
                short = conv_bn(x, filters * 2, 1, stride, 0, Linear(), f"shortcut_proj_{stage}", bias=True)
            x = layer.addto([body, short], Relu())
    x = classify(pool(x, 7, 1, Avg(), name="resnext_globalpool"), 102, name="resnext_fc")
    return [layer.classification_cost(x, truth)], []


def squeezenet() -> Declared:
    image, truth = picture(224), label(102)
    x = pool(conv(image, 64, 3, stride=2), 3, 2, Max())
    for i, filters in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        x = pool(x, 3, 2, Max()) if i in (2, 4) else x
        x = conv(x, filters, 1, bias_attr=False)
        x = layer.concat([conv(x, filters, 1, bias_attr=False), conv(x, filters, 3, padding=1, bias_attr=False)])
    x = conv(layer.dropout(x, 0.5), 102, 1, bias_attr=False)
    return [layer.classification_cost(classify(x, 102), truth)], []


def googlenet() -> Declared:
    """Szegedy et al. 2014, table 1."""
    image, truth = picture(224), label(102)

    def inception(name: str, x: Layer, f1: int, f3r: int, f3: int, f5r: int, f5: int, proj: int) -> Layer:
        one = conv(x, f1, 1, name=f"{name}_1")
        three = conv(conv(x, f3r, 1, name=f"{name}_3r"), f3, 3, padding=1, name=f"{name}_3")
        five = conv(conv(x, f5r, 1, name=f"{name}_5r"), f5, 5, padding=2, name=f"{name}_5")
        last = conv(pool(x, 3, 1, Max(), 1, name=f"{name}_max"), proj, 1, name=f"{name}_proj")
        return layer.concat([one, three, five, last], name=name)

    def head(number: int, x: Layer) -> Layer:
        x = conv(pool(x, 5, 3, Avg(), name=f"pool_o{number}"), 128, 1, name=f"conv_o{number}")
        x = layer.fc(x, 1024, Relu(), name=f"fc_o{number}", layer_attr=Extra(drop_rate=0.7))
        return classify(x, 102)

    x = pool(conv(image, 64, 7, stride=2, padding=3, name="conv1"), 3, 2, Max(), name="pool1")
    x = conv(conv(x, 64, 1, name="conv2_1"), 192, 3, padding=1, name="conv2_2")
    x = pool(x, 3, 2, Max(), name="pool2")
    x = inception("ince3a", x, 64, 96, 128, 16, 32, 32)
    x = inception("ince3b", x, 128, 128, 192, 32, 96, 64)
    x = pool(x, 3, 2, Max(), name="pool3")
    first = x = inception("ince4a", x, 192, 96, 208, 16, 48, 64)
    x = inception("ince4b", x, 160, 112, 224, 24, 64, 64)
    x = inception("ince4c", x, 128, 128, 256, 24, 64, 64)
    second = x = inception("ince4d", x, 112, 144, 288, 32, 64, 64)
    x = inception("ince4e", x, 256, 160, 320, 32, 128, 128)
    x = pool(x, 3, 2, Max(), name="pool4")
    x = inception("ince5a", x, 256, 160, 320, 32, 128, 128)
    x = inception("ince5b", x, 384, 192, 384, 48, 128, 128)
    x = layer.addto(pool(x, 7, 7, Avg(), name="pool5"), layer_attr=Extra(drop_rate=0.4))
    out = classify(x, 102)
    heads = [head(1, first), head(2, second)]
    extra = [layer.cross_entropy_cost(x, truth, coeff=0.3) for x in heads]
    for x in heads:
        paddle.evaluator.classification_error(input=x, label=truth)
    return [layer.classification_cost(out, truth)], extra


Branch = tuple[int, int | Sequence[int], int]  # filters, size, stride; the padding keeps or halves the picture


def inception_v4() -> Declared:
    """Szegedy et al. 2016, figures 3 to 9, padded everywhere, as the collection has it."""
    image, truth = picture(224), label(102)

    def chain(x: Layer, name: str, *parts: Branch, start: int = 0) -> Layer:
        for i, (filters, size, stride) in enumerate(parts, start):
            padding = [k // 2 for k in size] if isinstance(size, tuple) else size // 2
            x = conv_bn(x, filters, size, stride, padding, name=f"{name}_conv{i}", bias=True)
        return x

    def fork(x: Layer, name: str, start: int) -> list[Layer]:
        """The 1×3 and 3×1 that both take the same input at the end of a branch of figure 6."""
        first, second = ((1, 3), (3, 1)) if start == 1 else ((3, 1), (1, 3))
        return [chain(x, name, (256, first, 1), start=start), chain(x, name, (256, second, 1), start=start + 1)]

    x = chain(image, "stem", (32, 3, 2), (32, 3, 1), (64, 3, 1))
    x = layer.concat([pool(x, 3, 2, Max(), name="stem_branch0_pool0"), chain(x, "stem_branch0", (96, 3, 2))])
    left = chain(x, "stem_branch1_l", (64, 1, 1), (96, 3, 1))
    right = chain(x, "stem_branch1_r", (64, 1, 1), (64, (7, 1), 1), (64, (1, 7), 1), (96, 3, 1))
    x = layer.concat([left, right])
    x = layer.concat([chain(x, "stem_branch2", (192, 3, 2)), pool(x, 3, 2, Max(), name="stem_branch2_pool0")])
    blocks: list[tuple[str, int, int, list[tuple[Branch, ...]]]] = [
        ("inceptA", 4, 96, [((96, 1, 1),), ((64, 1, 1), (96, 3, 1)), ((64, 1, 1), (96, 3, 1), (96, 3, 1))]),
        ("ReductA", 1, 0, [((384, 3, 2),), ((192, 1, 1), (224, 3, 1), (256, 3, 2))]),
        (
            "inceptB",
            7,
            128,
            [
                ((384, 1, 1),),
                ((192, 1, 1), (224, (1, 7), 1), (256, (7, 1), 1)),
                ((192, 1, 1), (192, (1, 7), 1), (224, (7, 1), 1), (224, (1, 7), 1), (256, (7, 1), 1)),
            ],
        ),
        (
            "ReductB",
            1,
            0,
            [((192, 1, 1), (192, 3, 2)), ((256, 1, 1), (256, (1, 7), 1), (320, (7, 1), 1), (320, 3, 2))],
        ),
        ("inceptC", 3, 256, [((256, 1, 1),), ((384, 1, 1),), ((384, 1, 1), (448, (1, 3), 1), (512, (3, 1), 1))]),
    ]
    for kind, times, projection, branches in blocks:
        for i in range(times):
            name = f"{kind}{i}" if projection else kind
            pooled = f"{name}_branch0_pool0"
            if projection:
                ends = [chain(pool(x, 3, 1, Avg(), 1, name=pooled), f"{name}_branch0", (projection, 1, 1))]
            else:
                ends = [pool(x, 3, 2, Max(), name=pooled)]
            for number, parts in enumerate(branches, 1):
                end = chain(x, f"{name}_branch{number}", *parts)
                forked = kind == "inceptC" and number > 1
                ends += fork(end, f"{name}_branch{number}", len(parts)) if forked else [end]
            x = layer.concat(ends)
    x = layer.dropout(pool(x, 7, 1, Avg(), name="incept_avg_pool"), 0.2)
    return [layer.classification_cost(classify(x, 102, name="incept_fc"), truth)], []


def inception_resnet_v2() -> Declared:
    """Szegedy et al. 2016, figure 15, with the widths and the stem of the published weights."""
    image, truth = picture(299), label(102)

    def chain(x: Layer, *parts: tuple[int, int | list[int], int, int | list[int]]) -> Layer:
        for filters, size, stride, padding in parts:
            x = conv_bn(x, filters, size, stride, padding)
        return x

    def residual(x: Layer, ends: list[Layer], scale: float, act: paddle.activation.Base) -> Layer:
        up = conv(layer.concat(ends), channels(x), 1, act=Linear())
        return layer.addto([x, layer.slope_intercept(up, slope=scale, intercept=0.0)], act)

    x = chain(image, (32, 3, 2, 0), (32, 3, 1, 0), (64, 3, 1, 1))
    x = pool(chain(pool(x, 3, 2, Max()), (80, 1, 1, 0), (192, 3, 1, 0)), 3, 2, Max())
    x = layer.concat(
        [
            chain(x, (96, 1, 1, 0)),
            chain(x, (48, 1, 1, 0), (64, 5, 1, 2)),
            chain(x, (64, 1, 1, 0), (96, 3, 1, 1), (96, 3, 1, 1)),
            chain(pool(x, 3, 1, Avg(), 1), (64, 1, 1, 0)),
        ]
    )
    for _ in range(10):
        third = (32, 1, 1, 0), (48, 3, 1, 1), (64, 3, 1, 1)
        ends = [chain(x, (32, 1, 1, 0)), chain(x, (32, 1, 1, 0), (32, 3, 1, 1)), chain(x, *third)]
        x = residual(x, ends, 0.17, Relu())
    ends = [chain(x, (384, 3, 2, 0)), chain(x, (256, 1, 1, 0), (256, 3, 1, 1), (384, 3, 2, 0)), pool(x, 3, 2, Max())]
    x = layer.concat(ends)
    for _ in range(20):
        ends = [chain(x, (192, 1, 1, 0)), chain(x, (128, 1, 1, 0), (160, [7, 1], 1, [3, 0]), (192, [1, 7], 1, [0, 3]))]
        x = residual(x, ends, 0.1, Relu())
    ends = [chain(x, (256, 1, 1, 0), (384, 3, 2, 0)), chain(x, (256, 1, 1, 0), (288, 3, 2, 0))]
    ends += [chain(x, (256, 1, 1, 0), (288, 3, 1, 1), (320, 3, 2, 0)), pool(x, 3, 2, Max())]
    x = layer.concat(ends)
    for i in range(10):
        ends = [chain(x, (192, 1, 1, 0)), chain(x, (192, 1, 1, 0), (224, [3, 1], 1, [1, 0]), (256, [1, 3], 1, [0, 1]))]
        x = residual(x, ends, 0.2 if i < 9 else 1.0, Relu() if i < 9 else Linear())
    x = layer.dropout(pool(chain(x, (1536, 1, 1, 0)), 8, 1, Avg()), 0.5)
    return [layer.classification_cost(classify(x, 102), truth)], []


# Name of the golden file → (declaration, whether `init(use_gpu=True)` came before it, whether it was given to a trainer
# with Momentum(.9) and L2 .0256).
GOLDEN: dict[str, tuple[Callable[[], Declared], bool, bool]] = {
    "vgg": (chapter_vgg, False, True),
    "resnet32": (resnet32, False, True),
    "resnetseed56": (resnet_seed_56, False, True),
    "digits_cnn": (digits_cnn, False, False),
    "alexnet": (alexnet, True, False),
    "vgg16": (vgg16, True, False),
    "resnet_imagenet": (resnet_imagenet, True, False),
    "resnet_cifar10": (resnet_cifar10, True, False),
    "googlenet": (googlenet, True, False),
    "inception_v4": (inception_v4, True, False),
    "inception_resnet_v2": (inception_resnet_v2, True, False),
    "resnext_50": (resnext_50, True, False),
    "squeezenet": (squeezenet, True, False),
}
