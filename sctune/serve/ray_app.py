"""`sctune serve --address`: the same application in replicas on Ray Serve, until a signal."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from sctune.deploy.locate import model_folder, open_model
from sctune.deploy.model import load_model_folder
from sctune.errors import ClusterError, ConfigError
from sctune.search.cluster.connection import connect, exposure, prepare_environment
from sctune.serve.app import Access, Service, make_app
from sctune.serve.limits import Limits
from sctune.serve.server import GRACE_S, Asked, line, listening, url, warm_up
from sctune.serve.stopping import stop_asked

APPLICATION = "sctune"
START_S = 180.0
"""Seconds that the replicas may take to load the model."""
_POLL_S = 0.2


class Replica:
    """One process that answers; files: the model's folder, as `packed` gives it, by reference."""

    def __init__(self, files: list[Any], address: str, limits: Limits, access: Access, device: str) -> None:
        import ray

        # in a list, since Ray would wait for a bare reference itself and keep the bytes with the arguments
        content: Mapping[str, bytes] = ray.get(files[0])
        with tempfile.TemporaryDirectory(prefix="sctune-model-") as folder:
            model = load_model_folder(unpacked(content, Path(folder)), device)
        warm_up(model)
        self._service, self._access = Service(model, address, limits), access

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._service, self._access)


def packed(folder: Path) -> dict[str, bytes]:
    """All files of a model's folder but its wheel, by relative path: nodes need not see the folder or the registry."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".whl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpacked(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def serve_on_ray(asked: Asked, cluster: str, replicas: int, told: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT, then take the application away.

    cluster: `local` for a Ray of our own on this machine, else what `search.cluster.connect` takes. told: gets the
    warnings, and one line when all replicas answer. Raises ConfigError, ClusterError and what `open_model` raises.
    """
    access, own = asked.access(), cluster == "local"
    if asked.port == 0:
        raise ConfigError("--port 0: Ray Serve takes no free port by itself; give a number")
    with listening(asked.host, asked.port):  # in use? Ray's proxy would only log it
        address = asked.address()
        where = address if asked.model.startswith("models:") else asked.model
        model = open_model(where, asked.tracking_uri, "cpu")
        with model_folder(where, asked.tracking_uri) as folder:
            files = packed(folder)
    prepare_environment()
    import ray
    from ray import serve

    connect(None if own else cluster)
    try:
        # after connecting, which sets handlers of its own; Serve's processes outlive a driver that is killed
        with stop_asked() as asked_to_stop:
            for warning in exposure(None if own else cluster):
                told(warning)
            _deploy(asked, access, address, files, replicas)
            try:
                if _is_running(asked_to_stop):
                    told(line(model, address, url(asked.host, asked.port), access))
                    asked_to_stop.wait()
            finally:
                serve.shutdown()
    finally:
        ray.shutdown()


def _deploy(asked: Asked, access: Access, address: str, files: Mapping[str, bytes], replicas: int) -> None:
    import ray
    from ray import serve

    gpu = _fitting(replicas, asked.device)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise ClusterError(
            "Ray Serve runs on this cluster already, with a port of its own; end it with `serve shutdown`, or serve "
            "with --address local or without --address"
        )
    quiet: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": asked.host, "port": asked.port}, logging_config=quiet)
    deployment = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=asked.limits.waiting,
        max_queued_requests=asked.limits.waiting,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        graceful_shutdown_timeout_s=GRACE_S,
        logging_config=quiet,
    )(serve.ingress()(Replica))
    bound = deployment.bind([ray.put(dict(files))], address, asked.limits, access, "cuda" if gpu else "cpu")
    # waited for below, where a signal is seen
    serve.run_many([serve.RunTarget(bound, APPLICATION, route_prefix="/")], wait_for_applications_running=False)


def _is_running(asked_to_stop: Event) -> bool:
    """Waits until all replicas answer; False where a stop was asked for before. Raises ClusterError."""
    from ray import serve

    end = time.monotonic() + START_S
    while time.monotonic() < end:
        state = serve.status().applications[APPLICATION]
        if state.status == "RUNNING":
            return True
        if state.status == "DEPLOY_FAILED":
            raise ClusterError(f"the replicas did not start: {' '.join(state.message.split())[-400:]}")
        if asked_to_stop.wait(_POLL_S):
            return False
    raise ClusterError(f"the replicas did not start within {START_S:.0f} s; see that the nodes have free CPUs and GPUs")


def _fitting(replicas: int, device: str) -> bool:
    """Whether each replica gets a GPU; raises ClusterError where the cluster does not hold them."""
    import ray

    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
    wanted = device.startswith("cuda")
    if replicas > cpus or (wanted and replicas > gpus):
        raise ClusterError(
            f"--replicas {replicas}: each takes a CPU{' and a GPU' if wanted else ''}, and the cluster has {cpus:g} "
            f"CPUs and {gpus:g} GPUs; give fewer"
        )
    return wanted or (device == "auto" and gpus >= replicas)
