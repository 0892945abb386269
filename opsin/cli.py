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
from opsin.cli_data import data_app
from opsin.console import Console, percent, printable
from opsin.errors import BadInput, DataError, GateNotMet, OpsinError, UsageError
from opsin.options import AnyPictures, AnySplit, Csv, DataDir, Device, Json, OnBadImage, Quiet, RunFolder, Split
from opsin.show import (
    PredictionWriter,
    one_line,
    plain,
    print_album,
    print_figure,
    print_json,
    print_model,
    print_models,
    print_neighbours,
    print_report,
)

if TYPE_CHECKING:
    from opsin.classifier import Prediction
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
app.command(data_app)


def _command(order: int, usage: str, name: str | None = None) -> Any:
    """Decorator: a command in its place in the list, with its usage line."""
    return app.command(name=name, sort_key=order, usage=f"Usage: opsin {usage} [OPTIONS]", help_epilogue="")


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
    model: Annotated[
        str | None,
        Parameter(
            help="Network (opsin models) in place of the recipe's, or a pipeline of before them: bow, llc, fisher, "
            "patches or nec2010."
        ),
    ] = None,
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
    freeze: Annotated[
        str, Parameter(help="Stages that stay as the weights have them, as stem,stage1.", show_default=False)
    ] = "",
    unfreeze: Annotated[
        float,
        Parameter(help="Part of the training over which stages begin to learn, the last first.", show_default=False),
    ] = 0.0,
    probe: Annotated[
        bool,
        Parameter(show_default=False, help="Keep the weights; fit a new last layer to the network's features alone."),
    ] = False,
    fuse: Annotated[
        tuple[str, ...],
        Parameter(
            help="Train nothing: take the weighted mean of two or more runs or classifiers that are trained already. "
            "The weights are learnt on the validation part; without one they are equal.",
            consume_multiple=True,
            metavar="RUN",
            show_default=False,
        ),
    ] = (),
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
            freeze=[name.strip() for name in freeze.split(",") if name.strip()],
            unfreeze=unfreeze,
            probe=probe,
            fuse=fuse,
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
        str,
        Parameter(help="Stage whose features are compared (opsin models NAME). Default: the last.", show_default=False),
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
