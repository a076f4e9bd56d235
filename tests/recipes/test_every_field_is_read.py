"""Every field of every recipe component is read somewhere, or listed as without effect, with a reason.

A field counts as read where its name occurs, as an attribute or as a text (``getattr``), in a file that has
to do with its class: that names it, or imports a file that does, or is imported by one, or declares the field
in a protocol. Definitions are no reads, and neither are translations from and to other programs' files.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.recipe.components import CHOICES
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.groups import GROUPS, Common
from d2v_platform.recipe.locate import config_root
from d2v_platform.recipe.without_effect import WITHOUT_EFFECT
from data2vec.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDERS = {"data2vec": ROOT / "models", "d2v_platform": ROOT / "platform"}
TRANSLATIONS = {"interop", "importing", "inference"}
TABLES = {"compat.py", "difference.py", "overrides.py", "without_effect.py", "describe.py"}


@dataclasses.dataclass
class Source:
    """What a file reads, names, imports and promises."""

    reads: set[str]
    words: set[str]
    imports: set[str]
    promised: set[str]  # fields of its protocols


@functools.cache
def sources() -> dict[str, Source]:
    """By module name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (folder / package).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if TRANSLATIONS & set(parts) or path.name in TABLES:
                continue
            text = path.read_text(encoding="utf-8")
            if "InferOptions" not in text:  # options of inference have a recipe's names
                found[".".join(parts)] = read_source(ast.parse(text), parts[:-1])
    return found


def read_source(tree: ast.Module, package: tuple[str, ...]) -> Source:
    source = Source(set(), set(), set(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            source.reads.add(node.attr)
            source.words.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            source.reads.add(node.value)
        elif isinstance(node, ast.Name):
            source.words.add(node.id)
        elif isinstance(node, ast.ClassDef):
            source.words.add(node.name)
            if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                lines = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
                source.promised |= {target.id for target in lines if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            source.imports |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    return source


def classes() -> list[type[Any]]:
    """Every dataclass that a recipe is made of."""
    found: dict[type[Any], None] = {}

    def visit(annotation: Any) -> None:
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type) and annotation not in found:
            found[annotation] = None
            for hint in typing.get_type_hints(annotation).values():
                visit(hint)
        for argument in typing.get_args(annotation):
            visit(argument)

    for cls in [c for group in CHOICES.values() for c in group.values()] + list(GROUPS.values()):
        visit(cls)
    return list(found)


def close_to(cls: type[Any]) -> set[str]:
    """Modules that have to do with a class, its bases or its heirs."""
    names = {c.__name__ for c in cls.__mro__ if dataclasses.is_dataclass(c)}
    names |= {c.__name__ for c in classes() if issubclass(c, cls)}
    if cls in GROUPS.values():
        names.add("Recipe")
    known = sources()
    direct = {name for name, source in known.items() if source.words & names}
    users = {name for name, source in known.items() if source.imports & direct}
    return direct | users | {name for module in direct for name in known[module].imports & known.keys()}


def unread(cls: type[Any]) -> Iterator[str]:
    near, known = close_to(cls), sources()
    for field in dataclasses.fields(cls):
        if not any(
            field.name in source.reads and (module in near or field.name in source.promised)
            for module, source in known.items()
        ):
            yield field.name


def listed(cls: type[Any]) -> set[str]:
    return {name for base in cls.__mro__ for name in WITHOUT_EFFECT.get(base, {})}


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_field_is_read_or_listed_as_without_effect(cls: type[Any]) -> None:
    assert set(unread(cls)) <= listed(cls)


def test_a_field_that_nobody_reads_is_found() -> None:
    made = dataclasses.make_dataclass("Made", [("nobody_reads_this", int, 0)], bases=(Common,), kw_only=True)
    assert list(unread(made)) == ["nobody_reads_this"]


def test_the_list_holds_fields_that_are_not_read() -> None:
    """Names that other things have too, or that are checked only, are seen by name alone."""
    seen = {"drop_path", "path", "log_keys"}
    for cls, reasons in WITHOUT_EFFECT.items():
        assert reasons.keys() <= {field.name for field in dataclasses.fields(cls)}
        assert reasons.keys() - seen <= {
            name for heir in classes() if issubclass(heir, cls) for name in unread(heir)
        }
        assert all(reason.strip() for reason in reasons.values())


# --- what a run says ---------------------------------------------------------------------------------------


def notes(name: str, *overrides: str) -> list[str]:
    composed = compose(name, ["task.data=/data", *overrides])
    return [note for note in composed.notes if "no effect here" in note]


def test_what_has_no_effect_is_said_once_with_the_reason() -> None:
    given = ["dataset.gen_subset=dev", "common_eval.path=/m", "model.modalities.audio.remove_masks=true"]
    assert notes("v2/base_audio_only_task", *given) == [
        "model.modalities.audio.remove_masks: no effect here; as in the reference, which reads it nowhere",
        "dataset.gen_subset, common_eval.path: no effect here; "
        "training predicts nothing: give it to d2v infer",
    ]
    assert notes("v2/base_audio_only_task", "criterion.log_keys=[]", "dataset.gen_subset=test") == []


def test_what_our_own_file_has_as_the_references_is_no_news(tmp_path: Path) -> None:
    assert notes("v2/base_audio_only_task") == []
    told = (
        "criterion.log_keys: no effect here; every figure of the model is logged; "
        "model_norm and ema_norm, if named, in the line too"
    )
    assert notes("v2/base_audio_only_task", "criterion.log_keys=[ema_decay]") == [told]
    text = (config_root() / "v2/base_audio_only_task.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert compose("mine", ["task.data=/data"], str(tmp_path)).notes == (told,)


def test_a_field_of_one_component_is_not_said_of_another_with_the_same_name() -> None:
    told = notes("wav2vec/finetuning/base_10h", "model.w2v_path=/m", "model.drop_path=0.1")
    assert any(note.startswith("model.drop_path: no effect here") for note in told)
    assert not any(
        "drop_path" in note for note in notes("vision/pretraining/base_imagenet", "model.drop_path=0.3")
    )


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("v2/base_text_only_task", ["model.skip_ema=true"], r"model\.skip_ema = True .* use false"),
        (
            "v2/base_text_only_task",
            ["model.log_norms=false"],
            r"criterion\.log_keys = 'ema_norm' .*log_norms=true",
        ),
        (
            "text/pretraining/base",
            ["criterion.log_keys=[model_norm]"],
            "needs model.log_norms=true of a data2vec 2",
        ),
        ("text/pretraining/base", ["criterion.log_keys=[ema_deca]"], "did you mean 'ema_decay'"),
    ],
)
def test_what_would_do_nothing_is_refused(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(name, ["task.data=/data", *overrides])
