"""What a check of ``d2v doctor`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..redaction import redact_text
from ..tracking.mlflow_access import short_reason

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One observation."""

    area: str  # what was looked at
    level: Level  # ``ok``; ``note``: works, but worth knowing; ``bad``: something will fail
    what: str  # the observation
    mend: str = ""  # what to do about it; empty for ``ok``

    def line(self) -> str:
        """One or two lines for people."""
        text = f"{self.level:<5}{self.area:<13}{self.what}"
        return f"{text}\n{'':<18}-> {self.mend}" if self.mend else text

    def clean(self) -> Finding:
        """The same without secrets."""
        return Finding(self.area, self.level, redact_text(self.what), redact_text(self.mend))


def guarded(area: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; a check that breaks is a finding itself and stops no other."""
    try:
        for finding in check():
            yield finding.clean()
    except Exception as error:
        yield Finding(
            area, "bad", f"the check itself failed: {short_reason(error)}", "report it with d2v doctor --json"
        )
