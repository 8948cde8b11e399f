"""A trained run as one file for other programs: ``python -m seg.export run=outputs/latest format=onnx``.

The image goes in as stored, class probabilities come out: normalisation, padding, cropping and activation
are inside. What is written gives the same as the network in PyTorch at several sizes, or isn't written.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import files
from seg.cli.command import command
from seg.cli.command_line import quote_path
from seg.display.console import quiet
from seg.errors import UserError, missing_extra
from seg.inference import ensemble
from seg.inference.export import SUFFIXES, check_equal, description, target

log = logging.getLogger("seg")


def export(cfg: DictConfig) -> Path:
    """Writes the run as one file, after it proved equal to the network, and returns its path."""
    quiet()
    check_request(cfg)
    run = ensemble.load(cfg.run)
    file, below = target(cfg, run)
    facts = description(run, cfg.run)
    with files.made_folder(file.parent, below), files.whole(file, below) as aside:
        check_equal(run, facts, aside, cfg)
    channels, classes = run.intensity.channels, ", ".join(run.classes)
    log.info(f"in         image (batch, {channels}, height, width) float32, values as stored")
    log.info(f"out        probabilities (batch, {len(run.classes)}, height, width): {classes}")
    log.info(f"wrote      {quote_path(file)}: {file.stat().st_size / 1e6:.1f} MB")
    return file


def check_request(cfg: DictConfig) -> None:
    """Raises UserError for options that can't be, or packages that aren't there."""
    if cfg.format not in SUFFIXES:
        raise UserError(f"format={cfg.format}: {' or '.join(SUFFIXES)} is needed")
    if not cfg.tolerance > 0:
        raise UserError(f"tolerance={cfg.tolerance}: it must be above 0")
    for package in ("onnx", "onnxruntime") if cfg.format == "onnx" else ():
        if need := missing_extra(package):
            raise UserError(f"format=onnx {need}")


@command("export")
def main(cfg: DictConfig) -> None:
    export(cfg)


if __name__ == "__main__":
    main()
