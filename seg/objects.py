"""Objects as labels: the border between touching ones, which a network learns as a gap, and its inverse.

Labels are (H, W) int32: 0 is background, each object has its own positive number, -1 is ignored.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
    label,
    maximum_filter,
    minimum_filter,
)

FOUR_NEIGHBOURS = generate_binary_structure(2, 1)
IGNORED_OBJECT = -1  # label of the pixels that are not scored


def label_components(mask: NDArray) -> NDArray[np.int32]:
    """Label the 4-connected components of a mask (H, W) bool, from 1 in reading order."""
    labels = np.empty(mask.shape, np.int32)
    label(mask, FOUR_NEIGHBOURS, labels)
    return labels


def first_pixels(labels: NDArray) -> NDArray[np.int64]:
    """Return the index in reading order of the first pixel of each label 0, 1 ...; the largest integer without one."""
    found = np.flatnonzero(labels)[::-1]  # of several values, an assignment keeps the last
    first = np.full(int(labels.max(initial=0)) + 1, np.iinfo(np.int64).max)
    first[labels.ravel()[found]] = found
    return first


def rank_by_position(first: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the new number of each label 0, 1 ... in the order of its first pixel; 0 stays 0."""
    rank = np.zeros(len(first), np.int32)
    rank[1 + np.argsort(first[1:], kind="stable")] = np.arange(1, len(first))
    return rank


def renumber_objects(labels: NDArray) -> NDArray[np.int32]:
    """Return the labels renumbered 1, 2 ... in the order of their old numbers; what is not positive becomes 0."""
    # The rank among the present labels is the new number
    present = np.unique(labels[labels > 0])
    return ((np.searchsorted(present, labels) + 1) * (labels > 0)).astype(np.int32)


def find_borders(labels: NDArray, border: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) of objects that are at most ``border`` px from another object.

    Between two objects that touch they form a gap of ``2 * border`` px. An object without other pixels has none
    of them, so that it does not vanish.
    """
    if border == 0:
        return np.zeros(labels.shape, bool)
    # The largest and the smallest label in a disc around each pixel are its own, if there is no other object
    offsets = np.arange(-border, border + 1)
    disc = offsets[:, None] ** 2 + offsets**2 <= border**2
    objects = np.maximum(labels, 0)
    others = np.where(objects > 0, objects, np.iinfo(objects.dtype).max)
    near = maximum_filter(objects, footprint=disc, mode="nearest") != objects
    near |= minimum_filter(others, footprint=disc, mode="nearest") != others
    near &= objects > 0
    whole = np.bincount(objects[~near], minlength=int(objects.max(initial=0)) + 1) == 0
    return near & ~whole[objects]


def grow_objects(labels: NDArray, border: int) -> NDArray[np.int32]:
    """Return the labels with the gaps between objects closed: the inverse of ``find_borders``.

    A pixel of the background becomes part of the nearest object if its distances to the two nearest objects add up to
    what they do in a gap of ``2 * border`` px, straight or diagonal. Narrower gaps stay, and objects do not grow where no
    other object is near.
    """
    if border == 0:
        return labels
    nearest, second, owner = nearest_two(labels, 2 * border + 1)
    across, width = (
        nearest + second,
        2 * border + 1,
    )  # px between the centres of the pixels on both sides
    gap = (labels == 0) & (across > width / 2**0.5) & (across <= width)
    return np.where(gap, owner, labels)


def nearest_two(labels: NDArray, reach: int) -> tuple[NDArray, NDArray, NDArray[np.int32]]:
    """Return the distances of each pixel to the nearest and to the second nearest object, and the nearest object.

    Distances are in px between the centres of pixels, 0 inside the object; inf and 0 if there is no object within
    ``reach`` px along an axis.
    """
    nearest, second = np.full(labels.shape, np.inf), np.full(labels.shape, np.inf)
    owner = np.zeros(labels.shape, np.int32)
    # Object by object, in the window that it reaches
    for number, box in enumerate(find_objects(np.maximum(labels, 0)), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = distance_transform_edt(labels[around] != number)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        owner[around][distance < nearest[around]] = number
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest, second, owner
