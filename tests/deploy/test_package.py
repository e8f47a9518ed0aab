from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import sctune
from sctune.deploy.package import build_wheel


def test_the_same_files_give_the_same_wheel(tmp_path: Path) -> None:
    first, second = build_wheel(tmp_path / "a"), build_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


def test_the_record_names_every_file_and_its_digest(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = [line.split(",") for line in archive.read(record).decode().splitlines()]
        assert [row[0] for row in rows] == names
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            expected = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(content))
    assert not [name for name in names if name.endswith(".pyc")]
    assert {"sctune/profiles.yaml", "sctune/deploy/flavor.py"} <= set(names)
    assert [name for name in names if name.startswith("sctune/search_spaces/")]


def test_pip_installs_it_and_the_copy_runs(tmp_path: Path) -> None:
    wheel, target = build_wheel(tmp_path), tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    program = "import sctune, sctune.config as c; print(sctune.__file__, sctune.__version__, c.profile_names())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(f"{target / 'sctune' / '__init__.py'} {sctune.__version__} [")
    assert "smoke" in done.stdout
