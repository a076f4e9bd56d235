"""The reference's names and shapes come in, whatever options add or remove; older names and sizes as well."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, DecoderConfig
from data2vec.errors import CheckpointError
from data2vec.families import FAMILIES
from data2vec.interop import beit, v1_text, v1_vision, v2_text
from data2vec.interop.fairseq import import_checkpoint
from data2vec.interop.imported import Sorting
from data2vec.weight_shapes import pretraining_shapes, without_memory
from tests.models.interop import reference_names as names


@pytest.mark.parametrize("kind", names.WHOLE)
def test_every_tensor_of_a_pretrained_file_comes_in(kind: str) -> None:
    family, values, lines = names.WHOLE[kind]
    tensors = names.filled(names.shapes(lines, **names.SMALL))
    averaged = names.filled(names.shapes(names.TEACHERS[kind], **names.SMALL))
    imported = import_checkpoint(names.checkpoint_of({"_name": family, **values}, tensors, teacher=averaged))
    for found, given in ((imported.state, tensors), (imported.teacher or {}, averaged)):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    report = imported.report
    assert (report.dropped, report.missing, report.notes[1:]) == ({}, [], [])


def finetuned() -> dict[str, tuple[dict[str, Any], names.Shapes]]:
    """The model's section of the configuration, and the tensors that are taken."""

    def inside(kind: str) -> dict[str, Any]:
        return {"model": {"_name": names.WHOLE[kind][0], **names.WHOLE[kind][1]}}

    def made(trunk: str, prefix: str, head: str) -> names.Shapes:
        return names.shapes(trunk, prefix, **names.SMALL) | names.shapes(head, Y=5, **names.SMALL)

    ctc, events = names.CTC_TRUNK, "d2v_model."
    flat = {"encoder_embed_dim": 8, "encoder_ffn_embed_dim": 12, "encoder_layers": 1,
            "encoder_attention_heads": 2, "max_positions": 9}  # fmt: skip
    return {
        "sentences 2": ({"_name": "data2vec_text_classification", "pretrained_model_args": inside("text 2")},
                        made(names.TEXT_2, "model.", names.SENTENCE_HEAD)),
        "sentences 1": ({"_name": "roberta", **flat}, made(names.TEXT_1, "", names.SENTENCE_HEAD)),
        "images 2": ({"_name": "mae_image_classification", "pretrained_model_args": inside("image 2")},
                     made(names.IMAGE_2, "model.", names.IMAGE_HEAD)),
        "images 1": ({"_name": "data2vec_image_classification", "pretrained_model_args": inside("image 1")},
                     made(names.IMAGE_1_TRUNK, "model.", names.IMAGE_HEAD)),
        "letters 2": ({"_name": "wav2vec_ctc", "w2v_args": inside("audio 2")},
                      made(names.AUDIO_2, ctc, names.CTC_HEAD)),
        "letters 1": ({"_name": "wav2vec_ctc", "w2v_args": inside("audio 1")},
                      made(names.AUDIO_1, ctc, names.CTC_HEAD)),
        "events 2": ({"_name": "audio_classification", "d2v_args": inside("audio 2")},
                     made(names.AUDIO_2, events, "proj.* Y D")),
        "events 1": ({"_name": "audio_classification", "d2v_args": inside("audio 1"),
                      "prediction_mode": "proj_avg_proj"},
                     made(names.AUDIO_1, events, "proj.* 2*D D\nproj2.* Y 2*D")),
    }  # fmt: skip


@pytest.mark.parametrize("kind", finetuned())
def test_every_tensor_of_a_fine_tuned_file_comes_in(kind: str) -> None:
    values, wanted = finetuned()[kind]
    tensors = names.filled(wanted)
    imported = import_checkpoint(names.checkpoint_of(values, tensors))
    assert imported.kind != "pretrained" and imported.report.dropped == {}
    assert imported.state.keys() == tensors.keys()
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in tensors.items())


def test_a_file_s_own_pattern_is_not_searched_for() -> None:
    values, wanted = finetuned()["letters 1"]
    endless = {"freeze_regex": r"([a-z0-9_.]+)+!"}  # would take years on a name of 50 letters
    assert import_checkpoint(names.checkpoint_of(values | endless, names.filled(wanted))).kind == "ctc"


def test_a_vocabulary_without_a_word_is_no_model() -> None:
    for kind, told in (("text 1", "is no v1 text model"), ("text 2", "embed_tokens.weight is missing")):
        family, values, lines = names.WHOLE[kind]
        tensors = names.filled(names.shapes(lines, **{**names.SMALL, "V": 1}))
        with pytest.raises(CheckpointError, match=told):
            import_checkpoint(names.checkpoint_of({"_name": family, **values}, tensors))


def test_models_are_measured_without_drawing_numbers() -> None:
    zeros = torch.zeros(3)
    with without_memory():
        assert torch.nn.Embedding(5, 2).weight.is_meta
        assert zeros.normal_() is zeros
    assert not zeros.any()


@pytest.mark.parametrize(
    ("kind", "today", "old"),
    [
        ("audio 1", "final_proj.*", "final_proj.0.*"),
        ("audio 2", "alibi_scale 1 1", "alibi_scale 1"),
        ("image 2", "fixed_positional_encoder.positions", "positional_encoder.positions"),
        ("image 2", "fixed_positional_encoder.positions", "positional_encoder.pos_embed"),
        ("text 1", "encoder.sentence_encoder.", "decoder.sentence_encoder."),
    ],
)
def test_a_file_of_older_names_is_the_same_model(kind: str, today: str, old: str) -> None:
    family, values, lines = names.WHOLE[kind]
    assert today in lines
    tensors = names.filled(names.shapes(lines.replace(today, old), **names.SMALL))
    imported = import_checkpoint(names.checkpoint_of({"_name": family, **values}, tensors))
    wanted = names.filled(names.shapes(lines, **names.SMALL))
    assert imported.state.keys() == wanted.keys()
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in wanted.items())


def changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(values)
    for dotted, value in change.items():
        *outer, last = dotted.split(".")
        node = values
        for part in outer:
            node = node[part]
        node[last] = value
    return values


IMAGE, AUDIO, TEXT = (f"modality_encoders.{name}." for name in ("IMAGE", "AUDIO", "TEXT"))
FRONT_2, FRONT_A, FRONT_T = "modalities.image.", "modalities.audio.", "modalities.text."
OPTIONS = "transformer."
NORMS = r".*norm\d?\.(weight|bias)"


@pytest.mark.parametrize(
    ("kind", "change", "gone", "came"),
    [
        ("image 2", {f"{FRONT_2}embed_dim": 5}, r".*local_encoder\..*",
         names.below(f"{IMAGE}local_encoder.", "0.proj.* 5 3 S S\n1.* D 5")),
        ("image 2", {"recon_loss": 1.0, f"{FRONT_2}patch_size": 2, f"{FRONT_2}in_chans": 2}, "-",
         names.below(IMAGE, "local_encoder.proj.* D 2 2 2\nfixed_positional_encoder.positions 1 16 D")
         + "\nrecon_proj.* D D"),
        ("image 2", {f"{FRONT_2}num_extra_tokens": 3}, "-", f"{IMAGE}extra_tokens 1 3 D"),
        ("image 2", {f"{FRONT_2}num_extra_tokens": 0, f"{FRONT_2}fixed_positions": False},
         r".*(extra_tokens|positions)", ""),
        ("image 2", {"layer_norm_first": True}, r".*context_encoder\.norm\..*", "norm.* D"),
        ("image 2", {"norm_affine": False}, NORMS, ""),
        ("image 2", {"layer_norm_first": True, "norm_affine": False}, NORMS, ""),
        ("image 2", {f"{FRONT_2}decoder.decoder_layers": 0}, r".*decoder\..*", f"{IMAGE}decoder.proj.* D D"),
        ("image 2", {f"{FRONT_2}decoder": None}, r".*decoder\..*", ""),
        ("audio 2", {f"{FRONT_A}conv_pos_pre_ln": True}, r".*relative_positional_encoder\..*",
         names.below(f"{AUDIO}relative_positional_encoder.", "0.* D\n1.[1:6].0.* D D//N Q")),
        ("audio 2", {f"{FRONT_A}learned_alibi_scale_per_layer": True}, "-", f"{AUDIO}alibi_scale 2 1 H 1 1"),
        ("audio 2", {f"{FRONT_A}learned_alibi_scale_per_head": False}, "-", f"{AUDIO}alibi_scale 1 1 1 1 1"),
        ("audio 2", {f"{FRONT_A}use_alibi_encoder": False}, r".*alibi_scale", ""),
        ("audio 2", {f"{FRONT_A}decoder.projection_layers": 3, f"{FRONT_A}decoder.projection_ratio": 1.5},
         r".*decoder\.proj\..*", names.below(f"{AUDIO}decoder.", "proj.0.* 6 W\nproj.2.* 6 6\nproj.4.* D 6")),
        ("text 2", {f"{FRONT_T}decoder.projection_layers": 1}, r".*decoder\.proj\..*",
         f"{TEXT}decoder.proj.* D W"),
        ("text 2", {f"{FRONT_T}no_token_positional_embeddings": True, f"{FRONT_T}layernorm_embedding": False},
         r".*(embed_positions|layernorm_embedding).*", ""),
        ("text 2", {f"{FRONT_T}use_alibi_encoder": True}, "-", f"{TEXT}alibi_scale 1 1 1 1 1"),
        ("text 1", {"head_layers": 1}, r".*regression_head.*", "encoder.regression_head.0.* D D"),
        ("text 1", {"head_layers": 3}, r".*regression_head\.2.*",
         names.below("encoder.regression_head.", "2.* 2*D 2*D\n4.* D 2*D")),
        ("text 1", {f"{OPTIONS}encoder.normalize_before": True}, "-",
         "encoder.sentence_encoder.layer_norm.* D"),
        ("text 1", {f"{OPTIONS}no_token_positional_embeddings": True, f"{OPTIONS}layernorm_embedding": False},
         r".*(embed_positions|layernorm_embedding).*", ""),
        ("image 1", {"shared_rel_pos_bias": False}, r".*rel_pos_bias\..*", names.below(
            "encoder.blocks.0.attn.", "relative_position_bias_table 12 H\nrelative_position_index 5 5")),
        ("image 1", {"layer_scale_init_value": 0.0}, r".*gamma_\d", ""),
    ],
)  # fmt: skip
def test_what_an_option_adds_and_takes_away(kind: str, change: dict[str, Any], gone: str, came: str) -> None:
    family, values, lines = names.WHOLE[kind]
    found, _ = pretraining_shapes(FAMILIES[family].from_dict(changed(values, change)), vocab_size=15)
    wanted = names.shapes(lines, **names.SMALL)
    kept = {name: shape for name, shape in wanted.items() if not re.fullmatch(gone, name)}
    assert found == kept | names.shapes(came, **names.SMALL)


@pytest.mark.parametrize(
    ("kind", "change", "lines", "gone"),
    [
        ("image 2", {f"{FRONT_2}ema_local_encoder": True}, names.IMAGE_2, "-"),
        ("image 2", {"ema_encoder_only": True}, names.TEXT_2_TEACHER, "-"),
        ("image 1", {"ema_transformer_only": False}, names.IMAGE_1, r"mask_emb|final_proj\..*"),
    ],
)  # fmt: skip
def test_what_a_teacher_holds(kind: str, change: dict[str, Any], lines: str, gone: str) -> None:
    family, values, _ = names.WHOLE[kind]
    _, found = pretraining_shapes(FAMILIES[family].from_dict(changed(values, change)))
    wanted = names.shapes(lines, **names.SMALL)
    assert found == {name: shape for name, shape in wanted.items() if not re.fullmatch(gone, name)}


def test_the_largest_text_model() -> None:
    sizes = names.SIZES["TEXT", 2, "large"]
    wanted = names.shapes(names.TEXT_2 + names.TEXT_2_DECODER, **sizes)
    assert (len(wanted), len(names.shapes(names.TEXT_2_TEACHER, **sizes))) == (306, 288)
    assert sum(math.prod(shape) for shape in wanted.values()) == 385_379_584
    config = Data2VecMultiConfig(embed_dim=1024, depth=24, num_heads=16)
    text = config.modalities.text
    assert text is not None
    text.prenet_depth, text.mask_length = 0, 1
    text.decoder = DecoderConfig(
        decoder_dim=768, decoder_groups=1, decoder_kernel=9, decoder_layers=5, projection_layers=2
    )
    assert pretraining_shapes(config, vocab_size=50265)[0] == wanted


def renames() -> list[tuple[Callable[[str], str], str, str]]:
    def beit(name: str) -> str:
        return next(iter(v1_vision.from_beit_names({name: torch.zeros(1)})))

    def text(name: str) -> str:
        return next(iter(v1_text.renamed({name: torch.zeros(1)}, of_pretraining=True)))

    def tuned(name: str) -> str:
        return next(iter(v1_text.renamed({name: torch.zeros(1)}, of_pretraining=False)))

    old = "decoder.sentence_encoder."
    new = "encoder.sentence_encoder."
    return [
        (beit, "cls_token", "cls_emb"),
        (beit, "mask_token", "mask_emb"),
        (beit, "patch_embed.proj.bias", "patch_embed.conv.bias"),
        (beit, "lm_head.weight", "final_proj.weight"),
        (beit, "rel_pos_bias.relative_position_index", "encoder.rel_pos_bias.relative_position_index"),
        (beit, "norm.bias", "encoder.norm.bias"),
        (beit, "blocks.11.mlp.fc1.weight", "encoder.blocks.11.mlp.0.weight"),
        (beit, "blocks.11.mlp.fc2.bias", "encoder.blocks.11.mlp.2.bias"),
        (beit, "blocks.0.norm1.bias", "encoder.blocks.0.norm1.bias"),
        (beit, "fc_norm.weight", "fc_norm.weight"),
        (beit, "head.bias", "head.bias"),
        (text, f"{old}embed_tokens.weight", f"{new}embed_tokens.weight"),
        (text, f"{new}emb_layer_norm.bias", f"{new}layernorm_embedding.bias"),
        (text, "emb_layer_norm.weight", "layernorm_embedding.weight"),
        (text, f"{old}layers.10.layer_norms.0.weight", f"{new}layers.10.self_attn_layer_norm.weight"),
        (text, f"{old}layers.10.layer_norms.1.bias", f"{new}layers.10.final_layer_norm.bias"),
        (text, "encoder.lm_head.2.weight", "encoder.regression_head.2.weight"),
        (tuned, "encoder.lm_head.dense.weight", "encoder.lm_head.dense.weight"),
    ]


@pytest.mark.parametrize(
    ("rename", "old", "new"), renames(), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_older_names(rename: Callable[[str], str], old: str, new: str) -> None:
    assert rename(old) == new


@pytest.mark.parametrize(("width", "ratio", "scale"), [(768, 4, 1e-4), (1024, 2, 1e-5)])
def test_the_size_of_a_beit_follows_from_its_shapes(width: int, ratio: int, scale: float) -> None:
    shapes = {
        "patch_embed.conv.weight": (width, 3, 16, 16), "encoder.blocks.0.gamma_1": (width,),
        "encoder.blocks.0.mlp.0.weight": (ratio * width, width), "encoder.blocks.11.gamma_1": (width,),
        "encoder.rel_pos_bias.relative_position_bias_table": (27 * 27 + 3, 12),
    }  # fmt: skip
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    args = {"l1_beta": 0.5, "ema_decay": 0.99, "post_target_layer_norm": False, "drop_path": True}
    found = beit._config(names.checkpoint_of({}, state, cfg={"args": args}), state)
    assert (found["embed_dim"], found["mlp_ratio"], found["num_heads"]) == (width, ratio, 12)
    assert (found["image_size"], found["depth"], found["shared_rel_pos_bias"]) == (224, 2, True)
    assert (found["layer_scale_init_value"], found["loss_beta"], found["ema_end_decay"]) == (scale, 0.5, 0.99)
    assert (found["average_top_k_layers"], found["layer_norm_targets"]) == (2, False)


@pytest.mark.parametrize(("layers", "top"), [(2, 2), (12, 8)])
def test_what_roberta_s_flat_fields_lack_follows_from_its_shapes(layers: int, top: int) -> None:
    positions = f"{v1_text.ENCODER}embed_positions.weight"
    state = {v1_text.EMBEDDING: torch.empty(9, 128), positions: torch.empty(34, 128)}
    state |= {f"{v1_text.ENCODER}layers.{index}.fc1.weight": torch.empty(256, 128) for index in range(layers)}
    sorting = Sorting(Path("a.pt"))
    found = v1_text._from_roberta({"encoder_layers": None, "dropout": 0.3}, state, sorting)
    assert found["average_top_k_layers"] == top and found["transformer"]["max_source_positions"] == 32
    assert found["transformer"]["dropout"] == 0.3 and not found["transformer"]["layernorm_embedding"]
    assert found["transformer"]["encoder"] == {
        "embed_dim": 128, "layers": layers, "learned_pos": True, "attention_heads": 2, "ffn_embed_dim": 256,
    }  # fmt: skip
    assert "taken as 2" in sorting.notes[0]


def test_what_is_not_wanted_is_known_by_the_beginning_of_its_name() -> None:
    sorting = Sorting(Path("a.pt"))
    sorting.drop(r"head\.", "not used")
    state = {name: torch.zeros(1) for name in ("a", "head.weight", "ahead.weight")}
    assert list(sorting.take(state, {"a": (1,)})) == ["a"]
    assert sorting.dropped == {"head.weight": "not used"}
    with pytest.raises(CheckpointError, match=r"ahead\.weight"):
        sorting.finish()


def test_a_sentence_head_is_as_its_file_says() -> None:
    state = {"classification_heads.sentence_classification_head.out_proj.weight": torch.empty(5, 8)}
    values = {"pooler_dropout": 0.1, "pooler_activation_fn": "relu"}
    head = v2_text.sentence_head_config(names.checkpoint_of(values, state))
    assert (head.num_classes, head.pooler_dropout, head.pooler_activation_fn) == (5, 0.1, "relu")
    head = v2_text.sentence_head_config(names.checkpoint_of({}, state))
    assert (head.num_classes, head.pooler_dropout, head.pooler_activation_fn) == (5, 0.0, "tanh")
