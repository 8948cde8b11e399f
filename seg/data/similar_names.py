"""Names that differ only in case, in white space or in the encoding of accents (composed or decomposed)."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

SIMILAR_HINT = "rename one, or pair such names with data.similar_names=true"


def similar_key(name: str) -> str:
    """Return a key that is equal for names that differ only in case, white space or the encoding of accents."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    return "".join(folded.split())


def describe_difference(name: str, other: str) -> str:
    """Return how two names with the same key differ, such as "case and white space"."""
    parts = {  # each ignores the other two
        "the encoding of accents": lambda text: "".join(text.casefold().split()),
        "case": lambda text: "".join(unicodedata.normalize("NFD", text).split()),
        "white space": lambda text: unicodedata.normalize("NFD", text).casefold(),
    }
    return " and ".join(part for part, kept in parts.items() if kept(name) != kept(other))


def find_similar(name: str, others: Iterable[str]) -> str:
    """Return a note on the first of other names that has the same key, or an empty text."""
    key = similar_key(name)
    other = next((other for other in others if other != name and similar_key(other) == key), None)
    return "" if other is None else f"{other!r} differs only in {describe_difference(name, other)}"


def similar_file(file: Path) -> Path | None:
    """Return the file of the same folder whose name is similar; None if there is not exactly one."""
    try:
        names = os.listdir(file.parent)
    except OSError:
        return None
    alike = [name for name in names if similar_key(name) == similar_key(file.name)]
    return file.parent / alike[0] if len(alike) == 1 else None
