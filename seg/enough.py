"""Tell what more labelled images would bring: ``python -m seg.enough data=folder data.root=DATA data.classes=[a,b]``.

Trains on nested subsets of the training images with several seeds, fits a power law to the error, and says what twice
the images would bring, with an interval. Writes a run folder for each training, enough.json, enough.csv and enough.png
below ``output``. The same command continues; typed several times, several workers share the trainings.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("enough")
def main(cfg: DictConfig) -> None:
    from seg.commands.enough import measure_enough  # here: it imports PyTorch

    measure_enough(cfg)


if __name__ == "__main__":
    main()
