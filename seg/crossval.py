"""Cross-validate: train every fold, and score each image with the network that did not train on it.

``python -m seg.crossval data=folder data.root=DATA data.classes=[a,b]`` writes, below ``output``, a run folder per
fold, the out-of-fold masks and probabilities, and crossval.json with all scores. seg.predict and seg.evaluate use the
folder as an ensemble of its folds. The same command continues with the unfinished folds; typed
several times, several workers share them.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("crossval")
def main(cfg: DictConfig) -> None:
    from seg.commands.crossval import crossval  # here: it imports PyTorch

    crossval(cfg)


if __name__ == "__main__":
    main()
