"""UNet++ cut to a depth: a run's network without the nodes that deeper outputs need. Zhou et al. 2020, Section III-C."""

import dataclasses
from typing import Any

from seg.errors import UserError
from seg.models import Network
from seg.runs.load import LoadedRun


def prunable_depths(run: LoadedRun) -> list[int]:
    """Return the depths of a run's heads.

    Raises:
        UserError: if the network has only one head.
    """
    if not run.model.depths:
        raise UserError(
            f"{run.checkpoint}: a {run.model.name} with one head can't be pruned; "
            "train model=unetpp model.deep_supervision=true"
        )
    return run.model.depths


def rebuild_network(run: LoadedRun, changes: dict[str, Any]) -> Network:
    """Return the run's network with other constructor options and those of its weights that it needs."""
    options = {k: v for k, v in run.config["model"].items() if k != "_target_"} | changes
    model = type(run.model)(**options)
    weights = run.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def prune_network(run: LoadedRun, depth: int) -> Network:
    """Return the network of head ``depth`` alone, without the nodes that it does not need."""
    return rebuild_network(run, run.model.pruned_options(depth))


def prune_run(run: LoadedRun, depth: int | None) -> LoadedRun:
    """Return the run with its network pruned to a depth; None: unchanged.

    Raises:
        UserError: if the network has no head of that depth.
    """
    if depth is None:
        return run
    if (depths := prunable_depths(run)) and depth not in depths:
        raise UserError(f"model.depth={depth}: {run.checkpoint} has heads {depths}")
    return dataclasses.replace(run, model=prune_network(run, depth))
