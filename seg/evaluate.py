"""Evaluate a run on a split or on other data: ``python -m seg.evaluate run=outputs/latest data.split=test``."""

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.resource_errors import explain_errors


@command("evaluate")
def main(cfg: DictConfig) -> None:
    from seg.commands.evaluate import evaluate  # here: it imports PyTorch

    demand = f"evaluating, eval_batch_size={cfg.eval_batch_size}"
    with explain_errors(demand, "lower tile, eval_batch_size or workers"):
        evaluate(cfg)


if __name__ == "__main__":
    main()
