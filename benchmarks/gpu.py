"""Training and inference on a GPU, beside other implementations: python benchmarks/gpu.py [PIECE ...] [--smoke].

Pieces, all of them by default, each under ten minutes on one GPU:

train   a training step of U-Net 64 (572 px and 512 px), UNet++ 32 and FCN-8s, in bf16 as ``trainer=auto`` computes it,
        beside a textbook network (float32, and bf16 autocast) and MONAI's where it is installed (pip install monai)
infer   the same for inference; ours also as ``seg.predict`` computes it, in float32
loader  whether the GPU waits for our loader: a step on a batch in its memory, the loader alone, and both together
auto    what ``seg.train trainer=auto`` takes, beside the same training with one option changed

Candidates are timed in turn for several rounds; printed are medians. The share is of the rate of a large bf16 matrix
product, measured first; FLOPs are those of torch.utils.flop_counter. Peak memory is that of tensors in a step, without
weights and the optimiser's state. Dropout is left out. Published for comparison: NVIDIA's UNet_Medical for TensorFlow 2
on an A100 80 GB, 572 px, trains 141 images/s at batch 8 (AMP) and infers 463 images/s at batch 16 (FP16).

Without a GPU, --smoke runs every piece on the CPU with tiny networks. This shows only that it runs.
"""

import argparse
import gc
import os
import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import loop
import peers
import timing
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datamodule import DataModule
from seg.data.datasets.membranes import Membranes
from seg.hardware import arrange_memory, fuse_conv_bn, pick_precision
from seg.models import FCN, NestedUNet, UNet, profiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = {"train": 8, "infer": 16}  # as NVIDIA's
REFERENCE = "textbook, bf16"


class Size(NamedTuple):
    """Sizes of what is measured."""

    width: int  # channels of the first level; UNet++ has half
    valid_side: int  # px of the image of the paper's U-Net
    side: int  # px of the image of the others
    batch: int | None  # images; None: BATCH
    matrix: int  # rows and columns of the matrix product
    repeats: int  # calls that are timed at once
    rounds: int
    steps: int  # of the loader in a round, and of a training of ``auto``


FULL = Size(64, 572, 512, None, 8192, 10, 5, 100)
SMOKE = Size(2, 188, 32, 2, 64, 1, 1, 2)


class Candidate(NamedTuple):
    """An implementation of a network, and how it is computed."""

    make: Callable[[], nn.Module]
    half: bool  # bf16 autocast, else float32
    channels_last: bool = False
    fused: bool = False  # batch normalisation goes into the convolutions


class Contest(NamedTuple):
    """A network, and other implementations of it."""

    name: str
    side: int  # px of the square image
    ours: Callable[[], nn.Module]
    textbook: Callable[[], nn.Module]
    monai: Callable[[], nn.Module] | None = None

    def candidates(self, piece: str) -> dict[str, Candidate]:
        found = {"ours, bf16": Candidate(self.ours, True, channels_last=True)}
        if piece == "infer":
            on_cpu = DEVICE == "cpu"
            found["ours as seg.predict"] = Candidate(self.ours, False, on_cpu, fused=True)
        if self.monai and find_spec("monai"):
            found["MONAI, bf16"] = Candidate(self.monai, True)
        found[REFERENCE] = Candidate(self.textbook, True)
        return found | {"textbook, float32": Candidate(self.textbook, False)}


def list_contests(size: Size) -> list[Contest]:
    w, half, side = size.width, size.width // 2, size.side
    paper = partial(UNet, 1, 1, w, padding="valid", norm="none")
    fcn = partial(FCN, 1, 1, width=w, dropout=0.0)
    basic, nested = (partial(peers.monai, f"BasicUNet{kind}") for kind in ("", "PlusPlus"))
    return [
        Contest(f"U-Net {w} of the paper", size.valid_side, paper, partial(peers.TextbookPaper, w)),
        Contest(f"U-Net {w}", side, partial(UNet, 1, 1, w), partial(peers.Textbook, w), partial(basic, w)),
        Contest(f"UNet++ {half}", side, partial(NestedUNet, 1, 1, half), partial(peers.TextbookNested, half),
                partial(nested, half)),
        Contest(f"FCN-8s {w}", side, fcn, partial(peers.TextbookFCN, w)),
    ]  # fmt: skip


def measure_rate(side: int) -> float:
    """Return the FLOP/s of a bf16 product of square matrices."""
    a, b = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    product = {"": lambda: a @ b}
    times = timing.time_in_turn(product, 5, 2, repeats=10, synchronize=timing.wait_for_gpu)
    return 2 * side**3 / statistics.median(times[""])


def count_flops(make: Callable[[], nn.Module], side: int, training: bool) -> float:
    """Return the FLOPs of an image, twice the multiply-adds; nothing is computed for it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = make().train(training)
        output = model(torch.empty(2, 1, side, side))  # two: batch normalisation needs them
        if training:
            sum(head.sum() for head in peers.heads_of(output)).backward()
    return counter.get_total_flops() / 2


def build_call(one: Candidate, images: Tensor, piece: str) -> Callable[[], None]:
    """Return a training step or an inference of a candidate."""
    torch.manual_seed(0)
    model = one.make().to(DEVICE).train(piece == "train")
    model = fuse_conv_bn(model) if one.fused else model
    arrange_memory(model, one.channels_last)
    layout = torch.channels_last if one.channels_last else torch.contiguous_format
    train, infer = peers.build_steps(model, images.contiguous(memory_format=layout), one.half)
    return train if piece == "train" else infer


def measure_contest(contest: Contest, piece: str, size: Size, rate: float) -> list[list[str]]:
    """Return the cells of each candidate; one that does not fit into the memory says so."""
    batch = size.batch or BATCH[piece]
    images = torch.randn(batch, 1, contest.side, contest.side, device=DEVICE)
    title = f"{contest.name}, {contest.side} px, batch {batch}"
    calls, memory, missing = {}, {}, []
    for name, one in (found := contest.candidates(piece)).items():
        try:
            call = build_call(one, images, piece)
            memory[name] = profiling.measure_peak_memory(call, DEVICE) / 2**20
            calls[name] = call
        except torch.OutOfMemoryError:
            missing.append([title, name, "out of memory", *[""] * 5])
    options = {"repeats": size.repeats, "synchronize": timing.wait_for_gpu}
    times = timing.time_in_turn(calls, size.rounds, **options)
    lines = []
    reference = REFERENCE if REFERENCE in calls else "ours, bf16"
    for name, _, ms, _, ratio in timing.compare(times, reference, "ms", 1000):
        speed = 1000 * batch / ms  # images/s
        flops = speed * count_flops(found[name].make, contest.side, piece == "train")
        lines.append([title, name, f"{ms:.2f}", f"{ratio:.3f}", f"{speed:.1f}", f"{memory[name]:.0f}",
                      f"{flops / 1e12:.3g}", f"{flops / rate:.1%}"])  # fmt: skip
    return lines + missing


def measure_networks(piece: str, size: Size) -> str:
    rate = measure_rate(size.matrix)
    lines = []
    for contest in list_contests(size):
        lines += measure_contest(contest, piece, size, rate)
        gc.collect()
        torch.cuda.empty_cache()
    headers = ["network", "candidate", "ms", "ratio", "images/s", "MiB", "TFLOP/s", "share"]
    told = f"bf16 matrix product: {rate / 1e12:.3g} TFLOP/s; ratios are to {REFERENCE}"
    return f"{told}\n\n{timing.markdown(headers, lines)}"


def measure_loader(size: Size, workers: int) -> str:
    """Train the paper's U-Net on elastically deformed crops: the loader and the step, each alone and together."""
    batch = size.batch or BATCH["train"]
    model = UNet(1, 1, size.width, padding="valid", norm="none")
    crop = size.valid_side - 2 * model.context
    augment = instantiate_node(compose_checked("train", ["augment=elastic"]).augment, "augment")
    queued = 2 * workers + 1  # batches that the processes may have ready
    samples = 3 * (size.rounds + 1) * (queued + size.steps) * batch
    source = Membranes(size=max(crop, 96), train=8, val=1, test=0)
    data = DataModule(source, augment, batch_size=batch, crop=crop, repeats=samples // 8 + 1, workers=workers)  # fmt: skip
    data.set_context(size.valid_side, model.context)
    batches = iter(data.train_dataloader())
    arrange_memory(model.to(DEVICE).train(), channels_last=True)
    images = next(batches)["image"].to(DEVICE, memory_format=torch.channels_last)
    step, _ = peers.build_steps(model, images, half=True)

    def fed() -> None:
        images.copy_(next(batches)["image"], non_blocking=True)
        step()

    def time_emptied(call: Callable[[], object]) -> float:
        for _ in range(queued):  # otherwise the first batches take no time
            next(batches)
        return timing.time_call(call, size.steps, synchronize=timing.wait_for_gpu)

    calls = {"step alone": step, "loader alone": lambda: next(batches), "step and loader": fed}
    turns = {name: partial(time_emptied, call) for name, call in calls.items()}
    times = timing.call_in_turn(turns, size.rounds, warm_up=1)
    rows = timing.compare(times, "step alone", "ms", 1000)
    told = f"{workers} processes, batch {batch}: the GPU is at work {min(1, 1 / rows[2].ratio):.0%} of the time"
    return f"{told}\n\n{timing.table({'loader': rows})}"


def measure_auto(size: Size, workers: int) -> str:
    """Train a U-Net with ``trainer=auto`` and with one option changed, each in a process of its own."""
    precision, why = pick_precision("auto", DEVICE)
    channels_last = DEVICE == "cpu" or precision != "32-true"
    other = "bf16-mixed" if precision == "32-true" else "32-true"
    changed = ["", f"trainer.precision={other}", f"trainer.channels_last={str(not channels_last).lower()}",
               "trainer.deterministic=true", "model.up=bilinear", "model.up=bilinear trainer.deterministic=true"]  # fmt: skip
    changed += [] if size is SMOKE else ["trainer.compile=true"]  # needs a compiler, and a minute
    words = [f"model.width={size.width}", f"loader.crop={size.side}", f"data.size={max(size.side, 64)}",
             f"loader.workers={workers}", "trainer=auto"]  # fmt: skip
    runs = {}
    for word in changed:
        line = [*words, *word.split()]
        runs[f"auto {word}".strip()] = partial(loop.run_one, "ours", size.steps, line)
    taken = timing.call_in_turn(runs, min(size.rounds, 2))
    rows = []
    peak = "GPU MiB" if DEVICE == "cuda" else "MiB"
    for quantity, unit, factor in (("seconds", "ms a step", 1000), (peak, "MiB", 1)):
        values = {name: [one[quantity] for one in found] for name, found in taken.items()}
        rows += timing.compare(values, "auto", unit, factor)
    told = f"trainer=auto: {precision} ({why}), channels_last={str(channels_last).lower()}"
    return f"{told}\n\n{timing.table({f'U-Net {size.width}, {size.side} px': rows})}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help="train, infer, loader or auto")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also without a GPU")
    parser.add_argument("--batch", type=int, help="images; otherwise 8 in training, 16 in inference")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the loader")  # fmt: skip
    options = parser.parse_args()
    size = SMOKE if options.smoke else FULL._replace(batch=options.batch)
    pieces: dict[str, Callable[[], str]] = {
        "train": partial(measure_networks, "train", size),
        "infer": partial(measure_networks, "infer", size),
        "loader": partial(measure_loader, size, options.workers),
        "auto": partial(measure_auto, size, options.workers),
    }
    if unknown := set(options.pieces) - set(pieces):
        parser.error(f"{', '.join(sorted(unknown))}: the pieces are {', '.join(pieces)}")
    if DEVICE == "cpu" and not options.smoke:
        print("skipped: PyTorch finds no GPU; --smoke shows that it runs")
        return
    print(timing.describe_machine())
    for name in options.pieces or pieces:
        print(f"\n## {name}\n\n{pieces[name]()}", flush=True)


if __name__ == "__main__":
    main()
