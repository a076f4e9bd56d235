"""What the reference has and we treat otherwise, as tables: each entry says why.

A key of the reference that is accepted here either is a field of the schema (the few without effect stand in
``without_effect.py``), or stands below: it follows from the design (``IGNORED``: named once in the notes), is
another spelling (``ALIASES``), must agree with another field (``SAME_AS``), or is supported with one value
only (``ONLY``). Nothing is dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LOGS = "logs go to the console and to MLflow"
DDP = "gradients are summed once an update, over parameters used anywhere"
_LAUNCH = "Ray places the processes: see platform.num_workers"
_PRECISION = "see platform.precision: fp32 weights with autocast, and a scaler for fp16"
_MODEL_MASKS = "the data2vec 2.0 model masks by itself (model.modalities.text.mask_prob)"
_TEXT_1_MASKS = "data2vec 1 text masks all chosen tokens with <mask>: other positions would carry no loss"
_RESTORED = "the architecture comes with the model in checkpoint.restore_file"
_PLASMA = "data sets are memory-mapped"
_SHARDED = "see platform.sharding: parts are gathered block by block, sums and checkpoints are whole"
_RESET = "other weights always start a new run; a resumed run takes everything over"
_GENERATION = "generation and scoring belong to other models of the reference"

# Accepted without effect: dotted pattern -> reason.
IGNORED: dict[str, str] = {
    "common.fp16_no_flatten_grads": "gradients are never flattened; with and without it, common.fp16 steps "
    "parameters that have no gradient as the reference does",
    "common.no_progress_bar": _LOGS,
    "common.log_format": _LOGS,
    "common.log_file": _LOGS,
    "common.tensorboard_logdir": _LOGS,
    "common.wandb_project": _LOGS,
    "common.azureml_logging": _LOGS,
    "common.aim_repo": _LOGS,
    "common.aim_run_hash": _LOGS,
    "common.reset_logging": _LOGS,
    "common.amp_batch_retries": _PRECISION,
    "common.amp_init_scale": _PRECISION,
    "common.amp_scale_window": _PRECISION,
    "common.on_cpu_convert_precision": _PRECISION,
    "common.empty_cache_freq": "the caching allocator is left alone",
    "common.all_gather_list_size": "statistics are reduced as tensors",
    "common.profile": "see experiments/benchmark.py",
    "common.suppress_crashes": "a failed trial never stops a sweep, and a failed run never hides",
    "common.use_plasma_view": _PLASMA,
    "common.plasma_path": _PLASMA,
    "task.include_target_tokens": _MODEL_MASKS,
    "task.include_index": _MODEL_MASKS,
    "task.mask_prob": _MODEL_MASKS,
    "task.leave_unmasked_prob": _MODEL_MASKS,
    "task.random_token_prob": _MODEL_MASKS,
    "task.freq_weighted_replacement": _MODEL_MASKS,
    "task.mask_whole_words": _MODEL_MASKS,
    "task.mask_multiple_length": _MODEL_MASKS,
    "task.mask_stdev": _MODEL_MASKS,
    "task.rebuild_batches": "batches follow from seed and epoch",
    "task.text_compression_level": "paths and labels are arrays, which loader processes share",
    "task.inferred_w2v_config": "the model at w2v_path carries its own configuration",
    "task.eval_wer": "error rates of CTC are always reported",
    "task.eval_wer_*": "error rates of CTC are always reported",
    "task.eval_bleu*": "translation is another model of the reference",
    "task.tpu": "TPUs are not supported",
    "model.normalize": "task.normalize decides, and is compared with the pretrained model",
    "model.data": "task.data decides",
    "model.checkpoint_activations": "see platform.checkpoint_activations",
    "model.offload_activations": "see platform.checkpoint_activations",
    "model.min_params_to_wrap": _SHARDED,
    "model.self_attn_norm_type": "a field of an unreleased model; layers use layer norm",
    "model.final_norm_type": "a field of an unreleased model; layers use layer norm",
    "task.local_cache_path": "data at URIs is cached under D2V_HOME; local data is read in place",
    "task.cache_in_scratch": "data at URIs is cached under D2V_HOME; local data is read in place",
    "task.key": "the model's input has one name here",
    "task.dataset_type": "images are found at any depth, in class folders or without",
    "task.metric": "what is reported follows from the task",
    "model.modalities.*.decoder.final_layer_norm": "decoders of the released models end without layer norm",
    "model.no_decay_blocks": "see optimization.decay_norm_and_bias: the reference's own switch has no effect",
    "model.remove_alibi": "image models have no ALiBi bias here",
    "model.mask_min_space": "only used with no_mask_overlap",
    "model.mask_channel_min_space": "only used with no_mask_channel_overlap",
    "model.pretrained_model_args": "the model at model_path carries its own configuration",
    "criterion.can_sum": "metrics are computed from gathered predictions",
    "dataset.data_buffer_size": "loaders read ahead by themselves",
    "dataset.ignore_unused_valid_subsets": "only the subsets listed in dataset.valid_subset are read",
    "dataset.fixed_validation_seed": "validation is always seeded by common.seed and the sample",
    "optimization.sentence_avg": "each criterion divides by its own sample size",
    "optimization.debug_param_names": "a non-finite gradient names its parameters anyway",
    "optimizer.use_old_adam": "there is one implementation of Adam",
    "optimizer.groups.*.optimizer.lr": "the group's lr or lr_float decides",
    "optimizer.groups.*.lr_scheduler.lr": "the group's lr or lr_float decides",
    "optimizer.groups.*.lr_scheduler.lr_shrink": "only used with force_anneal",
    "lr_scheduler.lr_shrink": "only used with force_anneal",
    "checkpoint.reset_dataloader": _RESET,
    "checkpoint.reset_lr_scheduler": _RESET,
    "checkpoint.reset_meters": _RESET,
    "checkpoint.reset_optimizer": _RESET,
    "checkpoint.no_last_checkpoints": "the last checkpoint is always kept, for resuming",
    "checkpoint.write_checkpoints_asynchronously": "checkpoints are always written asynchronously",
    "checkpoint.load_checkpoint_on_all_dp_ranks": "every worker reads what it needs",
    "checkpoint.save_on_overflow": "a skipped update saves nothing",
    "distributed_training.distributed_num_procs": _LAUNCH,
    "distributed_training.distributed_rank": _LAUNCH,
    "distributed_training.distributed_backend": _LAUNCH,
    "distributed_training.distributed_init_method": _LAUNCH,
    "distributed_training.distributed_port": _LAUNCH,
    "distributed_training.distributed_no_spawn": _LAUNCH,
    "distributed_training.device_id": _LAUNCH,
    "distributed_training.nprocs_per_node": _LAUNCH,
    "distributed_training.heartbeat_timeout": _LAUNCH,
    "distributed_training.bucket_cap_mb": DDP,
    "distributed_training.find_unused_parameters": DDP,
    "distributed_training.gradient_as_bucket_view": DDP,
    "distributed_training.fast_stat_sync": DDP,
    "distributed_training.broadcast_buffers": DDP,
    "distributed_training.fix_batches_to_gpus": "batches follow from seed and epoch",
    "distributed_training.slowmo_*": "only used with ddp_backend slowmo",
    "distributed_training.localsgd_frequency": "only used with ddp_backend slowmo",
    "distributed_training.pipeline_*": "only used with pipeline_model_parallel",
    "distributed_training.zero_sharding": _SHARDED,
    "distributed_training.no_reshard_after_forward": _SHARDED,
    "distributed_training.fp32_reduce_scatter": _SHARDED,
    "distributed_training.cpu_offload": _SHARDED,
    "distributed_training.use_sharded_state": _SHARDED,
    "distributed_training.not_fsdp_flatten_parameters": _SHARDED,
    "model.max_positions": "model.transformer.max_source_positions decides",
    "model.load_checkpoint_heads": "a head travels with its model",
    "model.encoder_layers": _RESTORED,
    "model.encoder_embed_dim": _RESTORED,
    "model.encoder_ffn_embed_dim": _RESTORED,
    "model.encoder_attention_heads": _RESTORED,
    "model.quant_noise_pq_block_size": "only used with quant_noise_pq",
    "ema.*": "only used with ema.store_ema; the teacher's average belongs to the model",
    "bmuf": "only used with use_bmuf",
    "generation": _GENERATION,
    "eval_lm": _GENERATION,
    "interactive": _GENERATION,
    "scoring": _GENERATION,
    "bpe": "tokenizers travel with the model: see d2v prepare",
    "tokenizer": "tokenizers travel with the model: see d2v prepare",
    "common_eval.quiet": _LOGS,
    "common_eval.post_process": "follows from the model",
    "common_eval.model_overrides": "a stored model carries its own configuration",
    "hydra": "runs live under D2V_HOME and Ray places the processes; Hydra launches nothing here",
    "run_config": "runs live under D2V_HOME and Ray places the processes; Hydra launches nothing here",
    "defaults": "of a file in the reference's format: it is read alone",
    "next_script": _LAUNCH,
}

# Supported with these values only: dotted pattern -> (values, what to do instead).
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "common.tpu": ((False,), "TPUs are not supported"),
    "common.model_parallel_size": ((1,), "model parallelism is not supported"),
    "common.quantization_config_path": ((None,), "quantisation is not supported"),
    "common.fp16_scale_tolerance": ((0, 0.0), "every overflow halves the loss scale; use 0"),
    "task.skip_masking": ((True,), "data2vec 2.0 masks in the model; use true (false is for data2vec_text)"),
    "task.d2v2_multi": ((True,), "data2vec 2.0 text needs true (false is for data2vec_text and roberta)"),
    "task.binarized_dataset": ((False,), "plain manifests are kept as arrays here; use <split>.tsv"),
    "task.multi_data": ((None,), "several folders are not supported; join them as classes of one"),
    "task.target_transform": ((False,), "two views of an image are not supported; no recipe uses them"),
    "task.subsample": ((1, 1.0), "subsets of a data set are folders of their own here; use 1"),
    "task.autoregressive": ((False,), "sequence-to-sequence models are not supported"),
    "task.multi_corpus_keys": ((None,), "several corpora are not supported; join their manifests"),
    "task.multi_corpus_sampling_weights": ((None,), "several corpora are not supported"),
    "task.post_save_script": ((None,), "checkpoints are announced to MLflow; no script is run"),
    "criterion.sentence_avg": ((True,), "losses of CTC are divided by the number of utterances; use true"),
    "model.d2v_args": ((None,), "the model at model_path carries its own configuration"),
    "model.conv_feature_layers": ((None,), "the model at model_path carries its own configuration"),
    "model.w2v_args": ((None,), "the model at w2v_path carries its own configuration"),
    "model.load_ema": ((False,), "fine-tuning starts from the student; use false"),
    "task.add_prev_output_tokens": ((False,), "decoder inputs are not supported"),
    "dataset.dataset_impl": ((None, "mmap"), "data sets are memory-mapped; use mmap"),
    "dataset.required_seq_len_multiple": ((1,), "padding to a multiple is not supported; use 1"),
    "dataset.num_shards": ((1,), "data is never sharded by hand; use 1"),
    "dataset.shard_id": ((0,), "data is never sharded by hand; use 0"),
    "dataset.combine_valid_subsets": ((None, False), "subsets are validated one by one; use false"),
    "dataset.grouped_shuffling": ((False,), "grouped shuffling is not supported; use false"),
    "dataset.update_epoch_batch_itr": ((False,), "grouped shuffling is not supported; use false"),
    "dataset.update_ordered_indices_seed": ((False,), "the order follows from seed and epoch; use false"),
    "optimization.use_bmuf": ((False,), "block momentum is not supported"),
    "optimizer.fp16_adam_stats": ((False,), "Adam's moments are kept in fp32"),
    "optimizer.groups.*.optimizer.fp16_adam_stats": ((False,), "Adam's moments are kept in fp32"),
    "optimizer.groups.*.lr_scheduler.force_anneal": (
        (None, 0),
        "annealing by epoch is not supported; schedules follow updates",
    ),
    "lr_scheduler.force_anneal": ((None, 0), "annealing by epoch is not supported; schedules follow updates"),
    "checkpoint.continue_once": ((None,), "name the run with platform.run_name: the same name resumes"),
    "checkpoint.optimizer_overrides": (("{}",), "change the recipe instead"),
    "checkpoint.keep_interval_updates_pattern": ((-1,), "is not supported; use keep_interval_updates"),
    "checkpoint.no_save_optimizer_state": (
        (False,),
        "a checkpoint without it could not be resumed; use no_save",
    ),
    "checkpoint.checkpoint_suffix": (("",), "shards are named by the store"),
    "checkpoint.checkpoint_shard_count": ((1,), "shards are counted by the store"),
    "distributed_training.ddp_comm_hook": (("none",), "gradients are reduced in fp32; use none"),
    "distributed_training.pipeline_model_parallel": ((False,), "pipelines are not supported"),
    "model.quant_noise_pq": ((0,), "quantisation noise is not supported; use 0"),
    "model.spectral_norm_classification_head": ((False,), "spectral norm is not supported; use false"),
    "model.pretrained_model_args": ((None,), "the model at model_path carries its own configuration"),
    "ema.store_ema": ((False,), "a second average of the weights is not supported"),
}

# The same for single models, before their fields: model -> dotted name -> rule.
ONLY_OF: dict[str, dict[str, tuple[tuple[Any, ...], str]]] = {
    "data2vec_text": {
        "task.skip_masking": ((False,), "data2vec 1 text is trained on masked tokens; use false"),
        "task.d2v2_multi": ((False,), "belongs to data2vec 2.0; use false"),
        "task.leave_unmasked_prob": ((0, 0.0), f"{_TEXT_1_MASKS}; use 0"),
        "task.random_token_prob": ((0, 0.0), f"{_TEXT_1_MASKS}; use 0"),
        "task.mask_whole_words": ((False,), "is broken in the reference and not built here; use false"),
        "task.mask_stdev": ((0, 0.0), "spans have one length; use 0"),
        "task.freq_weighted_replacement": ((False,), f"{_TEXT_1_MASKS}; use false"),
    },
    "roberta": {"task.d2v2_multi": ((False,), "belongs to data2vec 2.0; use false")},
    "transformer_lm": {
        "task.self_target": ((False,), "models of other directions are not built; use false"),
        "task.past_target": ((False,), "models of other directions are not built; use false"),
        "task.future_target": ((True, False), "the target is always the next token"),
        "task.add_bos_token": ((False,), "sentences begin with </s>; use false"),
        "task.output_dictionary_size": ((-1,), "the softmax is over the whole dictionary; use -1"),
        "task.max_target_positions": ((None,), "give model.max_target_positions"),
        "task.pad_to_fixed_length": ((False,), "batches have their own lengths; use false"),
        "task.pad_to_fixed_bsz": ((False,), "batches have their own sizes; use false"),
        "criterion.sentence_avg": ((False,), "the loss is a token's share; use false"),
        "model.character_embeddings": ((False,), "characters as input are not built; use false"),
        "model.quant_noise_scalar": ((0, 0.0), "quantisation noise is not supported; use 0"),
        "model.decoder_layers_to_keep": ((None,), "pruned models are not supported"),
        "model.relu_dropout": ((0, 0.0), "is activation_dropout; use that"),
        "model.add_bos_token": ((False,), "sentences begin with </s>; use false"),
    },
}
# Fields of a component that have no effect with a model: model -> dotted name -> reason.
IGNORED_OF: dict[str, dict[str, str]] = {
    "data2vec_multi": {"task.mask_prob": _MODEL_MASKS, "task.mask_multiple_length": _MODEL_MASKS},
    "transformer_lm": {
        "model.tokens_per_sample": "task.tokens_per_sample decides",
        "model.character_filters": "only used with character_embeddings",
        "model.character_embedding_dim": "only used with character_embeddings",
        "model.char_embedder_highway_layers": "only used with character_embeddings",
        "model.tpu": "TPUs are not supported",
        "criterion.ddp_backend": DDP,
    },
    "data2vec_text": {
        "task.include_target_tokens": "the teacher sees the whole text: see model.teacher_sees_masked_only",
        "task.include_index": "every sample has its id",
    },
}

# Must equal another field, as the reference's own cross-references make it: pattern -> field.
SAME_AS: dict[str, str] = {
    "task.seed": "common.seed",
    "task.regression_target": "criterion.regression_target",
    "task.classification_head_name": "criterion.classification_head_name",
    "optimizer.lr": "optimization.lr",
    "optimizer.tpu": "common.tpu",
    "optimizer.groups.*.optimizer.tpu": "common.tpu",
    "lr_scheduler.lr": "optimization.lr",
    "distributed_training.fp16": "common.fp16",
    "distributed_training.memory_efficient_fp16": "common.memory_efficient_fp16",
    "distributed_training.tpu": "common.tpu",
    "checkpoint.model_parallel_size": "common.model_parallel_size",
}
UNSET = {"common.tpu": False, "common.memory_efficient_fp16": False, "common.model_parallel_size": 1}


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A key of the reference that means one of our fields."""

    field: str
    value: Any  # what ``field`` becomes; ``None`` = the key's own value
    when: Any  # the value of the key for which the alias holds; ``None`` = any
    unless: Any = None  # the value for which it says nothing
    otherwise: str | None = None  # why other values have no effect; ``None`` = it needs no saying


ALIASES: dict[str, Alias] = {
    "common.amp": Alias(field="common.fp16", value=True, when=True),
    "common.memory_efficient_fp16": Alias(field="common.fp16", value=True, when=True),
    "common.memory_efficient_bf16": Alias(field="common.bf16", value=True, when=True),
    "common.cpu": Alias(field="platform.gpus_per_worker", value=0, when=True),
    "checkpoint.save_dir": Alias(field="platform.storage", value=None, when=None),
    "distributed_training.ddp_backend": Alias(
        field="platform.sharding", value="full", when="fully_sharded", otherwise=DDP
    ),
    "model.ddp_backend": Alias(field="platform.sharding", value="full", when="fully_sharded", otherwise=DDP),
}

# Keys that say at once what several others say: given or removed, they take the others out.
TOGETHER: dict[str, tuple[str, ...]] = {
    "criterion.wer_args": ("criterion.wer_kenlm_model", "criterion.wer_lexicon", "criterion.wer_lm_weight",
                           "criterion.wer_word_score"),
}  # fmt: skip

# Components of the reference that are not built here yet: group -> name -> what they belong to.
NOT_BUILT: dict[str, dict[str, str]] = {
    "task": {"multimodal": "several modalities", "multimodal_pretraining": "several modalities"},
    "model": {"data2vec_image": "data2vec 1.0 vision", "wav2vec2": "speech"},
    "criterion": {"masked_lm": "RoBERTa", "wav2vec": "speech"},
    "optimizer": dict.fromkeys(
        ("adadelta", "adafactor", "adagrad", "adamax", "cpu_adam", "lamb", "nag", "sgd"),
        "no data2vec recipe uses it",
    ),
    "lr_scheduler": dict.fromkeys(
        ("inverse_sqrt", "manual", "reduce_lr_on_plateau", "step", "triangular"), "no data2vec recipe uses it"
    ),
}

# Groups that belong to other commands than training.
_ELSEWHERE = {"decoding": "python experiments/infer.py ... decoding.type=kenlm, or d2v sweep decoding"}


def reference_folder(path: str) -> str | None:
    """Our folder for a ``--config-dir`` of the reference, whatever precedes ``examples/``; else ``None``."""
    parts = path.replace("\\", "/").rstrip("/").split("/")
    if "examples" not in parts:
        return None
    start = len(parts) - 1 - parts[::-1].index("examples")
    project, *rest = [*parts[start + 1 :], ""]
    rest = [part for part in rest if part]
    if project == "speech_recognition" and rest == ["new", "conf"]:
        return ""
    if not rest or rest[0] != "config":
        return None
    inner = "/".join(rest[1:])
    return inner if project == "data2vec" else f"{project}/{inner}".rstrip("/")


def key_of_another_command(dotted: str) -> str | None:
    """Why a key that the reference knows is refused, if it belongs to another command than training."""
    for prefix, command in _ELSEWHERE.items():
        if dotted == prefix or dotted.startswith(prefix + "."):
            return f"belongs to decoding, not to training: {command}"
    return None
