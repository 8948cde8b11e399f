"""A trained UNet++ at a smaller depth: what a head needs, with the weights it has (Zhou et al. 2018, figure 1c)."""

import dataclasses
from typing import Any

from seg import runs
from seg.cli import UserError
from seg.models import NestedUNet

PRUNED = {"pruned": True, "deep_supervision": False, "output": "deepest"}


def prunable(run: runs.LoadedRun) -> list[int]:
    """The depths of a run's heads.

    Raises:
        UserError: when it has only one.
    """
    if not isinstance(run.model, NestedUNet) or len(run.model.heads) < 2:
        raise UserError(
            f"{run.checkpoint}: a {type(run.model).__name__} with one head can't be pruned; "
            "train model=unetpp model.deep_supervision=true"
        )
    return [int(depth) for depth in run.model.heads]


def network(run: runs.LoadedRun, **changes: Any) -> NestedUNet:
    """The run's grid with other options and as many of its weights as they need."""
    options = {k: v for k, v in run.config["model"].items() if k != "_target_"} | changes
    model = NestedUNet(**options)
    weights = run.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def pruned(run: runs.LoadedRun, depth: int) -> NestedUNet:
    """What head ``depth`` needs, and no more."""
    return network(run, depth=depth, **PRUNED)


def shallower(run: runs.LoadedRun, depth: int | None) -> runs.LoadedRun:
    """The run with its network at that depth; None: as it is.

    Raises:
        UserError: when it has no such depth.
    """
    if depth is None:
        return run
    if (depths := prunable(run)) and depth not in depths:
        raise UserError(f"model.depth={depth}: {run.checkpoint} has heads {depths}")
    return dataclasses.replace(run, model=pruned(run, depth))
