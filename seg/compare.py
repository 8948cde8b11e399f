"""Compare many runs: ``python -m seg.compare outputs/sweeps/SWEEP group_by=model,loss``.

Prints a table of the ranked groups with the significance of their differences, and writes compare.csv, one row
for each run, and compare.html, a page that needs no network.
"""

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.list_arguments import list_overrides


@command("compare", list_overrides)
def main(cfg: DictConfig) -> None:
    from seg.commands.compare import compare_runs  # here: it imports PyTorch

    compare_runs(cfg)


if __name__ == "__main__":
    main()
