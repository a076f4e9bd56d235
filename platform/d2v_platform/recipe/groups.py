"""The recipe groups that every training has, with the reference's field names and defaults.

A field is here only if the training loop honours it; keys of the reference that have no meaning here, or that
only one value of is supported, stand in ``compat.py`` with the reason. The trailing comment of a field is its
documentation: ``d2v config show`` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MISSING = "???"  # a value that the command line must give, written as in OmegaConf


@dataclass(kw_only=True)
class Common:
    """Seeds, precision and logging."""

    user_dir: str | None = None  # folder of a Python package that registers tasks or models of your own
    seed: int = 1  # seed of everything random: weights, data order, masks, dropout
    log_interval: int = 100  # updates between two log lines and metric points
    # Either also steps parameters that have no gradient (layer drop), as the reference's fp32 copies do.
    fp16: bool = False  # mixed precision: bf16 on a GPU that has it, else fp16 with a scaler; fp32 on a CPU
    bf16: bool = False  # mixed precision in bfloat16
    fp16_init_scale: int = 128  # first loss scale (fp16 with a scaler only)
    fp16_scale_window: int | None = (
        None  # updates without overflow before the scale doubles; null = 2^14 / (W*F)
    )
    min_loss_scale: float = 1e-4  # stop when the loss scale falls to this
    threshold_loss_scale: float | None = None  # the loss scale never falls below this


@dataclass(kw_only=True)
class Dataset:
    """Batches, subsets and validation."""

    num_workers: int = 1  # loader processes of each training worker; 0 = load in the worker itself
    skip_invalid_size_inputs_valid_test: bool = (
        False  # drop over-long samples in evaluation instead of stopping
    )
    max_tokens: int | None = None  # most tokens in a micro-batch, padding included
    batch_size: int | None = None  # most samples in a micro-batch
    required_batch_size_multiple: int = 8  # micro-batches are filled to a multiple of this where possible
    train_subset: str = "train"  # subset to train on
    valid_subset: str = "valid"  # subsets to validate on, separated by commas; the first one selects the best
    gen_subset: str = "test"  # subsets to predict after training or by inference, separated by commas
    validate_interval: int = 1  # epochs between validations
    validate_interval_updates: int = 0  # updates between validations; 0 = at epoch ends only
    validate_after_updates: int = 0  # no validation before this update
    disable_validation: bool = False  # never validate
    max_tokens_valid: int | None = None  # as max_tokens, in validation
    batch_size_valid: int | None = None  # as batch_size, in validation
    max_valid_steps: int | None = None  # validate on this many batches only
    curriculum: int = 0  # epochs at the start without shuffling of the batches


@dataclass(kw_only=True)
class Optimization:
    """Length of the run, learning rate, accumulation."""

    max_epoch: int = 0  # stop after this many epochs; 0 = no limit
    max_update: int = 0  # stop after this many updates; 0 = no limit
    stop_time_hours: float = (
        0.0  # stop after this much training time, earlier attempts included; 0 = no limit
    )
    stop_cpu_minutes: float = (
        0.0  # ours: stop after so much CPU time of all training processes, validations aside; 0 = no limit
    )
    clip_norm: float = 0.0  # clip the gradient to this norm; 0 = measure only
    update_freq: list[int] = field(
        default_factory=lambda: [1]
    )  # F: micro-batches a worker accumulates, by epoch
    lr: list[float] = field(
        default_factory=lambda: [0.25]
    )  # peak learning rate, by epoch, the last one repeated
    stop_min_lr: float = -1.0  # stop when the learning rate falls to this
    skip_remainder_batch: bool = False  # drop an epoch's last update if it has fewer micro-batches
    decay_norm_and_bias: bool = True  # weight decay on 1-D parameters too, as in the published models


@dataclass(kw_only=True)
class CheckpointOptions:
    """When to save, what to keep, which result is best, where to start from."""

    restore_file: str = "checkpoint_last.pt"  # model whose weights a new run starts from; default: none
    finetune_from_model: str | None = None  # the same as restore_file
    save_interval: int = 1  # epochs between saves
    save_interval_updates: int = 0  # updates between saves; 0 = at epoch ends only
    save_interval_minutes: float = (
        15.0  # minutes after which what a lost machine would lose is saved too, without validation; 0 = never
    )
    keep_interval_updates: int = -1  # mid-epoch checkpoints to keep; -1 = all
    keep_last_epochs: int = -1  # epoch checkpoints to keep; -1 = all
    keep_best_checkpoints: int = -1  # best checkpoints to keep beside the very best; -1 = none
    no_epoch_checkpoints: bool = False  # epoch ends overwrite the last checkpoint only
    no_save: bool = False  # save nothing (sweep trials, benchmarks)
    best_checkpoint_metric: str = "loss"  # metric of the first validation subset that decides which is best
    maximize_best_checkpoint_metric: bool = False  # a larger metric is better
    patience: int = -1  # stop after this many validations without improvement; -1 = never


@dataclass(kw_only=True)
class DistributedTraining:
    """What the recipe asks for; how many processes really run is ``platform.num_workers``."""

    distributed_world_size: int = 1  # W: workers the batch size is meant for; an update has W*F micro-batches


@dataclass(kw_only=True)
class CommonEval:
    """Evaluation of a trained model; training does not read it."""

    path: str | None = None  # model to evaluate
    results_path: str | None = None  # folder for the predictions


@dataclass(kw_only=True)
class Platform:
    """Where and how the run happens. Nothing here changes what is computed, except the precision."""

    run_name: str | None = None  # name of the run: the same name resumes; null = a new run
    experiment: str | None = None  # MLflow experiment; null = data2vec-text, data2vec-audio or data2vec-image
    num_workers: int | list[int] | None = (
        None  # k: training processes; 0 = this process; [1,4] = as nodes come and go; null = what fits
    )
    cpus_per_worker: float | None = (
        None  # CPUs that Ray reserves for each worker; null = 1, beside a GPU the node's share of it
    )
    gpus_per_worker: float | None = None  # GPUs of each worker; null = 1 where there is one
    threads_per_worker: int | None = None  # threads of PyTorch in each worker; null = its CPUs
    precision: Literal["auto", "fp32", "bf16", "fp16"] = (
        "auto"  # auto = what common.fp16 and common.bf16 ask for
    )
    max_failures: int = 3  # restarts after lost workers in a row without a newer checkpoint between them
    wait_for_resources: float = 0.0  # minutes to wait for workers that do not fit yet; 0 = refuse them
    register_as: str | None = None  # name in the model registry; null = do not register
    alias: str | None = None  # alias to move to the new version, through the gate
    tracking_uri: str | None = None  # MLflow; null = MLFLOW_TRACKING_URI, else SQLite under D2V_HOME
    storage: str | None = None  # root of the checkpoints, a folder or s3://; null = D2V_HOME/runs
    deterministic: bool = True  # deterministic kernels, so that a resumed run is bit-equal
    sharding: Literal["auto", "none", "full"] = (
        "auto"  # full = workers share the model (FSDP2); auto = where it does not fit otherwise
    )
    compile: bool | Literal["auto"] = "auto"  # torch.compile of blocks, decoder and losses; auto = on GPUs
    augment_on_device: bool = False  # image pretraining: loaders only decode, the GPU crops, flips, jitters
    checkpoint_activations: bool = False  # run blocks again in the backward pass: less memory, more work
    clone_chunk: int | None = None  # data2vec 2.0: clones computed at a time, for less memory; null = all
    plan_accelerator: Literal["cpu", "v100", "a100-40gb", "a100", "h100", "h200"] | None = (
        None  # device that the plan's hours are for; null = the one at hand
    )
    plan_count: int | None = None  # number of such devices; null = the workers at hand
    plan_utilisation: float | None = (
        None  # share of the peak rate that a step reaches; null = 0.4 on GPUs, 0.75 on CPUs
    )
    collapse_after: int = 5000  # updates before the collapse watch speaks: predictions start without variance
    collapse_min_var: float = 0.01  # a stage has collapsed below this mean deviation of its channels
    collapse_min_rank: float = 2.0  # ... or below this effective rank; 1 = all vectors on one line
    collapse_patience: int = 5  # stop after so many log lines in a row with a collapsed stage; 0 = only warn
    max_bad_updates: int = 10  # stop after this many updates in a row with a non-finite loss or gradient
    extra_tags: dict[str, str] = field(default_factory=dict)  # further tags of the MLflow run

    @property
    def most_workers(self) -> int | None:
        """``num_workers``, or its upper bound."""
        return self.num_workers[-1] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def fewest_workers(self) -> int | None:
        """``num_workers``, or its lower bound."""
        return self.num_workers[0] if isinstance(self.num_workers, list) else self.num_workers


def split_names(text: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


GROUPS: dict[str, type[Any]] = {
    "common": Common,
    "dataset": Dataset,
    "optimization": Optimization,
    "checkpoint": CheckpointOptions,
    "distributed_training": DistributedTraining,
    "common_eval": CommonEval,
    "platform": Platform,
}


@dataclass(kw_only=True)
class LabelledProbe:
    """Fields of a task whose features a labelled set may judge."""

    probe_data: str | None = None  # ours: labelled set that probes features at validations (train, valid)
    probe_layer: int = -1  # ours: block whose features are probed; -1 = the last
