"""What metrics and losses cost beside a training step: ``python benchmarks/metrics.py``.

A step is forward, bce_dice, backward and AdamW on 4 crops of 256x256 px, float32. Beside it, on the same
batch: counting the metrics, the same by torchmetrics' own confusion matrix, the optional ones, and each
loss with its gradient. Rounds are interleaved; printed are medians and their ratio to a step of model=unet.

``python benchmarks/metrics.py growth``: what the scores of a split and their intervals cost by images and classes.
"""

import sys
import time
from collections.abc import Callable

import timing
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datasets.membranes import Membranes
from seg.hardware import arrange_memory, keep_freed_memory
from seg.logits import predicted_classes
from seg.losses import ClDice, CrossEntropy, Dice, Focal, Lovasz, WeightMap, compute_loss
from seg.metrics import SegmentationMetrics
from seg.metrics.confusion import PixelScores
from seg.metrics.significance import bootstrap_intervals

STEP = "a step of model=unet"


def step_of(model_name: str, image: Tensor, mask: Tensor) -> Callable[[], None]:
    """A whole training step of a model at its default width."""
    cfg = compose_checked("train", [f"model={model_name}"])
    cfg.model.in_channels, cfg.model.num_classes = 1, 1
    model, loss = instantiate_node(cfg.model, "model"), instantiate_node(cfg.loss, "loss")
    arrange_memory(model, channels_last=True)
    optimizer = instantiate_node(cfg.optim, "optim")(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        logits = model(image)
        compute_loss(loss, logits if isinstance(logits, list) else [logits], mask)[0].backward()
        optimizer.step()

    return step


def counting(mask: Tensor, logits: Tensor, **choice: object) -> Callable[[], None]:
    metrics = SegmentationMetrics(["membrane", "cell"], **choice)

    def count() -> None:
        metrics.update(logits, mask)
        metrics.reset()

    return count


def gradient(loss: torch.nn.Module, logits: Tensor, mask: Tensor, *more: Tensor) -> Callable:
    return lambda: loss(logits, mask, *more).backward()


def growth() -> None:
    """Print the seconds of counting, of the scores and of their intervals: they grow with images x classes."""
    print("images classes   counting    scores  intervals, s")
    for images, classes in ((100, 20), (300, 20), (300, 50), (300, 150), (1000, 150)):
        scores = PixelScores([f"class-{k}" for k in range(classes)])
        truth = torch.randint(0, classes, (images, 1, 32, 32))
        prediction = torch.where(
            torch.rand(truth.shape) < 0.6, truth, torch.randint(0, classes, truth.shape)
        )
        started = time.perf_counter()
        for predicted, mask in zip(prediction, truth, strict=True):
            scores.update(predicted, mask)
        counted = time.perf_counter()
        scores.compute()
        computed = time.perf_counter()
        bootstrap_intervals(scores.bootstrap_inputs())
        parts = counted - started, computed - counted, time.perf_counter() - computed
        print(f"{images:6} {classes:7} " + " ".join(f"{seconds:10.2f}" for seconds in parts))


def measure(rounds: int = 9, size: int = 256) -> list[timing.Row]:
    keep_freed_memory()
    torch.manual_seed(0)
    source = Membranes(size=size, train=4, val=1, test=0)
    pairs = [source.read(name) for name in source.splits["train"]]
    image = torch.stack(
        [torch.from_numpy(i[..., 0]).float().sub(128).div(50)[None] for i, _ in pairs]
    )
    mask = torch.stack([torch.from_numpy(m).long() for _, m in pairs])
    logits = torch.randn(4, 1, size, size)
    learnt = torch.randn(4, 1, size, size, requires_grad=True)
    peer = MulticlassConfusionMatrix(2, ignore_index=255, validate_args=False)
    weights = WeightMap()
    gaps = torch.stack([torch.from_numpy(weights.gaps(m)) for _, m in pairs])
    works: dict[str, Callable] = {
        STEP: step_of("unet", image, mask),
        "a step of model=unetpp": step_of("unetpp", image, mask),
        "metrics=standard": counting(mask, logits),
        "  torchmetrics' confusion matrix": lambda: peer.update(predicted_classes(logits), mask),
        "  with calibration": counting(mask, logits, calibration=True),
        "metrics=full (borders on the CPU)": counting(mask, logits, calibration=True, tolerance=2.0, hausdorff=True),
        "cross-entropy": gradient(CrossEntropy(), learnt, mask),
        "Dice": gradient(Dice(), learnt, mask),
        "focal": gradient(Focal(), learnt, mask),
        "Lovasz": gradient(Lovasz(), learnt, mask),
        "clDice": gradient(ClDice(), learnt, mask),
        "weight map, kept": gradient(weights, learnt, mask, gaps),
        "weight map, computed anew": gradient(weights, learnt, mask),
    }  # fmt: skip
    return timing.compare(timing.time_in_turn(works, rounds, warm_up=2), STEP, "ms", 1000)


def main() -> None:
    print(f"{timing.describe_machine()}\n\n{timing.table({'4 crops of 256 px': measure()})}")


if __name__ == "__main__":
    growth() if sys.argv[1:] == ["growth"] else main()
