"""Commands that read what is stored: `sctune status`, `list`, `best` and `spaces`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sctune.cli import options as opt
from sctune.cli.output import emit, print_lines, say, table_console
from sctune.cli.sync import show_check
from sctune.errors import StudyError
from sctune.paths import studies_folder

if TYPE_CHECKING:
    from sctune.search.study.result import StudyResult


def status(
    study: Annotated[str, typer.Argument()],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the record with MLflow and the checkpoints instead.")
    ] = False,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Trials of a study in order of merit, and how sure the order is.

    With --check: whether MLflow and the checkpoints say what the study's record says; exit code 3 where they differ.
    """
    if check:
        show_check(study, study_root, storage, as_json)
        return
    from sctune.search.study.driver import study_launches
    from sctune.search.study.result import summary_lines

    result = _stored(study, study_root, storage)
    launches = study_launches((study_root or studies_folder()).expanduser().absolute(), study, storage)
    if as_json:
        emit({**result.to_dict(), **launches.to_dict()}, [])
        return
    from sctune.text import short

    table = Table(title=f"study {result.name}")
    failed = any(row.failure for row in result.rows)
    for column in (
        "trial",
        "state",
        "epochs",
        result.objective.label,
        "seconds",
        "parameters",
        *(["failure"] if failed else []),
    ):
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
    print_lines(
        [*launches.whose(), *launches.lines(), *summary_lines(result), *([result.verdict] if result.verdict else [])]
    )


def list_command(study_root: opt.StudyRoot = None, storage: opt.StoredAt = None, as_json: opt.AsJson = False) -> None:
    """All studies in the study root, or in a database."""
    from sctune.search.study.study import list_stored, local_manifests
    from sctune.urls import without_secrets

    root = (study_root or studies_folder()).expanduser().absolute()
    studies = local_manifests(root) if storage is None else list_stored(storage)
    if as_json:
        rows = [
            {
                "study": m.name,
                "created": m.created,
                "space": m.space["name"],
                "trials": m.trials,
                "owner": m.owner,
                "notes": m.notes,
            }
            for m in studies
        ]
        emit({"study_root": str(root), "studies": rows}, [])
        return
    table = Table(title=str(root) if storage is None else without_secrets(storage))
    for column in ("study", "owner", "created", "space", "data", "profile", "trials", "last launch", "notes"):
        table.add_column(column, overflow="fold")
    for m in studies:
        last = (m.launches[-1].reason or "running or killed") if m.launches else "never started"
        cells = (m.name, m.owner or "", m.created, str(m.space["name"]), m.data.name, m.profile, str(m.trials), last)
        # what people write is no markup
        table.add_row(*(Text(cell) for cell in (*cells, m.notes or "")))
    table_console().print(table)


def spaces(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None,
    profile: Annotated[str, typer.Option(help="Of `method`: the profile that it is made for.")] = "cpu",
) -> None:
    """The search spaces that come with sctune, that over all methods, and those of single ones."""
    from sctune.config import load_profile, read_yaml, yaml_text
    from sctune.errors import SpaceError, nearest
    from sctune.search.plan.method_space import DESCRIPTION, method_space
    from sctune.search.space.named import ALL_METHODS, method_spaces, shipped_spaces

    shipped, own = shipped_spaces(), method_spaces()
    if name == ALL_METHODS:
        space = method_space(profile, load_profile(profile), {})
        say(list(space.notes))
        print(yaml_text(space.to_dict(), width=120), end="")
        return
    if name is not None:
        if name not in (*shipped, *own):
            raise SpaceError(f"unknown space {name!r}; {nearest(name, (*shipped, *own, ALL_METHODS))}")
        if name in shipped:
            print(shipped[name].read_text(encoding="utf-8"), end="")
        else:
            print(yaml_text({"format_version": 1, **own[name]}), end="")
        return
    over_all = {ALL_METHODS: {"description": DESCRIPTION}}
    for known, content in {**over_all, **own, **{file: read_yaml(path) for file, path in shipped.items()}}.items():
        print(f"{known:16s} {content.get('description', '')}")


def best(
    study: Annotated[str, typer.Argument()], study_root: opt.StudyRoot = None, storage: opt.StoredAt = None
) -> None:
    """The winning configuration as a YAML file on stdout."""
    from sctune.config import yaml_text
    from sctune.search.study.study import Study

    result = _stored(study, study_root, storage, noise=False)
    if result.best is None:
        raise StudyError(f"study {study} has no full run yet; go on with `sctune resume {study}`")
    manifest = Study.open((study_root or studies_folder()).expanduser().absolute(), study, storage).manifest
    config = manifest.config_of(result.best.params)
    say(list(result.notes))
    print(f"# study {study}, trial {result.best.number}, selection {result.objective.label} {result.best.value:.4f}")
    print(yaml_text(config.document()), end="")


def _stored(name: str, study_root: Path | None, storage: str | None, noise: bool = True) -> StudyResult:
    from sctune.search.study.stored import load_result

    return load_result((study_root or studies_folder()).expanduser().absolute(), name, noise, storage)
