"""Export a trained run as one file for other programs: ``python -m seg.export run=outputs/latest format=onnx``.

The input is the image as stored, the output are class probabilities: normalisation, padding, cropping and activation
are inside. The file is written only if it gives the same as the network in PyTorch at several sizes.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("export")
def main(cfg: DictConfig) -> None:
    """Export the run."""
    from seg.commands.export import export_run  # here: it imports PyTorch

    export_run(cfg)


if __name__ == "__main__":
    main()
