"""The same small data set in the files of each format: an entry of ``FORMATS`` for each row of the table in docs/formats.md.

A builder writes images and masks, by name, into an empty folder and returns the options of the command line that read them.
"""

import base64
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from annotation_files import brush_rle, closed, png_text
from format_files import dicom, nifti, ome_zarr
from PIL import Image
from scipy import ndimage

from seg.inference import polygons

Arrays = dict[str, np.ndarray]  # name -> (H, W) uint8
CLASSES = ["membrane", "intracellular", "mitochondrion", "other"]  # the first is the rest
COLORS = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)]


class Format(NamedTuple):
    """A format of images and masks.

    Attributes:
        build: the builder.
        extra: package that it needs, or None.
        classless: True if objects have no class: all are of one.
    """

    build: Callable[[Path, Arrays, Arrays], list[str]]
    extra: str | None = None
    classless: bool = False


def write_pictures(folder: Path, pictures: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")


def class_masks(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The label and the pixels of each class but the rest."""
    yield from ((name, mask == k) for k, name in enumerate(CLASSES) if k and (mask == k).any())


def traced(mask: np.ndarray) -> Iterator[polygons.TracedObject]:
    return polygons.trace_mask(mask, len(CLASSES))


def joined_ring(one: polygons.TracedObject) -> np.ndarray:
    """The outline and the holes of an object as one ring, joined by edges that are passed twice."""
    outline, *holes = (np.array(closed(ring.tolist())) for ring in one.rings)
    return np.concatenate([outline, *(np.concatenate([hole, outline[:1]]) for hole in holes)])


def build_folder(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "images", images)
    write_pictures(folder / "masks", masks)
    return ["data=folder"]


def build_labelme(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    for name, mask in masks.items():
        text = polygons.as_labelme(traced(mask), CLASSES, folder / f"{name}.png", folder, mask.shape)  # fmt: skip
        (folder / f"{name}.json").write_text(text)
    return ["data=labelme"]


def build_qupath(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    for name, mask in masks.items():
        text = polygons.as_geojson(traced(mask), CLASSES, COLORS, name)
        (folder / f"{name}.geojson").write_text(text)
    return ["data=qupath"]


def build_cvat(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "images", images)
    rows = ""
    for name, mask in masks.items():
        height, width = mask.shape
        rows += f'<image id="0" name="{name}.png" width="{width}" height="{height}">'
        for label, inside in class_masks(mask):
            flat = inside.ravel().astype(int)
            runs = np.diff([0, *np.flatnonzero(np.diff(flat, prepend=0)), flat.size])
            rle = ", ".join(map(str, runs))
            rows += f'<mask label="{label}" rle="{rle}" left="0" top="0" width="{width}" height="{height}"/>'  # fmt: skip
        rows += "</image>"
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version>{rows}</annotations>")  # fmt: skip
    return ["data=cvat"]


def build_cvat_masks(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "JPEGImages", images)
    names = ["background", *CLASSES[1:]]
    lines = [f"{name}:{','.join(map(str, c))}::" for name, c in zip(names, COLORS, strict=True)]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    colours = np.array(COLORS, np.uint8)
    write_pictures(folder / "SegmentationClass", {n: colours[mask] for n, mask in masks.items()})
    return ["data=cvat"]


def build_labelstudio(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    tasks = []
    for number, (name, mask) in enumerate(masks.items()):
        result = [
            {"type": "brushlabels", "value": {"format": "rle", "rle": brush_rle(inside), "brushlabels": [label]},
             "original_width": mask.shape[1], "original_height": mask.shape[0]}
            for label, inside in class_masks(mask)
        ]  # fmt: skip
        data = {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}
        tasks.append({"id": number, "annotations": [{"id": 1, "result": result}], "data": data})
    (folder / "project.json").write_text(json.dumps(tasks))
    return ["data=labelstudio"]


def build_via(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    content = {}
    for name, mask in masks.items():
        regions = []
        for one in traced(mask):
            x, y = joined_ring(one).T.tolist()
            shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            regions.append({"shape_attributes": shape, "region_attributes": {"class": CLASSES[one.index]}})  # fmt: skip
        content[f"{name}.png1"] = {"filename": f"{name}.png", "size": 1, "regions": regions}
    (folder / "via.json").write_text(json.dumps(content))
    return ["data=via"]


def build_supervisely(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "set/img", images)
    (folder / "set/ann").mkdir()
    for name, mask in masks.items():
        objects = [
            {"classTitle": label, "geometryType": "bitmap",
             "bitmap": {"origin": [0, 0], "data": base64.b64encode(zlib.compress(base64.b64decode(png_text(inside)))).decode()}}
            for label, inside in class_masks(mask)
        ]  # fmt: skip
        content = {"size": {"height": mask.shape[0], "width": mask.shape[1]}, "objects": objects}
        (folder / f"set/ann/{name}.png.json").write_text(json.dumps(content))
    return ["data=supervisely"]


def build_yolo(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "images", images)
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text(f"names: {json.dumps(CLASSES[1:])}\n")
    for name, mask in masks.items():
        lines = [
            f"{one.index - 1} {' '.join(f'{v:.8f}' for v in (joined_ring(one) / mask.shape[::-1]).ravel())}"
            for one in traced(mask)
        ]
        (folder / f"labels/{name}.txt").write_text("\n".join(lines))
    return ["data=yolo"]


def build_cellpose(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    for name, mask in masks.items():
        cells = np.zeros(mask.shape, np.uint16)
        for number, one in enumerate(polygons.trace_mask(mask, 2), start=1):
            h, w = one.inside.shape
            cells[one.top : one.top + h, one.left : one.left + w][one.inside] = number
        np.save(folder / f"{name}_seg.npy", np.array({"masks": cells}, dtype=object), allow_pickle=True)  # fmt: skip
    return ["data=cellpose"]


def build_imagej(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    for name, mask in masks.items():
        (folder / f"{name}.zip").write_bytes(polygons.as_rois(traced(mask), CLASSES, COLORS))
        assert zipfile.is_zipfile(folder / f"{name}.zip")
    return ["data=imagej"]


def build_coco(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "images", images)
    parts = [
        polygons.as_coco(traced(mask), CLASSES, 1, f"images/{name}.png", np.ones(mask.shape))
        for name, mask in masks.items()
    ]
    (folder / "instances.json").write_text(json.dumps(polygons.merge_coco(parts)))
    return ["data=coco", f"data.annotations={folder}/instances.json"]


def write_arrays(
    folder: Path, arrays: Arrays, suffix: str, save: Callable[[Path, np.ndarray], Any]
) -> None:
    """Write each array as a file of that suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in arrays.items():
        save(folder / f"{name}{suffix}", pixels)


def build_ome(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_arrays(folder / "images", images, ".ome.tif", tifffile.imwrite)
    write_arrays(
        folder / "masks",
        masks,
        ".tif",
        partial(tifffile.imwrite, tile=(16, 16), compression="zlib"),
    )
    return ["data=folder"]


def build_jpeg2000(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    def save(file: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(file, irreversible=False)  # without loss

    write_arrays(folder / "images", images, ".jp2", save)
    write_arrays(folder / "masks", masks, ".jp2", save)
    return ["data=folder"]


def build_npy(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_arrays(folder / "images", images, ".npy", np.save)
    write_arrays(
        folder / "masks", masks, ".npz", lambda file, mask: np.savez_compressed(file, mask=mask)
    )
    return ["data=folder"]


def build_dicom(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_arrays(folder / "images", images, ".dcm", dicom)
    write_pictures(folder / "masks", masks)
    return ["data=folder"]


def build_nifti(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_arrays(folder / "images", images, ".nii.gz", lambda file, pixels: nifti(file, pixels.T))
    write_arrays(folder / "masks", masks, ".nii.gz", lambda file, pixels: nifti(file, pixels.T))
    return ["data=folder"]


def build_ome_zarr(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    def save(file: Path, pixels: np.ndarray, version: int) -> None:
        ome_zarr(file, pixels[None], "cyx", version, (1, 2), chunks=(1, 16, 20))

    write_arrays(folder / "images", images, ".ome.zarr", partial(save, version=2))
    write_arrays(folder / "masks", masks, ".zarr", partial(save, version=3))
    return ["data=folder"]


def build_suffix(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder, images)
    write_pictures(folder, {f"{name}_mask": mask for name, mask in masks.items()})
    return ["data=folder", "data.images=*.png", "data.masks=*_mask.png"]


def build_nnunet(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "imagesTr", {f"{name}_0000": image for name, image in images.items()})
    write_pictures(folder / "labelsTr", masks)
    labels = {name: k for k, name in enumerate(CLASSES)}
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "EM"}, "labels": labels})
    )
    return ["data=nnunet"]


def build_objects(folder: Path, images: Arrays, masks: Arrays) -> list[str]:
    write_pictures(folder / "images", images)
    for name, mask in masks.items():
        labels, count = ndimage.label(mask)
        planes = {str(k): (labels == k).astype(np.uint8) * 255 for k in range(1, count + 1)}
        write_pictures(folder / "masks" / name, planes)
    return ["data=folder", "data.mask_layers=objects"]


FORMATS = {
    "folders of PNG": Format(build_folder),
    "OME-TIFF, compressed tiles": Format(build_ome),
    "JPEG 2000": Format(build_jpeg2000),
    "NPY, NPZ": Format(build_npy),
    "DICOM": Format(build_dicom, "pydicom"),
    "NIfTI": Format(build_nifti, "nibabel"),
    "OME-Zarr": Format(build_ome_zarr, "zarr"),
    "a suffix in one folder": Format(build_suffix),
    "nnU-Net": Format(build_nnunet),
    "a file for each object": Format(build_objects, classless=True),
    "LabelMe": Format(build_labelme),
    "QuPath": Format(build_qupath),
    "CVAT for images 1.1": Format(build_cvat),
    "CVAT Segmentation mask 1.1": Format(build_cvat_masks),
    "Label Studio": Format(build_labelstudio),
    "VGG Image Annotator 2": Format(build_via),
    "Supervisely": Format(build_supervisely),
    "YOLO segmentation": Format(build_yolo),
    "Cellpose": Format(build_cellpose, classless=True),
    "ImageJ": Format(build_imagej, "roifile"),
    "COCO": Format(build_coco, "pycocotools"),
}
