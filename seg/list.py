"""List runs and remove some: ``python -m seg.list outputs clean=failed,superseded``.

Prints a row for each run: status, score, size, age. With ``clean`` it prints what would be removed, and
``apply=true`` removes it.
"""

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.list_arguments import list_overrides


@command("list", list_overrides)
def main(cfg: DictConfig) -> None:
    from seg.commands.list import list_runs  # here: it imports PyTorch

    list_runs(cfg)


if __name__ == "__main__":
    main()
