"""The command line: parse, make paths absolute, call, print. Errors become one line and an exit code.

Exit codes: 0 done, 1 bug (with its traceback), 2 bad input, 3 stopped and resumable, 4 all trials failed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table

from sctune import __version__
from sctune import cli_options as opt
from sctune.cli_data import data_app
from sctune.cli_figures import augmentations, figures
from sctune.cli_reproduce import reproduce
from sctune.cli_weights import import_weights
from sctune.config import parse_assignments
from sctune.errors import ConfigError, SctuneError, StudyError
from sctune.paths import cache_folder, studies_folder
from sctune.search.options import SearchOptions

if TYPE_CHECKING:
    from sctune.search.result import StudyResult

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hyperparameter search for open-set visual anomaly detection with SaliencyCut.\n\n"
    "Start with `sctune search --space threshold_patch`, then `sctune ui`.",
)
cache_app = typer.Typer(no_args_is_help=True, help="Decoded images that all trials on this machine share.")
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")

StudyRoot = Annotated[
    Path | None, typer.Option("--study-root", help="Folder of the studies (default: SCTUNE_HOME/studies).")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
messages = Console(stderr=True)

# typer carries its own click, whose errors it does not name; this is the base of those about the command line
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point of `sctune`."""
    try:
        sys.exit(app(standalone_mode=False))
    except SctuneError as problem:
        _complain(str(problem), problem.exit_code)
    except USAGE_ERROR as problem:
        if len(sys.argv) < 3 and not str(problem):
            problem.show()  # no arguments at all: the help
            sys.exit(2)
        place = problem.ctx.command_path if problem.ctx is not None else "sctune"
        _complain(f"{' '.join(problem.format_message().split()).rstrip('.')}; see `{place} --help`", 2)


def _complain(text: str, code: int) -> NoReturn:
    messages.print(f"sctune: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


@app.command(epilog="Example: sctune search --space threshold_patch --data elpv --trials 12")
def search(
    space: opt.Space = "threshold_patch",
    name: opt.Name = None,
    profile: opt.Profile = None,
    method: opt.Method = None,
    data: opt.Data = None,
    normal: opt.Normal = None,
    anomalous: opt.Anomalous = None,
    category: opt.Category = None,
    setting: opt.Setting = "general",
    known_class: opt.KnownClass = None,
    n_anomalies: opt.NAnomalies = None,
    seeds: opt.Seeds = None,
    selection: opt.Selection = "auto",
    partition_seed: opt.PartitionSeed = 0,
    trials: opt.Trials = None,
    time_budget: opt.TimeBudget = None,
    sampler: opt.Sampler = None,
    sampler_seed: opt.SamplerSeed = 0,
    scheduler: opt.Scheduler = None,
    gpus_per_trial: opt.GpusPerTrial = None,
    cpus_per_trial: opt.CpusPerTrial = None,
    max_concurrent: opt.MaxConcurrent = None,
    assignments: opt.Assignments = None,
    skip_corrupt: opt.SkipCorrupt = False,
    study_root: StudyRoot = None,
    storage_path: opt.StoragePath = None,
    tracking_uri: opt.TrackingUri = None,
    storage: opt.Storage = None,
    address: opt.Address = None,
    checkpoint_interval: opt.CheckpointInterval = 60.0,
    keep_best: opt.KeepBest = 3,
    dry_run: opt.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search a space: train, compare, stop early, and log every trial and the best model to MLflow."""
    values = parse_assignments(assignments or [])
    options = _options(dict(
        space=space, name=name, profile=profile, method=method, data=data, normal=normal, anomalous=anomalous,
        categories=tuple(category or ()), setting=setting, known_classes=tuple(known_class or ()),
        n_anomalies=_amount(n_anomalies), seeds=_seeds(seeds), selection=selection, partition_seed=partition_seed,
        trials=trials, time_budget_s=_duration(time_budget), sampler=sampler, sampler_seed=sampler_seed,
        scheduler=scheduler, gpus_per_trial=gpus_per_trial, cpus_per_trial=cpus_per_trial,
        max_concurrent=max_concurrent, overrides=values, skip_corrupt=skip_corrupt, study_root=study_root,
        storage_path=storage_path, tracking_uri=tracking_uri, storage=storage, address=address,
        checkpoint_interval=checkpoint_interval, keep_best=keep_best,
    ))  # fmt: skip
    from sctune.search.driver import run_search
    from sctune.search.dryrun import dry_run as plan_only
    from sctune.search.dryrun import plan_lines

    if dry_run:
        report = plan_only(options)
        _emit(report.to_dict() if as_json else None, report.lines)
        return
    result = run_search(options, messages, lambda plan, resources: _say(plan_lines(plan, resources)))
    _finish(result, as_json)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="Study name.")],
    trials: Annotated[str | None, typer.Option(help="More trials for a finished study: +20.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="For example 2h; over all launches of the study.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster, or auto; default: this machine.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    study_root: StudyRoot = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a study: unfinished trials from their last checkpoint, then new ones."""
    more = 0
    if trials is not None:
        if not re.fullmatch(r"\+\d+", trials):
            raise ConfigError(f"--trials {trials!r}: write how many more, for example +20")
        more = int(trials)
    from sctune.search.driver import resume as resume_study

    result = resume_study(
        study,
        study_root=study_root,
        more_trials=more,
        address=address,
        max_concurrent=max_concurrent,
        time_budget_s=_duration(time_budget),
        console=messages,
    )
    _finish(result, as_json)


@app.command()
def status(study: Annotated[str, typer.Argument()], study_root: StudyRoot = None, as_json: AsJson = False) -> None:
    """Trials of a study in order of merit, and how sure the order is."""
    from sctune.search.result import summary_lines

    result = _stored(study, study_root)
    if as_json:
        _emit(result.to_dict(), [])
        return
    from sctune.search.progress import short

    table = Table(title=f"study {result.name}")
    failed = any(row.failure for row in result.rows)
    for column in ("trial", "state", "epochs", "AUROC", "seconds", "parameters", *(["failure"] if failed else [])):
        table.add_column(column, overflow="fold")
    for row in result.rows:
        cells = (
            str(row.number),
            row.state,
            str(max(row.values, default=0)),
            "-" if row.value is None else f"{row.value:.4f}",
            "-" if row.seconds is None else f"{row.seconds:.0f}",
            short(row.params),
            row.failure["message"] if row.failure else "",
        )
        table.add_row(*cells[: len(table.columns)])
    Console().print(table)
    _print(summary_lines(result))


@app.command("list")
def list_command(study_root: StudyRoot = None, as_json: AsJson = False) -> None:
    """All studies in the study root."""
    from sctune.search.study import Study, list_studies

    root = (study_root or studies_folder()).expanduser().absolute()
    studies = [Study.open(root, name).manifest for name in list_studies(root)]
    if as_json:
        rows = [{"study": m.name, "created": m.created, "space": m.space["name"], "trials": m.trials} for m in studies]
        _emit({"study_root": str(root), "studies": rows}, [])
        return
    table = Table(title=str(root))
    for column in ("study", "created", "space", "data", "profile", "trials", "last launch"):
        table.add_column(column)
    for m in studies:
        last = (m.launches[-1].reason or "running or killed") if m.launches else "never started"
        table.add_row(m.name, m.created, str(m.space["name"]), m.data.name, m.profile, str(m.trials), last)
    Console().print(table)


@app.command()
def spaces(name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None) -> None:
    """The search spaces that come with sctune."""
    from sctune.config import read_yaml
    from sctune.errors import SpaceError, nearest
    from sctune.search.space import shipped_spaces

    shipped = shipped_spaces()
    if name is not None:
        if name not in shipped:
            raise SpaceError(f"unknown space {name!r}; {nearest(name, shipped)}")
        print(shipped[name].read_text(encoding="utf-8"), end="")
        return
    for known, path in shipped.items():
        print(f"{known:16s} {read_yaml(path).get('description', '')}")


@app.command()
def best(study: Annotated[str, typer.Argument()], study_root: StudyRoot = None) -> None:
    """The winning configuration as a YAML file on stdout."""
    from sctune.search.study import Study

    result = _stored(study, study_root, noise=False)
    if result.best is None:
        raise StudyError(f"study {study} has no full run yet; go on with `sctune resume {study}`")
    manifest = Study.open((study_root or studies_folder()).absolute(), study).manifest
    config = manifest.config_of(result.best.params)
    print(f"# study {study}, trial {result.best.number}, selection AUROC {result.best.value:.4f}")
    print(yaml.safe_dump(config.model_dump(), sort_keys=False), end="")


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="YAML configuration, such as `sctune best` prints.")] = None,
    profile: Annotated[str, typer.Option(help="Base values where no file is given.")] = "cpu",
    method: opt.Method = None,
    data: Annotated[str | None, typer.Option(help="elpv, a folder or a CSV file.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Score the test pool at the end (looked at once).")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the model and the scores to this new folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one configuration, without Ray."""
    from sctune.config import TrialConfig, load_profile, read_yaml
    from sctune.methods import method_values
    from sctune.train.single import train_one

    base = TrialConfig.load(read_yaml(config)) if config is not None else load_profile(profile)
    values: dict[str, Any] = {} if method is None else method_values(method, profile)
    if data is not None:
        values["data.source"] = data if data == "elpv" or "=" in data else str(Path(data).expanduser().absolute())
    report = train_one(base.override(values | parse_assignments(assignments or [])), out, test, _say)
    _emit(report if as_json else None, [f"{name} {value:.4f}" for name, value in report["metrics"].items()])


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: the local one.")] = None,
) -> None:
    """MLflow's pages on the right store, on this machine only."""
    from sctune.paths import home
    from sctune.tracking.server import check_tracking, resolve_tracking_uri, ui_command, ui_environment

    uri = resolve_tracking_uri(tracking_uri, home())
    command = ui_command(uri, port)
    check_tracking(uri)
    _say([f"MLflow at http://127.0.0.1:{port} (end with Ctrl-C)"])
    with subprocess.Popen(command, env=ui_environment(uri)) as server:
        try:
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            code = 0
    raise typer.Exit(code)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine can do, what is missing, and how to get it."""
    from sctune.doctor import examine

    findings = examine()
    lines = [f"{'ok ' if row['ok'] else 'no '} {row['what']}: {row['detail']}" for row in findings]
    _emit({"findings": findings} if as_json else None, lines)


app.command(epilog="Example: sctune reproduce table1 --dataset elpv")(reproduce)
app.command(epilog="Example: sctune figures STUDY")(figures)
app.command(epilog="Example: sctune augmentations --data elpv --out kinds.png")(augmentations)
app.command("import-weights")(import_weights)


@cache_app.command("list")
def cache_list(as_json: AsJson = False) -> None:
    """Decoded image sets and their sizes."""
    from sctune.data.images import ImageCache

    entries = ImageCache(cache_folder()).entries()
    lines = [
        f"{entry.key[:12]}  {entry.images:6d} images of {entry.size} px  {entry.nbytes / 2**20:9.1f} MiB"
        for entry in entries
    ]
    total = sum(entry.nbytes for entry in entries)
    document = {"folder": str(cache_folder()), "bytes": total, "entries": len(entries)}
    _emit(document if as_json else None, [*lines, f"{total / 2**20:.1f} MiB in {cache_folder()}"])


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove all decoded images; they are made again when needed."""
    from sctune.data.images import ImageCache

    ImageCache(cache_folder()).clear()
    _say([f"cleared {cache_folder()}"])


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _options(fields: dict[str, Any]) -> SearchOptions:
    from pydantic import ValidationError

    try:
        return SearchOptions.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']!r}: {first['msg']}") from None


def _amount(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--n-anomalies {text!r}: give a number from 1 on, or all")
    return int(text)


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"--seeds {text!r}: give whole numbers with commas, for example 42,43,44")
    return tuple(int(part) for part in text.split(","))


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)?", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--time-budget {text!r}: give a time such as 90s, 30m, 2h or 1d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def _stored(name: str, study_root: Path | None, noise: bool = True) -> StudyResult:
    from sctune.search.stored import load_result

    return load_result((study_root or studies_folder()).expanduser().absolute(), name, noise)


def _finish(result: StudyResult, as_json: bool) -> None:
    from sctune.search.result import summary_lines

    lines = summary_lines(result)
    if result.stopped:
        lines.append(f"stopped; go on with `sctune resume {result.name}`")
    lines.append(f"look: sctune status {result.name}; sctune ui; files in {result.folder}")
    _emit(result.to_dict() if as_json else None, lines)
    if result.stopped:
        raise typer.Exit(3)


def _emit(document: dict[str, Any] | None, lines: list[str]) -> None:
    if document is not None:
        print(json.dumps(document, indent=1))
    else:
        _print(lines)


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _say(lines: list[str]) -> None:
    for line in lines:
        messages.print(line, markup=False, highlight=False, soft_wrap=True)
