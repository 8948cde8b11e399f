"""Writers of DICOM, NIfTI and OME-Zarr files."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import zarr
from pydicom.uid import ExplicitVRLittleEndian

from seg.data.checked_store import CheckedStore
from seg.data.ome_zarr import METADATA_FILES


def dicom(file: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", bits: int = 0, **tags) -> Path:
    """A DICOM file of (H, W), (frames, H, W) or (H, W, 3)."""
    data, colour = pydicom.Dataset(), kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        data.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(file, enforce_file_format=True)
    return file


def nifti(
    file: Path, array: np.ndarray, slope: float = 1, inter: float = 0, unit: str = "mm"
) -> Path:
    volume = nibabel.Nifti1Image(array, np.diag([0.5, 0.25, 2, 1]))
    volume.header.set_data_dtype(array.dtype)
    volume.header.set_xyzt_units(unit)
    nibabel.save(volume, file)
    if (slope, inter) != (1, 0):  # scl_slope and scl_inter of the header
        data = bytearray(file.read_bytes())
        data[112:120] = np.array([slope, inter], "<f4").tobytes()
        file.write_bytes(data)
    return file


def record_chunks(patch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks of OME-Zarr that are read from now on."""
    keys: list[str] = []
    get = CheckedStore.get

    async def recorded(self, key, *words, **options):
        if key.rpartition("/")[2] not in METADATA_FILES:
            keys.append(key)
        return await get(self, key, *words, **options)

    patch.setattr(CheckedStore, "get", recorded)
    return keys


def ome_zarr(
    place: Path | str, array: np.ndarray, axes: str = "yx", version: int = 2, steps: tuple[int, ...] = (1,),
    scale: dict[str, float] | None = None, **options,
) -> Path | str:  # fmt: skip
    """An OME-Zarr of a version of Zarr's format, in a folder or at an address; ``options`` are those of its arrays."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    group = zarr.create_group(place if isinstance(place, str) else str(place), zarr_format=version)
    options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} | options if version == 2 else options  # fmt: skip
    datasets = []
    for level, step in enumerate(steps):
        pixels = array[..., ::step, ::step]
        one = group.create_array(str(level), shape=pixels.shape, dtype=pixels.dtype, **options)
        one[...] = pixels
        sides = [(scale or {}).get(name, 1.0) * (step if name in "yx" else 1) for name in axes]
        transforms = [{"type": "scale", "scale": sides}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    space = {"type": "space"} | ({"unit": "micrometer"} if scale else {})
    image = {
        "axes": [{"name": name} | kinds.get(name, space) for name in axes],
        "datasets": datasets,
    }
    if version == 2:
        group.attrs["multiscales"] = [{"version": "0.4"} | image]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return place
