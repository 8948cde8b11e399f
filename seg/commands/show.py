"""Implementation of ``python -m seg.show``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import files
from seg.cli.command_line import quote_path
from seg.display.console import configure_logging
from seg.errors import UserError
from seg.training.sample_sheet import draw_sample_sheet, open_training_data

log = logging.getLogger("seg")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def draw_samples(cfg: DictConfig) -> Path:
    """Write the picture and return its file.

    Raises:
        UserError: for an option out of its range.
    """
    # Check the output before the data is read
    configure_logging()
    file = Path(cfg.output)
    if file.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(
            f"output={cfg.output}: a picture is needed, {' or '.join(PICTURE_SUFFIXES)}"
        )
    files.check_writable(file.parent, file.parent, [file.name], f"output={file}")
    # Draw the crops as training would take them, and write the picture whole or not at all
    data = open_training_data(cfg)
    page = draw_sample_sheet(data, cfg.n, cfg.epoch)
    files.make_folder(file.parent, file.parent)
    with files.atomic_write(file, file.parent) as aside:
        page.save(aside)
    log.info(f"crops      {data.describe_crops}")
    log.info(f"pictures   {quote_path(file)}, {page.width}x{page.height} px")
    return file
