"""Settings of a training step on the CPU, against the plain one: python benchmarks/cpu.py [model=unet].

Each setting runs in a process of its own, in turn, three rounds; printed are the median time of a step
(batch of 4 crops of 256x256, width 16, float32) and its ratio to the plain setting.
"""

import statistics
import subprocess
import sys
import time

import torch

from seg.cli.compose import compose_checked, instantiate_node
from seg.hardware import arrange_memory, keep_freed_memory
from seg.losses import compute_loss

SETTINGS = {
    "plain": (False, False),
    "memory kept": (True, False),
    "memory kept, channels_last": (True, True),
}


def step_times(model_name: str, keep: bool, channels_last: bool, steps: int = 14) -> list[float]:
    """Seconds of each step but the first two."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    cfg = compose_checked("train", [model_name])
    cfg.model.in_channels, cfg.model.num_classes = 1, 1
    model, loss = instantiate_node(cfg.model, "model"), instantiate_node(cfg.loss, "loss")
    arrange_memory(model, channels_last)
    optimizer = instantiate_node(cfg.optim, "optim")(
        p for p in model.parameters() if p.requires_grad
    )
    image, mask = torch.randn(4, 1, 256, 256), torch.randint(0, 2, (4, 256, 256))
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        logits = model(image)
        compute_loss(loss, logits if isinstance(logits, list) else [logits], mask)[0].backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return times[2:]


def main() -> None:
    model = next((w for w in sys.argv[1:] if w.startswith("model=")), "model=unet")
    if len(sys.argv) > 2:  # a child: one setting
        print(*step_times(model, *SETTINGS[sys.argv[2]]))
        return
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(3):
        for name in SETTINGS:
            child = [sys.executable, __file__, model, name]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            times[name] += [float(t) for t in done.stdout.split()]
    plain = statistics.median(times["plain"])
    print(f"{model}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<28} {median * 1000:7.0f} ms a step   {median / plain:.2f} of plain")


if __name__ == "__main__":
    main()
