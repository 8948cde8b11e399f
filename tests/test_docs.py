"""Every command that README and docs show is one that runs, in both languages."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from annotation_files import WRITERS, folder_of
from coco_files import coco_root
from made_runs import make_run, spread
from PIL import Image

from seg.cli.compose import check_command_line, compose_checked
from seg.cli.conf_files import CONF
from seg.cli.list_arguments import to_overrides
from seg.commands.check import check_data
from seg.commands.compare import compare_runs
from seg.commands.crossval import crossval
from seg.commands.doubt import doubt_labels
from seg.commands.enough import measure_enough
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.commands.info import print_info
from seg.commands.list import list_runs
from seg.commands.models import show_network
from seg.commands.next import queue_images
from seg.commands.plan import plan_training
from seg.commands.rerun import rerun
from seg.commands.show import draw_samples as picture
from seg.commands.sync import sync
from seg.commands.tune import tune
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.multirun.search.plan import gather_searched
from seg.training.dry_run import dry_run
from seg.training.run import train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:.*python -m seg\.|seg )([a-z]\w+)((?: [^\n`|#]+)?)", re.M)
RUN = {"train": train, "evaluate": evaluate, "predict": predict_files, "prune": compare_depths, "export": export_run,
       "rerun": rerun, "sync": sync, "next": queue_images}  # fmt: skip
SMALL = [
    "trainer=smoke",
    "logger=none",
    "model.width=2",
    "loader.crop=32",
    "panels=1",
    "save_checkpoints=full",
]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(command, words) of each code block and code span of a page that stands complete."""
    text = page.read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    code = [block for language, block in blocks if language in ("", "sh", "bash")]
    code += re.findall(r"`((?:python -m|seg) [^`\n]+)`", text)
    found = [m for block in code for m in COMMAND.findall(block.replace("\\\n", " "))]
    return [
        (name, shlex.split(words))
        for name, words in found
        if "..." not in words and "$" not in words
    ]


EVERY = sorted({(name, tuple(words)) for page in PAGES for name, words in commands(page)})
LONG = ("tune", "crossval", "enough", "export", "plan")  # tests of their own run them


def runs_always() -> set[tuple[str, tuple[str, ...]]]:
    """The lines that are run always: with an option or group that no longer line has; no sweep."""
    found, seen = set(), set()
    for name, words in sorted(EVERY, key=lambda line: -len(line[1])):
        options = {(name, re.split("[=.]", word)[0]) for word in words} or {(name, "")}
        if options - seen and name not in LONG and "-m" not in words:
            found.add((name, words))
            seen |= options
    return found


ALWAYS = runs_always()
RUNS = [one if one in ALWAYS else pytest.param(*one, marks=pytest.mark.slow) for one in EVERY]
# the others are composed as they stand when they run
CHANGED = [
    (name, words)
    for name, words in EVERY
    if (name, words) not in ALWAYS
    or name in LONG
    or any(w.startswith(("-", "logger", "trainer=ddp")) for w in words)
]


@pytest.mark.parametrize(
    ("name", "words"), CHANGED, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_a_documented_command_is_understood(name, words):
    words = to_overrides(list(words)) if name in ("compare", "list") else words
    words = gather_searched(words) if name == "tune" else words
    check_command_line(
        name, [w for w in words if w != "-m" and not w.startswith("--")], multirun="-m" in words
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Outputs with a run of a model, trained once."""

    @cache
    def outputs(model: str) -> Path:
        place = tmp_path_factory.mktemp(model) / "outputs"
        first = [f"model={model}", *(["model.stride=32"] if model == "fcn" else [])]
        words = [*first, *SMALL, "data.size=64", "data.train=2", "data.val=1", f"outputs={place}"]
        train(compose_checked("train", words))
        return place

    return outputs


@pytest.mark.filterwarnings(
    "ignore:.ModelCheckpoint.*could not find the monitored key"  # two steps end before a validation
)
@pytest.mark.parametrize(
    ("name", "words"), RUNS, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_a_documented_command_runs(
    name, words, tmp_path, monkeypatch, small_run, stack_root, folder_root, planes_root
):
    """On small made data and for two steps; a sweep runs its first job."""
    if any(w.startswith("--") for w in words):
        pytest.skip("informs, runs nothing")
    if name == "info":
        print_info()
        return
    if "trainer=ddp" in words:
        pytest.skip(
            "several processes: tests/training/test_train.py and tests/training/test_distributed.py start them"
        )
    monkeypatch.chdir(tmp_path)
    if any(w.startswith("resume=") for w in words):
        train(compose_checked("train", [*SMALL, "data.size=64", "data.train=2", "data.val=1"]))
        record = Path("outputs/latest/run.json")
        record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
        train(compose_checked("train", list(words)))
        assert '"finished"' in record.read_text()
        return
    if name == "list":
        for place, status in (
            ("sweeps/SWEEP/a", "finished"),
            ("RUN_A", "failed"),
            ("RUN_B", "killed"),
        ):
            make_run(
                Path("outputs", place),
                {"val": spread([10])},
                status=status.replace("killed", "running"),
            )
        for file in Path("outputs").rglob("run.json"):
            os.utime(file, (0, 0))
        assert list_runs(compose_checked("list", to_overrides(list(words))))
        assert Path("outputs/RUN_A").exists() != ("apply=true" in words)
        return
    if name == "compare":
        places = ("sweeps/SWEEP/a", "sweeps/SWEEP/b", "RUN_A", "RUN_B", "vnc/a", "vnc/b")
        for i, place in enumerate(places):
            images = {split: spread([10 + i, 20]) for split in ("val", "test")}
            make_run(Path("outputs", place), images, choices={"model": ("unet", "unetpp")[i % 2]})
        Path("outputs/sweeps/latest").symlink_to("SWEEP")
        assert len(compare_runs(compose_checked("compare", to_overrides(list(words)))).groups) == 2
        return
    if name == "tune":
        given = {w.split("=")[0] for w in words}
        own = [w for w in words if not w.startswith(("trials=", "trainer"))]
        made = ["data.size=64", "data.train=2", "data.val=1", "data.test=1", "trials=1"]
        made += [
            w
            for w in SMALL
            if w.split("=")[0] not in given - {"trainer", "logger", "panels", "loader.crop"}
        ]
        assert len(tune([*own, *made]).trials) == 1
        return
    words = [w for w in words if not w.startswith("logger")]  # they'd write into the user's places
    line = [w.split(",")[0] if "," in w and "[" not in w else w for w in words if w != "-m"]
    if name == "doubt":
        own = ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]"]
        crossval(compose_checked("crossval", [*own, "output=outputs/cv", *SMALL, "data.folds=2"]))
        spoil_label(folder_root, Path("outputs/cv"))
        doubt_labels(compose_checked("doubt", ["run=outputs/cv"]))
        table = Path("outputs/cv/doubt/doubt.csv")
        first, second, *rest = table.read_text().splitlines()
        table.write_text("\n".join([first, f"{second}ignore", *rest, ""]))
        if any(w.startswith("reviewed=") for w in line):
            doubt_labels(compose_checked("doubt", line))
            assert len(list(Path("corrected/masks").iterdir())) == len(
                list((folder_root / "masks").iterdir())
            )
        return
    if name == "models":
        show_network(compose_checked("models", line))
        return
    if name == "show":
        assert picture(
            compose_checked("show", [*line, "data.size=64", "data.train=2", "loader.crop=32"])
        ).is_file()
        return
    if name == "plan":
        monkeypatch.setattr("seg.commands.plan.MEASURED_SECONDS", 0.0)
        plan_training(compose_checked("plan", small(line, stack_root, folder_root)))
        assert Path("experiment/plan.yaml").is_file()
        return
    if name == "train" and "dry=true" in line:
        assert dry_run(compose_checked("train", small(line, stack_root, folder_root))).steps >= 2
        return
    if name == "check" and (tool := tool_of(line)):
        root = folder_of(tool, tmp_path / tool)
        line = [f"data.root={root}" if w.startswith("data.root=") else w for w in line]
        assert check_data(compose_checked("check", line))["errors"] == 0
        return
    if name == "check":
        for mask in (folder_root / "masks").iterdir():  # two classes, as the pages have it
            Image.fromarray(np.array(Image.open(mask)).clip(max=1)).save(mask)
        made = ["data.size=64", "data.train=2"] if "data=membranes" in line else []
        line = [f"data.root={folder_root}" if w.startswith("data.root=") else w for w in line]
        assert check_data(compose_checked("check", [*line, *made]))["errors"] == 0
        return
    model = {"prune": "unetpp", "train": "fcn"}.get(name, "unet")
    if name == "enough":
        line = [w for w in line if not w.startswith(("sizes=", "seeds=", "output="))]
        made = ["sizes=[2,3,4]", "output=outputs/enough", "trainer=smoke"]
        two_val = ["data.val=0.34"] if "data=folder" in line else []
        given = small(line, stack_root, folder_root)
        curve = measure_enough(compose_checked("enough", [*given, *two_val, *made]))
        assert curve.scores.shape == (3, 2)
        return
    if name not in ("train", "crossval") or any(
        w.startswith("init=") for w in line
    ):  # it starts from a run
        shutil.copytree(small_run(model), "outputs", symlinks=True)
    if name == "crossval":
        line = [w for w in line if not w.startswith("data.folds=")]
        crossval(
            compose_checked("crossval", [*small(line, stack_root, folder_root), "data.folds=2"])
        )
        return
    if name == "train":
        root = planes_root if "data.task=overlapping" in line else folder_root
        words = small(line, stack_root, root)
        if any(w.startswith("init=pretrained:") for w in line):  # it has one size
            words += [w for w in line if w.startswith("model.")]
        train(compose_checked("train", words))
        return
    image = stack_root / "train-volume.tif"
    grey = tmp_path / "grey.png"
    Image.new("L", (64, 64), 99).save(grey)
    if name == "next":  # a file is one image
        image = grey
    if any(w.startswith("engine=") for w in line):  # they run what seg.export wrote
        stored = ["precision=int8", "max_loss=1"] if "precision=int8" in line else []
        export_run(compose_checked("export", ["run=outputs/latest", *stored]))
    places = {"bioimageio.image": str(grey), "input": str(image), "output": str(tmp_path / "out"), "run": "outputs/latest", "data.root": str(stack_root)}  # fmt: skip
    RUN[name](
        compose_checked(
            name, [f"{k}={places[k]}" if (k := w.split("=")[0]) in places else w for w in line]
        )
    )


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """The outputs of two evaluated runs, RUN_A and RUN_B."""
    place = tmp_path_factory.mktemp("two") / "outputs"
    for seed, name in enumerate(("RUN_A", "RUN_B")):
        made = ["data.size=64", "data.train=2", "data.val=3", f"seed={seed}", f"outputs={place}"]
        train(compose_checked("train", [*SMALL, *made]))
        evaluate(compose_checked("evaluate", [f"run={place}/latest", "panels=0"]))
        (place / "latest").resolve().rename(place / name)
    return place


CODE = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page, tmp_path, monkeypatch, capsys, two_runs
):
    """Where it speaks of runs, two small ones are there."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    if any("outputs/" in block for block in blocks):
        shutil.copytree(two_runs, "outputs", symlinks=True)
    Path("images").mkdir()
    Image.new("L", (64, 64)).save("images/a.png")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    said = {"metrics.md": "Difference(value=", "predict.md": "(300, 200) (2, 300, 200)"}
    assert said.get(page.name, "") in capsys.readouterr().out


@pytest.mark.slow
def test_the_pictures_of_the_docs_are_drawn_as_they_stand_there(tmp_path):
    """By the script that the page names; matplotlib's own fonts make the last bits its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs/pictures.py", tmp_path], check=True, text=True
    )
    assert done.returncode == 0
    for drawn in tmp_path.glob("*.png"):
        with Image.open(drawn) as new, Image.open(ROOT / "docs/images" / drawn.name) as old:
            assert new.size == old.size, drawn.name
            gap = np.abs(np.asarray(new.convert("L"), float) - np.asarray(old.convert("L"), float))
            assert gap.mean() < 1, drawn.name
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.slow
def test_the_table_of_losses_is_made_from_the_runs_of_a_sweep(tmp_path, monkeypatch, folder_root):
    """As the page has it, on small made data: two losses, two seeds."""
    monkeypatch.chdir(tmp_path)
    for mask in (folder_root / "masks").iterdir():
        Image.fromarray(np.array(Image.open(mask)) + 1).save(mask)  # 3 is a synapse
    for loss in ("dice", "focal"):
        for seed in (0, 1):
            line = [
                "experiment=synapses",
                f"data.root={folder_root}",
                f"loss={loss}",
                f"seed={seed}",
            ]
            train(compose_checked("train", [*line, *SMALL, f"name='synapses-{loss}-seed={seed}'"]))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/imbalance.py", "outputs", "plot.png"],
        check=True, text=True, capture_output=True,
    )  # fmt: skip
    assert re.search(r"\| dice \| .* \| 2 \|\n", done.stdout) and "| focal |" in done.stdout
    assert Path("plot.png").is_file()


def spoil_label(root: Path, cv: Path) -> None:
    """Replace the out-of-fold probabilities by those of the masks, in one image of another class in a square."""
    for number, file in enumerate(sorted((cv / "out-of-fold/probabilities").iterdir())):
        mask = np.array(Image.open(root / f"masks/{file.stem}.png"))
        if number == 0:
            mask[5:25, 5:25] = (mask[5:25, 5:25] + 1) % 3
        p = np.where(mask == np.arange(3)[:, None, None], 0.98, 0.01).astype(np.float32)
        tifffile.imwrite(file, p, photometric="minisblack")


def tool_of(line: list[str]) -> str | None:
    """The annotation tool that a line reads, or None."""
    return next((tool for tool in WRITERS if f"data={tool}" in line), None)


def small(line: list[str], stack_root: Path, folder_root: Path) -> list[str]:
    """A documented training at a size for tests, on data laid out as the documented one."""
    stack = any(w.startswith(("data=isbi2012", "experiment=isbi2012")) for w in line)
    folder = any(w in ("data=folder", "experiment=camvid", "experiment=vnc") for w in line)
    if tool := tool_of(line):
        root = folder_of(tool, folder_root.parent / tool)
        line = [w for w in line if not w.startswith("data.annotations=")]
        line = [f"data.root={root}" if w.startswith("data.root=") else w for w in line]
        return [*line, *(w for w in SMALL if not w.startswith("loader.crop")), "loader.crop=16"]
    if "data=coco" in line:
        pytest.importorskip("pycocotools", reason="the extra coco isn't installed")
        root, file = coco_root(folder_root.parent / "coco")
        places = {"data.root": root, "data.annotations": file}
        return [f"{k}={places[k]}" if (k := w.split("=")[0]) in places else w for w in line] + SMALL
    if stack and not any(w.startswith("data.root=") for w in line):
        line = [*line, "data.root="]  # it would be downloaded
    if folder and "data.task=instances" in line:  # objects of 8x8 px that touch
        for mask in (folder_root / "masks").iterdir():
            numbers = np.arange(35).reshape(5, 7).repeat(8, 0).repeat(8, 1)
            Image.fromarray(numbers.astype(np.uint8)).save(mask)
        return [f"data.root={folder_root}" if "data.root=" in w else w for w in line] + SMALL
    if "data.task=overlapping" in line:
        line = [*line, "data.ignore=[7]"]
    if "experiment=synapses" in line:  # whose classes are those of the vnc data: 3 is a synapse
        for mask in (folder_root / "masks").iterdir():
            Image.fromarray(np.array(Image.open(mask)) + 1).save(mask)
    if "data.task=overlapping" in line or "experiment=synapses" in line:
        return [f"data.root={folder_root}" if "data.root=" in w else w for w in line] + SMALL
    if stack or folder:
        line = [
            f"data.root={stack_root if stack else folder_root}" if w.startswith("data.root=") else w
            for w in line
        ]
        if folder:
            line = [
                w for w in line if not w.startswith(("data.classes", "data.values", "data.ignore"))
            ]
            line += ["data.classes=[a,b,c]", "data.colors=null", "data.ignore=[]"]
        return [*line, *SMALL]
    given = {
        w.split("=")[0] for w in line if w.startswith("data.val=")
    }  # images that a bound needs
    made = ["data.size=64", "data.train=2", "data.val=1", "data.test=1"]
    return [*line, *SMALL, *(w for w in made if w.split("=")[0] not in given)]


@pytest.mark.parametrize("file", ["fcn", "segnet", "unet", "unetpp", "smp"])
def test_the_docs_show_each_option_and_default_of_a_model(file):
    text = (CONF / f"model/{file}.yaml").read_text().rstrip()
    assert f"```yaml\n{text}\n```" in (ROOT / "docs/models.md").read_text()


def test_the_docs_name_every_model():
    text = (ROOT / "docs/models.md").read_text() + "`smp`"
    base = {"fcn", "segnet", "unet", "unetpp"}
    for file in (CONF / "model").glob("*.yaml"):
        assert file.stem in base or f"`{file.stem}`" in text, file.stem


def test_both_readmes_show_the_same_commands_numbers_and_pictures():
    pages = [p.read_text() for p in PAGES[:2]]
    assert commands(PAGES[0]) == commands(PAGES[1]) and len(commands(PAGES[0])) > 5
    for pattern in (r"\]\(([^)]+\.(?:png|jpg))\)", r"\|\s*\*{0,2}(\.\d+|\d+\.\d+)\*{0,2}\s*(?=\|)"):
        assert re.findall(pattern, pages[0]) == re.findall(pattern, pages[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_picture_is_there(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link
