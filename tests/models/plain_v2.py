"""One step of data2vec 2.0, plainly: see :mod:`tests.models.plain`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from data2vec.config import Data2VecMultiConfig
from data2vec.conv_spec import parse_conv_layers
from data2vec.pretraining import Data2VecPretraining
from tests.models.plain import (
    State,
    alibi,
    attention,
    below,
    convolutional_positions,
    doubles,
    embedded,
    gelu,
    layer_norm,
    linear,
    normed,
    padding_bias,
    patches,
    same_convolution,
    scaled_distance,
    slowed,
    targets,
    waveform_convolutions,
)


def block(
    config: Data2VecMultiConfig, x: torch.Tensor, state: State, bias: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """One row through one block: output and target candidate."""
    eps, first = config.norm_eps, config.layer_norm_first
    qkv = linear(layer_norm(x, state, "norm1", eps) if first else x, state, "attn.qkv")
    branch = attention(*qkv.chunk(3, dim=1), config.num_heads, bias)
    h = x + linear(branch, state, "attn.proj")
    h = h if first else layer_norm(h, state, "norm1", eps)
    inner = layer_norm(h, state, "norm2", eps) if first else h
    f = linear(gelu(linear(inner, state, "mlp.fc1")), state, "mlp.fc2")
    y = h + f if first else layer_norm(h + f, state, "norm2", eps)
    return y, (y if config.end_of_block_targets else f)


class PlainStep:
    """Losses of a micro-batch with given masks and noise; ``state`` holds leaves with gradients."""

    def __init__(self, model: Data2VecPretraining) -> None:
        self.config = model.config
        self.kind = self.config.modality_name
        self.modality = self.config.modality
        self.state = doubles(model.student, gradients=True)
        teacher = doubles(model.teacher.module)
        # A teacher of blocks alone uses the student's front end.
        blocks_only = self.config.ema_encoder_only
        self.teacher = {f"blocks.{n}": v for n, v in teacher.items()} if blocks_only else teacher
        self.front = f"modality_encoders.{self.kind}."

    def local(self, raw: torch.Tensor, whole: State) -> torch.Tensor:
        """(T, D) local features of one sample."""
        state, mult = below(whole, self.front), self.modality.local_grad_mult
        if self.kind == "TEXT":
            text = self.config.modalities.text
            assert text is not None
            own = below(state, "local_encoder.")
            positions = not text.no_token_positional_embeddings
            return slowed(
                embedded(raw, own, not text.no_scale_embedding, positions, text.layernorm_embedding), mult
            )
        if self.kind == "IMAGE":
            image = self.config.modalities.image
            assert image is not None
            two = "local_encoder.0.proj.weight" in state
            name = "local_encoder.0.proj" if two else "local_encoder.proj"
            x = patches(raw, state, name, image.patch_size)
            return slowed(linear(x, state, "local_encoder.1") if two else x, mult)
        audio = self.config.modalities.audio
        assert audio is not None
        layers = list(parse_conv_layers(audio.feature_encoder_spec))
        x = slowed(waveform_convolutions(raw, below(state, "local_encoder."), layers), mult)
        return linear(layer_norm(x, state, "project_features.1"), state, "project_features.2")

    def positions(self, x: torch.Tensor, whole: State, padded: torch.Tensor) -> torch.Tensor:
        """What is added to local features before the blocks."""
        state = below(whole, self.front)
        if self.kind == "TEXT":
            return torch.zeros_like(x)
        if self.kind == "IMAGE":
            fixed = state.get("fixed_positional_encoder.positions")
            return torch.zeros_like(x) if fixed is None else fixed[0]
        audio = self.config.modalities.audio
        assert audio is not None
        inner, prefix = "relative_positional_encoder.", ""
        if audio.conv_pos_pre_ln:
            x, prefix = layer_norm(x, state, f"{inner}0"), "1."
        names = [f"{inner}{prefix}{1 + index}.0" for index in range(audio.conv_pos_depth)]
        nobody = torch.zeros_like(padded) if audio.padding_leaks else padded
        return convolutional_positions(x, state, names, audio.conv_pos_groups, nobody)

    def encode(
        self,
        x: torch.Tensor,
        at: torch.Tensor,
        padded: torch.Tensor,
        front: State,
        shared: State,
        final: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Extra tokens, context encoder and shared blocks over one row: output, and block candidates."""
        config, heads, state = self.config, self.config.num_heads, below(front, self.front)
        if "extra_tokens" in state:
            extra = state["extra_tokens"][0]
            x, padded = torch.cat([extra, x]), torch.cat([torch.zeros(len(extra)).bool(), padded])
        if "context_encoder.norm.weight" in state:
            x = layer_norm(x, state, "context_encoder.norm", config.norm_eps)
        elif not config.norm_affine and not config.layer_norm_first:
            if self.kind != "TEXT" or self.modality.prenet_depth > 0:
                x = normed(x, eps=config.norm_eps)
        biases = [padding_bias(heads, padded)] * (self.modality.prenet_depth + config.depth)
        if self.modality.use_alibi_encoder:
            scale = state["alibi_scale"].flatten(1).expand(-1, heads)
            biases = [
                bias + alibi(heads, at, scale[min(index, len(scale) - 1)])
                for index, bias in enumerate(biases)
            ]
        candidates = []
        for index in range(self.modality.prenet_depth):
            x, _ = block(config, x, below(state, f"context_encoder.blocks.{index}."), biases[index])
        for index in range(config.depth):
            bias = biases[self.modality.prenet_depth + index]
            x, candidate = block(config, x, below(shared, f"blocks.{index}."), bias)
            candidates.append(candidate)
        return (layer_norm(x, front, "norm", config.norm_eps) if final else x), candidates

    def decode(self, kept: torch.Tensor, hidden_T: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(T, D) predictions of one row."""
        decoder, state = self.modality.decoder, below(self.state, f"{self.front}decoder.")
        assert decoder is not None
        rows, seen, gap = [], 0, 0
        for hidden in hidden_T.tolist():
            rows.append(noise[gap] if hidden else kept[seen])
            gap, seen = gap + hidden, seen + (not hidden)
        x = torch.stack(rows)
        fixed = self.state.get(f"{self.front}fixed_positional_encoder.positions")
        if decoder.add_positions_all:
            assert fixed is not None
            x = x + fixed[0]
        if decoder.add_positions_masked:
            assert fixed is not None
            x = x + fixed[0] * hidden_T[:, None]
        for index in range(decoder.decoder_layers):
            name = f"blocks.{index}.0"
            if self.kind == "IMAGE":
                side, weight = int(len(x) ** 0.5), state[f"{name}.weight"]
                grid = x.T.reshape(1, -1, side, side)
                y = F.conv2d(grid, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2,
                             groups=decoder.decoder_groups)  # fmt: skip
                y = y[0, :, :side, :side].flatten(1).T
            else:
                y = same_convolution(x, state, name, decoder.decoder_groups)
            y = gelu(normed(y))
            x = y + x if decoder.decoder_residual and y.shape == x.shape else y
        if "proj.weight" in state:
            return linear(x, state, "proj")
        for index in range(decoder.projection_layers):
            x = linear(x if index == 0 else gelu(x), state, f"proj.{2 * index}")
        return x

    def __call__(
        self, raw: torch.Tensor, padded_BT: torch.Tensor, mask_RT: torch.Tensor, noise_RJD: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Losses by name, and the (B, T, D) targets."""
        config, extra = self.config, self.modality.num_extra_tokens
        locals_ = [self.local(sample, self.state) for sample in raw]
        candidates: list[list[torch.Tensor]] = []
        for sample, x, padded in zip(raw, locals_, padded_BT, strict=True):
            front = self.state if config.ema_encoder_only else self.teacher
            own = self.modality.ema_local_encoder and not config.ema_encoder_only
            x = self.local(sample, self.teacher) if own else x
            x = x + self.positions(x, front, padded)
            candidates.append(self.encode(x, torch.arange(len(x)), padded, front, self.teacher, False)[1])
        layers = [torch.stack([c[i][extra:] for c in candidates]).detach() for i in range(config.depth)]
        target_BTD = targets(config, layers)
        losses = {"cls": torch.zeros(()), "recon": torch.zeros(()), "main": torch.zeros(())}
        for row, mask in enumerate(mask_RT):
            sample = row // config.clone_batch
            local, padded, kept = locals_[sample], padded_BT[sample], (~mask).nonzero()[:, 0]
            shown = local.masked_fill(mask[:, None], 0.0) if self.kind == "AUDIO" else local
            x = local + self.positions(shown, self.state, padded)
            seen, _ = self.encode(
                x[kept], kept, padded[kept], self.state, self.state, config.layer_norm_first
            )
            prediction = self.decode(seen[extra:], mask, noise_RJD[row].double())[mask]
            losses["main"] = losses["main"] + config.d2v_loss * scaled_distance(
                config, prediction, target_BTD[sample][mask]
            )
            if config.cls_loss > 0:
                mean, weight = target_BTD[sample].mean(dim=0), config.cls_loss * int(mask_RT.sum())
                losses["cls"] = losses["cls"] + weight * scaled_distance(config, seen[extra - 1], mean)
            if config.recon_loss > 0:
                pixels = _pixels(raw[sample].double(), self.config.modalities.image.patch_size)  # type: ignore[union-attr]
                losses["recon"] = losses["recon"] + config.recon_loss * scaled_distance(
                    config, linear(prediction, self.state, "recon_proj"), pixels[mask]
                )
        return losses, target_BTD


def _pixels(image_CSS: torch.Tensor, size: int) -> torch.Tensor:
    """(T, P * P * C) pixels of each patch as (row, column, channel), normalised within it (unbiased)."""
    side, found = image_CSS.shape[1] // size, []
    for y in range(side):
        for x in range(side):
            patch = image_CSS[:, y * size : (y + 1) * size, x * size : (x + 1) * size]
            values = patch.permute(1, 2, 0).flatten()
            found.append((values - values.mean()) / torch.sqrt(values.var(correction=1) + 1e-6))
    return torch.stack(found)
