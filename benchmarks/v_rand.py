"""Measure what raises V_rand on ISBI 2012: python benchmarks/v_rand.py NAME=CROSSVAL ... --output FOLDER.

CROSSVAL are folders of ``seg.crossval experiment=isbi2012_*`` with the same folds. Every section is predicted by the
network of its fold, which did not train on it: alone, averaged over the mirrored view, and averaged with the other
networks of the same fold. Each of these is scored

- at the challenge's one best threshold, selected on the scored sections themselves (as in the published tables);
- at the threshold that is best on the other four folds;
- with the steps of ``STEPS`` in addition (or those of ``--steps``), each with the values that are best on the other four
  folds.

Intervals are 95 %, by bootstrap over sections. Neighbouring sections resemble each other, so they are somewhat
too narrow. Probabilities and scores are kept in FOLDER and not computed again.
"""

import argparse
from pathlib import Path

import numpy as np
from isbi2012 import predict_validation
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from seg.inference import ensemble
from seg.metrics.instances import segment_objects
from seg.metrics.isbi2012 import (
    CHALLENGE_THRESHOLDS,
    count_overlaps,
    information_scores,
    rand_scores,
    thin_borders,
)
from seg.metrics.significance import (
    bootstrap_interval,
    mean_of_sums,
    paired_test,
    per_image_rows,
)
from seg.objects import label_components
from seg.runs.records import read_json, write_json

STEPS = {  # option -> its values; the first does nothing
    "blur": (0.0, 1.0, 2.0),  # px, standard deviation of a Gaussian over the probabilities
    "min_size": (1, 100),  # px of the smallest object
    "split_neck_px": (None, 14.0, 10.0),  # px, see seg.metrics.instances.segment_objects
}
CHALLENGE = CHALLENGE_THRESHOLDS[1:-1]  # 0.1 ... 0.9; at 0 and 1 all pixels, or none, are cells
VIEWS = ("none", "mirror")
THRESHOLDS = (*CHALLENGE, 0.95, 0.98)  # of which the other folds choose one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("crossvals", nargs="+", help="NAME=FOLDER of seg.crossval")
    parser.add_argument("--output", type=Path, default=Path("outputs/v_rand"))
    parser.add_argument(
        "--steps", nargs="*", choices=STEPS, default=list(STEPS), help="none: thresholds alone"
    )
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    members = {name: Path(folder) for name, folder in (w.split("=", 1) for w in asked.crossvals)}
    # Probabilities of every network and view, then of the averages over networks
    maps, truth, folds = {}, None, None
    for name, folder in members.items():
        for view in VIEWS:
            file = asked.output / f"{name}-{view}-sections.npz"
            maps[name, view], truth, folds = predict_sections(folder, view, file)
    if len(members) > 1:
        for view in VIEWS:
            maps[" and ".join(members), view] = np.mean([maps[n, view] for n in members], axis=0)
    rows = {}
    for (name, view), interior in maps.items():
        title = name if view == "none" else f"{name}, mirrored view"
        scores = Scores(interior, truth, asked.output / f"{name}-{view}.npz")
        rows |= {
            f"{title}: {row}": values
            for row, values in build_rows(scores, folds, asked.steps).items()
        }
    report(rows, asked.output)


def predict_sections(
    folder: Path, view: str, file: Path
) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.int64]]:
    """Return the out-of-fold probability of cell, the truth (sections, H, W) and the fold of each section; kept in ``file``.

    Sections are sorted by name, so those of two cross-validations agree.
    """
    if not file.is_file():
        record = read_json(folder / "crossval.json")
        if record["status"] != "finished":
            raise SystemExit(f"{folder}: status is {record['status']}, and finished is needed")
        found = {}
        for fold, entry in enumerate(track(record["folds"], f"predicting {file.stem}")):
            place = folder / entry["run"]
            run = ensemble.load_members(str(place), None)
            names = read_json(place / "run.json")["splits"]["val"]
            for name, pair in zip(names, predict_validation(place, run, view), strict=True):
                found[name] = (*pair, fold)
        interior, truth, folds = (np.stack(part) for part in zip(*(found[n] for n in sorted(found)), strict=True))  # fmt: skip
        np.savez(file, interior=interior, truth=truth, folds=folds)
    kept = np.load(file)
    return kept["interior"], kept["truth"], kept["folds"]


class Scores:
    """V_rand and V_info (sections, thresholds, 2) of one stack of probabilities, by the values of the steps.

    Args:
        interior: probability (sections, H, W) of cell.
        truth: (sections, H, W) of 0 membrane, 1 cell.
        file: keeps what has been scored.
    """

    def __init__(self, interior: NDArray, truth: NDArray, file: Path) -> None:
        self.interior, self.truth, self.file = interior, truth, file
        self.kept = dict(np.load(file)) if file.is_file() else {}

    def __getitem__(self, values: tuple) -> NDArray[np.float64]:
        key = str(values)
        if key not in self.kept:
            pairs = list(zip(self.interior, self.truth, strict=True))
            self.kept[key] = np.array(
                [
                    [separation(p, t, threshold, *values) for threshold in THRESHOLDS]
                    for p, t in track(pairs, f"{self.file.stem} {values}")
                ]
            )
            np.savez(self.file, **self.kept)
        return self.kept[key]


def separation(
    interior: NDArray,
    truth: NDArray,
    threshold: float,
    blur: float,
    min_size: int,
    split_neck_px: float | None,
) -> tuple[float, float]:
    """Return V_rand and V_info of one section, its objects found with the given steps.

    Without any step this is ``section_scores`` of seg.metrics.isbi2012.
    """
    smooth = ndimage.gaussian_filter(interior.astype(np.float64), blur) if blur else interior
    labels = segment_objects(smooth, threshold, split_neck_px, min_size)
    overlaps = count_overlaps(label_components(truth == 1), thin_borders(labels))
    return rand_scores(*overlaps)[2], information_scores(*overlaps)[2]


def build_rows(scores: Scores, folds: NDArray, steps: list[str]) -> dict[str, NDArray]:
    """Return V_rand and V_info (sections, 2) of each row; at the challenge's threshold (sections, thresholds, 2).

    Args:
        scores: of one stack of probabilities.
        folds: of each section.
        steps: those of ``STEPS`` that get a row, and one together.
    """
    nothing = tuple(values[0] for values in STEPS.values())
    rows = {
        "best threshold": scores[nothing][:, : len(CHALLENGE)],
        "threshold of the other folds": choose(scores, [nothing], folds)[0],
    }
    best = {option: [values[0]] * (folds.max() + 1) for option, values in STEPS.items()}
    for option in steps:
        at = list(STEPS).index(option)
        asked = [(*nothing[:at], value, *nothing[at + 1 :]) for value in STEPS[option]]
        rows[option], chosen = choose(scores, asked, folds)
        best[option] = [values[at] for values in chosen]  # for each fold
    # All together: the values chosen alone, the threshold chosen again
    if steps:
        together = np.empty((len(folds), 2))
        for fold, values in enumerate(zip(*best.values(), strict=True)):
            together[folds == fold] = choose(scores, [values], folds)[0][folds == fold]
        rows["together"] = together
    return rows


def choose(scores: Scores, allowed: list[tuple], folds: NDArray) -> tuple[NDArray, list[tuple]]:
    """Take for each fold the values and the threshold with the best V_rand on the other folds.

    Returns:
        V_rand and V_info (sections, 2), and the values taken for each fold.
    """
    stacked = np.stack([scores[values] for values in allowed], axis=1)  # sections, values, T, 2
    result, taken = np.empty((len(folds), 2)), []
    for fold in range(folds.max() + 1):
        mean = stacked[folds != fold, ..., 0].mean(0)
        value, threshold = np.unravel_index(mean.argmax(), mean.shape)
        result[folds == fold] = stacked[folds == fold, value, threshold]
        taken.append(allowed[value])
    return result, taken


def report(rows: dict[str, NDArray], output: Path) -> None:
    """Write and print V_rand and V_info of every row, and its V_rand less that of the first with chosen threshold."""
    table = Table("row", "V_rand", "V_info", "V_rand less the first", "p")
    lines = ["| | V_rand | V_info | V_rand less the first | p |", "| --- | --- | --- | --- | --- |"]
    base = next(values for name, values in rows.items() if values.ndim == 2)
    record = {}
    for name, values in rows.items():
        found = {}
        for at, key in enumerate(("v_rand", "v_info")):
            if values.ndim == 3:  # every resample has its best threshold
                found[key] = bootstrap_interval(values[..., at] / len(values), highest)
            else:
                found[key] = bootstrap_interval(per_image_rows(values[:, at]), mean_of_sums)
        cells = [f"{f.value:.4f} ({f.low:.4f}-{f.high:.4f})" for f in found.values()]
        record[name] = {key: f._asdict() for key, f in found.items()}
        if values.ndim == 2 and values is not base:
            gain = paired_test(*(per_image_rows(v[:, 0]) for v in (base, values)), mean_of_sums)
            record[name]["gain"] = gain._asdict()
            cells += [f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})", f"{gain.p:.3f}"]
        else:
            cells += ["", ""]
        table.add_row(name, *cells)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    Console(width=160).print(table)
    write_json(output / "v_rand.json", record)
    (output / "v_rand.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def highest(sums: NDArray) -> NDArray:
    """Return the highest (R,) of the means (R, thresholds)."""
    return sums.max(-1)


if __name__ == "__main__":
    main()
