"""Implementation of ``python -m seg.models``."""

import logging

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from seg.cli.compose import instantiate_node
from seg.display.console import configure_logging
from seg.display.tables import make_table
from seg.errors import UserError
from seg.models import profiling
from seg.models.contract import require_network

log = logging.getLogger("seg")
LayerRow = tuple[str, nn.Module, tuple[int, ...]]


def show_network(cfg: DictConfig) -> tuple[int, int]:
    """Print the table and return height and width of the logits."""
    configure_logging()
    size, channels = cfg.data.size, cfg.data.channels
    cfg.model.in_channels, cfg.model.num_classes = channels, cfg.logits
    # Meta tensors have shapes but no memory, so a network of any size can be listed
    with torch.device("meta"):
        model = instantiate_node(cfg.model, "model").eval()
        image = torch.empty(1, channels, size, size)
    try:
        rows, logits = list_layers(model, image)
    except ValueError as error:
        raise UserError(f"data.size={size}: {error}") from error
    counts = profiling.count_multiply_adds(model, image)
    name = type(model).__name__
    table = make_table(f"{name}, image {channels} x {size} x {size}")
    for heading in ("layer", "is a", "output C x H x W", "parameters", "multiply-adds"):
        table.add_column(heading, justify="left" if heading in ("layer", "is a") else "right")
    # One row for each layer, in the order of the forward pass
    for path, layer, shape in rows:
        mega = counts.get(f"{name}.{path}", 0) / 1e6
        own = profiling.count_parameters(layer)
        table.add_row(
            path,
            type(layer).__name__,
            " x ".join(str(side) for side in shape[1:]),
            f"{own:,}" if own else "",
            f"{mega:,.1f} M" if mega else "",
        )
    log.info("", extra={"table": table})
    height, width = logits.shape[-2:]
    log.info(
        f"{profiling.describe_parameters(model)}, {counts['Global'] / 1e9:.1f} G multiply-adds; "
        f"{size}x{size} -> {height}x{width}"
    )
    # The weights do not depend on the padding, so the sizes with valid padding are given too
    if cfg.model.get("padding") == "same":
        log.info(
            f"with model.padding=valid the same weights give {describe_valid_sizes(cfg, size)}"
        )
    return height, width


def list_layers(model: nn.Module, image: Tensor) -> tuple[list[LayerRow], Tensor]:
    """Return the top-level parts of a network, in the order in which they run, and the logits."""
    rows: list[LayerRow] = []
    # The named parts; of lists and dictionaries of modules, which have no forward, their entries
    containers = (nn.ModuleList, nn.ModuleDict)
    parts = {
        f"{name}.{inner}" if isinstance(child, containers) else name: part
        for name, child in model.named_children()
        for inner, part in (
            child.named_children() if isinstance(child, containers) else [("", child)]
        )
    }
    # Hooks that record each output's shape; path is bound as a default, since closures bind late
    hooks = [
        part.register_forward_hook(
            lambda part, _, out, path=path: rows.append((path, part, tuple(out.shape)))
        )
        for path, part in parts.items()
        if not isinstance(part, nn.Dropout)
    ]
    # One forward pass, and then remove the hooks
    with torch.no_grad():
        logits = model(image)
    for hook in hooks:
        hook.remove()
    return rows, logits


def describe_valid_sizes(cfg: DictConfig, size: int) -> str:
    """Return the sizes of image and logits of the same U-Net with valid convolutions, for the nearest size allowed."""
    cfg.model.padding = "valid"
    with torch.device("meta"):
        model = require_network(instantiate_node(cfg.model, "model"))
    side = model.input_side(size - 2 * model.context)  # the size itself, if it is one
    inner = side - 2 * model.context
    return f"{side}x{side} -> {inner}x{inner}"
