"""Looking after studies: `sctune logs`, `stop` and `delete`, and what `--detach` does."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.errors import ConfigError
from sctune.paths import studies_folder
from sctune.search.run.notify import VARIABLE
from sctune.search.study.process import this_user

if TYPE_CHECKING:
    from sctune.search.study.study import Study

LOCAL_PATHS = ("space", "data", "normal", "anomalous", "prior", "study_root", "storage_path")
"""Options that may name a place relative to this folder, which is not the one that a Ray job runs in."""


def logs(
    study: opt.StudyName,
    trial: Annotated[int | None, typer.Argument(min=0, help="Trial number; default: the launches.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the study ends.")] = False,
    study_root: opt.StudyRoot = None,
) -> None:
    """What happened: starts, epochs, warnings, failures with their traceback, ends."""
    from sctune.manage.logs import follow as follow_lines
    from sctune.manage.logs import log_lines, log_path

    found = _open(study, study_root)
    path = log_path(found, trial)
    try:
        for line in follow_lines(found, path) if follow else log_lines(path):
            print(line, flush=follow)
    except (KeyboardInterrupt, BrokenPipeError):
        # the reader has seen enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop(
    study: opt.StudyName,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until it must have ended.")] = 60.0,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Ask the driver of a study to stop cleanly, here or on another host, and wait until it has."""
    from sctune.search.study.driver import stop as stop_study

    found = _open(study, study_root, storage)
    driver, end = stop_study(found, wait)
    on = f"`sctune resume {study}`" if found.manifest.confirms is None else "the `sctune confirm` that began it"
    more = "" if end == "done" else f"; go on with {on}"
    document = {"study": study, "driver": driver.to_dict(), "end": end}
    emit(document if as_json else None, [f"{study} has ended: {end} ({driver.text}){more}"])


def note(
    study: opt.StudyName,
    text: Annotated[str, typer.Argument(help="The remark; '' for none.")],
    owner: Annotated[str | None, typer.Option(help="Whose study it is from now on.")] = None,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
) -> None:
    """Replace the notes on a study that is not running; `sctune sync` shows them in MLflow."""
    from sctune.search.plan.options import remark

    notes = remark(text, "TEXT")
    whose = None if owner is None else remark(owner, "--owner")
    found = _open(study, study_root, storage)
    with found.lock():
        found.with_notes(notes, whose)
    say([f"noted on {study}; `sctune sync {study}` shows it in MLflow"])


def delete(
    study: opt.StudyName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Leave MLflow alone.")] = False,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Remove a study: its MLflow runs, checkpoints, record and folder. Cut off, the same command goes on."""
    from sctune.manage.delete import deletion, finish_leftover

    if finish_leftover(_root(study_root), study, storage):
        say([f"deleted the rest of {study}"])
        return
    with deletion(_root(study_root), study, keep_runs, storage) as found:
        say([f"study {study}:", *(f"  {line}" for line in found.belongings.lines()), *found.belongings.kept])
        if not yes and not _agreed(study):
            raise typer.Exit(3)
        found.run()
    lines = [f"deleted {study}"]
    if found.belongings.runs:
        lines.append("its runs are in MLflow's bin; `mlflow gc` frees their space")
    emit({"study": study, **found.belongings.to_dict()} if as_json else None, lines)


def background(
    context: typer.Context, name: str, study_root: Path | None, address: str | None, hooks: tuple[str, ...]
) -> None:
    """Run the command of `context` without `--detach` in the background, and leave when its study runs."""
    from sctune.manage.detach import detach
    from sctune.manage.jobs import submit
    from sctune.search.study.driver import Driver

    root = _root(study_root)
    if address is None:
        # not as arguments, which every user of the machine can read
        environment = {**os.environ, VARIABLE: "\n".join(hooks)}
        found: Driver | str | int = detach(_words(context, name, None, ()), root, name, environment, say)
    else:
        _check_public(context.params, hooks)
        found = submit(_words(context, name, "auto", hooks), address, root, name, say)
    if isinstance(found, int):
        raise typer.Exit(found)
    if isinstance(found, str):
        say([f"study {name} runs as {found}; its study root {root} is not seen here: ask for it on the cluster's head"])
        return
    document = {"study": name, "folder": str(root / name), "driver": found.to_dict()}
    emit(
        document if context.params.get("as_json") else None,
        [
            f"study {name} runs in the background ({found.text})",
            f"follow it: sctune logs {name} --follow; sctune status {name}; end it: sctune stop {name}",
        ],
    )


def study_name(name: str | None, space: str) -> str:
    """The name a search gets, decided here so that the command that waits knows it."""
    return name or f"{Path(space).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _words(context: typer.Context, name: str, address: str | None, hooks: tuple[str, ...]) -> list[str]:
    """The command again, word by word, with its name and absolute paths, without `--detach` and `--json`."""
    values = {**context.params, "address": address, "notify": hooks, "detach": False, "as_json": False}
    if context.info_name == "search":
        # not whoever runs the head of a cluster
        values |= {"name": name, "owner": values.get("owner") or this_user()}
    words = [str(context.info_name)]
    arguments = []
    for parameter in context.command.params:
        value = values.get(parameter.name or "")
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif isinstance(value, bool):
            # one that is not on by itself may be off by a word of its own
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        elif value is not None and value != parameter.default:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], _absolute(parameter.name or "", str(one))]
    return [*words, *(["--", *arguments] if arguments else [])]


def _absolute(name: str, text: str) -> str:
    """A path as it is found from any folder; names of shipped spaces and data sets, and URIs, as they are."""
    path = Path(text).expanduser()
    made = name in ("study_root", "storage_path")
    # any other word is a study's name, or `paper`, whatever lies here under it
    if name == "prior" and path.suffix not in (".yaml", ".yml"):
        return text
    if name not in LOCAL_PATHS or "://" in text or not (made or path.exists()):
        return text
    return str(path.absolute())


def _check_public(values: dict[str, Any], hooks: tuple[str, ...]) -> None:
    """ConfigError for what must not be seen in the cluster's list of jobs."""
    from sctune.search.run.notify import is_url
    from sctune.urls import has_secrets, without_secrets

    for name in ("tracking_uri", "storage"):
        uri = values.get(name)
        if uri is not None and has_secrets(uri):
            raise ConfigError(
                f"--{name.replace('_', '-')} {without_secrets(uri)}: everybody who sees the cluster's jobs could read "
                "its password; leave it out, and give it to the head in its environment (PGPASSWORD, "
                "MLFLOW_TRACKING_PASSWORD)"
            )
    if any(is_url(hook) for hook in hooks):
        raise ConfigError(
            "--notify with a URL: everybody who sees the cluster's jobs could read it; set "
            f"{VARIABLE} in the environment of the cluster's head"
        )


def _agreed(study: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"delete {study}: there is no terminal to ask; say --yes")
    say([f"delete {study} for good? [y/N]"])
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _root(study_root: Path | None) -> Path:
    return (study_root or studies_folder()).expanduser().absolute()


def _open(name: str, study_root: Path | None, storage: str | None = None) -> Study:
    from sctune.search.study.study import Study

    return Study.open(_root(study_root), name, storage)
