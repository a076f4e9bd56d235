"""Names from outside (of classes, runs, files, places) in Markdown, where they must stay text.

A browser fetches a picture and follows a link that a label spells, so nothing in a name may become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Entities, not backslashes: no renderer takes one for markup, and all of them show the character.
_MARKUP = re.compile(
    r"""[<`*~|\\$]              # HTML, code, emphasis, cells, formulas
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; within a word it is none
    | \](?=[(\[:])                # links, pictures and their addresses
    | &(?=\#?\w+;)                # entities
    | :(?=//) | (?<=www)\.        # what becomes a link by itself
    | (?<=\w)@(?=[\w.-]*\.\w) | (?<=mailto): | (?<=xmpp):""",
    re.VERBOSE | re.IGNORECASE,
)


def literal(text: object) -> str:
    """A text on one line that every renderer of Markdown and HTML shows as it is."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", _one_line(text))


def code(text: object) -> str:
    """A text as code, whatever backticks it holds."""
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _one_line(text: object) -> str:
    # Names of folders may be no UTF-8 at all.
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode("utf-8").splitlines())
