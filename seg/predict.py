"""Segments images with a trained run: ``python -m seg.predict run=outputs/latest input=IMAGES output=OUT``."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from omegaconf import DictConfig
from rich.progress import track

from seg import ensemble, runs
from seg.cli import UserError, command
from seg.console import console, quiet
from seg.data.images import (
    TIFF,
    as_image,
    is_image,
    list_images,
    read_image,
    read_pages,
    write_mask,
    write_png,
)
from seg.data.sources import DataError
from seg.hardware import pick_accelerator, settle, torch_device
from seg.logits import decided
from seg.panels import overlay, picture, shown
from seg.tiles import check_tiles, predict_probabilities

log = logging.getLogger("seg")
KINDS = ("masks", "probabilities", "overlays")


def predict(cfg: DictConfig) -> list[Path]:
    """Segments each input and returns the files written, in folders named by what they hold."""
    quiet()
    check_request(cfg)
    run = ensemble.load(cfg.run)
    threshold = runs.threshold(run, cfg.threshold)
    device = placed(run, cfg, cfg.accelerator)
    files = inputs(cfg.input)
    output = empty_folder(cfg.output, cfg.save)
    written: list[Path] = []
    failed: list[str] = []
    for file in track(
        files, "predicting", console=console, transient=True, disable=not console.is_terminal
    ):
        try:
            pages = stack(file)
            for page in pages:
                check_channels(page, run, file)
            maps = [probabilities_of(page, run, cfg, device) for page in pages]
        except DataError as error:
            failed.append(str(error))
            continue
        written += write(output, file, pages, maps, cfg.save, run, threshold)
    log.info(f"{len(files) - len(failed)} of {len(files)} inputs segmented; results in {output}")
    if failed:
        raise UserError("; ".join(failed))
    return written


def check_request(cfg: DictConfig) -> None:
    for option, what in (("input", "an image, a TIFF stack or a folder"), ("output", "a folder")):
        if cfg[option] is None:
            raise UserError(f"{option} is not set: give {what}, {option}=...")
    check_save(cfg.save)


def check_save(save: Sequence[str]) -> None:
    """Raises UserError unless something is to be saved, and it is something there is."""
    if not save or any(kind not in KINDS for kind in save):
        raise UserError(f"save={list(save)}: choose from {', '.join(KINDS)}")


def placed(run: runs.LoadedRun, cfg: DictConfig, accelerator: str) -> str:
    """The device that a run's network now is on, ready to predict in tiles.

    Raises:
        UserError: when the network can't be given ``cfg.tile`` and ``cfg.overlap``.
    """
    try:
        check_tiles(run.model, cfg.tile, cfg.overlap)
    except ValueError as error:
        raise UserError(str(error)) from error
    device = torch_device(pick_accelerator(accelerator))
    settle(run.model, device)
    return device


def probabilities_of(
    image: np.ndarray, run: runs.LoadedRun, cfg: DictConfig, device: str
) -> np.ndarray:
    """Class probabilities (C, H, W) of an image (H, W, C) as stored."""
    return predict_probabilities(
        run.model, image, lambda i: run.intensity.normalised(run.intensity.scaled(i)),
        cfg.tile, cfg.overlap, device, run.overlapping,
    )  # fmt: skip


def inputs(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        return list_images(path)
    if not path.exists():
        raise UserError(f"input={given}: no such file or folder")
    if not is_image(path):
        raise UserError(
            f"input={given}: not an image by its name; PNG, JPEG, TIFF and the like are read"
        )
    return [path]


def empty_folder(given: str, save: list[str]) -> Path:
    """The output folder, made if absent.

    Raises:
        UserError: when it holds results already, or can't be made.
    """
    folder = Path(given)
    full = [kind for kind in save if (folder / kind).is_dir() and any((folder / kind).iterdir())]
    if full:
        raise UserError(
            f"output={given}: {full[0]}/ holds results already; give another folder or empty it"
        )
    try:
        for kind in save:
            (folder / kind).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={given}: can't be written ({error.strerror})") from error
    return folder


def stack(file: Path) -> list[np.ndarray]:
    """The images of a file, (H, W, C) each: one, or a TIFF's pages."""
    if file.suffix.lower() not in TIFF:
        return [read_image(file)]
    return [as_image(page, file) for page in read_pages(file)]


def check_channels(image: np.ndarray, run: runs.LoadedRun, file: Path) -> None:
    if image.shape[2] != run.intensity.channels:
        raise DataError(
            f"{file}: {image.shape[2]} channels; the run was trained on {run.intensity.channels}"
        )


def write(
    output: Path,
    file: Path,
    pages: list[np.ndarray],
    maps: list[np.ndarray],
    save: list[str],
    run: runs.LoadedRun,
    threshold: float,
) -> list[Path]:
    """A file's results: a stack in gives stacks out, and one overlay a page.

    Classes that overlap have a page each in a mask, which then is a TIFF.
    """
    masks = [decided(m, threshold, run.overlapping) for m in maps]
    many, stem, written = len(pages) > 1, file.stem, []
    tiff = run.overlapping or file.suffix.lower() in TIFF
    axes = "ZCYX" if many else "CYX"
    if "masks" in save:
        written.append(output / "masks" / f"{stem}{'.tif' if tiff else '.png'}")
        if tiff:
            tifffile.imwrite(
                written[-1], np.stack(masks) if many else masks[0], compression="zlib",
                photometric="minisblack", metadata={"axes": axes if run.overlapping else axes.replace("C", "")},
            )  # fmt: skip
        else:
            write_mask(written[-1], masks[0], run.colors)
    if "probabilities" in save:
        written.append(output / "probabilities" / f"{stem}.tif")
        tifffile.imwrite(
            written[-1], np.stack(maps) if many else maps[0], compression="zlib",
            photometric="minisblack", metadata={"axes": axes},
        )  # fmt: skip
    if "overlays" in save:
        _, colors = shown(run.classes, run.colors, run.overlapping)
        for number, (page, mask) in enumerate(zip(pages, masks, strict=True)):
            written.append(
                output / "overlays" / (f"{stem}-{number:03d}.png" if many else f"{stem}.png")
            )
            write_png(written[-1], overlay(page, picture(mask), colors))
    return written


@command("predict")
def main(cfg: DictConfig) -> None:
    predict(cfg)


if __name__ == "__main__":
    main()
