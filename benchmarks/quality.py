"""Expected scores against true ones, on corrupted images: ``python benchmarks/quality.py FOLDER made isbi2012 vnc camvid``.

For each data set a small network is trained, whose validation images calibrate; at most 40 test images are predicted as
they are and under eight corruptions at three strengths, and ten images of another data set at the end. Printed are two
tables. The same command continues where it stopped.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage

from seg.api import train
from seg.cli.compose import instantiate_node
from seg.inference.predictor import Predictor
from seg.inference.quality import ImageMeter, class_counts, expected_quality
from seg.inference.tta import normalized_entropy
from seg.logits import classes_from_probabilities
from seg.metrics.expected_scores import true_scores

NETWORK = ["model.width=6", "model.depth=3", "trainer=cpu", "logger=none", "panels=0", "save_predictions=0", "loader.crop=96"]  # fmt: skip
MADE = ["data=membranes", "data.size=128", "data.train=16", "data.val=40", "data.test=40"]
FOLDER = ["data=folder", "augment=d4"]
TRAINING = {
    "made": ["trainer.max_epochs=8"],
    "isbi2012": [*FOLDER, "data.classes=[membrane,cell]", "trainer.max_epochs=8", "loader.repeats=3"],
    "vnc": [*FOLDER, "data.classes=[membrane,intracellular,mitochondrion,synapse,glia]", "trainer.max_epochs=10", "loader.repeats=4"],
    "camvid": ["data=folder", "augment=mirror", "data.ignore=[11]", "trainer.max_epochs=8", "loader.repeats=2",
               "data.classes=[sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist]"],
}  # fmt: skip
OTHER = {"made": "camvid", "isbi2012": "camvid", "vnc": "camvid", "camvid": "isbi2012"}
STRENGTHS = (1, 2, 3)
KINDS = ("blur", "noise", "brightness", "contrast", "gamma", "jpeg", "shading", "patch")
MOST = 40  # test images


def corrupt(image: NDArray, kind: str, strength: int, rng: np.random.Generator) -> NDArray:
    """Return an image (H, W, C) uint8 under a corruption."""
    x, (height, width, _) = image.astype(np.float32), image.shape
    level = strength - 1
    if kind == "blur":
        sigma = (0.7, 1.5, 3)[level]
        x = ndimage.gaussian_filter(x, (sigma, sigma, 0))
    elif kind == "noise":
        x = x + rng.normal(0, (10, 25, 50)[level], x.shape)
    elif kind == "brightness":
        x = x + rng.choice([-1, 1]) * (15, 35, 70)[level]
    elif kind == "contrast":
        x = x.mean() + (x - x.mean()) * (0.75, 0.5, 0.25)[level]
    elif kind == "gamma":
        x = 255 * (x / 255) ** (1.3, 1.8, 3)[level]
    elif kind == "jpeg":
        stream = io.BytesIO()
        Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=(40, 15, 5)[level])
        x = np.array(Image.open(stream)).reshape(image.shape)
    elif kind == "shading":
        across = np.linspace(-1, 1, width)[None, :, None] * rng.choice([-1, 1])
        x = x * (1 + (0.15, 0.35, 0.7)[level] * across)
    elif kind == "patch":
        side = round((0.15, 0.3, 0.5)[level] * min(height, width))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        x = x.copy()
        x[top : top + side, left : left + side] = 0
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def make_folder(name: str, data: Path, root: Path) -> None:
    """Write train, val and test images and masks of a real data set, cut or halved."""
    parts: dict[str, list[tuple[str, NDArray, NDArray]]] = {"train": [], "val": [], "test": []}
    if name == "isbi2012":
        images, masks = (tifffile.imread(data / f"isbi2012/train-{kind}.tif") for kind in ("volume", "labels"))  # fmt: skip
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            split = "train" if i < 8 else "val" if i < 19 else "test"
            parts[split] += cut(f"{i:02d}", image, (mask > 0).astype(np.uint8), 256)
    elif name == "vnc":
        for i, file in enumerate(sorted((data / "vnc/images").iterdir())):
            mask = np.array(Image.open(data / "vnc/masks" / file.name))
            split = "train" if i < 4 else "val" if i < 7 else "test"
            parts[split] += cut(file.stem, np.array(Image.open(file)), mask, 256)
    else:
        for part in ("train", "val"):
            for i, file in enumerate(sorted((data / "camvid" / part / "images").iterdir())):
                mask = np.array(Image.open(data / "camvid" / part / "masks" / file.name))[::2, ::2]
                image = np.array(Image.open(file).resize(mask.shape[::-1], Image.Resampling.BOX))
                split = "test" if part == "val" else "train" if i < 92 else "val"
                parts[split].append((file.stem, image, mask))
    table = ["image,mask,split,group"]
    for split, found in parts.items():
        table += [f"{split}/images/{stem}.png,{split}/masks/{stem}.png,{split},{stem[:2]}" for stem, _, _ in found]  # fmt: skip
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for stem, image, mask in found:
            Image.fromarray(image).save(root / split / "images" / f"{stem}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{stem}.png")
    (root / "table.csv").write_text("\n".join(table) + "\n")


def cut(stem: str, image: NDArray, mask: NDArray, side: int) -> list[tuple[str, NDArray, NDArray]]:
    """Return the squares of an image with their masks."""
    places = [(top, left) for top in range(0, len(image), side) for left in range(0, len(image), side)]  # fmt: skip
    return [
        (f"{stem}-{t}-{x}", image[t : t + side, x : x + side], mask[t : t + side, x : x + side])
        for t, x in places
    ]


def measure(
    predictor: Predictor, image: NDArray, mask: NDArray
) -> tuple[list, list, list, float, float]:
    """Return true Dice, expected Dice and half width of each class, distance, and 1 - mean entropy of an image."""
    run = predictor.run
    quality = run.quality
    assert quality is not None
    p_CHW = predictor.probabilities(image)
    labels = classes_from_probabilities(p_CHW, run.threshold, run.overlapping)
    meter = ImageMeter(*image.shape[:2], quality.shift, quality.scale, run.overlapping)
    meter.add(0, image, p_CHW, labels, mask)
    assert meter.counts_CTPB is not None
    counts_CTPB = class_counts(meter.counts_CTPB, len(run.classes))
    found = expected_quality(quality, counts_CTPB, meter.features.compute())
    true = [float(true_scores(counts[None]).dice[0]) for counts in counts_CTPB]
    value = [np.nan if s.value is None else s.value for s in found.dice]
    inside = [np.nan if s.low is None or s.high is None else float(s.low <= t <= s.high) for s, t in zip(found.dice, true, strict=True)]  # fmt: skip
    certainty = 1 - float(normalized_entropy(torch.from_numpy(p_CHW)).mean())
    return true, value, inside, found.distance or 0.0, certainty


def collect(name: str, seed: int, place: Path, data: Path) -> None:
    """Train a network on a data set, and write what is found in all images to a file."""
    words = [*NETWORK, *TRAINING[name], f"seed={seed}", f"outputs={place}/outputs-{name}-{seed}"]
    if name == "made":
        words += [*MADE, f"data.data_seed={seed}"]
    else:
        if not (place / name).exists():
            make_folder(name, data, place / name)
        grouped = name == "isbi2012"  # the squares of a section are a group
        words += [f"data.table={place / name / 'table.csv'}" if grouped else f"data.root={place / name}"]  # fmt: skip
    predictor = train(*words).load(accelerator="cpu")
    source = instantiate_node(OmegaConf.create(predictor.run.config["data"]), "data")
    names = source.splits["test"]
    images = [source.read(names[i * len(names) // MOST] if len(names) > MOST else names[i]) for i in range(min(MOST, len(names)))]  # fmt: skip
    rng, rows = np.random.default_rng(seed), {}
    rows["none"] = [measure(predictor, *pair) for pair in images]
    for kind in KINDS:
        for strength in STRENGTHS:
            rows[f"{kind} {strength}"] = [
                measure(predictor, corrupt(image, kind, strength, rng), mask)
                for image, mask in images
            ]
    others = foreign(OTHER[name], images[0][0], data)
    rows["other"] = [measure(predictor, image, np.zeros(image.shape[:2], np.uint8)) for image in others]  # fmt: skip
    (place / f"{name}-{seed}.json").write_text(json.dumps(rows))


def foreign(name: str, like: NDArray, data: Path) -> list[NDArray]:
    """Return ten images of another data set, with as many channels as an image."""
    if name == "camvid":
        files = sorted((data / "camvid/val/images").iterdir())[:50:5]
        images = [np.array(Image.open(file).convert("L"))[..., None] for file in files]
    else:
        images = [image[..., None] for image in tifffile.imread(data / "isbi2012/train-volume.tif")[:30:3]]  # fmt: skip
    return [np.repeat(image[:256, :256], like.shape[2], 2) for image in images]


class Images:
    """Measurements of images.

    Args:
        rows: of ``measure``.
    """

    def __init__(self, rows: list) -> None:
        self.true, self.value, self.inside = (np.array([row[i] for row in rows], float) for i in range(3))  # fmt: skip
        self.distance, self.certainty = (np.array([row[i] for row in rows]) for i in (3, 4))
        both = ~np.isnan(self.true + self.value)
        with np.errstate(invalid="ignore"):
            self.means = [(np.where(both, x, 0).sum(1) / both.sum(1)) for x in (self.true, self.value)]  # fmt: skip

    def cells(self, chosen: NDArray) -> list[str]:
        """Return cells of a table for some of the images."""
        true, value = self.means
        some = chosen & ~np.isnan(true)
        correlations = [f"{np.corrcoef(true[some], x[some])[0, 1]:.2f}" for x in (value, self.certainty)]  # fmt: skip
        inside = self.inside[chosen]
        inside = inside[~np.isnan(inside)]
        return [str(chosen.sum()), f"{true[some].mean():.3f}", f"{value[some].mean():.3f}", *correlations,
                f"{inside.mean():.3f} of {len(inside)}" if len(inside) else "none"]  # fmt: skip


def print_tables(found: dict[str, dict[str, list]]) -> None:
    """Print a table of data sets and one of corruptions."""
    print("| data | images | number | true Dice | expected | correlation | of 1 - mean entropy | in the interval |")  # fmt: skip
    print("| --- " * 8 + "|")
    for name, rows in found.items():
        clean = Images(rows["none"])
        every = Images([row for key, part in rows.items() if key != "other" for row in part])
        known = every.distance <= 1
        for label, images, chosen in (
            ("as they are", clean, np.ones(len(clean.distance), bool)),
            ("with corruptions, known", every, known),
            ("with corruptions, not known", every, ~known),
            ("with corruptions, all", every, known | True),
        ):
            print(f"| {name} | {label} | {' | '.join(images.cells(chosen))} |")
    print(f"\n| corruption | {' | '.join(found)} |")
    print("| --- " * (len(found) + 1) + "|")
    for key in next(iter(found.values())):
        cells = []
        for rows in found.values():
            images = Images(rows[key])
            far, true, value = (images.distance > 1).mean(), *(np.nanmean(m) for m in images.means)
            inside = images.inside[~np.isnan(images.inside)]
            held = f", {inside.mean():.2f} held" if len(inside) else ""
            scores = "" if key == "other" else f", {value:.2f} for {true:.2f}"
            cells.append(f"{100 * far:.0f} %{held}{scores}")
        print(f"| {key} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=list(TRAINING))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, help="folder of isbi2012, vnc and camvid")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list]] = {}
    for name in args.names:
        rows: dict[str, list] = {}
        for seed in args.seeds:
            file = args.folder / f"{name}-{seed}.json"
            if not file.exists():
                collect(name, seed, args.folder, args.data)
            for key, part in json.loads(file.read_text()).items():
                rows[key] = rows.get(key, []) + part
        found[name] = rows
    print_tables(found)


if __name__ == "__main__":
    main()
