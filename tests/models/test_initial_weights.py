"""Initial weights by distribution, for every network that does not keep the common N(0, 0.02) everywhere."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from data2vec.audio_events import AudioEventConfig, AudioEventModel
from data2vec.config import Data2VecMultiConfig
from data2vec.student import Data2VecMulti
from data2vec.v1.audio import Data2VecAudio
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.text import Data2VecText
from data2vec.v1.text_config import Data2VecTextConfig

DECODER = {"decoder_dim": 64, "decoder_groups": 2, "decoder_layers": 2, "projection_layers": 2}
SIZES = {"depth": 2, "embed_dim": 64, "num_heads": 2, "average_top_k_layers": 2, "ema_encoder_only": False}
WAVE = "[(64, 10, 5)] + [(64, 3, 2)]"
AUDIO_1 = Data2VecAudioConfig.from_dict(
    {"extractor_mode": "layer_norm", "encoder_layers": 2, "encoder_embed_dim": 64,
     "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 2, "conv_feature_layers": WAVE, "conv_pos": 9,
     "conv_pos_groups": 2, "pos_conv_depth": 3, "average_top_k_layers": 2}
)  # fmt: skip


def image(seed: int = 1, **front: Any) -> nn.Module:
    values = {"input_size": 16, "patch_size": 4, "embed_dim": 64, "prenet_depth": 1, "num_extra_tokens": 3,
              "decoder": DECODER, **front}  # fmt: skip
    return Data2VecMulti(Data2VecMultiConfig.from_dict(
        {**SIZES, "supported_modality": "IMAGE", "modalities": {"text": None, "image": values}}
    ), seed=seed)  # fmt: skip


def audio(seed: int = 1) -> nn.Module:
    values = {"feature_encoder_spec": WAVE, "conv_pos_width": 9, "conv_pos_groups": 2, "prenet_depth": 1,
              "conv_pos_pre_ln": True, "use_alibi_encoder": True, "learned_alibi_scale": True,
              "alibi_scale": 0.7, "decoder": DECODER}  # fmt: skip
    return Data2VecMulti(Data2VecMultiConfig.from_dict(
        {**SIZES, "supported_modality": "AUDIO", "modalities": {"text": None, "audio": values}}
    ), seed=seed)  # fmt: skip


def text_1(seed: int = 1) -> nn.Module:
    encoder = {"embed_dim": 64, "ffn_embed_dim": 128, "layers": 2, "attention_heads": 2, "learned_pos": True}
    config = Data2VecTextConfig.from_dict(
        {"head_layers": 2, "average_top_k_layers": 2, "transformer": {"encoder": encoder}}
    )
    return Data2VecText(config, vocab_size=200, seed=seed)


def events(seed: int = 1) -> nn.Module:
    return AudioEventModel(AUDIO_1, AudioEventConfig(num_classes=300, conv_kernel=2), seed=seed)


def audio_1(seed: int = 1) -> nn.Module:
    return Data2VecAudio(AUDIO_1, seed=seed)


# Name: (standard deviation, largest number), or a constant.
Law = tuple[float, float] | float
FAN_IN = -1.0  # uniform up to fan_in ** -0.5, the bias too: PyTorch's own
NORMAL = (0.02, 0.02 * 5)
XAVIER = (math.sqrt(2 / (64 + 48)), math.sqrt(6 / (64 + 48)))
COMMON: dict[str, Law] = {
    r".*norm\d?\.weight": 1.0, r".*norm\d?\.bias": 0.0, r".*\.bias": 0.0,
    r".*(embed_\w+|qkv|proj|fc\d|_proj|dense)\.weight": NORMAL, r".*head\.\d\.weight": NORMAL,
}  # fmt: skip
LAWS: dict[str, tuple[Any, dict[str, Law]]] = {
    "image": (image, {
        r".*local_encoder\.proj\.weight": XAVIER, r".*local_encoder\.proj\.bias": FAN_IN,
        r".*extra_tokens": (math.sqrt(2 / 3), 5.0), r".*decoder\.(blocks.*|proj)\.(weight|bias)": FAN_IN,
    }),
    "audio": (audio, {
        r".*conv_layers\.0\.0\.weight": (math.sqrt(2 / 10), 3.0),
        r".*conv_layers\.1\.0\.weight": (math.sqrt(2 / 192), 1.0),
        r".*conv_layers.*\.2\.1\.weight": 1.0, r".*conv_layers.*\.2\.1\.bias": 0.0,
        r".*project_features\.1\.weight": 1.0, r".*project_features\.1\.bias": 0.0,
        r".*project_features\.2\.\w+": FAN_IN, r".*encoder\.0\.weight": 1.0, r".*encoder\.0\.bias": 0.0,
        r".*positional_encoder\.1\..*": FAN_IN, r".*alibi_scale": 0.7,
        r".*decoder\.(blocks.*|proj.*)\.(weight|bias)": FAN_IN,
    }),
    "data2vec 1 text": (text_1, {}),
    "data2vec 1 audio": (audio_1, {
        r"mask_emb": (math.sqrt(1 / 12), 1.0),
        r".*conv_layers\.0\.0\.weight": (math.sqrt(2 / 10), 3.0),
        r".*conv_layers\.1\.0\.weight": (math.sqrt(2 / 192), 1.0),
        r".*conv_layers.*\.2\.1\.weight": 1.0, r".*conv_layers.*\.2\.1\.bias": 0.0,
        r"(post_extract|final)_proj\.\w+": FAN_IN, r".*pos_conv\..*": FAN_IN,
    }),
    "audio events": (events, {r"proj\.1\.\w+": FAN_IN}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_distributions(name: str) -> None:
    make, laws = LAWS[name]
    model = make()
    again, other = (dict(make(seed=seed).named_parameters()) for seed in (1, 2))
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        if not parameter.requires_grad or (name == "audio events" and key.startswith("d2v_model.")):
            continue
        law = next((law for pattern, law in {**laws, **COMMON}.items() if re.fullmatch(pattern, key)), None)
        assert law is not None, f"{key} has no law"
        x = parameter.detach().flatten()
        assert torch.equal(parameter, again[key]), f"{key} depends on the seed alone"
        if law == FAN_IN:
            bound = parameters[key.rpartition(".")[0] + ".weight"][0].numel() ** -0.5
            law = (bound / math.sqrt(3), bound)
        if isinstance(law, float):
            assert (x == law).all(), key
            continue
        deviation, most = law
        assert not torch.equal(parameter, other[key]), f"{key} depends on the seed"
        if key.endswith(("embed_tokens.weight", "embed_positions.weight")):
            assert not parameter[1].any(), "the row of padding is zero"
        spread = (
            float(x.square().mean().sqrt())
            if name != "data2vec 1 audio" or key != "mask_emb"
            else float(x.std())
        )
        assert spread == pytest.approx(deviation, rel=0.08 if len(x) > 400 else 0.35), key
        assert 0.75 * min(most, 3 * deviation) < float(x.abs().max()) <= most, key


def test_extra_tokens_start_at_random_but_for_the_first_on_request() -> None:
    for zero in (True, False):
        tokens = (
            image(init_extra_token_zero=zero).get_parameter("modality_encoders.IMAGE.extra_tokens").detach()
        )
        assert bool(tokens[0, 0].any()) is not zero and tokens[0, 1:].any()
        rest = tokens[:, 1 if zero else 0 :]
        assert float(rest.std()) == pytest.approx(1.0, abs=0.2)


def test_parameters_of_one_network_do_not_repeat_each_other() -> None:
    for make in (image, audio, text_1, audio_1):
        seen: dict[tuple[float, ...], str] = {}
        for key, parameter in make().named_parameters():
            x = parameter.detach().flatten()
            if len(x) >= 16 and len(x.unique()) > 2 and "positional_encoder.positions" not in key:
                head = tuple((x[:16] / x[:16].abs().max()).tolist())
                assert head not in seen, f"{key} repeats {seen.get(head)}"
                seen[head] = key
