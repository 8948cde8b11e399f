"""List W&B runs that were recorded offline, and upload them: ``python -m seg.sync send=true``.

W&B records such a run in ``wandb/offline-run-*`` of the run folder, and marks it once it is sent. An online run whose
server was lost lies in ``wandb/run-*``.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("sync")
def main(cfg: DictConfig) -> None:
    from seg.commands.sync import sync  # here: it imports PyTorch

    sync(cfg)


if __name__ == "__main__":
    main()
