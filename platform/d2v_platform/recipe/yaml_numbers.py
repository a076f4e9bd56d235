"""Numbers that YAML 1.1 reads in another way than they look: ``0400`` is 256 to it, and ``1:30`` is 90."""

from __future__ import annotations

import re

import yaml

_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_SHOWN = 5


def refuse_odd_numbers(text: str) -> None:
    """Refuse a text with such numbers, where they are not in quotes.

    Raises:
        ValueError: naming lines and values.
        YAMLError: the text is no YAML.
    """
    found = [
        f"line {token.start_mark.line + 1}: {token.value}"
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        if isinstance(token, yaml.ScalarToken) and token.plain
        if _LEADING_ZERO.fullmatch(token.value) or _SIXTIES.fullmatch(token.value)
    ]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            "it has numbers that YAML does not take as they look (a leading zero makes octal ones, a colon "
            f"counts in sixties): {', '.join(found[:_SHOWN])}{more}. Write them without zeros in front, "
            "or in quotes where they are text"
        )
