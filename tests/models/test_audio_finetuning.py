"""Fine-tuning of audio trunks: what the options reach, what is hidden and when, the CTC loss by counting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from data2vec.audio_masking import span_masks
from data2vec.audio_trunk import TrainingMasks, masked_features, trunk_config
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import BLANK, CTCConfig, CTCModel, CTCOutput
from data2vec.v1.config import Data2VecAudioConfig

SPEC = "[(16, 10, 5)] + [(16, 3, 2)] * 2"
MASKS = {"apply_mask": True, "mask_prob": 0.5, "mask_length": 3}


def v2(**values: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 3,
         "average_top_k_layers": 2, "ema_encoder_only": False, "modalities": {"text": None, "audio": {
             "feature_encoder_spec": SPEC, "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2,
             "prenet_depth": 1, "use_alibi_encoder": True, "learned_alibi_scale": True,
             "mask_prob_min": 0.1, "inverse_mask": True, "mask_noise_std": 0.3, "decoder": None}}, **values}
    )  # fmt: skip


def v1(**values: Any) -> Data2VecAudioConfig:
    return Data2VecAudioConfig.from_dict(
        {"extractor_mode": "layer_norm", "encoder_layers": 3, "encoder_embed_dim": 16,
         "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "conv_feature_layers": SPEC,
         "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3, "average_top_k_layers": 2, **values}
    )  # fmt: skip


def model(config: Any, **options: Any) -> CTCModel:
    return CTCModel(config, CTCConfig(**options), num_symbols=7).train()


BOTH = pytest.mark.parametrize("config", [v2(), v1()], ids=["v2", "v1"])
OPTIONS = {"dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13, "dropout_input": 0.14,
           "layerdrop": 0.15, "feature_grad_mult": 0.16, "mask_prob": 0.17, "mask_length": 18,
           "mask_dropout": 0.19, "mask_channel_prob": 0.21, "mask_channel_length": 22}  # fmt: skip


def test_every_option_reaches_a_trunk_of_data2vec_2() -> None:
    given = v2()
    config = trunk_config(given, CTCConfig(**OPTIONS, zero_mask=True, update_alibi=False))
    assert isinstance(config, Data2VecMultiConfig) and config.modalities.audio is not None
    audio = config.modalities.audio
    changed = {
        name: value for name, value in vars(config).items()
        if value != getattr(given, name) and name != "modalities"
    }  # fmt: skip
    assert changed == {"encoder_dropout": 0.11, "post_mlp_drop": 0.11, "attention_dropout": 0.12,
                       "activation_dropout": 0.13, "dropout_input": 0.14, "layerdrop": 0.15}  # fmt: skip
    changed = {
        name: value for name, value in vars(audio).items() if value != getattr(given.modalities.audio, name)
    }
    assert changed == {
        "prenet_dropout": 0.11, "prenet_layerdrop": 0.15, "local_grad_mult": 0.16, "mask_prob": 0.17,
        "mask_length": 18, "mask_dropout": 0.19, "mask_channel_prob": 0.21, "mask_channel_length": 22,
        "mask_prob_min": None, "inverse_mask": False, "learned_alibi_scale": False,
    }  # fmt: skip
    assert audio.encoder_zero_mask, "which was the pretraining's too"
    noise = trunk_config(given, CTCConfig(zero_mask=False))
    assert isinstance(noise, Data2VecMultiConfig) and noise.modalities.audio is not None
    assert not noise.modalities.audio.encoder_zero_mask and noise.modalities.audio.learned_alibi_scale


def test_every_option_reaches_a_trunk_of_data2vec_1() -> None:
    given = v1()
    options = CTCConfig(**OPTIONS, mask_channel_before=True, require_same_masks=False)
    config = trunk_config(given, options)
    changed = {name: value for name, value in vars(config).items() if value != getattr(given, name)}
    assert changed == {
        "dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13, "dropout_input": 0.14,
        "encoder_layerdrop": 0.15, "feature_grad_mult": 0.16, "mask_prob": 0.17, "mask_length": 18,
        "mask_dropout": 0.19, "mask_channel_prob": 0.21, "mask_channel_length": 22,
        "mask_channel_before": True, "require_same_masks": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout", "dropout_input",
                                  "final_dropout", "layerdrop"])  # fmt: skip
@BOTH
def test_every_dropout_acts_in_training_alone(config: Any, name: str) -> None:
    audio = torch.randn(2, 900)
    plain, noisy = model(config), model(config, **{name: 0.5})
    noisy.load_state_dict(plain.state_dict())
    wanted = plain(audio).logits_BTV
    found = [noisy(audio, update=update).logits_BTV for update in range(4)]
    assert any(not torch.allclose(logits, wanted, atol=1e-4) for logits in found)
    assert torch.equal(noisy.eval()(audio).logits_BTV, plain.eval()(audio).logits_BTV)


@BOTH
def test_layer_drop_is_a_function_of_seed_and_update(config: Any) -> None:
    network, audio = model(config, layerdrop=0.5), torch.randn(1, 700)

    def logits(seed: int, update: int) -> torch.Tensor:
        return network(audio, update=update, seed=seed).logits_BTV

    updates, seeds = [logits(1, u) for u in range(8)], [logits(s, 0) for s in range(1, 9)]
    assert torch.equal(updates[0], logits(1, 0))
    for several in (updates, seeds):
        assert len({round(float(x.sum().detach()), 4) for x in several}) > 2


def seen_masks(
    network: CTCModel, audio: torch.Tensor, padding: torch.Tensor | None, **key: Any
) -> TrainingMasks:
    """What is hidden from the trunk, told by the tensors that it hides them in."""
    found: dict[str, torch.Tensor] = {}
    trunk: Any = network.trunk
    owner = trunk if hasattr(trunk, "mask_emb") else trunk.encoder
    whole, hide = owner.local_features(audio), owner.hide
    owner.hide = lambda x, *masks: found.setdefault("x", hide(x, *masks))
    name = "forward" if owner is trunk else "add_positions"
    place = trunk.encoder
    run = getattr(place, name)
    setattr(place, name, lambda x, *rest, **more: (found.__setitem__("x", x), run(x, *rest, **more))[1])
    network(audio, padding, **key)
    del owner.hide
    delattr(place, name)
    changed = found["x"] != whole
    channels = changed.float().mean(dim=1) > 0.99
    frames = (changed & ~channels[:, None]).any(dim=2)
    return TrainingMasks(frames, channels, found["x"][frames])


@BOTH
def test_frames_are_hidden_as_the_options_say(config: Any) -> None:
    audio = torch.randn(3, 1200)
    padding = torch.arange(1200)[None] >= torch.tensor([1200, 600, 900])[:, None]
    network = model(config, **MASKS)
    ids = torch.tensor([5, 6, 7])
    found = seen_masks(network, audio, padding, ids=ids, update=3, seed=2).time_BT
    assert found is not None
    frames = network(audio, padding).frames_B
    wanted = span_masks(ids, found.shape[1], mask_prob=0.5, mask_length=3, valid_R=frames, key=(2, 3))
    assert torch.equal(found, wanted)
    later = seen_masks(network, audio, padding, ids=ids, update=4, seed=2).time_BT
    assert later is not None and not torch.equal(later, wanted)
    less = seen_masks(model(config, **MASKS, mask_dropout=0.5), audio, padding, ids=ids, update=3, seed=2)
    assert less.time_BT is not None and not (less.time_BT & ~wanted).any()
    assert less.time_BT.sum(1).tolist() == [n - round(n * 0.5) for n in wanted.sum(1).tolist()]
    for off in ({"apply_mask": False}, {"mask_prob": 0.0}):
        plain = seen_masks(model(config, **{**MASKS, **off}), audio, padding, ids=ids)
        assert plain.time_BT is not None and not plain.time_BT.any()


@BOTH
def test_channels_are_hidden_as_the_options_say(config: Any) -> None:
    values = {"apply_mask": True, "mask_prob": 0.0, "mask_channel_prob": 0.25, "mask_channel_length": 4}
    audio, ids = torch.randn(40, 300), torch.arange(40)
    if isinstance(config, Data2VecAudioConfig):
        values["require_same_masks"] = False
    network = model(config, **values)
    found = seen_masks(network, audio, None, ids=ids, update=3, seed=2).channel_BD
    wanted = span_masks(
        ids, 16, mask_prob=0.25, mask_length=4, min_spans=0, key=("channels", 2, 3),
        equal_counts=not isinstance(config, Data2VecAudioConfig),
    )  # fmt: skip
    assert found is not None and torch.equal(found, wanted) and wanted.any()
    rare = {**values, "mask_channel_prob": 0.05}
    none = seen_masks(model(config, **rare), audio, None, ids=ids, update=3, seed=2).channel_BD
    assert none is not None and not none.all(dim=1).any() and not none[none.sum(1).argmin()].any()


def test_masked_frames_become_noise_or_zeros_or_the_learned_vector() -> None:
    audio, ids = torch.randn(8, 1200), torch.arange(8)
    network = model(v2(), **MASKS)
    fill = seen_masks(network, audio, None, ids=ids, update=1).fill_ND
    assert fill is not None and float(fill.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(fill.mean())) < 0.03
    again, later, other = (
        seen_masks(network, audio, None, ids=rows, update=update).fill_ND
        for rows, update in ((ids, 1), (ids, 2), (ids + 1, 1))
    )
    assert torch.equal(fill, again)  # type: ignore[arg-type]
    assert later is not None and not torch.equal(fill[:50], later[:50])
    assert other is not None and not torch.equal(fill[:50], other[:50])
    zeros = seen_masks(model(v2(), **MASKS, zero_mask=True), audio, None, ids=ids, update=1).fill_ND
    assert zeros is not None and len(zeros) and not zeros.any()
    first = model(v1(), **MASKS)
    learned = seen_masks(first, audio, None, ids=ids, update=1).fill_ND
    assert learned is not None and (learned == first.get_parameter("w2v_encoder.w2v_model.mask_emb")).all()


@BOTH
def test_what_is_frozen_and_until_when(config: Any) -> None:
    network = model(config, freeze_finetune_updates=3, feature_grad_mult=1.0)
    audio = torch.randn(1, 700)
    for update, learns in ((0, False), (2, False), (3, True), (4, True)):
        x, _ = masked_features(
            network.trunk, network.options, audio, None, torch.arange(1), training=True, update=update, seed=1
        )
        assert x.requires_grad is learns, update
    x, _ = masked_features(
        network.trunk, network.options, audio, None, torch.arange(1), training=False, update=0, seed=1
    )
    assert x.requires_grad, "evaluation knows no freezing"


def test_a_pattern_freezes_parameters_whose_whole_name_it_is() -> None:
    named = dict(model(v2()).named_parameters())
    name = next(n for n in named if n.endswith("blocks.1.mlp.fc1.weight") and "context" not in n)
    for pattern, frozen in ((name, {name}), (name[:-2], set()), (name[5:], set()), (f".*{name[9:]}", {name})):
        network = model(v2(), freeze_regex=pattern.replace(".", r"\.").replace(r"\.*", ".*"))
        assert {n for n, p in network.named_parameters() if not p.requires_grad} == frozen, pattern


# ---- CTC ------------------------------------------------------------------------------------------------


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Without repeats, then without blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]


def test_the_loss_sums_the_probability_of_every_alignment() -> None:
    torch.manual_seed(0)
    network = CTCModel(v2(), CTCConfig(), num_symbols=4)
    labels, lengths, frames = torch.tensor([[2, 2], [3, 1]]), torch.tensor([2, 1]), torch.tensor([5, 3])
    logits = 2.0 * torch.randn(2, 5, 4)
    padding = torch.arange(5)[None] >= frames[:, None]
    sums = network.loss(CTCOutput(logits, frames, padding), labels, lengths)
    wanted = 0.0
    for row in range(2):
        p = logits[row, : frames[row]].double().softmax(dim=1)
        target, total = labels[row, : lengths[row]].tolist(), 0.0
        for path in itertools.product(range(4), repeat=int(frames[row])):
            if collapsed(path) == target:
                total += float(torch.stack([p[t, s] for t, s in enumerate(path)]).prod())
        wanted -= torch.tensor(total).log().item()
    assert float(sums.loss) == pytest.approx(wanted, rel=1e-5)
    assert (sums.sentences, sums.too_short) == (2, 0)


def test_utterances_with_too_few_frames_are_left_out() -> None:
    network = CTCModel(v2(), CTCConfig(), num_symbols=4)
    labels, lengths = torch.tensor([[2, 2, 3]] * 3), torch.tensor([3, 3, 3])  # need four frames
    logits = torch.randn(3, 5, 4)
    sums = network.loss(CTCOutput(logits, torch.tensor([3, 4, 5]), None), labels, lengths)
    last = network.loss(CTCOutput(logits[1:], torch.tensor([4, 5]), None), labels[1:], lengths[1:])
    assert (sums.sentences, sums.too_short) == (2, 1) and torch.equal(sums.loss, last.loss)
    empty = network.loss(CTCOutput(logits[:1], torch.tensor([0]), None), labels[:1], torch.tensor([0]))
    assert (empty.sentences, empty.too_short) == (0, 1)


@pytest.mark.parametrize("mode", ["add", "set"])
def test_the_blanks_weight_is_added_or_is_its_logit(mode: Any) -> None:
    torch.manual_seed(0)
    audio = torch.randn(1, 700)
    plain, weighed = (model(v2(), blank_weight=weight, blank_mode=mode).eval() for weight in (0.0, 2.5))
    weighed.load_state_dict(plain.state_dict())
    before, after = plain(audio).logits_BTV, weighed(audio).logits_BTV
    assert torch.equal(before[..., 1:], after[..., 1:])
    wanted = before[..., 0] + 2.5 if mode == "add" else torch.full_like(before[..., 0], 2.5)
    torch.testing.assert_close(after[..., 0], wanted)


def test_frames_count_without_padding_and_padded_ones_are_blanks() -> None:
    audio = torch.randn(2, 1200)
    padding = torch.arange(1200)[None] >= torch.tensor([[1200], [700]])
    network = model(v2()).eval()
    output = network(audio, padding)
    alone = network(audio[1:, :700])
    assert output.frames_B.tolist() == [output.logits_BTV.shape[1], alone.logits_BTV.shape[1]]
    emissions, own = output.emissions(), alone.emissions()
    assert torch.allclose(emissions.exp().sum(-1), torch.ones(emissions.shape[:2]), atol=1e-5)
    assert torch.allclose(emissions[1, : own.shape[1]], own[0], atol=1e-4)
    assert emissions[1, own.shape[1] :, BLANK].eq(0.0).all()


def test_the_projections_initial_weights_are_xaviers() -> None:
    network = CTCModel(v2(), CTCConfig(), num_symbols=200, seed=4)
    projection = network.get_parameter("w2v_encoder.proj.weight").detach()
    bound = (6.0 / (16 + 200)) ** 0.5
    assert 0.98 * bound < float(projection.abs().max()) <= bound
    assert not network.get_parameter("w2v_encoder.proj.bias").any()
    same, other = (CTCModel(v2(), CTCConfig(), num_symbols=200, seed=seed) for seed in (4, 5))
    assert torch.equal(projection, same.get_parameter("w2v_encoder.proj.weight"))
    assert not torch.equal(projection, other.get_parameter("w2v_encoder.proj.weight"))
