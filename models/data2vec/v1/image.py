"""data2vec 1 for images: a BEiT with relative positions over masked patches, and its objective.

The student sees all patches, masked ones replaced by a learned vector; the teacher, an average of the
student, sees the image unmasked.

B images, T patches, D width, H heads, N masked patches of all images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import attend, split_heads
from ..drop_path import KeptRows
from ..errors import DataError
from ..feed_forward import feed_forward
from ..masking import masked_index
from ..placing import moved
from ..pretraining import Comparison
from ..randomness import generator
from ..student import Features
from ..targets import TargetAverage
from ..teacher import Teacher
from ..transformer import TransformerBlock, drop_path_rates, kept_blocks
from .image_config import Data2VecVisionConfig
from .image_masking import rectangle_masks
from .objective import RegressionPretraining, Seen

EachLayer = Callable[[int, torch.Tensor, torch.Tensor], None]
INIT_STD = 0.02


class PatchConvolution(nn.Module):
    """Patches as vectors."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) to (B, T, D), patches row by row."""
        return self.conv(image_BCSS).flatten(2).transpose(1, 2)


class RelativePositionBias(nn.Module):
    """A learned bias on attention logits for each offset between patches, and three for the class token."""

    def __init__(self, grid: int, num_heads: int) -> None:
        super().__init__()
        offsets = (2 * grid - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets + 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(grid))

    def forward(self) -> torch.Tensor:
        """(1, H, 1 + T, 1 + T)."""
        index = self.relative_position_index
        assert isinstance(index, torch.Tensor)
        return gather_bias(self.relative_position_bias_table, index)


def gather_bias(table: torch.Tensor, index_TT: torch.Tensor) -> torch.Tensor:
    """Rows of a table at each pair of positions: (1, H, T, T)."""
    bias = table.index_select(0, index_TT.flatten())
    return bias.view(*index_TT.shape, -1).permute(2, 0, 1)[None].contiguous()


def bias_table_shape(config: Data2VecVisionConfig) -> tuple[int, int]:
    """(offsets + 3, H) of a table of relative positions."""
    return (2 * config.grid - 1) ** 2 + 3, config.num_heads


def relative_position_index(grid: int) -> torch.Tensor:
    """Row of the table for each pair (query, key) of the class token and G * G patches.

    Patches: ``(dy + G - 1) * (2 G - 1) + (dx + G - 1)``; then class to patch, patch to class, class to class.

    Returns:
        (1 + T, 1 + T) int64.
    """
    index = torch.empty(grid * grid + 1, grid * grid + 1, dtype=torch.int64)
    if index.is_meta:  # its shape is all that is asked for
        return index
    span = 2 * grid - 1
    cell = torch.arange(grid * grid)
    y, x = cell // grid, cell % grid
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    index[1:, 1:] = (dy + grid - 1) * span + dx + grid - 1
    index[0, :], index[:, 0], index[0, 0] = span**2, span**2 + 1, span**2 + 2
    return index


class BiasedAttention(nn.Module):
    """Self-attention whose keys have no bias, plus the relative position bias."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        if not config.shared_rel_pos_bias:  # BEiT's published fine-tuned models
            self.relative_position_bias_table = nn.Parameter(torch.zeros(*bias_table_shape(config)))
            self.register_buffer("relative_position_index", relative_position_index(config.grid))

    def forward(
        self, x_BTD: torch.Tensor, bias_1HTT: torch.Tensor | None, scale_D: torch.Tensor | None
    ) -> torch.Tensor:
        """Shape is kept; without a given bias the block's own is used; ``scale`` multiplies the output."""
        if bias_1HTT is None:
            index = self.relative_position_index
            assert isinstance(index, torch.Tensor)
            bias_1HTT = gather_bias(self.relative_position_bias_table, index)
        rows, length, dim = x_BTD.shape
        bias_3D = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv_BT3D = F.linear(x_BTD, self.qkv.weight, bias_3D)
        dropout = self.dropout if self.training else 0.0
        out_BHTC = attend(*split_heads(qkv_BT3D, self.num_heads), bias_1HTT, dropout)
        out_BTD = self.proj(out_BHTC.transpose(1, 2).reshape(rows, length, dim))
        return out_BTD if scale_D is None else out_BTD * scale_D


class ImageBlock(TransformerBlock):
    """Pre-LN block with a learned scale of each branch."""

    def __init__(self, config: Data2VecVisionConfig, drop_path: float) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, config.embed_dim * config.mlp_ratio
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = BiasedAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        scale = config.layer_scale_init_value
        self.gamma_1 = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None

    def _run(
        self, x_BTD: torch.Tensor, bias_1HTT: torch.Tensor | None, attending: KeptRows, feeding: KeptRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D) to the block's output and its scaled feed-forward branch, of rows drop path keeps."""
        x = attending.add(x_BTD, self.attn(self.norm1(attending.of(x_BTD)), bias_1HTT, self.gamma_1))
        widen, _, narrow = self.mlp
        assert isinstance(widen, nn.Linear) and isinstance(narrow, nn.Linear)
        f = feed_forward(self.norm2(feeding.of(x)), widen, narrow, scale=self.gamma_2)
        return feeding.add(x, f), f


class ImageTransformer(nn.Module):
    """Relative positions, blocks and (for pretraining) a final norm."""

    def __init__(self, config: Data2VecVisionConfig, final_norm: bool) -> None:
        super().__init__()
        shared = config.shared_rel_pos_bias
        self.rel_pos_bias = RelativePositionBias(config.grid, config.num_heads) if shared else None
        rates = drop_path_rates(0.0, config.drop_path, config.depth)
        self.blocks = nn.ModuleList(ImageBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps) if final_norm else None

    def forward(self, x_BTD: torch.Tensor, each: EachLayer | None = None) -> torch.Tensor:
        """(B, 1 + T, D) with the class token first; ``each`` receives index, output and branch of a block."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for index, block in kept_blocks(self.blocks, 0.0, self.training):
            x_BTD, branch = block(x_BTD, bias)
            if each is not None:
                each(index, x_BTD, branch)
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Data2VecVision(nn.Module):
    """The network.

    Args:
        config: architecture.
        pretraining: build mask vector, final norm and head, which fine-tuning drops.
        seed: seed of the initial weights.
    """

    def __init__(self, config: Data2VecVisionConfig, *, pretraining: bool = True, seed: int = 1) -> None:
        super().__init__()
        config.check()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchConvolution(config.in_channels, config.patch_size, dim)
        self.cls_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_emb = nn.Parameter(torch.zeros(1, 1, dim)) if pretraining else None
        self.encoder = ImageTransformer(config, final_norm=pretraining)
        self.final_proj = nn.Linear(dim, dim) if pretraining else None
        initialise_images(self, seed)

    def local_features(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) to (B, T, D)."""
        size, channels = self.config.image_size, self.config.in_channels
        if image_BCSS.ndim != 4 or image_BCSS.shape[1:] != (channels, size, size):
            raise DataError(
                f"images are {tuple(image_BCSS.shape)}, the model takes (B, {channels}, {size}, {size})"
            )
        return self.patch_embed(image_BCSS)

    def with_class_token(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, 1 + T, D)."""
        return torch.cat([self.cls_emb.expand(len(x_BTD), -1, -1).to(x_BTD.dtype), x_BTD], dim=1)

    def forward(
        self, source: torch.Tensor, padding_mask: None = None, *_key: int | str, all_layers: bool = False
    ) -> Features:
        """Features of complete images, without the final norm, which fine-tuning drops."""
        layers: list[torch.Tensor] = []
        x = self.with_class_token(self.local_features(source))
        last = x

        def each(_index: int, output: torch.Tensor, _branch: torch.Tensor) -> None:
            nonlocal last
            last = output
            if all_layers:
                layers.append(output)

        self.encoder(x, each)
        return Features(last[:, 1:], tuple(layers), last[:, :1])


class Data2VecVisionPretraining(RegressionPretraining[Data2VecVision, Data2VecVisionConfig]):
    """Student and teacher with the v1 objective."""

    def __init__(self, config: Data2VecVisionConfig, *, seed: int = 1) -> None:
        super().__init__()
        self.config = config
        self.student = Data2VecVision(config, seed=seed)
        if config.ema_transformer_only:
            self.teacher = Teacher(copy.deepcopy(self.student.encoder), self.student.encoder, config)
        else:
            module = copy.deepcopy(self.student)
            module.mask_emb = module.final_proj = None
            self.teacher = Teacher(module, self.student, config)

    def see(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        mask_BT: torch.Tensor | None,
        *key: int,
    ) -> Seen:
        """Patches, rectangles of which are masked."""
        config = self.config
        if mask_BT is None:
            mask_BT = rectangle_masks(
                ids,
                config.grid,
                num_patches=config.num_mask_patches,
                min_per_block=config.min_mask_patches_per_block,
                max_per_block=config.max_mask_patches_per_block,
                key=key,
            )
        masked_N = moved(masked_index(mask_BT), source.device)
        local_BTD, x_BTD, found = self.compute(source, moved(mask_BT, source.device), masked_N)
        return Seen(local_BTD, x_BTD, None, found)

    def compute(
        self, source: torch.Tensor, mask_BT: torch.Tensor, masked_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Comparison]:
        """Patches and the encoder's output, (B, T, D), and what comes of them: all that a device does by
        itself."""
        student = self.student
        assert student.mask_emb is not None
        local_BTD = student.local_features(source)
        hidden = torch.where(mask_BT[..., None], student.mask_emb.to(local_BTD.dtype), local_BTD)
        x_BTD = student.encoder(student.with_class_token(hidden))[:, 1:]
        return local_BTD, x_BTD, self._compare(x_BTD, self._targets(source, local_BTD), masked_N)

    def predict(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The encoder's output itself, unless the head is wanted."""
        if not self.config.use_final_proj:
            return x_ND
        assert self.student.final_proj is not None
        return self.student.final_proj(x_ND)

    def loss_factor(self) -> float:
        """The mean over channels has no other scale of its own."""
        if not self.config.mean_loss:
            return super().loss_factor()
        return (1.0 if self.config.loss_scale is None else self.config.loss_scale) / self.config.embed_dim

    @torch.no_grad()
    def _targets(self, source: torch.Tensor, local_BTD: torch.Tensor) -> torch.Tensor:
        """Normalised teacher features of every patch, (B, T, D) in fp32."""
        average, ends = TargetAverage(self.config), self.config.end_of_block_targets

        def each(index: int, output: torch.Tensor, branch: torch.Tensor) -> None:
            average.add(index, (output if ends else branch)[:, 1:])

        module = self.teacher.module
        if isinstance(module, Data2VecVision):
            module.encoder(module.with_class_token(module.local_features(source)), each)
        else:
            module(self.student.with_class_token(local_BTD.detach()), each)
        return average.result()


@torch.no_grad()
def initialise_images(model: Data2VecVision, seed: int) -> None:
    """Initial weights: as the reference's class, or as the BEiT-based code where ``beit_init`` asks for it.

    Linear layers of the blocks are N(0, 0.02) with zero biases, and the last one of each branch is divided by
    ``sqrt(2 l)`` in block l (from 1). The reference gives class token and mask vector N(0.02, 1) cut at +-2,
    a deviation of 0.88 (it hands its 0.02 over as the mean), and leaves patches and head to PyTorch: uniform,
    at most ``fan_in ** -0.5``, biases too. BEiT gives all of these N(0, 0.02) and zero biases, and cuts every
    normal distribution at one deviation.
    """
    beit = model.config.beit_init
    for name, token in model.named_parameters():
        if name in ("cls_emb", "mask_emb"):
            mean, std, cut = (0.0, INIT_STD, INIT_STD) if beit else (INIT_STD, 1.0, 2.0)
            nn.init.trunc_normal_(token, mean, std, -cut, cut, generator=generator("init", seed, name))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        draw, weight, bias = generator("init", seed, name), module.weight, module.bias
        if beit:
            nn.init.trunc_normal_(weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD, generator=draw)
        elif name.startswith("encoder."):
            weight.normal_(0.0, INIT_STD, generator=draw)
        else:
            bound = weight[0].numel() ** -0.5
            weight.uniform_(-bound, bound, generator=draw)
            assert bias is not None
            bias.uniform_(-bound, bound, generator=generator("init", seed, name, "bias"))
            continue
        if bias is not None:
            bias.zero_()
    for index, block in enumerate(model.encoder.blocks, start=1):
        assert isinstance(block, ImageBlock)
        last = block.mlp[2]
        assert isinstance(last, nn.Linear)
        block.attn.proj.weight.div_((2.0 * index) ** 0.5)
        last.weight.div_((2.0 * index) ** 0.5)
