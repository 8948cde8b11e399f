"""Cost of Lightning's loop with all our callbacks, beside a bare loop: python benchmarks/loop.py [rounds=5].

Both train the same network on the same batches with the same loss and optimiser: ``seg.train``, and ten lines that call
model, loss, backward and step. Each measurement is a process of its own, both in turn for several rounds; printed are
medians of the time per step, without the first steps and without validation, of the peak memory, and their ratios.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch

from seg.cli.compose import compose_checked, instantiate_node
from seg.hardware import arrange_memory, keep_freed_memory
from seg.losses.weighted_sum import compute_loss
from seg.training.build import build_data, build_model
from seg.training.run import train

OPTIONS = {"rounds": "5"}
WARM_UP = 10  # steps that are not timed
CASES = {  # name -> options and timed steps
    "tiny: width 2, crops of 32": (["model.width=2", "model.depth=2", "loader.crop=32"], 400),
    "U-Net of width 16, crops of 256": (["model.width=16", "loader.crop=256"], 40),
}
SHARED = ["logger=none", "panels=0", "save_predictions=0", "data.train=8", "data.val=1", "data.test=0", "loader.batch_size=4",
          "trainer=cpu", "trainer.max_epochs=1"]  # fmt: skip


class Clock(L.Callback):
    """Times the steps after the first ones."""

    def __init__(self) -> None:
        self.count, self.started, self.ended = 0, 0.0, 0.0

    def on_train_batch_start(self, *args: object) -> None:
        if self.count == WARM_UP:
            self.started = time.perf_counter()

    def on_train_batch_end(self, *args: object) -> None:
        self.count, self.ended = self.count + 1, time.perf_counter()


def time_ours(words: list[str], steps: int) -> float:
    """Return the seconds per step of seg.train."""
    clock = Clock()
    train(compose_checked("train", words), [clock])
    return (clock.ended - clock.started) / steps


def time_bare(words: list[str], steps: int) -> float:
    """Return the seconds per step of a bare loop."""
    cfg = compose_checked("train", words)
    keep_freed_memory()
    torch.manual_seed(cfg.seed)
    data = build_data(cfg)
    model, loss = build_model(cfg.model).train(), instantiate_node(cfg.loss, "loss")
    arrange_memory(model, channels_last=True)
    optimizer = instantiate_node(cfg.optim, "optim")(model.parameters())
    started = 0.0
    for count, batch in enumerate(data.train_dataloader()):
        if count == WARM_UP:
            started = time.perf_counter()
        logits = model(batch["image"])
        value, _ = compute_loss(loss, [logits.float()], batch["mask"], None, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def measure_one(kind: str, words: list[str], steps: int) -> None:
    """Print the seconds per step and the peak memory of one training, as JSON."""
    seconds = {"ours": time_ours, "bare": time_bare}[kind](words, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "MiB": peak}))


def measure(kind: str, words: list[str], steps: int) -> dict[str, float]:
    """Measure one training in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, str(Path(__file__).resolve()), "one", kind, str(steps), *words]
        done = subprocess.run(line, cwd=place, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    rounds = int((OPTIONS | dict(word.split("=", 1) for word in sys.argv[1:]))["rounds"])
    print("| | ms a step, bare | ours | ratio | MiB, bare | ours | ratio |\n" + "| --- " * 7 + "|")
    for name, (options, steps) in CASES.items():
        samples = 4 * (steps + WARM_UP)
        words = [*SHARED, *options, f"loader.repeats={samples // 8}"]
        taken: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for kind, values in taken.items():
                values.append(measure(kind, words, steps))
        cells = []
        for unit, factor, digits in (("seconds", 1000, 2), ("MiB", 1, 0)):
            bare, ours = (statistics.median(value[unit] for value in taken[kind]) * factor for kind in ("bare", "ours"))  # fmt: skip
            cells += [f"{bare:.{digits}f}", f"{ours:.{digits}f}", f"{ours / bare:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        measure_one(sys.argv[2], sys.argv[4:], int(sys.argv[3]))
    else:
        main()
