"""Draw training samples: ``python -m seg.show data=membranes augment=strong n=16``.

Takes every option of seg.train and shows the first samples of that training: each as its crop alone, as the
network receives it after augmentation, and with its mask.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg.cli.command import command
from seg.display.console import quiet
from seg.errors import UserError
from seg.training.sample_sheet import contact_sheet, cropped_as_trained

log = logging.getLogger("seg")
SUFFIXES = (".png", ".jpg", ".jpeg")


def show(cfg: DictConfig) -> Path:
    """Write the picture and return its file.

    Raises:
        UserError: for an option out of its range.
    """
    quiet()
    file = Path(cfg.output)
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"output={cfg.output}: a picture is needed, {' or '.join(SUFFIXES)}")
    if cfg.n < 1 or cfg.epoch < 0:
        raise UserError(f"n={cfg.n} and epoch={cfg.epoch}: give n from 1, epoch from 0")
    data = cropped_as_trained(cfg)
    page = contact_sheet(data, cfg.n, cfg.epoch)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file)
    log.info(f"crops      {data.sampling}")
    log.info(f"pictures   {file}, {page.width}x{page.height} px")
    return file


@command("show")
def main(cfg: DictConfig) -> None:
    show(cfg)


if __name__ == "__main__":
    main()
