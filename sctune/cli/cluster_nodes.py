"""Commands of a cluster that runs: of a worker about itself (`sctune cluster watch-spot`, `leave`), and `drivers`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from sctune.cli import options as opt
from sctune.cli.output import emit, say, table_console

RESUMABLE = 3
START_S = 60.0

Head = Annotated[str, typer.Option(help="The head, host:port.", envvar="RAY_ADDRESS")]


def watch_spot(address: Head) -> None:
    """On a spot instance of AWS: when it is to be taken back, its trials keep their epoch and go on elsewhere.

    Started beside `ray start` on every worker; ends with its node.
    """
    from sctune.search.cluster.leaving import OwnNodes
    from sctune.search.cluster.spot import InstanceMetadata, watch

    nodes = OwnNodes(address, wait_s=START_S)
    say([f"watching for the notice that AWS takes this instance back ({len(nodes.ids)} node(s))"])
    noticed = watch(nodes, InstanceMetadata(), lambda line: say([line]))
    say(["the node drains" if noticed else "the node has ended"])


def leave(
    address: Head,
    within: Annotated[str, typer.Option(help="Longest wait for the trials, for example 90s or 10m.")] = "2m",
) -> None:
    """Before this machine is turned off: its trials end at their epoch and go on elsewhere.

    Exit code 3 where some run on.
    """
    from sctune.search.cluster.leaving import leave as leave_cluster

    seconds = opt.duration(within, "--within") or 0.0
    if not leave_cluster(address, seconds):
        say([f"after {within} trials still run here; what they have not kept is trained again elsewhere"])
        raise typer.Exit(RESUMABLE)
    say(["this machine has left the cluster"])


def drivers(
    address: Annotated[str, typer.Option(help="Ray cluster: auto or HOST:PORT.")] = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Which searches run on a cluster, whose they are, and what each of them has of it.

    Takes some seconds: a driver is shown when it gives a sign of life.
    """
    from sctune.search.cluster.board import Board
    from sctune.search.cluster.connection import usable_nodes
    from sctune.search.cluster.shares import drivers_table
    from sctune.search.run.driver import session

    with session(address):
        rows = drivers_table(usable_nodes(), Board().living())
    if as_json:
        emit({"drivers": rows}, [])
        return
    if not rows:
        say(["no search runs on this cluster"])
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        # what people call themselves is no markup
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row.values()))
    table_console().print(table)


def register(app: typer.Typer) -> None:
    """Add them to the group `sctune cluster`."""
    app.command("drivers", epilog="Example: sctune cluster drivers --address HEAD:6379")(drivers)
    app.command("watch-spot", epilog="Example: sctune cluster watch-spot --address HEAD:6379")(watch_spot)
    app.command("leave", epilog="Example: sctune cluster leave --address HEAD:6379 --within 10m")(leave)
