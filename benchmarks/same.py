"""Record the numbers of small runs to the last bit, or compare them with an earlier record.

    python benchmarks/same.py record before.json
    ...                                             a change that must not change any number
    python benchmarks/same.py compare before.json   exit code 1 if a number differs

Each case is a command as a user types it, in a forked process: training of every model family and loss, folder
and overlapping data, deep supervision, resume after a signal, evaluate, predict, prune, export, compare and
cross-validation. Recorded are losses, metrics, curves, counts of pixels, hashes of weights, of optimiser states
and of predicted pixels; times and texts are left out. Records of different machines differ.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TINY = ("trainer=smoke", "logger=csv", "data.size=64", "data.train=4", "data.val=2", "data.test=2", "loader.crop=32", "panels=1")  # fmt: skip
IMAGES = ("trainer=smoke", "logger=csv", "loader.crop=32", "panels=1")
LONGER = ("trainer=cpu", "trainer.max_epochs=4", *TINY[1:])
UNSTABLE = {  # words in names of facts that differ from run to run
    "run", "sweep", "dirty", "minutes", "latency", "second", "seconds", "ms", "duration", "started", "speedup",
}  # fmt: skip
MODELS = {
    "unet": ("model=unet", "model.width=4", "model.depth=2"),
    "unet_valid": ("model=unet_paper", "model.width=2", "loader.crop=36"),
    "unet_variants": ("model=unet", "model.width=4", "model.depth=2", "model.down=strided", "model.up=bilinear", "model.block=residual"),
    "unetpp": ("model=unetpp", "model.width=4", "model.depth=3"),
    "unetpp_average": ("model=unetpp", "model.width=4", "model.depth=3", "model.output=average", "head_weights=[1,1,2]"),
    "unet_plus": ("model=unet_plus", "model.width=4", "model.depth=2"),
    "unet_e": ("model=unet_e", "model.width=4", "model.depth=2"),
    "segnet": ("model=segnet",),
    "fcn": ("model=fcn",),
}  # fmt: skip
SMALL = MODELS["unet"]
LOSSES = (
    "bce", "weighted_bce", "cross_entropy", "focal", "dice", "iou", "tversky", "lovasz", "cldice", "weight_map",
    "bce_dice", "dice_focal",
)  # fmt: skip
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-")  # of a run folder
Facts = dict[str, str]
console = Console(highlight=False)


def run(module: str, *words: str, stop_after: str | None = None) -> None:
    """Run ``python -m MODULE WORDS`` in a fork; it must succeed.

    Args:
        module: for example seg.train.
        words: of the command line.
        stop_after: send SIGTERM once this file exists; then exit code 143 is expected.
    """
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            log = os.open("commands.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.argv = [module, *words]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.stdout.flush()
            os._exit(code)
    if stop_after is not None:
        while not Path(stop_after).exists():
            time.sleep(0.01)
        os.kill(process, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != (0 if stop_after is None else 143):
        raise SystemExit(
            f"{module} {' '.join(words)}: exit code {code}\n{Path('commands.log').read_text()[-2000:]}"
        )


def digest(*arrays: np.ndarray) -> str:
    """Return 16 hex digits of the SHA-256 of arrays, their types and shapes."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def tensors(node: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of nested dicts and lists with its path."""
    if isinstance(node, torch.Tensor):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from tensors(value, f"{path}.{index}")


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each number of nested dicts and lists with its path, times left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if is_stable(str(key)):
                yield from numbers(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from numbers(value, f"{path}/{index}")
    elif isinstance(node, int | float):
        yield path, repr(node)


def is_stable(name: str) -> bool:
    """Return True unless a word of the name says that it differs from run to run."""
    return not UNSTABLE.intersection(re.split(r"[^a-z]+", name))


def rows(file: Path) -> str:
    """Return a hash of a CSV file's cells without its header and its unstable columns."""
    with file.open(newline="") as stream:
        header, *content = csv.reader(stream)
    keep = [i for i, name in enumerate(header) if is_stable(name)]
    names = (
        sorted((header[i], i) for i in keep)
        if file.name == "metrics.csv"
        else [("", i) for i in keep]
    )
    return hashlib.sha256(
        repr([[row[i] for _, i in names] for row in content]).encode()
    ).hexdigest()[:16]


def trained(folder: Path) -> Facts:
    """Return the facts of a run folder."""
    record = json.loads((folder / "run.json").read_text())
    facts = dict(
        numbers({key: record[key] for key in ("metrics", "threshold", "parameters", "steps")})
    )
    facts |= {name: rows(folder / name) for name in ("metrics.csv", "images.csv")}
    facts["splits"] = record["split_hash"]
    for name in ("best", "last"):
        content = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states"):
            arrays = [tensor.numpy() for _, tensor in tensors(content[part])]
            facts[f"{name}.ckpt {part}"] = digest(*arrays)
    for file in sorted(folder.glob("p*/**/*.png")):
        facts[str(file.relative_to(folder))] = digest(np.asarray(Image.open(file)))
    return facts


def pictures(folder: Path) -> Facts:
    """Return a hash of the pixels of each picture and TIFF in a folder."""
    facts = {}
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".tif")):
        pixels = tifffile.imread(file) if file.suffix == ".tif" else np.asarray(Image.open(file))
        facts[TIMESTAMP.sub("", str(file.relative_to(folder)))] = digest(pixels)
    return facts


def train(name: str, *words: str) -> Facts:
    """Train a run in the folder runs/NAME and return its facts."""
    run("seg.train", *words, f"outputs=runs/{name}")
    return trained((Path("runs") / name / "latest").resolve())


def make_data() -> None:
    """Write a folder of RGB images with three classes, one with overlapping classes, and an image to predict."""
    rng = np.random.default_rng(0)
    for part in ("rgb/images", "rgb/masks", "planes/images", "planes/masks"):
        Path(part).mkdir(parents=True)
    for i in range(6):
        mask = np.kron(rng.integers(0, 3, (6, 8)), np.ones((8, 8))).astype(np.uint8)
        image = (mask[..., None] * 80 + rng.integers(0, 60, (48, 64, 3))).astype(np.uint8)
        Image.fromarray(image).save(f"rgb/images/{i}.png")
        Image.fromarray(mask).save(f"rgb/masks/{i}.png")
        planes = np.kron(rng.random((2, 6, 8)) < 0.4, np.ones((1, 8, 8))).astype(np.uint8)
        grey = 60 + 70 * planes[0] + 90 * planes[1] + rng.integers(0, 30, (48, 64), np.uint8)
        tifffile.imwrite(f"planes/images/{i}.tif", grey.astype(np.uint8))
        tifffile.imwrite(f"planes/masks/{i}.tif", planes, photometric="minisblack")
    Image.fromarray(rng.integers(0, 255, (200, 168), np.uint8)).save("grey.png")


def cases() -> Iterator[tuple[str, Facts]]:
    """Yield each case's name and facts; later cases use the runs of earlier ones."""
    for name, words in MODELS.items():
        yield f"model {name}", train(name, *TINY, *words)
    for loss in LOSSES:
        yield f"loss {loss}", train(f"loss_{loss}", *TINY, *SMALL, f"loss={loss}")
    rgb = ("data=folder", "data.root=rgb", "data.classes=[a,b,c]", *IMAGES, *SMALL)
    yield "data folder", train("rgb", *rgb, "augment=strong", "loader.rare_class_crops=0.5")
    yield (
        "data folder, two logits",
        train("softmax", *TINY, *SMALL, "two_class_logits=2", "metrics=full"),
    )
    planes = (
        "data=folder",
        "data.root=planes",
        "data.classes=[x,y]",
        "data.task=overlapping",
        "data.mask_layers=pages",
    )
    yield "data overlapping", train("planes", *planes, *IMAGES, *SMALL, "augment=flips")
    yield (
        "longer",
        train("longer", *LONGER, *SMALL, "threshold=best", "ema=0.9", "optim=sgd", "patience=3"),
    )
    run("seg.train", *LONGER, *SMALL, "threshold=best", "ema=0.9", "optim=sgd", "patience=3", "outputs=stopped",
        stop_after="stopped/latest/checkpoints/best.ckpt")  # fmt: skip
    run("seg.train", "resume=stopped/latest")
    yield "resumed", trained(Path("stopped/latest").resolve())
    for name, words in (
        ("unet", ()),
        ("unetpp", ("tta=d4",)),
        ("unetpp", ("model.depth=2",)),
        ("rgb", ()),
        ("planes", ()),
    ):
        folder = Path("evaluated") / "-".join([name, *words]).replace("=", "-")
        run("seg.evaluate", f"run=runs/{name}/latest", f"output={folder}", *words)
        content = json.loads((folder / "metrics.json").read_text())
        yield f"evaluate {folder.name}", dict(numbers(content)) | pictures(folder / "panels")
    run("seg.train", *TINY, *SMALL, "data.task=instances", "outputs=runs/instances")
    run("seg.evaluate", "run=runs/instances/latest", "output=evaluated/instances")
    yield (
        "evaluate instances",
        dict(numbers(json.loads(Path("evaluated/instances/metrics.json").read_text()))),
    )
    save = "save=[masks,probabilities,uncertainty,overlays,contours,instances]"
    for name, words in (
        ("unet", ("tile=96", "overlap=32", save)), ("unet_valid", ("save=[probabilities]", "scales=[0.75,1]")),
        ("unetpp", ("tta=flips", "save=[masks]")), ("ensemble", ("save=[probabilities]",)),
    ):  # fmt: skip
        folder = Path("predicted") / name
        members = "[runs/unet/latest,runs/unetpp/latest]"
        chosen = members if name == "ensemble" else f"runs/{name}/latest"
        run("seg.predict", f"run={chosen}", "input=grey.png", f"output={folder}", *words)
        yield f"predict {name}", pictures(folder)
    run("seg.prune", "run=runs/unetpp/latest", "depth=2", "rounds=1", "output=pruned")
    run(
        "seg.predict",
        "run=pruned/L2.ckpt",
        "input=grey.png",
        "output=predicted/pruned",
        "save=[probabilities]",
    )
    scores = dict(numbers(json.loads(Path("pruned/prune.json").read_text())))
    yield "prune", scores | pictures(Path("predicted/pruned"))
    for name in ("unet", "rgb", "planes", "unetpp"):
        run("seg.export", f"run=runs/{name}/latest", f"output=exported/{name}.onnx")
        yield (
            f"export {name}",
            exported(Path(f"exported/{name}.onnx"), channels=3 if name == "rgb" else 1),
        )
    run("seg.train", "-m", *TINY, *SMALL, "seed=0,1", "loss=dice,bce", "outputs=swept")
    sweep = next(Path("swept/sweeps").glob("2*"))
    for folder in sorted(p.parent for p in sweep.glob("*/run.json") if not p.parent.is_symlink()):
        yield f"sweep {folder.name}", trained(folder)
    run("seg.compare", str(sweep), "group_by=loss", "output=compared", "num_examples=0")
    yield "compare", {"compare.csv": rows(Path("compared/compare.csv"))}
    run("seg.crossval", *rgb, "data.folds=2", "output=folds")
    content = json.loads(Path("folds/crossval.json").read_text())
    yield "crossval", dict(numbers(content)) | pictures(Path("folds"))


def exported(file: Path, channels: int) -> Facts:
    """Return a hash of what an ONNX file computes of a fixed image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    taken = session.get_inputs()[0]
    kind = np.float32 if "float" in taken.type else np.uint8
    image = np.random.default_rng(0).integers(0, 255, (1, channels, 64, 64)).astype(kind)
    image = image if taken.shape[1] in (channels, "C") else np.moveaxis(image, 1, -1)
    return {"output": digest(*session.run(None, {taken.name: image}))}


def record() -> dict[str, Facts]:
    """Run all cases in a temporary folder and return their facts."""
    torch.set_num_threads(1)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    sys.path.insert(0, str(ROOT))
    import albumentations  # noqa: F401  loaded once, here, for all forks
    import lightning  # noqa: F401
    import torchmetrics  # noqa: F401

    here, folder = Path.cwd(), tempfile.mkdtemp(prefix="same-")
    os.environ["SEG_CACHE"] = f"{folder}/cache"
    os.chdir(folder)
    found = {}
    try:
        make_data()
        for name, facts in cases():
            found[name] = facts
            console.print(f"{name:28} {len(facts):4} facts")
    finally:
        os.chdir(here)
    shutil.rmtree(folder)
    return found


def differences(before: dict[str, Facts], now: dict[str, Facts]) -> Table | None:
    """Return a table of the facts that differ, or None."""
    table = Table("case", "fact", "before", "now")
    for case in before | now:
        old, new = before.get(case, {}), now.get(case, {})
        for fact in old | new:
            if old.get(fact) != new.get(fact):
                table.add_row(case, fact, old.get(fact, "-"), new.get(fact, "-"))
    return table if table.row_count else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="JSON of the facts")
    given = parser.parse_args()
    file = given.file.resolve()
    before = json.loads(file.read_text()) if given.action == "compare" else None
    started, now = time.monotonic(), record()
    count = sum(map(len, now.values()))
    console.print(f"{len(now)} cases, {count} facts, {time.monotonic() - started:.0f} s")
    if before is None:
        file.write_text(json.dumps(now, indent=1))
        return
    if table := differences(before, now):
        console.print(table)
        sys.exit(1)
    console.print("all equal")


if __name__ == "__main__":
    main()
