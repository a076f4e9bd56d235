"""The check takes new cases of a built family with other sizes and options, without any change.

There is no reference at hand to record such cases, so they are recorded from our own library here, straight
from its classes. That proves the check's plumbing (keys, groups, absent tensors, frozen parts), not parity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.heads import SentenceClassifier
from data2vec.masking import clone_ids, random_masks, row_noise
from data2vec.pretraining import Data2VecPretraining
from tests.parity.intermediates import intermediates
from tests.parity.recording import copies, informative, norms, train, write

NO_DROPOUT = {"encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0}


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import check  # pyright: ignore[reportMissingImports]

        yield check


def config_of(text: dict[str, Any], decoder: dict[str, Any], model: dict[str, Any]) -> Data2VecMultiConfig:
    small = {
        "decoder_dim": 12,
        "decoder_groups": 2,
        "decoder_kernel": 3,
        "decoder_layers": 2,
        "input_dropout": 0.0,
    }
    modality = {
        "prenet_depth": 0,
        "mask_length": 1,
        "mask_prob": 0.5,
        "dropout": 0.0,
        "max_source_positions": 30,
    }
    return Data2VecMultiConfig.from_dict(
        {"depth": 3, "embed_dim": 24, "num_heads": 3, "average_top_k_layers": 2, "ema_decay": 0.9,
         "max_update": 50, "clone_batch": 2, **NO_DROPOUT, **model,
         "modalities": {"text": {**modality, **text, "decoder": {**small, **decoder}}}}
    )  # fmt: skip


def record_pretraining(folder: Path, config: Data2VecMultiConfig, padded: bool) -> Path:
    torch.manual_seed(5)
    model = Data2VecPretraining(config, vocab_size=37).train()
    informative(model.student)
    informative(model.teacher.module)
    source, length = torch.randint(4, 37, (2, 15)), 15
    padding = torch.arange(length)[None] >= torch.tensor([[15], [9]])
    source = source.masked_fill(padding, 1) if padded else source
    rows = clone_ids(torch.arange(2), config.clone_batch)
    masks = random_masks(rows, length, 0.4, 9)
    noise = row_noise(rows, length - masks.num_kept, config.embed_dim, 0.01, 9)
    tensors = {f"student/{name}": value for name, value in copies(model.student).items()}
    tensors |= {f"teacher/{name}": value for name, value in copies(model.teacher.module).items()}
    tensors |= {"input/source": source, "mask/mask": masks.mask_RT, "mask/ids_keep": masks.ids_keep_RK,
                "mask/ids_restore": masks.ids_restore_RT, "rng/decoder_mask_token_noise": noise}  # fmt: skip
    if padded:
        tensors["input/padding_mask"] = padding

    with intermediates(model) as found:
        output = model(source, padding if padded else None, masks=masks, noise_RJD=noise)
    for name, value in found.items():
        tensors[name if name.startswith("loss") else f"out/{name}"] = value
    loss = float(output.loss.detach())
    groups = {"decoder_group": True} if config.decoder_group else {}
    trained, more = train(
        model.student, output.loss, output.sample_size, {"default": 0.1, "decoder": 0.0}, **groups
    )
    model.teacher.step(4)
    teacher = copies(model.teacher.module)
    info = {
        "config": {**config.to_dict(), "a_field_of_later_versions": 1}, "losses": {"TEXT_regression": loss},
        "losses_sum": loss, "sample_size": output.sample_size, "masked_pct": output.masked_pct,
        "pred_var": output.prediction.deviation(), "target_var": output.target.deviation(),
        "ema_decay": 900.0, "teacher_after_norms": norms(teacher),
        "ema_step": {"num_updates": 4, "decay": model.teacher.decay(4)},
        **trained,
    }  # fmt: skip
    return write(
        folder, info, tensors | more | {f"after/teacher/{name}": value for name, value in teacher.items()}
    )


ALL_NORMS = {
    "batch_norm_target_layer": True, "instance_norm_target_layer": True, "layer_norm_target_layer": True,
    "layer_norm_targets": True, "instance_norm_targets": True,
}  # fmt: skip
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "prenet blocks": ({"prenet_depth": 2}, {}, {}),
    "smooth L1, default scale": ({}, {}, {"loss_beta": 0.5, "loss_scale": None, "d2v_loss": 2.0}),
    "even kernel, residual, deep": ({}, {"decoder_kernel": 4, "decoder_layers": 4, "decoder_dim": 24}, {}),
    "three projections": ({}, {"projection_layers": 3, "projection_ratio": 1.5}, {}),
    "block ends, one layer": ({}, {}, {"end_of_block_targets": True, "average_top_k_layers": 1}),
    "all target norms": ({}, {}, ALL_NORMS),
    "norms without weights": ({}, {}, {"norm_affine": False, "mlp_ratio": 2.5}),
    "frozen front end": ({"local_grad_mult": 0.0}, {}, {}),
    "scaled front end": ({"local_grad_mult": 0.3}, {}, {}),
    "bare embeddings": ({"layernorm_embedding": False, "no_scale_embedding": False}, {}, {}),
    "no positions": ({"no_token_positional_embeddings": True}, {}, {}),
    "decoder group": ({}, {}, {"decoder_group": True}),
    "constant decay, five clones": ({}, {}, {"ema_decay": 0.9, "ema_end_decay": 0.9, "clone_batch": 5}),
}  # fmt: skip


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("option", OPTIONS)
def test_pretraining_options(check: ModuleType, tmp_path: Path, option: str, padded: bool) -> None:
    folder = record_pretraining(tmp_path / "renamed case", config_of(*OPTIONS[option]), padded)
    assert check.main([str(folder)]) == 0


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("head", "regression"),
    [
        ({"num_classes": 5, "pooler_activation": "relu"}, False),
        ({"num_classes": 1, "pooler_activation": "tanh"}, True),
    ],
    ids=["five classes", "regression"],
)
def test_fine_tuning_options(
    check: ModuleType, tmp_path: Path, head: dict[str, Any], regression: bool, training: bool
) -> None:
    torch.manual_seed(6)
    config = config_of({"prenet_depth": 1}, {}, {})
    own = SentenceHeadConfig(num_classes=head["num_classes"], pooler_activation_fn=head["pooler_activation"])
    model = SentenceClassifier(config, own, vocab_size=37).train(training)
    informative(model)
    source = torch.randint(4, 37, (3, 11))
    target = torch.rand(3) if regression else torch.tensor([4, 0, 2])
    tensors = {f"student/{name}": value for name, value in copies(model).items()}
    tensors |= {"input/source": source, "input/target": target}
    features, logits = model.model(source).x_BTD, model(source)
    tensors |= {"out/features": features.detach(), "out/logits": logits.detach()}
    loss = model.loss(logits, target, regression).loss
    info = {"pretrain_config": config.to_dict(), "config": {**head, "regression": regression},
            "training": training, "losses_sum": float(loss.detach())}  # fmt: skip
    if training:
        trained, more = train(model, loss, 3, {"default": 0.1})
        info, tensors = {**info, **trained, "sample_size": 3}, tensors | more
    folder = write(tmp_path / "renamed case", info, tensors)
    assert check.main([str(folder)]) == 0
    info["losses_sum"] *= 1.001
    (folder / "case.json").write_text(json.dumps(info))
    assert check.main([str(folder)]) == 1
