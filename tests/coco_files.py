"""COCO files and their images, made for a test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from seg.data.datasets.coco import Coco

SIZE = (20, 30)  # height and width, px


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """The outline of mask[y0:y1, x0:x1]."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def rectangle(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def counted(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths, column by column, of absent first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"counts": np.diff([0, *edges, flat.size]).tolist(), "size": list(mask.shape)}


def compressed(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths, by pycocotools."""
    from pycocotools.mask import encode

    runs = encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": runs["counts"].decode(), "size": list(mask.shape)}


def coco_of(
    shapes: dict[str, list[tuple]], sizes: dict[str, tuple[int, int]] | None = None
) -> dict:
    """A COCO file: image file -> (category id, segmentation[, iscrowd]); categories 3 cell, 7 nucleus."""
    content: dict = {"images": [], "annotations": [], "info": {"year": 2024}}
    content["categories"] = [{"id": 7, "name": "nucleus"}, {"id": 3, "name": "cell"}]
    for number, (file, outlines) in enumerate(shapes.items(), start=100):
        height, width = (sizes or {}).get(file, SIZE)
        content["images"].append(
            {"id": number, "file_name": file, "height": height, "width": width}
        )
        for category, segmentation, *crowd in outlines:
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category,
                 "segmentation": segmentation, "iscrowd": int(any(crowd)), "area": 1, "bbox": [0, 0, 1, 1]}
            )  # fmt: skip
    return content


def written(folder: Path, content: dict, name: str = "coco.json", draw: bool = True) -> Path:
    """The file, and grey pictures for its images, whose sides are 20 x 30 px."""
    for row in content["images"] if draw else ():
        file = folder / row["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(row["id"])
        Image.fromarray(rng.integers(0, 255, SIZE, np.uint8)).save(file)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def made(folder: Path, shapes: dict[str, list[tuple]], **options) -> Coco:
    """The source of these shapes; a second, empty image is added for the split."""
    content = coco_of(shapes | {"empty.png": []})
    return Coco(str(folder), str(written(folder, content)), **options)


def coco_root(folder: Path) -> tuple[str, str]:
    """Eight images of 40x56 px with bright objects of two categories, one of them crowd, and their JSON."""
    rng, shapes = np.random.default_rng(0), {}
    for i in range(8):
        x, y = int(rng.integers(1, 12)), int(rng.integers(1, 8))
        pixels = rng.integers(0, 60, (40, 56), np.uint8)
        pixels[y : y + 24, x : x + 30] += 90
        pixels[y + 6 : y + 16, x + 8 : x + 20] += 90
        cell, nucleus = box(x, y, x + 30, y + 24), box(x + 8, y + 6, x + 20, y + 16)
        crowd = (3, counted(rectangle(50, 30, 56, 40, (40, 56))), True)
        shapes[f"images/{i}.png"] = [(3, cell), (7, nucleus), *([crowd] if i % 2 else [])]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
    content = coco_of(shapes, dict.fromkeys(shapes, (40, 56)))
    return str(folder), str(written(folder, content, draw=False))
