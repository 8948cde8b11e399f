"""The table of docs/isbi2012.md: python benchmarks/isbi2012.py RUNS... --output FOLDER.

RUNS are folders below which lie trained runs of the experiments isbi2012_*, each of a fold and a seed. Every
section is scored by the network that did not train on it. A seed's score is that of its thirty sections, at the
challenge's one best threshold where there is one; a row shows the mean over seeds, their standard deviation, and
a 95 % interval by bootstrap over sections, the seeds drawn together. Neighbouring sections resemble each other,
so the intervals are somewhat too narrow. What has been scored is kept in FOLDER and not scored again.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from seg.cli.compose import compose_checked
from seg.hardware import prepare_for_inference
from seg.inference import ensemble
from seg.inference.run_data import choose_data, open_run_data
from seg.inference.tta import with_tta
from seg.logits import probabilities
from seg.metrics.isbi2012 import section_scores
from seg.metrics.significance import ScoreFunction, bootstrap_interval, paired_test
from seg.models.contract import same_size_logits
from seg.models.profiling import count_parameters
from seg.runs.load import LoadedRun
from seg.runs.records import read_json, write_json

ROWS = {  # experiment -> what the table calls it
    "isbi2012_fcn": "FCN-8s",
    "isbi2012_unet": "U-Net",
    "isbi2012_unet_valid": "U-Net, valid convolutions",
    "isbi2012_unet_wide": "wide U-Net",
    "isbi2012_unet_weight_map": "U-Net, weight map",
    "isbi2012_unet_mirror": "U-Net, mirrored only",
    "isbi2012_unetpp": "UNet++",
    "isbi2012_unetpp_plain": "UNet++, no supervision",
    "isbi2012_nvidia": "U-Net, NVIDIA's folds",  # which overlap: a section counts once in each
}
LONG = "trainer.max_epochs=50"  # the recipe's 1500 steps twice
VIEWED = ("isbi2012_unet", "isbi2012_unetpp")  # scored by --views too
THRESHOLDED = ("v_rand", "v_info", "pixel_error")  # an array each, the last error's ending with nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs/isbi2012"))
    parser.add_argument(
        "--views", nargs="+", default=["none", "flips"], help="none, mirror, flips, d4"
    )
    parser.add_argument(
        "--against", default="U-Net", help="the row that the others are compared with"
    )
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    found = [folder for place in asked.runs for folder in finished(place)]
    groups = defaultdict(dict)  # row -> (seed, section) -> scores
    facts = {}
    for folder in track(found, "scoring"):
        record = read_json(folder / "run.json")
        for name, view, depth in variants(record, asked.views):
            file = asked.output / f"{folder.parent.name}-{folder.name}-{view}-{depth}.npz"
            scores = dict(np.load(file)) if file.is_file() else scored(folder, view, depth, file)
            facts.setdefault(name, int(scores.pop("parameters")))
            held = record["splits"]["val"]
            fold = held[0] if "NVIDIA" in name else ""
            for at, section in enumerate(held):
                cell = record["seed"], fold + section
                if cell in groups[name]:
                    raise SystemExit(
                        f"{folder}: another run is {name} with seed {cell[0]} and holds out {section} too; score one of them"
                    )
                groups[name][cell] = {key: value[at] for key, value in scores.items()}
    rows = {name: table_row(*stacked(cells, name)) for name, cells in groups.items()}
    report(rows, facts, groups, asked)


def finished(place: Path) -> list[Path]:
    """The finished runs of the table's experiments below a folder."""
    files = sorted(file for file in place.rglob("run.json") if "latest" not in file.parts)
    records = {file.parent: read_json(file) for file in files}
    return [
        folder
        for folder, record in records.items()
        if record.get("status") == "finished" and record["choices"].get("experiment") in ROWS
    ]


def variants(record: dict, views: list[str]) -> list[tuple[str, str, int | None]]:
    """Row, view and depth of what a run is scored as."""
    experiment = record["choices"]["experiment"]
    name = ROWS[experiment]
    for option in record["overrides"]:
        if option.startswith("data.neighbours=") and option != "data.neighbours=0":
            name += f", {option}"
        elif option == LONG:
            name += ", 3000 steps"
    views = views if experiment in VIEWED else ["none"]
    found = [(name if view == "none" else f"{name}, {view}", view, None) for view in views]
    if experiment == "isbi2012_unetpp":
        found += [(f"{name} at L{depth}", "none", depth) for depth in (1, 2, 3)]
    return found


def scored(folder: Path, view: str, depth: int | None, file: Path) -> dict[str, NDArray]:
    """Scores of a run's validation sections, as arrays (sections, ...); kept in ``file``."""
    run = ensemble.load_members(str(folder), depth)
    count = count_parameters(run.model)
    rows = []
    for inside, truth in predict_validation(folder, run, view):
        by_threshold = section_scores(inside, truth)
        rows.append(
            {key: by_threshold[key] for key in THRESHOLDED}
            | {"counts": counts(inside > run.threshold, truth == 1)}
            | {"soft_dice": soft_dice(inside, truth == 1)}
        )
    scores = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    np.savez(file, parameters=np.array(count), **scores)
    return scores | {"parameters": np.array(count)}


@torch.inference_mode()
def predict_validation(folder: Path, run: LoadedRun, view: str) -> list[tuple[NDArray, NDArray]]:
    """Return the probability of cell and the truth, (H, W) each, of a run's validation sections, as in its run.json."""
    cfg = compose_checked("evaluate", [f"run={json.dumps(str(folder))}"])
    data = open_run_data(cfg, run, *choose_data(cfg.data, run))
    model = prepare_for_inference(with_tta(run.model, view, [1.0], False), "cpu")
    samples = data.samples("val")
    return [
        (
            probabilities(same_size_logits(model, sample["image"][None]))[0, 1].double().numpy(),
            sample["mask"].numpy().astype(np.uint8),
        )
        for sample in (samples[0, at] for at in range(len(samples)))
    ]


def counts(found: NDArray, true: NDArray) -> NDArray[np.float64]:
    """Right, found in vain and missed pixels of membrane and of cell, (2, 3)."""
    pairs = [(~found, ~true), (found, true)]
    return np.array([[(f & t).sum(), (f & ~t).sum(), (~f & t).sum()] for f, t in pairs], float)


def soft_dice(inside: NDArray, true: NDArray) -> NDArray[np.float64]:
    """NVIDIA's DICE: 2 sum pg / (sum p^2 + sum g^2), the mean of both classes; theirs is of 388 x 388 px."""
    pairs = [(1 - inside, ~true), (inside, true)]
    return np.mean([2 * (p * g).sum() / ((p * p).sum() + g.sum()) for p, g in pairs])


def stacked(cells: dict[tuple[int, str], dict], name: str) -> tuple[dict[str, NDArray], int]:
    """Scores as arrays (sections, seeds, ...), and the number of seeds.

    Raises:
        SystemExit: when a section lacks a seed.
    """
    seeds = sorted({seed for seed, _ in cells})
    sections = sorted({section for _, section in cells})
    missing = [(s, x) for s in seeds for x in sections if (s, x) not in cells]
    if missing:
        raise SystemExit(f"{name}: {len(missing)} sections lack a run, the first is {missing[0]}")
    keys = next(iter(cells.values()))
    return {k: np.stack([[cells[s, x][k] for s in seeds] for x in sections]) for k in keys}, len(
        seeds
    )


def judges(sections: int) -> dict[str, tuple[str, ScoreFunction]]:
    """Column -> which numbers, and how their sums over sections (R, seeds, ...) become scores (R, seeds)."""

    def of(cls: int, overlap: bool):
        def score(sums: NDArray) -> NDArray:
            right, vain, missed = np.moveaxis(sums[..., cls, :], -1, 0)
            return (
                right / (right + vain + missed)
                if overlap
                else 2 * right / (2 * right + vain + missed)
            )

        return score

    return {
        "membrane Dice": ("counts", of(0, False)),
        "membrane IoU": ("counts", of(0, True)),
        "cell Dice": ("counts", of(1, False)),
        "cell IoU": ("counts", of(1, True)),
        "soft Dice": ("soft_dice", lambda sums: sums / sections),
        "V_rand": ("v_rand", lambda sums: sums.max(-1) / sections),
        "V_info": ("v_info", lambda sums: sums.max(-1) / sections),
        "pixel error": ("pixel_error", lambda sums: sums[..., :-1].min(-1) / sections),
    }


def table_row(scores: dict[str, NDArray], seeds: int) -> dict[str, dict[str, float]]:
    """Of each column the mean over seeds, their standard deviation, and the interval."""
    row = {}
    for name, (key, score) in judges(len(scores["counts"])).items():
        values = np.nan_to_num(scores[key])
        by_seed = score(values.sum(0)[None])[0]
        low, high = bootstrap_interval(values, lambda sums, score=score: score(sums).mean(1))[1:3]
        spread = float(by_seed.std(ddof=1)) if seeds > 1 else float("nan")
        row[name] = {"mean": float(by_seed.mean()), "sd": spread, "low": low, "high": high}
    return row


def report(rows: dict, facts: dict[str, int], groups: dict, asked: argparse.Namespace) -> None:
    """table.json, table.md, and the same on the terminal; then each row against one."""
    names = list(judges(1))
    table = Table("row", "parameters", *names)
    lines = [
        "| | parameters | " + " | ".join(names) + " |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["V_rand"]["mean"]):
        cells = [
            f"{c['mean']:.4f}{spread_text(c['sd'])} ({c['low']:.3f}-{c['high']:.3f})"
            for c in row.values()
        ]
        table.add_row(name, f"{facts[name]:,}", *cells)
        lines.append(f"| {name} | {facts[name] / 1e6:.2f} M | " + " | ".join(cells) + " |")
    Console(width=220).print(table)
    compared = against(rows, groups, asked.against)
    write_json(
        asked.output / "table.json", {"rows": rows, "parameters": facts, "against": compared}
    )
    (asked.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, tests in compared.items():
        told = (
            f"{k} {t['difference']:+.4f} ({t['low']:+.4f} to {t['high']:+.4f}), p {t['p']:.3f}"
            for k, t in tests.items()
        )
        print(f"{name} less {asked.against}: " + "; ".join(told))


def spread_text(sd: float) -> str:
    """Return the standard deviation over seeds for the table; an empty text for one seed."""
    return "" if np.isnan(sd) else f" ± {sd:.4f}"


def against(rows: dict, groups: dict, name: str) -> dict[str, dict]:
    """Each row less one of them, tested by swapping sections (the seeds together)."""
    if name not in groups:
        return {}
    base, _ = stacked(groups[name], name)
    found = {}
    for other in rows:
        scores, _ = stacked(groups[other], other)
        if other == name or groups[other].keys() != groups[name].keys():
            continue  # other sections, or other seeds
        tests = {}
        for column, (key, score) in judges(len(base["counts"])).items():
            if column in ("membrane Dice", "V_rand"):

                def mean(sums: NDArray, score: ScoreFunction = score) -> NDArray:
                    return score(sums).mean(1)

                d = paired_test(np.nan_to_num(base[key]), np.nan_to_num(scores[key]), mean)
                tests[column] = {"difference": d.value, "low": d.low, "high": d.high, "p": d.p}
        found[other] = tests
    return found


if __name__ == "__main__":
    main()
