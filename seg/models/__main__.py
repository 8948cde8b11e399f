"""Print the layers of a network: ``python -m seg.models model=unet data.size=572``.

They are listed in the order in which they run, with output sizes, parameters and multiply-adds. The network is built on
PyTorch's meta device, so that no width or size takes time or memory.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("models")
def main(cfg: DictConfig) -> None:
    from seg.commands.models import show_network  # here: it imports PyTorch

    show_network(cfg)


if __name__ == "__main__":
    main()
