"""A small data set in the files of each annotation tool, written by hand."""

import base64
import io
import itertools
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZE = (20, 30)  # height and width, px


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """Corners of mask[y0:y1, x0:x1]."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def expected_mask(hole: bool = True) -> np.ndarray:
    """The mask of every tool's file below: a gland with a hole, a nucleus on it, another that reaches out."""
    mask = np.zeros(SIZE, np.uint8)
    mask[2:18, 3:23] = 1
    if hole:
        mask[8:12, 10:15] = 0
    mask[4:7, 5:9] = 2
    mask[15:20, 25:30] = 2
    return mask


GLAND, HOLE = box(3, 2, 23, 18), box(10, 8, 15, 12)
SMALL, OUTSIDE = box(5, 4, 9, 7), box(25, 15, 40, 28)


def write_images(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, SIZE, np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def png_text(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def write_labelme(folder: Path) -> None:
    for name in "abcd":
        mask = np.ones((16, 20), bool)
        mask[6:10, 7:12] = False
        shapes = [
            {"label": "nucleus", "points": SMALL, "shape_type": "polygon"},
            {"label": "nucleus", "points": OUTSIDE[::2], "shape_type": "rectangle"},
            {"label": "gland", "points": [[3, 2], [22, 17]], "shape_type": "mask", "mask": png_text(mask)},
            {"label": "spot", "points": [[1, 1]], "shape_type": "point"},
        ]  # fmt: skip
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png",
                   "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))


def closed(ring: list[list[float]]) -> list[list[float]]:
    return [*ring, ring[0]]


def write_qupath(folder: Path) -> None:
    def feature(kind: str, coordinates: list, name: str) -> dict[str, Any]:
        return {"type": "Feature", "id": "x", "geometry": {"type": kind, "coordinates": coordinates},
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}}}  # fmt: skip

    rows = [
        feature("MultiPolygon", [[closed(SMALL)], [closed(OUTSIDE)]], "nucleus"),
        feature("Polygon", [closed(GLAND), closed(HOLE)], "gland"),
    ]
    for name in "abcd":
        content = {"type": "FeatureCollection", "features": rows}
        (folder / f"{name}.geojson").write_text(json.dumps(content))


def write_yolo(folder: Path) -> None:
    def line(index: int, ring: list[list[float]]) -> str:
        shares = [f"{x / SIZE[1]:.8f} {y / SIZE[0]:.8f}" for x, y in ring]
        return f"{index} {' '.join(shares)}\n"

    bridge = [*closed(GLAND), *closed(HOLE)[::-1]]  # a hole as a ring joined to the outline
    (folder / "data.yaml").write_text("path: .\nnames: {0: gland, 1: nucleus}\n")
    (folder / "labels").mkdir()
    (folder / "images").mkdir()
    for name in "abcd":
        (folder / f"{name}.png").rename(folder / f"images/{name}.png")
        text = line(1, SMALL) + line(1, OUTSIDE) + line(0, bridge)
        (folder / f"labels/{name}.txt").write_text(text)


def write_cvat(folder: Path) -> None:
    def text(ring: list[list[float]]) -> str:
        return ";".join(f"{x:.2f},{y:.2f}" for x, y in ring)

    inside = expected_mask() > 0
    inside[:, 23:], inside[4:7, 5:9] = False, True
    flat = inside[2:18, 3:23].ravel().astype(int)
    runs = np.diff([0, *np.flatnonzero(np.diff(flat, prepend=0)), flat.size])
    rle = ", ".join(map(str, runs))
    rows = "".join(
        f'''<image id="{i}" name="{name}.png" width="30" height="20">
        <mask label="gland" source="manual" occluded="0" rle="{rle}" left="3" top="2" width="20" height="16" z_order="0"/>
        <polygon label="nucleus" points="{text(SMALL)}" z_order="0"/><points label="spot" points="1,1"/>
        <box label="nucleus" xtl="25" ytl="15" xbr="40" ybr="28" z_order="0"/></image>'''
        for i, name in enumerate("abcd")
    )  # fmt: skip
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("gland", "nucleus"))
    meta = f"<version>1.1</version><meta><job><labels>{labels}</labels></job></meta>"
    content = f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{rows}</annotations>'
    (folder / "annotations.xml").write_text(content)


def write_via(folder: Path) -> None:
    def region(shape: dict[str, Any], name: Any) -> dict[str, Any]:
        return {"shape_attributes": shape, "region_attributes": {"kind": name}}

    def polygon(ring: list[list[float]]) -> dict[str, Any]:
        x, y = zip(*ring, strict=True)
        return {"name": "polygon", "all_points_x": list(x), "all_points_y": list(y)}

    bridge = [*closed(GLAND), *closed(HOLE)[::-1]]
    regions = [
        region(polygon(SMALL), {"nucleus": True, "gland": False}),
        region({"name": "rect", "x": 25, "y": 15, "width": 9, "height": 9}, "nucleus"),
        region(polygon(bridge), "gland"),
        region({"name": "point", "cx": 1, "cy": 1}, "spot"),
    ]
    images = {f"{n}.png123": {"filename": f"{n}.png", "size": 123, "regions": regions} for n in "abcd"}  # fmt: skip
    (folder / "via_project.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": images}))  # fmt: skip


def write_supervisely(folder: Path) -> None:
    def row(kind: str, name: str, rest: dict[str, Any]) -> dict[str, Any]:
        return {"id": 1, "classTitle": name, "geometryType": kind, "tags": []} | rest

    def points(exterior: list, interior: list) -> dict[str, Any]:
        return {"points": {"exterior": exterior, "interior": interior}}

    bits = base64.b64encode(zlib.compress(base64.b64decode(png_text(np.ones((5, 5)))))).decode()
    shifted = [[[x - 0.5, y - 0.5] for x, y in ring] for ring in (GLAND, HOLE)]
    objects = [
        row("polygon", "gland", points(shifted[0], [shifted[1]])),
        row("rectangle", "nucleus", points([[8, 6], [5, 4]], [])),
        row("bitmap", "nucleus", {"bitmap": {"data": bits, "origin": [25, 15]}}),
    ]
    for part in ("img", "ann"):
        (folder / "set" / part).mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"classes": [], "tags": []}))
    for name in "abcd":
        (folder / f"{name}.png").rename(folder / f"set/img/{name}.png")
        content = {"description": "", "size": {"height": 20, "width": 30}, "objects": objects}
        (folder / f"set/ann/{name}.png.json").write_text(json.dumps(content))


def write_cellpose(folder: Path) -> None:
    """Without classes: every object is one of a class."""
    cells = np.zeros(SIZE, np.uint16)
    cells[expected_mask() == 1] = 7
    cells[4:7, 5:9] = 1
    cells[15:20, 25:30] = 3
    for name in "abcd":
        content = {"masks": cells, "outlines": cells * 0, "filename": name, "diameter": np.float64(9)}  # fmt: skip
        np.save(folder / f"{name}_seg.npy", np.array(content, dtype=object), allow_pickle=True)


def write_imagej(folder: Path) -> None:
    from roifile import ROI_TYPE, ImagejRoi

    gland, square, line = ImagejRoi(), ImagejRoi(), ImagejRoi()
    gland.roitype, gland.name = ROI_TYPE.RECT, "gland-0001"
    gland.left, gland.top, gland.right, gland.bottom = 3, 2, 23, 18
    path = [[0, *ring[0], *(v for point in ring[1:] for v in (1, *point)), 4] for ring in (GLAND, HOLE)]  # fmt: skip
    gland.multi_coordinates = np.concatenate(path).astype(np.float32)
    gland.shape_roi_size = len(gland.multi_coordinates)
    square.roitype, square.name = ROI_TYPE.RECT, "nucleus"
    square.left, square.top, square.right, square.bottom = 25, 15, 40, 28
    line.roitype, line.name = ROI_TYPE.LINE, "0001-0002"
    polygon = ImagejRoi.frompoints(np.array(SMALL, int), name="nucleus 2")
    for name in "abcd":
        with zipfile.ZipFile(folder / f"{name}_RoiSet.zip", "w") as archive:
            for i, roi in enumerate((polygon, square, gland, line)):
                archive.writestr(f"{i}.roi", roi.tobytes())


def brush_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of the RGBA image whose alpha is 255 in the mask; runs of at most 16 bits."""
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    bits = f"{len(values):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    for start, stop in itertools.pairwise(edges):
        bits += f"111{stop - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def write_labelstudio(folder: Path) -> None:
    """The images have the names of the upload, and their own."""

    def row(kind: str, value: dict[str, Any], name: str) -> dict[str, Any]:
        return {"id": name, "type": kind, "value": value | {kind: [name]}, "original_width": 30, "original_height": 20,
                "image_rotation": 0, "from_name": "tag", "to_name": "image"}  # fmt: skip

    gland = (expected_mask() == 1) | (expected_mask(False) == 2)
    gland[15:, 25:] = False
    square = {"x": 25 / 0.3, "y": 15 / 0.2, "width": 20, "height": 60, "rotation": 0}
    rows = [
        row("polygonlabels", {"points": [[x / 0.3, y / 0.2] for x, y in SMALL], "closed": True}, "nucleus"),
        row("rectanglelabels", square, "nucleus"),
        row("brushlabels", {"format": "rle", "rle": brush_rle(gland)}, "gland"),
        row("keypointlabels", {"x": 1, "y": 1, "width": 0.3}, "spot"),
        {"id": "c", "type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image"},
    ]  # fmt: skip
    tasks = [
        {"id": i, "annotations": [{"id": i, "completed_by": 1, "was_cancelled": False, "result": rows}],
         "file_upload": f"0a1b2c3d-{name}.png", "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}}
        for i, name in enumerate("abcd")
    ]  # fmt: skip
    (folder / "a.png").rename(folder / "0a1b2c3d-a.png")  # as in the exports with images
    (folder / "project-1-at-2024-01-01.json").write_text(json.dumps(tasks))
    Image.fromarray(gland).save(folder / "task-0-annotation-0-by-1-tag-gland-0.png")


def write_cvat_masks(folder: Path) -> None:
    colours = np.array([[0, 0, 0], [10, 10, 128], [10, 128, 0]], np.uint8)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "gland:10,10,128::", "nucleus:10,128,0::"]  # fmt: skip
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n")
    for part in ("ImageSets/Segmentation", "SegmentationClass", "SegmentationObject", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Segmentation/default.txt").write_text("a\nb\nc\nd\n")
    for name in "abcd":
        (folder / f"{name}.png").rename(folder / f"JPEGImages/{name}.png")
        Image.fromarray(colours[expected_mask()]).save(folder / f"SegmentationClass/{name}.png")
        Image.fromarray(colours[(expected_mask() > 0).astype(int)]).save(
            folder / f"SegmentationObject/{name}.png"
        )


WRITERS = {
    "labelme": write_labelme,
    "qupath": write_qupath,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "via": write_via,
    "supervisely": write_supervisely,
    "labelstudio": write_labelstudio,
    "cellpose": write_cellpose,
    "imagej": write_imagej,
    "cvat masks": write_cvat_masks,
}


def folder_of(tool: str, folder: Path) -> Path:
    """The images and files of a tool, or of a second format of it."""
    if tool == "imagej":
        pytest.importorskip("roifile", reason="the extra rois isn't installed")
    write_images(folder)
    WRITERS[tool](folder)
    return folder


WITHOUT_CLASSES = {"cellpose"}
