"""What a network costs: parameters, multiply-adds, memory, time."""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def multiply_adds(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-adds of the convolutions by module name, as in ``UNet.down.0``; of all under ``Global``."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return {name: sum(by_op.values()) // 2 for name, by_op in counter.get_flop_counts().items()}


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes of tensors that a call holds at its worst, beyond what was there before."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as profiler:
        function()
    assert profiler.kineto_results is not None
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def median_seconds(
    functions: list[Callable[[], object]], rounds: int = 7, device: torch.device | str = "cpu"
) -> list[float]:
    """The median time of each call, taken in turn, so that a busy moment hits all alike."""
    cuda = torch.device(device).type == "cuda"
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]
