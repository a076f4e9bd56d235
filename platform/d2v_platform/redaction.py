"""Keeps secrets out of everything that is stored or shown: params, tags, artifacts, cards, log lines.

Three nets: keys that look secret lose their value; ``user:password@``, signed query fields and the key of a
connection string are masked; and the *values* of secret-looking environment variables are masked wherever
they turn up, also URL-encoded or inside JSON.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
SECRET_IN_NAME = "holds a secret, and everybody who sees MLflow sees names: choose another one"
_TEXT_SUFFIXES = {".yaml", ".yml", ".json", ".md", ".txt", ".csv", ".tsv", ".toml", ".log", ".html"}
# "_token" in small letters is left out: it would hide separator_token, which every text recipe has.
_SECRET_NAME = re.compile(
    r"(?:^|[._\-])(?:password|passwd|passphrase|secrets?|secret_key|access_key(?:_id)?|api_?key|private_key"
    r"|credentials?|(?:auth|access|api|session|security|bearer|refresh|secret|github|hf|hub|tracking)_token)"
    r"(?:$|[._\-])|(?:^|\.)token$|(?-i:_TOKEN$)",
    re.IGNORECASE,
)
# Environment variables say it in more ways, and never hold a recipe's ordinary words.
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:PG)?(?:PASS|PASSWORD|PASSWD|PASSPHRASE|PWD|PAT|TOKEN|SECRET|SECRETS|CREDENTIALS?|DSN|SAS)(?:_|$)"
    r"|(?:CONNECTION|CONN)_?STR(?:ING)?(?:_|$)|_KEY$|(?:DATABASE|DB|REDIS|BROKER|MONGO\w*)_UR[IL]$",
    re.IGNORECASE,
)
_WORKING_FOLDERS = {"PWD", "OLDPWD"}
_NOT_A_VALUE = re.compile(r"_(?:FILE|PATH|DIR|FOLDER|MODE|TYPE|EXPIRATION)$", re.IGNORECASE)
_USER_PART = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)(?P<user>[^/\s'\"]+)@")
# Without a scheme only a password between a name and a host is one; neither name:tag@sha256:... nor 12:30.
_PASSWORD_PART = re.compile(
    r"(?P<user>(?<![\w/:])[A-Za-z][\w.\-]*):(?P<password>[^\s:/@'\"]+)@(?!sha256:)(?=[A-Za-z0-9\[])"
)
_QUERY_FIELD = re.compile(
    r"(?P<name>(?:^|[?&;\s])(?:[\w\-]*(?:signature|token|secret|password|credential|access_key|secret_key|api_?key)"
    r"[\w\-]*|sig|pass|pwd)=)[^&\s;'\"]+",
    re.IGNORECASE,
)
_CONNECTION_FIELD = re.compile(
    r"(?P<name>(?:^|[;\s'\"])(?:AccountKey|Shared ?Access ?(?:Key|Signature)|Password|Pwd)\s*=\s*)[^;\s'\"]+",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # shorter values would mask ordinary words


def looks_secret(name: str) -> bool:
    """Whether a key's or an environment variable's name says that its value is a secret."""
    return bool(_SECRET_NAME.search(name))


def secret_environment_values() -> list[str]:
    """Values of the environment variables that hold secrets, in every way to write them, longest first.

    Of an address or a connection string the password or key counts as well as the whole.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        inner = [unquote(m["user"]).partition(":")[2] for m in _USER_PART.finditer(value)]
        inner += [m[0].removeprefix(m["name"]) for m in _CONNECTION_FIELD.finditer(value)]
        if name not in _WORKING_FOLDERS and not _NOT_A_VALUE.search(name):
            if looks_secret(name) or _SECRET_VARIABLE.search(name):
                inner.append(value)
        for secret in inner:
            found |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), unquote(secret)}
            found.add(json.dumps(secret)[1:-1])
    return sorted((value for value in found if len(value) >= _SHORTEST_SECRET), key=len, reverse=True)


def redact_text(text: str) -> str:
    """``text`` with passwords in addresses, signed query fields, keys of connection strings and secret
    environment values masked."""
    for value in secret_environment_values():
        text = text.replace(value, MASK)
    text = _USER_PART.sub(rf"\g<scheme>{MASK}@", text)
    text = _PASSWORD_PART.sub(rf"\g<user>:{MASK}@", text)
    text = _QUERY_FIELD.sub(rf"\g<name>{MASK}", text)
    return _CONNECTION_FIELD.sub(rf"\g<name>{MASK}", text)


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
