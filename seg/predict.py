"""Segment images with a trained run: ``python -m seg.predict run=outputs/latest input=IMAGES output=OUT``.

An image of any size goes through in bands of tiles, and its results grow on disk: memory doesn't depend on its
height. The same command continues where an interrupted one stopped.
"""

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.resource_errors import explain_errors


@command("predict")
def main(cfg: DictConfig) -> None:
    """Predict the files; if memory runs out, name the options that need less."""
    from seg.inference.file_prediction import predict_files  # here: it imports PyTorch

    activity = f"predicting, tile={cfg.tile} and batch={cfg.batch}"
    with explain_errors(
        activity, "lower tile or batch; a smaller tile has more overlap to compute"
    ):
        predict_files(cfg)


if __name__ == "__main__":
    main()
