"""Train a network: ``python -m seg.train model=unetpp loss=bce_dice``.

The run is composed from conf/. It trains, scores the best checkpoint, and writes a run folder, which all other
commands read. ``-m`` with comma-separated values runs a sweep.
"""

from omegaconf import DictConfig

from seg.cli.command import command


@command("train", sweeper="seg.multirun.sweeper")
def main(cfg: DictConfig) -> bool | None:
    from seg.multirun import sweeper  # here: it imports PyTorch
    from seg.runs.run_info import is_sweep_job
    from seg.training.dry_run import dry_run
    from seg.training.run import train

    if is_sweep_job():
        return sweeper.run_job(cfg, train)
    if cfg.dry:
        dry_run(cfg)
        return None
    train(cfg)
    return None


if __name__ == "__main__":
    main()
