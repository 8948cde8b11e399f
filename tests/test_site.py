"""The site of docs/: each page is in its navigation, links hold, it needs neither server nor network, and search finds."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from seg.version import __version__

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip


def files_of(nav: object) -> list[str]:
    """The pages that an entry of the navigation names, in order."""
    if isinstance(nav, str):
        return [nav]
    return [file for entry in (nav.values() if isinstance(nav, dict) else nav) for file in files_of(entry)]  # fmt: skip


def test_each_page_is_once_in_the_navigation():
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    pages |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "seg/runs/pretrained").glob("*.md")}
    pages |= {f"examples/{p.stem}.md" for p in (ROOT / "examples").glob("*.ipynb")}
    pages.add("examples/index.md")
    root = {"index.md", "index.zh-CN.md", "contributing.md", "security.md", "changelog.md"}
    assert sorted(files_of(CONFIG["nav"])) == sorted(pages | root)


def test_the_recording_shows_the_commands_of_the_readme():
    first = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    recorded = re.sub(r"<[^>]+>", "", (ROOT / "docs/images/terminal.svg").read_text())
    recorded = recorded.replace("&#160;", " ")
    commands = [line for line in first[1].splitlines() if line.startswith("seg ")]
    assert len(commands) == 3 and all(f"$ {line}" in recorded for line in commands)


def test_citation_and_packages_of_the_site_are_those_of_the_project():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]  # fmt: skip
    assert set(extras["docs"]) <= set(extras["dev"])


def test_both_languages_list_the_same_commands():
    rows = [
        re.findall(r"^\| (`.*?`) \|.*?$", (ROOT / f"docs/commands{language}.md").read_text(), re.M)
        for language in ("", ".zh-CN")
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 20


class References(HTMLParser):
    """``links`` of a page, and the files that it ``loads``."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a" and value is not None:
                self.links.append(value)
            elif (name == "src" or (name == "href" and tag == "link")) and value:
                self.loads.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built in a copy of what it needs."""
    pytest.importorskip("zensical", reason="the extra docs isn't installed")
    place = tmp_path_factory.mktemp("site")
    for folder in ("docs", "examples", "seg"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "mkdocs.yml"):
        shutil.copy(file, place)
    for words in (
        ["docs/gather.py"],
        ["examples/notebooks.py", "--pages", "build/docs/examples"],
        ["-m", "zensical", "build", "--strict"],
    ):
        env = os.environ | {"NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=place, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "site"


@pytest.mark.slow
def test_links_and_files_of_the_built_pages_are_there(site):
    pages = {page: References(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}  # fmt: skip
    wanted = {site / Path(file).with_suffix(".html") for file in files_of(CONFIG["nav"])}
    assert wanted <= set(pages)
    for page, found in pages.items():
        assert not any(file.startswith(("http", "//")) for file in found.loads), page
        for link in (*found.links, *found.loads):
            path = link.partition("#")[0]
            assert link, page
            if path and not path.startswith(("http", "data:", "mailto:")):
                assert (page.parent / path).is_file(), f"{page.name}: {link}"


@pytest.mark.slow
def test_search_finds_in_both_languages_without_server_and_network(site):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        asked: list[str] = []
        for start, words, found in (
            ("index.html", "seams", "Tiles without seams"),
            ("index.zh-CN.html", "超参数", "用 Optuna"),
        ):
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto((site / start).as_uri())
            page.locator(".md-search__button").first.click()
            page.keyboard.type(words)
            page.get_by_text(found).first.wait_for()
        browser.close()
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
