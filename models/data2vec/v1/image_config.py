"""What a data2vec 1 vision model is, with the reference's field names (``data2vec_vision``) and defaults.

The fields after ``ema_transformer_only`` are ours: they turn the reference's variant into the one behind the
paper's numbers (its BEiT-based code), whose head is used, whose norms have another epsilon and whose teacher
is the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RegressionConfig
from ..errors import Problem
from ..rules import Rules


@dataclass(kw_only=True)
class Data2VecVisionConfig(RegressionConfig):
    """data2vec 1 for images: a BEiT over masked patches, regressing its own teacher's features."""

    layer_scale_init_value: float = 1e-4  # initial scale of each branch; 0 = no scales
    num_mask_patches: int = 75  # patches to mask in each image, at most
    min_mask_patches_per_block: int = 16  # smallest area of a masked block
    max_mask_patches_per_block: int = 196  # largest area of a masked block
    image_size: int = 224  # side of the square input, in pixels
    patch_size: int = 16  # side of a patch, in pixels
    in_channels: int = 3  # colour channels
    shared_rel_pos_bias: bool = True  # one relative position bias for all blocks; false: one a block
    drop_path: float = 0.1  # drop path of the last block, rising linearly from 0
    attention_dropout: float = 0.0  # dropout on attention probabilities
    depth: int = 12  # transformer blocks
    embed_dim: int = 768  # width
    num_heads: int = 12  # attention heads
    mlp_ratio: int = 4  # feed-forward width / embed_dim
    end_of_block_targets: bool = True  # average block outputs; false: feed-forward branches
    ema_transformer_only: bool = True  # the teacher is the transformer alone; false: with its own patches
    norm_eps: float = 1e-5  # epsilon of the layer norms; 1e-6 in the BEiT-based code
    use_final_proj: bool = False  # predict through the linear head, which the reference builds and leaves out
    beit_init: bool = False  # initial weights of the BEiT-based code instead of the reference's
    mean_loss: bool = False  # mean over channels instead of the sum: the loss of the BEiT-based code

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        rule.at_least(1, "depth", "embed_dim", "num_heads", "mlp_ratio", "in_channels", "patch_size")
        if min(self.num_heads, self.embed_dim) >= 1:
            rule("num_heads", self.embed_dim % self.num_heads == 0, f"must divide embed_dim {self.embed_dim}")
        rule("image_size", self.image_size >= max(self.patch_size, 1), "must be at least one patch")
        rule.probability("drop_path", "attention_dropout")
        cells = self.grid**2 if self.patch_size >= 1 else 0
        rule("num_mask_patches", 1 <= self.num_mask_patches <= cells, f"must lie in 1 ... {cells} patches")
        low, high = self.min_mask_patches_per_block, self.max_mask_patches_per_block
        rule("min_mask_patches_per_block", 1 <= low <= high, f"must lie in 1 ... the largest block {high}")
        self.objective_rules(rule, self.depth, "depth")
        rule("loss_scale", self.loss_scale is None or self.loss_scale > 0, "must be > 0, or null")
        return rule.found
