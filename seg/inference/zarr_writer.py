"""Writer of OME-Zarr: rows that grew band by band become an image in chunks, with reduced levels; it needs the extra ``zarr``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from seg import files
from seg.data.ome_zarr import ZarrImages
from seg.inference.band_writer import BandWriter

CHUNK_PX = 512  # px, side of the chunks
NGFF_VERSIONS = {2: "0.4", 3: "0.5"}  # of Zarr's format -> of OME-Zarr
AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def write_zarr(
    grown: BandWriter, folder: Path, images: ZarrImages, pyramid: bool, dtype: Any = None,
    colors: Sequence[tuple[int, int, int]] = (),
) -> None:  # fmt: skip
    """Write the rows as an OME-Zarr of the version of the image's, completely or not at all.

    Args:
        grown: the rows.
        folder: of the OME-Zarr.
        images: the predicted image, whose axes and scale the result has.
        pyramid: whether there are levels of every second, fourth, ... pixel: at least one, down to one chunk.
        dtype: type of the values; None: that of the rows.
        colors: of the classes, for viewers.
    """
    lengths, place = result_axes(grown, images)
    levels = max(1, grown.levels_above(CHUNK_PX)) if pyramid else 0
    steps = [2**level for level in range(levels + 1)]
    version = images.metadata.version
    keys: Any = {"name": "v2", "separator": "/"} if version == 2 else None
    with files.atomic_folder(folder, grown.folder, grown.file.parent) as aside:
        group = zarr.create_group(LocalStore(aside), zarr_format=version)
        for level, step in enumerate(steps):
            sides = {"y": -(-grown.height // step), "x": -(-grown.width // step)}
            shape = tuple((lengths | sides).values())
            chunks = tuple(min(CHUNK_PX, s) if n in "yx" else 1 for n, s in zip(lengths, shape, strict=True))  # fmt: skip
            array = group.create_array(
                str(level), shape=shape, chunks=chunks, dtype=dtype or grown.dtype,
                chunk_key_encoding=keys,
                dimension_names=None if version == 2 else list(lengths),
            )  # fmt: skip
            write_level(array, grown, step, sides["y"], place)
        group.attrs.update(describe_levels(lengths, steps, images, colors))


def write_level(array: Any, grown: BandWriter, step: int, height: int, place: Any) -> None:
    """Write every ``step``-th pixel of the rows into an array, a row of chunks after another."""
    bands = grown.iterate_rows(step, CHUNK_PX)
    for page, plane in np.ndindex(grown.pages, max(1, grown.planes)):
        for top in range(0, height, CHUNK_PX):
            band = next(bands)
            span = slice(top, top + len(band))
            array[(*place(page, plane), span, slice(None))] = band.astype(array.dtype, copy=False)


def result_axes(grown: BandWriter, images: ZarrImages) -> tuple[dict[str, int], Any]:
    """Return name -> length of the axes of a result, y and x the last, and the function (page, plane) -> other indices.

    They are the slices of the image, and c for planes.
    """
    slices = images.sizes
    if "c" in slices or math.prod(slices.values()) != grown.pages:  # data.pages overrides the axes
        slices = {"z": grown.pages} if grown.pages > 1 else {}
    names = list(slices)
    if grown.planes:
        names.insert(int(names[:1] == ["t"]), "c")  # time, channels, space
    lengths = {name: slices.get(name, grown.planes) for name in names}

    def place(page: int, plane: int) -> tuple[int, ...]:
        found = np.unravel_index(page, tuple(slices.values())) if slices else ()
        at = dict(zip(slices, map(int, found), strict=True)) | {"c": plane}
        return tuple(at[name] for name in names)

    return lengths | {"y": grown.height, "x": grown.width}, place


def describe_levels(
    lengths: dict[str, int], steps: Sequence[int], images: ZarrImages,
    colors: Sequence[tuple[int, int, int]],
) -> dict[str, Any]:  # fmt: skip
    """Return the attributes of NGFF: axes with their units, and the scale of each level."""
    own, version = images.metadata, NGFF_VERSIONS[images.metadata.version]
    axes = [{"name": n, "type": AXIS_TYPES[n]} if n in AXIS_TYPES else {"name": n} for n in lengths]
    for axis in axes:
        if unit := own.units.get(axis["name"]):
            axis["unit"] = unit
    datasets = []
    for level, step in enumerate(steps):
        scale = [own.scale.get(n, 1.0) * (step if n in "yx" else 1) if n != "c" else 1.0 for n in lengths]  # fmt: skip
        transform = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [transform]})
    image: dict[str, Any] = {"axes": axes, "datasets": datasets, "type": "nearest"}
    content: dict[str, Any] = {"multiscales": [image]}
    if colors:
        content["image-label"] = {
            "colors": [{"label-value": n, "rgba": [*c, 255]} for n, c in enumerate(colors)]
        }
    if own.version == 2:
        return {name: add_version(value, version) for name, value in content.items()}
    return {"ome": {"version": version, **content}}


def add_version(value: Any, version: str) -> Any:
    """Return metadata of NGFF 0.4, in which each part states the version."""
    if isinstance(value, list):
        return [add_version(one, version) for one in value]
    return {"version": version, **value}
