"""The command line: parse, make paths absolute, call, print. Errors become one line and an exit code.

Exit codes: 0 done, 1 bug (with its traceback), an alarm of `sctune monitor`, a consumer that `sctune export --check`
finds to differ or something that `sctune data check` found, 2 bad input, 3 stopped and resumable, 4 all trials failed,
130 interrupted with nothing that could be resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from sctune import __version__
from sctune.cli import (
    cluster_nodes,
    confirm,
    deploy,
    figures,
    machine,
    operate,
    pages,
    predict,
    replay,
    reproduce,
    search,
    serve,
    simulate,
    studies,
    sync,
    train,
    weights,
)
from sctune.cli.cluster import cluster_app
from sctune.cli.data import data_app
from sctune.cli.hide import hide_passwords
from sctune.cli.output import messages
from sctune.errors import SctuneError
from sctune.paths import use_own_folders

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hyperparameter search for open-set visual anomaly detection with SaliencyCut.\n\n"
    "Start with `sctune search --space threshold_patch`, then `sctune ui`.",
)
PANELS: dict[str, tuple[tuple[Callable[..., None], str | None, str | None], ...]] = {
    "Search": (
        (search.search, None, "sctune search --space threshold_patch --data elpv --trials 12"),
        (search.resume, None, "sctune resume STUDY --trials +20"),
        (operate.stop, None, "sctune stop STUDY"),
        (studies.spaces, None, None),
    ),
    "Look": (
        (studies.list_command, "list", None),
        (studies.status, None, "sctune status STUDY --check"),
        (operate.logs, None, "sctune logs STUDY 3 --follow"),
        (studies.best, None, "sctune best STUDY > best.yaml"),
        (machine.ui, None, None),
        (pages.report, None, "sctune report STUDY --out report.html"),
        (pages.compare, None, "sctune compare STUDY OTHER"),
        (pages.diff, None, "sctune diff STUDY 3 7"),
        (figures.figures, None, "sctune figures STUDY"),
        (replay.replay, None, "sctune replay STUDY --scheduler asha,median --factor 2,3"),
        (simulate.simulate, None, "sctune simulate TABLE --scheduler asha,race --replicates 1,4"),
        (sync.sync, None, "sctune sync STUDY --timeout 60s"),
        (operate.note, None, "sctune note STUDY 'the one with the new lens'"),
        (operate.delete, None, "sctune delete STUDY --yes"),
    ),
    "Confirm and deploy": (
        (confirm.confirm, None, "sctune confirm STUDY --top 3 --n-seeds 5"),
        (confirm.rescore, None, "sctune rescore STUDY --trial 3"),
        (deploy.deploy, None, "sctune deploy STUDY --accept-licence"),
        (deploy.rollback, None, "sctune rollback NAME"),
        (serve.export, None, "sctune export STUDY --format onnx --out model.onnx"),
    ),
    "Use a model": (
        (predict.predict, None, "sctune predict images/ --model models:/NAME@champion --out scores.csv"),
        (predict.evaluate, None, "sctune evaluate models:/NAME@champion DATA --out results"),
        (predict.monitor, None, "sctune monitor scores.csv --model models:/NAME@champion"),
        (predict.recalibrate, None, "sctune recalibrate good/ --model models:/NAME@champion --register"),
        (serve.serve, None, "sctune serve --model models:/NAME@champion"),
    ),
    "Data": ((figures.augmentations, None, "sctune augmentations --data elpv --out kinds.png"),),
    "Paper": (
        (reproduce.reproduce, None, "sctune reproduce table1 --dataset elpv"),
        (train.train, None, "sctune train --config best.yaml --data DATA --test"),
        (weights.import_weights, "import-weights", None),
    ),
    "Machine": ((machine.doctor, None, None),),
}
"""Panel of `sctune --help` -> its commands: function, name where it is not the function's, example."""

for _panel, _commands in PANELS.items():
    for _function, _name, _example in _commands:
        _epilog = None if _example is None else f"Example: {_example}"
        app.command(_name, epilog=_epilog, rich_help_panel=_panel)(_function)
cluster_nodes.register(cluster_app)
app.add_typer(data_app, name="data", rich_help_panel="Data")
app.add_typer(machine.cache_app, name="cache", rich_help_panel="Machine")
app.add_typer(cluster_app, name="cluster", rich_help_panel="Machine")

# typer carries its own click, whose errors it does not name; this is the base of those about the command line
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


INTERRUPTED = 128 + 2
"""Exit code of a process that SIGINT ended, as shells have it."""


def main() -> None:
    """Entry point of `sctune`."""
    try:
        use_own_folders()
        hide_passwords()
        sys.exit(app(standalone_mode=False))
    except SctuneError as problem:
        _complain(str(problem), problem.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted", INTERRUPTED)
    except USAGE_ERROR as problem:
        if len(sys.argv) < 3 and not str(problem):
            problem.show()  # no arguments at all: the help
            sys.exit(2)
        place = problem.ctx.command_path if problem.ctx is not None else "sctune"
        _complain(f"{' '.join(problem.format_message().split()).rstrip('.')}; see `{place} --help`", 2)


def _complain(text: str, code: int) -> NoReturn:
    messages.print(f"sctune: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
