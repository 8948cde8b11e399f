"""Expected scores against true ones, on corrupted images: ``python benchmarks/quality.py FOLDER made isbi2012 vnc camvid``.

For each data set a small network is trained; its validation images calibrate, and the test images are predicted as they
are and under eight corruptions at three strengths, with another data set's images at the end. Rules were chosen on
``made`` (seeds 0 and 1). The same command continues where it stopped.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from seg.api import train
from seg.inference.predictor import Predictor
from seg.inference.tta import normalized_entropy
from seg.logits import classes_from_probabilities
from seg.metrics.calibration import count_probabilities
from seg.metrics.image_features import ImageFeatures

NETWORK = ["model.width=6", "model.depth=3", "trainer=cpu", "logger=none", "panels=0", "save_predictions=0", "loader.crop=96"]  # fmt: skip
MADE = ["data=membranes", "data.size=128", "data.train=16", "data.val=40", "data.test=40"]
FOLDER = ["data=folder", "augment=d4"]
TRAINING = {
    "made": ["trainer.max_epochs=8"],
    "isbi2012": [*FOLDER, "data.classes=[membrane,cell]", "trainer.max_epochs=8", "loader.repeats=3"],
    "vnc": [*FOLDER, "data.classes=[membrane,intracellular,mitochondrion,synapse,glia]", "trainer.max_epochs=10", "loader.repeats=4"],
    "camvid": ["data=folder", "augment=mirror", "data.ignore=[11]", "trainer.max_epochs=12", "loader.repeats=2",
               "data.classes=[sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist]"],
}  # fmt: skip
OTHER = {"made": "camvid", "isbi2012": "camvid", "vnc": "camvid", "camvid": "isbi2012"}
STRENGTHS = (1, 2, 3)


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


KINDS = ("blur", "noise", "brightness", "contrast", "gamma", "jpeg", "shading", "patch")


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
    for split, found in parts.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for stem, image, mask in found:
            Image.fromarray(image).save(root / split / "images" / f"{stem}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{stem}.png")


def cut(stem: str, image: NDArray, mask: NDArray, side: int) -> list[tuple[str, NDArray, NDArray]]:
    """Return the squares of an image with their masks."""
    places = [(top, left) for top in range(0, len(image), side) for left in range(0, len(image), side)]  # fmt: skip
    return [
        (f"{stem}-{t}-{x}", image[t : t + side, x : x + side], mask[t : t + side, x : x + side])
        for t, x in places
    ]


def measure(predictor: Predictor, image: NDArray, mask: NDArray) -> tuple[NDArray, NDArray, float]:
    """Return counts, features and mean entropy of an image."""
    run = predictor.run
    p_CHW = predictor.probabilities(image)
    labels = classes_from_probabilities(p_CHW, run.threshold, run.overlapping)
    counts = count_probabilities(torch.from_numpy(p_CHW)[None], torch.from_numpy(labels)[None], torch.from_numpy(mask)[None])  # fmt: skip
    features = ImageFeatures(*image.shape[:2])
    features.add(0, run.intensity.normalised(run.intensity.scaled(image)))
    found = features.compute()
    assert found is not None
    return counts[0].numpy(), found, float(normalized_entropy(torch.from_numpy(p_CHW)).mean())


def collect(name: str, seed: int, place: Path, data: Path) -> None:
    """Train a network on a data set, and write what it finds in all images to a file."""
    words = [*NETWORK, *TRAINING[name], f"seed={seed}", f"outputs={place}/outputs-{name}-{seed}"]
    if name == "made":
        words += [*MADE, f"data.data_seed={seed}"]
    else:
        root = place / name
        if not root.exists():
            make_folder(name, data, root)
        words += [f"data.root={root}"]
    run = train(*words)
    predictor = run.load(accelerator="cpu")
    from omegaconf import OmegaConf

    from seg.cli.compose import instantiate_node

    source = instantiate_node(OmegaConf.create(predictor.run.config["data"]), "data")
    arrays: dict[str, list] = {}
    splits = {split: [source.read(n) for n in names] for split, names in source.splits.items()}
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        arrays[split] = [measure(predictor, *pair) for pair in splits[split]]
    arrays["clean"] = [measure(predictor, *pair) for pair in splits["test"]]
    for kind in KINDS:
        for strength in STRENGTHS:
            arrays[f"{kind}-{strength}"] = [
                measure(predictor, corrupt(image, kind, strength, rng), mask)
                for image, mask in splits["test"][:40]
            ]
    arrays["other"] = [measure(predictor, image, np.zeros(image.shape[:2], np.uint8)) for image in foreign(OTHER[name], splits["test"][0][0], data)]  # fmt: skip
    flat = {}
    for key, rows in arrays.items():
        flat |= {f"{key}/{part}": np.array(values) for part, values in zip(("counts", "features", "entropy"), zip(*rows, strict=True), strict=True)}  # fmt: skip
    np.savez_compressed(place / f"{name}-{seed}.npz", **flat)


def foreign(name: str, like: NDArray, data: Path) -> list[NDArray]:
    """Return ten images of another data set, with as many channels as an image."""
    if name == "camvid":
        files = sorted((data / "camvid/val/images").iterdir())[:50:5]
        images = [np.array(Image.open(file).convert("L"))[..., None] for file in files]
    else:
        images = [image[..., None] for image in tifffile.imread(data / "isbi2012/train-volume.tif")[:30:3]]  # fmt: skip
    return [np.repeat(image[:256, :256], like.shape[2], 2) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=list(TRAINING))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, help="folder of isbi2012, vnc and camvid")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        for seed in args.seeds:
            if not (args.folder / f"{name}-{seed}.npz").exists():
                collect(name, seed, args.folder, args.data)


if __name__ == "__main__":
    main()
