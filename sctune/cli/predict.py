"""The commands on files of images: `sctune predict`, `evaluate`, `monitor` and `recalibrate`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, messages, say
from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.deploy.model import Model
    from sctune.serve.appending import Counts
    from sctune.serve.predict import Predicted, Progress

ALARM = 1
"""Exit code of `sctune monitor` for an alarm."""

Where = Annotated[str, typer.Option("--model", help="models:/NAME@champion, models:/NAME/VERSION or a folder.")]
Registry = Annotated[
    str | None, typer.Option("--tracking-uri", help="Store of the registry; default: as for a search.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
GivenThreshold = Annotated[float | None, typer.Option("--threshold", help="Scores above it are anomalous.")]
Wanted = Annotated[
    float | None, typer.Option("--false-alarm-rate", help="Decide at the threshold for this rate, between 0 and 1.")
]


def predict(
    paths: Annotated[list[str], typer.Argument(help="Images and folders of images, with what is below.")],
    model: Where,
    out: Annotated[Path | None, typer.Option(help="FILE.csv or FILE.jsonl; default: CSV on stdout.")] = None,
    heat_maps: Annotated[Path | None, typer.Option(help="Folder for a heat map (PNG) of each image.")] = None,
    threshold: GivenThreshold = None,
    false_alarm_rate: Wanted = None,
    tracking_uri: Registry = None,
    device: Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Score images: a row for each, also for a file that is no image. The same command again goes on where it ended.

    Files whose content has changed since are scored anew.
    """
    from sctune.serve.inputs import list_inputs
    from sctune.serve.models import opened
    from sctune.serve.predict import predict_to_file, refuse_inside
    from sctune.serve.stopping import stop_asked
    from sctune.serve.table import check_name

    if out is not None:
        out = out.expanduser().absolute()
        check_name(out)
    elif as_json:
        raise ConfigError("--json without --out: the rows go to stdout then; give --out")
    folder = None if heat_maps is None else heat_maps.expanduser().absolute()
    if folder is not None:
        refuse_inside(folder, paths)
    left_out: list[str] = []
    images = list_inputs(paths, left_out.append)
    chosen = opened(model, tracking_uri, device, threshold, false_alarm_rate)
    if out is None:
        _warn(left_out)
        _to_stdout(chosen, images, folder)
        return
    with _bar() as told, stop_asked() as asked:
        done = predict_to_file(chosen, images, out, folder, told, asked)
    _warn(left_out)
    counts = done.counts
    document = {"model": chosen.name, "out": str(out), "images": counts.rows, "anomalous": counts.anomalous}
    document |= {"normal": counts.normal, "failed": counts.failed, "earlier": done.earlier}
    document |= {"rescored": len(done.changes.stale), "gone": len(done.changes.gone)}
    say(["; ".join([_counted(counts, f"{out}"), *_earlier(done)])])
    emit(document if as_json else None, [])


def evaluate(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION or a folder.")],
    data: Annotated[str, typer.Argument(help="elpv, a folder (MVTec layout or ok/ + nok/) or a CSV file.")],
    category: Annotated[str | None, typer.Option(help="Sub-folder of the data, as in MVTec AD.")] = None,
    threshold: GivenThreshold = None,
    false_alarm_rate: Wanted = None,
    unseen_only: Annotated[
        bool, typer.Option("--unseen-only", help="Leave out images that the model was made from.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="New folder for metrics, scores and pictures.")] = None,
    tracking_uri: Registry = None,
    device: Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Measure a model on labelled images: AUROC, escapes, false alarms, and pictures of the worst mistakes."""
    from sctune.serve.evaluate import evaluate as measure
    from sctune.serve.evaluate import open_labelled
    from sctune.serve.models import opened
    from sctune.serve.predict import Progress
    from sctune.serve.results import evaluation_lines, refuse_folder, write_evaluation

    folder = None if out is None else out.expanduser().absolute()
    if folder is not None:
        refuse_folder(folder)
    images = open_labelled(data, category)
    chosen = opened(model, tracking_uri, device, threshold, false_alarm_rate)
    with _whole(), _bar() as told:
        found = measure(chosen, images, unseen_only, lambda done, total: told(Progress(done, total)))
    say([f"warning: {line}" for line in found.warnings])
    files = [] if folder is None else write_evaluation(found, folder)
    document = {**found.metrics, "warnings": list(found.warnings), "files": list(map(str, files))}
    emit(document if as_json else None, [*evaluation_lines(found), *map(str, files)])


def monitor(
    places: Annotated[list[str], typer.Argument(help="A table of `sctune predict`, or images and folders of images.")],
    model: Where,
    tracking_uri: Registry = None,
    device: Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Compare new images with the calibration images: scores, light, size, share of alarms. Exit code 1: an alarm."""
    from sctune.serve.inputs import list_inputs
    from sctune.serve.models import opened
    from sctune.serve.monitor import monitor as watch
    from sctune.serve.monitor import monitor_lines, rows_of_table
    from sctune.serve.predict import Progress, predicted_rows
    from sctune.serve.table import SUFFIXES, Row

    table = Path(places[0]).expanduser()
    is_table = len(places) == 1 and table.suffix.lower() in SUFFIXES and not table.is_dir()
    left_out: list[str] = []
    images = [] if is_table else list_inputs(places, left_out.append)
    chosen = opened(model, tracking_uri, device)
    _warn(left_out)
    rows: list[Row] = []
    if is_table:
        rows += rows_of_table(chosen, table)
    else:
        with _whole(), _bar() as told:
            for chunk in predicted_rows(chosen, images):
                rows += chunk
                told(Progress(len(rows), len(images)))
    found = watch(chosen, rows)
    emit(found.to_dict() if as_json else None, monitor_lines(found))
    if found.alarm:
        raise typer.Exit(ALARM)


def recalibrate(
    places: Annotated[list[str], typer.Argument(help="Images and folders of images, all of them good.")],
    model: Where,
    false_alarm_rate: Annotated[
        float | None, typer.Option("--false-alarm-rate", help="Between 0 and 1; default: as the threshold until now.")
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="As a new version of the same registered model, alias candidate.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Register it, and make it the champion.")] = False,
    out: Annotated[Path | None, typer.Option(help="New folder for the model with its new threshold.")] = None,
    tracking_uri: Registry = None,
    device: Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Set the threshold anew by new good images, without training; a registered model gets a new version."""
    from sctune.serve.inputs import list_inputs
    from sctune.serve.predict import Progress
    from sctune.serve.recalibrate import Wish, outcome_lines, run_recalibration

    folder = None if out is None else out.expanduser().absolute()
    wish = Wish(false_alarm_rate, folder, register or promote, promote, tracking_uri, device)
    left_out: list[str] = []
    images = list_inputs(places, left_out.append)
    with _whole(), _bar() as told:
        outcome = run_recalibration(
            model, images, ", ".join(places), wish, lambda done, total: told(Progress(done, total))
        )
    _warn(left_out)
    emit(outcome.to_dict() if as_json else None, outcome_lines(outcome))


def _warn(lines: list[str]) -> None:
    say([f"warning: {line}" for line in lines])


def _to_stdout(model: Model, images: list[str], heat_maps: Path | None) -> None:
    from sctune.serve.appending import Counts
    from sctune.serve.predict import Progress, identity_of, predicted_rows
    from sctune.serve.stopping import StoppedPredictionError, stop_asked
    from sctune.serve.table import csv_lines

    columns, counts = identity_of(model, heat_maps is not None).columns, Counts()
    try:
        print(",".join(columns), flush=True)
        with _bar(shown=not sys.stdout.isatty()) as told, stop_asked() as asked:
            for rows in predicted_rows(model, images, heat_maps):
                print(csv_lines(rows, columns), end="", flush=True)
                for row in rows:
                    counts.add(row)
                told(Progress(counts.rows, len(images)))
                if asked.is_set() and counts.rows < len(images):
                    raise StoppedPredictionError(
                        f"stopped after {counts.rows} of {len(images)} images; with --out FILE.csv the same command "
                        "could go on"
                    )
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    say([_counted(counts, "stdout")])


def _earlier(done: Predicted) -> list[str]:
    """What became of the rows that were there before."""
    changes, words = done.changes, []
    if done.earlier:
        words.append(f"{done.earlier} rows were there already")
    if changes.changed:
        words.append(f"{len(changes.changed)} of files that have changed since were scored anew")
    if changes.unsure:
        words.append(
            f"{len(changes.unsure)} of an earlier sctune, which tell nothing of their files' content, were scored anew"
        )
    if changes.gone:
        words.append(f"{len(changes.gone)} are of files that are gone ({changes.gone[0]}) and stay")
    return words


def _counted(counts: Counts, place: str) -> str:
    labelled = f"{counts.anomalous} anomalous, {counts.normal} normal"
    without = counts.rows - counts.anomalous - counts.normal - counts.failed
    words = [labelled if counts.anomalous + counts.normal else f"{without} scored, no threshold to label them by"]
    if counts.failed:
        words.append(f"{counts.failed} failed, see their column error")
    return f"{counts.rows} images in {place}: {', '.join(words)}"


@contextmanager
def _whole() -> Iterator[None]:
    """What is interrupted in the block ends with one line: nothing of it is kept."""
    from sctune.serve.stopping import StoppedPredictionError

    try:
        yield
    except KeyboardInterrupt:
        raise StoppedPredictionError("stopped; nothing was written, the same command begins anew") from None


@contextmanager
def _bar(shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=messages, disable=not (shown and messages.is_terminal)) as bar:
        task = bar.add_task("images", total=None)
        yield lambda progress: bar.update(task, completed=progress.done, total=progress.total)
