"""Random crops and albumentations, seeded for each sample from (seed, epoch, index).

By default albumentations draws from a generator of its own, which DataLoader workers inherit and repeat and
which no global seed reaches; given a seed, it correlates its transforms. So each call here passes it new
generators: the result is the same for any number of workers and in any order. Two more of its defaults are
errors here: a misspelt argument, of which it only warns, and borders filled with class 0.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.geometric.distortion import BaseDistortion
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BaseTransformInitSchema
from pydantic import Field
from scipy.interpolate import CubicSpline

from seg.data.sections import JoinedSections
from seg.errors import DataError
from seg.labels import IGNORE

NORMALISING_TRANSFORMS = (
    A.Normalize,
    A.ToFloat,
    A.FromFloat,
    A.ToTensorV2,
)  # done here, after all transforms
TRANSFORM_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    NotImplementedError,
    cv2.error,
)  # raised by transforms


class CoarseElastic(BaseDistortion):
    """Elastic deformation of the U-Net paper: random displacements of a coarse grid, bicubic between.

    Ronneberger et al. 2015, section 3.1. The grid's outer points lie on the image's edges; the surface's slope
    across them is 0, which the paper leaves open. Masks are interpolated by nearest neighbour.

    Args:
        grid: points per side, 2 or more.
        sigma: px, standard deviation of each point's displacement along each axis.
        interpolation: of the image, OpenCV's code: 1 linear, 2 cubic.
        border_mode: OpenCV's code for pixels beyond the edge: 4 mirrored, 0 black with ignored labels.
        p: share of the samples, 0..1.
    """

    class InitSchema(BaseTransformInitSchema):  # ty: ignore[incompatible-attribute-override]
        grid: int = Field(ge=2)
        sigma: float = Field(ge=0)
        interpolation: Literal[0, 1, 2, 4]
        border_mode: Literal[0, 1, 2, 3, 4]

    def __init__(
        self,
        grid: int = 3,
        sigma: float = 10.0,
        interpolation: Literal[0, 1, 2, 4] = 1,
        border_mode: Literal[0, 1, 2, 3, 4] = 4,
        p: float = 0.5,
    ) -> None:
        super().__init__(
            interpolation, cv2.INTER_NEAREST, "mask", p, border_mode, fill=0, fill_mask=IGNORE
        )
        self.grid, self.sigma = grid, sigma

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
        """Return the source coordinates of each pixel, two maps (H, W) float32."""
        height, width = params["shape"][:2]
        coarse = self.random_generator.normal(0, self.sigma, (2, self.grid, self.grid))
        down, right = (
            spline_weights(height, self.grid) @ coarse @ spline_weights(width, self.grid).T
        )
        rows, columns = np.mgrid[:height, :width]
        return {
            "map_x": (columns + right).astype(np.float32),
            "map_y": (rows + down).astype(np.float32),
        }


@lru_cache(maxsize=64)
def spline_weights(size: int, points: int) -> np.ndarray:
    """Return the weights (size, points) of the cubic spline through evenly spaced points, slope 0 at the ends."""
    cubic = CubicSpline(np.linspace(0, 1, points), np.eye(points), bc_type="clamped")
    return cubic(np.linspace(0, 1, size))


@dataclass(frozen=True)
class RareClassCrop:
    """Crops centred on rare classes.

    Attributes:
        share: of the crops, 0..1; the others lie anywhere.
        classes: indices, drawn equally often in the images that have them.
    """

    share: float
    classes: list[int]

    def draw_centre(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return a pixel (row, column) of one class in a mask (H, W) or (H, W, K); None: a crop anywhere."""
        if rng.random() >= self.share:
            return None
        for k in rng.permutation(self.classes):
            pixels = np.flatnonzero(mask == k if mask.ndim == 2 else mask[..., k] == 1)
            if pixels.size:
                row, column = divmod(int(pixels[rng.integers(pixels.size)]), mask.shape[1])
                return row, column
        return None


def draw_labelled_pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return a pixel (row, column) of a mask (H, W) or (H, W, K) that is not ignored; None: there is none."""
    labelled = np.flatnonzero(mask != IGNORE if mask.ndim == 2 else (mask != IGNORE).any(-1))
    if not labelled.size:
        return None
    row, column = divmod(int(labelled[rng.integers(labelled.size)]), mask.shape[1])
    return row, column


class Augment:
    """Random crop, followed by the configured transforms.

    Args:
        transform: spatial ones must mirror at borders or fill masks with 255.
        crop: px, side of the square; smaller images are padded by reflection. None: no crop.
        seed: of the run.
        context: px mirrored at each border before the crop.
        focus: crops centred on rare classes; None: no such crops.
        neighbours: sections on each side whose channels the image has, too; all are transformed alike.

    Raises:
        DataError: for a transform that would add wrong labels, or has an unknown argument.
    """

    def __init__(
        self,
        transform: A.BasicTransform | BaseCompose,
        crop: int | None,
        seed: int,
        context: int = 0,
        focus: RareClassCrop | None = None,
        neighbours: int = 0,
    ) -> None:
        check_transforms(transform)
        self.crop, self.seed, self.context, self.focus = crop, seed, context, focus
        self.neighbours = neighbours
        always = isinstance(transform, A.Compose) and transform.p == 1
        transforms = transform.transforms if always else [transform]
        self.names = ", ".join(type(part).__name__ for part in transforms)
        self.compose = A.Compose(transforms)

    def without_transforms(self) -> "Augment":
        """Return the same crops without transforms."""
        return Augment(
            A.Compose([]), self.crop, self.seed, self.context, self.focus, self.neighbours
        )

    def __call__(
        self,
        image: np.ndarray | JoinedSections,
        masks: list[np.ndarray],
        epoch: int,
        index: int,
        scaled: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Crop, scale and transform an image and its masks together.

        A crop in which every pixel is ignored is replaced by one around a pixel that is not, if there is any.

        Args:
            image: (H, W, C) as stored.
            masks: (H, W) or (H, W, K) each; the first holds labels.
            epoch: from 0.
            index: of the sample in the epoch.
            scaled: function that scales (h, w, C) as stored to float32 in 0..1.

        Returns:
            The image, float32, and the masks, all of the crop's size.

        Raises:
            DataError: if a transform does not accept the image, changes the crop's size, or adds a label to the
                mask that is not in the crop.
        """
        # Crop: the generators depend on (seed, epoch, index) alone.
        key = np.random.SeedSequence([self.seed, epoch, index])
        chance = random.Random(int(key.generate_state(1)[0]))
        chance.random()  # unused; without it a seed would give other crops than in earlier versions
        if self.crop is not None:
            centre = None
            if self.focus:
                drawn = np.random.default_rng([self.seed, epoch, index, 1])
                centre = self.focus.draw_centre(masks[0], drawn)
            starts = None if centre else (chance.random(), chance.random())
            cut = cut_square(masks[0], self.crop, self.context, starts, centre)
            if not self.has_label(cut):
                # Without a label the step would do nothing: the crop moves to a labelled pixel
                drawn = np.random.default_rng([self.seed, epoch, index, 2])
                moved = draw_labelled_pixel(masks[0], drawn)
                starts, centre = (starts, centre) if moved is None else (None, moved)
                cut = cut_square(masks[0], self.crop, self.context, starts, centre)
            image, *others = (
                cut_square(layer, self.crop, self.context, starts, centre)
                for layer in (image, *masks[1:])
            )
            masks = [cut, *others]
        pixels = image[:]  # joined, without a crop
        # Transform.
        self.compose.set_random_state(np.random.default_rng(key), chance)
        try:
            pixels, changed = self.transform(np.ascontiguousarray(scaled(pixels)), masks)
        except TRANSFORM_ERRORS as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"augment ({self.names}): {reason}; the image is {pixels.shape} {pixels.dtype}"
            ) from error
        # Check size and labels.
        if self.crop and pixels.shape[:2] != (self.crop, self.crop):
            raise DataError(
                f"augment ({self.names}): makes {pixels.shape[0]}x{pixels.shape[1]} px of a crop of "
                f"{self.crop}x{self.crop}; leave out what changes the size"
            )
        labels = self.labels(masks[0], changed[0])
        return pixels, [labels, *changed[1:]]

    def transform(
        self, image: np.ndarray, masks: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Transform an image (H, W, C) and its masks together; its sections as images of their own, all alike."""
        if not self.neighbours:
            out = self.compose(force_apply=True, image=image, masks=masks)
            return out["image"] if out["image"].ndim == 3 else out["image"][..., None], out["masks"]
        sections = np.stack(np.split(image, 2 * self.neighbours + 1, axis=-1))  # (S, H, W, C)
        out = self.compose(force_apply=True, images=sections, masks=masks)
        changed = [one if one.ndim == 3 else one[..., None] for one in out["images"]]
        return np.concatenate(changed, axis=-1), out["masks"]

    def has_label(self, mask: np.ndarray) -> bool:
        """Return True if a crop's mask has a pixel that is not ignored, inside the context."""
        inner = slice(self.context, -self.context or None)
        scored = mask[inner, inner] if min(mask.shape[:2]) > 2 * self.context else mask
        return bool((scored != IGNORE).any())

    def labels(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return the transformed mask as uint8; raise DataError if it has new labels other than ``IGNORE``."""
        whole = after.astype(np.uint8)  # float32 if there is a float32 weight map
        if (whole != after).any():
            raise DataError(
                f"augment ({self.names}): interpolates masks; nearest neighbour is needed"
            )
        for value in np.flatnonzero(np.bincount(whole.ravel(), minlength=IGNORE)):
            new = (whole == value).any((0, 1)) & ~(before == value).any((0, 1))
            if value != IGNORE and new.any():
                raise DataError(
                    f"augment ({self.names}): the mask has value {value} after it, and not before; mirror at "
                    f"borders (border_mode: 4) or fill masks with {IGNORE}"
                )
        return whole


def cut_square(
    layer: np.ndarray | JoinedSections,
    crop: int,
    context: int,
    starts: tuple[float, float] | None,
    centre: tuple[int, int] | None,
) -> np.ndarray:
    """Return a square of an array (H, W, ...), of which no more is read if it is mapped from disk.

    Args:
        layer: image or mask.
        crop: px, side of the square.
        context: px mirrored at each border.
        starts: position along each axis, as a share, 0..1, of the possible ones; None: by ``centre``.
        centre: pixel (row, column) in the middle, if the border permits.
    """
    # Indices of its rows and columns; a slice where they are consecutive.
    rows, columns = (
        crop_indices(
            side, crop, context, None if starts is None else starts[i], centre and centre[i]
        )
        for i, side in enumerate(layer.shape[:2])
    )
    inside = [p[-1] - p[0] == len(p) - 1 and (np.diff(p) == 1).all() for p in (rows, columns)]
    if all(inside):
        return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return layer[rows[:, None], columns]


def crop_indices(
    side: int, crop: int, context: int, start: float | None, middle: int | None
) -> np.ndarray:
    """Return the indices of a side's pixels in a crop, mirrored beyond the border; see ``cut_square``."""
    pixels = np.pad(np.arange(side), context, mode="reflect")
    missing = max(crop - len(pixels), 0)
    room = len(pixels) - crop + missing
    if start is not None:
        first = int((room + 1) * start)
    else:
        assert middle is not None
        first = min(max(middle + context - crop // 2, 0), room)
    return np.pad(pixels, (missing // 2, missing - missing // 2), "reflect")[first : first + crop]


def iterate_transforms(transform: A.BasicTransform | BaseCompose) -> Iterator[A.BasicTransform]:
    """Yield the transforms of a composition and of those inside it."""
    if isinstance(transform, BaseCompose):
        for part in transform.transforms:
            yield from iterate_transforms(part)
    else:
        yield transform


def turning_transform(transform: A.BasicTransform | BaseCompose) -> str:
    """Return the name of the first transform that swaps height and width; empty if there is none."""
    turning = (A.D4, A.Transpose, A.RandomRotate90)
    return next(
        (
            type(part).__name__
            for part in iterate_transforms(transform)
            if isinstance(part, turning)
        ),
        "",
    )


def check_transforms(transform: A.BasicTransform | BaseCompose) -> None:
    """Raise DataError for arguments that albumentations ignores, and for transforms that would damage masks."""
    for part in iterate_transforms(transform):
        name = type(part).__name__
        # Arguments that albumentations ignores, and transforms that are done later.
        if part.invalid_args:
            arguments = ", ".join(inspect.signature(type(part)).parameters)
            raise DataError(
                f"augment: {name} has no argument {part.invalid_args[0]}; it has {arguments}"
            )
        if isinstance(part, NORMALISING_TRANSFORMS):
            raise DataError(
                f"augment: remove {name}; images are normalised after augmentation, with the training "
                "split's statistics"
            )
        # Transforms that interpolate labels or fill with them.
        if getattr(part, "mask_interpolation", 0) not in (
            cv2.INTER_NEAREST,
            cv2.INTER_NEAREST_EXACT,
        ):
            raise DataError(f"augment: {name} interpolates masks; mask_interpolation: 0 is needed")
        if fills_with_label(part):
            fill = getattr(part, "fill_mask", None)
            mirror = "border_mode: 4 (mirror) or " if hasattr(part, "border_mode") else ""
            raise DataError(
                f"augment: {name} fills masks with {fill}, a class that nobody labelled; give it "
                f"{mirror}fill_mask: {IGNORE} (ignored)"
            )


def fills_with_label(transform: A.BasicTransform) -> bool:
    """Return whether a transform fills masks with a label other than ``IGNORE``."""
    fill = getattr(transform, "fill_mask", None)
    if fill is None or np.all(np.asarray(fill) == IGNORE):
        return False
    pads = getattr(transform, "pad_if_needed", True)
    return pads and getattr(transform, "border_mode", cv2.BORDER_CONSTANT) == cv2.BORDER_CONSTANT
