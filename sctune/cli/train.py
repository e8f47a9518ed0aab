"""`sctune train`: one configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.config import parse_assignments


def train(
    config: Annotated[Path | None, typer.Option(help="YAML configuration, such as `sctune best` prints.")] = None,
    profile: Annotated[str, typer.Option(help="Base values where no file is given.")] = "cpu",
    method: opt.Method = None,
    data: Annotated[str | None, typer.Option(help="elpv, a folder or a CSV file.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Score the test pool at the end (looked at once).")] = False,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the model, which `predict` and `serve` take.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Train one configuration, without Ray."""
    from sctune.config import TrialConfig, load_profile, read_yaml
    from sctune.deploy.single import check_new_folder, write_trained
    from sctune.methods.named import method_values
    from sctune.train.single import train_one

    if out is not None:
        out = out.expanduser().absolute()
        check_new_folder(out)
    base = TrialConfig.load(read_yaml(config)) if config is not None else load_profile(profile)
    values: dict[str, Any] = {} if method is None else method_values(method, profile)
    if data is not None:
        values["data.source"] = data if data == "elpv" or "=" in data else str(Path(data).expanduser().absolute())
    trained = train_one(base.override(values | parse_assignments(assignments or [])), test, say)
    if out is not None:
        write_trained(out, trained)
        say([f"the model is in {out}; score images with it: sctune predict IMAGES --model {out}"])
    emit(trained.report if as_json else None, [f"{name} {value:.4f}" for name, value in trained.metrics.items()])
