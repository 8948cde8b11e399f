"""Page to look through regions in doubt: doubt.html, one file without network requests, whose table is saved as CSV.

Names are untrusted: jinja2 escapes them in the markup, ``embed_json`` in the data; a Content-Security-Policy allows
the page's own script alone.
"""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2

from seg.comparison.page import embed_json, script_hash
from seg.files import read_bytes

LARGEST_PICTURE = 64 * 2**20  # bytes


class DoubtCard(NamedTuple):
    """A region on the page, in the order of the table's rows.

    Attributes:
        title: image, classes and evidence.
        kind: region, shifted mask or whole mask.
        remedy: what accepting the class does.
        stands_out: whether the region does.
        picture: PNG as a data URI.
    """

    title: str
    kind: str
    remedy: str
    stands_out: bool
    picture: str


def picture_uri(file: Path) -> str:
    """Return a PNG as a data URI."""
    content = read_bytes(file, LARGEST_PICTURE)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def render_doubt_page(
    rows: Sequence[Sequence[str]], cards: Sequence[DoubtCard], headline: str
) -> str:
    """Return the page as HTML.

    Args:
        rows: of doubt.csv, its header first.
        cards: of the first rows.
        headline: line on top.
    """
    folder = files("seg.inference") / "templates"
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((folder / "doubt.html").read_text(encoding="utf-8"))
    script = (folder / "doubt.js").read_text(encoding="utf-8")
    return template.render(
        csp=f"default-src 'none'; script-src {script_hash(script)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        headline=headline,
        cards=cards,
        table=embed_json(rows),
        script=script,
    )
