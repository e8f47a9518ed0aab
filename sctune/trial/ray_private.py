"""Every part of Ray that its documentation does not promise; tests/test_private_parts.py names what an update took.

Ray is pinned to one minor version for them. Each is reached through a function here, and Ray is imported inside only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def key_value(key: str) -> bytes | None:
    """From the key-value store of the cluster, which every node reaches."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = _internal_kv_get(key.encode())
    return found


def set_key_value(key: str, value: bytes) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key.encode(), value)


def keys_with(prefix: str) -> list[str]:
    """Names in the key-value store that begin so, sorted."""
    from ray.experimental.internal_kv import _internal_kv_list

    return sorted(name.decode() for name in _internal_kv_list(prefix.encode()))


def remove_key(key: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key.encode())


def passed_variables() -> set[str]:
    """Names of the environment variables that Tune hands to its actors; what is taken out is handed on no more."""
    from ray.tune.execution import class_cache

    names: set[str] = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set())
    return names


@contextmanager
def localhost_kept() -> Iterator[bool]:
    """While it lasts Ray does not replace 127.0.0.1 by the machine's address; False where that cannot be had."""
    from ray._private import services

    replaced = getattr(services, "resolve_ip_for_localhost", None)
    if replaced is None:
        yield False
        return
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield True
    finally:
        services.resolve_ip_for_localhost = replaced


def ask_head(server: str, timeout_s: float) -> None:
    """Ask the head at host:port whether it lives; raises ray.exceptions.AuthenticationError, and whatever else."""
    import_module("ray._raylet").GcsClient(address=server).check_alive([], timeout=timeout_s)


def draining_nodes() -> set[str]:
    """Ids of the nodes that Ray was told are being taken away; of the cluster that this process belongs to."""
    from ray._private import state

    return set(state.state.get_draining_nodes())


class Head:
    """The head at host:port, asked without joining its cluster. Every call raises what Ray does when it is away."""

    def __init__(self, server: str, timeout_s: float) -> None:
        self._client = import_module("ray._raylet").GcsClient(address=server)
        self._timeout_s = timeout_s

    def nodes(self) -> dict[str, tuple[str, bool]]:
        """Id -> address and whether it is the head, of every node that lives."""
        from ray.core.generated import gcs_pb2

        found = self._client.get_all_node_info(timeout=self._timeout_s)
        alive = gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE
        return {
            key.hex(): (info.node_manager_address, bool(info.is_head_node))
            for key, info in found.items()
            if info.state == alive
        }

    def drain(self, node: str, why: str, deadline: float) -> str | None:
        """Tell it that a node is taken away at `deadline` (seconds since 1970); None, or why it does not take that."""
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        taken, refusal = self._client.drain_node(node, reason, why, int(deadline * 1000), timeout=self._timeout_s)
        return None if taken else str(refusal)


def kill_actors_after(tune_controller: Any, seconds: float) -> None:
    """How long Tune waits for an actor to end before it kills it; tune_controller: what a scheduler is given."""
    controller = getattr(tune_controller, "_tune_controller", None)
    if controller is not None and hasattr(controller, "_actor_force_cleanup_timeout"):
        controller._actor_force_cleanup_timeout = seconds


_SETS_OF_ENDED = ("_stopped_trials", "_failed_trials", "_live_trials", "_trials_to_cache")
_LISTS_OF_ENDED = (*_SETS_OF_ENDED, "_trials", "_trial_to_actor", "_staged_trials", "_trial_metadata")


def forget_ended_trials(tune_controller: Any) -> None:
    """Take the trials that have ended off Tune's lists; tune_controller: what a scheduler is given.

    Tune keeps every trial for its snapshot and for what `Tuner.fit` gives back, with all that it worked out of its
    metrics: some 40 KB each. Nobody reads either: the record is the truth. A trial whose worker is still being let go
    stays until the next call.
    """
    controller = getattr(tune_controller, "_tune_controller", None)
    if controller is None or not all(hasattr(controller, name) for name in _LISTS_OF_ENDED):
        return
    ended = controller._stopped_trials | controller._failed_trials
    ended -= controller._trial_to_actor.keys() | controller._staged_trials
    # in place: callbacks and reporters hold these objects
    controller._trials[:] = [trial for trial in controller._trials if trial not in ended]
    for name in _SETS_OF_ENDED:
        getattr(controller, name).difference_update(ended)
    for trial in ended:
        controller._trial_metadata.pop(trial.trial_id, None)


def release_idle_actors(tune_controller: Any) -> None:
    """End the workers that Tune keeps for trials to come, so that others get their place."""
    controller = getattr(tune_controller, "_tune_controller", None)
    if controller is not None and controller._actor_cache.num_cached_objects:
        controller._cleanup_cached_actors(force_all=True)


def wait_for_trials_at_most(tune_controller: Any, seconds: float) -> None:
    """Where nothing runs and the searcher has nothing for now, Tune waits for ten minutes in a loop in which no worker
    ends either; from now on it goes round after so long.
    """
    controller = getattr(tune_controller, "_tune_controller", None)
    if controller is None or "_update_trial_queue" in vars(controller):
        return
    ask = controller._update_trial_queue

    def ask_once(blocking: bool = False, timeout: int = 600) -> bool:
        made = bool(ask(blocking=False))
        if blocking and not made:
            time.sleep(seconds)
        return made

    controller._update_trial_queue = ask_once


@contextmanager
def remembered_trainables() -> Iterator[None]:
    """While it lasts, a trainable that Tune's registry has given once is given again without the cluster's store.

    For every trial Tune asks it five times whether it knows the trainable, and which it is: round trips on the
    driver's thread that always have the same answer.
    """
    from ray.tune.registry import TRAINABLE_CLASS, _global_registry

    found: dict[str, Any] = {}
    contains, get = _global_registry.contains, _global_registry.get

    def contains_quickly(category: str, key: str) -> bool:
        return (category == TRAINABLE_CLASS and key in found) or bool(contains(category, key))

    def get_quickly(category: str, key: str) -> Any:
        if category != TRAINABLE_CLASS:
            return get(category, key)
        if key not in found:
            found[key] = get(category, key)
        return found[key]

    _global_registry.contains, _global_registry.get = contains_quickly, get_quickly
    try:
        yield
    finally:
        # what was set on the object hides its methods
        del _global_registry.contains, _global_registry.get


def dashboard_address() -> str | None:
    """HOST:PORT of the dashboard of the cluster that this process is connected to; None: there is none."""
    from ray._private import worker

    found = worker.get_dashboard_url() if worker.global_worker.connected else None
    return str(found) if found else None
