"""Our U-Net and UNet++ against MONAI's and a textbook U-Net: python benchmarks/models.py [width=16] [size=256].

Needs MONAI: pip install monai. Each contestant runs as its own users run it, each in a process of its
own, in turn, for several rounds; printed are medians, ratios to ours, and peak memory of tensors. Ours
is laid out as trainer=auto does it (glibc keeps memory, channels_last on a CPU); the rows "as ours"
give a peer the same, which shows what is layout and what is network. float32 on a CPU, bf16 autocast
on a GPU. A training step is forward, binary cross-entropy of each head, backward and AdamW.
"""

import functools
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec

import timing
import torch
from peers import Textbook, build_steps, monai
from torch import nn

from seg.hardware import arrange_memory, keep_freed_memory
from seg.models import NestedUNet, Network, UNet, profiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = {"unet": "unet", "unetpp": "unetpp L4"}  # which the others of a kind are compared with
OPTIONS = {"width": 16, "size": 256, "batch": 2, "rounds": 3, "steps": 7}


def checkpointed(model: Network) -> Network:
    """The network with ``trainer.checkpoint_activations``."""
    model.checkpoint_activations = True
    return model


# name -> (constructor of a width, laid out as ours, trained too)
CONTESTANTS: dict[str, tuple[Callable[[int], nn.Module], bool, bool]] = {
    "unet": (lambda w: UNet(1, 1, w), True, True),
    "unet checkpointed": (lambda w: checkpointed(UNet(1, 1, w)), True, True),
    "unet textbook": (Textbook, False, True),
    "unet textbook, as ours": (Textbook, True, True),
    "unet MONAI": (lambda w: monai("BasicUNet", w), False, True),
    "unet MONAI, as ours": (lambda w: monai("BasicUNet", w), True, True),
    "unetpp L4": (lambda w: NestedUNet(1, 1, w), True, True),
    "unetpp checkpointed": (lambda w: checkpointed(NestedUNet(1, 1, w)), True, True),
    "unetpp L3": (lambda w: NestedUNet(1, 1, w, 3, pruned=True), True, False),
    "unetpp L2": (lambda w: NestedUNet(1, 1, w, 2, pruned=True), True, False),
    "unetpp L1": (lambda w: NestedUNet(1, 1, w, 1, pruned=True), True, False),
    "unetpp MONAI": (lambda w: monai("BasicUNetPlusPlus", w), False, True),
    "unetpp MONAI, as ours": (lambda w: monai("BasicUNetPlusPlus", w), True, True),
}


def measure_one(name: str, width: int, size: int, batch: int, steps: int) -> dict[str, float]:
    """Seconds and bytes of a training step and of an inference."""
    make, as_ours, trained = CONTESTANTS[name]
    torch.manual_seed(0)
    if as_ours and DEVICE == "cpu":
        keep_freed_memory()
    model = make(width).to(DEVICE)
    arrange_memory(model, as_ours)
    images = torch.randn(batch, 1, size, size, device=DEVICE)
    train, _ = build_steps(model, images, half=DEVICE == "cuda")
    _, infer = build_steps(model, images[:1], half=DEVICE == "cuda")
    found = {"parameters": float(profiling.count_parameters(model))}
    if trained:
        found["train s"] = profiling.measure_seconds([train], steps, DEVICE)[0]
        found["train bytes"] = profiling.measure_peak_memory(train, DEVICE)
    model.eval()
    found["infer s"] = profiling.measure_seconds([infer], 2 * steps, DEVICE)[0]
    found["infer bytes"] = profiling.measure_peak_memory(infer, DEVICE)
    return found


def take_medians(rounds: int, **options: int) -> dict[str, dict[str, float]]:
    """Return the medians of each contestant; without MONAI, its networks are left out."""
    words = [f"{k}={v}" for k, v in options.items()]
    here = [n for n in CONTESTANTS if "MONAI" not in n or find_spec("monai")]
    children = {n: functools.partial(timing.run_child, __file__, n, *words) for n in here}
    return timing.medians(timing.call_in_turn(children, rounds))


def measure(**options: int) -> list[timing.Row]:
    """Return the times beside those of our network of the same kind."""
    found = take_medians(**(OPTIONS | options))
    return [
        timing.Row(f"{name}, {title}", f"{ours}, {title}", 1000 * row[key], "ms", row[key] / found[ours][key])
        for name, row in found.items()
        for key, title in (("train s", "training"), ("infer s", "inference"))
        if key in row
        for ours in (OURS[name.split()[0]],)
    ]  # fmt: skip


def main() -> None:
    options = OPTIONS | {k: int(v) for k, v in (w.split("=") for w in sys.argv[1:] if "=" in w)}
    if len(sys.argv) > 1 and sys.argv[1] in CONTESTANTS:  # a child
        del options["rounds"]
        print(json.dumps(measure_one(sys.argv[1], **options)))
        return
    if not find_spec("monai"):
        sys.exit("MONAI is missing: pip install monai")
    found = take_medians(**options)
    print(f"{timing.describe_machine()}\n{options}; the ratio of a time is to ours of that kind\n")
    headers = ["", "M parameters"]
    headers += ["training step, ms", "ratio", "MiB", "inference, ms", "ratio", "MiB"]
    rows = []
    for name, row in found.items():
        ours = found[OURS[name.split()[0]]]
        cells = [name, f"{row['parameters'] / 1e6:.2f}"]
        for kind in ("train", "infer"):
            if (key := f"{kind} s") in row:
                mib = row[f"{kind} bytes"] / 2**20
                cells += [f"{row[key] * 1000:.1f}", f"{row[key] / ours[key]:.2f}", f"{mib:.0f}"]
            else:
                cells += [""] * 3
        rows.append(cells)
    print(timing.markdown(headers, rows) + "\n")
    judge(found)


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
