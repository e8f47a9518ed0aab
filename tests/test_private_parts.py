"""The private parts of libraries that sctune touches: each in one file per library, and there in the installed version.

After an update the first test says what is gone and which file has to change; the second keeps other files out of it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import partial, reduce
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sctune"
HOMES = {
    "ray": "trial/ray_private.py",
    "optuna": "search/suggest/optuna_private.py",
    "cmaes": "search/suggest/cma_state.py",
    "mlflow": "tracking/mlflow_private.py",
    "torch": "backbones/torch_private.py",
}
"""Library -> the one file that touches what its documentation does not promise."""

PARTS = {
    "ray": (
        "ray.experimental.internal_kv:_internal_kv_get",
        "ray.experimental.internal_kv:_internal_kv_put",
        "ray.experimental.internal_kv:_internal_kv_list",
        "ray.experimental.internal_kv:_internal_kv_del",
        "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE",
        "ray._private.services:resolve_ip_for_localhost",
        "ray._private.worker:get_dashboard_url",
        "ray._private.worker:global_worker.connected",
        "ray._raylet:GcsClient",
        "ray._raylet:InnerGcsClient.check_alive",  # which the other one hands calls on to
        "ray._raylet:InnerGcsClient.get_all_node_info",
        "ray._raylet:InnerGcsClient.drain_node",
        "ray._private.state:state.get_draining_nodes",
        "ray.core.generated.gcs_pb2:GcsNodeInfo.GcsNodeState.ALIVE",
        "ray.core.generated.autoscaler_pb2:DrainNodeReason.Value",
        "ray.tune.registry:TRAINABLE_CLASS",
        "ray.tune.registry:_global_registry.contains",
        "ray.tune.registry:_global_registry.get",
    ),
    "optuna": (
        "optuna.storages:RDBStorage._get_prepared_new_trial",
        "optuna.trial:FrozenTrial.__init__",
        *(
            f"optuna.storages._rdb.models:{name}"
            for name in (
                "TrialModel.__table__.c.trial_id",
                "TrialModel.__table__.c.number",
                "TrialModel.__table__.c.state",
                "TrialModel.__table__.c.datetime_start",
                "TrialModel.__table__.c.datetime_complete",
                "StudyModel.__table__.c.study_id",
                "StudyUserAttributeModel.value_json",
                "StudySystemAttributeModel.value_json",
                "TrialUserAttributeModel.value_json",
                "TrialSystemAttributeModel.value_json",
                "TrialParamModel.distribution_json",
                "TrialParamModel.param_value",
                "TrialIntermediateValueModel.intermediate_value_to_stored_repr",
                "TrialIntermediateValueModel.intermediate_value_type",
                "TrialValueModel.value_to_stored_repr",
                "TrialValueModel.value_type",
            )
        ),
    ),
    "mlflow": (
        "mlflow.store.tracking.rest_store:RestStore",
        "mlflow.utils.rest_utils:http_request",
        "mlflow.utils.rest_utils:verify_rest_response",
    ),
    "torch": ("torch:ops.mkldnn._convolution_pointwise",),
}
"""Library -> "module:attribute", dotted."""


def memory_storage() -> Any:
    import optuna

    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage).ask()
    return storage


def frozen_trial() -> Any:
    import optuna

    return optuna.trial.create_trial(value=0.5)


def optimizer() -> Any:
    import cmaes

    return cmaes.CMA(mean=np.zeros(2), sigma=0.2, bounds=np.array([[0.0, 1.0]] * 2))


def tensor() -> Any:
    import torch

    return torch.zeros(1)


def module() -> Any:
    import torch

    return torch.nn.Identity()


def client(uri: str) -> Any:
    from sctune.tracking.server import mlflow_client

    return mlflow_client(uri)


STORAGE = ("_lock", "_studies", "_trial_id_to_study_id_and_number", "_max_trial_id", "_prev_waiting_trial_number")
CMA = ("_n_max_resampling", "_sigma", "_p_sigma", "_pc", "_C", "_bounds", "_g")
MADE: tuple[tuple[str, Callable[[Path], Any], tuple[str, ...]], ...] = (
    ("optuna", lambda _: memory_storage(), STORAGE),
    ("optuna", lambda _: frozen_trial(), ("_trial_id",)),
    ("cmaes", lambda _: optimizer(), CMA),
    ("torch", lambda _: tensor(), ("_version",)),
    ("torch", lambda _: module(), ("_forward_hooks", "_forward_pre_hooks")),
    (
        "mlflow",
        lambda folder: client(f"sqlite:///{folder / 'mlflow.db'}"),
        ("_tracking_client.store.get_metric_history_bulk",),
    ),
    # it connects when it is first asked
    ("mlflow", lambda _: client("http://127.0.0.1:9"), ("_tracking_client.store.get_host_creds",)),
)
"""What only an object has: library, how it is made, its attributes."""


def reached(found: Any, path: str, library: str, where: str) -> Any:
    try:
        return reduce(getattr, path.split("."), found)
    except AttributeError as problem:
        pytest.fail(f"{library} {version(library)}: {where} is gone ({problem}); mend sctune/{HOMES[library]}")


@pytest.mark.parametrize(("library", "part"), [(library, part) for library, parts in PARTS.items() for part in parts])
def test_it_is_in_the_installed_version(library: str, part: str) -> None:
    module, _, path = part.partition(":")
    try:
        found = import_module(module)
    except ImportError as problem:
        pytest.fail(f"{library} {version(library)}: {module} is gone ({problem}); mend sctune/{HOMES[library]}")
    reached(found, path, library, part)


@pytest.mark.parametrize(
    ("library", "make", "parts"), MADE, ids=["storage", "trial", "optimizer", "tensor", "module", "database", "server"]
)
def test_its_objects_have_it(library: str, make: Callable[[Path], Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    made = make(tmp_path)
    for part in parts:
        reached(made, part, library, f"{type(made).__name__}.{part}")


def test_the_controller_of_tune_has_its_parts() -> None:
    """An object of it takes a cluster, so its source must name what is set on it and taken off it."""
    from ray.tune.execution import tune_controller

    source = inspect.getsource(tune_controller)
    lists = ("trials", "stopped_trials", "failed_trials", "live_trials", "trials_to_cache", "staged_trials")
    kept = [f"self._{name}: " for name in (*lists, "trial_to_actor", "trial_metadata")]
    for name in (
        "self._tune_controller = ",
        "self._actor_force_cleanup_timeout",
        "self._actor_cache = _ObjectCache(",
        "def _cleanup_cached_actors(self, force_all: bool = False)",
        "self._update_trial_queue(blocking=not dont_wait_for_trial)",
        "def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool",
        *kept,
    ):
        assert name in source, f"ray {version('ray')}: {name} is gone; mend sctune/{HOMES['ray']}"


def private_touches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of imports of a private module or name of another library, and of private attributes of objects.

    A private attribute that the file itself defines is its own.
    """
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("sctune"):
            for name in node.names:
                if is_private(f"{node.module}.{name.name}"):
                    yield node.lineno, f"{node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if is_private(name.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node) and node.attr not in own:
            yield node.lineno, f"{ast.unparse(node)}"


def is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def is_private(path: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in path.split("."))


def test_no_other_file_touches_private_parts() -> None:
    named_tuples = ("_make", "_fields", "_replace", "_asdict")  # public by their documentation
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in HOMES.values()
        for line, what in private_touches(ast.parse(path.read_text(encoding="utf-8")))
        if not what.endswith(named_tuples)
    ]
    assert found == [], f"move these to {', '.join(HOMES.values())}"


def test_a_private_touch_is_seen() -> None:
    seen = partial(map, lambda source: [what for _, what in private_touches(ast.parse(source))])
    assert list(seen(["from ray._private import x", "a._b", "import a.b", "self._c\nd._c", "from a import _b"])) == [
        ["ray._private.x"], ["a._b"], [], [], ["a._b"],
    ]  # fmt: skip
