"""Accelerator, precision, memory layout and the Trainer for this machine."""

import copy
import ctypes
import itertools
import sys
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from seg.errors import HardwareError

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def pick_accelerator(accelerator: str) -> str:
    """Return cpu, gpu or mps for ``auto``; any other accelerator unchanged.

    Raises:
        HardwareError: if a GPU is requested and PyTorch finds none.
    """
    # Automatic choice: CUDA, then Apple's GPU, then the CPU
    if accelerator == "auto":
        if CUDAAccelerator.is_available():
            return "gpu"
        return "mps" if MPSAccelerator.is_available() else "cpu"
    # An explicit choice must be available; gpu means either kind
    if accelerator in ("gpu", "cuda") and not CUDAAccelerator.is_available():
        if accelerator == "gpu" and MPSAccelerator.is_available():
            return "mps"
        raise HardwareError(
            f"trainer.accelerator={accelerator}: no GPU that this PyTorch ({torch.__version__}) can use; "
            "use trainer=cpu, or check the driver and that PyTorch is a CUDA build"
        )
    if accelerator == "mps" and not MPSAccelerator.is_available():
        raise HardwareError(
            "trainer.accelerator=mps: no Apple GPU that this PyTorch can use; use trainer=cpu"
        )
    return accelerator


def torch_device(accelerator: str) -> str:
    """Return PyTorch's device name for an accelerator of Lightning."""
    return "cuda" if accelerator == "gpu" else accelerator


def pick_precision(precision: Precision, accelerator: str) -> tuple[str, str]:
    """Return the precision in Lightning's terms, and the reason for it."""
    if precision != "auto":
        return precision, "as asked"
    if accelerator in ("gpu", "cuda"):
        major, minor = torch.cuda.get_device_capability()
        # bfloat16 has the range of float32 and needs no loss scaling, unlike float16
        if major >= 8:
            return (
                "bf16-mixed",
                f"compute capability {major}.{minor} multiplies bfloat16 in hardware",
            )
        if major == 7:
            return (
                "16-mixed",
                f"compute capability {major}.{minor} multiplies float16, not bfloat16",
            )
        return "32-true", f"compute capability {major}.{minor} gains nothing from half precision"
    return "32-true", f"half precision is slower on {accelerator}"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory blocks for the next step.

    By default it returns large blocks to the system and requests them again: page faults then take a seventh (FCN)
    to a third (UNet++) of a training step on two cores, see benchmarks/cpu.py.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Return to the system the blocks that ``keep_freed_memory`` made glibc keep.

    Blocks of many sizes leave holes, and more and more memory is kept: call this now and then.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def destroy_process_group() -> None:
    """Wait for all ranks, then destroy the process group so that the next run can create one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def uses_one_device(devices: Any, num_nodes: int) -> bool:
    """Return True if a trainer's config uses one process; ``auto`` counts as one device."""
    listed = isinstance(devices, list) and len(devices) == 1
    return num_nodes == 1 and (devices in ("auto", "1", 1) or listed)


class MemoryFormat(L.Callback):
    """Set the memory layout of the network, and compile it, before the first step.

    Args:
        channels_last: use NHWC for convolutions.
        compile: compile with torch.compile for any size of image.
    """

    def __init__(self, channels_last: bool, compile: bool) -> None:
        self.channels_last, self.compile = channels_last, compile

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        model = cast(nn.Module, pl_module.model)
        self.arrange(model, self.channels_last)
        if self.compile:
            model.compile(dynamic=True)  # in place: checkpoint keys stay as they are

    @staticmethod
    def arrange(model: nn.Module, channels_last: bool) -> None:
        """Convert the weights of convolutions to NHWC; their inputs and outputs then follow."""
        for parameter in model.parameters() if channels_last else ():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Return a copy for inference with batch normalisation fused into the convolution before it.

    Equal up to rounding (1e-5 of a probability), with one pass over the memory less.
    """
    model = copy.deepcopy(model).eval()
    for row in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        names = list(row._modules)
        for first, second in itertools.pairwise(names):
            conv, norm = row._modules[first], row._modules[second]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                row._modules[first] = fuse_conv_bn_eval(conv, norm)
                row._modules[second] = nn.Identity()
    return model


def prepare_for_inference(model: nn.Module, device: str) -> nn.Module:
    """Move a network to a device for inference, in the memory layout that is fastest there."""
    if device == "cpu":
        keep_freed_memory()
        MemoryFormat.arrange(model, channels_last=True)
    return model.to(device).eval()


def build_trainer(
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: Precision = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
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
        callbacks=[MemoryFormat(channels_last, compile), *(callbacks or [])],
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
