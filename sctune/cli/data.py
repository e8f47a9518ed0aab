"""`sctune data check | changes`: any data set; `list | prepare | verify`: the paper's from their raw archives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sctune.cli import options as opt
from sctune.cli.output import emit, messages, say

if TYPE_CHECKING:
    from sctune.data.convert import Manifest, RawSet
    from sctune.data.convert.writer import Progress as Advance

data_app = typer.Typer(
    no_args_is_help=True,
    help="What is wrong in a data set; and the paper's: where to get them, and their raw folders made ready.",
)


@data_app.command("list")
def list_command(as_json: opt.AsJson = False) -> None:
    """The data sets that can be prepared: counts, licence, where to get them, and how sure that is."""
    from sctune.data.convert import known_sets

    if as_json:
        emit({"data_sets": [_facts(one) for one in known_sets()]}, [])
        return
    table = Table(title="data sets of the paper", show_lines=True)
    table.add_column("name")
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("what it is, licence, source, what is known", overflow="fold")
    for one in known_sets():
        totals = one.totals
        counts = f"{totals.train_good} train good\n{totals.test_good} test good\n{totals.anomalies} anomalous"
        sets = f", {len(one.categories)} categories" if one.categories else ""
        details = [f"{one.title}{sets}; licence: {one.licence}", one.page, one.evidence, *one.remarks]
        table.add_row(one.name, counts, "\n".join(details))
    Console().print(table, markup=False)


@data_app.command(epilog="Example: sctune data prepare sdd --source KolektorSDD --out data/sdd")
def prepare(
    name: Annotated[str, typer.Argument(help="mvtec, sdd, aitex, elpv, optical or mastcam (see `sctune data list`).")],
    out: Annotated[Path, typer.Option(help="New folder; it appears when everything is there.")],
    source: Annotated[
        Path | None, typer.Option(help="Unpacked archive; elpv takes the installed package without.")
    ] = None,
    allow_counts: Annotated[
        bool, typer.Option("--allow-counts", help="Go on where counts are not the published ones or masks are missing.")
    ] = False,
    group_split: Annotated[
        bool, typer.Option("--group-split", help="Keep the images of one part or strip together (sdd, aitex).")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Make a data set in the MVTec layout from its raw folder; run again, an interrupted one goes on."""
    from sctune.data.convert import prepare as prepare_set
    from sctune.data.places import absolute

    out = absolute(out)
    try:
        with _bar(f"prepare {name}") as advance:
            manifest = prepare_set(
                name, source, out, allow_counts=allow_counts, group_split=group_split, progress=advance
            )
    except KeyboardInterrupt:
        say(["stopped; run the same command again, it goes on where it was"])
        raise typer.Exit(3) from None
    say([f"differs from the published data: {line}" for line in manifest.differences])
    say([f"note: {line}" for line in manifest.notes])
    if as_json:
        emit({"folder": str(out), **_summary(manifest)}, [])
        return
    for place, count in manifest.counts.items():
        print(f"{count:6d}  {place}")
    print(f"{len(manifest.files):6d}  images in {out}; licence: {manifest.licence}")
    chosen = f" --category {manifest.categories[0]}" if manifest.categories else ""
    print(f"use it: sctune search --data {out}{chosen}")


@data_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that `sctune data prepare` made.")], as_json: opt.AsJson = False
) -> None:
    """Hash every file of a prepared folder, and compare names, contents and counts with its manifest."""
    from sctune.data.convert import verify as verify_folder

    with _bar("verify") as advance:
        report = verify_folder(folder, advance)
    if as_json:
        problems = [{"kind": problem.kind, "names": list(problem.names)} for problem in report.problems]
        emit({"folder": str(report.folder), "checked": report.checked, "problems": problems}, [])
    say([f"sctune: {report.folder}: {problem.line}" for problem in report.problems])
    if not report.ok:
        raise typer.Exit(2)
    if not as_json:
        print(f"{report.folder}: {report.manifest.title}, {report.checked} files are as they were made")


@data_app.command(epilog="Example: sctune data check parts/ --set data.group='part(\\d+)'")
def check(
    source: Annotated[str, typer.Argument(help="elpv, a folder or a CSV file, as for `sctune search --data`.")],
    category: Annotated[str | None, typer.Option(help="Sub-folder of the source, as in MVTec AD.")] = None,
    allow_duplicates: opt.AllowDuplicates = False,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="data.KEY=VALUE; repeatable.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Look for what would be learnt by mistake: copies across pools, shortcuts, odd images. Exit code 1 if so.

    Nothing is trained and no score is computed. `sctune search` does the same before it starts.
    """
    from sctune.config import load_profile, parse_assignments
    from sctune.data.catalog import open_dataset
    from sctune.data.check import check_data
    from sctune.data.decode import Decoding
    from sctune.data.depth import FoundRange, find_range
    from sctune.data.duplicates import kept_together
    from sctune.data.images import ImageCache
    from sctune.data.ranges import AUTO
    from sctune.paths import cache_folder

    values = {"data.allow_duplicates": allow_duplicates} | parse_assignments(assignments or [])
    # one image size is as good as another here: what heads and patches need of it is a matter of training
    settings = (
        load_profile("cpu")
        .override({"model.heads": "single_head", "model.normal_head": "mlp", "augment.kind": "none"} | values)
        .data
    )
    data = open_dataset(source, category, settings.group)
    if settings.allow_duplicates:
        data = kept_together(data)
    normals = [file.path for file in data.normals if file.split != "test"]
    depth = (
        find_range([(data.root, normals)], settings)
        if settings.range == AUTO
        else FoundRange(settings.range, f"values: data.range={settings.range}, as asked for")
    )
    decoding = Decoding.of(settings.model_copy(update={"range": depth.range}))
    report = check_data(data, ImageCache(cache_folder()), decoding)
    best = max(report.shortcuts.items(), key=lambda item: item[1], default=None)
    document = {**report.to_dict(), "range": depth.range, "warnings": [*depth.warnings, *report.warnings]}
    lines = [
        f"{report.name}: {len(data.files)} images, {depth.line}",
        *report.table,
        *(f"note: {line}" for line in report.notes),
        *(f"warning: {line}" for line in depth.warnings),
        *(f"{finding.severity}: {finding.kind}: {finding.line}" for finding in report.findings),
    ]
    if best is not None:
        lines.append(f"of the trivial features {best[0]} tells the classes apart best: AUROC {best[1]:.3f}")
    lines.append("nothing found" if not document["warnings"] else f"{len(document['warnings'])} things to look at")
    emit(document if as_json else None, lines)
    if document["warnings"]:
        raise typer.Exit(1)


@data_app.command(epilog="Example: sctune data changes parts/ --category bottle")
def changes(
    source: Annotated[str, typer.Argument(help="elpv, a folder or a CSV file, as for `sctune search --data`.")],
    category: Annotated[str | None, typer.Option(help="Sub-folder of the source, as in MVTec AD.")] = None,
    profile: Annotated[str, typer.Option(help="Base values: smoke, cpu, gpu or paper.")] = "cpu",
    allow_duplicates: opt.AllowDuplicates = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="data.KEY=VALUE or model.backbone; repeatable.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Say which turns, mirrors, shifts and colours fit the part: changed normal images that still look normal.

    A Gaussian of normal images scores others, as they are and changed. No anomalous and no test image is read.
    """
    from sctune.config import load_profile, parse_assignments
    from sctune.data.places import absolute
    from sctune.train.fitting import fitting_changes

    named = source if source == "elpv" else str(absolute(Path(source)))
    values = {"data.source": named, "data.category": category, "data.allow_duplicates": allow_duplicates}
    found = fitting_changes(load_profile(profile).override(values | parse_assignments(assignments or [])))
    emit(found.to_dict() if as_json else None, found.lines)


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
    """A progress bar on stderr, where that is a terminal; gives what to call with done and all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _facts(one: RawSet) -> dict[str, Any]:
    expected = {
        category: [
            {"train_good": c.train_good, "test_good": c.test_good, "anomalies": c.anomalies, "classes": dict(c.kinds)}
            for c in alternatives
        ]
        for category, alternatives in one.expected.items()
    }
    texts = {key: getattr(one, key) for key in ("name", "title", "licence", "attribution", "page", "evidence")}
    return {**texts, "layout": one.layout, "remarks": list(one.remarks), "categories": one.categories} | {
        "counts": expected if one.categories else expected[""]
    }


def _summary(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"files"})
