"""Work and memory of image models of both generations against real steps, also in chunks and recomputed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data2vec.clone_chunks import clone_chunks
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.flops import StepCost, StepShape, finetuning_step, pretraining_step
from data2vec.image_heads import ImageClassifier, TrunkRegularisation, finetuning_config
from data2vec.pretraining import Data2VecPretraining
from data2vec.transformer import recompute_activations
from data2vec.typed import build
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.sizes import as_multi
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig

NEAR = pytest.approx(1.0, abs=0.15)  # the bound
FIRST = build(Data2VecVisionConfig, {
    "depth": 3, "embed_dim": 64, "num_heads": 4, "image_size": 64, "patch_size": 8, "num_mask_patches": 26,
    "min_mask_patches_per_block": 4, "max_mask_patches_per_block": 20, "average_top_k_layers": 3,
    "layer_norm_targets": True, "drop_path": 0.2, "attention_dropout": 0.1,
})  # fmt: skip
SECOND = Data2VecMultiConfig.from_dict({
    "depth": 3, "embed_dim": 64, "num_heads": 4, "average_top_k_layers": 3, "clone_batch": 4,
    "ema_encoder_only": False, "supported_modality": "IMAGE", "modalities": {"image": {
        "prenet_depth": 1, "mask_prob": 0.8, "mask_length": 3, "inverse_mask": True, "input_size": 64,
        "patch_size": 8, "embed_dim": 64, "num_extra_tokens": 1, "ema_local_encoder": True,
        "decoder": {"decoder_dim": 64, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 3}}},
})  # fmt: skip
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def measured(module: nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """FLOPs of forward and backward, and bytes that autograd keeps in between."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = loss()
    size = float(sum(storage.nbytes() for storage in kept.values()))
    del out
    kept.clear()
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops()), size


def sizes(config: Any) -> Data2VecMultiConfig:
    found = as_multi(config)
    assert found is not None
    return found


def assert_near(planned: StepCost, module: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    work, kept = measured(module, loss)
    assert planned.flops / work == NEAR
    assert planned.activation_bytes / kept == NEAR
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    # The first generation's tables of relative positions and branch scales are not counted.
    assert planned.gradient_bytes / (4 * learning) == pytest.approx(1.0, abs=0.04)


def test_pretraining_the_first_generation() -> None:
    config = dataclasses.replace(FIRST, drop_path=0.0)  # which keeps less, by chance
    model = Data2VecVisionPretraining(config).train()
    planned = pretraining_step(sizes(config), StepShape(samples=4, positions=64, kept=64), branch_scales=True)
    assert_near(planned, model, lambda: model(IMAGES, update=1).loss)


@pytest.mark.parametrize("config", [FIRST, SECOND], ids=["first", "second"])
def test_finetuning(config: Any) -> None:
    # Without drop path, which works less, by chance.
    trunk = finetuning_config(config, TrunkRegularisation(drop_path_rate=0.0, attention_dropout=0.1))
    model = ImageClassifier(trunk, ImageHeadConfig(num_classes=10)).train()
    shape, scales = StepShape(samples=4, positions=64, kept=64), config is FIRST
    planned = finetuning_step(sizes(trunk), shape, num_classes=10, branch_scales=scales)
    labels = torch.tensor([0, 1, 2, 3])
    assert_near(planned, model, lambda: model.loss(model(IMAGES), labels).loss)


def test_chunks_of_clones_keep_less_and_work_the_same() -> None:
    model = Data2VecPretraining(SECOND).train()
    shape = StepShape(samples=4, positions=64, kept=12, clones=4)
    whole, chunked = (pretraining_step(SECOND, shape, clones_at_once=size) for size in (None, 2))
    assert chunked.flops == pytest.approx(whole.flops)
    assert chunked.accumulates and not whole.accumulates
    assert chunked.activation_bytes < 0.6 * whole.activation_bytes
    first, second = clone_chunks(4, 2)
    model(IMAGES, chunk=first).loss.backward()
    _, kept = measured(model, lambda: model(IMAGES, chunk=second).loss)
    held = first.shared.local_BTD, first.shared.leaf_BTD, first.shared.targets_BTD
    kept += sum(t.nbytes for t in held if t is not None)
    assert chunked.activation_bytes / kept == NEAR


def test_recomputed_activations_of_the_first_generation() -> None:
    sizes_of = {"embed_dim": 32, "ffn_embed_dim": 64, "layers": 2, "attention_heads": 2, "learned_pos": True}
    transformer = {"max_source_positions": 64, "layernorm_embedding": True, "encoder": sizes_of}
    text = build(Data2VecTextConfig, {"transformer": transformer, "average_top_k_layers": 2})
    tokens = torch.randint(4, 40, (3, 20), generator=torch.Generator().manual_seed(1))
    makers: list[tuple[Callable[[], nn.Module], torch.Tensor]] = [
        (lambda: Data2VecVisionPretraining(FIRST), IMAGES),
        (lambda: Data2VecTextPretraining(text, vocab_size=42), tokens),
    ]
    for make, source in makers:
        found: list[dict[str, torch.Tensor]] = []
        kept: list[float] = []
        for recompute in (False, True):
            model = make().train()
            recompute_activations(model, recompute)
            torch.manual_seed(5)  # dropout and drop path
            model(source, update=1).loss.backward()
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            kept.append(measured(model, lambda m=model, x=source: m(x, update=1).loss)[1])
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert kept[1] < 0.6 * kept[0]
