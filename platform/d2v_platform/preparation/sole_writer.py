"""One writer a folder at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data2vec.errors import DataError


@contextmanager
def sole_writer(dest: Path, command: str = "d2v prepare", option: str = "--dest") -> Iterator[None]:
    """One run a folder; the lock goes with the process, however it ends.

    Args:
        dest: the folder.
        command: that writes there, for the message.
        option: that names the folder.

    Raises:
        DataError: another process is writing there.
    """
    with (dest / ".prepare.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another {command} is writing to {dest}; wait for it or choose another {option}"
            ) from error
        yield
