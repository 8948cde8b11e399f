"""Accelerator, precision and memory layout for this machine."""

import copy
import ctypes
import itertools
import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn
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
        if torch.cuda.is_available():
            return "gpu"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    # An explicit choice must be available; gpu means either kind
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        if accelerator == "gpu" and torch.backends.mps.is_available():
            return "mps"
        raise HardwareError(
            f"trainer.accelerator={accelerator}: no GPU that this PyTorch ({torch.__version__}) can use; "
            "use trainer=cpu, or check the driver and that PyTorch is a CUDA build"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
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
        if multiplies_bfloat16("cuda"):
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
    if accelerator == "cpu" and multiplies_bfloat16("cpu"):
        return (
            "32-true",
            "trainer.precision=bf16-mixed is faster here: this CPU multiplies bfloat16",
        )
    return "32-true", f"half precision is slower on {accelerator}"


def multiplies_bfloat16(device: str) -> bool:
    """Return True if a device of PyTorch multiplies matrices of bfloat16 in hardware, faster than float32."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    found = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch lack it
    return device == "cpu" and any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))


def use_bfloat16(network: nn.Module) -> None:
    """Make a network, or each member of an ensemble, compute in bfloat16; its input and logits stay float32."""
    for member in getattr(network, "members", [network]):
        member.to(torch.bfloat16)
        member.register_forward_pre_hook(
            lambda _, inputs: tuple(convert_tensors(inputs, torch.bfloat16))
        )
        member.register_forward_hook(lambda _, inputs, out: convert_tensors(out, torch.float32))


def convert_tensors(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or each tensor of a list or tuple, in another type; anything else unchanged."""
    if isinstance(value, list | tuple):
        return [convert_tensors(one, dtype) for one in value]
    return value.to(dtype) if isinstance(value, Tensor) else value


def keep_freed_memory() -> None:
    """Make glibc keep freed memory blocks for the next step, in one arena for all threads.

    By default it returns large blocks to the system and requests them again: page faults then take a seventh (FCN)
    to a third (UNet++) of a training step on two cores, see benchmarks/cpu.py. An arena per thread would keep the blocks
    of each thread from the others.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
        libc.mallopt(m_arena_max, 1)
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


def arrange_memory(model: nn.Module, channels_last: bool) -> None:
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
        arrange_memory(model, channels_last=True)
    return model.to(device).eval()
