"""Check a data set before training: ``python -m seg.check data=folder data.root=DATA``.

Reads every image and mask and lists every issue with its remedy: errors (exit code 2) and warnings (0). Writes
check.json with all statistics and issues, and sheet.png, images with their masks laid over.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("check")
def main(cfg: DictConfig) -> None:
    from seg.commands.check import check_data  # here: it imports PyTorch

    check_data(cfg)


if __name__ == "__main__":
    main()
