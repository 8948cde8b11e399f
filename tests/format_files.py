"""Writers of DICOM and NIfTI files."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian


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
