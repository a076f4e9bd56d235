"""When the parts of a start were over: read by the overhead benchmark, shown at debug level."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

PREFIX = "start:"


def start_part_over(part: str) -> None:
    """Note that a part of the start is over, here or in a worker."""
    logger.debug("%s %.3f %s", PREFIX, time.time(), part)


def read_start(line: str) -> tuple[str, float] | None:
    """Part and time (seconds since 1970) of a log line; ``None`` for other lines."""
    _, found, rest = line.partition(f"{PREFIX} ")
    clock, _, part = rest.strip().partition(" ")
    try:
        return (part, float(clock)) if found and part else None
    except ValueError:
        return None
