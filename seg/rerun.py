"""Train a finished run again, and compare its numbers: ``python -m seg.rerun run=RUN``.

rerun.json in the new run folder has each score then and now, the interval of the difference over images, and what has
changed in between: options, code, versions, data, machine.
"""

import sys

from omegaconf import DictConfig

from seg.cli.command import command


@command("rerun")
def main(cfg: DictConfig) -> None:
    from seg.commands.rerun import rerun  # here: it imports PyTorch

    if rerun(cfg).get("verdict") == "different":
        sys.exit(3)


if __name__ == "__main__":
    main()
