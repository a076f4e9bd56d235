"""Runs a command of the platform in this process."""

from __future__ import annotations

import contextlib
import io

import pytest

from d2v_platform.cli import app, run


def called(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setenv("COLUMNS", "160")
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            run(lambda: app(words, prog_name="d2v", standalone_mode=False))
        except SystemExit as ended:
            return int(ended.code or 0), shown.getvalue(), " ".join(said.getvalue().split())
    return 0, shown.getvalue(), " ".join(said.getvalue().split())
