"""Whatever a file says, the importer answers with a model or with a clear error, and runs nothing."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data2vec.errors import CheckpointError, Data2VecError
from data2vec.interop.fairseq import FAMILIES, import_checkpoint
from data2vec.interop.fairseq_file import read_checkpoint
from data2vec.interop.huggingface import import_folder
from data2vec.interop.inspection import inspect
from tests.models.interop import reference_names as names

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["[(8, 10, 5)] * 99999999", "__import__('os').system('true')", "[(0, 0, 0)]", "[" * 400]),
)


def paths(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += paths(value, (*prefix, key))
    return found


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), kind=st.sampled_from(sorted(names.WHOLE)))
def test_a_changed_configuration_or_tensor_never_crashes_the_importer(data: Any, kind: str) -> None:
    family, values, lines = names.WHOLE[kind]
    values = copy.deepcopy(values)
    for _ in range(data.draw(st.integers(0, 3))):
        *outer, last = data.draw(st.sampled_from(paths(values) or [("depth",)]))
        node: Any = values
        for part in outer:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = data.draw(JUNK)
    tensors = names.filled(names.shapes(lines, **names.SMALL))
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        what = data.draw(st.sampled_from(["drop", "shape", "type", "rename"]))
        if what == "shape":
            tensors[name] = torch.zeros(shape)
        elif what == "type":
            tensors[name] = tensors[name].long()
        else:
            tensor = tensors.pop(name)
            if what == "rename":
                tensors[data.draw(st.text(max_size=12))] = tensor
        if not tensors:
            break
    named = data.draw(st.sampled_from([family, family, family, *FAMILIES, "", None]))
    teacher = data.draw(st.sampled_from([None, {}, {"x": torch.zeros(1)}]))
    cfg = {"model": {"_name": named, **values}, "task": data.draw(JUNK)}
    checkpoint = names.checkpoint_of({}, tensors, cfg=cfg, teacher=teacher)
    with contextlib.suppress(CheckpointError):  # anything else is a crash
        import_checkpoint(checkpoint).model_config.check()  # what comes in is a model that can be built


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(
        st.sampled_from(
            [
                "model_type",
                "hidden_size",
                "num_hidden_layers",
                "conv_dim",
                "conv_kernel",
                "image_size",
                "patch_size",
                "layer_norm_eps",
                "num_conv_pos_embeddings",
                "use_relative_position_bias",
                "intermediate_size",
            ]
        ),
        JUNK | st.sampled_from(["data2vec-audio", "data2vec-text", "data2vec-vision"]),
        max_size=8,
    )
)
def test_a_foreign_folder_never_crashes_the_importer(config: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "data2vec-text"} | config))
    save_file({"embeddings.word_embeddings.weight": torch.zeros(3, 4)}, folder / "model.safetensors")
    with pytest.raises(Data2VecError):
        import_folder(folder)


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 10**9, 200])
def test_a_huge_header_is_refused_without_taking_the_memory(length: int, tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header: a lie there must not be believed."""
    (tmp_path / "config.json").write_text('{"model_type": "data2vec-text", "layer_norm_eps": 1e-5}')
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":{}}')
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        import_folder(tmp_path)
    claim = {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}
    header = json.dumps(claim).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        import_folder(tmp_path)


def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**35)  # one number, shown two to the 35 times
    torch.save({"model": {"x": huge}, "cfg": {}}, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").stat().st_size < 4096
    with pytest.raises(CheckpointError, match="more than the file holds"):
        read_checkpoint(tmp_path / "file.pt")
    assert inspect(tmp_path / "file.pt").problem is not None


def test_names_that_share_a_storage_are_not_copied_six_thousand_times(tmp_path: Path) -> None:
    one = torch.arange(512.0)
    tied = {"model": {"embedding": one, "projection": one, "transposed": torch.ones(1)}, "cfg": {}}
    torch.save(tied, tmp_path / "tied.pt")
    assert read_checkpoint(tmp_path / "tied.pt").model["projection"].equal(one)
    torch.save({"model": {f"x.{i}": one for i in range(6000)}, "cfg": {}}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match=r"6000 tensors have 12288000 bytes, more than the file holds"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_looking_inside_a_hostile_file_names_what_it_would_run(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, (f"touch {mark}",)

    torch.save({"model": {}, "cfg": Trap()}, tmp_path / "trap.pt")
    contents = inspect(tmp_path / "trap.pt")
    assert contents.checkpoint is None and contents.refused == ["posix.system"]
    assert any("REFUSED" in line and "posix.system" in line for line in contents.lines)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("text 2", "depth"),
        ("text 2", "modalities.text.prenet_depth"),
        ("text 2", "modalities.text.decoder.decoder_layers"),
        ("text 2", "modalities.text.decoder.projection_layers"),
        ("text 1", "transformer.encoder.layers"),
        ("text 1", "head_layers"),
        ("audio 1", "encoder_layers"),
        ("audio 1", "pos_conv_depth"),
        ("image 1", "depth"),
    ],
)
def test_more_layers_than_tensors_are_refused_by_name(kind: str, field: str) -> None:
    family, values, lines = names.WHOLE[kind]
    values = copy.deepcopy(values)
    node: Any = values
    *outer, last = field.split(".")
    for part in outer:
        node = node.setdefault(part, {})
    node[last] = 10**9
    tensors = names.filled(names.shapes(lines, **names.SMALL))
    checkpoint = names.checkpoint_of({"_name": family, **values}, tensors)
    rule = rf"model\.{field} = 1000000000 +is impossible: the weights are {len(tensors)} tensors in all"
    with pytest.raises(CheckpointError, match=rule):
        import_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("kind", "section", "field", "told"),
    [
        (
            "image 1",
            "",
            "image_size",
            r"relative_position_index is \(5, 5\), but .* says \(400000001, 400000001\)",
        ),
        (
            "image 2",
            "modalities.image",
            "input_size",
            r"positions is \(1, 4, 8\), but .* says \(1, 400000000, 8\)",
        ),
    ],
)
def test_positions_of_huge_images_take_no_memory(kind: str, section: str, field: str, told: str) -> None:
    family, values, lines = names.WHOLE[kind]
    values = copy.deepcopy(values)
    node = values
    for part in filter(None, section.split(".")):
        node = node[part]
    node[field] = 4 * 20000
    tensors = names.filled(names.shapes(lines, **names.SMALL))
    with pytest.raises(CheckpointError, match=told):
        import_checkpoint(names.checkpoint_of({"_name": family, **values}, tensors))


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        ("audio", {"num_hidden_layers": 10**9}, r"model\.encoder_layers = 1000000000 +is impossible"),
        ("audio", {"num_conv_pos_embeddings": 10**9}, r"model\.pos_conv_depth = 1000000000 +is impossible"),
        ("text", {"num_hidden_layers": 10**9}, r"model\.transformer\.encoder\.layers = 1000000000 +is imp"),
        ("text", {"hidden_dropout_prob": 3.0}, r"model\.transformer\.dropout = 3\.0 +must lie in"),
        ("text", {"hidden_size": 2**70}, "must be a finite number of at most 9.22337e"),
        ("text", {}, r"missing: encoder\.sentence_encoder\.embed_tokens\.weight, "),
        ("vision", {"num_hidden_layers": 10**9}, r"model\.depth = 1000000000 +is impossible"),
        ("vision", {"image_size": 16 * 10**9}, "Storage size calculation overflowed"),
        ("vision", {"image_size": 16 * 20000}, "missing: .*relative_position_index"),  # 10^18 bytes
        ("vision", {"image_size": 16 * 63}, "missing: .*relative_position_index"),
    ],
)
def test_foreign_folders_that_ask_for_more_than_they_hold(
    kind: str, values: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "model_type": f"data2vec-{kind}",
        "layer_norm_eps": 1e-5,
        "num_hidden_layers": 1,
    }
    config |= {"use_shared_relative_position_bias": True, "patch_size": 16} | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    table = torch.zeros((2 * 63 - 1) ** 2 + 3, 12)
    state = {"encoder.relative_position_bias.relative_position_bias_table": table}
    state |= {f"unknown.{n}": torch.zeros(1) for n in range(20)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rule):
        import_folder(tmp_path)
