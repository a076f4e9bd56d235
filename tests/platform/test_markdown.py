"""Names from outside stay text in Markdown and in pictures."""

from __future__ import annotations

import html
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from markdown_it import MarkdownIt

from d2v_platform.inference.images import _draw_confusion
from d2v_platform.markdown import code, literal, table
from d2v_platform.registry import card_pictures
from d2v_platform.registry.model_card import CardFacts, model_card
from d2v_platform.reports.drawing import plain_text, png, svg
from d2v_platform.reports.panels import Line, Panel

HOSTILE = (
    "![x](http://evil.example/a.png)", "[a](http://evil.example)", "[a][b]", "[a]: http://evil.example",
    "<img src=x onerror=alert(1)>", "</table><script>x</script>", "a|b", "``x`", "`", "*a* **b** _c_ __d__",
    "~~a~~", "https://evil.example www.evil.example", "someone@evil.example", "mailto:a@b.c", "$1_$5",
    "&lt;img&gt; &#60;b>", "a\\*b*", "# a", "line\n\n# head\n- item", "\u2028# a", "\udcff",
)  # fmt: skip


def rendered(text: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_never_read(name: str) -> None:
    shown = " ".join(name.encode("utf-8", "backslashreplace").decode().splitlines())
    for text in (literal(name), f"a {literal(name)} b"):
        assert "\n" not in text and html.unescape(text).strip("a b") == shown.strip("a b")
        found = rendered(f"x {text}")
        assert found.count("<") == 2, found  # the paragraph alone
        assert html.unescape(found) == f"<p>x {html.unescape(text).rstrip()}</p>\n"
    found = rendered(f"x {code(name)} y")
    assert html.unescape(found) == f"<p>x <code>{shown}</code> y</p>\n"
    cells = rendered(table(("a", "b"), [(literal(name), code(name))]))
    assert cells.count("<tr>") == 2 and cells.count("<td>") == 2 and "<img" not in cells and "<a" not in cells


def test_ordinary_names_stay_readable() -> None:
    for name in ("not_entailment", "v2/base_text_only_task", "models:/a-b.c/3", "a@champion", "lr=[1e-05]",
                 "a & b", "val/accuracy (5 %)", "1 > 0", "Ä, é: x"):  # fmt: skip
        assert literal(name) == name
    assert code("a_b") == "`a_b`" and code("a`b") == "``a`b``" and code("`a") == "`` `a ``"


def test_nothing_that_becomes_a_link_by_itself_is_left() -> None:
    for name in (
        "https://evil.example",
        "ftp://evil.example",
        "www.evil.example",
        "a@evil.example",
        "mailto:a",
    ):
        assert not any(mark in literal(name) for mark in ("://", "www.", "@", "mailto:a"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_of_hostile_names_has_the_markup_of_any_other(name: str) -> None:
    def markup(text: str) -> list[str]:
        facts = CardFacts(
            name=text, kind="sentence_classifier", summary=f"A model of {text}", recipe=text,
            data_fingerprint=text, modality="text", metrics={text: 1.0}, metrics_note=f"by {text}",
            lineage={"a": text, text: "b"}, recipe_difference={"task.data": ("a", text)}, parent=text,
            labels=(text, "b"), languages=text, data=text, data_size=text,
        )  # fmt: skip
        head, mark, rest = model_card(facts).partition("## How to load it")
        assert mark
        licence = rest.partition("## Limits")[2]
        return [token.type for token in MarkdownIt("gfm-like", {"linkify": False}).parse(head + licence)]

    flat = [t for t in markup(name) if t not in ("text", "code_inline")]
    assert flat == [t for t in markup("plain") if t not in ("text", "code_inline")]


def panel(name: str) -> Panel:
    line = Line(key=name, label=name, x=np.array([1, 10, 1000]), y=np.array([0.1, 0.2, 3.0]))
    return Panel(
        name=name, title=name, x_label=name, lines=(line,), limits=((name, 1.0),), log_x=True, log_y=True
    )


@pytest.mark.parametrize("name", ["$1_$5", "<b>&$\\frac{"])
def test_names_are_no_formulas(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png([panel(name)], name, tmp_path / "a.png")
    drawn = svg(panel(name))
    assert html.escape(name, quote=False) in drawn and "mathdefault" not in drawn
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    with plain_text():
        assert not matplotlib.rcParams["text.usetex"] and not matplotlib.rcParams["text.parse_math"]
    _draw_confusion([name, "b"], np.eye(2, dtype=np.int64), tmp_path / "b.png")
    assert (tmp_path / "a.png").is_file() and (tmp_path / "b.png").is_file()


def test_a_picture_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr(card_pictures, "_draw_curves", fails)
    assert card_pictures.draw_curves(None, "run", tmp_path) is None  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr("d2v_platform.inference.images.draw_confusion", fails)
    _draw_confusion(["a"], np.eye(1, dtype=np.int64), tmp_path / "a.png")
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "no curves on the model card", "no picture of the confusion matrix",
    ]  # fmt: skip
    assert all("no such glyph" in message for message in caplog.messages)
