"""Keeps secrets out of everything that is stored or shown: params, tags, artifacts, cards, log lines.

Three nets: keys that look secret lose their value, ``user:password@`` and signed query fields in URIs are
masked, and the *values* of secret-looking environment variables are masked wherever they turn up.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "***"
_TEXT_SUFFIXES = {".yaml", ".yml", ".json", ".md", ".txt", ".csv", ".tsv", ".toml", ".log", ".html"}
# "_token" in small letters is left out: it would hide separator_token, which every text recipe has.
_SECRET_NAME = re.compile(
    r"(?:^|[._\-])(?:password|passwd|passphrase|secrets?|secret_key|access_key(?:_id)?|api_?key|private_key"
    r"|credentials?|(?:auth|access|api|session|security|bearer|refresh|secret|github|hf|hub|tracking)_token)"
    r"(?:$|[._\-])|(?:^|\.)token$|(?-i:_TOKEN$)",
    re.IGNORECASE,
)
_NOT_A_VALUE = re.compile(r"_(?:FILE|PATH|DIR|FOLDER|MODE|TYPE|EXPIRATION)$", re.IGNORECASE)
_USER_PART = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)[^/\s@'\"]+@")
_QUERY_FIELD = re.compile(
    r"(?P<name>[?&;](?:[\w\-]*(?:signature|token|secret|password|credential|access_key|secret_key|api_?key)[\w\-]*)=)"
    r"[^&\s;'\"]+",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # shorter values would mask ordinary words


def looks_secret(name: str) -> bool:
    """Whether a key's or an environment variable's name says that its value is a secret."""
    return bool(_SECRET_NAME.search(name))


def secret_environment_values() -> list[str]:
    """Values of the environment variables that hold secrets, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and looks_secret(name) and not _NOT_A_VALUE.search(name)
    }
    return sorted(found, key=len, reverse=True)


def redact_text(text: str) -> str:
    """``text`` with passwords in URIs, signed query fields and secret environment values masked."""
    text = _USER_PART.sub(rf"\g<scheme>{MASK}@", text)
    text = _QUERY_FIELD.sub(rf"\g<name>{MASK}", text)
    for value in secret_environment_values():
        text = text.replace(value, MASK)
    return text


def redact(value: Any, key: str = "") -> Any:
    """A copy of nested plain data in which nothing secret is left.

    Numbers, booleans and ``None`` are never secrets, so ``init_token: 0`` stays readable.
    """
    if isinstance(value, Mapping):
        return {str(k): redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v, key) for v in value]
    if isinstance(value, str):
        return MASK if value and looks_secret(key) else redact_text(value)
    return value


def redact_file(path: Path) -> None:
    """Rewrite a text file without secrets; binary files are left alone."""
    if path.suffix.lower() not in _TEXT_SUFFIXES:
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    clean = redact_text(text)
    if clean != text:
        path.write_text(clean, encoding="utf-8")


class RedactingFormatter(logging.Formatter):
    """Log lines without secrets, stack traces included: logs are kept by Ray, CI and container engines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, masked."""
        return redact_text(super().format(record))


def redact_logs(logger: logging.Logger | None = None) -> None:
    """Mask secrets in what the handlers of a logger (by default the root) write, keeping their formats."""
    for handler in (logger or logging.getLogger()).handlers:
        if not isinstance(handler.formatter, RedactingFormatter):
            old = handler.formatter
            handler.setFormatter(
                RedactingFormatter(old._fmt if old else "%(message)s", old.datefmt if old else None)
            )
