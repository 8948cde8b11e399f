"""Draw training samples: ``python -m seg.show data=membranes augment=strong n=16``.

Takes every option of seg.train and shows the first samples of that training: each as its crop alone, as the
network receives it after augmentation, and with its mask.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("show")
def main(cfg: DictConfig) -> None:
    from seg.commands.show import draw_samples  # here: it imports PyTorch

    draw_samples(cfg)


if __name__ == "__main__":
    main()
