"""Implementation of ``python -m seg.evaluate``."""

import dataclasses
import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import files
from seg.data.spacing import source_spacing
from seg.display.console import configure_logging
from seg.errors import UserError
from seg.hardware import pick_accelerator, prepare_for_inference, torch_device
from seg.inference import ensemble
from seg.inference.engines import with_engine
from seg.inference.outputs import choose_object_options, refuse_object_options
from seg.inference.predictor import set_precision
from seg.inference.quality import build_scorer
from seg.inference.run_data import choose_data, is_own_data, open_run_data
from seg.inference.tta import with_tta
from seg.metrics.calibration import ProbabilityCounts
from seg.runs import load
from seg.training.build import set_tiles
from seg.training.evaluation import (
    EvaluationReport,
    build_metrics,
    build_trained_loss,
    check_evaluation_options,
    output_names,
    score_objects,
)
from seg.training.quality import report_quality
from seg.training.risk import score_at_bound
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate a run as ``evaluate_run``; return only the scores."""
    return evaluate_run(cfg)[0]


def evaluate_run(cfg: DictConfig) -> tuple[dict[str, float], Path]:
    """Evaluate a run's network on a split, and write the metrics and panels.

    Args:
        cfg: composed from conf/evaluate.yaml.

    Returns:
        ``SPLIT/metric`` -> value, under the names of training; for instance segmentation also the border and object
        scores of seg.metrics.isbi2012 and seg.metrics.instances. And the folder of the results.
    """
    # Load the run, and check the options and the output folder before the network runs.
    configure_logging()
    run = ensemble.load_members(cfg.run, cfg.model.depth)
    precision = cfg.precision or "float32"
    run = with_engine(
        run, cfg.run, cfg.engine, precision, cfg.exported, cfg.accelerator, cfg.model.depth
    )
    try:
        if cfg.engine == "torch" and cfg.precision:
            set_precision(run.model, cfg.precision, torch_device(pick_accelerator(cfg.accelerator)))
        model = with_tta(run.model, cfg.tta, list(cfg.scales), run.overlapping)
    except ValueError as error:
        raise UserError(str(error)) from error
    run = dataclasses.replace(run, model=model)
    metrics = build_metrics(cfg, run)
    metrics.pixels.keep_matrices = True
    check_evaluation_options(cfg)
    load.log_promise(run, cfg)
    split, chosen = choose_data(cfg.data, run)
    folder = Path(cfg.output) if cfg.output else load.default_output(run, f"evaluate-{split}")
    below = folder if cfg.output else run.folder
    files.check_writable(folder, below, output_names(metrics, cfg.panels))
    files.check_tree(folder / "panels", below)
    # Score the pixels, and the objects if the data has any.
    data = open_run_data(cfg, run, split, chosen)
    if data.source.task != "instances":
        refuse_object_options(cfg.objects, f"data.task={data.source.task} has no objects")
    if metrics.needs_spacing:
        metrics.set_spacing(source_spacing(data.source))
    task = SegmentationTask(run.model, build_trained_loss(run), metrics)
    set_tiles(task, data, cfg.tile)
    if run.quality is not None:
        task.test_metrics.counts = ProbabilityCounts(run.overlapping, limited=False)
    own = is_own_data(chosen, run.config.get("data", {}))
    scores, promise = score_at_bound(cfg, run, task, data, split, own)
    evidence = task.test_metrics.bootstrap_inputs()
    objects = None
    if data.source.task == "instances":
        device = torch_device(pick_accelerator(cfg.accelerator))
        prepare_for_inference(run.model, device)
        objects = choose_object_options(cfg.objects, run)
        object_values, object_evidence = score_objects(
            run, data.samples(split), task.test_metrics.threshold, objects, device
        )
        scores |= {f"{split}/{name}": value for name, value in object_values.items()}
        evidence |= object_evidence
    report = EvaluationReport(
        cfg, run, data, split, folder, below, task.test_metrics, objects, promise
    )
    report.write(scores, evidence)
    scorer = build_scorer(run, cfg, task.test_metrics.threshold)
    if scorer is not None and (counts := task.test_metrics.counts) is not None:
        measured = counts.compute().cpu().numpy()
        report_quality(scorer, measured, data.samples(split), folder, below)
    return scores, folder
