"""What Ray raises when it does not start is one line with a way out."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from sctune.errors import ClusterError
from sctune.paths import use_own_folders
from sctune.search.cluster.connection import check_temporary_folder, connect, ensure_token, is_loopback, use_token
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import planned

# as ray/_private/node.py raises it, with no class of its own
TIMED_OUT = Exception("The current node timed out during startup. This could happen because some of the raylet failed.")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (None, "cannot start Ray on this machine: The current node timed out .*; run the same command again"),
        ("auto", "cannot connect to Ray at auto: The current node timed out .*; start it with `ray start --head`"),
    ],
)
def test_a_start_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, address: str | None, expected: str) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise TIMED_OUT

    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=expected) as raised:
        connect(address)
    assert "\n" not in str(raised.value)


def test_an_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt):
        connect(None)


START = """
import json, os
from sctune.search.cluster.connection import listening_addresses, prepare_environment
prepare_environment()
from sctune.search.run.driver import session
with session(None) as warnings:
    import ray
    inside = ray.get(ray.remote(num_cpus=0)(lambda: sorted(os.environ)).remote())
    closed = [sorted(listening_addresses()), warnings]
print(json.dumps([closed, inside, sorted(os.environ)]))
"""


def test_a_ray_of_our_own_listens_here_only_and_never_has_the_drivers_secrets(tmp_path: Path) -> None:
    """The private part of Ray that is replaced for it may go with any version: this looks at the real sockets."""
    import json

    environment = {**os.environ, "PGPASSWORD": "secret", "SCTUNE_STORAGE": "postgresql://u:secret@h/d", "PLAIN": "1"}
    done = subprocess.run(
        [sys.executable, "-c", START], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr
    (addresses, warnings), in_worker, in_driver = json.loads(done.stdout)
    assert addresses and all(is_loopback(address) for address in addresses)
    assert warnings == []
    assert "PLAIN" in in_worker
    assert not {"PGPASSWORD", "SCTUNE_STORAGE"} & set(in_worker)
    assert {"PGPASSWORD", "SCTUNE_STORAGE"} <= set(in_driver)


def test_open_ports_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from sctune.search.cluster.connection import exposure

    with socket.create_server(("0.0.0.0", 0)):
        (line,) = exposure(None)
    assert "0.0.0.0" in line
    assert "firewall" in line


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::ffff:127.0.0.1", True), ("::1", True), ("::", False), ("0.0.0.0", False)],
)
def test_loopback_in_all_its_forms(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_the_token_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    ensure_token(path)
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    ensure_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == first
    assert len(first) == 64


def test_keys_are_not_handed_on_where_ray_writes_them_down() -> None:
    from ray.tune.execution import class_cache

    from sctune.search.cluster.connection import keep_keys_out_of_logs

    keep_keys_out_of_logs()
    assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS" in name or "SECRET" in name]


def test_a_token_lies_in_our_own_folder_where_home_takes_none(
    monkeypatch: pytest.MonkeyPatch, sctune_home: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", "/dev/null/home")
    use_token()
    own = sctune_home / "ray_auth_token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    kept = own.read_text()
    use_token()
    assert own.read_text() == kept
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/dev/null/token")
    with pytest.raises(ClusterError, match=r"^RAY_AUTH_TOKEN_PATH /dev/null/token: .*; name a file"):
        use_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("SCTUNE_HOME", "/dev/null/ours")
    with pytest.raises(ClusterError, match=r"Ray's token can be kept neither in .* set SCTUNE_HOME to a folder"):
        use_token()


def test_libraries_keep_their_files_with_ours_where_home_takes_none(
    monkeypatch: pytest.MonkeyPatch, sctune_home: Path, tmp_path: Path
) -> None:
    for name in ("MPLCONFIGDIR", "TORCH_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    use_own_folders()
    assert not {"MPLCONFIGDIR", "TORCH_HOME"} & os.environ.keys()
    monkeypatch.setenv("HOME", "/dev/null/home")
    use_own_folders()
    assert os.environ["MPLCONFIGDIR"] == str(sctune_home / "matplotlib")
    assert os.environ["TORCH_HOME"] == str(sctune_home / "torch")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_named_before_anything_is_planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "/" + 40 * "t")
    wanted = rf"^{variable} /t+: its path has 41 bytes, and Ray's sockets need one of 39 at most .* RAY_TMPDIR=/tmp"
    # a folder without images would be refused by the plan
    options = SearchOptions(space="threshold_patch", data=str(tmp_path))
    with pytest.raises(ClusterError, match=wanted), planned(options):
        pass
    with pytest.raises(ClusterError, match=wanted):
        connect(None)
    monkeypatch.setenv(variable, "/" + 38 * "t")
    check_temporary_folder()
