"""Passwords in the command line: taken out of it, since everyone on the machine can read it and Ray writes it down."""

from __future__ import annotations

import os
import sys

from sctune.cli.output import say
from sctune.urls import STORAGE_VARIABLE, TRACKING_VARIABLE, check_codes, without_secrets

OPTIONS = {"--storage": STORAGE_VARIABLE, "--tracking-uri": TRACKING_VARIABLE}


def hide_passwords() -> None:
    """Start this command again without the passwords of its URLs, which go on in the environment; same process id.

    Does nothing where there are none, or where this process was not started with them. Raises ConfigError.
    """
    words, secrets = without_passwords(sys.argv[1:])
    before = sys.orig_argv
    if not secrets or before[len(before) - len(words) :] != sys.argv[1:]:
        return
    say(
        [
            "a password in the command line could be read by every user of this machine, and stays in your shell's "
            f"history; better: PGPASSWORD, ~/.pgpass, MLFLOW_TRACKING_USERNAME and _PASSWORD, or the whole URL in "
            f"{STORAGE_VARIABLE} or {TRACKING_VARIABLE}"
        ]
    )
    sys.stderr.flush()
    os.execve(sys.executable, [*before[: len(before) - len(words)], *words], {**os.environ, **secrets})


def without_passwords(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """The same words with bare URLs, and what they held: variable -> whole URL."""
    kept, secrets = [], {}
    before = ""
    for word in words:
        option, sign, url = word.partition("=") if word.startswith("--") else (before, "", word)
        variable = OPTIONS.get(option)
        bare = without_secrets(url)
        if variable is not None:
            check_codes(url, option)
        if variable is not None and bare != url:
            secrets[variable] = url
            word = f"{option}={bare}" if sign else bare
        kept.append(word)
        before = word
    return kept, secrets
