"""A model as one file for other programs: ONNX, or a program of torch.export; checked against the model it came from.

Both take uint8 images [N, S, S, 3] as the model takes them (decoded and resized, any N) and give scores [N]; the
normalisation is inside. Beside the file lies FILE.json: what it is, its threshold, licence and how well it agrees.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sctune import __version__
from sctune.deploy.model import Model
from sctune.deploy.parity import TOLERANCE, Parity, Scores, score_parity
from sctune.deploy.reading import preprocessing
from sctune.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["onnx", "torch"]
KINDS: tuple[Kind, ...] = ("onnx", "torch")
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
BATCH = 8
FORMAT_VERSION = 1
INPUT, OUTPUT = "images", "scores"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Exported:
    """An exported file; about: what FILE.json holds."""

    file: Path
    parity: Parity
    about: Mapping[str, Any]


def export_model(model: Model, kind: Kind, out: Path, images: Pixels | None = None) -> Exported:
    """Write `out` and `out`.json; nothing appears under these names unless the scores agree (Parity.holds).

    images: uint8 [N, S, S, 3] to compare on; None: generated ones. Raises ConfigError where the model cannot be
    exported, a package is missing, the file exists or cannot be written; CheckpointError where the scores differ.
    """
    beside = out.with_name(f"{out.name}.json")
    for path in (out, beside):
        if path.exists():
            raise ConfigError(f"{path} exists; give another file with --out")
    pixels = generated_images(model.config.data.image_size) if images is None else images
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
            file = write_exported(model, Path(staging), kind)
            found = parity(model, model.score(pixels), run_exported(file, kind, pixels))
            if not found.holds:
                raise CheckpointError(
                    f"{out} was not written: {found.line()}, and at most {TOLERANCE:g} and no flipped label are "
                    f"allowed; score with the model itself, or try --format {'torch' if kind == 'onnx' else 'onnx'}"
                )
            about = _about(model, kind, out.name, found)
            written = Path(staging) / beside.name
            written.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            written.replace(beside)
            file.replace(out)
    except OSError as problem:
        raise ConfigError(f"cannot write {out}: {problem.strerror or problem}; give another file with --out") from None
    return Exported(out, found, about)


def exported_scores(model: Model, folder: Path, kind: Kind, pixels: Pixels) -> Scores:
    """Export into `folder` and give what the file makes of uint8 images [N, S, S, 3]; raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    return run_exported(write_exported(model, folder, kind), kind, pixels)


def export_parity(model: Model, folder: Path, kind: Kind, pixels: Pixels) -> Parity:
    """As `exported_scores`, compared with the model's own scores."""
    return parity(model, model.score(pixels), exported_scores(model, folder, kind, pixels))


def parity(model: Model, scores: Scores, others: Scores) -> Parity:
    """Scores [N] of the model beside those [N] of another form of it."""
    return score_parity(scores, others, None if model.threshold is None else model.threshold.value)


def run_exported(file: Path, kind: Kind, pixels: Pixels) -> Scores:
    """Scores [N] that an exported file gives uint8 images [N, S, S, 3], on the CPU with torch's number of threads."""
    run = _onnx_runner(file) if kind == "onnx" else _torch_runner(file)
    # copied: torch takes no read-only memory
    parts = [run(np.array(pixels[start : start + BATCH], order="C")) for start in range(0, len(pixels), BATCH)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def generated_images(size: int, count: int = 24) -> Pixels:
    """Images uint8 [count, size, size, 3] of every kind a camera could send: flat, ramps, noise, spots; always same."""
    random = np.random.default_rng(20)
    ramp = np.linspace(0, 255, size)
    made = []
    for number in range(count):
        level, spread = random.uniform(40, 215), (2, 12, 40)[number % 3]
        image = np.full((size, size, 3), level) + random.normal(0, spread, (size, size, 3))
        if number % 4 == 1:
            image += (ramp[:, None, None] - 127) * random.uniform(-1, 1, 3)
        if number % 4 >= 2:
            row, column = random.integers(0, max(1, size - size // 4), 2)
            image[row : row + size // 4, column : column + size // 4] = random.uniform(0, 255, 3)
        made.append(image)
    made[0][:], made[1][:] = 0, 255
    return np.clip(np.stack(made), 0, 255).round().astype(np.uint8)


def write_exported(model: Model, folder: Path, kind: Kind) -> Path:
    """Write the exported file into `folder`, unchecked. Raises ConfigError for a model that no fixed program can be."""
    _check(model, kind)
    import torch

    module = _exportable(model)
    size = model.config.data.image_size
    example = torch.from_numpy(generated_images(size, 2))
    with torch.no_grad():
        # not for its result: what is computed once and kept must be kept as real numbers, not as symbols
        module(example)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim(INPUT)},), strict=False)
    for node in program.graph.nodes:  # lines of source with the paths of this machine
        node.meta.pop("stack_trace", None)
    file = folder / f"model{ENDINGS[kind]}"
    if kind == "onnx":
        return _save_onnx(program, file, _facts(model))
    # pickled, and loaded by nobody
    program.example_inputs = None
    torch.export.save(program, file, extra_files={"sctune.json": json.dumps(_facts(model))})
    return file


def _check(model: Model, kind: Kind) -> None:
    drawn = model.config.entry.unrepeatable(model.config)
    if drawn is not None:
        raise ConfigError(f"no file can repeat the scores of this model: {drawn}")
    if model.config.runtime.precision == "bf16":
        raise ConfigError(
            f"runtime.precision=bf16 rounds every score to about three digits, and no file repeats them to "
            f"{TOLERANCE:g}; use a model trained with runtime.precision=fp32 or tf32"
        )
    missing = [name for name in _PACKAGES if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise ConfigError(f'--format onnx needs {", ".join(missing)}; run: pip install "sctune[export]"')


def _exportable(model: Model) -> nn.Module:
    """uint8 images [N, S, S, 3] -> scores [N], on the CPU."""
    from torch import Tensor, nn

    class Scoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.method.module()

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.inner(images.permute(0, 3, 1, 2).float() / 255)
            return scores

    return Scoring().eval()


def _save_onnx(program: Any, file: Path, facts: Mapping[str, Any]) -> Path:
    import logging
    import warnings

    import onnx
    import torch

    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # what their optimiser leaves as it is
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, external_data=False, verbose=False
        )
    assert made is not None
    content = made.model_proto
    for part in (content, content.graph, *content.graph.node, *content.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(content, {f"sctune.{name}": str(value) for name, value in facts.items()})
    content.producer_name, content.producer_version = "sctune", __version__
    onnx.checker.check_model(content)
    onnx.save(content, file)
    return file


def _onnx_runner(file: Path) -> Any:
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]
    import torch

    options = onnxruntime.SessionOptions()
    # its own choice is one for each core that it sees, also where it may use fewer
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([OUTPUT], {INPUT: pixels})[0]


def _torch_runner(file: Path) -> Any:
    import torch

    module = torch.export.load(file).module()

    def run(pixels: Pixels) -> NDArray[np.float32]:
        with torch.no_grad():
            scores: NDArray[np.float32] = module(torch.from_numpy(pixels)).numpy()
        return scores

    return run


def _facts(model: Model) -> dict[str, Any]:
    """What whoever runs the file must know; a value is left out where the model does not say it."""
    known = {
        "study": model.meta.get("study"),
        "trial": model.meta.get("trial"),
        "threshold": None if model.threshold is None else model.threshold.value,
        **preprocessing(model.config),
        "licence": model.meta.get("licence"),
        "attribution": model.meta.get("attribution"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _about(model: Model, kind: Kind, name: str, found: Parity) -> dict[str, Any]:
    size = model.config.data.image_size
    return {
        "format_version": FORMAT_VERSION,
        "sctune": __version__,
        "file": name,
        "format": kind,
        "input": {"name": INPUT, "type": "uint8", "shape": ["N", size, size, 3], "colours": "RGB"},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["N"], "meaning": "higher is more anomalous"},
        "rule": None if model.threshold is None else "an image is anomalous where its score is above the threshold",
        **_facts(model),
        "parity": asdict(found),
    }
