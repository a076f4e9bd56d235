"""Small models for the tests of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig

MakeConfig = Callable[..., Data2VecMultiConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more to handing work over than they gain, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_inputs_are_recomputed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in real models, whose inputs are large."""
    monkeypatch.setattr("data2vec.recomputation.LEAST", 0)


@pytest.fixture
def make_config() -> MakeConfig:
    """A factory of two-block text models without dropout: ``make_config(depth=3, text={...})``."""

    def make(text: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None, **model: Any) -> Any:
        small_decoder = {"decoder_dim": 12, "decoder_groups": 2, "decoder_kernel": 3, "decoder_layers": 2,
                         "input_dropout": 0.0, "decoder_residual": False}  # fmt: skip
        small_text = {"prenet_depth": 0, "mask_prob": 0.5, "mask_length": 1, "dropout": 0.0,
                      "max_source_positions": 40}  # fmt: skip
        small_model = {"depth": 2, "embed_dim": 16, "num_heads": 4, "average_top_k_layers": 2,
                       "clone_batch": 2, "loss_scale": 1.0, "instance_norm_target_layer": True,
                       "encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0,
                       "ema_anneal_end_step": 10, "max_update": 100}  # fmt: skip
        modality = {**small_text, "decoder": {**small_decoder, **(decoder or {})}, **(text or {})}
        return Data2VecMultiConfig.from_dict({**small_model, "modalities": {"text": modality}, **model})

    return make
