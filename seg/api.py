"""The commands as Python functions, with the words of the command line.

    from seg.api import train

    run = train("model=unet", "data=folder", **{"data.root": "DATA", "data.classes": ["background", "cell"]})
    run.metrics["best/val/dice"], run.predict("image.png").mask

Every function takes words, ``"model=unet"``, and options by name, whose values are Python's. A wrong one raises
``seg.errors.UserError`` with the message of the command line, before PyTorch is imported; data, runs and hardware that
don't fit raise ``DataError``, ``RunError`` and ``HardwareError``. All four are ``ValueError``. Results are objects whose
tables are pandas' DataFrames; in a notebook they show their tables and pictures.
"""

import base64
import html
import io
import os
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seg.cli.command import run_composed
from seg.cli.command_line import render_option
from seg.cli.compose import check_command_line, plain_config
from seg.cli.paths import check_data_root
from seg.cli.renamed_options import rename_words
from seg.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig
    from PIL.Image import Image

    from seg.inference.predictor import Prediction, Predictor

__all__ = [
    "AnnotationQueue", "Comparison", "CrossValidation", "DataCheck", "Doubts", "Evaluation", "LearningCurve",
    "PredictedFiles", "Run", "Sweep",
    "check", "compare", "crossval", "doubt", "enough", "evaluate", "export", "next_images", "predict", "sweep", "train",
]  # fmt: skip
SHOWN_PICTURES = 4  # pictures of a result that a notebook shows
PICTURE_LIMIT = 2**28  # bytes
TABLE_LIMIT = 2**28  # bytes


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        folder: the run folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())

    @cached_property
    def record(self) -> dict[str, Any]:
        """Content of run.json: status, versions, hardware, data and final metrics."""
        from seg.runs.record import RECORD_FILE, read_record

        return read_record(self.folder / RECORD_FILE).content()

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics: ``best/val/dice`` of the best checkpoint, ``test/dice`` and others, in 0..1."""
        return self.record.get("metrics", {})

    @property
    def status(self) -> str:
        """``finished``, ``running``, ``failed``, ``interrupted``, ``killed`` or ``pruned``."""
        return self.record["status"]

    @cached_property
    def history(self) -> "pd.DataFrame":
        """metrics.csv: one row per measurement, with the step; nan where a metric was not measured."""
        import pandas as pd

        from seg.runs.metrics_csv import read_metrics

        rows = pd.DataFrame(read_metrics(self.folder / "metrics.csv"))
        return rows.replace("", "nan").astype(float)

    @property
    def panels(self) -> "list[Image]":
        """Pictures of validation images with truth, prediction and errors."""
        return read_pictures(sorted((self.folder / "panels").rglob("*.png")))

    def load(self, **options: Any) -> "Predictor":
        """Return the run's network, ready to predict; options as of ``seg.load``."""
        from seg.inference.predictor import load_predictor

        return load_predictor(str(self.folder), **options)

    def predict(self, image: Any) -> "Prediction":
        """Predict one image, an array (H, W) or (H, W, C) or a file; ``seg.api.predict`` writes files."""
        return self.load().predict(image)

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name}={self.metrics[name]:.4f}" for name in main_metrics(self.metrics)
        )
        return f"Run({str(self.folder)!r}, {self.status}{', ' * bool(scores)}{scores})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), [metrics_frame(self.metrics)], self.panels[-SHOWN_PICTURES:])


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on a split.

    Attributes:
        metrics: ``SPLIT/metric`` -> value.
        folder: folder with metrics.json and the panels.
    """

    metrics: dict[str, float]
    folder: Path

    @property
    def table(self) -> "pd.DataFrame":
        """A row per metric: value, and the ends of its confidence interval where there is one."""
        from seg.runs import records

        frame = metrics_frame(self.metrics)
        intervals = records.read_json(self.folder / "metrics.json")["intervals"]
        for place, name in enumerate(("low", "high")):
            frame[name] = [intervals.get(key, [float("nan")] * 2)[place] for key in frame.index]
        return frame

    @property
    def panels(self) -> "list[Image]":
        """Pictures of images with truth, prediction and errors."""
        return read_pictures(sorted((self.folder / "panels").rglob("*.png")))

    def _repr_html_(self) -> str:
        return show_html(str(self.folder), [self.table], self.panels[:SHOWN_PICTURES])


@dataclass(frozen=True)
class PredictedFiles:
    """Files that a prediction wrote.

    Attributes:
        files: written files; none that an earlier call had written.
        folder: the output folder.
    """

    files: list[Path]
    folder: Path

    def _repr_html_(self) -> str:
        overlays = [file for file in self.files if file.suffix == ".png" and "overlay" in str(file)]
        title = f"{len(self.files)} files in {self.folder}"
        return show_html(title, [], read_pictures(overlays[:SHOWN_PICTURES]))


@dataclass(frozen=True)
class DataCheck:
    """Issues of a data set.

    Attributes:
        report: content of check.json.
        folder: folder with check.json and sheet.png.
    """

    report: dict[str, Any]
    folder: Path

    @property
    def ok(self) -> bool:
        """True if there is no error; there may be warnings."""
        return self.report["errors"] == 0

    @property
    def issues(self) -> "pd.DataFrame":
        """A row per issue: severity, kind, file, what was found, and its remedy."""
        import pandas as pd

        columns = ["severity", "kind", "file", "found", "expected", "remedy"]
        return pd.DataFrame(self.report["faults"], columns=columns)

    @property
    def images(self) -> "pd.DataFrame":
        """A row per image: size, range, share of each class."""
        import pandas as pd

        return pd.json_normalize(self.report["images"])

    def _repr_html_(self) -> str:
        title = f"{self.report['errors']} errors, {self.report['warnings']} warnings"
        return show_html(title, [self.issues], read_pictures([self.folder / "sheet.png"]))


@dataclass(frozen=True)
class Comparison:
    """Runs ranked in groups.

    Attributes:
        groups: a row per group from best to worst: mean, sd, number of runs and seeds, difference from the baseline
            with its interval over images, and both p values, adjusted by Holm.
        runs: a row per run, the rows of compare.csv.
        files: compare.csv and compare.html.
    """

    groups: "pd.DataFrame"
    runs: "pd.DataFrame"
    files: list[Path]

    def _repr_html_(self) -> str:
        return show_html(", ".join(map(str, self.files)), [self.groups, self.runs], [])


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        folder: folder that holds the run folders.
        runs: the runs, in the order of their values.
    """

    folder: Path
    runs: list[Run]

    @property
    def table(self) -> "pd.DataFrame":
        """A row per run: name, status and final metrics."""
        import pandas as pd

        rows = [{"run": run.folder.name, "status": run.status} | run.metrics for run in self.runs]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return show_html(str(self.folder), [self.table], [])


@dataclass(frozen=True)
class CrossValidation:
    """A cross-validation.

    Attributes:
        record: content of crossval.json, with all scores.
        folder: folder with the folds' runs and the out-of-fold results.
    """

    record: dict[str, Any]
    folder: Path

    @property
    def folds(self) -> list[Run]:
        """The run of each fold."""
        return list_runs(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """Scores over all images, each predicted by the network that did not train on it."""
        return self.record["pooled"]["metrics"]

    @property
    def table(self) -> "pd.DataFrame":
        """A row per metric: over all images, and mean and sd over the folds."""
        frame = metrics_frame(self.metrics).set_axis(["pooled"], axis=1)
        for name in ("mean", "sd"):
            frame[name] = [self.record[name].get(f"val/{key}", float("nan")) for key in frame.index]
        return frame

    def _repr_html_(self) -> str:
        return show_html(str(self.folder), [self.table], [])


@dataclass(frozen=True)
class Doubts:
    """Labels in doubt.

    Attributes:
        table: a row per region, most unusual first, as in doubt.csv; with ``reviewed`` the reviewed rows.
        folder: folder with doubt.csv, doubt.html and the panels; with ``reviewed`` that of the corrected masks.
    """

    table: "pd.DataFrame"
    folder: Path

    @property
    def panels(self) -> "list[Image]":
        """Pictures of the first regions."""
        return read_pictures(sorted((self.folder / "panels").glob("*.png")))

    def _repr_html_(self) -> str:
        return show_html(str(self.folder), [self.table], self.panels[:SHOWN_PICTURES])


@dataclass(frozen=True)
class AnnotationQueue:
    """Images to annotate next.

    Attributes:
        table: a row per chosen image, first one first, as in next.csv.
        folder: folder with next.csv, next.png, images and masks.
    """

    table: "pd.DataFrame"
    folder: Path

    def _repr_html_(self) -> str:
        return show_html(str(self.folder), [self.table], read_pictures([self.folder / "next.png"]))


@dataclass(frozen=True)
class LearningCurve:
    """Scores of trainings on subsets of the training images.

    Attributes:
        record: content of enough.json: the fitted law, the gain, its interval, and the sentence.
        folder: folder with enough.json, enough.csv, enough.png and the runs.
    """

    record: dict[str, Any]
    folder: Path

    @property
    def runs(self) -> list[Run]:
        """The trainings."""
        return list_runs(self.folder)

    @property
    def table(self) -> "pd.DataFrame":
        """A row per training: size of the subset, seed, number of training images, Dice and run."""
        return read_table(self.folder / "enough.csv")

    def __repr__(self) -> str:
        return f"LearningCurve({str(self.folder)!r}, {self.record['sentence']!r})"

    def _repr_html_(self) -> str:
        picture = read_pictures([self.folder / "enough.png"])
        return show_html(self.record["sentence"], [self.table], picture)


def train(*words: str, **options: Any) -> Run:
    """Train one run, as ``python -m seg.train`` does; ``resume=RUN`` goes on with one.

    Args:
        *words: choices and options, ``"model=unetpp"``.
        **options: options by name, ``**{"optim.lr": 1e-3}``.

    Raises:
        UserError: if a word is wrong, or config, data and network do not fit together.
    """

    def function(cfg: "DictConfig") -> Run:
        from seg.training.run import train_run

        check_one_process(cfg)
        _, folder = train_run(cfg)
        return Run(folder)

    return call_command("train", function, words, options)


def sweep(*words: str, **options: Any) -> Sweep:
    """Train a run for each combination of values, as ``python -m seg.train -m`` does.

    Args:
        *words: as of ``train``; several values of an option are separated by commas, ``"optim.lr=1e-3,1e-2"``.
        **options: options of one value each.

    Raises:
        UserError: if a word is wrong, before any job starts.
    """
    line, variables, given = sys.argv, dict(os.environ), command_words(words, options)
    check_one_process(check_command_line("train", given, True, check_data_root).cfg)
    from seg.multirun.sweeper import ResumableSweeper
    from seg.train import main

    ResumableSweeper.latest = None
    sys.argv = ["seg.train", "-m", *given]
    try:
        main.run()
    except SystemExit as error:  # 1: some jobs failed, which their status says
        if error.code != 1:
            raise
    finally:
        sys.argv = line
        os.environ.clear()
        os.environ.update(variables)  # Hydra sets its own
    folder = ResumableSweeper.latest
    assert folder is not None
    return Sweep(folder, list_runs(folder))


def evaluate(run: Any, *words: str, **options: Any) -> Evaluation:
    """Score a run on a split or on other data, as ``python -m seg.evaluate`` does.

    Args:
        run: a ``Run``, a run folder or checkpoint file, a folder of a cross-validation, or a list of them.
        *words: ``"data.split=test"``.
        **options: options by name.
    """

    def function(cfg: "DictConfig") -> Evaluation:
        from seg.commands.evaluate import evaluate_run

        scores, folder = evaluate_run(cfg)
        return Evaluation(scores, folder.absolute())

    return call_command("evaluate", function, words, {"run": run_place(run)} | options)


def predict(run: Any, input: Any, output: Any, *words: str, **options: Any) -> PredictedFiles:
    """Segment images and write the results, as ``python -m seg.predict`` does; a ``Run`` predicts one image in memory.

    Args:
        run: as of ``evaluate``.
        input: image, stack, folder or pattern.
        output: folder that receives the results.
        *words: ``"save=[masks,overlays]"``.
        **options: options by name.
    """

    def function(cfg: "DictConfig") -> PredictedFiles:
        from seg.inference.file_prediction import predict_files

        written = [file.absolute() for file in predict_files(cfg)]
        return PredictedFiles(written, Path(cfg.output).absolute())

    given = {"run": run_place(run), "input": plain_value(input), "output": plain_value(output)}
    return call_command("predict", function, words, given | options)


def export(run: Any, *words: str, **options: Any) -> Path:
    """Write a run as one file, as ``python -m seg.export`` does, and return the file.

    Args:
        run: as of ``evaluate``.
        *words: ``"precision=int8"``.
        **options: options by name.
    """

    def function(cfg: "DictConfig") -> Path:
        from seg.commands.export import export_run

        return export_run(cfg).absolute()

    return call_command("export", function, words, {"run": run_place(run)} | options)


def check(*words: str, **options: Any) -> DataCheck:
    """Check a data set, as ``python -m seg.check`` does; errors in the data are part of the result."""

    def function(cfg: "DictConfig") -> DataCheck:
        from seg.commands.check import write_report

        return DataCheck(write_report(cfg), Path(cfg.output).absolute())

    return call_command("check", function, words, options)


def compare(*runs: Any, **options: Any) -> Comparison:
    """Compare runs, as ``python -m seg.compare`` does.

    Args:
        *runs: ``Run`` or ``Sweep`` objects, folders of them, or lists of these.
        **options: options by name, ``group_by=["model"]``.
    """

    def function(cfg: "DictConfig") -> Comparison:
        from seg.commands.compare import compare_and_write
        from seg.comparison.table import build_group_frame, build_run_table

        result = compare_and_write(cfg)
        frame = build_run_table(result.ranking, result.others)
        files = [file.absolute() for file in result.files]
        return Comparison(build_group_frame(result.ranking), frame, files)

    listed = [item for run in runs for item in (run if isinstance(run, list | tuple) else [run])]
    places = [run_place(run) for run in listed]
    return call_command("compare", function, [], ({"runs": places} if places else {}) | options)


def crossval(*words: str, **options: Any) -> CrossValidation:
    """Train and score all folds, as ``python -m seg.crossval`` does."""

    def function(cfg: "DictConfig") -> CrossValidation:
        from seg.commands.crossval import crossval as run_folds

        return CrossValidation(run_folds(cfg), Path(cfg.output).absolute())

    return call_command("crossval", function, words, options)


def doubt(run: Any, *words: str, **options: Any) -> Doubts:
    """Rank the labels that a cross-validation contradicts, or correct them, as ``python -m seg.doubt`` does.

    Args:
        run: a ``CrossValidation``, or its folder.
        *words: ``"panels=5"``.
        **options: options by name; ``reviewed`` is doubt.csv with the column ``accept`` filled in.
    """

    def function(cfg: "DictConfig") -> Doubts:
        from seg.commands.doubt import doubt_labels, results_folder

        doubt_labels(cfg)
        folder = results_folder(cfg).absolute()
        return Doubts(read_table(Path(cfg.reviewed or folder / "doubt.csv")), folder)

    return call_command("doubt", function, words, {"run": run_place(run)} | options)


def next_images(run: Any, input: Any, output: Any, *words: str, **options: Any) -> AnnotationQueue:
    """Choose images to annotate next, as ``python -m seg.next`` does.

    Args:
        run: as of ``evaluate``.
        input: folder of unlabelled images, or a pattern.
        output: new folder that receives them with their predicted masks.
        *words: ``"n=20"``.
        **options: options by name.
    """

    def function(cfg: "DictConfig") -> AnnotationQueue:
        from seg.commands.next import queue_images

        queue_images(cfg)
        folder = Path(cfg.output).absolute()
        return AnnotationQueue(read_table(folder / "next.csv"), folder)

    given = {"run": run_place(run), "input": plain_value(input), "output": plain_value(output)}
    return call_command("next", function, words, given | options)


def enough(*words: str, **options: Any) -> LearningCurve:
    """Train on subsets and tell what twice the images would bring, as ``python -m seg.enough`` does."""

    def function(cfg: "DictConfig") -> LearningCurve:
        from seg.commands.enough import ENOUGH_FILE, measure_enough
        from seg.runs import records

        measure_enough(cfg)
        folder = Path(cfg.output).absolute()
        return LearningCurve(records.read_json(folder / ENOUGH_FILE), folder)

    return call_command("enough", function, words, options)


def call_command(
    command: str,
    function: Callable[["DictConfig"], Any],
    words: Sequence[str],
    options: dict[str, Any],
) -> Any:
    """Check the words and options of a command, and return the result of a function of its config."""
    checked = check_command_line(command, command_words(words, options), multirun=False)
    check_data_root(checked.cfg)
    return run_composed(function, checked)


def command_words(words: Sequence[str], options: dict[str, Any]) -> list[str]:
    """Return words and options as the words of a command line, with the present names of options."""
    for word in words:
        if not isinstance(word, str):
            raise UserError(f'{word}: words are texts, "model=unet"; options are given by name')
        if word.partition("=")[0] in options:
            raise UserError(f"{word}: given as a word and as an option; give one of them")
    given = [render_option(name, plain_value(value)) for name, value in options.items()]
    return rename_words([*words, *given])


def check_one_process(cfg: "DictConfig") -> None:
    """Raise UserError for a training of several processes, each of which would run the caller's script."""
    import torch

    from seg.hardware import uses_one_device

    trainer = cfg.trainer
    several = (
        trainer.devices == "auto" and trainer.accelerator != "cpu" and torch.cuda.device_count() > 1
    )
    devices = plain_config(trainer)["devices"]
    if several or not uses_one_device(devices, trainer.num_nodes):
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={trainer.num_nodes}: seg.api trains in one process; give "
            "trainer.devices=1, or start several with python -m seg.train"
        )


def plain_value(value: Any) -> Any:
    """Return a value with paths and result objects as texts, and numpy's numbers and arrays as Python's."""
    if isinstance(value, Run | Sweep | CrossValidation):
        return str(value.folder)
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def run_place(run: Any) -> Any:
    """Return the folder of a result object as text; of a list, of each."""
    if isinstance(run, list | tuple):
        return [run_place(item) for item in run]
    if run is None:
        raise UserError("run=None: give a Run, a run folder, a checkpoint file or a list of them")
    return plain_value(run)


def list_runs(folder: Path) -> list[Run]:
    """Return the runs in a folder, without the link to the latest one."""
    folders = sorted(file.parent for file in folder.glob("*/run.json"))
    return [Run(run) for run in folders if not run.is_symlink()]


def main_metrics(metrics: dict[str, float]) -> list[str]:
    """Return the names of the metrics that a run is known by."""
    return [name for name in ("best/val/dice", "test/dice") if name in metrics]


def metrics_frame(metrics: dict[str, float]) -> "pd.DataFrame":
    """Return metrics as a table of one column, ``value``."""
    import pandas as pd

    return pd.DataFrame({"value": metrics}, dtype=float)


def read_pictures(files: Sequence[Path]) -> "list[Image]":
    """Return the pictures of files that exist."""
    from PIL import Image

    from seg.files import read_bytes

    present = [file for file in files if file.is_file()]
    return [Image.open(io.BytesIO(read_bytes(file, PICTURE_LIMIT))) for file in present]


def read_table(file: Path) -> "pd.DataFrame":
    """Return a table that a command wrote; names stay texts, and an empty number is nan."""
    import pandas as pd

    from seg.files import read_bytes

    texts = ["image", "copy", "kind", "said", "meant", "accept", "run"]
    types: dict[Hashable, Any] = {name: str for name in texts}
    frame = pd.read_csv(io.BytesIO(read_bytes(file, TABLE_LIMIT)), dtype=types)
    return frame.assign(**{name: frame[name].fillna("") for name in texts if name in frame})


def show_html(title: str, frames: "Sequence[pd.DataFrame]", pictures: "Sequence[Image]") -> str:
    """Return a title, tables and pictures as HTML, for a notebook."""
    parts = [f"<b>{html.escape(title)}</b>", *(frame.to_html(max_rows=20) for frame in frames)]
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        code = base64.b64encode(stream.getvalue()).decode()
        parts.append(f'<img src="data:image/png;base64,{code}" style="max-width: 100%">')
    return "\n".join(parts)
