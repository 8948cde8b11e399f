"""Planned settings against the defaults at equal time: ``python benchmarks/plan.py DATA OUTPUT [--budget 600]``.

DATA holds isbi2012/, vnc/ and camvid/; membranes are made, "hot" are these in 16 bits with five dead pixels an image. Each training ends by ``trainer.max_time``, whose clock is here the
processor time of this process: two settings get the same work of one thread, whatever else the machine does. seg.plan
measures by the same clock. Rows of ``--rules`` train the plan without one of its rules, that is with the default of its
options; rows of ``--instead`` train it with one more word, an option that no rule chooses. Writes OUTPUT/plan.json after each training, continues it, and prints tables with the mean difference over the
seeds and its 95 % interval, Student's of the differences of each seed.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import timer
from PIL import Image
from scipy import stats

from seg.cli.compose import compose_and_check
from seg.commands.plan import plan_training, setting_word
from seg.data.datasets.membranes import Membranes
from seg.planning.rules import format_duration
from seg.training import demand
from seg.training.run import train_run

VNC = "[membrane,intracellular,mitochondrion,synapse,glia]"
CAMVID = "[sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist]"
DATA = {  # name -> words of the data; the others are defaults
    "membranes": ["data=membranes", "data.test=0"],
    "isbi2012": ["data=isbi2012", "data.root={root}/isbi2012", "data.task=classes"],
    "vnc": ["data=folder", "data.root={root}/vnc", f"data.classes={VNC}", "data.contiguous=true"],
    "camvid": ["data=folder", "data.root={root}/camvid", f"data.classes={CAMVID}", "data.ignore=[11]"],
}  # fmt: skip
HOT = ["data=folder", "data.root={output}/hot/data", "data.classes=[membrane,cell]"]
RUN_WORDS = ["logger=none", "trainer=cpu", "panels=0", "save_predictions=0"]
RULES = {  # rule -> options that it chooses
    "crop": ["loader.crop", "loader.batch_size"],
    "width": ["model.width"],
    "rare crops": ["loader.rare_class_crops"],
    "percentiles": ["loader.percentiles"],
    "precision": ["trainer.precision"],
}


def write_hot(folder: Path) -> None:
    """Write made membranes as 16-bit images of which a few values use the range: five dead pixels each."""
    source, rng = Membranes(test=0), np.random.default_rng(0)
    for split, names in source.splits.items():
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            image, mask = source.read(name)
            grey = 200 + 4 * image[..., 0].astype(np.uint16)
            grey.flat[rng.integers(0, grey.size, 5)] = 65535
            Image.fromarray(grey).save(folder / split / "images" / f"{name}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{name}.png")


def use_processor_time() -> None:
    """Let the limit of the training and the measurements of seg.plan use the processor time of this process."""
    torch.set_num_threads(1)
    timer.time = SimpleNamespace(monotonic=time.process_time)
    demand.time = SimpleNamespace(perf_counter=time.process_time)


def plan_words(words: list[str], budget: int, folder: Path) -> dict[str, str]:
    """Return the settings that seg.plan chooses for data: option -> word."""
    checked = compose_and_check(
        "plan", [*words, f"budget={budget}s", f"output={folder}/experiment/plan.yaml"]
    )
    HydraConfig.instance().set_config(checked.hydra)
    try:
        return {setting.option: setting_word(setting) for setting in plan_training(checked.cfg)}
    finally:
        HydraConfig.instance().cfg = None


def measure(words: list[str], folder: Path) -> dict[str, float]:
    """Train, and return the Dice of the best checkpoint, the steps and the processor time."""
    started = time.process_time()
    scores, run = train_run(compose_and_check("train", [*words, f"outputs={folder}"]).cfg)
    steps = json.loads((run / "run.json").read_text())["steps"]
    shutil.rmtree(run)
    seconds = round(time.process_time() - started, 1)
    return {"dice": scores["best/val/dice"], "steps": steps, "seconds": seconds}


def settings_of(name: str, plan: dict[str, str], budget: int) -> list[str] | None:
    """Return the words of a row: default, planned, or the plan without a rule; None: the rule chose nothing there."""
    time_limit = f"trainer.max_time='{format_duration(budget)}'"
    if name == "default":
        return [time_limit]
    if name.startswith("with "):
        return [*plan.values(), name.removeprefix("with ")]
    dropped = RULES.get(name.removeprefix("without "), [])
    if dropped and not set(dropped) & set(plan):
        return None
    return [word for option, word in plan.items() if option not in dropped]


def interval(differences: list[float]) -> str:
    """Return the mean of differences, and its 95 % interval by Student's distribution."""
    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / count**0.5
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def print_tables(results: dict, budget: int, words: list[str]) -> None:
    """Print each row against its reference: planned against default, and the plan against itself without a rule."""
    for name in (*DATA, "hot"):
        for row, reference in [
            ("planned", "default"),
            *(("planned", f"without {r}") for r in RULES),
            *(("planned", f"with {word}") for word in words),
        ]:
            pairs = [
                (results[f"{budget} {name} {row} {seed}"], results[key])
                for seed in range(100)
                if (key := f"{budget} {name} {reference} {seed}") in results
                and f"{budget} {name} {row} {seed}" in results
            ]
            if pairs:
                means = [np.mean([pair[i]["dice"] for pair in pairs]) for i in (1, 0)]
                steps = [np.mean([pair[i]["steps"] for pair in pairs]) for i in (1, 0)]
                gain = interval([ours["dice"] - other["dice"] for ours, other in pairs])
                print(
                    f"| {name} | {reference} | {means[0]:.3f} ({steps[0]:.0f} steps) | {means[1]:.3f} ({steps[1]:.0f}) | {gain} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--budget", type=int, default=600, help="s of processor time of one thread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--names", nargs="*", default=list(DATA), choices=[*DATA, "hot"])
    parser.add_argument("--rules", nargs="*", default=[], choices=list(RULES))
    parser.add_argument(
        "--instead", nargs="*", default=[], metavar="WORD", help="such as model.depth=3"
    )
    given = parser.parse_args()
    use_processor_time()
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "plan.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    others = [*(f"without {r}" for r in given.rules), *(f"with {word}" for word in given.instead)]
    rows = ["planned", *(others or ["default"])]
    for seed in range(given.seeds):
        for name in given.names:
            places = {"root": given.data, "output": given.output}
            words = [*(w.format(**places) for w in (DATA | {"hot": HOT})[name]), *RUN_WORDS]
            if name == "hot":
                write_hot(given.output / "hot/data")
            planned = f"{given.budget} {name} settings"
            if planned not in results:
                results[planned] = plan_words(words, given.budget, given.output / name)
            for row in rows:
                key = f"{given.budget} {name} {row} {seed}"
                settings = settings_of(row, results[planned], given.budget)
                if key in results or settings is None:
                    continue
                results[key] = measure([*words, *settings, f"seed={seed}"], given.output / "runs")
                file.write_text(json.dumps(results, indent=2))
                print(f"{key}: {results[key]}", flush=True)
    print_tables(results, given.budget, given.instead)


if __name__ == "__main__":
    main()
