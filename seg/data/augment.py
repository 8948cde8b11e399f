"""Random crops and albumentations, seeded for each sample from (seed, epoch, index).

Left to itself albumentations draws from one generator of its own, which loader workers inherit and
repeat, and which no global seed reaches; given a seed, it correlates its transforms. So each call
here hands it fresh generators: the result is the same for any number of workers and in any order.
Its other traps are errors here: a misspelt argument, which it only warns of, and borders filled
with class 0, which is its default.
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

from seg.errors import DataError
from seg.logits import IGNORE

MIRROR = cv2.BORDER_REFLECT_101
TO_NETWORK = (A.Normalize, A.ToFloat, A.FromFloat, A.ToTensorV2)  # ours, after all transforms
REFUSALS = (ValueError, TypeError, KeyError, NotImplementedError, cv2.error)  # of a transform


class CoarseElastic(BaseDistortion):
    """The U-Net paper's elastic deformation: random displacements of a coarse grid, bicubic between.

    Ronneberger et al. 2015, section 3.1. The grid's outer points lie on the image's edges; the surface
    is flat across them, a choice that the paper leaves open. Masks take the nearest pixel.

    Args:
        grid: points a side, 2 or more.
        sigma: px, standard deviation of each point's displacement along each axis.
        interpolation: of the image, as OpenCV counts them: 1 linear, 2 cubic.
        border_mode: what comes in over the edge: 4 the mirrored image, 0 black, where labels are ignored.
        p: share of the samples.
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
        """Where each pixel comes from: (H, W) float32 each."""
        height, width = params["shape"][:2]
        coarse = self.random_generator.normal(0, self.sigma, (2, self.grid, self.grid))
        down, right = spline(height, self.grid) @ coarse @ spline(width, self.grid).T
        rows, columns = np.mgrid[:height, :width]
        return {
            "map_x": (columns + right).astype(np.float32),
            "map_y": (rows + down).astype(np.float32),
        }


@lru_cache(maxsize=64)
def spline(size: int, points: int) -> np.ndarray:
    """Weights (size, points) of the cubic spline through evenly spread points, of slope 0 at both ends."""
    through = CubicSpline(np.linspace(0, 1, points), np.eye(points), bc_type="clamped")
    return through(np.linspace(0, 1, size))


@dataclass(frozen=True)
class Focus:
    """Crops that are centred on rare classes.

    Attributes:
        share: of the crops, 0..1; the others lie anywhere.
        classes: each as often as the others, in images that have it.
    """

    share: float
    classes: list[int]

    def centre(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """A pixel of one of the classes in a mask (H, W) or (H, W, K); None: the crop lies anywhere."""
        if rng.random() >= self.share:
            return None
        for k in rng.permutation(self.classes):
            pixels = np.flatnonzero(mask == k if mask.ndim == 2 else mask[..., k] == 1)
            if pixels.size:
                row, column = divmod(int(pixels[rng.integers(pixels.size)]), mask.shape[1])
                return row, column
        return None


class Augment:
    """A random crop, then the configured transforms.

    Args:
        transform: spatial ones must mirror at borders or fill masks with 255.
        crop: px, side of the square; smaller images are padded by reflection. None: no crop.
        seed: of the run.
        context: px mirrored at each border before the crop.
        focus: which crops lie on rare classes; None: none do.

    Raises:
        DataError: for a transform that would invent labels, or has an argument that it doesn't know.
    """

    def __init__(
        self,
        transform: A.BasicTransform | BaseCompose,
        crop: int | None,
        seed: int,
        context: int = 0,
        focus: Focus | None = None,
    ) -> None:
        check_transforms(transform)
        self.crop, self.seed, self.context, self.focus = crop, seed, context, focus
        always = isinstance(transform, A.Compose) and transform.p == 1
        transforms = transform.transforms if always else [transform]
        self.names = ", ".join(type(one).__name__ for one in transforms)
        self.compose = A.Compose(transforms)

    def alone(self) -> "Augment":
        """The very same crops, and no transforms after them."""
        return Augment(A.Compose([]), self.crop, self.seed, self.context, self.focus)

    def __call__(
        self,
        image: np.ndarray,
        masks: list[np.ndarray],
        epoch: int,
        index: int,
        scaled: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """An image and what lies on it, cropped, scaled and transformed together.

        Args:
            image: (H, W, C) as stored.
            masks: (H, W) or (H, W, K) each. The first holds labels, and no label that isn't in the crop
                comes out of the transforms.
            epoch: from 0.
            index: of the sample in the epoch.
            scaled: (h, w, C) as stored -> float32 in 0..1.

        Returns:
            The same of the crop's size, the image float32.

        Raises:
            DataError: when a transform can't take the image, changes the crop's size, or invents a label.
        """
        key = np.random.SeedSequence([self.seed, epoch, index])
        chance = random.Random(int(key.generate_state(1)[0]))
        chance.random()  # unused, and kept: a seed has meant these crops from the beginning
        if self.crop is not None:
            centre = None
            if self.focus:
                drawn = np.random.default_rng([self.seed, epoch, index, 1])
                centre = self.focus.centre(masks[0], drawn)
            starts = None if centre else (chance.random(), chance.random())
            image, *masks = (
                cut(layer, self.crop, self.context, starts, centre) for layer in (image, *masks)
            )
        self.compose.set_random_state(np.random.default_rng(key), chance)
        try:
            ready = np.ascontiguousarray(scaled(image))
            out = self.compose(force_apply=True, image=ready, masks=masks)
        except REFUSALS as error:
            said = " ".join(str(error).split())
            raise DataError(
                f"augment ({self.names}): {said}; the image is {image.shape} {image.dtype}"
            ) from error
        image = out["image"] if out["image"].ndim == 3 else out["image"][..., None]
        if self.crop and image.shape[:2] != (self.crop, self.crop):
            raise DataError(
                f"augment ({self.names}): makes {image.shape[0]}x{image.shape[1]} px of a crop of "
                f"{self.crop}x{self.crop}; leave out what changes the size"
            )
        labels = self.labels(masks[0], out["masks"][0])
        return image, [labels, *out["masks"][1:]]

    def labels(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The mask as uint8, once it holds nothing new but ``IGNORE``."""
        whole = after.astype(np.uint8)  # beside a float32 map it comes out as float32
        if (whole != after).any():
            raise DataError(f"augment ({self.names}): interpolates masks; it must take the nearest")
        for value in np.flatnonzero(np.bincount(whole.ravel(), minlength=IGNORE)):
            new = (whole == value).any((0, 1)) & ~(before == value).any((0, 1))
            if value != IGNORE and new.any():
                raise DataError(
                    f"augment ({self.names}): the mask has value {value} after it, and not before; mirror at "
                    f"borders (border_mode: 4) or fill masks with {IGNORE}"
                )
        return whole


def cut(
    layer: np.ndarray,
    crop: int,
    context: int,
    starts: tuple[float, float] | None,
    centre: tuple[int, int] | None,
) -> np.ndarray:
    """A square of an array (H, W, ...): where ``starts``, 0..1 each way, say, or around the ``centre``.

    Only that square is read of an array that is mapped from disk.
    """
    rows, columns = (
        span(side, crop, context, None if starts is None else starts[i], centre and centre[i])
        for i, side in enumerate(layer.shape[:2])
    )
    inside = [p[-1] - p[0] == len(p) - 1 and (np.diff(p) == 1).all() for p in (rows, columns)]
    if all(inside):
        return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return layer[rows[:, None], columns]


def span(side: int, crop: int, context: int, start: float | None, middle: int | None) -> np.ndarray:
    """Which of a side's pixels a crop takes, mirrored beyond the border.

    It begins at the share ``start``, 0..1, of where it can, or lies around ``middle``, inside if it can.
    """
    pixels = np.pad(np.arange(side), context, mode="reflect")
    missing = max(crop - len(pixels), 0)
    room = len(pixels) - crop + missing
    if start is not None:
        first = int((room + 1) * start)
    else:
        assert middle is not None
        first = min(max(middle + context - crop // 2, 0), room)
    return np.pad(pixels, (missing // 2, missing - missing // 2), "reflect")[first : first + crop]


def parts(transform: A.BasicTransform | BaseCompose) -> Iterator[A.BasicTransform]:
    """The transforms of a composition, however deep."""
    if isinstance(transform, BaseCompose):
        for one in transform.transforms:
            yield from parts(one)
    else:
        yield transform


def turns(transform: A.BasicTransform | BaseCompose) -> str:
    """The first transform that swaps height and width; "": there is none."""
    turning = (A.D4, A.Transpose, A.RandomRotate90)
    return next((type(one).__name__ for one in parts(transform) if isinstance(one, turning)), "")


def check_transforms(transform: A.BasicTransform | BaseCompose) -> None:
    """Raises DataError for arguments that albumentations ignores, and for what would spoil masks."""
    for one in parts(transform):
        name = type(one).__name__
        if one.invalid_args:
            takes = ", ".join(inspect.signature(type(one)).parameters)
            raise DataError(
                f"augment: {name} has no argument {one.invalid_args[0]}; it has {takes}"
            )
        if isinstance(one, TO_NETWORK):
            raise DataError(
                f"augment: {name} has to go; images are normalised after augmentation, with the training "
                "split's statistics"
            )
        if getattr(one, "mask_interpolation", 0) not in (
            cv2.INTER_NEAREST,
            cv2.INTER_NEAREST_EXACT,
        ):
            raise DataError(f"augment: {name} interpolates masks; mask_interpolation: 0 is needed")
        if invents(one):
            fill = getattr(one, "fill_mask", None)
            mirror = "border_mode: 4 (mirror) or " if hasattr(one, "border_mode") else ""
            raise DataError(
                f"augment: {name} fills masks with {fill}, as if that were known; give it "
                f"{mirror}fill_mask: {IGNORE} (ignored)"
            )


def invents(transform: A.BasicTransform) -> bool:
    """Whether labels come in that nobody drew."""
    fill = getattr(transform, "fill_mask", None)
    if fill is None or np.all(np.asarray(fill) == IGNORE):
        return False
    pads = getattr(transform, "pad_if_needed", True)
    return pads and getattr(transform, "border_mode", cv2.BORDER_CONSTANT) == cv2.BORDER_CONSTANT
