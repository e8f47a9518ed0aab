"""What all commands print with: results on stdout, messages on stderr."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

FORMAT_VERSION = 1
"""Of every document that a command prints with --json."""

WIDTH = 140
"""Columns of a table that goes into a file or a pipe."""

messages = Console(stderr=True)


def emit(document: dict[str, Any] | None, lines: list[str]) -> None:
    """The document as JSON where there is one, else the lines."""
    if document is not None:
        print(json.dumps({"format_version": FORMAT_VERSION, **document}, indent=1))
    else:
        print_lines(lines)


def print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)


def say(lines: list[str]) -> None:
    """Lines for people on stderr, as they are."""
    for line in lines:
        messages.print(line, markup=False, highlight=False, soft_wrap=True)


def table_console() -> Console:
    """For a table on stdout, which has WIDTH columns where it goes into a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
