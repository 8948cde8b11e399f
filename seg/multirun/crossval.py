"""Cross-validation: train each fold, predict its validation images and pool the scores."""

import copy
import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path
from seg.cli.compose import plain
from seg.cli.validation import arguments, located
from seg.data.dataset import Samples, planes_first
from seg.data.datasets.base import Source
from seg.display import tables
from seg.display.console import console
from seg.errors import UserError
from seg.hardware import one_device
from seg.inference import ensemble
from seg.inference.file_prediction import write
from seg.inference.outputs import Request, check_save
from seg.inference.predictor import Predictor
from seg.logits import decided
from seg.metrics.confusion import PixelScores
from seg.metrics.significance import Interval, interval
from seg.multirun.folds import OWN, PREDICTED, Plan, file_of, finished, opened, runs_named
from seg.runs import load, provenance, records
from seg.runs.folder import CROSSVAL, relative
from seg.runs.load import LoadedRun
from seg.training.evaluation import check_numbers, count_objects
from seg.training.run import train

log = logging.getLogger("seg")


def check_line() -> None:
    """Raises UserError for words of the command line that a cross-validation has no use for."""
    if not HydraConfig.initialized():
        return
    for word in HydraConfig.get().overrides.task:
        if word.lstrip("+~").split("=")[0] == "data.fold":
            raise UserError(
                f"{word}: each fold is trained in its turn; leave it out (data.folds says how many)"
            )


def check_request(cfg: DictConfig) -> None:
    """Raises UserError for what can be known before the data is looked at."""
    if cfg.outputs != cfg.output:
        raise UserError(
            f"outputs={cfg.outputs}: the folds' runs lie below output; leave it out, and give output=..."
        )
    takes = arguments(located("data", cfg.data["_target_"])) or list(cfg.data)
    for name in ("folds", "fold"):
        if name not in takes:
            raise UserError(
                f"data.{name}: {cfg.data['_target_'].rpartition('.')[2]} has no such option; a "
                "cross-validation needs data with folds, as data=folder and data=isbi2012"
            )
    if not isinstance(cfg.data.get("folds"), int) or cfg.data.folds < 2:
        raise UserError(f"data.folds={cfg.data.get('folds')}: 2 or more are needed")
    trainer = plain(cfg.trainer)
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not one_device(devices, nodes):
        raise UserError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}: the folds train one after the other, each on "
            "one device; give trainer.devices=1"
        )
    check_save(cfg.save)
    check_numbers(cfg)


def trained(cfg: DictConfig, plan: Plan, fold: int, output: Path) -> Path:
    """The run folder of a fold: the finished one, or a new one once it is trained."""
    if folder := finished(output, plan, fold):
        log.info(f"fold {fold}     is finished and kept: {quote_path(relative(folder))}")
        return folder
    for folder, record in runs_named(output, plan.names[fold]):
        if record.get("status") != "finished":
            log.info(f"fold {fold}     was not finished; trained anew, without {relative(folder)}")
            shutil.rmtree(folder)
    log.info(f"fold {fold}     of 0 to {len(plan.names) - 1}")
    try:
        train(fold_config(cfg, plan, fold))
    except BaseException:
        log.info(
            f"fold {fold} is not finished; the others stay, and the same command goes on from here"
        )
        raise
    finally:
        gc.collect()  # trainer and task hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    folder = finished(output, plan, fold)
    assert folder is not None  # training returned
    return folder


def fold_config(cfg: DictConfig, plan: Plan, fold: int) -> DictConfig:
    """What seg.train would be given for one fold; loggers show the folds as a group."""
    own = copy.deepcopy(cfg)
    OmegaConf.set_struct(own, False)
    own.outputs, own.name, own.data.fold = str(cfg.output), plan.names[fold], fold
    for key in OWN:
        del own[key]
    if own.trainer.get("devices") == "auto":
        own.trainer.devices = 1
    for logger in own.logger.values():
        if "group" in logger and logger.group is None:
            logger.group = cfg.name or Path(cfg.output).resolve().name
    return own


def judge(cfg: DictConfig, plan: Plan, folders: list[Path], output: Path) -> dict[str, Any]:
    """Predicts each image by the network that did not train on it, and scores folds and all of them."""
    files.remove_unfinished(output)
    first = load.load(folders[0])
    pooled = PixelScores(first.classes, first.overlapping)
    folds = []
    with files.whole_folder(output / PREDICTED, output) as aside:
        for kind in cfg.save:
            files.make_folder(aside / kind, aside)
        for fold, folder in enumerate(folders):
            run, source = load.load(folder), opened(cfg, fold)
            predictor = ready(cfg, run)
            predict_split(cfg, predictor, source, "val", pooled, aside)
            folds.append(facts(cfg, run, source, fold, predictor.device))
    mean, sd = spread([fold["metrics"] for fold in folds])
    found = {
        "classes": first.classes,
        "folds": folds,
        "mean": mean,
        "sd": sd,
        "pooled": summary(pooled, cfg.confidence),
        "origin": provenance.origin(),
    }
    return found | ({"test": tested(cfg, folders)} if "test" in plan.splits[0] else {})


def ready(cfg: DictConfig, run: LoadedRun) -> Predictor:
    """A run that predicts, at its own threshold."""
    return Predictor(
        run, run.threshold, tile=cfg.tile, overlap=cfg.overlap, accelerator=cfg.trainer.accelerator
    )


def predict_split(
    cfg: DictConfig,
    predictor: Predictor,
    source: Source,
    split: str,
    scores: PixelScores,
    folder: Path | None = None,
) -> None:
    """Counts the pixels of a split's images as predicted, and writes them where a folder is given."""
    names, run = source.splits[split], predictor.run
    request = Request(run, list(cfg.save), run.threshold, "float32", plain(cfg.objects))
    for name in track(
        names, "predicting", console=console, transient=True, disable=not console.is_terminal
    ):
        image, truth = source.read(name)
        p_CHW = predictor.probabilities(image)
        pair = decided(p_CHW, run.threshold, run.overlapping), planes_first(truth)
        scores.update(*(torch.from_numpy(np.ascontiguousarray(m))[None].long() for m in pair))
        if folder is not None:
            write(folder, file_of(name), image, p_CHW, request)


def facts(
    cfg: DictConfig, run: LoadedRun, source: Source, fold: int, device: str
) -> dict[str, Any]:
    """What is told of a fold; its scores are the run's own, and those of objects where it has some."""
    record = records.read_json(run.folder / "run.json")
    metrics = {name.removeprefix("best/"): value for name, value in record["metrics"].items()}
    if source.task == "instances":
        samples = Samples(source, source.splits["val"], run.intensity)
        found, _ = count_objects(run, samples, run.threshold, plain(cfg.objects), device)
        metrics |= {f"val/{name}": value for name, value in found.items()}
    return {
        "fold": fold,
        "run": run.folder.name,
        "images": len(source.splits["val"]),
        "split_hash": record["split_hash"],
        "threshold": run.threshold,
        "minutes": record["minutes"],
        "metrics": metrics,
    }


def spread(rows: list[dict[str, float | None]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean of each metric over the folds that have it, and the standard deviation (ddof = 1) of two or more."""
    mean, sd = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([row.get(name) for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        mean[name] = float(values.mean()) if len(values) else np.nan
        sd[name] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return mean, sd


def summary(scores: PixelScores, level: float) -> dict[str, Any]:
    """Scores of one confusion matrix over all images, with intervals, and the matrix of each image."""
    shown = ("dice", "iou", "dice_per_image", "iou_per_image")
    intervals = {
        name: interval(rows, score, level)
        for name, (rows, score) in (scores.evidence().items() if level else ())
        if name.split("/")[0] in shown
    }
    return {
        "images": len(scores.images()),
        "metrics": {name: float(value) for name, value in scores.compute().items()},
        "intervals": {name: [i.low, i.high] for name, i in intervals.items() if i.low == i.low},
        "confusion": scores.images().tolist(),  # in the order of the record's images, or of the test split
    }


def tested(cfg: DictConfig, folders: list[Path]) -> dict[str, Any]:
    """Scores of the ensemble on the test split, which no fold trained or validated on."""
    members = [load.load(folder) for folder in folders]
    run = ensemble.join(members, Path(CROSSVAL), Path(cfg.output), set())
    scores = PixelScores(run.classes, run.overlapping)
    predict_split(cfg, ready(cfg, run), opened(cfg, 0), "test", scores)
    return {"threshold": run.threshold} | summary(scores, cfg.confidence)


def fold_table(record: dict[str, Any]) -> Table:
    """A row a fold, then their mean and spread, then all images together, then the ensemble on the test."""
    classes, mean, sd = record["classes"], record["mean"], record["sd"]
    named = {f"val/dice/{name}": name for name in classes} if len(classes) <= 3 else {}
    objects = {"val/v_rand": "V_rand", "val/object_f1": "objects F1"}
    others = objects if "val/v_rand" in mean else {"val/iou": "IoU"}
    columns = {"val/dice": "Dice"} | named | others | {"test/dice": "test Dice"}
    columns = {key: header for key, header in columns.items() if key in mean}
    table = Table(title="cross-validation", title_justify="left", header_style="bold")
    table.add_column("fold", no_wrap=True)
    for header in columns.values():
        table.add_column(header, justify="right", overflow="fold")
    for fold in record["folds"]:
        values = (tables.number(fold["metrics"].get(key)) for key in columns)
        table.add_row(str(fold["fold"]), *values)
    table.add_section()
    table.add_row("mean", *(tables.number(mean[key]) for key in columns))
    table.add_row("+- sd", *(tables.number(sd[key]) for key in columns))
    for row, prefix in (("pooled", "val/"), ("test", "test/")):
        if row in record:
            scores = (
                scored(record[row], key.removeprefix(prefix)) if key.startswith(prefix) else ""
                for key in columns
            )
            table.add_section()
            table.add_row("ensemble" if row == "test" else row, *scores, style="bold")
    return table


def scored(found: dict[str, Any], name: str) -> str:
    """A score over its interval, as far as they are there."""
    if name not in found["metrics"]:
        return ""
    value, ends = found["metrics"][name], found["intervals"].get(name)
    below = f"\n{tables.span(Interval(value, *ends, found['images']))}" if ends else ""
    return f"{tables.number(value)}{below}"
