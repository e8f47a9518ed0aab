"""What a worker logs during an epoch, to travel with the epoch's result: only the driver can write to the study."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque

MAX_LINES = 50
MAX_LENGTH = 500
LOGGERS = ("sctune", "py.warnings")


class StepLog(logging.Handler):
    """Collects warnings of sctune and of Python's `warnings` in this process, the latest MAX_LINES of a step.

    where: host name and process id, in words, the same for every step of the process.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.where = f"{socket.gethostname()}, process {os.getpid()}"
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

    @classmethod
    def attach(cls) -> StepLog:
        """A collector on this process's loggers; one that an earlier call attached is taken off."""
        logging.captureWarnings(True)
        made = cls()
        for name in LOGGERS:
            logger = logging.getLogger(name)
            for handler in [handler for handler in logger.handlers if isinstance(handler, cls)]:
                logger.removeHandler(handler)
            logger.addHandler(made)
        return made

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())[:MAX_LENGTH]
        self._lines.append(f"{record.levelname.lower()}: {text}")

    def take(self) -> list[str]:
        """The lines since the last call, oldest first."""
        lines = list(self._lines)
        self._lines.clear()
        return lines
