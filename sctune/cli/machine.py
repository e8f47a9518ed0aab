"""Commands about this machine: `sctune ui`, `doctor` and `cache`."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.paths import cache_folder

cache_app = typer.Typer(no_args_is_help=True, help="Decoded images that all trials on this machine share.")


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: as for a search.")] = None,
) -> None:
    """MLflow's pages on the right store, on this machine only."""
    from sctune.paths import home
    from sctune.tracking.choice import choose_store
    from sctune.tracking.server import check_tracking, safe_uri, ui_command, ui_environment

    uri, origin = choose_store(tracking_uri, home())
    command = ui_command(uri, port)
    check_tracking(uri)
    say([f"MLflow at http://127.0.0.1:{port}, over {safe_uri(uri)} ({origin}); end with Ctrl-C"])
    with subprocess.Popen(command, env=ui_environment(uri)) as server:
        try:
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            code = 0
    raise typer.Exit(code)


def doctor(as_json: opt.AsJson = False) -> None:
    """What this machine can do, what is missing, and how to get it."""
    from sctune.doctor import examine

    findings = examine()
    lines = [f"{'ok ' if row['ok'] else 'no '} {row['what']}: {row['detail']}" for row in findings]
    emit({"findings": findings} if as_json else None, lines)


@cache_app.command("list")
def cache_list(as_json: opt.AsJson = False) -> None:
    """Decoded image sets and their sizes."""
    from sctune.data.images import ImageCache

    entries = ImageCache(cache_folder()).entries()
    lines = [
        f"{entry.key[:12]}  {entry.images:6d} images of {entry.size} px  {entry.nbytes / 2**20:9.1f} MiB"
        for entry in entries
    ]
    total = sum(entry.nbytes for entry in entries)
    document = {"folder": str(cache_folder()), "bytes": total, "entries": len(entries)}
    emit(document if as_json else None, [*lines, f"{total / 2**20:.1f} MiB in {cache_folder()}"])


@cache_app.command("clear", epilog="Example: sctune cache clear --older-than 30d --max-size 10GB")
def cache_clear(
    older_than: Annotated[str | None, typer.Option(help="Only what was not used for so long: 30d, 12h.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Only the least used ones above this size: 10GB, 500MB.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Remove decoded images; they are made again when needed. Running searches keep those that they use."""
    from sctune.data.images import ImageCache

    seconds = opt.duration(older_than, "--older-than") or 0.0
    limit = opt.size(max_size, "--max-size")
    freed = ImageCache(cache_folder()).clear(seconds, limit or 0)
    document = {"folder": str(cache_folder()), "freed_bytes": freed}
    emit(document if as_json else None, [f"freed {freed / 2**20:.1f} MiB in {cache_folder()}"])
