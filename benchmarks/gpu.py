"""What a GPU does with our networks, and what each setting adds: python benchmarks/gpu.py [--json FILE].

Some eight minutes on one GPU (--minutes). Where there is none, it says so and ends; --device cpu --small runs all of it
at width 4, which only proves that it runs. First the rate of a large bf16 matrix product is measured; all rates below
are shares of that. Each workload (network, size, batch) is built in several variants, whose loss is compared with
float32 and with each other's over some steps before any is timed; times are taken in turn, for several rounds, and are
medians. A case that fails or runs over its time says why in one line, and the others go on.

Ours against a textbook network in eager bf16 autocast and the default layout, and against MONAI's where it is
installed (pip install monai). The published numbers are NVIDIA's, DeepLearningExamples UNet_Medical for TensorFlow 2
on an A100 80 GB. FLOPs are torch.utils.flop_counter's: 0.90 T for a training image of the paper's U-Net. Dropout is
left out, so that variants can be compared. A training step is forward, binary cross-entropy of each head, backward
and AdamW; data lies on the GPU, but for the section "fed", which trains through our own loader.
"""

import argparse
import contextlib
import gc
import json
import os
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products

import torch
import torch.nn.functional as F
from models import Textbook, monai
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datamodule import DataModule
from seg.data.datasets.membranes import Membranes
from seg.hardware import arrange_memory, fuse_conv_bn, keep_freed_memory
from seg.models import FCN, NestedUNet, UNet, profiling
from seg.models.blocks import crop_centre

STEPS = 4  # that the check follows
RATE = 1.0e-5  # AdamW's; without normalisation its first steps at 1e-4 leave little of the loss
PUBLISHED = (
    "NVIDIA UNet_Medical TF2, A100 80 GB, 572 -> 388: training at batch 8 141 images/s AMP, 63 TF32; "
    "inference at batch 16 463 images/s FP16, 213 TF32"
)
EAGER = 3.0  # s that a case is reckoned with, unless it is compiled

# of kernels by name, the first that fits; a GPU's and, for --device cpu, those of operators
KINDS = {
    "normalisation": r"batch_?norm|bn_fw|bn_bw|cudnn::bn|group_?norm|layer_norm",
    "concatenation": r"CatArray|_cat_|_cat$|aten::cat",
    "layout conversion": r"nchwToNhwc|nhwcToNchw|convertTensor|transpose_readWrite|aten::contiguous|reorder",
    "pointwise, compiled": r"^triton_",
    "optimiser": r"multi_tensor|[Aa]dam",
    "pooling": r"max_pool|avg_pool",
    "convolution": r"conv|gemm|xmma|cutlass|wgrad|dgrad|fprop|nvjet|sm\d\d_|winograd",
    "copies and casts": r"copy|memcpy|memset|Memcpy|Memset|fill|zero_",
    "sums": r"reduce|sum|mean",
    "pointwise": r"elementwise|relu|clamp|threshold|add|mul|div|sigmoid|binary_cross",
}


@dataclass(frozen=True)
class Setting:
    """How a network is run.

    Attributes:
        channels_last: weights and images NHWC.
        search: cudnn.benchmark: the fastest algorithm is looked for.
        fused: AdamW as one kernel.
        graph: the whole step as one CUDA graph.
        compile: torch.compile's mode; None: eager.
        dynamic: compiled for any size.
        half: bf16 autocast on a GPU.
        fold: in inference, batch normalisation goes into the convolutions.
    """

    channels_last: bool = False
    search: bool = False
    fused: bool = False
    graph: bool = False
    compile: str | None = None
    dynamic: bool = False
    half: bool = True
    fold: bool = False


PLAIN = Setting()
EAGER_BEST = Setting(channels_last=True, search=True, fused=True, fold=True)
GRAPH = replace(EAGER_BEST, graph=True)
COMPILED = replace(EAGER_BEST, compile="default")
REDUCED = replace(EAGER_BEST, compile="reduce-overhead")
LADDER = {  # each adds to the one before; the last three each to "+ fused AdamW"
    "plain": PLAIN,
    "channels_last": Setting(channels_last=True),
    "+ cudnn.benchmark": Setting(channels_last=True, search=True),
    "+ fused AdamW": EAGER_BEST,
    "... + CUDA graph": GRAPH,
    "... + compile": COMPILED,
    "... + compile reduce-overhead": REDUCED,
    "as trainer.compile=true": Setting(channels_last=True, compile="default", dynamic=True),
}
INFERENCE = {
    "as seg.predict: float32": Setting(half=False, fold=True),
    "plain": Setting(fold=True),
    "channels_last": Setting(channels_last=True, fold=True),
    "+ cudnn.benchmark": EAGER_BEST,
    "... + CUDA graph": GRAPH,
    "... + compile reduce-overhead": REDUCED,
}
SHORT = {"plain": PLAIN, "eager, best": EAGER_BEST, "... + CUDA graph": GRAPH}


class TextbookPaper(Textbook):
    """The paper's U-Net as tutorials write it: valid convolutions, ReLU, crop, concatenate."""

    @staticmethod
    def double(a: int, b: int) -> nn.Sequential:
        first, second = nn.Conv2d(a, b, 3), nn.Conv2d(b, b, 3)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.fuse, strict=True):
            x = up(x)
            x = block(torch.cat([crop_centre(skips.pop(), *x.shape[-2:]), x], 1))
        return self.head(x)


@dataclass(frozen=True)
class Workload:
    """A network at a size and a batch, and the variants of it that are compared.

    Attributes:
        name: of the network.
        ours: builds it.
        side: px of the square image.
        batch: images.
        training: a training step; else inference.
        settings: variants of ours by name.
        peers: builders by name, each run plainly, and as ours where the name says so.
        profiled: whether it is told where the time goes.
    """

    name: str
    ours: Callable[[], nn.Module]
    side: int
    batch: int
    training: bool
    settings: dict[str, Setting]
    peers: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    profiled: bool = False

    @property
    def title(self) -> str:
        kind = "training" if self.training else "inference"
        return f"{self.name}, {self.side} px, batch {self.batch}, {kind}"

    def variants(self) -> dict[str, tuple[Callable[[], nn.Module], Setting]]:
        """Name -> builder and setting: first the peers, then ours."""
        laid_out = replace(EAGER_BEST, fold=False)
        peers = {
            name: (make, laid_out if name.endswith("as ours") else PLAIN)
            for name, make in self.peers.items()
        }
        return peers | {f"ours, {name}": (self.ours, s) for name, s in self.settings.items()}


@dataclass
class Row:
    """What a variant came to.

    Attributes:
        workload: its title.
        variant: name.
        problem: why there are no numbers, in a line.
        doubt: how it differs from what it should compute, or why it was not profiled; empty: nothing of the sort.
        images: a second.
        ms: of a step.
        mib: peak memory with weights and the optimiser's state; of a CPU only the step's.
        tflops: a second, in T.
        share: of the measured rate of matrix products.
        gap: of the first loss (training) or of a probability, mean (inference), to float32.
        drift: of the loss after some steps to that of the first variant of the same network.
        times: where the time goes, by kind, as shares; "idle": nothing runs.
    """

    workload: str
    variant: str
    problem: str = ""
    doubt: str = ""
    images: float = 0.0
    ms: float = 0.0
    mib: float = 0.0
    tflops: float = 0.0
    share: float = 0.0
    gap: float = 0.0
    drift: float = 0.0
    times: dict[str, float] = field(default_factory=dict)


class Bench:
    """The device, its measured rate, and the time that is left."""

    def __init__(
        self, device: str, minutes: float, rounds: int, seconds: float, compiling: float
    ) -> None:
        self.device, self.rounds, self.seconds = device, rounds, seconds
        self.compiling = compiling  # s that a compilation may take, and is reckoned with
        self.ends = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.rate = 0.0  # of bf16 matrix products, TFLOP/s
        self.other: dict[str, Any] = {}

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, step: Callable[[], object], repeats: int) -> float:
        """Seconds of a call, in a row of so many."""
        self.wait()
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        self.wait()
        return (time.perf_counter() - started) / repeats

    def half(self, wanted: bool = True) -> contextlib.AbstractContextManager:
        """bf16 autocast, on a GPU; without its cache of weights, which a CUDA graph can't have."""
        if not (self.cuda and wanted):
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)

    def repeats(self, step: Callable[[], object]) -> int:
        """Calls that take about ``seconds``."""
        return max(1, min(50, round(self.seconds / max(self.time(step, 1), 1e-6))))

    def measure_rate(self, side: int) -> None:
        """Of square matrices, the best of several rounds."""
        kind = torch.bfloat16 if self.cuda else torch.float32
        a, b = (torch.randn(side, side, device=self.device, dtype=kind) for _ in range(2))
        step = partial(torch.mm, a, b)
        self.time(step, 3)
        self.rate = 2 * side**3 / min(self.time(step, 10) for _ in range(5)) / 1e12


@contextlib.contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Raises TimeoutError in the middle of what takes longer."""

    def over(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(error: BaseException) -> str:
    """An error in a line."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:150]


def heads(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


def loss_of(output: Any, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of the heads, in float32."""
    return torch.stack(
        [F.binary_cross_entropy_with_logits(h.float(), mask) for h in heads(output)]
    ).mean()


class Runner:
    """A variant, ready to be timed.

    Args:
        bench: where it runs.
        workload: what is run.
        make: builds the network.
        setting: how it is run.
        images: (B, 1, H, W).
        mask: (B, 1, H', W') of 0 and 1, of the output's size.
    """

    def __init__(
        self, bench: Bench, workload: Workload, make: Callable[[], nn.Module], setting: Setting,
        images: Tensor, mask: Tensor,
    ) -> None:  # fmt: skip
        self.bench, self.setting, self.training = bench, setting, workload.training
        self.mask = mask
        before = torch.cuda.memory_allocated() if bench.cuda else 0
        torch.manual_seed(0)
        model = make().to(bench.device)
        with torch.no_grad():
            self.model = model.train(self.training)
            first = self.model(images)  # float32, before anything is changed
            self.truth = (
                loss_of(first, mask).item() if self.training else heads(first)[-1].sigmoid()
            )
        del first
        if setting.fold and not self.training:
            self.model = fuse_conv_bn(model)
        arrange_memory(self.model, setting.channels_last)
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.images = images.contiguous(memory_format=layout)
        self.weights = {k: v.to("cpu", copy=True) for k, v in self.model.state_dict().items()}
        self.call: nn.Module = self.model
        if setting.compile:
            self.call = torch.compile(self.model, mode=setting.compile, dynamic=setting.dynamic)
        if self.training:
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), RATE, fused=setting.fused, capturable=setting.graph
            )
        torch.cuda.reset_peak_memory_stats() if bench.cuda else None
        self.step = self.train if self.training else self.infer
        for _ in range(
            3
        ):  # the first allocates, searches and compiles; CUDA graphs are made at the second
            self()
        if setting.graph:
            self.step = self.captured()
            self()
        bench.wait()
        self.mib = (torch.cuda.max_memory_allocated() - before) / 2**20 if bench.cuda else (
            profiling.measure_peak_memory(self) / 2**20
        )  # fmt: skip

    def __call__(self) -> Tensor:
        if self.bench.cuda:
            torch.backends.cudnn.benchmark = self.setting.search
        if self.setting.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        return self.step()

    def train(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.bench.half(self.setting.half):
            output = self.call(self.images)
        loss = loss_of(output, self.mask)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def infer(self) -> Tensor:
        with self.bench.half(self.setting.half):
            return heads(self.call(self.images))[-1]

    def captured(self) -> Callable[[], Tensor]:
        """The step as one CUDA graph."""
        if not self.bench.cuda:
            raise RuntimeError("CUDA graphs need a GPU")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        if self.training:
            self.optimizer.zero_grad(set_to_none=True)  # gradients then lie in the graph's memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.step()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def check(self) -> tuple[float, list[float]]:
        """The gap to float32 as ``Row`` has it, and the losses of some steps from the first weights on."""
        if not self.training:
            return (self().float().sigmoid() - self.truth).abs().mean().item(), []
        with torch.no_grad():  # in place: a CUDA graph holds the addresses
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(self.weights[name])
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        losses = [self().item() for _ in range(STEPS)]
        return abs(losses[0] - self.truth) / abs(self.truth), losses


def doubt(row: Row, losses: list[float]) -> str:
    """What is wrong with what a variant computes; empty: nothing."""
    if not losses:
        return "" if row.gap <= 0.01 else "probabilities aren't float32's"
    if not row.gap <= 0.02:
        return "the first loss isn't float32's"
    if not losses[-1] < losses[0]:
        return f"learns nothing: loss {losses[0]:.4f} to {losses[-1]:.4f}"
    return (
        ""
        if row.drift <= 0.05
        else f"loss {losses[-1]:.4f} after {STEPS} steps, another than plainly"
    )


def run(bench: Bench, workload: Workload, later: float) -> None:
    """All variants of a workload: built, checked, timed in turn, profiled.

    Args:
        bench: that gets the rows.
        workload: what is run.
        later: seconds that what comes after it needs.
    """
    print(f"{workload.title} ...", flush=True)
    torch.manual_seed(1)
    images = torch.randn(workload.batch, 1, workload.side, workload.side, device=bench.device)
    flops: dict[Callable, float] = {}
    runners: dict[str, Runner] = {}
    rows: dict[str, Row] = {}
    first: dict[Callable, list[float]] = {}  # losses of a network's first variant
    variants = workload.variants()
    for name, (make, setting) in variants.items():
        rows[name] = row = Row(workload.title, name)
        bench.rows.append(row)
        limit = bench.compiling if setting.compile else 10 * EAGER
        if bench.left - later < (bench.compiling if setting.compile else EAGER):
            row.problem = "no time left (--minutes)"
            continue
        try:
            with at_most(limit):
                if make not in flops:
                    flops[make] = count(make, workload)
                side = output_side(make, workload.side)
                corner = (torch.arange(side, device=bench.device) // 16 % 2).float()
                mask = (corner[:, None] * corner).expand(workload.batch, 1, -1, -1).contiguous()
                runner = Runner(bench, workload, make, setting, images, mask)
                row.gap, losses = runner.check()
                if losses:
                    known = first.setdefault(make, losses)
                    row.drift = abs(losses[-1] - known[-1]) / known[0]
                row.doubt = doubt(row, losses)
                row.mib = runner.mib
                runners[name] = runner
        except Exception as error:  # whatever a library raises: the row tells it, the others go on
            row.problem = reason(error)
            del error
            tidy(bench)
    times: dict[str, list[float]] = {name: [] for name in runners}
    repeats: dict[str, int] = {}
    for number in range(bench.rounds):
        names = [name for name in runners if not rows[name].problem]
        for name in names[number % len(names) :] + names[: number % len(names)] if names else ():
            try:
                if name not in repeats:
                    repeats[name] = bench.repeats(runners[name])
                times[name].append(bench.time(runners[name], repeats[name]))
            except Exception as error:
                rows[name].problem = reason(error)
    for name, runner in runners.items():
        if (row := rows[name]).problem:
            continue
        seconds = statistics.median(times[name])
        row.ms, row.images = 1000 * seconds, workload.batch / seconds
        row.tflops = flops[variants[name][0]] * row.images / 1e12
        row.share = row.tflops / bench.rate
        if workload.profiled:
            try:
                row.times = shares(bench, runner)
            except Exception as error:
                row.doubt += f" not profiled: {reason(error)}"
    runners.clear()
    runner = None
    tidy(bench, compiled=True)


def tidy(bench: Bench, compiled: bool = False) -> None:
    """Gives back what is held no longer."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()


def output_side(make: Callable[[], nn.Module], side: int) -> int:
    """The side of an image's logits, px."""
    with torch.device("meta"), torch.no_grad():
        return heads(make().eval()(torch.empty(1, 1, side, side)))[-1].shape[-1]


def count(make: Callable[[], nn.Module], workload: Workload) -> float:
    """FLOPs of an image, twice the multiply-adds; nothing is computed for it."""
    with torch.device("meta"):
        model = make().train(workload.training)
        image = torch.empty(2, 1, workload.side, workload.side)  # two: batch norm needs them
        with FlopCounterMode(display=False) as counter:
            output = model(image)
            if workload.training:
                loss_of(output, torch.empty_like(heads(output)[-1])).backward()
    return counter.get_total_flops() / 2


def kind_of(name: str) -> str:
    return next((kind for kind, form in KINDS.items() if re.search(form, name)), "other")


def shares(bench: Bench, runner: Runner, steps: int = 3) -> dict[str, float]:
    """Where the time of some steps goes; on a GPU of its kernels, "idle" when none runs, on a CPU of operators."""
    activity = ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU
    bench.wait()
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            runner()
        bench.wait()
    taken: Counter[str] = Counter()
    if not bench.cuda:
        for event in profiler.key_averages():
            taken[kind_of(event.key)] += event.self_cpu_time_total
        total = sum(taken.values())
        return {kind: value / total for kind, value in taken.most_common()}
    kernels = sorted(
        (event.start_ns(), event.end_ns(), event.name())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    )
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    busy, reached = 0, kernels[0][0]
    for start, end, name in kernels:
        taken[kind_of(name)] += end - start
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    total = reached - kernels[0][0]
    taken["idle"] = total - busy
    return {kind: value / total for kind, value in taken.most_common()}


# name -> builder of a training, by upsampling; what interpolation costs where it must give the same bits
UPS = ("transposed", "bilinear", "nearest", "pixel_shuffle", "unpool")


def determinism(bench: Bench, width: int, side: int, batch: int) -> None:
    """Each upsampling with and without deterministic algorithms: time, and whether two trainings agree to the bit."""
    print("determinism ...", flush=True)
    table: list[dict[str, Any]] = []
    torch.backends.cudnn.benchmark = False  # it may choose otherwise the next time
    images = torch.randn(batch, 1, side, side, device=bench.device)
    mask = (images > 0).float()
    for up in UPS:
        row: dict[str, Any] = {"up": up}
        for deterministic in (False, True):
            kind = "deterministic" if deterministic else "plain"
            try:
                with at_most(10 * EAGER):
                    torch.use_deterministic_algorithms(deterministic)
                    torch.backends.cudnn.deterministic = deterministic
                    step, model = eager_training(bench, lambda up=up: UNet(1, 1, width, up=up), images, mask)  # fmt: skip
                    row[f"{kind}, ms"] = 1000 * statistics.median(
                        bench.time(step, bench.repeats(step)) for _ in range(bench.rounds)
                    )
                    row[f"{kind}, same bits twice"] = twice(bench, up, width, images, mask)
                    del step, model
            except Exception as error:  # an operator without such an algorithm raises
                row[f"{kind}, problem"] = reason(error)
            finally:
                torch.use_deterministic_algorithms(False)
                torch.backends.cudnn.deterministic = False
        table.append(row)
        tidy(bench)
    bench.other["determinism"] = table


def eager_training(
    bench: Bench, make: Callable[[], nn.Module], images: Tensor, mask: Tensor
) -> tuple[Callable[[], object], nn.Module]:
    """A plain step of the laid out network, and the network."""
    torch.manual_seed(0)
    model = make().to(bench.device)
    arrange_memory(model, True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with bench.half():
            output = model(images)
        loss_of(output, mask).backward()
        optimizer.step()

    return step, model


def twice(bench: Bench, up: str, width: int, images: Tensor, mask: Tensor) -> bool:
    """Whether two trainings of a few steps end in the same weights, to the bit."""
    found = []
    for _ in range(2):
        step, model = eager_training(bench, lambda: UNet(1, 1, width, up=up), images, mask)
        for _ in range(STEPS):
            step()
        found.append([tensor.clone() for tensor in model.state_dict().values()])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def fed(bench: Bench, width: int, crop: int, batch: int, workers: int, size: int) -> None:
    """The paper's U-Net trained through our loader: does the GPU wait for data?"""
    print(f"fed by {workers} loader processes ...", flush=True)
    augment = instantiate_node(compose_checked("train", ["augment=elastic"]).augment, "augment")
    source = Membranes(size=size, train=30, val=1, test=0)
    model = UNet(1, 1, width, padding="valid", norm="none")
    side = model.input_side(crop)
    queued = 2 * workers  # batches that the processes have ready
    steps = 120 if bench.cuda else 4
    epoch = batch * (queued + steps + 10)
    torch.backends.cudnn.benchmark = True
    data = DataModule(source, augment, batch_size=batch, crop=crop, repeats=-(-epoch // 30), workers=workers)  # fmt: skip
    data.set_context(side, model.context)
    images = torch.randn(batch, 1, side, side, device=bench.device)
    made_step, _ = eager_training(bench, lambda: UNet(1, 1, width, padding="valid", norm="none"),
                                  images, (images[..., :crop, :crop] > 0).float())  # fmt: skip
    made_step()
    alone = bench.time(made_step, bench.repeats(made_step))
    loader = data.train_dataloader()
    row: dict[str, Any] = {"workers": workers, "batch": batch, "needed, images/s": batch / alone}
    batches = iter(loader)
    for _ in range(queued + 2):  # the processes start, and fill their queues
        next(batches)
    started = time.perf_counter()
    for _ in range(steps):
        next(batches)
    row["loader alone, samples/s"] = steps * batch / (time.perf_counter() - started)
    row |= trained_through(bench, model, iter(loader), steps, queued + 3)
    bench.other["fed"] = row


def trained_through(
    bench: Bench, model: nn.Module, batches: Iterator[dict[str, Tensor]], steps: int, warm: int
) -> dict[str, float]:
    """Images a second, and shares of the time: the host in next(), the GPU at work."""
    model.to(bench.device)
    arrange_memory(model, True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    waited, busy, marks, seen = 0.0, 0.0, [], 0
    started = 0.0
    for number in range(warm + steps):
        if number == warm:
            bench.wait()
            waited, busy, marks, seen, started = 0.0, 0.0, [], 0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        begun = time.perf_counter()
        if bench.cuda:
            marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            marks[-1][0].record()
        image = batch["image"].to(bench.device, non_blocking=True)
        mask = batch["mask"].to(bench.device, non_blocking=True)[:, None].float()
        optimizer.zero_grad(set_to_none=True)
        with bench.half():
            output = model(image)
        mask = crop_centre(mask, *output.shape[-2:])
        loss_of(output, (mask == 1).float()).backward()
        optimizer.step()
        if bench.cuda:
            marks[-1][1].record()
        busy += time.perf_counter() - begun
        seen += len(image)
    bench.wait()
    wall = time.perf_counter() - started
    if bench.cuda:
        busy = sum(first.elapsed_time(last) for first, last in marks) / 1000
    return {
        "trained, images/s": seen / wall,
        "waiting in next(), share of time": waited / wall,
        "GPU at work, share of time": busy / wall,
    }


def workloads(small: bool, batches: list[int]) -> list[Workload]:
    """What is run, the most telling first."""
    w, half = (4, 2) if small else (64, 32)
    paper_side, side = (188, 64) if small else (572, 512)
    big = 2 if small else 8
    many = 2 if small else 16
    textbook, textbook_paper = partial(Textbook, w), partial(TextbookPaper, w)
    paper = partial(UNet, 1, 1, w, padding="valid", norm="none")
    same = partial(UNet, 1, 1, w)
    fcn = partial(FCN, 1, 1, width=w, dropout=0.0)
    peers = {
        "textbook": textbook,
        "textbook, as ours": partial(Textbook, w),
        "MONAI BasicUNet": partial(monai, "BasicUNet", w),
    }
    nested = {"MONAI BasicUNetPlusPlus": partial(monai, "BasicUNetPlusPlus", half)}
    found = []
    for batch in sorted(batches, key=lambda b: b != big):  # NVIDIA's first
        steps = dict(LADDER) if batch == big else SHORT | {"... + compile reduce-overhead": REDUCED}
        found.append(Workload("unet of the paper", paper, paper_side, batch, True, steps,
                              {"textbook": textbook_paper}, batch in (1, big)))  # fmt: skip
    found += [
        Workload("unet", same, side, big, True, SHORT | {"... + compile": COMPILED}, peers, True),
        Workload("unet of the paper", paper, paper_side, many, False, dict(INFERENCE),
                 {"textbook": textbook_paper}),
        Workload("unet", same, side, many, False, dict(INFERENCE), peers, True),
        Workload("unet of the paper", paper, paper_side, 1, False, dict(INFERENCE),
                 {"textbook": textbook_paper}),
    ]  # fmt: skip
    for depth in (4, 3, 2, 1):
        grid = partial(NestedUNet, 1, 1, half, depth)
        pruned = partial(NestedUNet, 1, 1, half, depth, pruned=True)
        rivals = nested if depth == 4 else {}
        steps = SHORT | ({"... + compile": COMPILED} if depth == 4 else {})
        name = f"unetpp L{depth}, width {half}"
        found.append(Workload(name, grid, side, big, True, steps, rivals, depth == 4))
        found.append(Workload(name, pruned, side, big, False, dict(SHORT), rivals))
    found.append(Workload(f"unetpp L4, width {w}", partial(NestedUNet, 1, 1, w, 4), side, big, True, dict(SHORT)))  # fmt: skip
    found.append(Workload("fcn8s", fcn, side, big, True, dict(SHORT)))
    found.append(Workload("fcn8s", fcn, side, big, False, dict(SHORT)))
    return found


def reckoned(workload: Workload) -> float:
    """Seconds that a workload needs without its compilations."""
    eager = [setting for setting in workload.settings.values() if not setting.compile]
    return EAGER * (len(workload.peers) + len(eager))


def tell(bench: Bench, where: str) -> None:
    """The tables, the short one last."""
    tell_profile(bench.rows)
    for row in bench.other.get("determinism", ()):
        parts = (f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("determinism: " + "; ".join(parts))
    if "fed" in bench.other:
        parts = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in bench.other["fed"].items())  # fmt: skip
        print("fed: " + "; ".join(parts))
    print(f"\n{where}; measured rate of matrix products {bench.rate:.1f} TFLOP/s")
    print(PUBLISHED)
    title = ""
    for row in bench.rows:
        if row.workload != title:
            title = row.workload
            base = next(r for r in bench.rows if r.workload == title)
            print(f"\n{title:46}{'images/s':>9}{'ratio':>6}{'ms':>9}{'MiB':>8}{'TFLOP/s':>8}{'share':>6}  gap")  # fmt: skip
            last = base
        if row.problem:
            print(f"  {row.variant:44}{row.problem}")
            continue
        ratio = f"{row.images / base.images:6.2f}" if base.images else f"{'':6}"
        added = (
            f"  {100 * (row.images / last.images - 1):+.0f} % on {last.variant}" if adds(row, last) else ""
        )  # fmt: skip
        print(f"  {row.variant:44}{row.images:9.1f}{ratio}{row.ms:9.2f}{row.mib:8.0f}{row.tflops:8.1f}"
              f"{100 * row.share:5.0f}%  {row.gap:.0e}{added}{'  DOUBT: ' * bool(row.doubt)}{row.doubt}")  # fmt: skip
        if row.variant.startswith("ours") and "..." not in row.variant:
            last = row


def adds(row: Row, last: Row) -> bool:
    """Whether a variant is another one of ours with something more."""
    return row is not last and last.variant.startswith("ours") and last.images > 0


def tell_profile(rows: list[Row]) -> None:
    """Where the time goes, a line a variant."""
    profiled = [row for row in rows if row.times]
    kinds = [k for k in ("idle", *KINDS, "other") if any(row.times.get(k, 0) > 0.005 for row in profiled)]  # fmt: skip
    if profiled:
        print(f"\nwhere the time of a step goes, %: {', '.join(kinds)}; rate of the convolutions alone, % of matrix products")  # fmt: skip
    for row in profiled:
        values = "".join(f"{100 * row.times.get(kind, 0):6.1f}" for kind in kinds)
        alone = 100 * row.share / max(row.times.get("convolution", 0), 1e-9)
        print(f"{values}; {alone:4.0f}  {row.workload}: {row.variant}")
    print()


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="width 4, 64 px: proves that it runs")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all; what is left out says so")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="times in turn, of which the median counts")  # fmt: skip
    parser.add_argument("--batches", type=int, nargs="+", help="of the paper's U-Net in training")
    parser.add_argument("--only", metavar="REGEX", default="", help="workloads whose title it is in; also determinism, fed")  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="leaves out what is compiled")
    parser.add_argument("--compiling", type=float, default=75.0, help="seconds after which a compilation is given up")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes of fed")  # fmt: skip
    parser.add_argument("--json", type=Path, help="file for all numbers")
    return parser.parse_args()


def main() -> None:
    options = asked()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: PyTorch finds no GPU; --device cpu --small proves that it runs")
        return
    keep_freed_memory() if options.device == "cpu" else None
    small = options.small
    bench = Bench(options.device, options.minutes, options.rounds, 0.05 if small else 0.3,
                  options.compiling)  # fmt: skip
    bench.measure_rate(512 if small else 8192)
    todo = workloads(small, options.batches or ([1, 2] if small else [1, 8, 32]))
    todo = [one for one in todo if re.search(options.only, one.title)]
    for one in todo if options.eager else ():
        compiled = [name for name, setting in one.settings.items() if setting.compile]
        for name in compiled:
            del one.settings[name]
    parts: dict[str, Callable[[], None]] = {
        "fed": partial(fed, bench, 4 if small else 64, 4 if small else 388, 2 if small else 8,
                       options.workers, 96 if small else 512),
        "determinism": partial(determinism, bench, 4 if small else 64, 64 if small else 512,
                               2 if small else 8),
    }  # fmt: skip
    parts = {name: part for name, part in parts.items() if re.search(options.only, name)}
    where = torch.cuda.get_device_name() if bench.cuda else f"{torch.get_num_threads()} CPU threads"
    for number, workload in enumerate(todo):
        later = sum(map(reckoned, todo[number + 1 :])) + 30 * len(parts)
        run(bench, workload, later)
        keep(bench, where, options.json)
    for name, part in parts.items():
        if bench.left < 10:
            print(f"{name}: no time left (--minutes)")
            continue
        try:
            with at_most(bench.left + 20):
                part()
        except Exception as error:
            print(f"{name}: {reason(error)}")
        keep(bench, where, options.json)
    tell(bench, where)


def keep(bench: Bench, where: str, file: Path | None) -> None:
    """Writes all numbers found so far: what ends early leaves them."""
    facts = {"device": where, "torch": torch.__version__, "matrix TFLOP/s": bench.rate}
    content = facts | {"rows": [asdict(row) for row in bench.rows]} | bench.other
    if file:
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
