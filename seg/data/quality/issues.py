"""Kinds of issues of a data set, and one issue with its remedy.

The sources decide what a file may hold; their errors become issues here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from seg.errors import DataError


class IssueKind(NamedTuple):
    """Kind of issue: its heading, whether it is an error (else a warning), and what is required instead."""

    heading: str
    error: bool
    expected: str


ISSUE_KINDS = {  # the most important first
    "unreadable": IssueKind("files that can't be read", True, "a whole image file"),
    "no_mask": IssueKind("images without a mask", True, "a mask of that name"),
    "no_image": IssueKind("masks without an image", True, "an image of that name"),
    "same_name": IssueKind("files of one name", True, "a name of its own"),
    "pixels": IssueKind("images whose pixels can't be used", True, "finite numbers"),
    "size": IssueKind("masks of another size than their image", True, "the same height and width"),
    "colours": IssueKind("masks whose colours nobody declared", True, "one class index a pixel, or declared colours"),
    "noise": IssueKind("masks with JPEG noise", True, "only the values declared"),
    "values": IssueKind("mask values that nobody declared", True, "only the values declared"),
    "other": IssueKind("files that aren't what the data's config says", True, "see the remedy"),
    "unlike": IssueKind("images unlike the others", True, "one type and number of channels"),
    "empty": IssueKind("splits without images", True, "at least one image"),
    "ignored": IssueKind("masks that are ignored altogether", True, "at least one pixel of a class"),
    "never": IssueKind("classes that never occur", True, "at least one pixel"),
    "untrained": IssueKind("classes that the training split lacks", True, "at least one training image"),
    "contradiction": IssueKind("one image with two masks", True, "one mask for the same pixels"),
    "leak": IssueKind("the same image in two splits", True, "no image in two splits"),
    "copy_leak": IssueKind("almost the same pixels in two splits", True, "no image in two splits"),
    "passed_over": IssueKind("files that are not read", False, "a format that is read"),
    "turned": IssueKind("masks that fit their image better when turned", False, "the image's own orientation"),
    "orientation": IssueKind("images that a tag turns, unlike their masks", False, "the same orientation"),
    "low_byte": IssueKind("8 bits of a 16-bit image", False, "neighbours that differ little"),
    "near_leak": IssueKind("nearly the same image in two splits", False, "no image in two splits"),
    "same_mask": IssueKind("different images with the very same mask", False, "a mask for each image"),
    "merged": IssueKind("objects that merge, vanish or fall apart in the mask that is learned", False, "a region of its own for each object"),
    "unscored": IssueKind("classes that a scored split lacks", False, "each class in each split"),
    "repeated": IssueKind("the same image twice in a split", False, "each image once"),
    "near_repeated": IssueKind("nearly the same images in a split", False, "each image once"),
    "depth": IssueKind("16-bit images that use fewer bits", False, "values up to 65535"),
    "flat": IssueKind("images without contrast", False, "pixels of different values"),
    "palette": IssueKind("palette images read as their colours", False, "grey values or true colours"),
    "grey": IssueKind("grey images saved as colours", False, "one channel"),
}  # fmt: skip
KINDS_BY_IMPORTANCE = list(ISSUE_KINDS)
# Kinds that can be left out: their files can be read.
OPTIONAL_KINDS = KINDS_BY_IMPORTANCE[KINDS_BY_IMPORTANCE.index("ignored") :]
UNPAIRED_KINDS = ("no_mask", "no_image", "same_name")  # kinds of files that a check leaves out
COPY_REMEDY = "copy it again from its origin, or take it and its pair out"


@dataclass(frozen=True)
class Issue:
    """One finding.

    Attributes:
        kind: key of ``ISSUE_KINDS``.
        file: path, or what else the issue was found in.
        found: what is wrong.
        remedy: the option or the action that corrects it.
        expected: what is required instead; empty: as the kind says.
        name: of the image in its source; empty if there is none.
    """

    kind: str
    file: str
    found: str
    remedy: str
    expected: str = ""
    name: str = ""

    @property
    def error(self) -> bool:
        """True for an error, False for a warning."""
        return ISSUE_KINDS[self.kind].error

    @property
    def requirement(self) -> str:
        """Requirement that is not met."""
        return self.expected or ISSUE_KINDS[self.kind].expected

    def line(self) -> str:
        """Return the issue in one line."""
        return f"{self.file}: {self.found}; {self.remedy}"


def issue_from_error(error: DataError, root: Path | None) -> Issue:
    """Return a source's error as an issue whose paths are relative to ``root``."""
    file, found, remedy = error.file, error.found, error.remedy
    if not file:  # an error without fields: FILE: FOUND; REMEDY
        file, _, line = relative_paths(str(error), root).partition(": ")
        found, _, remedy = line.partition("; ")
    if not remedy:
        remedy = COPY_REMEDY if error.kind == "unreadable" else "see the guide to data"
    texts = (relative_paths(text, root) for text in (file, found, remedy, error.expected))
    return Issue(error.kind, *texts)


def relative_paths(text: str, root: Path | None) -> str:
    """Return a message with the paths below ``root`` relative to it."""
    return text if root is None or root == Path() else text.replace(f"{root}/", "")


def check_kinds(kinds: Collection[str] | None) -> None:
    """Raise ValueError for kinds that are unknown or can't be left out."""
    unknown = sorted(set(kinds or ()) - set(OPTIONAL_KINDS))
    if unknown:
        raise ValueError(f"skip_checks has {unknown}; valid are {list(OPTIONAL_KINDS)}")


def count_noun(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 image`` or ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_percent(share: float) -> str:
    """Return 0.12345 as ``12.3 %``; a positive share is never ``0.0 %``."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
