"""The command `opsin`: one function per command, named as the library's function that it calls.

Results go to stdout, everything else to stderr. Nothing here imports torch, numpy or Pillow before a command needs it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from opsin import __version__, chosen
from opsin.console import Console, percent, printable
from opsin.errors import BadInput, DataError, GateNotMet, OpsinError, UsageError, near
from opsin.show import (
    PredictionWriter,
    in_words,
    one_line,
    plain,
    print_album,
    print_figure,
    print_json,
    print_model,
    print_models,
    print_neighbours,
    print_report,
    print_table,
)

if TYPE_CHECKING:
    from opsin.classifier import Prediction
    from opsin.data.datasets import Info
    from opsin.recipe import Recipe
    from opsin.run import Run

SHOWN = 10  # unreadable pictures of a data set, by name
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
data_app = App(name="data", help="List the named data sets, or show one.", help_epilogue="", sort_key=9)
app.command(data_app)


def _command(order: int, usage: str, name: str | None = None) -> Any:
    """Decorator: a command in its place in the list, with its usage line."""
    return app.command(name=name, sort_key=order, usage=f"Usage: opsin {usage} [OPTIONS]", help_epilogue="")


# What several commands take
RunFolder = Annotated[
    Path, Parameter(help="Folder of a run, the classifier/ folder in it, or a shipped classifier: cifar10-small.")
]
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
Csv = Annotated[bool, Parameter(name="--csv", show_default=False, help="Comma-separated lines on stdout.")]
AnyPictures = Annotated[
    str,
    Parameter(help="Data set, folder of class folders or of any pictures, CSV/TSV/list, tar, or a set as published."),
]
AnySplit = Annotated[
    Literal["train", "val", "test", "all"] | None, Parameter(help="Part of the data that has parts. Default: all.")
]
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
    weights: Annotated[
        str | None,
        Parameter(
            help="Weights to start from: a file (.safetensors, or of torch), a folder with timm's config.json, a run "
            "or classifier, or hf:OWNER/NAME."
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the run. Default: a new one in runs/.")] = None,
    max_minutes: Annotated[float | None, Parameter(help="Stop training, and evaluate, after so long.")] = None,
    min_top1: Annotated[
        float | None,
        Parameter(name="--min-top1", help="Exit with 4 when a smaller fraction than this is right, as 0.9."),
    ] = None,
    min_map: Annotated[
        float | None,
        Parameter(
            name="--min-map", help="Of many labels: exit with 4 when the mean average precision is smaller, as 0.8."
        ),
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
    for flag, least in (("--min-top1", min_top1), ("--min-map", min_map)):
        if least is not None and not 0 <= least <= 1:
            raise UsageError(f"{flag}: expected a fraction between 0 and 1, such as 0.9, received {least}")
    if min_top1 is not None and min_map is not None:
        raise UsageError("--min-top1 is for one label a picture, --min-map for many: choose one")
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
            asked="top1" if min_top1 is not None else "map" if min_map is not None else "",
            reporter=reporter,
        )
    finally:
        reporter.finish()
    if run.report is None:  # a dry run
        _show_recipe(run.recipe, json_)
        return
    _show_run(run, json_)
    reached = run.report.to_dict()
    if min_top1 is not None and reached["top1"] < min_top1:
        raise GateNotMet(
            f"{percent(reached['top1'])} of the pictures are named rightly; --min-top1 asked for {percent(min_top1)}"
        )
    if min_map is not None and reached["map"] < min_map:
        raise GateNotMet(f"the mAP is {percent(reached['map'])}; --min-map asked for {percent(min_map)}")


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
        print_json(to_dict(recipe))
    else:
        print(to_toml(recipe), end="")


def _show_run(run: Run, as_json: bool) -> None:
    assert run.report is not None
    page, classifier, report = run.folder / "report.html", run.folder / "classifier", run.report.to_dict()
    if as_json:
        where = {"run": str(run.folder), "report_html": str(page), "classifier": str(classifier)}
        print_json({**where, "report": report})
        return
    print_report(report)
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
    """Measure a classifier: errors, intervals, confusion, calibration; of many labels average precisions."""
    from opsin import classifier as classifiers
    from opsin import report as reports
    from opsin.evaluate import measure

    reporter = Console(quiet=quiet)
    try:
        classifier = classifiers.load(run, _device(device))
        index = chosen.index(run, data, split, data_dir, on_bad_image, reporter)
        report = measure(
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
        print_json(report.to_dict())
        return
    print_report(report.to_dict())
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
    model: Annotated[
        str | None,
        Parameter(help="The classifier, instead of RUN: then all that is named is pictures.", show_default=False),
    ] = None,
    top: Annotated[int, Parameter(help="Classes to name for each picture, best first.")] = 5,
    json_: Json = False,
    csv_: Csv = False,
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

    form = _form(json_, csv_)
    if top < 1:
        raise UsageError(f"--top: expected at least 1, received {top}")
    if model is not None:
        run, pictures = Path(model), (str(run), *pictures)
    if not pictures:
        raise UsageError("predict: no pictures given; name files, folders, quoted patterns, or - for stdin")
    reporter = Console(quiet=quiet)
    classifier = classifiers.load(run, _device(device))
    bad: list[dict[str, str]] = []

    def skip(key: str, reason: str) -> None:
        bad.append({"key": key, "reason": reason})
        reporter.warn(f"{key}: {reason}")

    keys, images = chosen.all_pictures(pictures, skip)
    answers: list[tuple[int, list[Prediction]]] = []  # place in `images`, what is in it; kept only where needed
    read = 0
    write = PredictionWriter(form)
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
            for place, named in zip(places, classifiers.named(classifier, prepared, top, "predict"), strict=True):
                if json_ or sheet is not None:
                    answers.append((place, named))
                if not json_:
                    write(keys[place], named)
    if json_:
        rows = [{"key": keys[place], "predictions": [p._asdict() for p in named]} for place, named in answers]
        print_json({"predictions": rows, "unreadable": bad})
    if sheet is not None:
        reports.write_sheet(
            sheet,
            [
                reports.predictions(
                    [keys[place] for place, _ in answers],
                    [named for _, named in answers],
                    lambda i: classifiers.read_picture(images[answers[i][0]], keys[answers[i][0]]),
                )
            ],
            title="Predictions",
            lead=f"{reports.in_number(len(answers))}, with the most probable classes.",
            unreadable=[f"{item['key']}: {item['reason']}" for item in bad],
        )
        reporter.say(f"sheet: {sheet}")
    return _code(bad, on_bad_image, read)


def _form(as_json: bool, as_csv: bool) -> Literal["json", "csv", "text"]:
    if as_json and as_csv:
        raise UsageError("--json and --csv: choose one")
    return "json" if as_json else "csv" if as_csv else "text"


def _code(bad: Sequence[Any], on_bad_image: str, read: int) -> int:
    """The exit code where bad pictures were named and the others used."""
    return DataError.exit_code if bad and (on_bad_image == "error" or not read) else 0


def _warn_of(bad: Sequence[BadInput], reporter: Console) -> None:
    """Of data that is only looked at: a list may name thousands of files that are not there."""
    for error in bad[:SHOWN]:
        reporter.warn(str(error))
    if len(bad) > SHOWN:
        reporter.warn(f"and {len(bad) - SHOWN:,} more that cannot be read; --json lists them all")


@_command(5, "features RUN DATA --at STAGE -o FILE.npz")
def features(
    run: RunFolder,
    data: Annotated[str, Parameter(help="Data set, folder of class folders, CSV/TSV/list, or tar.")],
    /,
    *,
    at: Annotated[str, Parameter(help="Stage of the network (opsin models NAME lists them).")],
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="File .npz: vectors, labels, keys, classes, at.")],
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

    _check_ending("--out", out, ".npz")
    reporter = Console(quiet=quiet)
    try:
        classifier = classifiers.load(run, _device(device))
        index = chosen.index(run, data, split, data_dir, on_bad_image, reporter)
        vectors = classifiers.features(classifier, index, at, maps=maps).numpy()
    finally:
        reporter.finish()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        vectors=vectors,
        labels=np.asarray(index.labels),
        keys=np.array(list(index.keys), dtype=np.str_),
        at=np.array(at),
        classes=np.array(list(index.classes), dtype=np.str_),
    )
    storage.write_file(out, buffer.getvalue())
    if index.skipped:
        reporter.warn(f"pictures left out: {len(index.skipped)}; the first: {index.skipped[0]}")
    if json_:
        print_json({"file": str(out), "at": at, "shape": list(vectors.shape), "dtype": str(vectors.dtype)})
    else:
        print(f"{out}  vectors {' × '.join(map(str, vectors.shape))}")


@_command(6, "search RUN DATA PICTURES...")
def search(
    run: RunFolder,
    data: AnyPictures,
    /,
    *pictures: Annotated[
        str,
        Parameter(help="To look for: files, folders, quoted patterns, or - for one picture's bytes on stdin."),
    ],
    top: Annotated[int, Parameter(help="Pictures to find for each, nearest first.")] = 10,
    at: Annotated[
        str, Parameter(help="Stage whose features are compared (opsin models NAME). Default: the last.")
    ] = "",
    split: AnySplit = None,
    data_dir: DataDir = "",
    json_: Json = False,
    csv_: Csv = False,
    sheet: Annotated[Path | None, Parameter(help="HTML page to write: each picture with those found.")] = None,
    on_bad_image: OnBadImage = "error",
    device: Device = "auto",
    batch_size: Annotated[int, Parameter(help="Pictures at once.")] = 64,
    quiet: Quiet = False,
) -> int:
    """Find the pictures of DATA that are most like others, by the cosine of their features.

    Every picture is compared. What cannot be read is said on stderr, and the others are still used. Put -- before a
    file whose name begins with a dash.
    """
    from opsin import album
    from opsin import classifier as classifiers
    from opsin import report as reports
    from opsin.data.sandbox import Decoders

    form = _form(json_, csv_)
    if top < 1:
        raise UsageError(f"--top: expected at least 1, received {top}")
    if not pictures:
        raise UsageError("search: no pictures given; name files, folders, quoted patterns, or - for stdin")
    reporter = Console(quiet=quiet)
    bad: list[dict[str, str]] = []

    def skip(key: str, reason: str) -> None:
        bad.append({"key": key, "reason": reason})
        reporter.warn(f"{key}: {reason}")

    found, keys, images = {}, [], []
    try:
        classifier = classifiers.load(run, _device(device))
        keys, images = chosen.all_pictures(pictures, skip)
        index = chosen.any_pictures(data, split, data_dir, reporter)
        bad += [{"key": error.path, "reason": error.reason} for error in index.skipped]
        _warn_of(index.skipped, reporter)
        with Decoders(min(2, len(images))) as decoders:
            found = album.search(
                classifier,
                index,
                images,
                at=at,
                top=top,
                batch_size=batch_size,
                decoders=decoders,
                bad_query=lambda place, error: skip(keys[place], error.reason),
                bad_picture=lambda _, error: skip(error.path, error.reason),
                progress=reporter.counter(f"searching {data}"),
            )
            if sheet is not None:
                groups, hidden = album.neighbours_page(
                    index,
                    keys,
                    lambda i: classifiers.read_picture(images[i], keys[i], (112, 112), decoders),
                    found,
                )
                lead = f"The nearest of {reports.in_number(len(index))}, with the cosine of their features.{hidden}"
                lines = [f"{item['key']}: {item['reason']}" for item in bad]
                reports.write_sheet(sheet, groups, title=f"Like these in {data}", lead=lead, unreadable=lines)
    finally:
        reporter.finish()
    print_neighbours([(keys[i], neighbours) for i, neighbours in found.items()], bad, form)
    if sheet is not None:
        reporter.say(f"sheet: {sheet}")
    return _code(bad, on_bad_image, len(found))


@_command(6, "group RUN DATA")
def group(
    run: RunFolder,
    data: AnyPictures,
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], help="New folder: one for each class, unsure/ for the rest, and album.json."),
    ] = None,
    copy: Annotated[bool, Parameter(show_default=False, help="Fill it with copies.")] = False,
    link: Annotated[
        bool,
        Parameter(show_default=False, help="Fill it with symbolic links, to where the pictures now are (absolute)."),
    ] = False,
    sure: Annotated[
        float | None,
        Parameter(
            help="Probability below which a picture is set apart as unsure. Default: 0.6, which leaves 0.4 to the next "
            "class at most. A classifier for many labels has thresholds, and a picture is in each class that it has.",
        ),
    ] = None,
    split: AnySplit = None,
    data_dir: DataDir = "",
    json_: Json = False,
    csv_: Csv = False,
    sheet: Annotated[Path | None, Parameter(help="HTML page to write: some pictures of each class.")] = None,
    on_bad_image: OnBadImage = "error",
    device: Device = "auto",
    batch_size: Annotated[int, Parameter(help="Pictures at once.")] = 64,
    quiet: Quiet = False,
) -> int:
    """Sort pictures into an album by predicted class, the unsure ones apart. Without -o, only say how.

    The pictures are only read, and nothing is replaced. What cannot be read is said on stderr, and listed.
    """
    from opsin import album as albums
    from opsin import classifier as classifiers
    from opsin import report as reports
    from opsin import storage

    form = _form(json_, csv_)
    if sure is not None and not 0 <= sure <= 1:
        raise UsageError(f"--sure: expected a probability between 0 and 1, such as 0.6, received {sure}")
    if copy and link:
        raise UsageError("--copy and --link: choose one")
    if (out is not None) != (copy or link):
        raise UsageError("an album needs a folder and what to fill it with: -o DIR --copy, or -o DIR --link")
    if out is not None:
        storage.check_new(out)
    reporter = Console(quiet=quiet)
    folders: dict[str, str] = {}
    try:
        classifier = classifiers.load(run, _device(device))
        index = chosen.any_pictures(data, split, data_dir, reporter)
        if link:
            albums.check_linkable(index)
        counter = reporter.counter(f"sorting {data}")
        album = albums.group(classifier, index, sure=sure, batch_size=batch_size, progress=counter)
        if out is not None:
            folders = albums.write(album, out, link=link, progress=reporter.counter(f"writing {out}"))
        _warn_of(album.bad, reporter)
        if sheet is not None:
            groups, hidden = albums.album_page(album)
            lead = f"{reports.in_number(len(index))} of {data} by predicted class.{hidden}"
            reports.write_sheet(sheet, groups, title="Album", lead=lead, unreadable=list(map(str, album.bad)))
    finally:
        reporter.finish()
    print_album(album, folders, out, form)
    if sheet is not None:
        reporter.say(f"sheet: {sheet}")
    return _code(album.bad, on_bad_image, len(album.placed))


@_command(7, "import WEIGHTS -o FOLDER", "import")
def import_weights(
    weights: Annotated[
        str,
        Parameter(
            help="Weights that another program trained: .safetensors, or a torch file (read as tensors only); a folder "
            "with timm's config.json; or hf:OWNER/NAME."
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="Classifier folder to write.")],
    model: Annotated[
        str | None, Parameter(help="Network (opsin models) that they belong to. Default: what a folder says.")
    ] = None,
    preprocess: Annotated[
        Literal["imagenet", "cifar10", "none"] | None,
        Parameter(
            help="Whose mean and deviation it was trained with; none: pixels / 255. Default: what a folder says."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        Parameter(
            help="File with a name a line, or a data set. Default: what a folder says, cifar10 where it fits, or "
            "numbers."
        ),
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
    from opsin import recipe
    from opsin import run as runs

    options: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set: expected option=value, received {setting!r}")
        options = recipe.override(options, key, text)
    names = None if classes is None else _class_names(classes)
    made, notes = runs.import_weights(weights, out, model=model, preprocess=preprocess, classes=names, options=options)
    reporter = Console(quiet=quiet)
    for note in notes:
        reporter.say(note)
    if json_:
        print_json({"classifier": str(out), "classes": list(made.classes), "notes": notes})
    else:
        print(f"classifier  {out}")


def _class_names(given: str) -> tuple[str, ...]:
    """The names of classes from a file or from a data set."""
    from opsin.data.datasets import DATASETS

    if given in DATASETS and DATASETS[given].classes:
        return DATASETS[given].classes
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes: {given} is no data set and cannot be read as a file: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


# ---------------------------------------------------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------------------------------------------------


@_command(8, "models [NAME]")
def models(
    name: Annotated[
        str | None,
        Parameter(help="Show this one: options, stages, shapes. Also inception-module and residual-block."),
    ] = None,
    /,
    *,
    draw: Annotated[Path | None, Parameter(help="File .svg to write: a drawing of NAME from its stages.")] = None,
    history: Annotated[
        Path | None, Parameter(help="File .svg to write: the ImageNet challenge's error, year by year.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the networks, show one, or draw it."""
    from opsin.models import FIGURES, MODELS, entry

    if history is not None and (name is not None or draw is not None):
        raise UsageError("--history draws no network; leave out NAME and --draw")
    if draw is not None and name is None:
        raise UsageError("--draw: of which network? Expected opsin models NAME --draw FILE.svg")
    if name is not None and name not in FIGURES:
        entry(name, also=FIGURES)
    if history is not None or draw is not None:
        _draw(name, draw, history, json_)
    elif name is None and json_:
        print_json({key: plain(value) for key, value in MODELS.items()})
    elif name is None:
        print_models()
    else:
        (print_figure if name in FIGURES else print_model)(name, json_)


def _draw(name: str | None, drawing: Path | None, history: Path | None, as_json: bool) -> None:
    from opsin import draw, storage
    from opsin.models import FIGURES

    if history is not None:
        _check_ending("--history", history, ".svg")
        out, svg = history, draw.history(draw.results())
    else:
        assert drawing is not None and name is not None
        _check_ending("--draw", drawing, ".svg")
        from opsin.models import outline

        out = drawing
        svg = draw.panels(*FIGURES[name], outline.figure(name)) if name in FIGURES else draw.network(outline.of(name))
    storage.write_file(out, svg)
    if as_json:
        print_json({"file": str(out)})
    else:
        print(f"drawing     {one_line(str(out))}")


def _check_ending(flag: str, out: Path, ending: str) -> None:
    if out.suffix != ending:
        raise UsageError(f"{flag}: expected a name that ends in {ending}, received {out}")


@data_app.command(name="list", usage="Usage: opsin data list [OPTIONS]")
def data_list(*, json_: Json = False) -> None:
    """List the data sets that have a name."""
    from opsin.data.datasets import DATASETS

    if json_:
        print_json({name: plain(info) for name, info in DATASETS.items()})
        return
    rows = [
        (name, _size_of(info), info.num_classes, in_words(info.splits), info.title) for name, info in DATASETS.items()
    ]
    print_table(("name", "size", "classes", "pictures", "title"), rows, right=(2,), spare=("size",))


def _size_of(info: Info) -> str:
    return "photographs" if info.size is None else f"{info.size[0]}×{info.size[1]}×{info.channels}"


@data_app.command(name="show", usage="Usage: opsin data show DATA [OPTIONS]")
def data_show(
    name: Annotated[
        str, Parameter(help="Name of a data set, a folder of class folders, a CSV/TSV/list, or a tar of class folders.")
    ],
    /,
    *,
    sheet: Annotated[
        Path | None,
        Parameter(help="HTML page to write: training pictures of each class, before and after augmentation."),
    ] = None,
    seed: Annotated[int, Parameter(help="Of the sheet: which pictures, and how they are augmented.")] = 0,
    data_dir: DataDir = "",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Show one data set: its pictures and classes; of a named one, where it comes from and is looked for.

    With --sheet also some of its pictures, as a training with the derived recipe would see them; nothing is trained.
    """
    _show_data(name, json_)
    if sheet is not None:
        _write_samples(name, sheet, seed, data_dir, Console(quiet=quiet))


def _show_data(name: str, json_: bool) -> None:
    from opsin.data.datasets import DATASETS, cache_folder

    if name not in DATASETS and os.path.exists(name):
        _show_own_data(name, json_)
        return
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}, and no such folder or file; {near(name, DATASETS)}")
    info, cache = DATASETS[name], cache_folder(name)
    if json_:
        print_json({"name": name, **plain(info), "cache": str(cache)})
        return
    print(f"{name}: {info.title}\n{info.summary}")
    print(f"pictures  {in_words(info.splits)}; {_size_of(info)}{'; many labels a picture' if info.many_labels else ''}")
    print(f"classes   {info.num_classes}{': ' if info.classes else ''}{', '.join(info.classes)}")
    print(f"home      {info.homepage}\nterms     {info.terms}")
    if info.files:
        absent = "not there yet; the first training downloads it" if not info.layout else "not there"
        print(f"cache     {cache}{'' if cache.exists() else f' ({absent})'}")
    for file in info.files:
        known = (f"{file.size:,} bytes" if file.size else "", f"MD5 {file.md5}" if file.md5 else "")
        print(f"file      {', '.join(filter(None, (file.name, *known)))}")
        for url in file.urls:
            print(f"          {url}")
    if info.layout:
        print(
            f"Nothing is downloaded: get the files, unpack them, and give --data-dir FOLDER, which holds\n{info.layout}"
        )


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
        print_json({"data": data, **counts, "bad": rows})
    else:
        if health.bad:
            print_table(("file", "reason"), [(bad.path, bad.reason) for bad in health.bad], fold=True)
            print()
        formats = ", ".join(f"{name or 'unknown'} {n:,}" for name, n in health.formats.items())
        print(f"looked at   {health.pictures:,} pictures: {formats}")
        print(f"unusable    {len(health.bad):,}" if health.bad else "unusable    none")
        if health.ignored:
            print(f"passed over {_others(health.ignored)}")
    return DataError.exit_code if health.bad else 0


@data_app.command(name="pack", usage="Usage: opsin data pack DATA -o DIR [OPTIONS]")
def data_pack(
    data: Annotated[str, Parameter(help="Data set, folder, CSV/TSV/list, tar, or a set as published.")],
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="New folder, which then is DATA for every command.")],
    size: Annotated[
        int | None, Parameter(help="Pixels of the shorter side. Default: as they are; JPEGs are copied, not encoded.")
    ] = None,
    uint8: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Arrays of pixels, mapped into memory: no decoding, many times the bytes. Of larger pictures the "
            "centre square of --size; without it all must be of one size.",
        ),
    ] = False,
    quality: Annotated[
        int, Parameter(help="Of JPEGs that are encoded anew, 1 to 100. 90 by default: not lossless.")
    ] = 90,
    data_dir: DataDir = "",
    on_bad_image: OnBadImage = "error",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Write the pictures smaller and in few files, as shards of JPEGs or as arrays, to be read fast many times."""
    from opsin.data import pack

    reporter = Console(quiet=quiet)
    try:
        packed = pack.pack(
            data,
            out,
            size=size,
            uint8=uint8,
            quality=quality,
            data_dir=data_dir,
            on_bad_image=on_bad_image,
            progress=reporter.counter(f"packing {data}"),
        )
    finally:
        reporter.finish()
    if packed.skipped:
        reporter.warn(f"left out: {_others(packed.skipped, 'picture')}")
    if json_:
        print_json({**packed._asdict(), "folder": str(packed.folder)})
    else:
        print(f"packed      {in_words(packed.pictures)}; {packed.nbytes:,} bytes\nfolder      {packed.folder}")


def _write_samples(name: str, sheet: Path, seed: int, data_dir: str, reporter: Console) -> None:
    from opsin import report, samples
    from opsin.data import datasets

    try:
        counter = reporter.counter(f"reading {name}")
        splits = datasets.load(name, data_dir=data_dir, seed=seed, on_bad_image="skip", progress=counter)
        groups, lead = samples.page(name, splits, seed)
    finally:
        reporter.finish()
    bad = [str(error) for index in splits.values() for error in index.skipped]
    report.write_sheet(sheet, groups, title=f"Samples of {name}", lead=lead, unreadable=bad)
    reporter.say(f"sheet: {sheet}")


def _show_own_data(name: str, as_json: bool) -> None:
    """How many pictures of each class each part has; no picture is opened."""
    from opsin.data.datasets import scan_parts

    parts = scan_parts(name, on_bad_image="skip")
    first = next(iter(parts.values()))
    classes = first.classes
    counts = {part: index.counts().tolist() for part, index in parts.items()}
    ignored, skipped, notes = (
        [one for index in parts.values() for one in some(index)]
        for some in (lambda index: index.ignored, lambda index: index.skipped, lambda index: index.notes)
    )
    if as_json:
        splits = {part: len(index) for part, index in parts.items()}
        of_class = {part: dict(zip(classes, numbers, strict=True)) for part, numbers in counts.items()}
        bad = [{"file": error.path, "reason": error.reason} for error in skipped]
        shown = {"name": name, "many_labels": first.many_labels, "splits": splits, "classes": list(classes)}
        print_json({**shown, "pictures": of_class, "ignored": ignored, "bad": bad, "notes": notes})
        return
    rows = [(shown, *(numbers[k] for numbers in counts.values())) for k, shown in enumerate(classes)]
    if first.many_labels:
        rows.append(("none of these", *(int((index.labels == 0).all(1).sum()) for index in parts.values())))
        if any(unknown := [int((index.labels < 0).any(1).sum()) for index in parts.values()]):
            rows.append(("some not known", *unknown))
    rows.append((f"{len(classes)} classes", *map(len, parts.values())))
    print_table(("pictures with" if first.many_labels else "class", *parts), rows, right=range(1, len(parts) + 1))
    for note in notes:
        print(f"note: {one_line(note)}")
    if skipped:
        print(f"cannot be used: {_others([str(error) for error in skipped], 'picture')}")
    if ignored:
        print(f"not used: {_others(ignored)}")


def _others(files: Sequence[str], what: str = "other file") -> str:
    count = f"1 {what}" if len(files) == 1 else f"{len(files):,} {what}s, the first"
    return f"{count}: {one_line(files[0])}"


@_command(10, "doctor")
def doctor(*, json_: Json = False) -> int:
    """Say what this machine has, and what is broken and how to mend it. Exit code 1 when something is broken."""
    from opsin import doctor as examination
    from opsin.data.datasets import cache_folder

    findings = examination.examine(cache_folder("digits").parent)
    if json_:
        print_json(examination.to_dict(findings))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = {"ok": "", "warning": "warning: ", "broken": "BROKEN: "}[finding.state]
            print(f"{finding.name:{width}}  {mark}{printable(finding.value)}")
            if finding.fix:
                print(f"{'':{width}}  → {finding.fix}")
    return int(any(finding.state == "broken" for finding in findings))


def _device(name: str) -> str:
    from opsin.device import choose

    return str(choose(name))


# ---------------------------------------------------------------------------------------------------------------------
# Starting and ending
# ---------------------------------------------------------------------------------------------------------------------


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are said on stderr in one line."""
    try:
        answer = app(
            [chosen.STDIN if argument == "-" else argument for argument in arguments],
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
