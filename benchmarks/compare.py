"""How long seg.compare takes with many runs, and its page to open: python benchmarks/compare.py [rounds=5].

Made run folders: 40 and 200 runs of 4 models, losses and learning rates with several seeds, each with 100 rows of
metrics.csv and 30 images of two classes; pictures of 16 images. Both sizes are measured in turn for several rounds, a
process each; printed are medians. "opened" is from the request to the load event, "drawn" until the curves of all
runs are in the page after one scroll to them, both in headless Chromium. "process" includes Python's imports, which
the first column gives alone.
"""

import functools
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from made_runs import make_run, spread

SIZES = (40, 200)
OPTIONS = {"rounds": "5"}
COLUMNS = ("imports", "process", "MB", "opened", "drawn")


def make(root: Path, count: int) -> None:
    """So many runs below a folder."""
    rng = np.random.default_rng(0)
    base = rng.integers(15, 40, 30)
    kinds = itertools.product(
        ("unet", "unetpp", "fcn", "segnet"), ("bce_dice", "dice"), (1e-3, 1e-2)
    )
    recipes = list(kinds)
    for i in range(count):
        model, loss, rate = recipes[i % len(recipes)]
        worse = 3 * (i % len(recipes)) // 2
        images = {
            split: spread((base + worse + rng.integers(-3, 4, 30)).clip(0, 99).tolist())
            for split in ("val", "test")
        }
        make_run(
            root / f"run-{i:03d}", images, choices={"model": model, "loss": loss}, seed=i // len(recipes), epochs=50,
            config={"optim": {"_target_": "torch.optim.AdamW", "lr": rate}}, pictures=16,
        )  # fmt: skip


def measure(folder: Path, browser: Browser) -> list[float]:
    """Seconds and megabytes, as COLUMNS has them."""
    imports = seconds([sys.executable, "-c", "import seg.compare"])
    process = seconds([sys.executable, "-m", "seg.compare", str(folder)])
    html = folder / "compare.html"
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    started = time.perf_counter()
    page.goto(html.as_uri(), wait_until="load")
    opened = time.perf_counter() - started
    page.locator("#plot-curves").scroll_into_view_if_needed()
    page.wait_for_selector("#plot-curves .scatterlayer .trace", state="attached")
    drawn = time.perf_counter() - started
    page.close()
    return [imports, process, html.stat().st_size / 1e6, opened, drawn]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(dict(OPTIONS, **dict(word.split("=", 1) for word in sys.argv[1:]))["rounds"])
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        folders = {count: Path(scratch, str(count)) for count in SIZES}
        for count, folder in folders.items():
            make(folder, count)
        calls = {n: functools.partial(measure, folder, browser) for n, folder in folders.items()}
        found = timing.call_in_turn(calls, rounds)
        browser.close()
    medians = {n: map(statistics.median, zip(*rows, strict=True)) for n, rows in found.items()}
    cells = [[str(n), *(f"{value:.2f}" for value in own)] for n, own in medians.items()]
    print(timing.markdown(["runs", *COLUMNS], cells))


if __name__ == "__main__":
    main()
