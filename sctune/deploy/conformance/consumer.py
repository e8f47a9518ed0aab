"""A foreign consumer of a model and what it says of raw files: a command, or an HTTP endpoint."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sctune.errors import ConfigError

PROTOCOL = (
    'the command gets the files as arguments and prints a line {"file": PATH, "score": NUMBER} for each, with "error" '
    'in place of "score" where it takes none, and "label" and "pixels" (path of a .npy, uint8 [S, S, 3]) where it can'
)
COMMAND_S, REQUEST_S = 600, 120
"""Seconds that a command may take for all files, and a server for one."""
_REFUSED = (401, 403, 404, 405, 415)
"""Statuses that are about the request and not about the image."""


@dataclass(frozen=True)
class Answer:
    """What is said of one file. pixels: what the model was given, as an .npy; error: one line in place of a score."""

    score: float | None = None
    label: str | None = None
    pixels: Path | None = None
    error: str | None = None


def is_server(consumer: str) -> bool:
    """Whether a consumer is an address and no command."""
    return consumer.startswith(("http://", "https://"))


def is_mlflow(consumer: str) -> bool:
    """Whether an address is that of MLflow's own server."""
    return urlsplit(consumer).path.rstrip("/").endswith("/invocations")


def ask(consumer: str, files: Sequence[Path], token: str | None = None) -> dict[str, Answer]:
    """File name -> answer; files without one are left out.

    consumer: a command (see PROTOCOL), the address of a server that speaks as `sctune serve` does, or of MLflow's
    /invocations; token: for it. Raises ConfigError where it cannot be run or reached, fails, or answers in another
    form.
    """
    if not is_server(consumer):
        return _ask_command(consumer, files)
    url = consumer if urlsplit(consumer).path.strip("/") else f"{consumer.rstrip('/')}/predict"
    return {file.name: _ask_server(url, file, is_mlflow(url), token) for file in files}


def _ask_command(command: str, files: Sequence[Path]) -> dict[str, Answer]:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            [*words, *map(str, files)], capture_output=True, encoding="utf-8", errors="replace", timeout=COMMAND_S
        )
    except (OSError, ValueError, IndexError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise ConfigError(
            f"--check {command!r} cannot be run: {reason}; give a command or an address http://"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--check {command!r} did not end within {COMMAND_S // 60} minutes") from None
    if done.returncode:
        last = [*done.stderr.strip().splitlines(), "it wrote nothing on stderr"][max(0, _lines(done.stderr) - 1)]
        raise ConfigError(f"--check {command!r} ended with exit code {done.returncode}: {last.strip()[:300]}")
    answers = {}
    for line in done.stdout.splitlines():
        # what libraries print is passed over
        if line.lstrip().startswith("{"):
            name, answer = _of_line(command, line)
            answers[name] = answer
    if not answers:
        raise ConfigError(f"--check {command!r} printed no line of JSON: {PROTOCOL}")
    return answers


def _lines(text: str) -> int:
    return len(text.strip().splitlines())


def _of_line(command: str, line: str) -> tuple[str, Answer]:
    try:
        document = json.loads(line)
        return Path(document["file"]).name, _answer(document)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"--check {command!r} printed {line.strip()[:200]!r}: {PROTOCOL}") from None


def _answer(document: Mapping[str, Any]) -> Answer:
    score, pixels, label, error = (document.get(name) for name in ("score", "pixels", "label", "error"))
    if score is None and error is None:
        raise ValueError("neither score nor error")
    return Answer(
        None if score is None else float(score),
        None if label is None else str(label),
        None if pixels is None else Path(pixels),
        None if error is None else " ".join(str(error).split())[:300],
    )


def _ask_server(url: str, file: Path, by_mlflow: bool, token: str | None) -> Answer:
    import requests

    def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    content = file.read_bytes()
    # as `auth`, since what ~/.netrc has for the host would take the place of a header
    asked: dict[str, Any] = {"timeout": REQUEST_S, **({} if token is None else {"auth": signed})}
    try:
        if by_mlflow:
            data = [[base64.b64encode(content).decode()]]
            document: Any = {"dataframe_split": {"columns": ["image"], "data": data}}
            reply = requests.post(url, json=document, **asked)
        else:
            reply = requests.post(url, files={"files": (file.name, content)}, **asked)
    except requests.RequestException as problem:
        raise ConfigError(f"--check {url} does not answer ({type(problem).__name__}); see that it runs") from None
    if reply.status_code == 401 and not by_mlflow:
        given = "takes another token than the one that was sent" if token is not None else "asks for its token"
        raise ConfigError(f"--check {url} {given}; give the server's in SCTUNE_SERVE_TOKEN or a --token-file")
    if reply.status_code in _REFUSED:
        raise ConfigError(
            f"--check {url} answers {reply.status_code} {reply.reason}; {' '.join(reply.text.split())[:200]}"
        )
    try:
        told = reply.json()
        if not reply.ok:
            return Answer(error=str(told.get("error", told.get("message", reply.reason)))[:300])
        return _answer(told["predictions" if by_mlflow else "results"][0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        if not reply.ok:
            return Answer(error=f"status {reply.status_code} {reply.reason}")
        form = "{'predictions': [{'score': ...}]}" if by_mlflow else "{'results': [{'score': ...}]}"
        raise ConfigError(f"--check {url} answers in another form than {form}: {reply.text[:200]!r}") from None
