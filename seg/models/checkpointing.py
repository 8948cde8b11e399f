"""Activation checkpointing: parts of a network compute their activations again in the backward pass.

Chen et al. 2016, arXiv:1604.06174. Only the inputs of a part are kept in memory; gradients and running statistics are those
of the usual backward pass.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(network: nn.Module, part: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``part(*inputs)``, whose activations are computed again in the backward pass.

    Args:
        network: whose batch normalisation counts each batch once.
        part: of the network.
        inputs: of the part; the tensors among them are kept.
    """
    return checkpoint(
        part, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), kept_statistics(network))
    )  # fmt: skip


@contextmanager
def kept_statistics(network: nn.Module) -> Generator[None]:
    """Keep the running statistics of batch normalisation unchanged; training normalises by the batch either way."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
