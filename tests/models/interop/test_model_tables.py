"""The tables of names and shapes are what our models hold, for every option that adds or removes tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.errors import CheckpointError
from data2vec.image_heads import ImageClassifier
from data2vec.interop import audio_tables, beit, key_tables, v1_text, v1_vision
from data2vec.interop.fairseq_file import FairseqCheckpoint
from data2vec.interop.imported import Sorting
from data2vec.student import Data2VecMulti
from data2vec.v1.audio import Data2VecAudio
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVision
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecText
from data2vec.v1.text_config import Data2VecTextConfig

Shapes = dict[str, tuple[int, ...]]
DECODER = {"decoder_dim": 12, "decoder_groups": 2, "decoder_kernel": 3, "decoder_layers": 2}
CONVOLUTIONS = "[(6, 10, 5)] + [(10, 3, 2)]"


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def multi(modality: str, front: dict[str, Any], **fields: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 8, "depth": 3, "num_heads": 4, "mlp_ratio": 3.0, "average_top_k_layers": 2,
         "ema_encoder_only": False, "supported_modality": modality,
         "modalities": {"text": None, modality.lower(): {"type": modality, "prenet_depth": 2, **front}}}
        | fields
    )  # fmt: skip


@pytest.mark.parametrize(
    ("front", "fields"),
    [
        ({"decoder": DECODER}, {}),
        ({"decoder": {**DECODER, "decoder_layers": 0}}, {}),
        ({"embed_dim": 5, "decoder": None}, {}),
        ({"num_extra_tokens": 3, "fixed_positions": False}, {"norm_affine": False}),
        ({"prenet_depth": 0, "in_chans": 1}, {"layer_norm_first": True}),
        ({"prenet_depth": 1}, {"layer_norm_first": True, "norm_affine": False}),
    ],
)
def test_v2_images(front: dict[str, Any], fields: dict[str, Any]) -> None:
    sizes = {"input_size": 20, "patch_size": 5, "embed_dim": 8, "ema_local_encoder": True, "decoder": None}
    config = multi("IMAGE", {**sizes, **front}, **fields)
    table = key_tables.image_encoder(config)
    assert shapes_of(Data2VecMulti(config)) == table | key_tables.image_decoder(config)
    assert key_tables.image_teacher(config) == table
    local = {name for name in table if ".local_encoder." in name}
    assert len(local) == (4 if front.get("embed_dim") == 5 else 2)
    assert key_tables.image_local_encoder(config).keys() == local
    image = config.modalities.image
    assert image is not None
    image.ema_local_encoder = False
    assert key_tables.image_teacher(config).keys() == table.keys() - local
    config.ema_encoder_only = True
    blocks = {name.removeprefix("blocks."): s for name, s in table.items() if name.startswith("blocks.")}
    assert key_tables.image_teacher(config) == blocks


@pytest.mark.parametrize("norm", [True, False])
def test_image_heads(norm: bool) -> None:
    config = multi("IMAGE", {"input_size": 8, "patch_size": 4, "embed_dim": 8, "decoder": None})
    head = ImageHeadConfig(num_classes=5, use_fc_norm=norm)
    wanted = {f"model.{name}": shape for name, shape in key_tables.image_encoder(config).items()}
    wanted |= key_tables.image_head(8, 5, norm)
    assert shapes_of(ImageClassifier(config, head)) == wanted
    assert ("fc_norm.weight" in wanted) == norm


ALIBI = {"use_alibi_encoder": True, "learned_alibi_scale": True}


@pytest.mark.parametrize(
    ("front", "fields"),
    [
        ({"decoder": DECODER}, {}),
        ({"decoder": {**DECODER, "projection_layers": 3, "projection_ratio": 1.5}, **ALIBI}, {}),
        ({**ALIBI, "learned_alibi_scale_per_head": True}, {}),
        ({**ALIBI, "learned_alibi_scale_per_layer": True, "learned_alibi_scale_per_head": True}, {}),
        ({"conv_pos_pre_ln": True, "conv_pos_width": 4, "conv_pos_depth": 2}, {"norm_affine": False}),
        ({"prenet_depth": 0}, {"layer_norm_first": True}),
        ({"prenet_depth": 1}, {"layer_norm_first": True, "norm_affine": False}),
    ],
)
def test_v2_audio(front: dict[str, Any], fields: dict[str, Any]) -> None:
    sizes = {
        "feature_encoder_spec": CONVOLUTIONS,
        "conv_pos_width": 15,
        "conv_pos_groups": 2,
        "decoder": None,
    }
    config = multi("AUDIO", {**sizes, "conv_pos_depth": 3, **front}, **fields)
    table = audio_tables.v2_audio_encoder(config)
    assert shapes_of(Data2VecMulti(config)) == table | audio_tables.v2_audio_decoder(config)
    local = {name for name in table if ".local_encoder." in name or ".project_features." in name}
    assert audio_tables.v2_audio_encoder(config, local=False).keys() == table.keys() - local
    assert len(local) == 2 * 3 + 4


@pytest.mark.parametrize("mode", [{}, {"layer_norm_first": True}, {"conv_pos": 4, "pos_conv_depth": 2}])
def test_v1_audio(mode: dict[str, Any]) -> None:
    config = Data2VecAudioConfig(
        extractor_mode="layer_norm",
        encoder_layers=3,
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=20,
        encoder_attention_heads=2,
        conv_feature_layers=CONVOLUTIONS,
        average_top_k_layers=2,
        **{"conv_pos": 15, "conv_pos_groups": 2, "pos_conv_depth": 3, **mode},
    )
    table = audio_tables.v1_audio(config)
    assert shapes_of(Data2VecAudio(config)) == table | audio_tables.v1_head(config)
    teacher = {name.removeprefix("encoder."): s for name, s in table.items() if name.startswith("encoder.")}
    assert audio_tables.v1_transformer(config) == teacher
    prefix = audio_tables.CTC_PREFIX
    wanted = {prefix + name: shape for name, shape in table.items()} | audio_tables.ctc_projection(8, 7)
    assert shapes_of(CTCModel(config, CTCConfig(), num_symbols=7)) == wanted


@pytest.mark.parametrize("fields", [{}, {"shared_rel_pos_bias": False}, {"layer_scale_init_value": 0.0}])
def test_v1_vision(fields: dict[str, Any]) -> None:
    config = Data2VecVisionConfig(
        image_size=15, patch_size=5, in_channels=2, depth=3, embed_dim=8, num_heads=4, mlp_ratio=3,
        num_mask_patches=4, min_mask_patches_per_block=2, average_top_k_layers=2, **fields
    )  # fmt: skip
    student = shapes_of(Data2VecVision(config))
    assert student == v1_vision.student_shapes(config, pretraining=True)
    only = ("mask_emb", "final_proj.", "encoder.norm.")
    bare = {name: shape for name, shape in student.items() if not name.startswith(only)}
    assert v1_vision.student_shapes(config, pretraining=False) == bare
    teacher = {n.removeprefix("encoder."): s for n, s in student.items() if n.startswith("encoder.")}
    assert v1_vision.encoder_shapes(config, final_norm=True) == teacher
    head = ImageHeadConfig(num_classes=5)
    wanted = {f"model.{name}": shape for name, shape in bare.items()} | key_tables.image_head(8, 5, True)
    assert shapes_of(ImageClassifier(config, head)) == wanted


def text_options() -> list[tuple[dict[str, Any], dict[str, Any], int]]:
    flags = itertools.product([False, True], [False, True], [False, True])
    return [
        ({"no_token_positional_embeddings": a, "layernorm_embedding": b}, {"normalize_before": c}, 1 + a + b)
        for a, b, c in flags
    ]


@pytest.mark.parametrize(("options", "sizes", "head_layers"), text_options())
def test_v1_text(options: dict[str, Any], sizes: dict[str, Any], head_layers: int) -> None:
    encoder = {"embed_dim": 8, "ffn_embed_dim": 20, "layers": 3, "attention_heads": 2, "learned_pos": True}
    config = Data2VecTextConfig.from_dict(
        {"head_layers": head_layers, "average_top_k_layers": 2,
         "transformer": {"max_source_positions": 11, **options, "encoder": {**encoder, **sizes}}}
    )  # fmt: skip
    table = v1_text.sentence_encoder(config, 30)
    assert shapes_of(Data2VecText(config, vocab_size=30)) == table | v1_text.regression_head(config)
    bare = {name.removeprefix("encoder.sentence_encoder."): shape for name, shape in table.items()}
    assert v1_text.sentence_encoder(config, 30, "") == bare


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
    found = beit._config(checkpoint_of(state, {"args": args}), state)
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
    state = {f"{key_tables.SENTENCE_HEAD}out_proj.weight": torch.empty(5, 8)}
    cfg = {"model": {"pooler_dropout": 0.1, "pooler_activation_fn": "relu"}}
    head = v1_text._head_config(checkpoint_of(state, cfg))
    assert (head.num_classes, head.pooler_dropout, head.pooler_activation_fn) == (5, 0.1, "relu")
    head = v1_text._head_config(checkpoint_of(state, {}))
    assert (head.num_classes, head.pooler_dropout, head.pooler_activation_fn) == (5, 0.0, "tanh")


def checkpoint_of(state: dict[str, torch.Tensor], cfg: dict[str, Any]) -> FairseqCheckpoint:
    return FairseqCheckpoint(path=Path("a.pt"), cfg=cfg, model=state, teacher=None, task_state={},
                             num_updates=None, symbols=None)  # fmt: skip
