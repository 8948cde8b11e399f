"""Compare UNet++ at each depth, and write a small one: ``python -m seg.prune run=outputs/latest depth=2``.

A head at depth d needs only part of the grid (Zhou et al. 2018, figure 1c): the table shows the scores and costs of each
depth, and ``depth`` writes a checkpoint of that part alone.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("prune")
def main(cfg: DictConfig) -> None:
    """Compare the depths."""
    from seg.inference.pruning import compare_depths  # here: it imports PyTorch

    compare_depths(cfg)


if __name__ == "__main__":
    main()
