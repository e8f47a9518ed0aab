"""Spot instances of AWS: the notice that one is taken back, two minutes before, becomes a drained node.

The notice is in the instance's own metadata (version 2 of that service: a session token first, then the question), as
AWS describes under "Spot Instance interruption notices"; there it is also recommended to ask every five seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from sctune.errors import ClusterError
from sctune.search.cluster.leaving import OwnNodes

SERVICE = "http://169.254.169.254"
SERVICE_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""AWS's own variable for another address of the service."""

TOKEN_S = 21600
TIMEOUT_S = 2.0
POLL_S = 5.0
NOTICE_S = 120.0
"""How long before the end AWS gives notice; taken where a notice has no time that can be read."""

MISSING = 404
STALE = 401

Say = Callable[[str], None]


@dataclass(frozen=True)
class Notice:
    """action: terminate, stop or hibernate; deadline: when, in seconds since 1970."""

    action: str
    deadline: float


class InstanceMetadata:
    """The metadata service of the instance that this process runs on."""

    def __init__(self, service: str | None = None) -> None:
        self._service = (service or os.environ.get(SERVICE_VARIABLE) or SERVICE).rstrip("/")
        self._session = requests.Session()
        # the service is on the instance itself: no proxy of the environment may be asked for it
        self._session.trust_env = False
        self._token: str | None = None

    def notice(self) -> Notice | None:
        """What AWS has announced; None: nothing yet. Raises ClusterError where the service does not answer."""
        answer = self._ask("/latest/meta-data/spot/instance-action")
        if answer.status_code == MISSING:
            return None
        if answer.status_code != requests.codes.ok:
            raise ClusterError(f"the metadata service at {self._service} answers {answer.status_code}")
        return read_notice(answer)

    def _ask(self, path: str) -> requests.Response:
        try:
            if self._token is None:
                self._token = self._new_token()
            answer = self._get(path)
            if answer.status_code == STALE:
                self._token = self._new_token()
                answer = self._get(path)
        except requests.RequestException as problem:
            raise ClusterError(
                f"the metadata service at {self._service} does not answer ({type(problem).__name__}); is this an "
                "instance of AWS?"
            ) from None
        return answer

    def _get(self, path: str) -> requests.Response:
        headers = {"X-aws-ec2-metadata-token": self._token or ""}
        return self._session.get(self._service + path, headers=headers, timeout=TIMEOUT_S)

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        answer = self._session.put(f"{self._service}/latest/api/token", headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.text


def read_notice(answer: requests.Response) -> Notice:
    """A notice is acted on even where it cannot be read: the instance goes all the same."""
    try:
        document: Any = answer.json()
        moment = datetime.strptime(document["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return Notice(str(document["action"]), moment.timestamp())
    except (ValueError, KeyError, TypeError):
        return Notice("an action that is not named", time.time() + NOTICE_S)


def watch(nodes: OwnNodes, metadata: InstanceMetadata, say: Say, wait: Callable[[float], None] = time.sleep) -> bool:
    """Ask until there is a notice, and drain the nodes; True then. False: the nodes ended without one.

    A service or head that does not answer is asked again. say: told in one line of what happens.
    """
    trouble: str | None = None
    while nodes.alive():
        try:
            notice = metadata.notice()
            if notice is not None:
                seconds = max(0.0, notice.deadline - time.time())
                say(f"AWS takes this instance back in {seconds:.0f} s ({notice.action}): its trials go on elsewhere")
                nodes.drain(f"spot notice: {notice.action}", notice.deadline)
                return True
            trouble = None
        except ClusterError as problem:
            if str(problem) != trouble:
                say(f"{problem}; asked again every {POLL_S:g} s")
            trouble = str(problem)
        wait(POLL_S)
    return False
