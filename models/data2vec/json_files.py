"""JSON files that others may have written: small, an object, and no deeper than a reader can follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError

MAX_BYTES = 64 * 2**20  # a configuration with the names of all classes has a hundredth of it


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is missing, too large for a configuration, not JSON, or no object.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes: that is no model configuration")
        values = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path} is not readable JSON: it is nested too deeply") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object")
    return values
