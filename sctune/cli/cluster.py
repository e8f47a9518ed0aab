"""`sctune cluster`: commands about a cluster of machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from sctune.cli import options as opt
from sctune.cli.output import emit, print_lines, table_console
from sctune.cli.search import OPTION_FLAGS
from sctune.search.plan.options import SearchOptions

if TYPE_CHECKING:
    from sctune.search.cluster.table import Table as CheckTable

cluster_app = typer.Typer(no_args_is_help=True, help="Machines that a search runs on (cluster/README.md).")
NOT_OF_A_SEARCH = {"timeout", "as_json"}
UNHEALTHY = 2


@cluster_app.command(epilog="Example: sctune cluster check --storage-path /shared/sctune --data DIR --tracking-uri URL")
def check(
    context: typer.Context,
    data: opt.Data = None,
    normal: opt.Normal = None,
    anomalous: opt.Anomalous = None,
    category: opt.Category = None,
    setting: opt.Setting = "general",
    known_class: opt.KnownClass = None,
    skip_corrupt: opt.SkipCorrupt = False,
    space: opt.Space = "threshold_patch",
    method: opt.Method = None,
    profile: opt.Profile = None,
    assignments: opt.Assignments = None,
    address: Annotated[str, typer.Option(help="Ray cluster: auto or HOST:PORT.", rich_help_panel="Machines")] = "auto",
    cpus_per_trial: opt.CpusPerTrial = None,
    gpus_per_trial: opt.GpusPerTrial = None,
    study_root: opt.StudyRoot = None,
    storage: opt.Storage = None,
    storage_path: opt.StoragePath = None,
    publish: opt.Publish = "auto",
    tracking_uri: opt.TrackingUri = None,
    timeout: Annotated[
        str | None,
        typer.Option(help="A node that takes longer is named: 60s; default: 120s and the time to read the images."),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Whether driver, nodes and services have what a search needs, before it begins; exit code 2 where one has not.

    Give it the options of the search. One row for each check, one line of advice for each failure.
    """
    given = {OPTION_FLAGS.get(key, key): value for key, value in context.params.items() if key not in NOT_OF_A_SEARCH}
    options, limit_s = SearchOptions.from_command(given), opt.duration(timeout, "--timeout")
    from sctune.search.cluster.table import lines_of, table_of, verdict
    from sctune.search.run.cluster_check import check_cluster

    result = check_cluster(options, limit_s)
    if as_json:
        emit(result.to_dict(), [])
    else:
        _print(table_of(result.driver, result.own, result.nodes))
        print_lines([*lines_of(result.own, result.nodes), verdict(result.own, result.nodes)])
    if not result.healthy:
        raise typer.Exit(UNHEALTHY)


def _print(shown: CheckTable) -> None:
    table = Table()
    for column in shown.header:
        table.add_column(column, overflow="fold")
    for row in shown.rows:
        # what nodes and libraries say is no markup
        table.add_row(*map(Text, row))
    table_console().print(table)
