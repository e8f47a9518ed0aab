"""`sctune import-weights`: a state dict of the authors' public code becomes a folder as `sctune train --out` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune import __version__
from sctune.cli import options as opt
from sctune.cli.output import emit
from sctune.config import TrialConfig, parse_assignments
from sctune.errors import ConfigError, DataError
from sctune.files import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1


def import_weights(
    file: Annotated[Path, typer.Argument(help="State dict: safetensors or torch.save.", exists=True, dir_okay=False)],
    out: Annotated[Path | None, typer.Option(help="New folder; default: the file's name without its ending.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Image side in pixels it was trained at; default 448.")] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of normal images, which DRA compares with.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Turn weights of the authors' public code (SaliencyCut, DRA, DevNet) into a sctune model. Runs no pickled code."""
    values = parse_assignments(assignments or [])
    if image_size is not None:
        if "data.image_size" in values:
            raise ConfigError("--image-size and --set data.image_size say the same; give one of them")
        values["data.image_size"] = image_size
    file = file.expanduser().absolute()
    out = file.with_suffix("") if out is None else out.expanduser().absolute()
    folder = None if references is None else references.expanduser().absolute()
    report = import_file(file, out, values, folder)
    taken = f"{report['method']}: {len(report['mapped'])} tensors taken over, {len(report['ignored'])} not needed"
    emit({"folder": str(out), **report} if as_json else None, [taken, f"wrote {out}"])


def import_file(file: Path, out: Path, overrides: dict[str, Any], references: Path | None = None) -> dict[str, Any]:
    """Write model.safetensors, config.json and import.json to the new folder `out`; gives what import.json holds.

    overrides: dotted configuration values over the method's published ones; references: a folder of normal images,
    of which the first `model.reference_count` by name are taken where the method compares with references.
    Raises WeightsError, ConfigError or DataError, with nothing written.
    """
    from sctune.backbones.weights import read_state
    from sctune.files import file_sha256
    from sctune.methods.deviation.public_weights import detector_state, public_config, recognise

    if out.exists():
        raise ConfigError(f"{out} exists; give a new folder with --out")
    public = recognise(read_state(file), str(file))
    config = _with_range(public_config(public.method, overrides), references)
    imported = detector_state(public, config)
    images = _references(references, config, public.method)
    report = {
        "format_version": FORMAT_VERSION,
        "sctune": __version__,
        "source": file.name,
        "sha256": file_sha256(file),
        "method": public.method,
        "mapped": imported.mapped,
        "ignored": imported.ignored,
        "added": imported.added,
        "references": list(images),
    }
    state = dict(imported.state)
    if images:
        import torch

        state["references"] = torch.stack(list(images.values()))
    _write(out, state, config, report)
    return report


def _references(folder: Path | None, config: TrialConfig, method: str) -> dict[str, Tensor]:
    """File name -> uint8 image [S, S, 3], as many as the configuration wants; none for methods without references."""
    if config.model.heads not in ("two_head_latent", "four_head"):
        if folder is not None:
            raise ConfigError(f"--references {folder}: the file is of {method}, which compares with none; leave it out")
        return {}
    count = config.model.reference_count
    if folder is None:
        raise ConfigError(
            f"the file is of {method}, which scores by comparing with {count} normal images, and no state dict holds "
            "them; give a folder of them with --references"
        )
    import torch

    from sctune.data.decode import Decoding, decode_image
    from sctune.data.layouts import list_images

    names = list_images(folder)
    if len(names) < count:
        raise DataError(
            f"--references {folder}: {len(names)} images, and {count} are needed; add some, or use "
            f"--set model.reference_count={len(names)}"
        )
    data = config.data
    decoding = Decoding.of(data)
    return {name: torch.from_numpy(decode_image(folder / name, decoding)) for name in names[:count]}


def _with_range(config: TrialConfig, references: Path | None) -> TrialConfig:
    """No file of weights says which depth it was trained on: that of the references counts, else 8 bits."""
    from sctune.data.depth import find_range
    from sctune.data.layouts import list_images
    from sctune.data.ranges import AUTO

    if config.data.range != AUTO:
        return config
    pools = [] if references is None else [(references, list_images(references))]
    return config.override({"data.range": find_range(pools, config.data).range})


def _write(out: Path, state: dict[str, Tensor], config: TrialConfig, report: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # complete under another name first: a folder with the right name is always whole
    try:
        with whole_folder(out) as staged:
            save_file(state, staged / "model.safetensors")
            (staged / "config.json").write_text(json.dumps(config.document(), indent=1), encoding="utf-8")
            (staged / "import.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or " ".join(str(problem).split())
        raise ConfigError(f"cannot write {out}: {reason}; give another folder with --out") from None
