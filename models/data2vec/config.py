"""What a model is: architecture and objective, with the reference's field names and defaults.

The names and values are those of the reference's ``data2vec_multi`` model configuration (see the recipes in
``configs/``), so that its recipes and the configurations inside its checkpoints mean the same thing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .audio_checks import audio_problems
from .conv_spec import frame_count, parse_conv_layers
from .errors import ConfigError, Problem
from .rules import ModelConfig, Rules

ModalityKind = Literal["IMAGE", "AUDIO", "TEXT"]


@dataclass(kw_only=True)
class DecoderConfig:
    """The convolutional decoder that predicts teacher features at masked positions (v2 paper, 3.3)."""

    decoder_dim: int = 384  # channels of the convolutions
    decoder_groups: int = 16  # convolution groups
    decoder_kernel: int = 5  # convolution width
    decoder_layers: int = 5  # number of convolutions
    input_dropout: float = 0.1  # dropout on the student output that enters the decoder
    add_positions_masked: bool = False  # add fixed positions at masked positions
    add_positions_all: bool = False  # add fixed positions everywhere
    decoder_residual: bool = True  # add each layer's input to its output where the widths agree
    projection_layers: int = 1  # linear layers after the convolutions
    projection_ratio: float = 2.0  # widening of the hidden projection layers


@dataclass(kw_only=True)
class ModalityConfig:
    """What every modality encoder has: prenet blocks, extra tokens, masking and ALiBi."""

    type: ModalityKind | None = None  # set by the modality's name
    prenet_depth: int = 4  # modality-specific blocks before the shared ones
    prenet_layerdrop: float = 0.0  # probability of skipping a prenet block while training
    prenet_dropout: float = 0.0  # dropout before the prenet blocks
    start_drop_path_rate: float = 0.0  # drop path of the first prenet block
    end_drop_path_rate: float = 0.0  # drop path of the last prenet block
    num_extra_tokens: int = 0  # class-like tokens put before the sequence
    init_extra_token_zero: bool = True  # first extra token starts at zero instead of N(0, 1)
    mask_noise_std: float = 0.01  # standard deviation of the noise at masked positions
    mask_prob_min: float | None = None  # if set, the masked share of a batch is uniform(min, mask_prob)
    mask_prob: float = 0.7  # share of positions masked
    inverse_mask: bool = False  # draw visible blocks instead of masked ones
    mask_prob_adjust: float = 0.0  # extra share drawn to make up for overlaps
    keep_masked_pct: float = 0.0  # share of the masked positions that the student still sees
    mask_length: int = 5  # block length; 1 = independent positions
    add_masks: bool = False  # equalise rows by adding masked positions instead of removing some
    remove_masks: bool = False  # without effect, as in the reference
    mask_dropout: float = 0.0  # share of the masked positions to unmask again
    encoder_zero_mask: bool = True  # masked inputs become zeros instead of noise
    mask_channel_prob: float = 0.0  # share of channels masked (fine-tuning)
    mask_channel_length: int = 64  # length of a channel block
    ema_local_encoder: bool = False  # the teacher has its own front end
    local_grad_mult: float = 1.0  # gradient multiplier of the front end; 0 = frozen
    use_alibi_encoder: bool = False  # add an ALiBi bias to the attention
    alibi_scale: float = 1.0  # initial scale of the bias
    learned_alibi: bool = False  # learn the bias itself
    alibi_max_pos: int | None = None  # size of a learned bias
    learned_alibi_scale: bool = False  # learn the scale
    learned_alibi_scale_per_head: bool = False  # one scale a head
    learned_alibi_scale_per_layer: bool = False  # one scale a layer
    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)  # null: no decoder

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape that every sample has; ``None`` where they differ."""
        return None

    def positions(self, length: int) -> int:
        """Positions of the sequence that a sample of this length becomes."""
        return length

    def raw(self, length: int) -> int:
        """Values of such a sample that convolutions go through first; 0 without them."""
        return 0

    def visible(self, positions: int) -> int:
        """Positions that masking leaves."""
        return int(positions * (1.0 - self.mask_prob))


@dataclass(kw_only=True)
class TextModalityConfig(ModalityConfig):
    """The text front end: token and position embeddings."""

    max_source_positions: int = 512  # longest sequence, in tokens
    learned_pos: bool = True  # learned instead of sinusoidal positions
    dropout: float = 0.1  # dropout on the embeddings
    no_scale_embedding: bool = True  # embeddings are not multiplied by sqrt(embed_dim)
    layernorm_embedding: bool = True  # layer norm after token + position
    no_token_positional_embeddings: bool = False  # leave positions out


@dataclass(kw_only=True)
class ImageModalityConfig(ModalityConfig):
    """The image front end: patches and fixed two-dimensional positions."""

    input_size: int = 224  # side of the square input, in pixels
    in_chans: int = 3  # colour channels
    patch_size: int = 16  # side of a patch, in pixels
    embed_dim: int = 768  # width of the patch convolution; a linear layer follows where the model's differs
    alibi_dims: int = 2  # dimensions of an ALiBi bias
    alibi_distance: Literal["manhattan", "euclidean"] = "manhattan"  # distance of an ALiBi bias
    fixed_positions: bool = True  # add two-dimensional sin-cos positions
    transformer_decoder: bool = False  # a transformer as decoder
    enc_dec_transformer: bool = False  # a decoder with cross-attention

    def positions(self, length: int) -> int:
        """Patches, of the one size that images have."""
        return (self.input_size // self.patch_size) ** 2


AUDIO_CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"


@dataclass(kw_only=True)
class AudioModalityConfig(ModalityConfig):
    """The audio front end: convolutions over the waveform, then convolutional positions."""

    extractor_mode: Literal["layer_norm", "default"] = "layer_norm"  # norm after every convolution
    feature_encoder_spec: str = AUDIO_CONVOLUTIONS  # (channels, width, stride) of each convolution
    conv_pos_width: int = 95  # frames that the positional convolutions see together
    conv_pos_groups: int = 16  # groups of the positional convolutions
    conv_pos_depth: int = 5  # number of positional convolutions
    conv_pos_pre_ln: bool = False  # layer norm before the positional convolutions
    padding_leaks: bool = False  # padded frames reach real ones through these, as in the reference

    def positions(self, length: int) -> int:
        """Frames."""
        return max(frame_count(parse_conv_layers(self.feature_encoder_spec), length), 1)

    def raw(self, length: int) -> int:
        """The waveform."""
        return length

    def visible(self, positions: int) -> int:
        """Rounded as the masks are: those that are drawn are counted."""
        if self.inverse_mask:
            return super().visible(positions)
        return positions - int(positions * self.mask_prob)


@dataclass(kw_only=True)
class ModalitiesConfig:
    """One entry for each modality that the model has."""

    audio: AudioModalityConfig | None = None  # null: the defaults if supported_modality is AUDIO
    text: TextModalityConfig | None = field(default_factory=TextModalityConfig)
    image: ImageModalityConfig | None = None


@dataclass(kw_only=True)
class RegressionConfig(ModelConfig):
    """What both generations share: the student regresses its own teacher's features at masked positions."""

    loss_beta: float = 0.0  # 0 = squared error, > 0 = smooth L1 with this beta
    loss_scale: float | None = None  # factor of the loss; null = 1 / sqrt(width of the blocks)
    average_top_k_layers: int = 8  # teacher blocks averaged into the target, from the top
    layer_norm_target_layer: bool = False  # layer norm of each teacher layer
    instance_norm_target_layer: bool = False  # instance norm of each teacher layer
    batch_norm_target_layer: bool = False  # batch norm of each teacher layer
    instance_norm_targets: bool = False  # instance norm of the averaged target
    layer_norm_targets: bool = False  # layer norm of the averaged target
    ema_decay: float = 0.999  # teacher decay at the first update
    ema_end_decay: float = 0.9999  # teacher decay after annealing
    ema_anneal_end_step: int | None = None  # updates of annealing; null = max_update
    max_update: int | None = None  # length of the run, for the annealing
    min_target_var: float = 0.1  # stop below this deviation of the targets (after update 5000); 0 = never
    min_pred_var: float = 0.01  # stop below this deviation of the predictions (after update 5000); 0 = never
    seed: int = 1  # seed of the masks

    def objective_rules(self, rule: Rules, layers: int, name: str) -> None:
        """What holds for these fields in a network of so many layers, which ``name`` tells."""
        rule.share("ema_decay", "ema_end_decay")
        fits = 1 <= self.average_top_k_layers <= max(layers, 1)
        rule("average_top_k_layers", fits, f"must lie in 1 ... {name} ({layers})")
        rule.at_least(0, "loss_beta")


@dataclass(kw_only=True)
class Data2VecMultiConfig(RegressionConfig):
    """data2vec 2.0: shared transformer blocks, masking, teacher, targets and losses."""

    #: field of the front end's configuration, of a family that has one of its own beside ``modalities``
    own_modality: ClassVar[str | None] = None

    depth: int = 8  # shared transformer blocks
    start_drop_path_rate: float = 0.0  # drop path of the first shared block
    end_drop_path_rate: float = 0.0  # drop path of the last shared block
    num_heads: int = 12  # attention heads
    norm_eps: float = 1e-6  # epsilon of the blocks' layer norms
    norm_affine: bool = True  # the blocks' layer norms have weights
    encoder_dropout: float = 0.1  # dropout after the attention's output projection
    post_mlp_drop: float = 0.1  # dropout on the feed-forward output
    attention_dropout: float = 0.1  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout inside the feed-forward network
    dropout_input: float = 0.0  # dropout before the shared blocks
    layerdrop: float = 0.0  # probability of skipping a shared block while training
    embed_dim: int = 768  # width
    mlp_ratio: float = 4.0  # feed-forward width / embed_dim
    layer_norm_first: bool = False  # pre-LN blocks, as in masked autoencoders; no published model has them
    end_of_block_targets: bool = False  # average block outputs instead of feed-forward outputs
    clone_batch: int = 1  # masked copies of each sample
    ema_same_dtype: bool = True  # teacher computes in the student's precision; false: in fp32
    log_norms: bool = True  # log the norms of the averaged weights: model_norm and ema_norm
    ema_encoder_only: bool = True  # the teacher is the shared blocks alone
    modalities: ModalitiesConfig = field(default_factory=ModalitiesConfig)  # the front ends
    shared_decoder: DecoderConfig | None = None  # a further decoder shared by modalities
    supported_modality: ModalityKind | None = None  # build this modality only
    mae_init: bool = False  # Xavier initialisation of linear layers
    skip_ema: bool = False  # no teacher; must be false, because pretraining learns from it
    cls_loss: float = 0.0  # weight of the class-token loss
    recon_loss: float = 0.0  # weight of the pixel reconstruction loss
    d2v_loss: float = 1.0  # weight of the feature regression
    decoder_group: bool = False  # decoder parameters form the optimizer group "decoder"

    def __post_init__(self) -> None:
        if self.supported_modality == "AUDIO" and self.modalities.audio is None:
            self.modalities.audio = AudioModalityConfig()

    @property
    def modality_name(self) -> str:
        """The modality that is built: a family's own, ``supported_modality``, or the only one configured."""
        if self.own_modality is not None:
            return self.own_modality.upper()
        if self.supported_modality is not None:
            return self.supported_modality
        modalities = self.modalities
        if modalities.text is None and (modalities.image is None) != (modalities.audio is None):
            return "AUDIO" if modalities.image is None else "IMAGE"
        return "TEXT"

    def loss_names(self) -> tuple[str, ...]:
        """Regression of the modality, and those with a weight."""
        more = (name for name in ("cls", "recon") if getattr(self, f"{name}_loss") > 0)
        return (f"{self.modality_name}_regression", *more)

    def front_end(self) -> ModalityConfig | None:
        """Configuration of the front end."""
        holder = self.modalities if self.own_modality is None else self
        return getattr(holder, self.modality_name.lower(), None)

    @property
    def modality(self) -> ModalityConfig:
        """The front end's configuration of the modality that is built."""
        found = self.front_end()
        if found is None:
            name = self.modality_name
            rule = f"model.modalities.{name.lower()} is missing"
            raise ConfigError([Problem("model.supported_modality", name, rule)], "the model configuration")
        return found

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        rule("embed_dim", self.embed_dim > 0, "must be > 0")
        rule("num_heads", self.num_heads > 0, "must be > 0")
        if self.embed_dim > 0 and self.num_heads > 0:
            rule("num_heads", self.embed_dim % self.num_heads == 0, f"must divide embed_dim {self.embed_dim}")
        rule("depth", self.depth > 0, "must be > 0")
        rule("clone_batch", self.clone_batch > 0, "must be > 0")
        self.objective_rules(rule, self.depth, "depth")
        rule.probability(
            "encoder_dropout",
            "post_mlp_drop",
            "attention_dropout",
            "activation_dropout",
            "dropout_input",
            "layerdrop",
            "start_drop_path_rate",
            "end_drop_path_rate",
        )
        rule("shared_decoder", self.shared_decoder is None, "a shared decoder is not supported; use null")
        text, image = self.modalities.text, self.modalities.image
        name = self.modality_name
        rule("mae_init", not self.mae_init or name == "IMAGE", "is supported for images only; use false")
        front = self.front_end()
        if front is None:
            rule("supported_modality", False, f"modalities.{name.lower()} is missing")
        else:
            inside = "modalities." if self.own_modality is None else ""
            dropped = ["prenet_layerdrop", "prenet_dropout", "start_drop_path_rate", "end_drop_path_rate"]
            dropped += ["dropout"] if name == "TEXT" else []
            dropped += ["decoder.input_dropout"] if front.decoder is not None else []
            rule.probability(*(f"{inside}{name.lower()}.{field}" for field in dropped))
        if self.modalities.audio is not None and name == "AUDIO":
            rule.found += audio_problems(self, self.modalities.audio, path)
        if image is not None and name == "IMAGE":
            rule.found += _image_problems(self, image, path)
        if text is not None and name == "TEXT":
            rule.found += _text_problems(text, f"{path}.modalities.text", self.embed_dim)
            # Accepting these for text would mean ignoring them.
            rule(
                "ema_encoder_only",
                self.ema_encoder_only,
                "text supports true only: its teacher is the shared blocks",
            )
            rule("cls_loss", self.cls_loss == 0, "text has no class token; use 0")
            rule("recon_loss", self.recon_loss == 0, "text has no pixels to reconstruct; use 0")
        return rule.found


NO_TEACHER = Problem(
    "model.skip_ema", True, "pretraining learns from its teacher, and fine-tuning builds none; use false"
)


def _text_problems(text: TextModalityConfig, path: str, width: int) -> list[Problem]:
    found: list[Problem] = []
    if not 0.0 < text.mask_prob < 1.0:
        found.append(Problem(f"{path}.mask_prob", text.mask_prob, "must lie in 0 < p < 1"))
    if text.mask_length != 1:
        rule = "text supports independent masking only; use 1"
        found.append(Problem(f"{path}.mask_length", text.mask_length, rule))
    if text.mask_prob_min is not None and not 0.0 <= text.mask_prob_min < text.mask_prob:
        found.append(Problem(f"{path}.mask_prob_min", text.mask_prob_min, "must lie in 0 ... mask_prob"))
    for name, wanted in (("learned_alibi", False), ("learned_pos", True), ("inverse_mask", False),
                         ("num_extra_tokens", 0), ("ema_local_encoder", False), ("mask_prob_adjust", 0.0),
                         ("keep_masked_pct", 0.0), ("add_masks", False), ("mask_dropout", 0.0),
                         ("encoder_zero_mask", True), ("mask_channel_prob", 0.0)):  # fmt: skip
        if getattr(text, name) != wanted:
            rule = f"text supports {wanted!r} only; no text recipe uses another value"
            found.append(Problem(f"{path}.{name}", getattr(text, name), rule))
    if text.decoder is not None:
        groups = text.decoder.decoder_groups
        if groups < 1 or text.decoder.decoder_dim % groups or width % groups:
            rule = f"must divide decoder_dim {text.decoder.decoder_dim} and embed_dim {width}"
            found.append(Problem(f"{path}.decoder.decoder_groups", groups, rule))
        for name in ("add_positions_masked", "add_positions_all"):
            if getattr(text.decoder, name):
                rule = "text has no fixed positions to add; use false"
                found.append(Problem(f"{path}.decoder.{name}", True, rule))
        if text.decoder.projection_layers < 1:
            found.append(
                Problem(f"{path}.decoder.projection_layers", text.decoder.projection_layers, "must be >= 1")
            )
    return found


def _image_problems(config: Data2VecMultiConfig, image: ImageModalityConfig, path: str) -> list[Problem]:
    where = f"{path}.modalities.image"
    rule = Rules(image, where)
    found = rule.found
    rule("mask_prob", 0.0 < image.mask_prob < 1.0, "must lie in 0 < p < 1")
    rule.at_least(1, "mask_length")
    rule(
        "mask_prob_min",
        image.mask_prob_min is None,
        "images are masked by the same share every time; use null",
    )
    rule.probability("keep_masked_pct")
    rule("in_chans", image.in_chans > 0, "must be > 0")
    rule(
        "patch_size",
        0 < image.patch_size <= image.input_size,
        f"must lie in 1 ... input_size {image.input_size}",
    )
    rule("embed_dim", image.embed_dim > 0, "must be > 0")
    rule.at_least(0, "num_extra_tokens")
    if image.fixed_positions and config.embed_dim % 4:
        found.append(
            Problem(f"{path}.embed_dim", config.embed_dim, "must be a multiple of 4 for sin-cos positions")
        )
    for name in ("use_alibi_encoder", "learned_alibi", "transformer_decoder", "enc_dec_transformer"):
        rule(name, not getattr(image, name), "is not supported; no image recipe uses it")
    if config.cls_loss > 0 and image.num_extra_tokens < 1:
        found.append(
            Problem(f"{path}.cls_loss", config.cls_loss, "needs modalities.image.num_extra_tokens >= 1")
        )
    pixels = image.in_chans * image.patch_size**2
    if config.recon_loss > 0 and config.embed_dim != pixels:
        text = f"needs embed_dim = in_chans * patch_size^2 = {pixels}, which is {config.embed_dim}"
        found.append(Problem(f"{path}.recon_loss", config.recon_loss, text))
    decoder = image.decoder
    if decoder is not None:
        widths = (decoder.decoder_dim, config.embed_dim)
        if any(width % max(decoder.decoder_groups, 1) for width in widths):
            text = f"must divide decoder_dim {widths[0]} and model.embed_dim {widths[1]}"
            found.append(Problem(f"{where}.decoder.decoder_groups", decoder.decoder_groups, text))
        if decoder.add_positions_masked and decoder.add_positions_all:
            found.append(
                Problem(f"{where}.decoder.add_positions_masked", True, "contradicts add_positions_all")
            )
    return found


@dataclass(kw_only=True)
class SentenceHeadConfig:
    """The head over ``<s>`` of GLUE fine-tuning: dropout, linear, activation, dropout, linear."""

    num_classes: int = -1  # classes, or the number of regression targets
    pooler_activation_fn: Literal["tanh", "relu", "gelu", "linear"] = "tanh"  # between the two linear layers
    pooler_dropout: float = 0.0  # dropout before each linear layer


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pooling = Literal["MEAN_POOLING", "CLS_TOKEN", "LIN_SOFTMAX"]


@dataclass(kw_only=True)
class ImageHeadConfig:
    """The head of image classification: pooling over patches, layer norm, linear."""

    num_classes: int = 1000
    prediction_mode: Pooling = "MEAN_POOLING"  # mean over patches, first extra token, or per-channel softmax
    use_fc_norm: bool = True  # layer norm after pooling
    fc_norm_eps: float = 1e-6  # its epsilon
    drop_first_patch: bool = False  # the pooled sequence loses its first patch (data2vec 1 of the reference)
    init_scale: float = 1.0  # factor of the head's initial weights
    label_smoothing: float = 0.1  # with hard labels, in training
    linear_classifier: bool = False  # the trunk is frozen
