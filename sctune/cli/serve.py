"""`sctune serve` and `sctune export`: a model behind HTTP, and as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.errors import ConfigError

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
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, a folder, or a study: its candidate.")],
    out: Annotated[Path, typer.Option(help="New file; FILE.json is written beside it.")],
    kind: Annotated[str, typer.Option("--format", help="onnx or torch.")] = "onnx",
    images: Annotated[Path | None, typer.Option(help="Folder of images to compare on; default: made ones.")] = None,
    tracking_uri: Registry = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write a model as one ONNX or torch.export file that gives the same scores, which is checked first."""
    from sctune.deploy.export import KINDS, export_model
    from sctune.deploy.locate import open_model

    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise ConfigError(f"--format {kind!r}: give onnx or torch")
    opened = open_model(_address(model), tracking_uri, "cpu")
    pixels = None if images is None else _pixels(opened, images.expanduser().absolute())
    done = export_model(opened, chosen, out.expanduser().absolute(), pixels)
    document = {**done.about, "file": str(done.file)}
    emit(document if as_json else None, [f"wrote {done.file} ({opened.name}): {done.parity.line()}"])


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
