"""The reference's recipes as YAML files in its manner, made from their values: what its users have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

VALUES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("reference_recipes.json").read_text(encoding="utf-8")
)
HEADER = "# @package _group_\n\n"
# Some of its files end with settings of its launcher.
LAUNCHER = """
hydra:
  job:
    config:
      override_dirname: {kv_sep: ':', item_sep: '__'}
  sweep:
    dir: /checkpoint/${env:NOT_SET}/${hydra.job.config_name}
"""


def folder_of(name: str) -> str:
    """Where the reference keeps a recipe of ours: ``examples/data2vec/config/v2``."""
    folder = name.rpartition("/")[0]
    project, _, rest = folder.partition("/")
    if project in ("wav2vec", "roberta"):
        return f"examples/{project}/config/{rest}"
    return f"examples/data2vec/config/{folder}"


def write_reference(root: Path, header: str = HEADER, launcher: str = LAUNCHER) -> None:
    """All files below ``root``, with its ``run_config`` folders."""
    for name, values in VALUES.items():
        folder = root / folder_of(name)
        (folder / "run_config").mkdir(parents=True, exist_ok=True)
        (folder / "run_config/slurm_1.yaml").write_text("# @package _global_\n" + launcher, encoding="utf-8")
        text = header + yaml_text(values) + launcher
        (folder / f"{name.rpartition('/')[2]}.yaml").write_text(text.rstrip("\n"), encoding="utf-8")


def yaml_text(values: dict[str, Any]) -> str:
    """Dotted names as nested blocks, in the reference's spellings: floats without a dot, nothing quoted."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return "\n".join("\n".join(_lines(key, value, "")) + "\n" for key, value in tree.items())


def _lines(key: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, dict) and value:
        inner = [line for name, item in value.items() for line in _lines(name, item, indent + "  ")]
        return [f"{indent}{key}:", *inner]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [f"{indent}{key}:", *(f"{indent}  - {item}" for item in value)]
    if isinstance(value, list):
        return [f"{indent}{key}: [ {','.join(map(_scalar, value))} ]"]
    return [f"{indent}{key}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "True", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"e-0", "e-", repr(value))  # 1e-5: text to a YAML reader of version 1.1
    return f"'{value}'" if str(value).startswith("[") else str(value)
