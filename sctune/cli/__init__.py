"""The command line: parse, make paths absolute, call, print. Errors become one line and an exit code.

Exit codes: 0 done, 1 bug (with its traceback), an alarm of `sctune monitor`, a consumer that `sctune export --check`
finds to differ or something that `sctune data check` found, 2 bad input, 3 stopped and resumable, 4 all trials failed,
130 interrupted with nothing that could be resumed.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from sctune import __version__
from sctune.cli import (
    confirm,
    deploy,
    figures,
    machine,
    operate,
    pages,
    predict,
    reproduce,
    search,
    serve,
    studies,
    sync,
    train,
    weights,
)
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
app.command(epilog="Example: sctune search --space threshold_patch --data elpv --trials 12")(search.search)
app.command()(search.resume)
app.command()(studies.status)
app.command(epilog="Example: sctune sync STUDY --timeout 60s")(sync.sync)
app.command(epilog="Example: sctune logs STUDY 3 --follow")(operate.logs)
app.command(epilog="Example: sctune stop STUDY")(operate.stop)
app.command(epilog="Example: sctune delete STUDY --yes")(operate.delete)
app.command("list")(studies.list_command)
app.command()(studies.spaces)
app.command()(studies.best)
app.command(epilog="Example: sctune confirm STUDY --top 3 --n-seeds 5")(confirm.confirm)
app.command(epilog="Example: sctune rescore STUDY --trial 3")(confirm.rescore)
app.command(epilog="Example: sctune deploy STUDY --accept-licence")(deploy.deploy)
app.command(epilog="Example: sctune rollback NAME")(deploy.rollback)
app.command()(train.train)
app.command()(machine.ui)
app.command()(machine.doctor)
app.command(epilog="Example: sctune predict images/ --model models:/NAME@champion --out scores.csv")(predict.predict)
app.command(epilog="Example: sctune evaluate models:/NAME@champion DATA --out results")(predict.evaluate)
app.command(epilog="Example: sctune monitor scores.csv --model models:/NAME@champion")(predict.monitor)
app.command(epilog="Example: sctune recalibrate good/ --model models:/NAME@champion --register")(predict.recalibrate)
app.command(epilog="Example: sctune serve --model models:/NAME@champion")(serve.serve)
app.command(epilog="Example: sctune export STUDY --format onnx --out model.onnx")(serve.export)
app.command(epilog="Example: sctune reproduce table1 --dataset elpv")(reproduce.reproduce)
app.command(epilog="Example: sctune figures STUDY")(figures.figures)
app.command(epilog="Example: sctune augmentations --data elpv --out kinds.png")(figures.augmentations)
app.command(epilog="Example: sctune compare STUDY OTHER")(pages.compare)
app.command(epilog="Example: sctune diff STUDY 3 7")(pages.diff)
app.command(epilog="Example: sctune report STUDY --out report.html")(pages.report)
app.command("import-weights")(weights.import_weights)
app.add_typer(machine.cache_app, name="cache")
app.add_typer(data_app, name="data")

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
