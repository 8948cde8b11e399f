"""Our loader against MONAI's CacheDataset and a textbook Dataset: python benchmarks/data.py [images=30] [workers=2].

MONAI takes part where it is installed (pip install monai). Thirty grey PNGs of 512x512 with masks of 0 and 255; crops of 256, in batches of 8, go
through flips, rotation (+-30 degrees), an elastic deformation, brightness and contrast, and normalisation, each with
probability 1 but the flips. Every contestant crops before it transforms, as its users can, and runs in a process of
its own, in turn, for several rounds; printed are medians of the samples a second once it runs, of the seconds from
the constructor to the first batch, and ratios to ours. The elastic deformation is each library's own: ours the U-Net
paper's coarse grid, MONAI's a grid too (Rand2DElasticd), albumentations' a blurred noise (ElasticTransform with the
alpha and sigma of its documentation's medical example); "textbook, our elastic" has ours.

python benchmarks/data.py many: what 100,000 small images cost to open, and how the loader processes' own memory grows.
"""

import functools
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import timing
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from seg.data.augment import CoarseElastic
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.datasets.membranes import Membranes

OPTIONS = {"images": 30, "workers": 2, "batches": 60, "rounds": 3}
CROP, BATCH, MIRROR = 256, 8, cv2.BORDER_REFLECT_101
MEAN, STD = 0.49, 0.17


def changes(elastic: A.BasicTransform) -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        A.Affine(rotate=(-30, 30), border_mode=MIRROR, p=1),
        elastic,
        A.RandomBrightnessContrast(p=1),
    ]


def ours(root: Path, workers: int) -> Iterable:
    source = Folder(str(root), ["membrane", "cell"], values={0: 0, 255: 1}, val=0.1)
    augment = A.Compose(changes(CoarseElastic(p=1)))
    return DataModule(
        source, augment, batch_size=BATCH, crop=CROP, repeats=4, workers=workers
    ).train_dataloader()


class Textbook(Dataset):
    """The Dataset of the tutorials: opens both files for each sample."""

    def __init__(self, root: Path, elastic: A.BasicTransform) -> None:
        self.images, self.masks = (sorted((root / p).iterdir()) for p in ("images", "masks"))
        crop = A.RandomCrop(CROP, CROP)
        to_network = [A.Normalize(MEAN, STD), A.ToTensorV2()]
        self.transform = A.Compose([crop, *changes(elastic), *to_network])

    def __len__(self) -> int:
        return 4 * len(self.images)

    def __getitem__(self, index: int) -> dict:
        index //= 4
        image = np.array(Image.open(self.images[index]).convert("L"))[..., None]
        mask = (np.array(Image.open(self.masks[index])) > 0).astype(np.int32)
        out = self.transform(image=image, mask=mask)
        return {"image": out["image"], "mask": out["mask"].long()}


def textbook(root: Path, workers: int, elastic: A.BasicTransform) -> Iterable:
    samples = Textbook(root, elastic)
    return DataLoader(
        samples, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def monai(root: Path, workers: int) -> Iterable:
    from monai import transforms as T
    from monai.data import CacheDataset
    from monai.data import DataLoader as MonaiLoader

    both = ["image", "mask"]
    modes = {"mode": ["bilinear", "nearest"], "padding_mode": "reflection"}
    pipeline = T.Compose(
        [
            T.LoadImaged(both, reader="PILReader"),
            T.EnsureChannelFirstd(both),
            T.ScaleIntensityRanged(both, 0, 255, 0, 1),
            T.RandSpatialCropd(both, (CROP, CROP), random_size=False),
            T.RandFlipd(both, 0.5, 0),
            T.RandFlipd(both, 0.5, 1),
            T.RandRotated(both, np.deg2rad(30), prob=1, **modes),
            T.Rand2DElasticd(both, (128, 128), (5, 15), prob=1, **modes),
            T.RandScaleIntensityd("image", 0.2, prob=1),
            T.RandShiftIntensityd("image", 0.2, prob=1),
            T.NormalizeIntensityd("image", MEAN, STD),
        ]
    )
    pairs = zip(*(sorted((root / p).iterdir()) for p in ("images", "masks")), strict=True)
    items = [{"image": str(i), "mask": str(m)} for i, m in pairs]
    cached = ConcatDataset([CacheDataset(items, pipeline, progress=False)] * 4)
    return MonaiLoader(
        cached, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


CONTESTANTS: dict[str, Callable[[Path, int], Iterable]] = {
    "ours": ours,
    "textbook": lambda r, w: textbook(r, w, A.ElasticTransform(120, 6, border_mode=MIRROR, p=1)),
    "textbook, our elastic": lambda r, w: textbook(r, w, CoarseElastic(p=1)),
    "MONAI CacheDataset": monai,
}


def measure_one(name: str, root: Path, workers: int, batches: int) -> dict[str, float]:
    """Seconds to the first batch, and samples a second over ``batches`` after the first epoch."""
    if name.startswith("MONAI"):
        importlib.import_module("monai.data")  # no part of what is timed
    started = time.perf_counter()
    loader = CONTESTANTS[name](root, workers)
    stream = endless(loader)
    batch = next(stream)
    first = time.perf_counter() - started
    assert tuple(batch["image"].shape) == (BATCH, 1, CROP, CROP), batch["image"].shape
    for _ in range(15):
        next(stream)
    started = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return {"speed": batches * BATCH / (time.perf_counter() - started), "first": first}


def endless(loader: Iterable) -> Iterable:
    epoch = 0
    while True:
        if hasattr(sampler := loader.sampler, "set_epoch"):  # ty: ignore[unresolved-attribute]
            sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def make(root: Path, images: int) -> None:
    """PNGs of made sections, and of their masks."""
    source = Membranes(size=512, train=images, val=1, test=0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for name in source.splits["train"]:
        image, mask = source.read(name)
        Image.fromarray(image[..., 0]).save(root / f"images/{name}.png")
        Image.fromarray(mask * 255).save(root / f"masks/{name}.png")


def measure(**options: int) -> list[timing.Row]:
    """Return the speed of each loader, and the time to its first batch."""
    options = OPTIONS | options
    here = [n for n in CONTESTANTS if "MONAI" not in n or importlib.util.find_spec("monai")]
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), options["images"])
        environment = os.environ | {"SEG_CACHE": f"{scratch}/cache"}
        words = scratch, options["workers"], options["batches"]
        children = {
            name: functools.partial(timing.run_child, __file__, "--measure", name, *words, env=environment)
            for name in here
        }  # fmt: skip
        taken = timing.call_in_turn(children, options["rounds"])
    speeds, firsts = ({n: [one[key] for one in found] for n, found in taken.items()} for key in ("speed", "first"))  # fmt: skip
    first_rows = timing.compare({f"{n}, first batch": s for n, s in firsts.items()}, "ours, first batch", "s")  # fmt: skip
    return timing.compare(speeds, "ours", "samples/s") + first_rows


def many(number: int = 100_000) -> None:
    """A folder of small images: seconds to open it, and each loader process's own memory over an epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SEG_CACHE"] = f"{scratch}/cache"
        root, rng = Path(scratch) / "data", np.random.default_rng(0)
        grey = [rng.integers(0, 256, (64, 64), np.uint8) for _ in range(100)]
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
            Image.fromarray(grey[0]).save(root / part / "0.png")
        files = []
        for i, page in enumerate(grey):
            for part, pixels in (("images", page), ("masks", page >> 7)):
                file = root / f"{part}-{i}.png"
                Image.fromarray(pixels).save(file)
                files.append((part, file.read_bytes()))
        for i in range(number):
            for part, content in files[2 * (i % 100) : 2 * (i % 100) + 2]:
                (root / part / f"{i}.png").write_bytes(content)
        started = time.perf_counter()
        source = Folder(str(root), ["dark", "bright"])
        opened = time.perf_counter() - started
        data = DataModule(source, crop=48, batch_size=50, repeats=1, workers=2)
        surveyed = time.perf_counter() - started
        stream = iter(data.train_dataloader())
        next(stream)
        first = time.perf_counter() - started
        print(
            f"{number} images: paired {opened:.1f} s, looked at {surveyed:.1f} s, first batch {first:.1f} s"
        )
        for step, _ in enumerate(stream, start=2):
            if step % (number // 250) == 0:
                own = ", ".join(f"{private(pid):.0f}" for pid in children())
                print(f"after {50 * step} samples: MiB of each loader process alone: {own}")


def children() -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def private(pid: int) -> float:
    """MiB that a process has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        who, where, processes, count = sys.argv[2:]
        print(json.dumps(measure_one(who, Path(where), int(processes), int(count))))
    elif sys.argv[1:] == ["many"]:
        many()
    else:
        rows = measure(**{k: int(v) for k, v in (word.split("=") for word in sys.argv[1:])})
        print(f"{timing.describe_machine()}\n\n{timing.table({'loader': rows})}")
