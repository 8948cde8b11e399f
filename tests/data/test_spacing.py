"""Size of a pixel: the option, resolution tags of TIFFs, and what is no length."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from format_files import dicom, nifti

from seg.data import Folder
from seg.data.spacing import pixel_spacing, read_spacing
from seg.errors import DataError

PIXELS = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "micron"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "\\u00B5m"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (0.25, 0.25), "metadata": {"unit": "nm"}}, (0.004, 0.004)),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True}, None),
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, (1.0, 0.5)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_resolution_tags_are_read_as_a_length(tmp_path, tags, wanted):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **tags)
    found = read_spacing(tmp_path / "a.tif")
    assert found is None if wanted is None else found == pytest.approx(wanted)


def test_metadata_of_each_format_is_read_as_a_length(tmp_path):
    ome = tmp_path / "a.ome.tif"
    sides = {"PhysicalSizeY": 0.5, "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(ome, PIXELS, metadata={"axes": "YX"} | sides)
    assert read_spacing(ome) == pytest.approx((0.5, 0.25))
    tifffile.imwrite(ome, PIXELS, metadata={"axes": "YX"} | sides | {"PhysicalSizeYUnit": "pixel"})
    assert read_spacing(ome) is None
    text = "Aperio Image\r\n6x4|AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(tmp_path / "a.svs", PIXELS, description=text, metadata=None, tile=(16, 16))
    assert read_spacing(tmp_path / "a.svs") == pytest.approx((0.499, 0.499))
    dicom(tmp_path / "a.dcm", PIXELS, PixelSpacing=[0.7, 0.5])
    assert read_spacing(tmp_path / "a.dcm") == pytest.approx((700, 500))
    for unit, wanted in (("mm", (250, 500)), ("micron", (0.25, 0.5)), ("unknown", None)):
        nifti(tmp_path / "a.nii.gz", PIXELS, unit=unit)
        found = read_spacing(tmp_path / "a.nii.gz")  # columns are axis 1
        assert found is None if wanted is None else found == pytest.approx(wanted)
    np.save(tmp_path / "a.npy", PIXELS)
    assert read_spacing(tmp_path / "a.npy") is None


def write(folder: Path, name: str, per_um: float) -> Path:
    tifffile.imwrite(
        folder / name, PIXELS, imagej=True, resolution=(per_um, per_um), metadata={"unit": "um"}
    )
    return folder / name


def test_files_that_differ_give_none_and_a_warning_with_both(tmp_path, caplog):
    a, b = write(tmp_path, "a.tif", 2), write(tmp_path, "b.tif", 4)
    assert pixel_spacing(None, [a, a]) == pytest.approx((0.5, 0.5))
    assert not caplog.records
    assert pixel_spacing(None, [a, b]) is None
    assert "b.tif: a pixel is 0.25 x 0.25 um" in caplog.text and "a.tif it is 0.5" in caplog.text


def test_the_option_precedes_the_tags(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name in ("a.tif", "b.tif"):
        write(tmp_path / "images", name, 2)
        tifffile.imwrite(tmp_path / "masks" / name, PIXELS)
    assert Folder(str(tmp_path), ["a", "b"], val=0.5).pixel_spacing() == pytest.approx((0.5, 0.5))
    given = Folder(str(tmp_path), ["a", "b"], val=0.5, spacing=[3.0, 1.0])
    assert given.pixel_spacing() == (3.0, 1.0)


@pytest.mark.parametrize("wrong", [[1.0], [0.0, 1.0], [-1.0, 1.0], [1.0, float("inf")]])
def test_a_size_that_is_none_is_an_error_that_shows_a_right_one(wrong):
    with pytest.raises(DataError, match=r"data.spacing=.*\[0.5,0.5\]"):
        pixel_spacing(wrong, [])
