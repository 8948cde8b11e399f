"""Cross-validation: train each fold, predict its validation images and pool the scores."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path, typed_overrides
from seg.cli.validation import argument_names, import_target
from seg.data.dataset import BandedSample, SegmentationDataset
from seg.data.datasets.base import DataSource, image_groups
from seg.data.image_files import image_stem
from seg.data.spacing import source_spacing
from seg.display import tables
from seg.display.console import track_progress
from seg.errors import UserError
from seg.inference import ensemble
from seg.inference.file_prediction import begin_image_results, finish_image_results
from seg.inference.outputs import (
    OutputOptions,
    OutputTarget,
    PredictedBand,
    check_object_options,
    check_save_option,
    choose_object_options,
    finish_results,
    refuse_object_options,
)
from seg.inference.predictor import Predictor, mark_nodata
from seg.logits import classes_from_probabilities
from seg.metrics.calibration import ProbabilityHistogram
from seg.metrics.confusion import PixelScores
from seg.metrics.risk_control import parse_risk_bound
from seg.metrics.significance import Interval, bootstrap_intervals
from seg.multirun.folds import (
    CROSSVAL_OPTIONS,
    OUT_OF_FOLD,
    FoldPlan,
    find_finished_fold,
    finished_fold,
    open_fold,
    prediction_file,
)
from seg.multirun.trainings import check_one_device, delete_unfinished_runs
from seg.runs import load, provenance, records
from seg.runs.folder import CROSSVAL_FILE, relative_to_here
from seg.runs.load import LoadedRun
from seg.runs.record import RECORD_FILE, RiskPromise, read_record
from seg.runs.workers import share_pieces
from seg.training.evaluation import CONFUSION_FILE, score_objects
from seg.training.quality import OutOfFoldMeter
from seg.training.risk import choose_risk_threshold, log_measured_risk
from seg.training.run import train

log = logging.getLogger("seg")


def check_no_fold() -> None:
    """Raise UserError if the command line sets ``data.fold``."""
    for word in typed_overrides():
        if word.lstrip("+~").split("=")[0] == "data.fold":
            raise UserError(
                f"{word}: every fold is trained; leave it out (data.folds gives their number)"
            )


def check_crossval_options(cfg: DictConfig) -> None:
    """Raise UserError for options that can be checked before the data is read."""
    # The folds' runs must lie in the folder of the cross-validation.
    if cfg.outputs != cfg.output:
        raise UserError(
            f"outputs={cfg.outputs}: the folds' runs are written below output; leave it out, and give output=..."
        )
    # The data must have folds.
    options = argument_names(import_target("data", cfg.data["_target_"])) or list(cfg.data)
    for name in ("folds", "fold"):
        if name not in options:
            raise UserError(
                f"data.{name}: {cfg.data['_target_'].rpartition('.')[2]} has no such option; a "
                "cross-validation needs data with folds, such as data=folder and data=isbi2012"
            )
    if not isinstance(cfg.data.get("folds"), int) or cfg.data.folds < 2:
        raise UserError(f"data.folds={cfg.data.get('folds')}: 2 or more are needed")
    # Each training must stay in this process.
    why = "the folds train one after another, each on one device; give trainer.devices=1"
    check_one_device(cfg.trainer, why)
    check_save_option(cfg.save)
    check_object_options(cfg)
    task = cfg.data.get("task")
    if task != "instances" and "instances" not in cfg.save:
        refuse_object_options(cfg.objects, f"data.task={task} has no objects")


def train_folds(cfg: DictConfig, plan: FoldPlan, output: Path) -> None:
    """Train the folds that are not finished, with the other workers of the command.

    Args:
        cfg: config of seg.crossval.
        plan: folds of the data.
        output: folder of the cross-validation.
    """
    left = []
    for fold in range(len(plan.names)):
        if folder := find_finished_fold(output, plan, fold):
            place = quote_path(relative_to_here(folder))
            log.info(f"fold {fold}     is finished and kept: {place}")
        else:
            left.append(fold)
    share_pieces(
        left,
        lambda fold: output / f".fold-{fold}.lock",
        output,
        lambda fold: find_finished_fold(output, plan, fold) is not None,
        lambda fold: train_fold(cfg, plan, fold, output),
        "folds",
    )


def train_fold(cfg: DictConfig, plan: FoldPlan, fold: int, output: Path) -> None:
    """Delete an unfinished run of a fold, and train the fold."""
    for folder in delete_unfinished_runs(output, plan.names[fold]):
        log.info(
            f"fold {fold}     was not finished; {relative_to_here(folder)} was deleted, and the fold is trained again"
        )
    log.info(f"fold {fold}     of 0 to {len(plan.names) - 1}")
    try:
        train(fold_config(cfg, plan, fold))
    except BaseException:
        log.info(
            f"fold {fold} is not finished; finished folds are kept, and the same command continues from here"
        )
        raise
    finished_fold(output, plan, fold)


def fold_config(cfg: DictConfig, plan: FoldPlan, fold: int) -> DictConfig:
    """Return the config of seg.train for one fold; loggers group the folds."""
    # Remove the options that seg.train does not have
    own = copy.deepcopy(cfg)
    OmegaConf.set_struct(own, False)
    own.outputs, own.name, own.data.fold = str(cfg.output), plan.names[fold], fold
    if parse_risk_bound(cfg.threshold) is not None:
        own.threshold = None  # chosen for all folds together, by score_folds
    for key in CROSSVAL_OPTIONS:
        del own[key]
    # One device, so that the training stays in this process
    if own.trainer.get("devices") == "auto":
        own.trainer.devices = 1
    for logger in own.logger.values():
        if "group" in logger and logger.group is None:
            logger.group = cfg.name or Path(cfg.output).resolve().name
    return own


def score_folds(
    cfg: DictConfig, plan: FoldPlan, folders: list[Path], output: Path
) -> dict[str, Any]:
    """Predict each image with the network that did not train on it, and score the folds and all images together.

    Args:
        cfg: config of seg.crossval.
        plan: folds of the data.
        folders: run folder of each fold.
        output: folder of the cross-validation, which receives the predictions.

    Returns:
        The results for crossval.json.
    """
    files.remove_unfinished(output)
    first = load.load_run(folders[0])
    pooled = PixelScores(first.classes, first.overlapping, keep_matrices=True)
    promise = promise_of_folds(cfg, plan, folders)
    # Predict fold by fold, with one confusion matrix over all images.
    folds = []
    meters = OutOfFoldMeter(first)
    with files.atomic_folder(output / OUT_OF_FOLD, output) as aside:
        for kind in cfg.save:
            files.make_folder(aside / kind, aside)
        for fold, folder in enumerate(folders):
            run, source = load.load_run(folder), open_fold(cfg, fold)
            predictor = make_predictor(cfg, at_threshold(run, promise))
            predict_split(cfg, predictor, source, "val", pooled, aside, meters)
            folds.append(fold_entry(cfg, run, source, fold, predictor.device))
    # Summarise the folds, the pooled images and, if there is a test split, the ensemble.
    mean, sd = mean_and_sd([fold["metrics"] for fold in folds])
    results = {
        "classes": first.classes,
        "folds": folds,
        "mean": mean,
        "sd": sd,
        "pooled": pooled_scores(pooled, cfg.confidence_level),
        "promise": None if promise is None else promise.model_dump(),
        "quality": meters.fit(promise, image_groups(open_fold(cfg, 0))),
        "origin": provenance.collect_provenance(),
    }
    # Matrices: pooled in the order of images in crossval.json, test in that of the test split.
    matrices = {"pooled": pooled.matrices()}
    if "test" in plan.splits[0]:
        results["test"], matrices["test"] = score_ensemble(cfg, folders, promise)
    records.write_arrays(output / CONFUSION_FILE, matrices, output)
    return results | {"confusion": CONFUSION_FILE}


def at_threshold(run: LoadedRun, promise: RiskPromise | None) -> LoadedRun:
    """Return the run of a fold at the threshold that was chosen for all folds together, if there is one."""
    return run if promise is None else replace(run, threshold=promise.threshold)


def promise_of_folds(cfg: DictConfig, plan: FoldPlan, folders: list[Path]) -> RiskPromise | None:
    """Choose the threshold that bounds a risk over the out-of-fold images; None if none is asked for, or kept.

    Args:
        cfg: config of seg.crossval.
        plan: folds of the data.
        folders: run folder of each fold.
    """
    if (bound := parse_risk_bound(cfg.threshold)) is None:
        return None
    histogram = ProbabilityHistogram()
    for fold, folder in enumerate(folders):
        run, source = load.load_run(folder), open_fold(cfg, fold)
        predictor = make_predictor(cfg, run)
        samples = SegmentationDataset(source, source.splits["val"], run.intensity)
        for name in track_progress(samples.names, "choosing the threshold"):
            with samples.open_banded(name) as sample:
                height, width = sample.shape
                tiling = predictor.tiling(height, width)
                for top, rows, p_CHW in tiling.parts(sample.image_rows, height):
                    truth = np.ascontiguousarray(sample.mask_rows(top, top + len(rows)))
                    mask = torch.from_numpy(truth)[None].long()
                    histogram.update(torch.from_numpy(p_CHW)[None], mask, continued=top > 0)
    return choose_risk_threshold(
        histogram.compute(), bound, open_fold(cfg, 0), list(plan.fold_of), "out-of-fold"
    )


def make_predictor(cfg: DictConfig, run: LoadedRun) -> Predictor:
    """Return a predictor of a run, at the run's own threshold."""
    return Predictor(
        run,
        run.threshold,
        tile=cfg.tile,
        overlap=cfg.overlap,
        accelerator=cfg.trainer.accelerator,
    )


def predict_split(
    cfg: DictConfig,
    predictor: Predictor,
    source: DataSource,
    split: str,
    scores: PixelScores,
    folder: Path | None = None,
    meters: OutOfFoldMeter | None = None,
) -> None:
    """Predict the images of a split, count their pixels, and write the predictions.

    Args:
        cfg: config of seg.crossval, which names the files to write.
        predictor: of a run.
        source: data with the split.
        split: to predict.
        scores: receives the counts.
        folder: receives the files; None: nothing is written.
        meters: measure the images, for the quality of further ones; None: they don't.
    """
    # Predictions are written at the run's own threshold, probabilities as float32
    names, run = source.splits[split], predictor.run
    objects = choose_object_options(cfg.objects, run)
    spacing = source_spacing(source)
    request = OutputOptions(
        run, list(cfg.save), run.threshold, "float32", objects, spacing and list(spacing)
    )
    samples = SegmentationDataset(source, names, run.intensity)
    for name in track_progress(names, "predicting"):
        with samples.open_banded(name) as sample:
            predict_image_rows(predictor, sample, scores, request, folder, meters)
    if folder is not None:
        finish_results(folder, [])


def predict_image_rows(
    predictor: Predictor,
    sample: BandedSample,
    scores: PixelScores,
    request: OutputOptions,
    folder: Path | None,
    meters: OutOfFoldMeter | None,
) -> None:
    """Predict an image band by band, count its pixels, and write its results into a folder, if there is one."""
    run, (height, width) = predictor.run, sample.shape
    results = []
    meter = None if meters is None else meters.begin(height, width)
    if folder is not None:
        file = prediction_file(sample.name)
        place = OutputTarget(folder, file, image_stem(file), height, width, 1, sample.dtype)
        results = begin_image_results(place, request)
    for top, rows, p_CHW in predictor.tiling(height, width).bands(sample.image_rows, height):
        # Count the pixels as a batch of one, (1, H, W) or (1, K, H, W) of overlapping classes
        prediction = classes_from_probabilities(p_CHW, run.threshold, run.overlapping)
        truth = sample.mask_rows(top, top + len(rows))
        counted, known = (
            torch.from_numpy(np.ascontiguousarray(m))[None].long() for m in (prediction, truth)
        )
        scores.update(counted, known, continued=top > 0)
        rows = rows[..., run.intensity.own_channels]
        mask = mark_nodata(prediction, rows, run.intensity.nodata)
        if meter is not None:
            meter.add(top, rows, p_CHW, mask, truth)
        for result in results:
            result.add(PredictedBand(top, rows, p_CHW, mask))
        del rows, p_CHW, prediction, truth, counted, known, mask  # memory for the next band
    if meters is not None and meter is not None:
        meters.finish(meter, sample.name)
    if folder is not None:
        finish_image_results(folder, results)


def fold_entry(
    cfg: DictConfig, run: LoadedRun, source: DataSource, fold: int, device: str
) -> dict[str, Any]:
    """Return the entry of a fold in crossval.json: its run, its data and its scores.

    Args:
        cfg: config of seg.crossval.
        run: of the fold.
        source: data of the fold; object scores are added if it has objects.
        fold: number of the fold.
        device: to predict objects on.
    """
    # Scores of the best checkpoint, as the training recorded them
    record = read_record(run.folder / RECORD_FILE)
    metrics = {n.removeprefix("best/"): value for n, value in (record.metrics or {}).items()}
    # Data with objects: their scores on the whole validation images
    if source.task == "instances":
        samples = SegmentationDataset(source, source.splits["val"], run.intensity)
        options = choose_object_options(cfg.objects, run)
        objects, _ = score_objects(run, samples, run.threshold, options, device)
        metrics |= {f"val/{name}": value for name, value in objects.items()}
    return {
        "fold": fold,
        "run": run.folder.name,
        "images": len(source.splits["val"]),
        "split_hash": record.split_hash,
        "threshold": run.threshold,
        "split_neck_px": run.split_neck_px,
        "minutes": record.minutes,
        "metrics": metrics,
    }


def mean_and_sd(rows: list[dict[str, float | None]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and standard deviation (ddof = 1) of each metric over the folds; nan with too few values."""
    mean, sd = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([row.get(name) for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        mean[name] = float(values.mean()) if len(values) else np.nan
        sd[name] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return mean, sd


def pooled_scores(scores: PixelScores, level: float) -> dict[str, Any]:
    """Return the scores over all images and their bootstrap intervals.

    Args:
        scores: counts of all images.
        level: confidence level of the intervals, 0..1; 0: none.
    """
    # Intervals of the main scores only
    displayed = ("dice", "iou", "dice_per_image", "iou_per_image")
    inputs = scores.bootstrap_inputs() if level else {}
    inputs = {name: given for name, given in inputs.items() if name.split("/")[0] in displayed}
    intervals = bootstrap_intervals(inputs, level) if inputs else {}
    return {
        "images": len(scores.images()),
        "metrics": {name: float(value) for name, value in scores.compute().items()},
        "intervals": {name: [i.low, i.high] for name, i in intervals.items() if i.low == i.low},
    }


def score_ensemble(
    cfg: DictConfig, folders: list[Path], promise: RiskPromise | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Score the ensemble of all folds on the test split, which no fold trained or validated on.

    Args:
        cfg: config of seg.crossval.
        folders: run folder of each fold.
        promise: of the threshold that was chosen for all folds together; None: each has its own.

    Returns:
        The scores with intervals, and the confusion matrix of each image.
    """
    # The test split trained no member, so the set of seen images is empty
    members = [at_threshold(load.load_run(folder), promise) for folder in folders]
    run = ensemble.join_members(members, Path(CROSSVAL_FILE), Path(cfg.output), set())
    scores = PixelScores(run.classes, run.overlapping, keep_matrices=True)
    predict_split(cfg, make_predictor(cfg, run), open_fold(cfg, 0), "test", scores)
    if promise is not None:
        log_measured_risk(promise, scores.images(), run.classes, "test")
    results = {"threshold": run.threshold} | pooled_scores(scores, cfg.confidence_level)
    return results, scores.matrices()


def fold_table(record: dict[str, Any]) -> Table:
    """Build the final table: a row per fold, mean and sd, the pooled images, the ensemble on the test split."""
    # Choose the columns.
    classes, mean, sd = record["classes"], record["mean"], record["sd"]
    per_class = {f"val/dice/{name}": name for name in classes} if len(classes) <= 3 else {}
    objects = {"val/v_rand": "V_rand", "val/object_f1": "objects F1"}
    others = objects if "val/v_rand" in mean else {"val/iou": "IoU"}
    columns = {"val/dice": "Dice"} | per_class | others | {"test/dice": "test Dice"}
    columns = {key: header for key, header in columns.items() if key in mean}
    table = tables.make_table("cross-validation")
    table.add_column("fold", no_wrap=True)
    for header in columns.values():
        table.add_column(header, justify="right", overflow="fold")
    # Add the rows.
    for fold in record["folds"]:
        values = (tables.format_score(fold["metrics"].get(key)) for key in columns)
        table.add_row(str(fold["fold"]), *values)
    table.add_section()
    table.add_row("mean", *(tables.format_score(mean[key]) for key in columns))
    table.add_row("+- sd", *(tables.format_score(sd[key]) for key in columns))
    for row, prefix in (("pooled", "val/"), ("test", "test/")):
        if row in record:
            scores = (
                score_cell(record[row], key.removeprefix(prefix)) if key.startswith(prefix) else ""
                for key in columns
            )
            table.add_section()
            table.add_row("ensemble" if row == "test" else row, *scores, style="bold")
    return table


def score_cell(results: dict[str, Any], name: str) -> str:
    """Format a score with its interval below, if there are any."""
    if name not in results["metrics"]:
        return ""
    value, ends = results["metrics"][name], results["intervals"].get(name)
    span = f"\n{tables.format_interval(Interval(value, *ends, results['images']))}" if ends else ""
    return f"{tables.format_score(value)}{span}"
