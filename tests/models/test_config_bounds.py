"""The bounds of every checked field: the last value that is accepted, the first one that is not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from data2vec.audio_events import AudioEventOptions
from data2vec.audio_mixup import MixupOptions
from data2vec.audio_trunk import TrunkOptions
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc_decoding import BeamOptions
from data2vec.errors import ConfigError
from data2vec.rules import Rules
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text_config import Data2VecTextConfig

Make = Callable[[], Any]
PROBABILITY = ([0.0, 0.999], [-0.001, 1.0])
SHARE = ([0.0, 1.0], [-0.001, 1.001])
POSITIVE = ([1], [0])
NONNEGATIVE = ([0.0, 3.0], [-0.001])


def only(value: Any, *others: Any) -> tuple[list[Any], list[Any]]:
    return [value], list(others)


def v2(kind: str, **front: Any) -> Make:
    def make() -> Any:
        return Data2VecMultiConfig.from_dict(
            {"depth": 4, "embed_dim": 24, "num_heads": 2, "average_top_k_layers": 2,
             "ema_encoder_only": kind == "text", "supported_modality": kind.upper(), "modalities": {
                 "text": None, kind: {"decoder": {"decoder_dim": 24, "decoder_groups": 2}, **front}}}
        )  # fmt: skip

    return make


TEXT, IMAGE = v2("text", mask_length=1), v2("image", num_extra_tokens=1, patch_size=2, input_size=8)
AUDIO = v2("audio", conv_pos_groups=2, mask_prob=0.5)
V1_AUDIO: Make = lambda: Data2VecAudioConfig(  # noqa: E731
    extractor_mode="layer_norm", pos_conv_depth=5, encoder_layers=4, average_top_k_layers=2
)
V1_TEXT: Make = lambda: Data2VecTextConfig.from_dict(  # noqa: E731
    {"average_top_k_layers": 2, "transformer": {"encoder": {"layers": 4, "learned_pos": True}}}
)
V1_VISION: Make = lambda: Data2VecVisionConfig(image_size=32, patch_size=8, num_mask_patches=8)  # noqa: E731

BOUNDS: dict[str, tuple[Make, dict[str, tuple[list[Any], list[Any]]]]] = {
    "v2": (
        TEXT,
        {
            "depth": ([2], [0, -1]),
            "embed_dim": ([24], [0]),
            "num_heads": ([1, 24], [0, 5]),
            "clone_batch": POSITIVE,
            "average_top_k_layers": ([1, 4], [0, 5]),
            "loss_beta": NONNEGATIVE,
            "mae_init": only(False, True),
            "ema_encoder_only": only(True, False),
            "cls_loss": only(0.0, 0.1, -0.1),
            "recon_loss": only(0.0, 0.1),
        },
    ),
    "v2 text": (
        TEXT,
        {
            f"modalities.text.{name}": bounds
            for name, bounds in {
                "mask_prob": ([0.01, 0.99], [0.0, 1.0]),
                "mask_length": only(1, 2),
                "mask_prob_min": ([None, 0.0, 0.69], [0.7, -0.1]),
                "learned_alibi": only(False, True),
                "learned_pos": only(True, False),
                "inverse_mask": only(False, True),
                "num_extra_tokens": only(0, 1),
                "ema_local_encoder": only(False, True),
                "mask_prob_adjust": only(0.0, 0.1),
                "keep_masked_pct": only(0.0, 0.1),
                "add_masks": only(False, True),
                "mask_dropout": only(0.0, 0.1),
                "encoder_zero_mask": only(True, False),
                "mask_channel_prob": only(0.0, 0.1),
                "decoder.decoder_groups": ([1, 24], [0, 5, 48]),
                "decoder.add_positions_masked": only(False, True),
                "decoder.add_positions_all": only(False, True),
                "decoder.projection_layers": POSITIVE,
            }.items()
        },
    ),
    "v2 image": (
        IMAGE,
        {
            **{
                f"modalities.image.{name}": bounds
                for name, bounds in {
                    "mask_prob": ([0.01, 0.99], [0.0, 1.0]),
                    "mask_length": POSITIVE,
                    "mask_prob_min": ([None], [0.1]),
                    "keep_masked_pct": PROBABILITY,
                    "in_chans": POSITIVE,
                    "patch_size": ([1, 8], [0, 9]),
                    "embed_dim": POSITIVE,
                    "num_extra_tokens": ([0, 1], [-1]),
                    "use_alibi_encoder": only(False, True),
                    "learned_alibi": only(False, True),
                    "transformer_decoder": only(False, True),
                    "enc_dec_transformer": only(False, True),
                    "decoder.decoder_groups": ([1, 24], [5, 48]),
                }.items()
            },
            "embed_dim": ([24], [26]),
            "recon_loss": ([0.0], [0.1]),
        },
    ),
    "v2 audio": (
        AUDIO,
        {
            **{
                f"modalities.audio.{name}": bounds
                for name, bounds in {
                    "mask_prob": PROBABILITY,
                    "mask_channel_prob": SHARE,
                    "mask_length": POSITIVE,
                    "mask_channel_length": POSITIVE,
                    "mask_prob_min": ([None, 0.0, 0.49], [0.5, -0.1]),
                    "conv_pos_width": POSITIVE,
                    "conv_pos_groups": ([1, 24], [0, 5]),
                    "conv_pos_depth": POSITIVE,
                    "learned_alibi": only(False, True),
                    "num_extra_tokens": only(0, 1),
                    "ema_local_encoder": only(False, True),
                    "keep_masked_pct": only(0.0, 0.1),
                    "extractor_mode": only("layer_norm", "default"),
                    "feature_encoder_spec": (["[(8, 3, 2)]"], ["[(8, 3)]"]),
                    "decoder.decoder_dim": ([24, 2], [25]),
                    "decoder.add_positions_masked": only(False, True),
                    "decoder.add_positions_all": only(False, True),
                }.items()
            },
            "ema_encoder_only": only(False, True),
            "cls_loss": only(0.0, 0.1),
            "recon_loss": only(0.0, 0.1),
        },
    ),
    "v1 audio": (
        V1_AUDIO,
        {
            "mask_prob": PROBABILITY,
            **dict.fromkeys(
                ("encoder_ffn_embed_dim", "mask_length", "mask_channel_length", "conv_pos"), POSITIVE
            ),
            "encoder_layers": ([2], [0]),
            "encoder_attention_heads": ([1, 768], [0, 7]),
            "conv_pos_groups": ([1, 768], [0, 7]),
            "pos_conv_depth": ([2], [1, 0]),
            "mask_channel_prob": SHARE,
            "average_top_k_layers": ([1, 4], [0, 5]),
            "loss_beta": NONNEGATIVE,
            "mask_selection": only("static", "uniform"),
            "mask_other": only(0.0, 1.0),
            "no_mask_overlap": only(False, True),
            "mask_channel_other": only(0.0, 1.0),
            "mask_channel_selection": only("static", "poisson"),
            "no_mask_channel_overlap": only(False, True),
            "ema_transformer_only": only(True, False),
            "extractor_mode": only("layer_norm", "default"),
            "conv_bias": only(False, True),
            "conv_feature_layers": (["[(8, 3, 2)]"], ["8"]),
        },
    ),
    "v1 text": (
        V1_TEXT,
        {
            **{f"transformer.encoder.{name}": POSITIVE for name in ("ffn_embed_dim",)},
            "transformer.encoder.layers": ([2], [0]),
            "transformer.encoder.attention_heads": ([1, 512], [0, 7]),
            "transformer.encoder.learned_pos": only(True, False),
            "transformer.max_source_positions": ([2], [1]),
            "head_layers": POSITIVE,
            "loss_beta": NONNEGATIVE,
            "average_top_k_layers": ([1, 4], [0, 5]),
        },
    ),
    "v1 vision": (
        V1_VISION,
        {
            **dict.fromkeys(("mlp_ratio", "in_channels"), POSITIVE),
            "depth": ([8, 9], [0]),
            "num_heads": ([1, 768], [0, 7]),
            "patch_size": ([8], [0]),
            "image_size": ([24], [7]),
            "num_mask_patches": ([1, 16], [0, 17]),
            "min_mask_patches_per_block": ([1, 196], [0, 197]),
            "average_top_k_layers": ([1, 12], [0, 13]),
            "loss_beta": NONNEGATIVE,
            "loss_scale": ([None, 0.1], [0.0, -1.0]),
        },
    ),
    "fine-tuned audio": (
        TrunkOptions,
        {
            "mask_prob": PROBABILITY,
            "mask_channel_prob": SHARE,
            "mask_length": POSITIVE,
            "mask_channel_length": POSITIVE,
            "freeze_finetune_updates": ([0], [-1]),
            "feature_grad_mult": ([0.0], [-0.1]),
            "layer_decay": ([0.1, 1.0], [0.0, 1.1]),
            "mask_selection": only("static", "normal"),
            "mask_other": only(0.0, 1.0),
            "no_mask_overlap": only(False, True),
            "mask_channel_selection": only("static", "normal"),
            "mask_channel_other": only(0.0, 1.0),
            "no_mask_channel_overlap": only(False, True),
            "freeze_regex": ([None, "a.*"], ["("]),
        },
    ),
    "events": (
        AudioEventOptions,
        {
            "conv_stride": POSITIVE,
            "mask_length": POSITIVE,
            "eval_prediction_mode": ([None, "max"], ["proj_avg_proj"]),
        },
    ),
    "events with a convolution": (
        lambda: AudioEventOptions(conv_kernel=2),
        {
            "prediction_mode": (["max", "average"], ["cls", "average_before", "proj_avg_proj"]),
            "eval_prediction_mode": ([None, "max"], ["cls", "average_before"]),
            "conv_kernel": ([2, 1], []),
        },
    ),
    "mixup": (MixupOptions, {"mixup_prob": SHARE, "source_mixup": ([-1.0, 0.0, 1.0], [1.001])}),
}
CASES = [(kind, name) for kind, (_, fields) in BOUNDS.items() for name in fields]


def check(make: Make, name: str, good: list[Any], bad: list[Any]) -> None:
    for value, fine in [(value, True) for value in good] + [(value, False) for value in bad]:
        config = make()
        *path, last = name.split(".")
        node = config
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
        found = {problem.field: problem.value for problem in config.problems("m")}
        if fine:
            assert found == {}, (name, value, found)
        else:
            assert found.get(f"m.{name}", "not told") == value, (name, value, found)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_bounds(kind: str, name: str) -> None:
    make, fields = BOUNDS[kind]
    assert make().problems("m") == [], "the plain one is fine"
    check(make, name, *fields[name])


def fractions(config: Any, path: str = "") -> Iterator[str]:
    """Dotted names of all fields that hold a fraction."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fractions(value, f"{path}{field.name}.")
        elif isinstance(value, float):
            yield f"{path}{field.name}"


WITHOUT_EFFECT = {  # as their comments say
    "v1 audio": "dropout_features", "fine-tuned audio": "drop_path", "events": "drop_path",
    "events with a convolution": "drop_path", "v2 image": "modalities.image.mask_dropout",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOUNDS)
def test_whatever_is_dropped_or_averaged_is_bounded(kind: str) -> None:
    """By its name, so that a new field cannot be forgotten: dropping everything leaves nothing."""
    make = BOUNDS[kind][0]
    listed = {name for other, fields in BOUNDS.values() if other is make for name in fields}
    for name in fractions(make()):
        bounds = PROBABILITY if "drop" in name else SHARE if re.search("ema_.*decay", name) else None
        if bounds is not None and name not in {*listed, WITHOUT_EFFECT.get(kind)}:
            check(make, name, *bounds)


def test_class_and_pixel_losses_need_what_they_predict() -> None:
    config = IMAGE()
    config.cls_loss, config.modalities.image.num_extra_tokens = 0.1, 0
    assert [p.field for p in config.problems()] == ["model.cls_loss"]
    config = v2("image", num_extra_tokens=1, patch_size=2, input_size=8, in_chans=6)()  # 6 * 2 * 2 = 24
    config.recon_loss, config.cls_loss = 0.1, 0.1
    assert config.problems() == []
    config.modalities.image.decoder.add_positions_masked = True
    assert config.problems() == []
    config.modalities.image.decoder.add_positions_all = True
    assert [p.field for p in config.problems()] == ["model.modalities.image.decoder.add_positions_masked"]


def test_a_modality_that_is_not_there_is_told() -> None:
    config = TEXT()
    config.supported_modality = "IMAGE"
    assert [p.field for p in config.problems()] == ["model.supported_modality"]
    with pytest.raises(ConfigError, match=r"modalities\.image is missing"):
        _ = config.modality


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("beam", [1], [0]), ("beam_threshold", [0.1], [0.0]), ("beam_size_token", [None, 1], [0]),
     ("nbest", [1, 50], [0, 51])],
)  # fmt: skip
def test_bounds_of_the_beam(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        BeamOptions(**{name: value}).check()
    for value in bad:
        with pytest.raises(ConfigError, match=f"decoding.{name.replace('_', '')} = {value}"):
            BeamOptions(**{name: value}).check()


def test_rules_read_dotted_names_and_put_the_value_into_the_text() -> None:
    rule = Rules(TEXT(), "m")
    rule.only("only {} is built", ("modalities.text.mask_length", 3), ("depth", 4))
    (problem,) = rule.found
    assert (problem.field, problem.value, problem.rule) == (
        "m.modalities.text.mask_length", 1, "only 3 is built",
    )  # fmt: skip
