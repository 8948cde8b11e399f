"""Costs of a network: parameters, multiply-adds, memory and time."""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints lines of its own


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, learned and frozen."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_frozen(model: nn.Module) -> int:
    """Return the number of parameters that no optimiser changes, such as the fixed upsampling of FCN."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def describe_parameters(
    model: nn.Module, unit: float = 1.0, digits: int = 0, name: str = ""
) -> str:
    """Return the numbers of parameters in a unit, such as "0.50 M parameters (0.01 M of them frozen)"."""
    count, frozen = count_parameters(model), count_frozen(model)
    text = f"{count / unit:,.{digits}f}{name} parameters"
    return f"{text} ({frozen / unit:,.{digits}f}{name} of them frozen)" if frozen else text


@torch.no_grad()
def count_multiply_adds(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Return the multiply-adds of the convolutions by module name, as in ``UNet.down.0``; the sum is ``Global``."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return {name: sum(by_op.values()) // 2 for name, by_op in counter.get_flop_counts().items()}


def measure_peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the peak memory of a call in bytes of tensors, beyond those that existed before."""
    # On a GPU the allocator keeps the peak; synchronise, since kernels run asynchronously
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # On the CPU, record each allocation (positive bytes) and release (negative bytes)
    with profile(profile_memory=True) as profiler:
        function()
    assert profiler.kineto_results is not None
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    # Peak of the running sum in the order of time
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def measure_seconds(
    functions: list[Callable[[], object]], rounds: int = 7, device: torch.device | str = "cpu"
) -> list[float]:
    """Return the median time of each function in s, called in turn so that other load affects all alike.

    Args:
        functions: without arguments.
        rounds: number of timed calls of each, after one that isn't timed.
        device: whose work is waited for.
    """
    cuda = torch.device(device).type == "cuda"
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]
