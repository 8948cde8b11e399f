"""Names of classes and options in configs of earlier versions, and their present names.

The ``_target_`` entries of a run's config name classes by module. A class that moves is entered here, so that
earlier runs can still be read; ``tests/fixtures`` holds such runs.
"""

from typing import Any

from seg.cli.renamed_options import rename_options

RENAMED_TARGETS = {  # name before 0.2 -> present name
    "seg.hardware.build_trainer": "seg.training.trainer.build_trainer",
    "seg.data.module.DataModule": "seg.data.DataModule",
    "seg.data.folder.Folder": "seg.data.Folder",
    "seg.data.coco.Coco": "seg.data.Coco",
    "seg.data.isbi2012.ISBI2012": "seg.data.ISBI2012",
    "seg.data.membranes.Membranes": "seg.data.Membranes",
    "seg.schedules.Constant": "seg.training.schedules.Constant",
    "seg.schedules.Cosine": "seg.training.schedules.Cosine",
    "seg.schedules.Poly": "seg.training.schedules.Poly",
    "seg.search.study.Grid": "seg.multirun.search.study.Grid",
    "seg.tracking.trackio.Trackio": "seg.training.loggers.trackio.Trackio",
    "seg.tracking.tensorboard.TensorBoard": "seg.training.loggers.tensorboard.TensorBoard",
    "seg.tracking.mlflow.MLflow": "seg.training.loggers.mlflow.MLflow",
    "seg.tracking.wandb.Wandb": "seg.training.loggers.wandb.Wandb",
}


def upgrade_config(config: Any) -> Any:
    """Return a config of an earlier version with the present names of its classes and options."""
    upgraded = upgrade_targets(config)
    return rename_options(upgraded) if isinstance(upgraded, dict) else upgraded


def upgrade_targets(node: Any) -> Any:
    """Return a config with each ``_target_`` of an earlier version replaced by its present name."""
    if isinstance(node, dict):
        return {
            key: RENAMED_TARGETS.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else upgrade_targets(value)
            for key, value in node.items()
        }
    return [upgrade_targets(item) for item in node] if isinstance(node, list) else node
