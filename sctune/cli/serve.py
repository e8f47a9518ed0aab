"""`sctune serve` and `sctune export`: a model behind HTTP, and as one file for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.deploy.conformance.check import Checked
    from sctune.deploy.model import Model

DIFFERS = 1
"""Exit code of `sctune export --check` for a consumer that differs."""

Registry = Annotated[
    str | None, typer.Option("--tracking-uri", help="Store of the registry; default: as for a search.")
]
_MOST = 256


def serve(
    model: Annotated[str, typer.Option(help="models:/NAME@champion, models:/NAME/VERSION or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients send; or in SCTUNE_SERVE_TOKEN.")
    ] = None,
    tracking_uri: Registry = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Images that are scored together.")] = 32,
    max_bytes: Annotated[str, typer.Option(help="Largest body of a request, for example 20MB.")] = "20MB",
    address: Annotated[str | None, typer.Option(help="Serve on Ray Serve: local, auto or a cluster's address.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer, with --address.")] = 1,
) -> None:
    """Answer images over HTTP until Ctrl-C: score, label, heat map; a page to drop images on at /."""
    from sctune.serve.limits import Limits
    from sctune.serve.server import Asked
    from sctune.serve.server import serve as serve_here

    limits = Limits(max_bytes=opt.size(max_bytes, "--max-bytes") or 0, max_batch=max_batch)
    secret = None if token_file is None else token_file.expanduser().absolute()
    asked = Asked(model, host, port, tracking_uri, device, secret, limits)
    if address is not None:
        from sctune.serve.ray_app import serve_on_ray

        serve_on_ray(asked, address, replicas, lambda line: say([line]))
        return
    if replicas != 1:
        raise ConfigError(f"--replicas {replicas}: one process answers without Ray; add --address local")
    serve_here(asked, lambda line: say([line]))


def export(
    model: Annotated[
        str | None, typer.Argument(help="models:/NAME@ALIAS, a folder, or a study: its candidate.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file; FILE.json is written beside it.")] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx or torch.")] = "onnx",
    images: Annotated[Path | None, typer.Option(help="Folder of images to compare on; default: made ones.")] = None,
    pack: Annotated[
        Path | None,
        typer.Option(help="New folder for raw files with the pixels and scores that the model makes of them."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="COMMAND|URL", help="Let it score a pack's raw files; exit code 1 where it differs."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of the server at --check URL; or in SCTUNE_SERVE_TOKEN.")
    ] = None,
    tracking_uri: Registry = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write a model as one ONNX or torch.export file that gives the same scores, which is checked first.

    With --pack a conformance pack beside it, or alone; with --check a program that reads images by itself is compared
    with the pack: `--pack DIR --check COMMAND` with one that is there, `MODEL --check COMMAND` with one made for it.
    """
    from sctune.deploy.export import KINDS, export_model
    from sctune.deploy.locate import open_model

    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise ConfigError(f"--format {kind!r}: give onnx or torch")
    folder = None if pack is None else pack.expanduser().absolute()
    if images is not None and out is None:
        raise ConfigError(f"--images {images}: they are for comparing the file that --out names; give --out")
    _refuse_unfit(model, out, folder, check)
    token = _token(check, token_file)
    opened = None if model is None else open_model(_address(model), tracking_uri, "cpu")
    document: dict[str, Any] = {}
    lines: list[str] = []
    if opened is not None and out is not None:
        pixels = None if images is None else _pixels(opened, images.expanduser().absolute())
        done = export_model(opened, chosen, out.expanduser().absolute(), pixels)
        document |= {**done.about, "file": str(done.file)}
        lines.append(f"wrote {done.file} ({opened.name}): {done.parity.line()}")
    if opened is not None and folder is not None:
        document |= {"pack": str(folder)}
        lines.append(_write_pack(opened, folder))
    if check is None:
        emit(document if as_json else None, lines)
        return
    found = _checked(opened, folder, check, token)
    emit({**document, "check": found.to_dict()} if as_json else None, lines)
    if not as_json:
        _print_checked(found)
    if found.differing:
        raise typer.Exit(DIFFERS)


def _refuse_unfit(model: str | None, out: Path | None, pack: Path | None, check: str | None) -> None:
    if model is None and out is not None:
        raise ConfigError(f"--out {out}: name the model that is written, as in `sctune export MODEL --out {out}`")
    if model is None and (pack is None or check is None):
        raise ConfigError("name a model, as in `sctune export MODEL --out FILE`, or give --pack DIR --check COMMAND")
    if model is not None and out is None and pack is None and check is None:
        raise ConfigError("nothing is asked for: give --out FILE, --pack DIR or --check COMMAND")
    if model is not None and pack is not None and check is not None and (pack / "pack.json").exists():
        raise ConfigError(f"--pack {pack} is there: leave {model} out to check with it, or give a new folder")


def _token(check: str | None, file: Path | None) -> str | None:
    """What is sent to the server that is checked; found before anything is written."""
    from sctune.deploy.conformance.consumer import is_mlflow, is_server
    from sctune.serve.auth import find_token

    if check is None or not is_server(check):
        if file is not None:
            raise ConfigError(f"--token-file {file}: a token is for a server; give its address, --check http://...")
        return None
    if file is None and is_mlflow(check):
        return None  # the variable's token is that of `sctune serve`, and no other server's business
    # none is needed here: whether the server wants one it says itself
    return find_token("localhost", None if file is None else file.expanduser().absolute())


def _write_pack(model: Model, folder: Path) -> str:
    from sctune.deploy.conformance.pack import write_pack

    made = write_pack(model, folder)
    return f"wrote {folder}: {len(made.cases)} raw files, and the pixels and scores of {model.name}"


def _checked(model: Model | None, folder: Path | None, consumer: str, token: str | None) -> Checked:
    from tempfile import TemporaryDirectory

    from sctune.deploy.conformance.check import check_consumer
    from sctune.deploy.conformance.pack import read_pack, write_pack

    if folder is not None:
        return check_consumer(read_pack(folder), consumer, token)
    assert model is not None
    with TemporaryDirectory(prefix="sctune-pack-") as place:
        return check_consumer(write_pack(model, Path(place) / "pack"), consumer, token)


def _print_checked(found: Checked) -> None:
    from rich.console import Console
    from rich.table import Table

    # for a file or a program no line is broken
    console = Console() if sys.stdout.isatty() else Console(width=220)
    table = Table()
    for name in ("file", "expected", "got", "difference"):
        table.add_column(name, no_wrap=True, justify="left" if name == "file" else "right")
    for name in ("pixels", "what differs", "looks like"):
        table.add_column(name, overflow="fold")
    for row in found.rows:
        pixels = "" if row.pixels is None else f"up to {row.pixels}, {100 * (row.share or 0):.3g} % of them"
        numbers = ("" if value is None else f"{value:.6g}" for value in (row.expected, row.got, row.difference))
        table.add_row(row.file, *numbers, pixels, row.fault or "", row.hint or "")
    console.print(table, markup=False)
    print(f"{found.consumer}: {found.line()}")


def _address(model: str) -> str:
    from sctune.deploy.register import CANDIDATE, registered_name

    if model.startswith("models:") or Path(model).expanduser().exists() or "/" in model:
        return model
    return f"models:/{registered_name(model)}@{CANDIDATE}"


def _pixels(model: Any, folder: Path) -> Any:
    """At most _MOST images of a folder, spread evenly over their names."""
    import numpy as np

    from sctune.serve.inputs import list_inputs

    paths = list_inputs([str(folder)])
    chosen = [paths[row] for row in np.unique(np.linspace(0, len(paths) - 1, _MOST).round().astype(int))]
    return np.stack([model.prepare(Path(path)).pixels for path in chosen])
