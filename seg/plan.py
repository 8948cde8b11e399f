"""Choose the settings of a training: ``python -m seg.plan data=folder data.root=DATA data.classes=[a,b] budget=30m``.

Measures the data and the speed of this machine, and prints each setting with its reason. Writes them as a file for
``python -m seg.train --config-dir . experiment=plan``, and prints them as one line to type.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("plan")
def main(cfg: DictConfig) -> None:
    from seg.commands.plan import plan_training  # here: it imports PyTorch

    plan_training(cfg)


if __name__ == "__main__":
    main()
