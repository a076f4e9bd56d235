"""Words with times as subtitles: SubRip (``.srt``) and WebVTT (``.vtt``)."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("srt", "vtt")
_LETTERS = 84  # of a cue: two lines of 42, which subtitling guides give as the most that is read in time
_LONGEST_S, _PAUSE_S = 7.0, 1.0  # of a cue; a longer pause begins a new one

Words = Sequence[Mapping[str, Any]]


def subtitles(words: Words, form: str) -> str:
    """The whole file.

    Args:
        words: ``text``, ``start_s`` and ``end_s`` of each, in order.
        form: one of :data:`FORMATS`.
    """
    comma = "," if form == "srt" else "."
    blocks = [] if form == "srt" else ["WEBVTT\n"]
    for number, cue in enumerate(cues(words), start=1):
        begin, end = (_clock(s, comma) for s in (cue[0]["start_s"], cue[-1]["end_s"]))
        text = " ".join(word["text"] for word in cue)
        text = text if form == "srt" else html.escape(text, quote=False)
        head = f"{number}\n" if form == "srt" else ""
        blocks.append(f"{head}{begin} --> {end}\n{text}\n")
    return "\n".join(blocks)


def cues(words: Words) -> list[Words]:
    """Words that are shown together."""
    found: list[list[Mapping[str, Any]]] = []
    for word in words:
        fits = bool(found) and (
            word["start_s"] - found[-1][-1]["end_s"] <= _PAUSE_S
            and word["end_s"] - found[-1][0]["start_s"] <= _LONGEST_S
            and sum(len(w["text"]) + 1 for w in found[-1]) + len(word["text"]) <= _LETTERS
        )
        if fits:
            found[-1].append(word)
        else:
            found.append([word])
    return list(found)


def _clock(seconds: float, comma: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{comma}{thousandths:03d}"
