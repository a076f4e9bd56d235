"""The audio networks: sizes, convolutions, positions, ALiBi, masks, padding, objectives, CTC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import data2vec
from data2vec.alibi import alibi_slopes
from data2vec.artifact import save_artifact
from data2vec.audio import AudioEncoder
from data2vec.audio_masking import block_masks_1d, mask_set, span_masks
from data2vec.audio_trunk import TrainingMasks, trunk_config
from data2vec.config import Data2VecMultiConfig
from data2vec.conv_spec import frame_count, parse_conv_layers, samples_needed, total_stride
from data2vec.ctc import CTCConfig, CTCModel, frames_needed
from data2vec.errors import ConfigError, Data2VecError
from data2vec.masking import clone_ids
from data2vec.pretraining import Data2VecPretraining
from data2vec.student import Data2VecMulti
from data2vec.v1.audio import Data2VecAudio, Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.waveform import strided_convolution

SPEC = "[(16, 10, 5)] + [(16, 3, 2)] * 2"
AUDIO = {"feature_encoder_spec": SPEC, "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2,
         "prenet_depth": 1, "mask_prob": 0.5, "mask_prob_adjust": 0.05, "use_alibi_encoder": True,
         "learned_alibi_scale": True, "learned_alibi_scale_per_head": True,
         "decoder": {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 2,
                     "input_dropout": 0.0}}  # fmt: skip


def v2(**audio: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 2, "clone_batch": 2,
         "average_top_k_layers": 2, "instance_norm_target_layer": True, "ema_encoder_only": False,
         "encoder_dropout": 0.0, "attention_dropout": 0.0, "post_mlp_drop": 0.0, "ema_decay": 0.9,
         "ema_anneal_end_step": 10, "modalities": {"text": None, "audio": AUDIO | audio}}
    )  # fmt: skip


def v1(**values: Any) -> Data2VecAudioConfig:
    return Data2VecAudioConfig.from_dict(
        {"extractor_mode": "layer_norm", "encoder_layers": 2, "encoder_embed_dim": 16,
         "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "conv_feature_layers": SPEC,
         "dropout": 0.0, "attention_dropout": 0.0, "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3,
         "average_top_k_layers": 2, "instance_norm_target_layer": True, "ema_anneal_end_step": 10, **values}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "audio", "total"),
    [
        ({"depth": 12}, {"prenet_depth": 0, "decoder": {"decoder_dim": 384, "decoder_kernel": 7,
                                                        "decoder_layers": 4}}, 93_783_308),
        ({"depth": 16, "embed_dim": 1024, "num_heads": 16},
         {"prenet_depth": 8, "decoder": {"decoder_dim": 768, "decoder_kernel": 7, "decoder_layers": 4}},
         315_184_144),
    ],
    ids=["base", "large"],
)  # fmt: skip
def test_parameter_counts_of_the_published_models(
    values: dict[str, Any], audio: dict[str, Any], total: int
) -> None:
    alibi = {"use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
    config = Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "ema_encoder_only": False, **values,
         "modalities": {"text": None, "audio": alibi | audio}}
    )  # fmt: skip
    with torch.device("meta"):
        model = Data2VecMulti(config)
    assert sum(p.numel() for p in model.parameters()) == total


def test_convolution_specifications_are_literals() -> None:
    layers = parse_conv_layers("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]")
    assert len(layers) == 7 and total_stride(layers) == 320
    assert [frame_count(layers, n) for n in (160_000, 250_000, 320_000, 32_000, 400, 399)] == [
        499, 781, 999, 99, 1, 0,
    ]  # fmt: skip
    assert samples_needed(layers) == 400 and frame_count(layers, samples_needed(layers, 7)) == 7
    assert parse_conv_layers("[(4, 2, 1), (8, 3, 2)]") == ((4, 2, 1), (8, 3, 2))


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "[(1, 2)]", "[(1, 2, x)]", "[(1,2,3)] * 10**9", "[(1,2,3)] * 65", "", "[]",
     "[(1, 2, -3)]", "[(1, 2, 3)] - [(1, 2, 3)]", "open('x')", "[(True, 1, 1)]", "(" * 500],
)  # fmt: skip
def test_anything_else_in_a_specification_is_refused(text: str) -> None:
    with pytest.raises(Data2VecError):
        parse_conv_layers(text)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 23))
def test_chunked_convolution_is_the_convolution(width: int, stride: int, extra: int) -> None:
    torch.manual_seed(width)
    x_BTC, weight = torch.randn(2, width + extra, 3), torch.randn(4, 3, width)
    wanted = F.conv1d(x_BTC.transpose(1, 2), weight, stride=stride).transpose(1, 2)
    assert torch.allclose(strided_convolution(x_BTC, weight, stride), wanted, atol=1e-5)


def test_alibi_slopes_and_bias() -> None:
    assert alibi_slopes(12)[:3] == [0.5, 0.25, 0.125]
    assert alibi_slopes(12)[8:] == pytest.approx([0.70711, 0.35355, 0.17678, 0.08839], abs=1e-5)
    assert alibi_slopes(16)[0] == pytest.approx(0.70711, abs=1e-5) and alibi_slopes(16)[-1] == 0.00390625
    encoder = Data2VecMulti(v2()).encoder
    assert isinstance(encoder, AudioEncoder) and encoder.alibi_scale is not None
    positions = torch.tensor([[0, 3, 4], [2, 5, 9]])
    (bias,) = encoder.attention_biases(positions, None, 1)
    assert bias is not None
    wanted = -alibi_slopes(2)[0] * torch.tensor([[0.0, 3, 7], [3, 0, 4], [7, 4, 0]])
    assert torch.allclose(bias[1, 0], wanted)
    bias.sum().backward()
    assert encoder.alibi_scale.grad is not None and encoder.alibi_scale.grad.abs().min() > 0
    with torch.no_grad():
        encoder.alibi_scale.fill_(-1.0)
    (flat,) = encoder.attention_biases(positions, None, 1)
    assert flat is not None and not flat.any(), "a negative scale counts as zero"


def test_scale_per_layer() -> None:
    config = v2(learned_alibi_scale_per_layer=True)
    encoder = Data2VecMulti(config).encoder
    assert isinstance(encoder, AudioEncoder) and encoder.alibi_scale is not None
    assert encoder.alibi_scale.shape == (3, 1, 2, 1, 1)
    with torch.no_grad():
        encoder.alibi_scale[2] = 2.0
    biases = encoder.attention_biases(torch.arange(4)[None], None, 3)
    assert torch.equal(2 * biases[0], biases[2]) and torch.equal(biases[0], biases[1])  # pyright: ignore


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.floats(0.05, 0.95), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_block_masks_have_exact_counts(
    length: int, share: float, block: int, update: int, inverse: bool
) -> None:
    rows = clone_ids(torch.tensor([3, 4]), 3)
    mask = block_masks_1d(
        rows, length, mask_prob=share, mask_length=block, mask_prob_adjust=0.05, inverse_mask=inverse,
        key=(1, update),
    )  # fmt: skip
    wanted = length - int(length * (1 - share)) if inverse else int(length * share)
    assert mask.sum(1).tolist() == [wanted] * 6


def test_block_masks_of_the_published_recipes() -> None:
    rows = clone_ids(torch.arange(4), 8)
    base = block_masks_1d(rows, 499, mask_prob=0.5, mask_length=5, mask_prob_adjust=0.05, key=(1, 0))
    large = block_masks_1d(rows, 499, mask_prob=0.55, mask_length=5, mask_prob_adjust=0.1, key=(1, 0))
    assert set(base.sum(1).tolist()) == {249} and set(large.sum(1).tolist()) == {274}
    assert len({tuple(row) for row in base.tolist()}) == 32, "clones differ"
    alone = block_masks_1d(rows[5:6], 499, mask_prob=0.5, mask_length=5, mask_prob_adjust=0.05, key=(1, 0))
    assert torch.equal(alone[0], base[5]), "a row does not depend on the batch"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0.0, 0.95), st.integers(1, 70),
    st.floats(0, 0.5), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_span_masks_are_total_and_fair(
    lengths: list[int], share: float, span: int, dropout: float, add: bool, update: int
) -> None:
    valid, total = torch.tensor(lengths), max(lengths)
    mask = span_masks(
        torch.arange(len(lengths)), total, mask_prob=share, mask_length=span, valid_R=valid,
        mask_dropout=dropout, add_masks=add, key=(update,),
    )  # fmt: skip
    padded = torch.arange(total)[None] >= valid[:, None]
    assert not (mask & padded).any(), "padding is never masked"
    if not add:
        assert (mask.sum(1) < valid).all(), "something stays visible"
        assert len(set(mask.sum(1).tolist())) == 1, "equal counts"


def test_rows_of_unequal_counts_are_balanced_or_left() -> None:
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0, :4] = mask[1, 2:5] = mask[2, 1:7] = True
    balanced = mask_set(mask, torch.arange(3), True, 1)
    assert balanced.mask_RT.sum(1).tolist() == [3, 3, 3] and (balanced.mask_RT <= mask).all()
    assert balanced.num_kept == 7
    left = mask_set(mask, torch.arange(3), False, 1)
    assert torch.equal(left.mask_RT, mask) and left.num_kept == 6
    assert left.mask_RT.gather(1, left.ids_keep_RK).sum(1).tolist() == [0, 0, 2], "row 2 shows masked frames"


def test_teacher_has_no_front_end_and_follows_the_student() -> None:
    model = Data2VecPretraining(v2())
    names = set(dict(model.teacher.module.named_parameters()))
    assert not any("local_encoder" in n or "project_features" in n or "decoder" in n for n in names)
    assert "modality_encoders.AUDIO.alibi_scale" in names
    audio = torch.randn(2, 600)
    output = model(audio, ids=torch.tensor([5, 6]), update=0)
    output.loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    scale = model.student.get_parameter("modality_encoders.AUDIO.alibi_scale")
    assert scale.grad is not None and scale.grad.abs().sum() > 0
    again = model(audio, ids=torch.tensor([5, 6]), update=0)
    assert torch.equal(output.loss, again.loss), "masks and noise are functions of seed, update and id"
    other = model(audio, ids=torch.tensor([5, 6]), update=1)
    assert not torch.equal(output.loss, other.loss)


@pytest.mark.parametrize("config", [v2(), v1()], ids=["v2", "v1"])
def test_a_clip_alone_gives_what_it_gives_in_a_longer_batch(config: Any) -> None:
    torch.manual_seed(0)
    model = Data2VecAudio(config) if isinstance(config, Data2VecAudioConfig) else Data2VecMulti(config)
    model.eval()
    short, long = torch.randn(1, 605), torch.randn(1, 1210)
    batch = torch.zeros(2, 1210)
    batch[0, :605], batch[1] = short, long
    padding = torch.zeros(2, 1210, dtype=torch.bool)
    padding[0, 605:] = True
    alone = model(short).x_BTD
    together = model(batch, padding).x_BTD[:1, : alone.shape[1]]
    assert torch.allclose(alone, together, atol=2e-5)


@pytest.mark.parametrize("generation", ["v2", "v1"])
def test_the_references_padding_leaks_on_request(generation: str) -> None:
    torch.manual_seed(0)
    config = v2(padding_leaks=True) if generation == "v2" else v1(padding_leaks=True)
    model = Data2VecAudio(config) if isinstance(config, Data2VecAudioConfig) else Data2VecMulti(config)
    model.eval()
    batch, padding = torch.zeros(1, 1210), torch.zeros(1, 1210, dtype=torch.bool)
    batch[0, :605] = torch.randn(605)
    padding[0, 605:] = True
    alone = model(batch[:, :605]).x_BTD
    assert not torch.allclose(alone, model(batch, padding).x_BTD[:, : alone.shape[1]], atol=2e-5)


def test_v1_teacher_copies_positions_and_averages_the_rest() -> None:
    model = Data2VecAudioPretraining(v1(ema_layers_only=True))
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    assert model.teacher.step(1)
    mine, theirs = model.teacher.module.state_dict(), model.student.encoder.state_dict()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine if n.startswith("pos_conv."))
    assert not torch.equal(mine["layers.0.fc1.weight"], theirs["layers.0.fc1.weight"])
    output = model(torch.randn(2, 900), ids=torch.tensor([1, 2]), update=3)
    assert output.sample_size > 0 and set(output.losses) == {"regression"}
    assert not model.teacher.step(1), "once an update"


def test_impossible_audio_models_are_refused_with_all_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        Data2VecMulti(v2(conv_pos_groups=3, mask_length=0, num_extra_tokens=1))
    fields = {problem.field.rpartition(".")[2] for problem in caught.value.problems}
    assert fields == {"conv_pos_groups", "mask_length", "num_extra_tokens"}
    with pytest.raises(ConfigError, match="pos_conv_depth"):
        Data2VecAudio(v1(pos_conv_depth=1))


# ---- CTC -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [v2(), v1()], ids=["v2", "v1"])
def test_ctc_freezes_masks_and_leaves_out_what_is_too_short(config: Any) -> None:
    options = CTCConfig(
        apply_mask=True, mask_prob=0.5, mask_length=3, mask_channel_prob=0.3, mask_channel_length=4,
        freeze_finetune_updates=10, feature_grad_mult=0.0,
    )  # fmt: skip
    model = CTCModel(config, options, num_symbols=8).train()
    audio = torch.randn(2, 900)
    targets, lengths = torch.tensor([[5, 6, 1], [5] * 3]), torch.tensor([2, 3])
    output = model(audio, ids=torch.tensor([1, 2]), update=0)
    sums = model.loss(output, targets, lengths)
    sums.loss.backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {"w2v_encoder.proj.weight", "w2v_encoder.proj.bias"} and sums.sentences == 2
    model.zero_grad()
    output = model(audio, ids=torch.tensor([1, 2]), update=10)
    model.loss(output, targets, lengths).loss.backward()
    convolutions = [n for n, _ in model.named_parameters() if "conv_layers" in n]
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert convolutions and not learned & set(convolutions) and len(learned) > 20
    many = torch.full((1, 200), 5)
    short = model.loss(model(audio[:1]), many, torch.tensor([200]))
    assert (short.sentences, short.too_short, float(short.loss.detach())) == (0, 1, 0.0)
    model.eval()
    assert torch.equal(model(audio).logits_BTV, model(audio, update=3).logits_BTV), "no masks in evaluation"


def test_frames_that_labels_need() -> None:
    targets = torch.tensor([[5, 5, 5, 1], [5, 6, 7, 8], [4, 1, 1, 1]])
    assert frames_needed(targets, torch.tensor([3, 4, 1])).tolist() == [5, 4, 1]


def test_padded_frames_do_not_change_the_loss_and_are_certain_blanks() -> None:
    torch.manual_seed(1)
    model = CTCModel(v2(), CTCConfig(), num_symbols=6).eval()
    audio, targets, lengths = torch.randn(1, 905), torch.tensor([[4, 5]]), torch.tensor([2])
    alone = model.loss(model(audio), targets, lengths).loss
    padded, mask = F.pad(audio, (0, 700)), torch.zeros(1, 1605, dtype=torch.bool)
    mask[:, 905:] = True
    output = model(padded, mask)
    assert torch.allclose(model.loss(output, targets, lengths).loss, alone, rtol=1e-4)
    frames = int(output.frames_B[0])
    emissions = output.emissions()[0, frames:]
    assert (emissions.argmax(-1) == 0).all() and emissions[:, 1:].isinf().all()


def test_fine_tuning_options_replace_the_trunks() -> None:
    options = CTCConfig(dropout=0.2, layerdrop=0.3, zero_mask=False, update_alibi=False, mask_prob=0.4,
                        feature_grad_mult=0.5)  # fmt: skip
    config = trunk_config(v2(), options)
    assert isinstance(config, Data2VecMultiConfig) and config.modalities.audio is not None
    audio = config.modalities.audio
    assert (config.encoder_dropout, config.post_mlp_drop, audio.prenet_dropout) == (0.2, 0.2, 0.2)
    assert (config.layerdrop, audio.prenet_layerdrop, config.clone_batch) == (0.3, 0.3, 1)
    assert not audio.encoder_zero_mask and not audio.learned_alibi_scale and audio.decoder is None
    model = CTCModel(v2(), options, num_symbols=5)
    scale = model.get_parameter("w2v_encoder.w2v_model.modality_encoders.AUDIO.alibi_scale")
    assert not scale.requires_grad and v2().modalities.audio is not None
    masks = TrainingMasks(time_BT=torch.tensor([[False, True, False]]), fill_ND=torch.full((1, 16), 7.0))
    encoder = model.trunk.encoder
    assert isinstance(encoder, AudioEncoder) and masks.time_BT is not None
    hidden = encoder.hide(torch.zeros(1, 3, 16), masks.time_BT, masks.fill_ND)
    assert hidden[0, 1].eq(7).all() and not hidden[0, [0, 2]].any()


def test_freeze_regex_and_blank_weight() -> None:
    options = CTCConfig(freeze_regex=r"w2v_encoder\.w2v_model\.blocks\..*", blank_weight=3.0)
    model = CTCModel(v2(), options, num_symbols=5).eval()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all(".blocks." in name for name in frozen)
    plain = CTCModel(v2(), CTCConfig(), num_symbols=5).eval()
    audio = torch.randn(1, 600)
    difference = model(audio).logits_BTV - plain(audio).logits_BTV
    assert torch.allclose(difference[..., 0], torch.tensor(3.0), atol=1e-5)
    assert torch.allclose(difference[..., 1:], torch.tensor(0.0), atol=1e-5)


@pytest.mark.parametrize("config", [v2(), v1()], ids=["v2", "v1"])
def test_utterances_alone_learn_what_they_learn_padded_in_a_batch(config: Any) -> None:
    torch.manual_seed(2)
    model = CTCModel(config, CTCConfig(feature_grad_mult=1.0), num_symbols=6).train()
    short, long = torch.randn(1, 705), torch.randn(1, 1210)
    batch, padding = torch.zeros(2, 1210), torch.zeros(2, 1210, dtype=torch.bool)
    batch[0, :705], batch[1], padding[0, 705:] = short, long, True
    targets, lengths = torch.tensor([[4, 5], [5, 4]]), torch.tensor([2, 2])

    def gradients(*parts: tuple[torch.Tensor, torch.Tensor | None, slice]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for audio, mask, rows in parts:
            model.loss(model(audio, mask), targets[rows], lengths[rows]).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = gradients((batch, padding, slice(0, 2)))
    alone = gradients((short, None, slice(0, 1)), (long, None, slice(1, 2)))
    assert together.keys() == alone.keys() and len(alone) > 20
    for name, gradient in alone.items():
        assert torch.allclose(together[name], gradient, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_prepares_audio_as_it_was_trained(normalize: bool, tmp_path: Path) -> None:
    config = v1()
    state, task = Data2VecAudio(config, with_head=False).state_dict(), {"normalize": normalize}
    folder = save_artifact(tmp_path / "m", kind="pretrained", model_config=config, state=state, task=task)
    model = data2vec.load(folder)
    quiet = torch.randn(1200).numpy()
    loud = 5.0 * quiet + 1.0
    same = np.allclose(model.embed([quiet])[0], model.embed([loud])[0], atol=1e-4)
    assert same is normalize, "normalisation is a property of the stored model"
