"""The notice of a spot instance, from a metadata service as AWS documents it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sctune.errors import ClusterError
from sctune.search.cluster.leaving import own_addresses, wait_until_gone
from sctune.search.cluster.spot import NOTICE_S, InstanceMetadata, watch
from tests.metadata_server import ACTION, MetadataServer


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer() as running:
        yield running


class Nodes:
    """Two nodes; refusals: how often the head does not take a drain."""

    def __init__(self, refusals: int = 0) -> None:
        self.drained: list[tuple[str, float]] = []
        self.refusals = refusals
        self.living = {"a", "b"}

    def alive(self) -> set[str]:
        return self.living

    def drain(self, why: str, deadline: float) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ClusterError("the head is away")
        self.drained.append((why, deadline))


def test_no_notice_then_one(server: MetadataServer) -> None:
    metadata = InstanceMetadata(server.url)
    assert metadata.notice() is None
    server.announce(90, "stop")
    notice = metadata.notice()
    assert notice is not None and notice.action == "stop"
    assert notice.deadline == pytest.approx(time.time() + 90, abs=3)
    # one session token for all of it, and no question without one
    assert (len(server.tokens), server.refused) == (1, 0)
    assert server.asked == [ACTION] * 2


def test_a_stale_token_is_replaced(server: MetadataServer) -> None:
    metadata = InstanceMetadata(server.url)
    assert metadata.notice() is None
    server.forget()
    assert metadata.notice() is None
    assert (len(server.tokens), server.refused) == (1, 1)


@pytest.mark.parametrize("body", ["not json", "{}", '{"action": "terminate", "time": "soon"}', "[]"])
def test_a_notice_that_cannot_be_read_is_one(server: MetadataServer, body: str) -> None:
    server.body = body
    notice = InstanceMetadata(server.url).notice()
    assert notice is not None and notice.deadline == pytest.approx(time.time() + NOTICE_S, abs=3)


def test_no_proxy_is_asked(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{server.url}/")
    assert InstanceMetadata().notice() is None


def test_trouble_is_told_once_and_asked_again(server: MetadataServer) -> None:
    nodes, said, rounds = Nodes(refusals=2), [], 0
    server.broken = True

    def wait(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        server.broken = rounds < 3
        if rounds == 5:
            server.announce(100)

    assert watch(nodes, InstanceMetadata(server.url), said.append, wait)  # type: ignore[arg-type]
    ((why, deadline),) = nodes.drained
    assert why == "spot notice: terminate" and deadline == pytest.approx(time.time() + 100, abs=3)
    away = [line for line in said if "does not answer" in line]
    assert len(away) == 1 and "asked again every 5 s" in away[0]
    assert len([line for line in said if line.startswith("the head is away")]) == 1
    assert any("AWS takes this instance back in" in line and "(terminate)" in line for line in said)


def test_the_watch_ends_with_its_nodes(server: MetadataServer) -> None:
    nodes = Nodes()

    def wait(_seconds: float) -> None:
        nodes.living.pop()

    assert not watch(nodes, InstanceMetadata(server.url), lambda _line: None, wait)  # type: ignore[arg-type]
    assert nodes.drained == [] and len(server.asked) == 2


def test_the_wait_for_the_last_node_is_bounded() -> None:
    living = ["a", "b"]
    assert wait_until_gone(lambda: living, time.monotonic() + 60, lambda _seconds: living.pop() and None)
    assert not wait_until_gone(lambda: ["a"], time.monotonic() - 1, lambda _seconds: pytest.fail("waited"))


def test_addresses_are_as_ray_writes_them() -> None:
    assert "127.0.0.1" in own_addresses()
    # without the name of the interface
    assert not any("%" in address for address in own_addresses())
