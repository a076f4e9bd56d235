"""One step of the data2vec 1 models, plainly: see :mod:`tests.models.plain`."""

from __future__ import annotations

import torch

from data2vec.conv_spec import parse_conv_layers
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig
from tests.models.plain import (
    State,
    attention,
    below,
    convolutional_positions,
    distance,
    doubles,
    embedded,
    gelu,
    layer_norm,
    linear,
    padding_bias,
    patches,
    scaled_distance,
    slowed,
    targets,
    waveform_convolutions,
)

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Output and feed-forward branch of each layer."""


def encoder_layers(
    x: torch.Tensor, padded: torch.Tensor, state: State, count: int, heads: int, first: bool, relu: bool
) -> Layers:
    """RoBERTa's layers over one row."""
    bias, found = padding_bias(heads, padded), []
    for index in range(count):
        own = below(state, f"layers.{index}.")
        inner = layer_norm(x, own, "self_attn_layer_norm") if first else x
        q, k, v = (linear(inner, own, f"self_attn.{name}_proj") for name in "qkv")
        h = x + linear(attention(q, k, v, heads, bias), own, "self_attn.out_proj")
        h = h if first else layer_norm(h, own, "self_attn_layer_norm")
        hidden = linear(layer_norm(h, own, "final_layer_norm") if first else h, own, "fc1")
        f = linear(hidden.clamp(min=0.0) if relu else gelu(hidden), own, "fc2")
        x = h + f if first else layer_norm(h + f, own, "final_layer_norm")
        found.append((x, f))
    return found


class PlainAudio:
    def __init__(self, model: Data2VecAudioPretraining) -> None:
        self.config: Data2VecAudioConfig = model.config
        self.state = doubles(model.student, gradients=True)
        self.teacher = doubles(model.teacher.module)

    def local(self, samples: torch.Tensor) -> torch.Tensor:
        spec = list(parse_conv_layers(self.config.conv_feature_layers))
        x = waveform_convolutions(samples, below(self.state, "feature_extractor."), spec)
        x = slowed(x, self.config.feature_grad_mult)
        return linear(layer_norm(x, self.state, "layer_norm"), self.state, "post_extract_proj")

    def transformer(self, x: torch.Tensor, padded: torch.Tensor, state: State) -> tuple[torch.Tensor, Layers]:
        config = self.config
        x = x.masked_fill(padded[:, None], 0.0)
        names = [f"pos_conv.{index}.0" for index in range(config.pos_conv_depth)]
        nobody = torch.zeros_like(padded) if config.padding_leaks else padded
        x = x + convolutional_positions(x, state, names, config.conv_pos_groups, nobody)
        x = x if config.layer_norm_first else layer_norm(x, state, "layer_norm")
        layers = encoder_layers(
            x, padded, state, config.encoder_layers, config.encoder_attention_heads,
            config.layer_norm_first, config.activation_fn == "relu",
        )  # fmt: skip
        x = layers[-1][0]
        return (layer_norm(x, state, "layer_norm") if config.layer_norm_first else x), layers

    def __call__(
        self, raw: torch.Tensor, padded_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        locals_ = [self.local(samples) for samples in raw]
        taught = [self.transformer(x, p, self.teacher)[1] for x, p in zip(locals_, padded_BT, strict=True)]
        layers = [torch.stack([t[i][1] for t in taught]).detach() for i in range(self.config.encoder_layers)]
        target, loss = targets(self.config, layers), torch.zeros(())
        for row, mask in enumerate(mask_BT):
            x = torch.where(mask[:, None], self.state["mask_emb"], locals_[row])
            x, _ = self.transformer(x, padded_BT[row], below(self.state, "encoder."))
            prediction = linear(x[mask], self.state, "final_proj")
            loss = loss + scaled_distance(self.config, prediction, target[row][mask])
        return loss, target[mask_BT]


class PlainText:
    def __init__(self, model: Data2VecTextPretraining) -> None:
        self.config: Data2VecTextConfig = model.config
        self.state = doubles(model.student, gradients=True)
        self.teacher = doubles(model.teacher.module)

    def encoder(self, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, Layers]:
        net = self.config.transformer
        x = embedded(ids, state, not net.no_scale_embedding, not net.no_token_positional_embeddings,
                     net.layernorm_embedding)  # fmt: skip
        padded, first = ids.eq(1), net.encoder.normalize_before
        layers = encoder_layers(
            x.masked_fill(padded[:, None], 0.0), padded, state, self.config.depth, self.config.num_heads,
            first, net.activation_fn == "relu",
        )  # fmt: skip
        x = layers[-1][0]
        return (layer_norm(x, state, "layer_norm") if first else x), layers

    def __call__(
        self, raw: torch.Tensor, padded_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        only = self.config.teacher_sees_masked_only
        seen = torch.where(mask_BT, raw, 1) if only else raw
        taught = [self.encoder(ids, self.teacher)[1] for ids in seen]
        layers = [torch.stack([t[i][1] for t in taught]).detach() for i in range(self.config.depth)]
        target, loss = targets(self.config, layers), torch.zeros(())
        last = len(self.state["encoder.sentence_encoder.embed_tokens.weight"]) - 1
        for row, mask in enumerate(mask_BT):
            ids = torch.where(mask, last, raw[row])
            x, _ = self.encoder(ids, below(self.state, "encoder.sentence_encoder."))
            x = x[mask]
            for index in range(self.config.head_layers):
                x = linear(x if index == 0 else gelu(x), self.state, f"encoder.regression_head.{2 * index}")
            loss = loss + scaled_distance(self.config, x, target[row][mask])
        return loss, target[mask_BT]


class PlainVision:
    def __init__(self, model: Data2VecVisionPretraining) -> None:
        self.config: Data2VecVisionConfig = model.config
        self.state = doubles(model.student, gradients=True)
        teacher = doubles(model.teacher.module)
        alone = self.config.ema_transformer_only
        self.teacher = {f"encoder.{n}": v for n, v in teacher.items()} if alone else teacher

    def local(self, image: torch.Tensor, state: State) -> torch.Tensor:
        return patches(image, state, "patch_embed.conv", self.config.patch_size)

    def bias(self, table: torch.Tensor) -> torch.Tensor:
        """(H, 1 + T, 1 + T), pair by pair."""
        side = self.config.grid
        cells = [None, *((y, x) for y in range(side) for x in range(side))]
        span, rows = 2 * side - 1, []
        for one in cells:
            for two in cells:
                if one is None:
                    number = span**2 + (2 if two is None else 0)
                elif two is None:
                    number = span**2 + 1
                else:
                    number = (one[0] - two[0] + side - 1) * span + one[1] - two[1] + side - 1
                rows.append(table[number])
        return torch.stack(rows).view(len(cells), len(cells), -1).permute(2, 0, 1)

    def encoder(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, Layers]:
        """With the class token already in front."""
        eps, found = self.config.norm_eps, []
        name = "relative_position_bias_table"
        for index in range(self.config.depth):
            own = below(state, f"blocks.{index}.")
            shared = self.config.shared_rel_pos_bias
            bias = self.bias(state[f"rel_pos_bias.{name}"] if shared else own[f"attn.{name}"])
            inner = layer_norm(x, own, "norm1", eps)
            q, k, v = (inner @ own["attn.qkv.weight"].T).chunk(3, dim=1)
            q, v = q + own["attn.q_bias"], v + own["attn.v_bias"]
            branch = linear(attention(q, k, v, self.config.num_heads, bias), own, "attn.proj")
            x = x + own.get("gamma_1", 1.0) * branch
            hidden = gelu(linear(layer_norm(x, own, "norm2", eps), own, "mlp.0"))
            f = own.get("gamma_2", 1.0) * linear(hidden, own, "mlp.2")
            x = x + f
            found.append((x, f))
        return layer_norm(x, state, "norm", eps), found

    def __call__(
        self, raw: torch.Tensor, padded_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config, taught = self.config, []
        locals_ = [self.local(image, self.state) for image in raw]
        for image, local in zip(raw, locals_, strict=True):
            alone = config.ema_transformer_only
            x = local if alone else self.local(image, self.teacher)
            token = (self.state if alone else self.teacher)["cls_emb"][0]
            taught.append(self.encoder(torch.cat([token, x]), below(self.teacher, "encoder."))[1])
        which = 0 if config.end_of_block_targets else 1
        layers = [torch.stack([t[i][which][1:] for t in taught]).detach() for i in range(config.depth)]
        target, loss = targets(config, layers), torch.zeros(())
        for row, mask in enumerate(mask_BT):
            x = torch.where(mask[:, None], self.state["mask_emb"][0], locals_[row])
            x, _ = self.encoder(torch.cat([self.state["cls_emb"][0], x]), below(self.state, "encoder."))
            x = x[1:][mask]
            x = linear(x, self.state, "final_proj") if config.use_final_proj else x
            if config.mean_loss:
                scale = 1.0 if config.loss_scale is None else config.loss_scale
                loss = loss + scale * distance(x, target[row][mask], config.loss_beta) / config.embed_dim
            else:
                loss = loss + scaled_distance(config, x, target[row][mask])
        return loss, target[mask_BT]
