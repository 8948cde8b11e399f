"""Objects in bands: labels equal those of the whole image, measurements those of scikit-image's regionprops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops_table
from skimage.morphology import reconstruction

from seg.errors import DataError
from seg.inference import object_bands
from seg.inference.band_writer import BandWriter
from seg.metrics import instances
from seg.metrics.instances import segment_objects
from seg.metrics.object_measurements import CONTEXT_PX, ObjectMeasurements, convert_to_um


def blobs(seed: int, height: int, width: int, sigma: float) -> np.ndarray:
    """Smooth random probabilities in 0..1, whose median is 0.5."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, sigma)
    return (np.argsort(np.argsort(smooth, axis=None)).reshape(smooth.shape) / smooth.size).astype(np.float32)  # fmt: skip


def in_bands(interior: np.ndarray, folder, rows: int, split_rows: int = 1, **options) -> np.ndarray:
    """The labels of an image whose bands, and those that are split, have this number of rows."""
    height, width = interior.shape
    scratch = [BandWriter(folder / f"{n}", width, height, np.dtype(np.int32)) for n in range(3)]
    for writer in scratch:
        writer.remove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_bands, "BAND_PIXELS", rows * width)
        patch.setattr(object_bands, "SPLIT_PIXELS", split_rows * width)
        read = lambda top, bottom: interior[top:bottom]  # noqa: E731
        return np.concatenate(list(object_bands.segment_bands(read, scratch, **options)))


@given(
    seed=st.integers(0, 100_000),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.integers(1, 45),
    split_rows=st.integers(1, 45),
    sigma=st.sampled_from([0, 0.7, 1.5, 3]),
    threshold=st.sampled_from([0.2, 0.45, 0.6, 0.9]),
    split_neck_px=st.sampled_from([None, 0.5, 1, 2]),
    border=st.integers(0, 2),
    min_size=st.sampled_from([1, 4, 16]),
)
@settings(max_examples=250, deadline=None)
def test_labels_in_bands_are_those_of_the_whole_image(
    tmp_path_factory, seed, size, rows, split_rows, sigma, **options
):
    interior = blobs(seed, *size, sigma)
    found = in_bands(interior, tmp_path_factory.getbasetemp(), rows, split_rows, **options)
    np.testing.assert_array_equal(found, segment_objects(interior, **options))


def test_an_object_that_winds_through_all_bands_is_one(tmp_path):
    spiral = np.zeros((41, 41), np.float32)
    row, column, step = 0, 0, (0, 1)
    for length in np.repeat(np.arange(40, 0, -2), 2):  # two px between its turns
        for _ in range(length):
            spiral[row, column] = 1
            row, column = row + step[0], column + step[1]
        step = step[1], -step[0]
    for rows in (1, 2, 7):
        for split_neck_px in (None, 2):
            found = in_bands(spiral, tmp_path, rows, rows, min_size=1, split_neck_px=split_neck_px)
            np.testing.assert_array_equal(found, spiral)


def test_an_object_that_is_split_must_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(object_bands, "MAX_WINDOW_PIXELS", 19 * 4)
    tall = np.zeros((60, 8), np.float32)
    tall[5:24, 2:5] = tall[30:49, 1:5] = 1
    assert in_bands(tall, tmp_path, 1, split_neck_px=2).max() == 2
    tall[49, 3] = 1
    with pytest.raises(
        DataError, match=r"an object of 20x4 px; objects\.split_neck_px=2 needs it in memory"
    ):
        in_bands(tall, tmp_path, 1, split_neck_px=2)
    assert in_bands(tall, tmp_path, 1).max() == 2


def measured(labels: np.ndarray, image: np.ndarray, probability: np.ndarray, rows: int) -> dict[str, np.ndarray]:  # fmt: skip
    height = len(labels)
    found = ObjectMeasurements(int(labels.max()), image.shape[2])
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        read = lambda first, last: labels[first:last]  # noqa: E731
        context = object_bands.read_context(read, height, top, bottom, CONTEXT_PX)
        found.add(top, context, image[top:bottom], probability[top:bottom])
    return found.table()


@given(
    seed=st.integers(0, 100_000),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.integers(1, 45),
    sigma=st.sampled_from([0, 0.7, 2]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
@settings(max_examples=100, deadline=None)
def test_measurements_in_bands_are_those_of_regionprops(seed, size, rows, sigma, dtype):
    interior = blobs(seed, *size, sigma)
    labels = segment_objects(interior, min_size=1)
    if labels.max() > 20:  # objects of several regions, with holes
        labels = np.where(labels > 0, labels % 20 + 1, 0)
    image = (np.random.default_rng(seed).random((*size, 2)) * 200 - 20 * (dtype == np.float32)).astype(dtype)  # fmt: skip
    names = ["label", "area", "centroid", "bbox", "perimeter", "eccentricity", "orientation"]
    intensities = ["intensity_mean", "intensity_min", "intensity_max"]
    exact = image.astype(np.float64)  # regionprops sums in the type of the image
    wanted = regionprops_table(labels, exact, properties=[*names, *intensities])
    wanted["probability_mean"] = regionprops_table(labels, interior, properties=["intensity_mean"])["intensity_mean"]  # fmt: skip
    found = measured(labels, image, interior, rows)
    assert list(found) == list(wanted)
    # The axis of a region that is as wide as it is long is left to rounding
    oblong = wanted["eccentricity"] > 1e-3
    turned = found.pop("orientation") - wanted.pop("orientation")
    np.testing.assert_allclose(np.sin(turned)[oblong], 0, atol=1e-6)
    shape = found.pop("eccentricity"), wanted.pop("eccentricity")
    np.testing.assert_allclose(*shape, atol=1e-6)
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-6, err_msg=name)


def test_measurements_far_from_the_origin_keep_their_precision():
    labels = np.zeros((9, 9), np.int32)
    labels[1:8, 2:5] = labels[3, 6:8] = 1
    near, far = ObjectMeasurements(1, 1), ObjectMeasurements(1, 1)
    context = np.pad(labels, ((2, 2), (0, 0)))
    for top, one in ((0, near), (10**8, far)):
        one.add(top, context, np.ones((9, 9, 1)), np.ones((9, 9)))
    for name in ("eccentricity", "orientation", "perimeter"):
        assert near.table()[name] == far.table()[name]
    assert far.table()["centroid-0"] == near.table()["centroid-0"] + 10**8


def test_um_are_those_of_the_height_and_width_of_a_pixel():
    labels = np.zeros((12, 12), np.int32)
    labels[2:6, 3:11] = 1
    px = measured(labels, np.ones((12, 12, 1)), np.ones((12, 12)), 5)
    um = convert_to_um(px, (0.5, 0.25))
    names = ["area_um2", "centroid-0_um", "centroid-1_um", *(f"bbox-{n}_um" for n in range(4))]
    assert [float(um[name][0]) for name in names] == [4.0, 1.75, 1.625, 1.0, 0.75, 3.0, 2.75]
    assert np.isnan(um["perimeter_um"]).all()  # of oblong pixels
    want = regionprops_table(labels, properties=["perimeter", "area"], spacing=(0.5, 0.5))
    square = convert_to_um(px, (0.5, 0.5))
    assert square["perimeter_um"] == want["perimeter"] and square["area_um2"] == want["area"]


@given(
    seed=st.integers(0, 100_000),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    sigma=st.sampled_from([0, 0.7, 2, 5]),
    dilations=st.sampled_from([8, 16, 48]),
    neck=st.sampled_from([0.3, 1, 2.5]),
)
@settings(max_examples=100, deadline=None)
def test_a_reconstruction_is_that_of_scikit_image(seed, size, sigma, dilations, neck):
    depth = ndimage.distance_transform_edt(np.pad(blobs(seed, *size, sigma) > 0.4, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "DILATIONS", dilations)
        found = instances.reconstruct_by_dilation(np.maximum(depth - neck, 0), depth)
    np.testing.assert_array_equal(found, reconstruction(np.maximum(depth - neck, 0), depth))
