"""Images, masks and out-of-fold probabilities of a finished cross-validation."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import plain_config
from seg.data.datasets.base import DataSource
from seg.data.image_files import image_stem
from seg.data.raster import ImageReader
from seg.errors import RunError, UserError
from seg.inference.ensemble import fold_folders
from seg.inference.run_data import choose_data, open_run_data
from seg.multirun.folds import OUT_OF_FOLD, prediction_file
from seg.runs import load, records
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT

TOLERANCE = 1e-4  # of probabilities, by rounding


class OutOfFold(NamedTuple):
    """Data of a finished cross-validation, whose images are read one at a time.

    Attributes:
        folder: of the cross-validation.
        run: first fold's run.
        source: data of the runs.
        names: images that a fold has predicted.
        options: of the data.
    """

    folder: Path
    run: LoadedRun
    source: DataSource
    names: list[str]
    options: dict[str, Any]

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image (H, W, C), mask (H, W) uint8 and probabilities (K, H, W) float32 of a name.

        Raises:
            RunError: if the probabilities are missing, of another size, or none.
            DataError: if a file cannot be read.
        """
        image, mask = self.source.read(name)
        stem = image_stem(prediction_file(name))
        file = self.folder / OUT_OF_FOLD / "probabilities" / f"{stem}.tif"
        if not file.is_file():
            raise RunError(
                f"{file}: no such file; repeat seg.crossval with save=[masks,probabilities]"
            )
        reader = ImageReader(file, pages="channels")
        try:
            wanted = (*mask.shape, len(self.run.classes))
            if tuple(reader.shape) != wanted:
                raise RunError(
                    f"{file}: its shape is {tuple(reader.shape)}, and {wanted} is needed for {name}; the data has "
                    "changed since, repeat seg.crossval with another output"
                )
            p_HWC = reader.rows(0, len(mask)).astype(np.float32)
        finally:
            reader.close()
        if not (p_HWC.min() >= 0 and p_HWC.max() <= 1 + TOLERANCE):  # nan, too
            raise RunError(f"{file}: holds values that are no probabilities; repeat seg.crossval")
        return image, mask, np.ascontiguousarray(p_HWC.transpose(2, 0, 1))


def open_out_of_fold(run: Any, data: DictConfig) -> OutOfFold:
    """Open the folder of a finished cross-validation.

    Args:
        run: option ``run``.
        data: present paths of the data; null is unchanged.

    Raises:
        UserError: if it is no such folder, or its classes overlap.
        RunError: if its record is damaged or unfinished, or images are missing.
    """
    if run is None:
        raise UserError("run is not set: give a folder of seg.crossval, run=outputs/crossval")
    if not isinstance(run, str) or not (Path(run) / CROSSVAL_FILE).is_file():
        raise UserError(
            f"run={run}: a folder of seg.crossval is needed, in which each image was predicted by a network that did "
            "not train on it"
        )
    folder = Path(run)
    record = records.read_json(folder / CROSSVAL_FILE, CROSSVAL_LIMIT)
    images, folds = record.get("images"), record.get("folds")
    if record.get("status") != "finished":
        raise RunError(
            f"{folder / CROSSVAL_FILE}: not finished; the command that began it goes on where it stopped"
        )
    if not isinstance(images, dict) or not images or not isinstance(folds, list) or not folds:
        raise RunError(f"{folder / CROSSVAL_FILE}: not written by seg.crossval")
    first = load.load_run(fold_folders(folder, folds)[0])
    if first.overlapping:
        raise UserError(
            f"run={run}: data.task=overlapping; seg.doubt looks for errors where a pixel has one class"
        )
    given = OmegaConf.create(plain_config(data) | {"split": "all"})
    split, chosen = choose_data(given, first)
    options = OmegaConf.create({"eval_batch_size": 1, "workers": 0})
    source = open_run_data(options, first, split, chosen).source
    known = set(source.splits[split])
    if lost := [name for name in images if name not in known]:
        raise RunError(f"run={run}: {len(lost)} of its images are no longer in the data: {lost[0]}")
    return OutOfFold(folder, first, source, list(images), chosen)
