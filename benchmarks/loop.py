"""Cost of Lightning's loop with all our callbacks, beside a bare loop: python benchmarks/loop.py [rounds=5].

Both train the same network on the same batches with the same loss and optimiser: ``seg.train``, and ten lines that call
model, loss, backward and step. Each measurement is a process of its own, both in turn for several rounds; printed are
medians of the time per step, without the first steps and without validation, of the peak memory, and their ratios.
"""

import functools
import json
import sys
import tempfile
import time

import lightning as L
import timing
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
          "trainer.max_epochs=1"]  # fmt: skip


class Clock(L.Callback):
    """Times so many steps after the first ones; a GPU is waited for at both ends only."""

    def __init__(self, steps: int) -> None:
        self.last = WARM_UP + steps
        self.count, self.started, self.ended = 0, 0.0, 0.0

    def on_train_batch_start(self, *args: object) -> None:
        if self.count == WARM_UP:
            timing.wait_for_gpu()
            self.started = time.perf_counter()

    def on_train_batch_end(self, *args: object) -> None:
        self.count += 1
        if self.count == self.last:
            timing.wait_for_gpu()
            self.ended = time.perf_counter()


def time_ours(words: list[str], steps: int) -> float:
    """Return the seconds per step of seg.train."""
    clock = Clock(steps)
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


def measure_one(kind: str, steps: int, words: list[str]) -> dict[str, float]:
    """Return the seconds per step of one training, and MiB at the peak of this process and on a GPU."""
    seconds = {"ours": time_ours, "bare": time_bare}[kind](words, steps)
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return {"seconds": seconds, "MiB": timing.process_memory("VmHWM"), "GPU MiB": gpu}


def run_one(kind: str, steps: int, options: list[str]) -> dict[str, float]:
    """Measure one training in a process and a folder of its own."""
    repeats = (steps + WARM_UP) // 2  # 8 images, batches of 4
    words = [*SHARED, f"loader.repeats={repeats}", *options]
    with tempfile.TemporaryDirectory() as place:
        return timing.run_child(__file__, "one", kind, steps, *words, cwd=place)


def measure(rounds: int = 5, cases: dict[str, tuple[list[str], int]] = CASES) -> list[timing.Row]:
    rows = []
    for name, (options, steps) in cases.items():
        calls = {
            f"{name}, {kind}": functools.partial(run_one, kind, steps, [*options, "trainer=cpu"])
            for kind in ("bare", "ours")
        }
        taken = timing.call_in_turn(calls, rounds)
        for quantity, unit, factor in (("seconds", "ms a step", 1000), ("MiB", "MiB", 1)):
            values = {key: [one[quantity] for one in found] for key, found in taken.items()}
            rows += timing.compare(values, f"{name}, bare", unit, factor)
    return rows


def main() -> None:
    rounds = int((OPTIONS | dict(word.split("=", 1) for word in sys.argv[1:]))["rounds"])
    print(f"{timing.describe_machine()}\n\n{timing.table({'loop': measure(rounds)})}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(measure_one(sys.argv[2], int(sys.argv[3]), sys.argv[4:])))
    else:
        main()
