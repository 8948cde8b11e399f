"""Settings of training and prediction on the CPU: python benchmarks/cpu.py [model=unet model.width=16].

Each setting runs in a process of its own, in turn, three rounds; printed are the median time of a training step (batch
of 4 crops of 256x256) and of the prediction of an image of 512x512, and the ratios to the plain setting.
"""

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable

import timing
import torch

from seg.cli.compose import compose_checked, instantiate_node
from seg.hardware import (
    arrange_memory,
    fuse_conv_bn,
    keep_freed_memory,
    prepare_for_inference,
    use_bfloat16,
)
from seg.losses import compute_loss

TRAINING = {  # name -> memory kept, channels_last, bfloat16
    "plain": (False, False, False),
    "memory kept": (True, False, False),
    "memory kept, channels_last": (True, True, False),
    "memory kept, channels_last, bf16-mixed": (True, True, True),
}
PREDICTION = {"float32": False, "bfloat16": True}
REFERENCES = {"a step": "plain", "a prediction": "float32"}


def training_step(words: list[str], keep: bool, channels_last: bool, bfloat16: bool) -> Callable[[], None]:  # fmt: skip
    """Return a function that makes a training step."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    cfg = compose_checked("train", words)
    cfg.model.in_channels, cfg.model.num_classes = 1, 1
    model, loss = instantiate_node(cfg.model, "model"), instantiate_node(cfg.loss, "loss")
    arrange_memory(model, channels_last)
    optimizer = instantiate_node(cfg.optim, "optim")(
        p for p in model.parameters() if p.requires_grad
    )
    image, mask = torch.randn(4, 1, 256, 256), torch.randint(0, 2, (4, 256, 256))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(image)
        heads = [head.float() for head in (logits if isinstance(logits, list) else [logits])]
        compute_loss(loss, heads, mask)[0].backward()
        optimizer.step()

    return step


def prediction(words: list[str], bfloat16: bool) -> Callable[[], object]:
    """Return a function that predicts an image as seg.predict does."""
    torch.manual_seed(0)
    cfg = compose_checked("train", words)
    cfg.model.in_channels, cfg.model.num_classes = 1, 1
    model = fuse_conv_bn(instantiate_node(cfg.model, "model"))
    if bfloat16:
        use_bfloat16(model)
    prepare_for_inference(model, "cpu")
    image = torch.randn(1, 1, 512, 512)
    return torch.inference_mode()(lambda: model(image))


def call_times(kind: str, name: str, calls: int, words: list[str]) -> list[float]:
    """Seconds of each call but the first two."""
    call = (
        training_step(words, *TRAINING[name])
        if kind == "a step"
        else prediction(words, PREDICTION[name])
    )
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times[2:]


def measure(
    words: tuple[str, ...] = ("model=unet", "model.width=16"), rounds: int = 3, steps: int = 14
) -> list[timing.Row]:
    rows = []
    for kind, settings in {"a step": TRAINING, "a prediction": PREDICTION}.items():
        children = {
            name: functools.partial(timing.run_child, __file__, kind, name, steps, *words)
            for name in settings
        }
        taken = timing.call_in_turn(children, rounds)
        times = {
            f"{kind}, {name}": list(itertools.chain(*values)) for name, values in taken.items()
        }
        rows += timing.compare(times, f"{kind}, {REFERENCES[kind]}", "ms", 1000)
    return rows


def main() -> None:
    if len(sys.argv) > 3 and sys.argv[1] in REFERENCES:  # a child: one setting
        kind, name, calls, *words = sys.argv[1:]
        print(json.dumps(call_times(kind, name, int(calls), words)))
        return
    words = tuple(sys.argv[1:]) or ("model=unet", "model.width=16")
    print(f"{timing.describe_machine()}\n\n{timing.table({' '.join(words): measure(words)})}")


if __name__ == "__main__":
    main()
