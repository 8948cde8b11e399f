"""Choose what to annotate next: ``python -m seg.next run=outputs/latest input=UNLABELLED output=OUT n=20``.

Chooses unlabelled images at random, or by their expected Dice and by how unlike the labelled images and each other they
are. Writes a table, a sheet of pictures, and copies of the images with predicted masks to correct.
"""

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.resource_errors import explain_errors


@command("next")
def main(cfg: DictConfig) -> None:
    """Choose the images; if memory runs out, name the options that need less."""
    from seg.commands.next import queue_images  # here: it imports PyTorch

    activity = f"predicting, tile={cfg.tile} and batch={cfg.batch}"
    with explain_errors(
        activity, "lower tile or batch; a smaller tile has more overlap to compute"
    ):
        queue_images(cfg)


if __name__ == "__main__":
    main()
