"""MLflow tracker: a local database, or a server."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger

from seg import files
from seg.training.loggers.base import Picture, TrackedRun, Tracker, draw_page, flatten_options
from seg.training.loggers.guarded import hide_secrets

log = logging.getLogger("seg")
SQLITE_PREFIX = "sqlite:///"
INVALID_CHARACTERS = r"[^A-Za-z0-9_./ -]"  # characters that MLflow rejects in names
MLFLOW_STATUS = {
    "finished": "success",
    "pruned": "success",
    "failed": "failed",
    "interrupted": "KILLED",
}


class MLflow(Tracker):
    """MLflow, through Lightning's MLFlowLogger.

    Args:
        run: tracked run.
        project: MLflow experiment.
        group: a tag of the run; None: the sweep's name.
        tags: words of a tag, in addition to data, model and loss.
        uri: of a tracking server or a database; pictures are stored next to a local database.

    Raises:
        ValueError: if the URI contains a password, which would be stored in the run.
    """

    def __init__(
        self,
        run: TrackedRun,
        project: str = "seg",
        group: str | None = None,
        tags: list[str] | None = None,
        uri: str = "sqlite:///outputs/mlflow.db",
    ) -> None:
        if hide_secrets(uri) != uri:
            raise ValueError(
                "uri contains a password or key, which the run would store; set an environment variable instead, "
                "such as MLFLOW_TRACKING_PASSWORD or PGPASSWORD"
            )
        self.run, self.project, self.uri = run, project, uri
        self.tags = {"group": group or run.group or "", "tags": " ".join(run.tags(tags))}

    def start(self, known: str | None) -> str | None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # else a line per table it creates
        artifacts = None
        if self.uri.startswith(SQLITE_PREFIX):
            database = Path(self.uri.removeprefix(SQLITE_PREFIX)).resolve()
            files.make_folder(database.parent, database.parent)
            artifacts = database.with_suffix("").as_uri()
        self.logger = MLFlowLogger(
            self.project,
            self.run.name,
            self.uri,
            self.tags,
            artifact_location=artifacts,
            run_id=known,
        )
        if known is None:
            named = {
                re.sub(INVALID_CHARACTERS, "_", k): v
                for k, v in flatten_options(self.run.settings).items()
            }
            self.logger.log_hyperparams(named)
        log.info(f"mlflow: mlflow ui --backend-store-uri {self.uri}")
        return self.logger.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(values, step)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        self.logger.experiment.log_image(
            self.logger.run_id, draw_page(pictures), key="val/images", step=step
        )

    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(summary, step)
        self.logger.finalize(MLFLOW_STATUS[status])
