"""The command `opsin`: one function per command, named as the library's function that it calls.

Results go to stdout, everything else to stderr. Nothing here imports torch, numpy or Pillow before a command needs it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from opsin import __version__
from opsin.console import Console, percent, printable
from opsin.errors import BadInput, DataError, GateNotMet, OpsinError, StorageError, UsageError, near

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.classifier import Classifier, Prediction
    from opsin.data.index import Index
    from opsin.recipe import Recipe
    from opsin.run import Run

EPILOGUE = """\
Exit codes:
  0    done
  1    another error
  2    wrong usage
  3    a problem with the pictures
  4    a quality that was asked for was not reached
  5    the loss became NaN or infinite; the last good checkpoint is kept
  130  interrupted (143: terminated); saved, opsin resume goes on

Environment:
  OPSIN_HOME         folder whose data/ holds downloaded data sets (else
                     $XDG_CACHE_HOME/opsin, else ~/.cache/opsin)
  OPSIN_OFFLINE=1    download nothing
  OPSIN_MALLOC=off   leave the memory allocator as it is
  NO_COLOR           no colours
  OPSIN_TRACEBACK=1  shows where an error arose"""

app = App(
    name="opsin",
    help="Image classification: pictures in, a trained, measured, usable classifier out.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
data_app = App(name="data", help="List the named data sets, or show one.", help_epilogue="", sort_key=8)
app.command(data_app)


def _command(order: int, usage: str, name: str | None = None) -> Any:
    """Decorator: a command in its place in the list, with its usage line."""
    return app.command(name=name, sort_key=order, usage=f"Usage: opsin {usage} [OPTIONS]", help_epilogue="")


MAX_SPLITS = 1 << 29  # bytes of a splits.json
STDIN = "<stdin>"  # what a lone dash becomes, which cyclopts would take for an option

# What several commands take
RunFolder = Annotated[Path, Parameter(help="Folder of a run, or the classifier/ folder in it.")]
DataDir = Annotated[
    str,
    Parameter(name="--data-dir", help="Folder of a named data set that is not in the cache.", show_default=False),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, mps, or auto: the best that is there.")]
OnBadImage = Annotated[
    Literal["error", "skip"],
    Parameter(
        name="--on-bad-image", help="What an unreadable picture does: end in an error, or be counted and left out."
    ),
]
Split = Annotated[
    Literal["train", "val", "test", "all"] | None,
    Parameter(help="Part of the data. Default: test; all for what has no parts and was not trained on."),
]
Json = Annotated[bool, Parameter(name="--json", show_default=False, help="One JSON object on stdout.")]
Quiet = Annotated[bool, Parameter(show_default=False, help="Nothing on stderr but warnings and errors.")]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@_command(1, "train [DATA]")
def train(
    data: Annotated[
        str,
        Parameter(help="Name of a data set (opsin data list), a folder of class folders, a CSV/TSV/list, or a tar."),
    ] = "digits",
    /,
    *,
    recipe: Annotated[
        str | None,
        Parameter(help="Name, FILE.toml or FILE.py:FUNCTION. Default: derived from the data and said in words."),
    ] = None,
    model: Annotated[str | None, Parameter(help="Network (opsin models) in place of the recipe's.")] = None,
    epochs: Annotated[int | None, Parameter(help="Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, Parameter(help="Pictures in a step.")] = None,
    lr: Annotated[float | None, Parameter(help="Learning rate.")] = None,
    seed: Annotated[int | None, Parameter(help="Of everything random.")] = None,
    data_dir: DataDir = "",
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1, mps or auto.")] = None,
    weights: Annotated[str | None, Parameter(help="Weights file to start from, .safetensors or of torch.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the run. Default: a new one in runs/.")] = None,
    max_minutes: Annotated[float | None, Parameter(help="Stop training, and evaluate, after so long.")] = None,
    min_top1: Annotated[
        float | None,
        Parameter(name="--min-top1", help="Exit with 4 when a smaller fraction than this is right, as 0.9."),
    ] = None,
    on_bad_image: Annotated[
        Literal["error", "skip"] | None,
        Parameter(
            name="--on-bad-image", help="What an unreadable picture does: error (default), or skip: counted, left out."
        ),
    ] = None,
    settings: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            help="KEY=VALUE, any field of the recipe, as optimizer.lr=0.2. Repeatable.",
            n_tokens=1,
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = (),
    dry_run: Annotated[
        bool, Parameter(show_default=False, help="Check everything, print the whole recipe as TOML, train nothing.")
    ] = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train a classifier, measure it, and leave everything in a run folder."""
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise UsageError(f"--min-top1: expected a fraction between 0 and 1, such as 0.9, received {min_top1}")
    from opsin import run as runs

    reporter = Console(quiet=quiet)
    try:
        run = runs.train(
            data,
            recipe=recipe,
            model=model,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            data_dir=data_dir,
            device=device,
            weights=weights,
            out=out,
            max_minutes=max_minutes,
            on_bad_image=on_bad_image,
            settings=settings,
            dry_run=dry_run,
            reporter=reporter,
        )
    finally:
        reporter.finish()
    if run.report is None:  # a dry run
        _show_recipe(run.recipe, json_)
        return
    _show_run(run, json_)
    reached = run.report.top1
    if min_top1 is not None and reached < min_top1:
        raise GateNotMet(
            f"{percent(reached)} of the pictures are named rightly; --min-top1 asked for {percent(min_top1)}"
        )


@_command(2, "resume RUN")
def resume(
    run: Annotated[Path, Parameter(help="Folder of a run that was interrupted.")],
    /,
    *,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Go on with an interrupted training, to the very weights that it would have reached uninterrupted."""
    from opsin import run as runs

    reporter = Console(quiet=quiet)
    try:
        done = runs.resume(run, reporter=reporter)
    finally:
        reporter.finish()
    _show_run(done, json_)


def _show_recipe(recipe: Recipe, as_json: bool) -> None:
    from opsin.recipe import to_dict, to_toml

    if as_json:
        _print_json(to_dict(recipe))
    else:
        print(to_toml(recipe), end="")


def _show_run(run: Run, as_json: bool) -> None:
    assert run.report is not None
    page, classifier, report = run.folder / "report.html", run.folder / "classifier", run.report.to_dict()
    if as_json:
        where = {"run": str(run.folder), "report_html": str(page), "classifier": str(classifier)}
        _print_json({**where, "report": report})
        return
    _print_report(report)
    print(f"report      {page}")
    print(f"classifier  {classifier}")


# ---------------------------------------------------------------------------------------------------------------------
# Using a classifier
# ---------------------------------------------------------------------------------------------------------------------


@_command(3, "evaluate RUN [DATA]")
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        Parameter(
            help="Data set, folder, CSV/TSV/list or tar with the same classes. Default: what the run was trained on."
        ),
    ] = None,
    /,
    *,
    split: Split = None,
    data_dir: DataDir = "",
    device: Device = "auto",
    batch_size: Annotated[int, Parameter(help="Pictures at once; the result does not depend on it.")] = 256,
    on_bad_image: OnBadImage = "error",
    out: Annotated[Path | None, Parameter(help="Folder for report.json and report.html.")] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Measure a classifier: errors, intervals, confusion, calibration."""
    from opsin import classifier as classifiers
    from opsin import report as reports
    from opsin.evaluate import evaluate as evaluate_index

    reporter = Console(quiet=quiet)
    try:
        classifier = classifiers.load(run, _device(device))
        index = _index(run, data, split, data_dir, on_bad_image, reporter)
        report = evaluate_index(
            classifier,
            index,
            batch_size=batch_size,
            progress=reporter.counter("evaluating"),
            on_bad_image=on_bad_image,
        )
    finally:
        reporter.finish()
    if out is not None:
        reports.write(out, report, pictures=index.image, title=f"Evaluation of {run}")
    if json_:
        _print_json(report.to_dict())
        return
    _print_report(report.to_dict())
    if out is not None:
        print(f"report      {out / 'report.html'}")


@_command(4, "predict RUN PICTURES...")
def predict(
    run: RunFolder,
    /,
    *pictures: Annotated[
        str,
        Parameter(help="Files, folders (with all in them), quoted patterns, or - for one picture's bytes on stdin."),
    ],
    top: Annotated[int, Parameter(help="Classes to name for each picture, best first.")] = 5,
    json_: Json = False,
    csv_: Annotated[bool, Parameter(name="--csv", show_default=False, help="Comma-separated lines on stdout.")] = False,
    sheet: Annotated[Path | None, Parameter(help="HTML page to write: the pictures with their names.")] = None,
    on_bad_image: OnBadImage = "error",
    device: Device = "auto",
    batch_size: Annotated[int, Parameter(help="Pictures at once.")] = 64,
    quiet: Quiet = False,
) -> int:
    """Name what is in pictures. An unreadable one is said on stderr, and the others are still named.

    Put -- before a file whose name begins with a dash.
    """
    from opsin import classifier as classifiers
    from opsin import report as reports
    from opsin.data.sandbox import Decoders

    if json_ and csv_:
        raise UsageError("--json and --csv: choose one")
    if top < 1:
        raise UsageError(f"--top: expected at least 1, received {top}")
    if not pictures:
        raise UsageError("predict: no pictures given; name files, folders, quoted patterns, or - for stdin")
    reporter = Console(quiet=quiet)
    classifier = classifiers.load(run, _device(device))
    bad: list[dict[str, str]] = []

    def skip(key: str, reason: str) -> None:
        bad.append({"key": key, "reason": reason})
        reporter.warn(f"{key}: {reason}")

    keys: list[str] = []
    images: list[Path | bytes] = []
    for argument in pictures:
        try:
            for key, image in _pictures(argument):
                keys.append(key)
                images.append(image)
        except BadInput as error:
            skip(error.path, error.reason)

    answers: list[tuple[int, list[Prediction]]] = []  # place in `images`, what is in it; kept only where needed
    read = 0
    write = _PredictionWriter("csv" if csv_ else "text")
    with Decoders(min(2, len(images))) as decoders:
        batches = classifiers.prepared_batches(
            classifier,
            images,
            batch_size=batch_size,
            workers=2,
            skipped=lambda place, error: skip(keys[place], error.reason),
            decoders=decoders,
        )
        for places, prepared in batches:
            read += len(places)
            for place, named in zip(places, _best(classifier, prepared, top), strict=True):
                if json_ or sheet is not None:
                    answers.append((place, named))
                if not json_:
                    write(keys[place], named)
    if json_:
        rows = [{"key": keys[place], "predictions": [p._asdict() for p in named]} for place, named in answers]
        _print_json({"predictions": rows, "unreadable": bad})
    if sheet is not None:
        reports.write_sheet(
            sheet,
            [keys[place] for place, _ in answers],
            [named for _, named in answers],
            lambda i: classifiers.read_picture(images[answers[i][0]], keys[answers[i][0]]),
            unreadable=[f"{item['key']}: {item['reason']}" for item in bad],
        )
        reporter.say(f"sheet: {sheet}")
    return DataError.exit_code if bad and (on_bad_image == "error" or not read) else 0


@_command(5, "features RUN DATA --at STAGE -o FILE.npz")
def features(
    run: RunFolder,
    data: Annotated[str, Parameter(help="Data set, folder of class folders, CSV/TSV/list, or tar.")],
    /,
    *,
    at: Annotated[str, Parameter(help="Stage of the network (opsin models NAME lists them).")],
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="File .npz to write: vectors, labels, keys, classes.")],
    maps: Annotated[bool, Parameter(show_default=False, help="Keep the maps; by default they are averaged.")] = False,
    split: Split = None,
    data_dir: DataDir = "",
    device: Device = "auto",
    on_bad_image: OnBadImage = "error",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Save what a stage of the network makes of each picture, as arrays that numpy.load reads without pickle."""
    import numpy as np

    from opsin import classifier as classifiers
    from opsin import storage

    if out.suffix != ".npz":
        raise UsageError(f"--out: expected a name that ends in .npz, received {out}")
    reporter = Console(quiet=quiet)
    try:
        classifier = classifiers.load(run, _device(device))
        index = _index(run, data, split, data_dir, on_bad_image, reporter)
        vectors = classifiers.features(classifier, index, at, maps=maps).numpy()
    finally:
        reporter.finish()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        vectors=vectors,
        labels=np.asarray(index.labels),
        keys=np.array(list(index.keys), dtype=np.str_),
        classes=np.array(list(index.classes), dtype=np.str_),
    )
    storage.write_file(out, buffer.getvalue())
    if index.skipped:
        reporter.warn(f"pictures left out: {len(index.skipped)}; the first: {index.skipped[0]}")
    if json_:
        _print_json({"file": str(out), "at": at, "shape": list(vectors.shape), "dtype": str(vectors.dtype)})
    else:
        print(f"{out}  vectors {' × '.join(map(str, vectors.shape))}")


@_command(6, "import FILE --model NAME --preprocess KIND -o FOLDER", "import")
def import_weights(
    file: Annotated[
        Path,
        Parameter(help="Weights that another program trained: .safetensors, or a torch file (read as tensors only)."),
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="Network (opsin models) that they belong to.")],
    preprocess: Annotated[
        Literal["imagenet", "cifar10", "none"],
        Parameter(help="Whose mean and deviation it was trained with; none: pixels / 255."),
    ],
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="Classifier folder to write.")],
    classes: Annotated[
        str | None,
        Parameter(help="File with a name a line, or a data set. Default: cifar10 where it fits, else numbers."),
    ] = None,
    settings: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            help="OPTION=VALUE of the network, as shortcut=B. Repeatable.",
            n_tokens=1,
            metavar="OPTION=VALUE",
            show_default=False,
        ),
    ] = (),
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Make a classifier folder of weights that another program trained."""
    from opsin import models as networks
    from opsin import preprocess as values
    from opsin import recipe
    from opsin import run as runs
    from opsin.models import weights

    entry = networks.entry(model)
    options: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set: expected option=value, received {setting!r}")
        options = recipe.override(options, key, text)
    count, channels = weights.classes_and_channels(weights.load_foreign(file), model)
    mean, std = {
        "imagenet": (values.IMAGENET_MEAN, values.IMAGENET_STD),
        "cifar10": (values.CIFAR10_MEAN, values.CIFAR10_STD),
        "none": ((0.0,) * channels, (1.0,) * channels),
    }[preprocess]
    if len(mean) != channels:
        raise UsageError(f"--preprocess {preprocess}: for colour, but these weights take {channels} channel; use none")
    size = (entry.native_size, entry.native_size)
    # Networks of ImageNet's size are published for the centre 224 of a shorter side of 256.
    fraction = 0.875 if preprocess == "imagenet" and entry.native_size == 224 else 1.0
    prepare = values.Preprocess(size=size, channels=channels, mean=mean, std=std, crop_fraction=fraction)
    reporter = Console(quiet=quiet)
    names = _class_names(classes, count, model, reporter)
    _, notes = runs.import_weights(file, model, prepare, out, names, **options)
    for note in notes:
        reporter.say(note)
    if json_:
        _print_json({"classifier": str(out), "classes": list(names), "notes": notes})
    else:
        print(f"classifier  {out}")


def _class_names(given: str | None, count: int, model: str, reporter: Console) -> tuple[str, ...]:
    """The names of `count` classes: from a file, from a data set, or the likely ones, which is then said."""
    from opsin.data.datasets import DATASETS
    from opsin.models import entry

    if given is None:
        likely = "cifar10" if count == 10 and entry(model).native_size == 32 and entry(model).channels == 3 else None
        reporter.say(f"classes: taken to be {likely or 'numbers'}; --classes says otherwise")
        return DATASETS[likely].classes if likely else tuple(map(str, range(count)))
    if given in DATASETS:
        names = DATASETS[given].classes
    else:
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--classes: {given} is no data set and cannot be read as a file: {error}") from error
        names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise UsageError(f"--classes: these weights have {count} classes, {given} names {len(names)}")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------------------------------------------------


@_command(7, "models [NAME]")
def models(
    name: Annotated[str | None, Parameter(help="Show this one: its options, stages and shapes.")] = None,
    /,
    *,
    json_: Json = False,
) -> None:
    """List the networks, or show one."""
    from opsin.models import MODELS

    if name is not None:
        _show_model(name, json_)
    elif json_:
        _print_json({name: _plain(entry) for name, entry in MODELS.items()})
    else:
        rows = [
            (name, entry.year, f"{entry.params:,}", entry.native_size, entry.least_size, entry.paper)
            for name, entry in MODELS.items()
        ]
        _print_table(("name", "year", "parameters", "size", "least", "paper"), rows, right=(1, 2, 3, 4))


def _show_model(name: str, as_json: bool) -> None:
    import torch

    from opsin import models as networks

    entry = networks.entry(name)
    with torch.device("meta"):  # shapes without arithmetic
        net = networks.build(name, entry.classes, entry.channels).eval()
        images = torch.empty(1, entry.channels, entry.native_size, entry.native_size)
        stages = []
        for stage, module in net.get_submodule("stages").named_children():
            shape = list(net.features(images, stage).shape[1:])
            stages.append({"name": stage, "shape": shape, "parameters": sum(p.numel() for p in module.parameters())})
        head = sum(p.numel() for p in net.get_submodule("head").parameters())
        stages.append({"name": "head", "shape": list(net(images).logits.shape[1:]), "parameters": head})
    options = networks.options(name)
    if as_json:
        _print_json({"name": name, **_plain(entry), "options": options, "stages": stages})
        return
    print(f"{name}: {entry.summary} ({entry.paper})")
    side = f"{entry.native_size}×{entry.native_size}"
    print(f"{entry.params:,} parameters, {entry.million_macs:,} million multiply-adds for {side}×{entry.channels}")
    print(f"least size {entry.least_size}×{entry.least_size}")
    if options:
        print("options: " + ", ".join(f"{key}={value!r}" for key, value in options.items()))
    print()
    rows = [(s["name"], " × ".join(map(str, s["shape"])), f"{s['parameters']:,}") for s in stages]
    _print_table(("stage", "output", "parameters"), rows, right=(2,))


@data_app.command(name="list", usage="Usage: opsin data list [OPTIONS]")
def data_list(*, json_: Json = False) -> None:
    """List the data sets that have a name."""
    from opsin.data.datasets import DATASETS

    if json_:
        _print_json({name: _plain(info) for name, info in DATASETS.items()})
        return
    rows = [
        (name, f"{info.size[0]}×{info.size[1]}×{info.channels}", len(info.classes), _text(info.splits), info.title)
        for name, info in DATASETS.items()
    ]
    _print_table(("name", "size", "classes", "pictures", "title"), rows, right=(2,))


@data_app.command(name="show", usage="Usage: opsin data show DATA [OPTIONS]")
def data_show(
    name: Annotated[
        str, Parameter(help="Name of a data set, a folder of class folders, a CSV/TSV/list, or a tar of class folders.")
    ],
    /,
    *,
    json_: Json = False,
) -> None:
    """Show one data set: its pictures and classes; of a named one, where it comes from and is looked for."""
    from opsin.data.datasets import DATASETS, cache_folder

    if name not in DATASETS and os.path.exists(name):
        _show_own_data(name, json_)
        return
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}, and no such folder or file; {near(name, DATASETS)}")
    info, cache = DATASETS[name], cache_folder(name)
    if json_:
        _print_json({"name": name, **_plain(info), "cache": str(cache)})
        return
    print(f"{name}: {info.title}\n{info.summary}")
    print(f"pictures  {_text(info.splits)}; {info.size[0]}×{info.size[1]}, {info.channels} channels")
    print(f"classes   {len(info.classes)}: {', '.join(info.classes)}")
    print(f"home      {info.homepage}\nterms     {info.terms}")
    if info.files:
        print(f"cache     {cache}{'' if cache.exists() else ' (not there yet; the first training downloads it)'}")
    for file in info.files:
        print(f"file      {file.name}, {file.size:,} bytes, MD5 {file.md5}")
        for url in file.urls:
            print(f"          {url}")


@data_app.command(name="check", usage="Usage: opsin data check DATA [OPTIONS]")
def data_check(
    data: Annotated[str, Parameter(help="Folder of pictures, or name of a data set.")],
    /,
    *,
    data_dir: DataDir = "",
    quiet: Quiet = False,
    json_: Json = False,
) -> int:
    """Read and decode every picture, and list those that are unreadable or damaged. Exit code 3 when there are any."""
    from opsin.data import datasets

    reporter = Console(quiet=quiet)
    try:
        health = datasets.check(data, data_dir=data_dir, progress=reporter.counter(f"checking {data}"))
    finally:
        reporter.finish()
    if json_:
        rows = [{"file": bad.path, "reason": bad.reason} for bad in health.bad]
        formats = {name or "unknown": n for name, n in health.formats.items()}
        counts = {"pictures": health.pictures, "formats": formats, "ignored": list(health.ignored)}
        _print_json({"data": data, **counts, "bad": rows})
    else:
        if health.bad:
            _print_table(("file", "reason"), [(bad.path, bad.reason) for bad in health.bad], fold=True)
            print()
        formats = ", ".join(f"{name or 'unknown'} {n:,}" for name, n in health.formats.items())
        print(f"looked at   {health.pictures:,} pictures: {formats}")
        print(f"unusable    {len(health.bad):,}" if health.bad else "unusable    none")
        if health.ignored:
            print(
                f"passed over {len(health.ignored):,} (no picture by the name; the first: {_cell(health.ignored[0])})"
            )
    return DataError.exit_code if health.bad else 0


def _show_own_data(name: str, as_json: bool) -> None:
    """How many pictures of each class each part has; no picture is opened."""
    import numpy as np

    from opsin.data.datasets import scan_parts

    parts = scan_parts(name)
    classes = next(iter(parts.values())).classes
    counts = {part: np.bincount(index.labels, minlength=len(classes)).tolist() for part, index in parts.items()}
    ignored = [file for index in parts.values() for file in index.ignored]
    if as_json:
        splits = {part: len(index) for part, index in parts.items()}
        of_class = {part: dict(zip(classes, numbers, strict=True)) for part, numbers in counts.items()}
        _print_json(
            {"name": name, "splits": splits, "classes": list(classes), "pictures": of_class, "ignored": ignored}
        )
        return
    rows = [(shown, *(numbers[k] for numbers in counts.values())) for k, shown in enumerate(classes)]
    rows.append((f"{len(classes)} classes", *map(len, parts.values())))
    _print_table(("class", *parts), rows, right=range(1, len(parts) + 1))
    if ignored:
        print(f"not used: {len(ignored)} other files, the first: {printable(ignored[0])}")


@_command(9, "doctor")
def doctor(*, json_: Json = False) -> int:
    """Say what this machine has, and what is broken and how to mend it. Exit code 1 when something is broken."""
    from opsin import doctor as examination
    from opsin.data.datasets import cache_folder

    findings = examination.examine(cache_folder("digits").parent)
    if json_:
        _print_json(examination.to_dict(findings))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = {"ok": "", "warning": "warning: ", "broken": "BROKEN: "}[finding.state]
            print(f"{finding.name:{width}}  {mark}{printable(finding.value)}")
            if finding.fix:
                print(f"{'':{width}}  → {finding.fix}")
    return int(any(finding.state == "broken" for finding in findings))


# ---------------------------------------------------------------------------------------------------------------------
# Finding and naming pictures
# ---------------------------------------------------------------------------------------------------------------------


def _device(name: str) -> str:
    from opsin.device import choose

    return str(choose(name))


def _index(
    run: Path, data: str | None, split: str | None, data_dir: str, on_bad_image: str, reporter: Console
) -> Index:
    """The pictures that `evaluate` and `features` mean, by the rules in the help of `--split`."""
    from opsin.data import datasets
    from opsin.data.index import WHOLE, in_splits

    recipe = _recipe_of(run)
    if recipe is None and data is None:
        raise UsageError(f"{run} does not say what it was trained on; name the data: opsin evaluate RUN DATA")
    own = "" if recipe is None else recipe.data.name
    data = own if data is None else data
    same, seed = _same_data(data, own), 0
    if recipe is not None and same:
        # The very pictures that the run read, so that no training picture slips into the test part.
        data_dir, seed, on_bad_image = data_dir or recipe.data.data_dir, recipe.seed, recipe.data.on_bad_image
    if same or data in datasets.DATASETS:
        splits = datasets.load(
            data, data_dir=data_dir, seed=seed, on_bad_image=on_bad_image, progress=reporter.counter(f"reading {data}")
        )
    else:
        # Not `load`: what is only to be evaluated needs no training part.
        splits = datasets.read_parts(data, on_bad_image=on_bad_image, progress=reporter.counter(f"reading {data}"))
        if WHOLE in splits and split is None:
            reporter.say(f"{data} has no train/, val/ or test/: all of its pictures are taken")
            return splits[WHOLE]
        if WHOLE in splits and split != "all":
            splits = in_splits(splits, data, seed)
    part = split or "test"
    if part == "all":
        return _join(list(splits.values()))
    keys = _listed(run, part) if same else None
    if keys is not None:
        whole = _join(list(splits.values()))
        places = {key: i for i, key in enumerate(whole.keys)}
        gone = [key for key in keys if key not in places]
        if gone:
            raise DataError(
                f"{len(gone)} pictures of this run's {part} part are no longer in {data}; the first: {gone[0]}"
            )
        return whole.subset([places[key] for key in keys])
    if part not in splits:
        raise UsageError(f"{data} has no part {part!r}; it has: {', '.join(splits)}")
    return splits[part]


def _listed(run: Path, part: str) -> list[str] | None:
    """The names of the pictures of a part, where the run wrote them down (`splits.json`)."""
    from opsin.data.index import read

    for path in (run / "splits.json", run.resolve().parent / "splits.json"):
        if path.is_file():
            return _keys(read(path, MAX_SPLITS), path, part)
    return None


def _keys(data: bytes, path: Path, part: str) -> list[str] | None:
    """The names listed for a part in the bytes of a `splits.json`; None where it lists none."""
    from opsin.storage import read_json

    listed = read_json(data, path, MAX_SPLITS)
    of_part = listed.get(part, {}) if isinstance(listed, dict) else None
    keys = of_part.get("keys") if isinstance(of_part, dict) else ...
    if keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        return keys
    raise StorageError(f"{path}: expected the names of the pictures of each part")


def _join(parts: Sequence[Index]) -> Index:
    """The pictures of several parts of one data set, one part after the other."""
    import numpy as np

    from opsin.data.index import Index

    class Joined:
        def __init__(self, places: Sequence[tuple[Index, int]]) -> None:
            self.places = places

        def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
            part, place = self.places[i]
            return part.image(place, min_size)

        def data(self, i: int) -> bytes:
            part, place = self.places[i]
            return part.source.data(place)

        def name(self, i: int) -> str:
            part, place = self.places[i]
            return part.source.name(place)

        def subset(self, indices: np.ndarray) -> Joined:
            return Joined([self.places[i] for i in indices])

    keys = [key for part in parts for key in part.keys]
    source = Joined([(part, i) for part in parts for i in range(len(part))])
    return Index(
        keys,
        np.concatenate([part.labels for part in parts]),
        parts[0].classes,
        source,
        sum((part.skipped for part in parts), ()),
    )


def _same_data(one: str, other: str) -> bool:
    return one == other or bool(
        other and os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    )


def _recipe_of(run: Path) -> Recipe | None:
    """The recipe of a run folder, given as itself or by its classifier/ folder; None where there is none."""
    from opsin.recipe import from_toml

    for path in (run / "recipe.toml", run.resolve().parent / "recipe.toml"):
        if path.is_file():
            return from_toml(path.read_text(encoding="utf-8"), str(path))
    return None


def _best(classifier: Classifier, prepared: Tensor, top: int) -> list[list[Prediction]]:
    """The `top` most probable classes of each picture of a batch."""
    from opsin import metrics
    from opsin.classifier import Prediction, check_probabilities

    rows = classifier.probabilities(prepared).cpu()
    check_probabilities(rows, len(prepared), len(classifier.classes), "predict")
    return [
        [Prediction(classifier.classes[label], label, row[label]) for label in labels]
        for row, labels in zip(rows.tolist(), metrics.ranking(rows, top).tolist(), strict=True)
    ]


def _pictures(argument: str) -> Iterator[tuple[str, Path | bytes]]:
    """(key, picture) of one argument of `predict`; `BadInput` when it names nothing."""
    import glob

    from opsin.data.index import EXTENSIONS, MAX_FILE_BYTES

    path = Path(argument)
    if argument == STDIN:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadInput(argument, f"more than {MAX_FILE_BYTES} bytes")
        yield argument, data
    elif path.is_dir():
        found = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
        )
        if not found:
            raise BadInput(path, f"no pictures in this folder; looked for {', '.join(sorted(EXTENSIONS))}")
        yield from ((str(p), p) for p in found)
    elif path.exists() or not glob.has_magic(argument):
        if not path.exists():
            raise BadInput(path, "no such file or folder")
        yield str(path), path
    else:
        names = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        if not names:
            raise BadInput(argument, "the pattern matches no file")
        yield from ((name, Path(name)) for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass of a table as what JSON can hold."""
    return json.loads(json.dumps(asdict(value), default=dict))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)


def _print_report(report: Mapping[str, Any]) -> None:
    low, high = report["top1_interval"]
    right = report["n"] - report["num_wrong"]
    interval = f"95 % interval {percent(low)} to {percent(high)}"
    print(f"right       {percent(report['top1'])}  ({right:,} of {report['n']:,}; {interval})")
    if len(report["classes"]) > 5:
        print(f"among 5     {percent(report['top5'])}")
    print(f"nll         {report['nll']:.4f} nats a picture")
    print(f"calibration {percent(report['calibration_error'])} error")
    if report.get("skipped"):
        print(f"left out    {len(report['skipped'])}, because they could not be read")


def _print_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = (), fold: bool = False
) -> None:
    """Fitted to a terminal, and plain aligned columns elsewhere. fold: no cell is cut; it takes as many lines as it
    needs, or makes its line longer."""
    cells = [[_cell(_text(cell) if not isinstance(cell, int) else str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich import box
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(
                name,
                justify="right" if i in right else "left",
                no_wrap=i < len(header) - 1 and not fold,
                overflow="fold" if fold else "ellipsis",
            )
        for row in cells:
            table.add_row(*map(Text, row))
        Terminal().print(table)
        return
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    widths = [min(width, 60) for width in widths] if fold else widths  # one name of 255 letters moves its own line only
    for row in [list(header), *cells]:
        line = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(line).rstrip())


def _cell(text: str) -> str:
    """One line, whatever the name of a file holds."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


class _PredictionWriter:
    """Writes the predictions of one picture after the other to stdout, as text or as CSV."""

    def __init__(self, form: str) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
        if self._csv:
            self._csv.writerow(("picture", "rank", "class", "label", "probability"))

    def __call__(self, key: str, named: Sequence[Prediction]) -> None:
        if self._csv:
            for rank, p in enumerate(named, 1):
                row = (safe_cell(key), rank, safe_cell(p.name), p.label, f"{p.probability:.6f}")
                self._csv.writerow(row)
            return
        answers = (f"{percent(p.probability):>8}  {printable(p.name)}" for p in named)
        print(f"{printable(key)}\n  " + "\n  ".join(answers))


def safe_cell(text: str) -> str:
    """A CSV cell that a spreadsheet shows instead of running it as a formula.

    >>> safe_cell("=1+1"), safe_cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


# ---------------------------------------------------------------------------------------------------------------------
# Starting and ending
# ---------------------------------------------------------------------------------------------------------------------


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are said on stderr in one line."""
    try:
        answer = app(
            [STDIN if argument == "-" else argument for argument in arguments],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
            end_of_options_delimiter="--",
        )
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except CycloptsError as error:
        _complain(f"{error} (opsin {_named(arguments)}--help says more)")
        return UsageError.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Nothing is wrong; the descriptor must only not be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 128 + signal.SIGINT
    except (OpsinError, OSError) as error:
        if os.environ.get("OPSIN_TRACEBACK"):
            raise
        _complain(str(error))
        return error.exit_code if isinstance(error, OpsinError) else OpsinError.exit_code


def _named(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments and arguments[0] in app else ""


def _complain(text: str) -> None:
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)


def main() -> NoReturn:
    """The command `opsin`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    sys.exit(call(sys.argv[1:]))
