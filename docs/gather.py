"""Gather the pages of the site in build/docs: docs/, examples/, model cards and the pages of the root, their links adapted; `make docs`."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build/docs"
NAMES = {  # of the root's pages on the site
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "examples/README.md": "examples/index.md",  # written anew by examples/notebooks.py
}
CARDS = "seg/runs/pretrained"  # model cards
LINK = re.compile(r"(?<=\]\()(?:docs/|\.\./)?([^)#]+)")
NAMED_LINK = re.compile(r"\[(?:docs/)?([\w.-]+\.md)\](?=\()")


def adapt_links(text: str, titles: dict[str, str]) -> str:
    """Return a page of the root or of docs/ with links that hold in build/docs.

    A link whose text is the name of a page gets the page's title instead.
    """
    text = LINK.sub(lambda link: NAMES.get(link[1], link[1]), text)
    return NAMED_LINK.sub(lambda link: f"[{titles[NAMES.get(link[1], link[1])]}]", text)


def read_title(page: Path) -> str:
    """Return the first heading of a page, without what follows a colon."""
    return page.read_text("utf-8").partition("\n")[0].removeprefix("# ").partition(":")[0]


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(ROOT / "examples", PAGES / "examples", ignore=shutil.ignore_patterns("*.md"))
    (PAGES / CARDS).mkdir(parents=True)
    for card in (ROOT / CARDS).glob("*.md"):
        shutil.copy(card, PAGES / CARDS)
    for name, page in NAMES.items():
        shutil.copy(ROOT / name, PAGES / page)
    titles = {page.name: read_title(page) for page in PAGES.glob("*.md")}
    for page in PAGES.glob("*.md"):
        page.write_text(adapt_links(page.read_text("utf-8"), titles), "utf-8")


if __name__ == "__main__":
    main()
