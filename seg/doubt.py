"""Find labels that are wrong: ``python -m seg.doubt run=outputs/cv``.

Compares the masks of a cross-validation with its out-of-fold probabilities, and ranks the regions whose labels these
contradict. Writes doubt.csv, outlines and pictures; with ``reviewed=doubt.csv`` corrected copies of the masks.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("doubt")
def main(cfg: DictConfig) -> None:
    from seg.commands.doubt import doubt_labels  # here: it imports PyTorch

    doubt_labels(cfg)


if __name__ == "__main__":
    main()
