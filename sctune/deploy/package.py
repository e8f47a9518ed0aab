"""A wheel of the sctune that is running, made from its installed files: the code that travels with a model."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import sctune

# MLflow's own way to carry code (`code_paths`) lays every file of the package beside the model, and a server takes each
# by a request of its own: 347 files were 16 to 64 s to register and 7 to 38 s at each load over HTTP, one wheel 0.1 s
# to 0.6 s and 0.2 to 1.1 s (2026-11-29, a busy machine). It also stays at the front of sys.path once a model is loaded.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: sctune\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_SPACES = "search_spaces"


def wheel_name() -> str:
    """File name of the wheel: name, version, pure Python."""
    return f"sctune-{_version(_distribution())}-py3-none-any.whl"


def build_wheel(folder: Path) -> Path:
    """Write the wheel into `folder` (made if missing) and give its path; the same files give the same bytes.

    Works for a normal and for an editable installation, and for a checkout on the path that is not installed.
    """
    installed = _distribution()
    info = f"sctune-{_version(installed)}.dist-info"
    files = {**_package_files(), f"{info}/METADATA": _metadata(installed), f"{info}/WHEEL": _WHEEL.encode()}
    if installed is not None:
        for name in ("entry_points.txt", "licenses/LICENSE"):
            text = installed.read_text(name)
            if text:
                files[f"{info}/{name}"] = text.encode()
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel_name()
    staged = target.with_suffix(".new")
    with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return staged.replace(target)


def _package_files() -> dict[str, bytes]:
    package = Path(sctune.__file__).parent
    files = {f"sctune/{path.relative_to(package).as_posix()}": path.read_bytes() for path in _sources(package)}
    beside = package.parent / _SPACES
    if not (package / _SPACES).is_dir() and beside.is_dir():
        # an editable installation has the spaces at the top of the checkout, a wheel has them inside
        files |= {f"sctune/{_SPACES}/{path.name}": path.read_bytes() for path in sorted(beside.glob("*.yaml"))}
    return dict(sorted(files.items()))


def _sources(package: Path) -> list[Path]:
    hidden = {"__pycache__"}
    return [
        path
        for path in sorted(package.rglob("*"))
        if path.is_file() and not hidden & set(path.parts) and path.suffix not in (".pyc", ".pyo")
    ]


def _distribution() -> Distribution | None:
    try:
        return distribution("sctune")
    except PackageNotFoundError:
        return None


def _version(installed: Distribution | None) -> str:
    return installed.version if installed is not None else sctune.__version__


def _metadata(installed: Distribution | None) -> bytes:
    text = installed.read_text("METADATA") if installed is not None else None
    return (text or f"Metadata-Version: 2.1\nName: sctune\nVersion: {sctune.__version__}\n").encode()


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    rows = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*rows, f"{own_name},,\n"]).encode()
