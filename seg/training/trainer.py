"""Lightning's Trainer for this machine."""

from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from seg.hardware import (
    Precision,
    arrange_memory,
    keep_freed_memory,
    pick_accelerator,
    pick_precision,
)
from seg.models import Network


class NetworkSettings(L.Callback):
    """Set how the network is computed before the first step.

    Args:
        channels_last: use NHWC for convolutions.
        compile: compile with torch.compile for any size of image.
        checkpoint_activations: compute activations again in the backward pass.
    """

    def __init__(self, channels_last: bool, compile: bool, checkpoint_activations: bool) -> None:
        self.channels_last, self.compile = channels_last, compile
        self.checkpoint_activations = checkpoint_activations

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        model = cast(Network, pl_module.model)
        arrange_memory(model, self.channels_last)
        model.checkpoint_activations = self.checkpoint_activations
        if self.compile:
            model.compile(dynamic=True)  # in place: checkpoint keys stay as they are


def build_trainer(
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: Precision = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
    checkpoint_activations: bool = False,
    max_epochs: int | None = 20,
    max_steps: int = -1,
    max_time: str | None = None,
    check_val_every_n_epoch: int = 1,
    accumulate_grad_batches: int = 1,
    gradient_clip_val: float | None = None,
    limit_train_batches: int | float = 1.0,
    limit_val_batches: int | float = 1.0,
    sync_batchnorm: bool = False,
    deterministic: bool = False,
    log_every_n_steps: int = 10,
    callbacks: list[L.Callback] | None = None,
    plugins: list[Any] | None = None,
    logger: Any = False,
    folder: str | None = None,
) -> L.Trainer:
    """Build Lightning's Trainer for this machine; conf/trainer/auto.yaml explains each argument.

    ``folder`` is Lightning's default root, where it looks for checkpoints of SLURM's auto-requeue; without it a run
    on a cluster would start from any hpc_ckpt_1.ckpt in the working folder. ``max_time`` is that of a callback,
    ``seg.training.callbacks.time_limit.TimeLimit``.

    Raises:
        HardwareError: if a GPU is requested and PyTorch finds none.
        ValueError: if none of ``max_epochs``, ``max_steps`` and ``max_time`` ends the training.
    """
    if max_epochs in (None, -1) and max_steps == -1 and max_time is None:
        raise ValueError(
            f"max_epochs is {max_epochs}, max_steps -1 and max_time null; give one of them, the schedule needs an end"
        )
    picked = pick_accelerator(accelerator)
    name, _ = pick_precision(precision, picked)
    if picked == "cpu":
        keep_freed_memory()
        devices = 1 if devices == "auto" else devices
    if channels_last == "auto":  # faster on CPUs, and on GPUs with tensor cores in use
        channels_last = picked == "cpu" or name in ("bf16-mixed", "16-mixed")
    return L.Trainer(
        accelerator=picked,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision=cast(Any, name),
        max_epochs=max_epochs,
        max_steps=max_steps,
        check_val_every_n_epoch=check_val_every_n_epoch,
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=gradient_clip_val,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        sync_batchnorm=sync_batchnorm,
        deterministic=deterministic,
        log_every_n_steps=log_every_n_steps,
        callbacks=[
            NetworkSettings(channels_last, compile, checkpoint_activations),
            *(callbacks or []),
        ],
        plugins=plugins,
        logger=logger,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks or []),
        use_distributed_sampler=False,  # seg.data has its own distributed sampler
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks or []),
        num_sanity_val_steps=0,
        inference_mode=True,
    )
