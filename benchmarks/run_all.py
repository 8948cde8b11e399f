"""The short benchmarks one after the other, as one Markdown table: python benchmarks/run_all.py [--output FILE].

Each runs in a process of its own; --only names some, --smoke takes tiny sizes, which shows only that all run. The file
begins with versions and machine; it is written anew after each benchmark. The others (gpu, predict, realtime, compare,
quality_cost) need a GPU, a trained run, a browser or more time.
"""

import argparse
import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timing

# benchmark -> options of its measure(): for the table, and with --smoke
SHORT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "start": (
        {"rounds": 3, "lines": ["import torch", "--help", "mistyped option", "compare 12 runs", "first step"]},
        {"rounds": 1, "lines": ["import torch", "--version"]},
    ),
    "loop": (
        {"rounds": 2, "cases": {"tiny": (["model.width=2", "model.depth=2", "loader.crop=32"], 200)}},
        {"rounds": 1, "cases": {"tiny": (["model.width=2", "model.depth=1", "loader.crop=32"], 2)}},
    ),
    "cpu": ({"rounds": 1}, {"rounds": 1, "steps": 3}),
    "metrics": ({"rounds": 5}, {"rounds": 1, "size": 32}),
    "models": (
        {"rounds": 1, "steps": 5},
        {"rounds": 1, "steps": 1, "width": 2, "size": 32},
    ),
    "data": (
        {"rounds": 1, "images": 10, "batches": 30},
        {"rounds": 1, "images": 8, "batches": 1, "workers": 0},
    ),
    "export": (
        {"size": 256, "rounds": 5},
        {"size": 64, "width": 2, "rounds": 1, "networks": ("unet",)},
    ),
}  # fmt: skip


def measure(name: str, options: dict[str, Any]) -> list[timing.Row]:
    return importlib.import_module(name).measure(**options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks.md"))
    parser.add_argument("--only", nargs="+", choices=SHORT, default=list(SHORT))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine, rows = timing.describe_machine(), {}
    for name in options.only:
        print(f"{name} ...", flush=True)
        # a new process: settings of threads and of the memory do not reach the next benchmark
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows[name] = pool.submit(measure, name, SHORT[name][options.smoke]).result()
        options.output.write_text(f"{machine}\n\n{timing.table(rows)}\n", "utf-8")
    print(f"\n{options.output.read_text('utf-8')}\n{options.output}")


if __name__ == "__main__":
    main()
