"""The commands `opsin data …`. As in `opsin.cli`, nothing here imports torch, numpy or Pillow before it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from opsin.console import Console
from opsin.errors import Absent, DataError, UsageError, near
from opsin.options import DataDir, Json, OnBadImage, Quiet
from opsin.show import in_words, one_line, plain, print_fact, print_json, print_table

if TYPE_CHECKING:
    from opsin.data.datasets import Info

data_app = App(name="data", help="List the named data sets, or show one.", help_epilogue="", sort_key=9)


@data_app.command(name="list", usage="Usage: opsin data list [OPTIONS]")
def data_list(*, json_: Json = False) -> None:
    """List the data sets that have a name."""
    from opsin.data.datasets import DATASETS

    if json_:
        print_json({name: plain(info) for name, info in DATASETS.items()})
        return
    parts = ("train", "val", "test")
    rows = [
        (name, _size_of(info), info.num_classes, *(info.splits.get(part, "") for part in parts), info.title)
        for name, info in DATASETS.items()
    ]
    print_table(("name", "size", "classes", *parts, "title"), rows, right=(2, 3, 4, 5), spare=("size",))


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
    print_fact("", f"{name}: {info.title}")
    print_fact("", info.summary)
    many = "; many labels a picture" if info.many_labels else ""
    print_fact("pictures", f"{in_words(info.splits)}; {_size_of(info)}{many}")
    print_fact("classes", f"{info.num_classes:,}{': ' if info.classes else ''}{', '.join(info.classes)}")
    print_fact("home", info.homepage)
    print_fact("terms", info.terms)
    if info.files:
        absent = "not there yet; the first training downloads it" if not info.layout else "not there"
        print_fact("cache", f"{cache}{'' if cache.exists() else f' ({absent})'}")
    for file in info.files:
        known = (f"{file.size:,} bytes" if file.size else "", f"MD5 {file.md5}" if file.md5 else "")
        print_fact("file", ", ".join(filter(None, (file.name, *known))))
        for url in file.urls:
            print_fact(" ", url)
    if info.layout:
        print_fact("", "Nothing is downloaded: get the files, and give --data-dir FOLDER, which holds, once unpacked,")
        print(info.layout)
        print_fact("a part", "is read as far as it is there with --on-bad-image skip")
    if info.variant_of:
        print_fact("variant of", f"{info.variant_of}: the same files")
    for variant, other in DATASETS.items():
        if other.variant_of == name:
            print_fact("variant", f"{variant}: {other.summary}")


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
        rows, absent = (
            [{"file": error.path, "reason": error.reason} for error in some] for some in (health.bad, health.absent)
        )
        formats = {name or "unknown": n for name, n in health.formats.items()}
        counts = {"pictures": health.pictures, "formats": formats, "ignored": list(health.ignored)}
        print_json({"data": data, **counts, "bad": rows, "absent": absent})
    else:
        if health.bad:
            print_table(("file", "reason"), [(bad.path, bad.reason) for bad in health.bad], fold=True)
            print()
        formats = ", ".join(f"{name or 'unknown'} {n:,}" for name, n in health.formats.items())
        print_fact("looked at", f"{health.pictures:,} pictures: {formats}")
        print_fact("unusable", f"{len(health.bad):,}" if health.bad else "none")
        if health.absent:  # in a part of a data set most are
            print_fact("not there", _others(list(map(str, health.absent)), "listed picture", 3))
        if health.ignored:
            print_fact("passed over", _others(health.ignored))
    return DataError.exit_code if health.bad or health.absent else 0


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
        print_fact("packed", f"{in_words(packed.pictures)}; {packed.nbytes:,} bytes")
        print_fact("folder", str(packed.folder))


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
    from opsin.data import published
    from opsin.data.datasets import DATASETS, scan_parts

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
    rows.append((f"{len(classes):,} classes", *map(len, parts.values())))
    print_table(("pictures with" if first.many_labels else "class", *parts), rows, right=range(1, len(parts) + 1))
    for note in notes:
        print_fact("note", note)
    if (layout := published.layout(name) if os.path.isdir(name) else None) is not None:
        for variant, info in DATASETS.items():
            if info.variant_of == layout.name != "":
                print_fact("variant", f"{variant} --data-dir {name} in place of {name}: {info.summary}")
    if bad := [str(error) for error in skipped if not isinstance(error, Absent)]:
        print_fact("unusable", _others(bad, "picture"))
    if absent := [str(error) for error in skipped if isinstance(error, Absent)]:
        print_fact("not there", _others(absent, "listed picture"))
    if ignored:
        print_fact("not used", _others(ignored))


def _others(files: Sequence[str], what: str = "other file", shown: int = 1) -> str:
    count = f"1 {what}" if len(files) == 1 else f"{len(files):,} {what}s"
    first = f", the first{f' {shown}' if shown > 1 else ''}" if len(files) > shown else ""
    return f"{count}{first}: {'; '.join(map(one_line, files[:shown]))}"
