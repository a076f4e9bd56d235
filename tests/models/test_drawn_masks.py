"""Masks and noise that a model draws are those of its configuration, seed, update and sample ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data2vec.audio_masking import audio_span_masks, span_masks
from data2vec.image_masking import image_masks
from data2vec.masking import MaskSet, batch_mask_prob, clone_ids, random_masks, row_noise
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.text import Data2VecTextPretraining, SpanMasking, token_spans
from data2vec.v1.text_config import Data2VecTextConfig
from tests.models.plain import informative
from tests.models.test_training_rates import build

IDS = torch.tensor([2**40 + 3, 12])
KEYS = [(None, 0), (None, 5), (7, 5)]  # seed given or the configuration's, update
CPU = torch.device("cpu")


def ready(kind: str, **modality: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    model, source, _ = build(kind, None, 0.0)
    model.config.seed = 4
    if modality:
        values = model.config.to_dict()
        values["modalities"][kind] |= modality
        values["clone_batch"] = 3
        model = Data2VecPretraining(type(model.config).from_dict(values), vocab_size=20)
    informative(model.student, 1)
    return model.train(), source


@pytest.mark.parametrize(("seed", "update"), KEYS)
@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("text", {"mask_prob": 0.5, "mask_noise_std": 0.4}),
        ("text", {"mask_prob": 0.8, "mask_prob_min": 0.2}),
        ("image", {"mask_prob": 0.5, "mask_length": 2, "mask_prob_adjust": 0.1, "keep_masked_pct": 0.3}),
        ("audio", {"mask_prob": 0.5, "mask_length": 2}),
        ("audio", {"mask_prob": 0.7, "mask_prob_min": 0.1, "mask_length": 2, "add_masks": True}),
        ("audio", {"mask_prob": 0.4, "mask_length": 1}),
    ],
)
def test_data2vec_2(kind: str, modality: dict[str, Any], seed: int | None, update: int) -> None:
    model, source = ready(kind, **modality)
    config, front, rows = model.config, model.config.modality, clone_ids(IDS, 3)
    key = (4 if seed is None else seed, update)
    share = batch_mask_prob(front.mask_prob, front.mask_prob_min, *key, int(IDS[0]))
    padding = None
    if kind == "audio":
        padding = torch.arange(40)[None] >= torch.tensor([[40], [25]])
    masks: MaskSet
    if kind == "image":
        masks = image_masks(rows, 9, front, *key)
    elif kind == "audio" and front.mask_length > 1:
        frames = model.student.encoder.token_padding(padding, 9)
        masks = audio_span_masks(rows, 9, share, front, frames, *key)
    else:
        masks = random_masks(rows, 9, share, *key)
    noise = row_noise(rows, 9 - masks.num_kept, config.embed_dim, front.mask_noise_std, *key)
    drawn = model(source, padding, IDS, update=update, seed=seed)
    given = model(source, padding, IDS, update=update, seed=seed, masks=masks, noise_RJD=noise)
    assert drawn.loss.item() == given.loss.item() and drawn.sample_size == given.sample_size
    assert drawn.masked_pct == 1 - masks.num_kept / 9
    other = model(source, padding, IDS, update=update + 1, seed=seed)
    assert other.loss.item() != drawn.loss.item()


@pytest.mark.parametrize(("seed", "update"), KEYS)
def test_data2vec_1_text(seed: int | None, update: int) -> None:
    torch.manual_seed(0)
    masking = SpanMasking(mask_prob=0.4, mask_multiple_length=2)
    model, source, _ = build("v1 text", None, 0.0)
    model.config.seed = 4
    model = Data2VecTextPretraining(model.config, vocab_size=20, masking=masking)
    informative(model.student, 1)
    source[1, 6:] = 1
    mask = token_spans(IDS, source.ne(1), masking, 4 if seed is None else seed, update)
    drawn = model(source, None, IDS, update=update, seed=seed)
    given = model(source, None, IDS, update=update, mask_BT=mask)
    assert drawn.loss.item() == given.loss.item() and drawn.sample_size == int(mask.sum()) > 0
    plain = Data2VecTextPretraining(model.config, vocab_size=20)
    assert plain.masking == SpanMasking(mask_prob=0.15, mask_multiple_length=1)


@pytest.mark.parametrize(("seed", "update"), KEYS)
def test_data2vec_1_audio(seed: int | None, update: int) -> None:
    model, source = ready("v1 audio")
    model.config.mask_length, model.config.mask_prob = 2, 0.5
    padding = torch.arange(40)[None] >= torch.tensor([[40], [25]])
    key, valid = (4 if seed is None else seed, update), torch.tensor([9, 5])
    mask = span_masks(IDS, 9, mask_prob=0.5, mask_length=2, valid_R=valid, key=key)
    drawn = model(source, padding, IDS, update=update, seed=seed)
    given = model(source, padding, IDS, update=update, seed=seed, mask_BT=mask)
    assert drawn.loss.item() == given.loss.item()
    model.config.mask_channel_prob, model.config.mask_channel_length = 0.4, 2
    hidden = model(source, padding, IDS, update=update, seed=seed, mask_BT=mask)
    assert hidden.loss.item() != given.loss.item(), "channels are hidden too"
    assert hidden.loss.item() != model(source, padding, IDS, update=update + 1, mask_BT=mask).loss.item()


@pytest.mark.parametrize("scale", [None, 0.0, -1.0])
def test_a_loss_scale_that_is_not_positive_means_the_width(scale: float | None) -> None:
    torch.manual_seed(0)
    model, source, _ = build("v1 text", None, 0.0)
    mask = torch.arange(9)[None].expand(2, 9) % 2 == 0
    losses = []
    for value in (1.0, scale):
        config = Data2VecTextConfig.from_dict({**model.config.to_dict(), "loss_scale": value})
        losses.append(Data2VecTextPretraining(config, vocab_size=20)(source, mask_BT=mask).loss.item())
    assert losses[1] == pytest.approx(losses[0] / 4)
