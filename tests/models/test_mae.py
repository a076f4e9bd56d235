"""Masked autoencoders: the objective by plain formulas, masks, initial weights, groups, costs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from data2vec.config import ImageHeadConfig
from data2vec.errors import ConfigError
from data2vec.families import describe, generation_of, read_model_config
from data2vec.image import sincos_positions
from data2vec.image_heads import ImageClassifier, TrunkRegularisation, finetuning_config, finetuning_lr_scales
from data2vec.mae import MaeDecoder, MaskedAutoencoder
from data2vec.mae_config import MaeConfig
from data2vec.mae_flops import autoencoder_step
from data2vec.masking import MaskSet
from data2vec.optim import parameter_groups
from data2vec.step_stages import Execution, StepShape
from tests.parity.intermediates import intermediates

SMALL = MaeConfig(input_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, decoder_embed_dim=16,
                  decoder_depth=2, decoder_num_heads=2)  # fmt: skip
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MASK = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(1) >= 4  # 4 of 16 are seen
DECODER = "modality_encoders.IMAGE.decoder."


def small(**values: Any) -> MaskedAutoencoder:
    """With biases, norms and tokens that are not their initial values."""
    model = MaskedAutoencoder(dataclasses.replace(SMALL, **values))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def seen_in(
    model: MaskedAutoencoder, images: torch.Tensor = IMAGES, **options: Any
) -> dict[str, torch.Tensor]:
    with intermediates(model) as found:
        model(images, **options)
    return found


def block(x: torch.Tensor, w: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    """A pre-LN block of one image, (T, D), head by head."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    width = x.shape[1]
    qkv = norm(x, "norm1") @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    outputs = []
    for head in range(heads):
        first = head * width // heads
        columns = slice(first, first + width // heads)
        q, k, v = (part[:, columns] for part in qkv.split(width, dim=1))
        outputs.append(((q @ k.T) / (width // heads) ** 0.5).softmax(-1) @ v)
    x = x + torch.cat(outputs, 1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    hidden = F.gelu(norm(x, "norm2") @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    return x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def network(x: torch.Tensor, weights: dict[str, torch.Tensor], prefix: str, depth: int, heads: int) -> Any:
    for index in range(depth):
        start = f"{prefix}blocks.{index}."
        x = block(x, {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}, heads)
    return F.layer_norm(x, x.shape[-1:], weights[f"{prefix}norm.weight"], weights[f"{prefix}norm.bias"], 1e-6)


def patches_of(image: torch.Tensor) -> list[torch.Tensor]:
    """The (C, P, P) patches of an image, row by row."""
    return [image[:, y : y + 4, x : x + 4] for y in range(0, 16, 4) for x in range(0, 16, 4)]


def loss_by_formula(model: MaskedAutoencoder, normalised: bool) -> float:
    """He et al. 2021, image by image: the sum over masked patches of the mean over pixels."""
    w, total, c = dict(model.student.state_dict()), 0.0, "modality_encoders.IMAGE."
    kernel, bias = w[f"{c}local_encoder.proj.weight"], w[f"{c}local_encoder.proj.bias"]
    places, narrow = sincos_positions(4, 24)[0], sincos_positions(4, 16)[0]
    for image, hidden in zip(IMAGES, MASK, strict=True):
        tokens = {
            t: (kernel * patch).sum((1, 2, 3)) + bias + places[t]
            for t, patch in enumerate(patches_of(image))
            if not hidden[t]
        }
        x = network(torch.stack([w[f"{c}extra_tokens"][0, 0], *tokens.values()]), w, "", 2, 3)
        x = x @ w[f"{DECODER}embed.weight"].T + w[f"{DECODER}embed.bias"]
        seen = dict(zip(tokens, x[1:], strict=True))
        row = [seen.get(t, w[f"{DECODER}mask_token"][0, 0]) + narrow[t] for t in range(16)]
        y = network(torch.stack([x[0], *row]), w, DECODER, 2, 2)[1:]
        y = y @ w[f"{DECODER}pred.weight"].T + w[f"{DECODER}pred.bias"]
        for t, patch in enumerate(patches_of(image)):
            if hidden[t]:
                pixels = patch.permute(1, 2, 0).reshape(-1)  # row, column, channel
                if normalised:
                    spread = sum((float(p) - float(pixels.mean())) ** 2 for p in pixels) / (len(pixels) - 1)
                    pixels = (pixels - pixels.mean()) / math.sqrt(spread + 1e-6)
                total += float(((y[t] - pixels) ** 2).mean())
    return total


@pytest.mark.parametrize("normalised", [True, False])
def test_one_step_by_the_formula(normalised: bool) -> None:
    model = small(norm_pix_loss=normalised)
    output = model(IMAGES, masks=MaskSet.from_mask(MASK))
    assert output.sample_size == 3 * 12 and output.masked_pct == 0.75
    assert output.losses.keys() == {"regression"}
    assert float(output.loss.detach()) == pytest.approx(loss_by_formula(model, normalised), rel=1e-4)


def test_the_pixels_of_visible_patches_are_no_targets() -> None:
    seen = seen_in(MaskedAutoencoder(SMALL), masks=MaskSet.from_mask(MASK))
    masked = [patch for image, hidden in zip(IMAGES, MASK, strict=True)
              for patch, flag in zip(patches_of(image), hidden, strict=True) if flag]  # fmt: skip
    assert seen["target"].shape == seen["prediction"].shape == (36, 48)
    flat = torch.stack([patch.permute(1, 2, 0).flatten() for patch in masked])
    wanted = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(seen["target"], wanted, atol=1e-5)


def test_the_decoder_puts_everything_where_it_was() -> None:
    """With equal widths, an identity in between and no positions, its input is the encoder's output."""
    model = small(decoder_embed_dim=24, decoder_num_heads=3)
    decoder = model.student.encoder.decoder
    assert isinstance(decoder, MaeDecoder)
    with torch.no_grad():
        decoder.embed.weight.copy_(torch.eye(24))
        decoder.embed.bias.zero_()
        decoder.fixed_positional_encoder.positions.zero_()
        decoder.mask_token.fill_(7.0)
    seen = seen_in(model, seed=5, update=2)
    masks = {name: x for name, x in seen.items() if name == "decoder_input"}["decoder_input"]
    hidden = (masks[:, 1:] == 7.0).all(-1)
    assert hidden.sum(1).tolist() == [12, 12, 12]
    for row in range(3):
        kept = seen["student_encoder_output"][row, 1:]
        assert torch.equal(masks[row, 1:][~hidden[row]], kept), "visible patches in their order"
    assert torch.equal(masks[:, 0], seen["student_encoder_output"][:, 0])


def test_masks_follow_seed_update_and_sample() -> None:
    model = MaskedAutoencoder(dataclasses.replace(SMALL, decoder_embed_dim=24, decoder_num_heads=3))
    decoder = model.student.encoder.decoder
    assert isinstance(decoder, MaeDecoder)
    with torch.no_grad():
        decoder.fixed_positional_encoder.positions.zero_()

    def hidden(ids: list[int], **key: int) -> list[list[bool]]:
        seen = seen_in(model, IMAGES[: len(ids)], ids=torch.tensor(ids), **key)
        return (seen["decoder_input"][:, 1:] == decoder.mask_token[0]).all(-1).tolist()

    first = hidden([4, 8, 9], seed=1, update=3)
    assert hidden([9, 4], seed=1, update=3) == [first[2], first[0]]
    others = [hidden([4], seed=1, update=4), hidden([4], seed=2, update=3), hidden([5], seed=1, update=3)]
    assert all(other[0] != first[0] for other in others)
    assert all(sum(row) == 12 for row in [*first, *(other[0] for other in others)])
    ratio = MaskedAutoencoder(dataclasses.replace(SMALL, mask_ratio=0.7))(IMAGES)
    assert ratio.sample_size == 3 * (16 - int(16 * (1 - 0.7)))


def test_a_step_asks_the_processor_for_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that Python must wait for would break a compiled step into pieces."""
    model, ids = MaskedAutoencoder(SMALL).train(), torch.arange(3)

    def asked(*_: Any) -> Any:
        raise AssertionError("a number was asked for")

    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, asked, raising=False)
    model(IMAGES, ids=ids, update=1, watch=True).loss.backward()


def test_initial_weights() -> None:
    config = dataclasses.replace(SMALL, decoder_embed_dim=24, decoder_num_heads=3)
    model, again = MaskedAutoencoder(config, seed=4), MaskedAutoencoder(config, seed=4)
    weights = model.state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in weights.items())
    other = MaskedAutoencoder(config, seed=5).state_dict()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            bound = math.sqrt(6 / (module.weight.shape[0] + module.weight[0].numel()))  # Xavier
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound, name
            assert not torch.equal(module.weight, other[f"{name}.weight"]), name
        if isinstance(module, torch.nn.Linear):
            assert module.bias is not None and not module.bias.any(), name
    assert weights["student.modality_encoders.IMAGE.local_encoder.proj.bias"].all(), "PyTorch's own"
    large = MaskedAutoencoder(MaeConfig(input_size=8, patch_size=4, embed_dim=512, depth=1, num_heads=1,
                                        decoder_depth=1, decoder_num_heads=1))  # fmt: skip
    for name in ("extra_tokens", "decoder.mask_token"):
        token = large.state_dict()[f"student.modality_encoders.IMAGE.{name}"]
        assert float(token.std()) == pytest.approx(0.02, rel=0.15), name
    first, second = (weights[f"student.{prefix}blocks.0.attn.qkv.weight"] for prefix in ("", DECODER))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_norms_and_biases_do_not_decay() -> None:
    model = MaskedAutoencoder(SMALL)
    groups = {g.name: g.names for g in parameter_groups(model, dynamic=False, decay_groups=True)}
    image = "student.modality_encoders.IMAGE."
    wanted = {
        "with_decay": (f"{image}extra_tokens", f"{image}decoder.mask_token", f"{image}decoder.pred.weight",
                       f"{image}local_encoder.proj.weight", "student.blocks.0.attn.qkv.weight"),
        "no_decay": (f"{image}local_encoder.proj.bias", "student.norm.weight",
                     "student.blocks.1.norm2.weight", "student.blocks.0.attn.qkv.bias",
                     f"{image}decoder.embed.bias"),
    }  # fmt: skip
    assert groups.keys() == wanted.keys()
    assert all(name in groups[group] for group, names in wanted.items() for name in names)
    assert not any("position" in name for names in groups.values() for name in names), "fixed"
    assert sum(map(len, groups.values())) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_cost_of_a_step(recompute: bool) -> None:
    from data2vec.transformer import recompute_activations

    config = MaeConfig(input_size=64, patch_size=8, embed_dim=64, depth=3, num_heads=4, decoder_embed_dim=32,
                       decoder_depth=2, decoder_num_heads=4)  # fmt: skip
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = MaskedAutoencoder(config).train()
    recompute_activations(model, recompute)
    planned = autoencoder_step(config, StepShape(samples=4, positions=64, kept=16),
                               Execution(checkpoint_activations=recompute))  # fmt: skip
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).loss
    del loss
    with FlopCounterMode(display=False) as counter:
        model(images).loss.backward()
    assert planned.flops / counter.get_total_flops() == pytest.approx(1.0, abs=0.15)
    assert planned.activation_bytes / sum(kept.values()) == pytest.approx(1.0, abs=0.15)
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.gradient_bytes == 4 * learning and planned.teacher_parameters == 0
    assert planned.teacher_flops == planned.teacher_working_bytes == 0


def test_impossible_values_are_named_together() -> None:
    def fields(**values: Any) -> set[str]:
        with pytest.raises(ConfigError) as caught:
            dataclasses.replace(SMALL, **values).check()
        return {problem.field.removeprefix("model.") for problem in caught.value.problems}

    assert fields(depth=0, decoder_depth=0, drop_path_rate=1.0) == {
        "depth",
        "decoder_depth",
        "drop_path_rate",
    }
    assert fields(num_heads=5, decoder_num_heads=3) == {"num_heads", "decoder_num_heads"}
    assert fields(embed_dim=6, decoder_embed_dim=18) == {"embed_dim", "decoder_embed_dim"}
    assert fields(patch_size=5) == {"input_size"}
    for ratio in (0.0, 1.0, 0.95):
        assert fields(mask_ratio=ratio) == {"mask_ratio"}
    dataclasses.replace(SMALL, mask_ratio=0.9).check()


def test_the_family() -> None:
    assert read_model_config("mae", SMALL.to_dict()) == SMALL
    assert describe(MaeConfig()) == "mae, IMAGE: 12 blocks, width 768, 12 heads, patches of 16 pixels"
    assert generation_of(SMALL) == 2
    full = {field.name: field.default for field in dataclasses.fields(MaeConfig)}
    assert full == {
        "input_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12,
        "decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16, "mlp_ratio": 4,
        "norm_eps": 1e-6, "drop_path_rate": 0.0, "mask_ratio": 0.75, "norm_pix_loss": True,
    }  # fmt: skip
    with torch.device("meta"):
        model = MaskedAutoencoder(MaeConfig())
    assert (
        sum(p.numel() for p in model.parameters()) == 111_907_840 - 768 - 512
    )  # the published one, without class tokens' zero positions


def test_drop_path_rises_over_the_encoder_alone() -> None:
    model = MaskedAutoencoder(dataclasses.replace(SMALL, depth=3, drop_path_rate=0.2))
    decoder = model.student.encoder.decoder
    assert isinstance(decoder, MaeDecoder)
    assert [float(b.drop_path) for b in model.student.blocks] == pytest.approx([0.0, 0.1, 0.2])  # pyright: ignore
    assert [b.drop_path for b in decoder.blocks] == [0.0, 0.0]


def test_the_encoder_is_fine_tuned_like_an_image_model() -> None:
    trunk = finetuning_config(SMALL, TrunkRegularisation(drop_path_rate=0.3, norm_eps=1e-5), 20)
    model = ImageClassifier(trunk, ImageHeadConfig(num_classes=5))
    assert model(torch.randn(2, 3, 20, 20)).shape == (2, 5)
    assert trunk.norm_eps == 1e-5 and [b.drop_path for b in model.model.blocks] == pytest.approx([0.0, 0.3])  # pyright: ignore
    scales = finetuning_lr_scales(model, 0.5, front_end=True)
    image = "model.modality_encoders.IMAGE."
    wanted = {f"{image}extra_tokens": 0.125, f"{image}local_encoder.proj.weight": 0.125,
              "model.blocks.0.norm1.bias": 0.25, "model.blocks.1.mlp.fc2.weight": 0.5,
              "model.norm.weight": 1.0}  # fmt: skip
    assert {name: scales[name] for name in wanted} == wanted
    features = model.model(torch.randn(2, 3, 20, 20), all_layers=True)
    assert len(features.layers) == 2 and torch.equal(features.layers[-1][:, 1:], features.x_BTD)
