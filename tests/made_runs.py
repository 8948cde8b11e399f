"""Run folders as seg.train leaves them, without training: for the tests and the benchmark of seg.compare."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

Counts = dict[
    str, dict[str, dict[str, tuple[int, int, int]]]
]  # split -> image -> class -> hit, false, missed


def wrong(
    count: int, pixels: int = 100, classes: tuple[str, ...] = ("membrane", "cell")
) -> dict[str, tuple]:
    """An image of two classes of so many pixels each, of which ``count`` of each are taken for the other.

    Dice of each class: 2 (pixels - count) / (2 (pixels - count) + 2 count) = 1 - count / pixels.
    """
    return {name: (pixels - count, count, count) for name in classes}


def spread(per_image: list[int], **options: Any) -> dict[str, dict[str, tuple]]:
    """Images a, b, c ... with so many wrong pixels each."""
    return {f"image-{i:03d}": wrong(count, **options) for i, count in enumerate(per_image)}


def scores(images: dict[str, dict[str, tuple]], prefix: str) -> dict[str, float]:
    """Final metrics by the textbook: pooled over images, then the mean over classes."""
    classes = list(next(iter(images.values())))
    found: dict[str, float] = {}
    for name, formula in (
        ("dice", lambda h, f, m: 2 * h / (2 * h + f + m)),
        ("iou", lambda h, f, m: h / (h + f + m)),
    ):
        each = {
            c: formula(*(sum(image[c][k] for image in images.values()) for k in range(3)))
            for c in classes
        }
        found[f"{prefix}{name}"] = sum(each.values()) / len(each)
        found |= {f"{prefix}{name}/{c}": value for c, value in each.items()}
    own = [
        np.mean([2 * h / (2 * h + f + m) for h, f, m in image.values()])
        for image in images.values()
    ]
    return found | {
        f"{prefix}dice_per_image": float(np.mean(own)),
        f"{prefix}loss": 1 - found[f"{prefix}dice"],
    }


def make_run(
    folder: Path,
    counts: Counts,
    *,
    choices: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    epochs: int = 4,
    status: str = "finished",
    pictures: int = 0,
    **record: Any,
) -> Path:
    """A run folder.

    Args:
        folder: made.
        counts: of the scored splits; final metrics follow.
        choices: of config groups, beside unet and bce_dice.
        config: merged into the config's top level.
        seed: of the run.
        epochs: of two rows each, validation and rate.
        status: of run.json; only a finished run has final metrics.
        pictures: kept of each split.
        **record: replaces what run.json says; None leaves it out.
    """
    folder.mkdir(parents=True)
    chosen = {
        "data": "membranes",
        "model": "unet",
        "loss": "bce_dice",
        "optim": "adamw",
        "trainer": "auto",
    } | (choices or {})
    tree = {
        "data": {"_target_": "seg.data.datasets.membranes.Membranes", "size": 64},
        "model": {"_target_": f"seg.models.{chosen['model']}", "width": 16, "in_channels": 1},
        "loss": {"_target_": f"seg.losses.{chosen['loss']}"},
        "optim": {"_target_": "torch.optim.AdamW", "lr": 0.003, "betas": [0.9, 0.999]},
        "trainer": {"_target_": "seg.training.trainer.build_trainer", "max_epochs": epochs},
        "logger": {"_target_": "seg.training.loggers.no_logger"}, "seed": seed, "name": None, "outputs": str(folder.parent),
    } | (config or {})  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    steps = 2 * epochs
    final = {
        k: v
        for s, images in counts.items()
        for k, v in scores(images, f"{'best/' * (s == 'val')}{s}/").items()
    }
    classes = list(
        dict.fromkeys(c for images in counts.values() for image in images.values() for c in image)
    )
    content = {
        "status": status, "name": folder.name, "group": "sweep", "job": None, "choices": chosen, "seed": seed,
        "overrides": [f"model={chosen['model']}", f"seed={seed}"], "classes": classes, "colors": [[255, 0, 0]] * len(classes),
        "parameters": 1_000_000, "splits": {"train": ["t"]} | {split: list(images) for split, images in counts.items()},
        "split_hash": "0f0f", "data": {"fingerprint": "feed"}, "command": ["python", "-m", "seg.train"],
        "started": "2026-11-27T00:00:00+0000", "versions": {"python": "3.11", "torch": "2.13.0"},
        "git": {"commit": "c0ffee", "dirty": False}, "hardware": {"cpus": 2, "gpus": []},
    }  # fmt: skip
    if status == "finished":
        content |= {"minutes": 2.0, "steps": steps, "threshold": 0.5, "metrics": final}
        write_counts(folder, counts)
    content = {k: v for k, v in (content | record).items() if v is not None}
    (folder / "run.json").write_text(json.dumps(content, indent=2))
    write_curves(folder, epochs, final if status == "finished" else {})
    for split, images in counts.items() if pictures else ():
        write_pictures(folder / "predictions", split, list(images)[:pictures], len(classes))
    return folder


def write_counts(folder: Path, counts: Counts) -> None:
    with (folder / "images.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("split", "image", "class", "hit", "false", "missed"))
        for split, images in counts.items():
            writer.writerows(
                (split, i, c, *three) for i, image in images.items() for c, three in image.items()
            )


def write_curves(folder: Path, epochs: int, final: dict[str, float]) -> None:
    """Dice .5, .6, ... in training; then the scoring of the best checkpoint, which is no part of the curve."""
    test = [key for key in final if key.startswith("test/")]
    columns = ["step", "val/dice", "val/loss", "epoch", "images_per_second", "lr", *test]
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        for epoch in range(epochs):
            at = {"step": 2 * epoch + 1, "epoch": epoch}
            writer.writerow(
                at
                | {
                    "val/dice": round(0.5 + 0.4 * epoch / max(epochs - 1, 1), 3),
                    "val/loss": round(1 / (epoch + 1), 3),
                }
            )
            writer.writerow(at | {"images_per_second": 10 + epoch, "lr": 0.001})
        if final:
            at = {"step": 2 * epochs, "epoch": epochs}
            writer.writerow(at | {"val/dice": 0.123, "val/loss": 9.0})
            writer.writerow(at | {key: final[key] for key in test})


def write_pictures(folder: Path, split: str, names: list[str], classes: int) -> None:
    """Small ones: a ramp, and palette masks."""
    place = folder / split
    place.mkdir(parents=True)
    file = folder / "names.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {split: names}))
    grey = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    for i in range(len(names)):
        Image.fromarray(grey).save(place / f"{i}-image.jpg")
        for what, shift in (("truth", 0), ("prediction", i + 1)):
            mask = Image.fromarray(
                (np.roll(grey, shift, axis=1) // 32 % max(classes, 2)).astype(np.uint8), "P"
            )
            mask.putpalette([20, 60, 120, 255, 190, 60])
            mask.save(place / f"{i}-{what}.png")
