"""Our U-Net and UNet++ against MONAI's and a textbook U-Net: python benchmarks/models.py [width=16] [size=256].

Needs MONAI: pip install monai. Each contestant runs as its own users run it, each in a process of its
own, in turn, for several rounds; printed are medians, ratios to ours, and peak memory of tensors. Ours
is laid out as trainer=auto does it (glibc keeps memory, channels_last on a CPU); the rows "as ours"
give a peer the same, which shows what is layout and what is network. float32 on a CPU, bf16 autocast
on a GPU. A training step is forward, binary cross-entropy of each head, backward and AdamW.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.hardware import arrange_memory, keep_freed_memory
from seg.models import NestedUNet, UNet, profiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = {"width": 16, "size": 256, "batch": 2, "rounds": 3, "steps": 7}


class Textbook(nn.Module):
    """The U-Net of the tutorials: convolution, batch norm, ReLU, twice; eager, in the default layout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(
            self.double(a, b) for a, b in zip([1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.fuse = nn.ModuleList(self.double(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def double(a: int, b: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for c in (a, b):
            layers += [nn.Conv2d(c, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.fuse, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def monai(name: str, width: int) -> nn.Module:
    from monai.networks import nets

    features = (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
    more = {"deep_supervision": True} if name.endswith("PlusPlus") else {}
    return getattr(nets, name)(2, 1, 1, features=features, upsample="deconv", **more)


# name -> (constructor of a width, laid out as ours, trained too)
CONTESTANTS: dict[str, tuple[Callable[[int], nn.Module], bool, bool]] = {
    "unet": (lambda w: UNet(1, 1, w), True, True),
    "unet textbook": (Textbook, False, True),
    "unet textbook, as ours": (Textbook, True, True),
    "unet MONAI": (lambda w: monai("BasicUNet", w), False, True),
    "unet MONAI, as ours": (lambda w: monai("BasicUNet", w), True, True),
    "unetpp L4": (lambda w: NestedUNet(1, 1, w), True, True),
    "unetpp L3": (lambda w: NestedUNet(1, 1, w, 3, pruned=True), True, False),
    "unetpp L2": (lambda w: NestedUNet(1, 1, w, 2, pruned=True), True, False),
    "unetpp L1": (lambda w: NestedUNet(1, 1, w, 1, pruned=True), True, False),
    "unetpp MONAI": (lambda w: monai("BasicUNetPlusPlus", w), False, True),
    "unetpp MONAI, as ours": (lambda w: monai("BasicUNetPlusPlus", w), True, True),
}


def measure(name: str, width: int, size: int, batch: int, steps: int) -> dict[str, float]:
    """Seconds and bytes of a training step and of an inference."""
    make, as_ours, trained = CONTESTANTS[name]
    torch.manual_seed(0)
    if as_ours and DEVICE == "cpu":
        keep_freed_memory()
    model = make(width).to(DEVICE)
    arrange_memory(model, as_ours)
    half = torch.autocast("cuda", torch.bfloat16) if DEVICE == "cuda" else contextlib.nullcontext()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, 1, size, size, device=DEVICE)
    mask = torch.randint(0, 2, images.shape, device=DEVICE).float()

    def train() -> None:
        optimizer.zero_grad()
        with half:
            logits = model(images)
        heads = logits if isinstance(logits, list | tuple) else [logits]
        sum(F.binary_cross_entropy_with_logits(h.float(), mask) for h in heads).backward()
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        with half:
            model(images[:1])

    found = {"parameters": float(profiling.count_parameters(model))}
    if trained:
        found["train s"] = profiling.measure_seconds([train], steps, DEVICE)[0]
        found["train bytes"] = profiling.measure_peak_memory(train, DEVICE)
    model.eval()
    found["infer s"] = profiling.measure_seconds([infer], 2 * steps, DEVICE)[0]
    found["infer bytes"] = profiling.measure_peak_memory(infer, DEVICE)
    return found


def main() -> None:
    options = OPTIONS | {k: int(v) for k, v in (w.split("=") for w in sys.argv[1:] if "=" in w)}
    rounds = options.pop("rounds")
    if len(sys.argv) > 1 and sys.argv[1] in CONTESTANTS:  # a child
        print(json.dumps(measure(sys.argv[1], **options)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    words = [f"{k}={v}" for k, v in options.items()]
    for number in range(rounds):
        names = list(CONTESTANTS)
        for name in names[number:] + names[:number]:
            child = [sys.executable, __file__, name, *words]
            done = subprocess.run(child, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]} (pip install monai)")
            results[name].append(json.loads(done.stdout))
    medians = {
        name: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for name, rows in results.items()
    }
    where = (
        torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{where}; {', '.join(words)}, {rounds} rounds; a time's ratio is to ours of that kind")
    print(
        f"{'':24}{'M par.':>7}{'train ms':>10}{'ratio':>6}{'MiB':>6}{'infer ms':>10}{'ratio':>6}{'MiB':>6}"
    )
    for name, row in medians.items():
        ours = medians["unet" if name.startswith("unet ") or name == "unet" else "unetpp L4"]
        line = f"{name:24}{row['parameters'] / 1e6:7.2f}"
        for kind in ("train", "infer"):
            if f"{kind} s" in row:
                s, size = row[f"{kind} s"], row[f"{kind} bytes"] / 2**20
                line += f"{s * 1000:10.1f}{s / ours[f'{kind} s']:6.2f}{size:6.0f}"
            else:
                line += " " * 22
        print(line)
    judge(medians)


def judge(medians: dict[str, dict[str, float]]) -> None:
    """The goals, and whether the numbers above reach them; peers as their own users run them."""

    def ratio(ours: str, key: str, *peers: str) -> float:
        return min(medians[peer][key] for peer in peers) / medians[ours][key]

    unets = ("unet textbook", "unet MONAI")
    goals = [
        ("U-Net training, fastest peer / ours", ratio("unet", "train s", *unets), 1),
        ("U-Net inference, fastest peer / ours", ratio("unet", "infer s", *unets), 1),
        ("UNet++ L4 training, MONAI / ours", ratio("unetpp L4", "train s", "unetpp MONAI"), 1.3),
        ("UNet++ L4 inference, MONAI / ours", ratio("unetpp L4", "infer s", "unetpp MONAI"), 1.3),
        ("UNet++ L2 inference, MONAI / ours", ratio("unetpp L2", "infer s", "unetpp MONAI"), 4),
        ("U-Net training memory, least peer / ours", ratio("unet", "train bytes", *unets), 1),
        (
            "UNet++ training memory, MONAI / ours",
            ratio("unetpp L4", "train bytes", "unetpp MONAI"),
            1,
        ),
    ]
    for text, value, goal in goals:
        print(f"{text:42} {value:5.2f}, goal {goal}: {'met' if value >= goal else 'NOT met'}")


if __name__ == "__main__":
    main()
