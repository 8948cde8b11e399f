"""Random crops and albumentations, seeded for each sample from (seed, epoch, index).

Left to itself albumentations draws from one generator of its own, which loader workers inherit and
repeat, and which no global seed reaches; given a seed, it correlates its transforms. So each call
here hands it fresh generators: the result is the same for any number of workers and in any order.
"""

import random

import albumentations as A
import cv2
import numpy as np


class Augment:
    """A random crop, then the configured transforms.

    Args:
        transform: spatial ones must reflect at borders or fill masks with 255, or they invent class 0.
        crop: px, side of the square; smaller images are padded by reflection. None: no crop.
        seed: of the run.
        context: px mirrored at each border before the crop.
    """

    def __init__(self, transform: A.Compose, crop: int | None, seed: int, context: int = 0) -> None:
        mirror = cv2.BORDER_REFLECT_101
        cropping: list[A.BasicTransform] = []
        if context:
            cropping.append(A.Pad(context, border_mode=mirror))
        if crop is not None:
            cropping.append(A.RandomCrop(crop, crop, pad_if_needed=True, border_mode=mirror))
        self.compose = A.Compose([*cropping, *transform.transforms])
        self.seed = seed

    def __call__(
        self, image: np.ndarray, masks: list[np.ndarray], epoch: int, index: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Image (H, W, C) float32 in 0..1 and what lies on it, (H, W) or (H, W, K), transformed together."""
        key = np.random.SeedSequence([self.seed, epoch, index])
        for_python = int(key.generate_state(1)[0])
        self.compose.set_random_state(np.random.default_rng(key), random.Random(for_python))
        out = self.compose(image=np.ascontiguousarray(image), masks=masks)
        image = out["image"] if out["image"].ndim == 3 else out["image"][..., None]
        return image, list(out["masks"])
