"""Conversion of images to the type and range of values that a network was trained on.

A network sees stored values scaled by the range of its training images. An image of another type is converted
where its values leave no doubt, and refused otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from seg.data.normalization import Normalization
from seg.errors import DataError

UINT16_STEP = 257  # an 8-bit image widened to 16 bits: 255 * 257 = 65535
SCAN_ROWS = 256  # rows that are examined together
ROUNDING = 0.01  # largest distance from a whole number of a value k / 255 or k / 65535 in float32, times 255 or 65535


@dataclass
class ValueRange:
    """Range and kind of the stored values of an image, collected band by band.

    Attributes:
        low: smallest value.
        high: largest value.
        mean: mean of all values.
        count: number of values.
        steps: divisors or factors for which all values are whole numbers: 257, 1, 255 and 65535.
    """

    low: float = np.inf
    high: float = -np.inf
    mean: float = 0.0
    count: int = 0
    steps: set[int] = field(default_factory=lambda: {UINT16_STEP, 1, 255, 65535})

    def add(self, band: np.ndarray) -> None:
        """Add rows (h, W, C) of an image; NaN means no data."""
        if band.dtype.kind == "f" and (lost := np.isnan(band)).any():
            band = band[~lost]
            if not band.size:
                return
        self.low, self.high = min(self.low, float(band.min())), max(self.high, float(band.max()))
        self.mean += (
            (float(band.mean(dtype=np.float64)) - self.mean) * band.size / (self.count + band.size)
        )
        self.count += band.size
        self.steps = {step for step in self.steps if has_steps(band, step)}

    def describe(self) -> str:
        """Return the range for messages."""
        return f"{self.low:g} to {self.high:g}"


def has_steps(band: np.ndarray, step: int) -> bool:
    """Return True if all values are multiples of 257 (``step`` 257), whole numbers (1) or k / ``step``."""
    if step == UINT16_STEP:
        return band.dtype == np.uint16 and not (band % UINT16_STEP).any()
    if band.dtype.kind != "f":
        return step == 1
    scaled = band * np.float64(step)
    return bool((np.abs(scaled - np.rint(scaled)) <= (0 if step == 1 else ROUNDING)).all())


@dataclass(frozen=True)
class ValueConversion:
    """Conversion of stored values to the type of the training images.

    Attributes:
        factor: number that the values are multiplied by.
        dtype: type of the result; None: the values stay as they are.
        remark: a line for the user; empty if nothing is converted.
    """

    factor: float = 1.0
    dtype: np.dtype | None = None
    remark: str = ""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the values (..., C) of an image in the type of the training images."""
        if self.dtype is None:
            return pixels
        scaled = pixels * np.float64(self.factor)
        if pixels.dtype.kind == "f" and np.isnan(pixels).any():  # no data
            return scaled.astype(np.float32)
        return (np.rint(scaled) if self.dtype.kind == "u" else scaled).astype(self.dtype)


def scan_bands(image: np.ndarray) -> Iterable[np.ndarray]:
    """Yield an image (H, W, C) in bands of rows."""
    for start in range(0, len(image), SCAN_ROWS):
        yield image[start : start + SCAN_ROWS]


def find_conversion(
    intensity: Normalization, dtype: np.dtype, bands: Iterable[np.ndarray], name: str
) -> ValueConversion:
    """Return the conversion of an image to the type of a run's training images.

    Args:
        intensity: of the run.
        dtype: type of the image.
        bands: of the image; read only if the type or the range has to be examined.
        name: of the image, for messages.

    Raises:
        DataError: if the image has another type, or floats of another range, and its values leave a doubt.
    """
    # The type that the run was trained on needs no conversion
    trained = intensity.stored_type
    if trained is None or (dtype == trained and trained.kind == "u"):
        return ValueConversion()
    # Range and step of the image's values, band by band
    values = ValueRange()
    for band in bands:
        values.add(band)
    if values.high <= 0 <= values.low:  # all values are 0
        return ValueConversion(dtype=trained)
    # Find a conversion to the trained type, without guessing where several are possible
    if trained == np.uint8:
        found = to_uint8(values, dtype)
    elif trained == np.uint16:
        found = to_uint16(values, dtype, intensity)
    else:
        found = to_float(values, dtype, intensity)
    if found is None:
        known = intensity.value_range
        span = "" if known is None else f" of {known[0]:g} to {known[1]:g}"
        raise DataError(
            file=name,
            found=f"{dtype} values of {values.describe()}, but the run was trained on {trained} values{span}",
            remedy="convert the image as the training images were",
            kind="pixels",
        )
    return found


def to_uint8(values: ValueRange, dtype: np.dtype) -> ValueConversion | None:
    """Return the conversion to 8 bits: of 16-bit values in steps of 257, of floats in 0..1, or of values in 0..255."""
    # 8-bit values stored as 16 bits: all are multiples of 257
    if UINT16_STEP in values.steps:
        remark = f"{dtype} in steps of {UINT16_STEP} is read as uint8"
        return ValueConversion(1 / UINT16_STEP, np.dtype(np.uint8), remark)
    if values.low < 0 or values.high > 255:
        return None
    # Floats in 0..1, if more than black and white
    if dtype.kind == "f" and values.high <= 1:
        if 1 in values.steps:
            return None  # only 0 and 1: a dark image, or a binary one
        whole = np.dtype(np.uint8 if 255 in values.steps else np.float32)
        return ValueConversion(255.0, whole, f"{dtype} in 0..1 is read as uint8 in 0..255")
    if dtype.kind == "f":
        return ValueConversion()
    remark = f"{dtype} in 0..255 is read as uint8"
    return ValueConversion(1.0, np.dtype(np.uint8), remark)


def to_uint16(
    values: ValueRange, dtype: np.dtype, intensity: Normalization
) -> ValueConversion | None:
    """Return the conversion to 16 bits: of floats k / 65535 in 0..1, or of values that can't be those of 8 bits."""
    # Whether the run was trained on 16-bit images whose values fit into 8 bits
    small = intensity.value_range is not None and intensity.value_range[1] <= 255
    if values.low < 0 or values.high > 65535:
        return None
    # Floats in 0..1 must be multiples of 1 / 65535, and not of 1 / 255 or 1
    if dtype.kind == "f" and values.high <= 1:
        if 1 in values.steps or 65535 not in values.steps or 255 in values.steps:
            return None
        remark = f"{dtype} in 0..1 is read as uint16 in 0..65535"
        return ValueConversion(65535.0, np.dtype(np.uint16), remark)
    # 8-bit values are refused, unless the run was trained on such values
    if values.high <= 255 and not small:
        return None
    whole = 1 in values.steps
    remark = "" if dtype.kind == "f" else f"{dtype} is read as uint16 of the same values"
    return ValueConversion(1.0, np.dtype(np.uint16 if whole else np.float32), remark)


def to_float(
    values: ValueRange, dtype: np.dtype, intensity: Normalization
) -> ValueConversion | None:
    """Return the conversion to floats: none, if the values can be of the range of the training images."""
    # Runs without a known range take any values
    if intensity.value_range is None:
        return ValueConversion()
    # The mean must be near the trained range
    low, high = intensity.value_range
    span = high - low
    if not low - span <= values.mean <= high + span:
        return None
    # A range of 0..1 and a range of integers are different scales
    unit = 0 <= values.low < values.high <= 1
    if unit and high > 50:
        return None  # 0..1 where the run knows 0..255 or more
    if dtype.kind == "u" and high <= 1:
        return None
    return ValueConversion()


def convert_image(intensity: Normalization, image: np.ndarray, name: str) -> np.ndarray:
    """Return an image (H, W, C) in the type of a run's training images; see ``find_conversion``."""
    return find_conversion(intensity, image.dtype, scan_bands(image), name)(image)
