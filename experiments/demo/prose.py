"""English prose that is already installed: the language reference inside Python, and docstrings.

CPython ships its language reference as text (``pydoc_data.topics``); the standard library, NumPy, SciPy and
scikit-learn document themselves in full sentences. Sources are parsed, never imported. What is not a sentence
(code, signatures, tables, formulas, lists of names) is dropped, and a sentence that occurs a second time
anywhere is dropped too, so that documents share none.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from data2vec.errors import DataError

Part = Literal["pretrain", "valid", "task_train", "task_dev"]
#: Shares of the documents, in percent: what is pretrained on, and what only the tasks see.
SHARES: dict[Part, int] = {"pretrain": 50, "valid": 3, "task_train": 34, "task_dev": 13}
PACKAGES = ("numpy", "scipy", "sklearn")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
#: Words that hold English sentences together: text without them is a table, code or a list of names.
_COMMON = frozenset((
    "the", "a", "an", "this", "that", "these", "those", "each", "every", "any", "of", "in", "on", "at",
    "by", "for", "with", "from", "into", "to", "between", "is", "are", "was", "were", "be", "been",
    "has", "have", "can", "may", "must", "will", "should", "and", "or", "but", "if", "when", "because",
    "while", "as", "than", "it", "its", "not", "which", "there", "their", "they"
))  # fmt: skip
_SHORTEST, _LONGEST = 5, 45  # words of a sentence
_BULLET = re.compile(r"^(?:[*•-]|\d{1,2}[.)]|\[\d+\])\s+")
_ROLE = re.compile(r":[\w:]+:`~?(?:[^`<]*\.)?([^`<>]+?)(?:\s*<[^>`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{1,2}")
_LITERAL = re.compile(r"``([^`]+)``|`([^`]+)`_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([\w][^*]*?)\*{1,2}(?![\w*])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_ABBREVIATED = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|al|Fig|Eq|Sec|Ref|No|resp|approx)|\b[A-Z])\.$")
_ODD = re.compile(r"[^A-Za-z0-9 ,.;:!?'\"()–—’“”-]|-{2}")
_WORD = re.compile(r"^[(\"“']?[A-Za-z]+(?:['’-][A-Za-z]+)*[)\"”']?[,.;:!?]?[)\"”]?$")


@dataclass(frozen=True)
class Document:
    """One topic of the language reference, or the docstrings of one module."""

    name: str  # where it is from; decides the part it belongs to
    paragraphs: tuple[tuple[str, ...], ...]  # runs of neighbouring sentences

    @property
    def sentences(self) -> list[str]:
        """All sentences in order."""
        return [sentence for paragraph in self.paragraphs for sentence in paragraph]

    @property
    def part(self) -> Part:
        """The part that this document belongs to: a function of its name alone."""
        number = int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16) % 100
        for part, share in SHARES.items():
            if number < share:
                return part
            number -= share
        raise AssertionError("the shares add up to 100")


def collect(packages: Sequence[str] = PACKAGES, standard_library: bool = True) -> list[Document]:
    """All documents, sorted by name, no sentence twice.

    Args:
        packages: installed packages whose docstrings are read.
        standard_library: also Python's own modules.

    Raises:
        DataError: this Python has neither its language reference nor any of the sources.
    """
    raw = list(_topics())
    if standard_library:
        raw += _docstrings("python", Path(sysconfig.get_path("stdlib")), recursive=False)
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            raw += _docstrings(package, Path(found.origin).parent, recursive=True)
    seen: set[str] = set()
    documents = [Document(name, _paragraphs(texts, seen)) for name, texts in sorted(raw)]
    documents = [document for document in documents if document.paragraphs]
    if not documents:
        raise DataError(
            "this Python ships no prose: neither pydoc_data nor sources of "
            f"{', '.join(('the standard library', *packages))} were found"
        )
    return documents


def sources() -> dict[str, str]:
    """The sources with their versions."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    return versions | {name: metadata.version(DISTRIBUTIONS.get(name, name)) for name in PACKAGES}


def _topics() -> Iterator[tuple[str, list[str]]]:
    """The language reference; some distributions leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in topics.items():
        yield f"reference/{name}", [text]


def _docstrings(label: str, folder: Path, recursive: bool) -> Iterator[tuple[str, list[str]]]:
    """The docstrings of each module below ``folder``, tests left out."""
    for path in sorted(folder.rglob("*.py") if recursive else folder.glob("*.py")):
        inside = path.relative_to(folder)
        if any(part.startswith(("test", "externals", "_vendor", "conftest")) for part in inside.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a template, or a module for another Python
            continue
        if texts := [text for node in _documented(tree) if (text := ast.get_docstring(node))]:
            yield f"{label}/{inside.as_posix()}", texts


def _documented(node: ast.Module | ast.ClassDef) -> Iterator[_Documented]:
    """A module or class with its classes, functions and methods; nothing inside functions."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child


def _paragraphs(texts: Sequence[str], seen: set[str]) -> tuple[tuple[str, ...], ...]:
    """Runs of neighbouring sentences that are new and clean; ``seen`` receives them."""
    found: list[tuple[str, ...]] = []
    for block in (block for text in texts for block in _blocks(text)):
        run: list[str] = []
        for sentence in split_sentences(block):
            key = sentence.casefold()
            if is_sentence(sentence) and key not in seen:
                seen.add(key)
                run.append(sentence)
            elif run:
                found.append(tuple(run))
                run = []
        if run:
            found.append(tuple(run))
    return tuple(found)


def _blocks(text: str) -> Iterator[str]:
    """Lines of one indentation without a blank line between them, joined, markup removed."""
    block: list[str] = []
    indent = -1
    for line in [*text.expandtabs().splitlines(), ""]:
        stripped = line.strip()
        starts = bool(_BULLET.match(stripped))
        stripped = _BULLET.sub("", stripped)
        deep = len(line) - len(line.lstrip())
        if block and (not stripped or starts or deep != indent):
            yield _plain(" ".join(block))
            block = []
        if stripped:
            # The lines after a bullet are indented to its text.
            indent = line.index(stripped) if starts else deep
            block.append(stripped)


def _plain(text: str) -> str:
    for pattern in (_ROLE, _LINK):
        text = pattern.sub(r"\1", text)
    text = _LITERAL.sub(lambda match: match[1] or match[2], text)
    text = _EMPHASIS.sub(r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def split_sentences(text: str) -> list[str]:
    """Sentences of a paragraph; abbreviations and initials end none."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    return found


def is_sentence(text: str) -> bool:
    """Whether this reads as an English sentence rather than as code, a signature or a formula."""
    if not (text[:1].isupper() and text[-1:] in ".?!") or text.endswith(("..", ":.")) or _ODD.search(text):
        return False
    if text.count("(") != text.count(")") or text.count('"') % 2:
        return False
    words = text.split()
    if not _SHORTEST <= len(words) <= _LONGEST:
        return False
    plain = sum(bool(_WORD.match(word)) for word in words)
    common = sum(word.strip(",.;:()").lower() in _COMMON for word in words)
    return plain >= 0.9 * len(words) and common >= max(2, 0.15 * len(words))
