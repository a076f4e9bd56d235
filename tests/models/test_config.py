"""The model configuration: the reference's defaults, and impossible values named all together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.errors import ConfigError

MakeConfig = Callable[..., Data2VecMultiConfig]


def test_defaults_are_the_references() -> None:
    """Spec data2vec2, section 2: a recipe overrides only what it lists."""
    model = Data2VecMultiConfig()
    assert (model.depth, model.embed_dim, model.num_heads, model.mlp_ratio, model.norm_eps) == (
        8,
        768,
        12,
        4,
        1e-6,
    )
    assert (model.encoder_dropout, model.post_mlp_drop, model.attention_dropout) == (0.1, 0.1, 0.1)
    assert (model.activation_dropout, model.dropout_input, model.layerdrop) == (0, 0, 0)
    assert (model.average_top_k_layers, model.clone_batch, model.loss_beta, model.loss_scale) == (
        8,
        1,
        0,
        None,
    )
    assert (model.ema_decay, model.ema_end_decay, model.ema_anneal_end_step) == (0.999, 0.9999, None)
    assert (model.min_target_var, model.min_pred_var, model.d2v_loss, model.seed) == (0.1, 0.01, 1, 1)
    text = model.modalities.text
    assert text is not None
    assert (text.prenet_depth, text.mask_prob, text.mask_length, text.mask_noise_std) == (4, 0.7, 5, 0.01)
    assert (text.max_source_positions, text.dropout, text.no_scale_embedding) == (512, 0.1, True)
    decoder = text.decoder
    assert decoder is not None
    assert (decoder.decoder_dim, decoder.decoder_groups, decoder.decoder_kernel, decoder.decoder_layers) == (
        384, 16, 5, 5,
    )  # fmt: skip
    assert (decoder.input_dropout, decoder.projection_layers, decoder.projection_ratio) == (0.1, 1, 2.0)
    head = SentenceHeadConfig()
    assert (head.pooler_activation_fn, head.pooler_dropout) == ("tanh", 0.0)


def test_round_trip_through_json(make_config: MakeConfig) -> None:
    config = make_config(depth=3, loss_beta=4.0, text={"prenet_depth": 2})
    assert Data2VecMultiConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Data2VecMultiConfig.from_dict({"_name": "data2vec_multi", **config.to_dict()}) == config


def test_all_impossible_values_are_named_together(make_config: MakeConfig) -> None:
    config = make_config(
        embed_dim=10,
        depth=2,
        average_top_k_layers=3,
        clone_batch=0,
        encoder_dropout=1.0,
        ema_decay=1.5,
        loss_beta=-1.0,
        mae_init=True,
        cls_loss=0.1,
        recon_loss=1.0,
        ema_encoder_only=False,
        shared_decoder={},
        text={"mask_prob": 1.0, "mask_length": 5, "learned_alibi": True, "learned_pos": False,
              "inverse_mask": True, "num_extra_tokens": 1},
        decoder={"decoder_dim": 15, "projection_layers": 0, "add_positions_all": True},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        config.check()
    text = "model.modalities.text."
    assert {problem.field for problem in caught.value.problems} >= {
        "model.num_heads", "model.average_top_k_layers", "model.clone_batch", "model.encoder_dropout",
        "model.ema_decay", "model.loss_beta", "model.mae_init", "model.cls_loss", "model.recon_loss",
        "model.ema_encoder_only", "model.shared_decoder", text + "mask_prob", text + "mask_length",
        text + "learned_alibi", text + "learned_pos", text + "inverse_mask", text + "num_extra_tokens",
        text + "decoder.decoder_groups", text + "decoder.projection_layers",
        text + "decoder.add_positions_all",
    }  # fmt: skip
    assert str(caught.value).startswith("the model configuration has ")


def test_the_small_configuration_is_fine(make_config: MakeConfig) -> None:
    make_config().check()
    assert make_config().problems() == []


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "depth": st.integers(-1, 4),
            "embed_dim": st.integers(-4, 64),
            "num_heads": st.integers(-1, 6),
            "average_top_k_layers": st.integers(-1, 6),
            "layerdrop": st.floats(-0.5, 1.5),
            "loss_beta": st.floats(-1, 5),
        },
    )
)
def test_checks_never_crash_and_name_the_field(values: dict[str, Any]) -> None:
    problems = Data2VecMultiConfig.from_dict({**values, "modalities": {"text": None}}).problems("m")
    defaults = Data2VecMultiConfig()
    for problem in problems:
        name = problem.field.removeprefix("m.")
        assert problem.value == values.get(name, getattr(defaults, name))


def test_misspelt_fields_and_wrong_types_are_problems_unless_the_file_is_foreign() -> None:
    values = {"depht": 12, "modalities": {"text": {"mask_probb": 0.5}}}
    with pytest.raises(ConfigError) as caught:
        Data2VecMultiConfig.from_dict(values)
    assert [problem.field for problem in caught.value.problems] == ["depht", "modalities.text.mask_probb"]
    assert "'depth'" in str(caught.value)
    unknown: list[str] = []
    Data2VecMultiConfig.from_dict(values, unknown=unknown)
    assert unknown == ["depht", "modalities.text.mask_probb"]
    with pytest.raises(ConfigError, match="must be int, not str"):
        Data2VecMultiConfig.from_dict({"depth": "twelve"}, unknown=[])


def test_errors_cross_process_borders(make_config: MakeConfig) -> None:
    """Workers send their errors to the driver pickled."""
    with pytest.raises(ConfigError) as caught:
        make_config(depth=0).check()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert isinstance(again, ConfigError)
    assert str(again) == str(caught.value)
