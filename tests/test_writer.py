"""Every file is written by seg.files: whole or not at all, through no link, and only after it proved possible."""

import ast
import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import made_runs
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.table import Table
from rich.text import Text
from small_runs import composed, folded_run, make_images

from seg import files
from seg.cli.compose import compose_checked
from seg.commands import check, compare, crossval, evaluate, rerun, show, sync
from seg.commands.export import export_run
from seg.display.console import configure_logging, console, escape_controls
from seg.errors import DataError, RunError, UserError
from seg.files import UnsafePath
from seg.inference import file_prediction, pruning
from seg.multirun import sweeper
from seg.multirun.search import trial
from seg.runs import records
from seg.runs.folder import CROSSVAL_FILE
from seg.training.run import train

PACKAGE = Path(files.__file__).parent

# --- in the source


METHODS = {
    "write_text", "write_bytes", "mkdir", "makedirs", "symlink_to", "hardlink_to", "symlink", "rename", "renames",
    "touch", "truncate", "imwrite", "imsave", "TiffWriter", "savefig", "save", "savez", "savez_compressed", "savetxt",
    "write_html", "write_image", "FileLock",
    "SoftFileLock", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile", "mkdtemp", "mkstemp", "tofile",
    "open_memmap", "create_group", "create_array", "extractall", "urlretrieve", "copyfile", "copytree", "copy2", "copyfileobj",
}  # fmt: skip
TABLES = {"csv", "json", "html", "pickle", "parquet", "excel"}
CALLS = {"os.open", "os.replace", "os.link", "shutil.copy", "shutil.move", "torch.onnx.export"}
GIVERS = {
    "files.atomic_write", "files.open_text", "files.open_binary", "files.open_append", "files.atomic_folder", "files.scratch_folder",
    "self.replacing", "grown.replacing", "seen.replacing",
}  # fmt: skip  # what they give may be written; replacing is BandWriter's, by files.atomic_write
BY_CALLER = "the file is the caller's, of files.atomic_write"
ALLOWED = {
    "api.py show_html picture.save": "into memory",
    "cli/dispatch.py main os.open": "likewise",
    "cli/command.py __call__ os.open": "the null device, in the place of an output that was closed",
    "data/datasets/download.py download_file file.open": "in files.scratch_folder",
    "data/datasets/download.py unpack_files open": "only if it is new, in files.scratch_folder",
    "data/datasets/download.py unpack_files copyfileobj": "into that file",
    "data/image_io.py write_mask image.save": BY_CALLER,
    "inference/exported_network.py write_onnx torch.onnx.export": BY_CALLER,
    "inference/exported_network.py add_facts onnx.save": BY_CALLER,
    "inference/exported_network.py write_torch file.open": BY_CALLER,
    "inference/exported_network.py write_torch torch.export.save": "into that file",
    "inference/bioimageio.py draw_cover save": "into memory",
    "inference/bioimageio.py encode_array np.save": "into memory",
    "inference/polygons.py as_labelme save": "into memory",
    "inference/unlabelled.py predict_start np.savez": "into the stream of files.atomic_write",
    "inference/zarr_writer.py write_zarr group.create_array": "in the folder of files.atomic_folder",
    "inference/zarr_writer.py write_zarr zarr.create_group": "in that folder",
    "display/learning_curve.py draw_curve figure.savefig": BY_CALLER,
    "inference/pruning.py plot_depths figure.savefig": BY_CALLER,
    "metrics/calibration.py draw_reliability figure.savefig": BY_CALLER,
    "runs/provenance.py write_provenance_files write_bytes": "that of seg.files",
}


def dotted(node: ast.expr) -> str:
    """``a.b.c``; of anything else than names the last part alone."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value) if isinstance(node.value, ast.Name | ast.Attribute) else ""
        return f"{before}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def opens_to_write(call: ast.Call) -> bool:
    words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [word.value for word in words if isinstance(word, ast.Constant)]
    return any(
        isinstance(mode, str) and re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+")
        for mode in modes
    )


def writes(call: ast.Call) -> bool:
    """Return True if a call writes or makes a file, a folder or a link."""
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    if name.startswith("files."):
        return False
    moved = (
        last == "replace"
        and len(call.args) == 1
        and not call.keywords
        and name.partition(".")[0] != "dataclasses"
    )  # Path.replace; that of a text takes two
    kept = last.startswith("to_") and last[3:] in TABLES and bool(call.args)
    opened = last in ("open", "memmap", "FileIO", "fdopen") and opens_to_write(call)
    return last in METHODS or name in CALLS or moved or kept or opened


def given(function: ast.AST) -> set[str]:
    """Names in a function of what seg.files gave to be written."""
    return {
        item.optional_vars.id
        for node in ast.walk(function)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name)
        and dotted(item.context_expr.func) in GIVERS
    }  # fmt: skip


def functions(tree: ast.AST) -> Generator[tuple[str, ast.AST, list[ast.Call]]]:
    """Each outermost function or method, and the module for what stands in none: name, node, calls."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node not in inner:
            below = list(ast.walk(node))
            inner.update(below)
            yield node.name, node, [n for n in below if isinstance(n, ast.Call)]
    rest = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n not in inner]
    yield "", tree, rest


def writers(source: str, file: str) -> list[str]:
    """Calls that write without seg.files: file, function and call."""
    found = []
    for name, node, calls in functions(ast.parse(source)):
        own = given(node)
        for call in calls:
            receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
            targets = [receiver, *call.args]
            ours = any(isinstance(one, ast.Name) and one.id in own for one in targets)
            if writes(call) and not ours:
                found.append(f"{file} {name} {dotted(call.func)}")
    return found


def test_nothing_but_the_one_writer_writes():
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE).as_posix()
        if place != "files.py":
            found += writers(file.read_text("utf-8"), place)
    assert sorted({*found} - {*ALLOWED}) == []
    assert sorted({*ALLOWED} - {*found}) == []  # no reason for what isn't there


@pytest.mark.parametrize(
    "line",
    [
        "file.open('w')", "open(file, 'ab')", "open(file, mode='r+')", "gzip.open(file, 'xb')", "file.write_text('')",
        "file.parent.mkdir(parents=True)", "os.replace(a, b)", "a.replace(b)", "image.save(file)", "np.save(file, a)",
        "shutil.copy(a, b)", "table.to_csv(file)", "FileLock(file)", "tempfile.mkdtemp(dir=folder)",
        "link.symlink_to(file)", "tifffile.imwrite(file, a)", "os.open(file, os.O_WRONLY)", "figure.savefig(file)",
        "with runs.whole(file) as aside: aside.write_text('')",
        "with files.atomic_write(file, below) as aside: image.save(file)",
    ],
)  # fmt: skip
def test_a_call_that_writes_would_be_seen(line):
    assert writers(f"def f():\n    {line}\n", "x.py")
    assert writers(line, "x.py")


@pytest.mark.parametrize(
    "line",
    [
        "file.open()", "open(file, 'rb')", "text.replace('a', 'b')", "dataclasses.replace(run, model=model)",
        "table.to_csv(index=False)", "array.copy()", "Image.open(file)", "np.memmap(file, dtype, 'r')",
        "with files.atomic_write(file, below) as aside: image.save(aside)",
        "with files.open_binary(file, below) as stream: torch.save(content, stream)",
    ],
)  # fmt: skip
def test_a_call_that_does_not_write_is_none(line):
    assert writers(f"def f():\n    {line}\n", "x.py") == []


# --- the writer


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("before")
    with files.atomic_write(file, tmp_path) as aside:
        assert aside.suffix == ".csv" and aside.parent == tmp_path and aside.read_bytes() == b""
        aside.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after" and [*tmp_path.iterdir()] == [file]
    with pytest.raises(KeyError), files.open_text(file, tmp_path) as stream:
        stream.write("half")
        raise KeyError
    assert file.read_text() == "after" and [*tmp_path.iterdir()] == [file]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    file = tmp_path / "x.csv"
    with pytest.raises(OSError, match=r"x\.csv") as caught, files.open_binary(file, tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC and not [*tmp_path.iterdir()]


def test_what_a_name_in_other_bytes_becomes_can_be_read_again(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    records.write_json(tmp_path / "x.json", {name: name, "é": 1})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {name: name, "é": 1}
    with files.open_text(tmp_path / "x.csv", tmp_path) as stream:
        csv.writer(stream).writerow([name, "é"])
    assert (tmp_path / "x.csv").read_bytes() == "caf\\udce9,é\r\n".encode()
    assert files.encodable(name) == "caf\\udce9" and files.encodable("é") == "é"


def test_links_above_the_named_folder_are_followed_and_those_below_refused(tmp_path):
    (tmp_path / "disk/run/inner").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("disk/run")
    latest = tmp_path / "latest"
    files.write_text(latest / "inner/x", "x", latest)
    assert (tmp_path / "disk/run/inner/x").read_text() == "x"
    (latest / "out").symlink_to(tmp_path)
    for path in (latest / "out", latest / "out/x", latest / "../x", tmp_path / "x"):
        for write in (
            lambda p: files.write_text(p, "", latest), lambda p: files.open_append(p, latest),
            lambda p: files.file_lock(p, latest), lambda p: files.make_folder(p, latest),
            lambda p: files.check_writable(p, latest), lambda p: files.atomic_folder(p, latest).__enter__(),
        ):  # fmt: skip
            with pytest.raises(UnsafePath):
                write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "latest"]


def test_a_folder_is_replaced_with_all_in_it(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/old").touch()
    with files.atomic_folder(tmp_path / "x", tmp_path) as aside:
        (aside / "new").touch()
        assert (tmp_path / "x/old").exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "new"]
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "x", tmp_path) as aside:
        (aside / "newer").touch()
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "new"]


def test_what_was_left_unfinished_is_removed_and_nothing_else(tmp_path):
    for name in (".lock", ".0123456789abcdef", "x.part.csv", ".hidden.part.csv"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.iterdir())
    (tmp_path / files.unfinished_name(".csv")).touch()
    (tmp_path / files.unfinished_name()).mkdir()
    (tmp_path / files.unfinished_name()).symlink_to(tmp_path)
    files.remove_unfinished(tmp_path)
    files.remove_unfinished(tmp_path / "absent")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "Not a directory"), ("file/deep/er", "Not a directory"), ("/proc/self", "No such file|denied"),
        ("/dev/null", "Not a directory"), ("dangling", "Not a directory"), ("x" * 300, "too long"), ("taken", "directory"),
    ],
)  # fmt: skip
def test_a_place_that_can_not_be_written_is_told_and_nothing_made(tmp_path, place, said):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "taken/a/b").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    folder = tmp_path / place
    with pytest.raises(RunError, match=rf"^output=\S*: can't be written \(.*({said}).*\); give another folder$"):  # fmt: skip
        files.check_writable(folder, folder, ["a/b"])
    assert sorted(tmp_path.rglob("*")) == before
    files.check_writable(tmp_path / "new/er", tmp_path, ["deep/x", "y"])
    files.check_writable(tmp_path / "taken", tmp_path, ["a/c"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    for place in ("a/b", ""):
        with pytest.raises(KeyError), files.folder_removed_if_empty(tmp_path / place, tmp_path):
            raise KeyError
    assert tmp_path.is_dir() and not [*tmp_path.iterdir()]


# --- links in a folder of somebody else

TINY = ["trainer=cpu", "trainer.max_epochs=1", "logger=none", "data.size=32", "data.train=2", "data.val=1",
        "data.test=1", "loader.crop=32", "loader.repeats=1", "loader.batch_size=2", "model=unetpp", "model.width=2",
        "model.depth=2", "panels=1", "save_predictions=1", "save_checkpoints=full"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder; read only."""
    outputs = tmp_path_factory.mktemp("trained")
    train(compose_checked("train", [*TINY, f"outputs={outputs}"]))
    return (outputs / "latest").resolve()


def images_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    ramp = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
    for name in ("a", "b"):
        Image.fromarray(ramp).save(folder / f"{name}.png")
    return folder


def of_run(function: Callable, name: str, *words: str) -> Callable[[Path], Any]:
    return lambda run: function(compose_checked(name, [f"run={run}", *words]))


def comparable(folder: Path) -> None:
    for seed in (0, 1):
        counts = {"val": made_runs.spread([seed, 2])}
        made_runs.make_run(folder / f"run-{seed}", counts, seed=seed)


# command -> what it does with a folder of somebody else, whose names it writes
DEEDS: dict[str, Callable[[Path], Any]] = {
    "evaluate": of_run(evaluate.evaluate, "evaluate", "metrics=full", "panels=1", "accelerator=cpu"),
    "export": of_run(export_run, "export", "format=torch"),
    "prune": of_run(pruning.compare_depths, "prune", "depth=1", "rounds=1", "accelerator=cpu"),
    "compare": lambda sweep: compare.compare_runs(compose_checked("compare", [f"runs=[{sweep}]", "resamples=10"])),
    "resume": lambda run: train(compose_checked("train", [f"resume={run}"])),
    "show": lambda place: show.draw_samples(compose_checked("show", ["n=1", f"output={place}/x.png", "data.size=32", "loader.crop=32"])),
    "check": lambda place: check.check_data(compose_checked("check", [f"output={place}", "data.size=32", "data.train=2", "panels=1"])),
}  # fmt: skip


@pytest.fixture
def theirs(tmp_path, trained) -> Callable[[str], Path]:
    """A fresh folder for a command, as somebody else might give it away."""

    def make(command: str, where: str = "theirs") -> Path:
        folder = tmp_path / where
        if command in ("evaluate", "export", "prune", "resume"):
            shutil.copytree(trained, folder)
        elif command == "compare":
            comparable(folder)
        else:
            folder.mkdir()
        if command == "resume":
            record = records.read_json(folder / "run.json")
            records.write_json(folder / "run.json", record | {"status": "interrupted"})
        return folder

    return make


def planted(folder: Path, name: str, target: Path) -> Path:
    """A link of that name in the place of whatever is there."""
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def outside(tmp_path: Path) -> Path:
    """A user's own folder and file."""
    mine = tmp_path / "mine"
    shutil.rmtree(mine, ignore_errors=True)
    (mine / "folder").mkdir(parents=True)
    (mine / "file").write_text("precious")
    return mine


def untouched(mine: Path) -> bool:
    return (
        sorted(p.name for p in mine.rglob("*")) == ["file", "folder"]
        and (mine / "file").read_text() == "precious"
    )


EXAMPLES = [
    ("compare", "compare.csv", "key"), ("evaluate", "evaluate-val", "folder"),
    ("evaluate", "evaluate-val/panels/val-000.png", "key"), ("export", "export/model.pt2", "key"),
    ("prune", "prune/L1.ckpt", "file"), ("resume", "metrics.csv", "file"), ("resume", "checkpoints", "folder"),
    ("resume", "tensorboard/hparams.yaml", "key"), ("check", "check.json", "file"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name", "target"), EXAMPLES)
def test_a_link_in_a_folder_of_somebody_else_is_written_through_by_no_command(
    command, name, target, theirs, tmp_path
):
    folder, mine = theirs(command), outside(tmp_path)
    link = planted(folder, name, mine / target)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UnsafePath, match=re.escape(f"{link}: a link to {mine / target}, which")):
        DEEDS[command](folder)
    assert untouched(mine) and sorted(folder.rglob("*")) == before  # refused before the work


@pytest.mark.parametrize(
    ("command", "name"),
    [("evaluate", "evaluate-val/.metrics.json"), ("compare", ".compare.csv")],
)
def test_a_file_written_aside_has_a_name_that_nobody_knows_before(command, name, theirs, tmp_path):
    folder, mine = theirs(command), outside(tmp_path)
    planted(folder, name, mine / "key")
    DEEDS[command](folder)
    assert untouched(mine)


def test_latest_is_the_users_own_link_and_is_followed(theirs, tmp_path):
    folder = theirs("evaluate")
    (tmp_path / "latest").symlink_to("theirs")
    DEEDS["evaluate"](tmp_path / "latest")
    assert (folder / "evaluate-val/panels/all.png").is_file()
    assert not (folder / "evaluate-val").is_symlink()


# --- the same for every name that a command writes


SEEN: dict[str, set[Path]] = {}  # what is being noted: ``written`` -> paths


def note(event: str, arguments: tuple) -> None:
    """An audit hook: notes what is opened to be written, made or moved."""
    if not SEEN:
        return
    paths: tuple = ()
    if event == "open" and isinstance(arguments[2], int):
        changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        paths = arguments[:1] if arguments[2] & changes else ()
    elif event in ("os.mkdir", "os.truncate"):
        paths = arguments[:1]
    elif event in ("os.rename", "os.symlink", "os.link"):
        paths = arguments[1:2]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            SEEN["written"].add(Path(os.path.abspath(os.fsdecode(path))))


@pytest.fixture(scope="module")
def auditing() -> None:
    sys.addaudithook(note)  # for as long as the process lives


def names_written(deed: Callable[[Path], Any], folder: Path) -> list[str]:
    """Names below a folder of all that a command wrote, also of what it removed again."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    SEEN["written"] = set()
    try:
        deed(folder)
    finally:
        found = SEEN.pop("written")
    found |= {p for p in folder.rglob("*") if before.get(p) != p.lstat().st_mtime_ns}
    names = [p.relative_to(folder) for p in found if folder in p.parents]
    random = re.compile(r"\.[0-9a-f]{16}\.part.*|20\d\d-\d\d-\d\d_.*|events\.out.*|\.worker-.*")
    return sorted(str(n) for n in names if not any(random.fullmatch(part) for part in n.parts))


def tried_at_every_name(
    deed: Callable[[Path], Any],
    make: Callable[[str], Path],
    tmp_path: Path,
    replaced: tuple[str, ...] = (),
) -> list[str]:
    """The names, at each of which a link to a file, to a new file and to a folder harmed nothing outside.

    The command refused each, but those that are ``replaced`` by new ones of their own.
    """
    first = make("first")
    folders = {str(p.relative_to(first)) for p in first.rglob("*") if p.is_dir()}
    names = names_written(deed, first)
    folders |= {str(p.relative_to(first)) for p in first.rglob("*") if p.is_dir()}
    for number, name in enumerate(names):
        for target in ("key", "file", *(["folder"] if name in folders else [])):
            mine, folder = outside(tmp_path), make(f"theirs-{number}-{target}")
            link = planted(folder, name, mine / target)
            if any(re.fullmatch(pattern, name) for pattern in replaced):
                deed(folder)
            else:
                with pytest.raises(UnsafePath, match=re.escape(str(link))):
                    deed(folder)
                assert link.is_symlink(), name
            assert untouched(mine), (name, target)
            shutil.rmtree(folder)
    return names


# some of the names, as proof that all are noted
MATRIX = {
    "evaluate": {"evaluate-val", "evaluate-val/reliability.png", "evaluate-val/panels/all.png"},
    "export": {"export", "export/model.pt2"},
    "prune": {"prune", "prune/L1.ckpt", "prune/prune.json", "prune/prune.png"},
    "compare": {"compare.csv", "compare.html"},
    "resume": {"run.json", "log.txt", "metrics.csv", "images.csv", ".lock", "config.yaml", "checkpoints/last.ckpt",
               "panels/all.png", "predictions/val/0-image.jpg", "predictions/names.json", "tensorboard/hparams.yaml"},
    "show": {"x.png"},
    "check": {"check.json", "sheet.png"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", MATRIX)
def test_no_command_writes_through_a_link_of_any_name(command, theirs, tmp_path, auditing):
    def make(where: str) -> Path:
        folder = theirs(command, where)
        if command == "resume":
            text = (folder / "config.yaml").read_text()
            logger = (
                "logger: {tensorboard: {_target_: seg.training.loggers.tensorboard.TensorBoard}}"
            )
            text = re.sub(r"logger: \{\}", logger, text).replace("max_epochs: 1", "max_epochs: 2")
            (folder / "config.yaml").write_text(text)
            (folder / "fingerprints.csv").unlink()  # written anew, as diff.patch is
        return folder

    deed = DEEDS[command]
    if command == "resume":
        deed = resumed_with_tensorboard
    names = tried_at_every_name(deed, make, tmp_path)
    assert set(names) >= MATRIX[command], names


def resumed_with_tensorboard(run: Path) -> None:
    train(compose_checked("train", [f"resume={run}"]))
    (run / "tensorboard/hparams.yaml").touch()  # what Lightning writes there in other versions


def folder_of_predictions(tmp_path: Path, trained: Path) -> Callable[[Path], Any]:
    images = images_in(tmp_path / "images")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(images / "c.png")
    (images / "d.png").write_bytes(b"none")  # what can't be read is told at the end
    words = [
        f"run={trained}",
        f"input={images}",
        "save=[masks,overlays,instances]",
        "accelerator=cpu",
    ]

    def deed(output: Path) -> None:
        try:
            file_prediction.predict_files(compose_checked("predict", [*words, f"output={output}"]))
        except UserError as error:
            assert "d.png" in str(error) and ";" not in str(error), error

    return deed


@pytest.mark.slow
def test_predict_writes_through_no_link(trained, tmp_path, auditing):
    deed = folder_of_predictions(tmp_path, trained)
    names = tried_at_every_name(deed, lambda where: fresh(tmp_path / where), tmp_path)
    assert set(names) >= {"predict.json", ".partial", ".partial/.lock", ".partial/a.masks",
                          "masks", "masks/a.png", "overlays/b.png", "instances/c.csv"}  # fmt: skip


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_tune_writes_through_no_link(tmp_path, auditing, monkeypatch):
    from test_tune import LR, WIDTH, base, compose_quickly, dice, tuned  # what they share

    base()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "train", lambda cfg, callbacks, asked: dice(cfg))
    monkeypatch.setattr(trial, "compose_config", compose_quickly)
    monkeypatch.setattr(trial, "isolate_job", lambda words: nullcontext())

    def deed(folder: Path) -> None:
        tuned(LR, WIDTH, trials=2, outputs=str(folder.parent), name=folder.name)

    names = tried_at_every_name(deed, lambda where: fresh(tmp_path / where), tmp_path)
    assert set(names) >= {".lock", "study.db", "trials.csv", "best.yaml", "search.html"}, names
    folder = fresh(tmp_path / "journal")
    for name in ("000-lr=1-width=2", "wandb"):  # of a trial, or of a logger
        planted(folder, name, outside(tmp_path) / "folder")
        with pytest.raises(UnsafePath, match=name):
            deed(folder)
        (folder / name).unlink()


@pytest.mark.slow
def test_crossval_writes_through_no_link(tmp_path, auditing):
    root, begun = make_images(tmp_path / "data", 4), tmp_path / "begun"
    words = [word for word in folded_run(root, begun) if not word.startswith("data.folds")]
    words += [
        "data.folds=2",
        "model.width=2",
        "model.depth=1",
        "save_predictions=0",
        "save=[masks]",
    ]

    def deed(folder: Path) -> None:
        given = [*(word for word in words if not word.startswith("output=")), f"output={folder}"]
        crossval.crossval(compose_checked("crossval", given))

    deed(begun)
    record = records.read_json(begun / CROSSVAL_FILE)
    folds = [fold["run"] for fold in record["folds"]]
    records.write_json(begun / CROSSVAL_FILE, record | {"status": "running"})

    def make(where: str) -> Path:
        return shutil.copytree(begun, tmp_path / where, symlinks=True)

    names = tried_at_every_name(deed, make, tmp_path, ("out-of-fold/.*", "latest"))
    assert set(names) >= {".lock", CROSSVAL_FILE, "log.txt", "out-of-fold"}, names
    mine, folder = outside(tmp_path), make("again")  # a fold that is trained anew
    shutil.rmtree(folder / folds[1])
    planted(folder, "latest", mine / "folder")
    deed(folder)
    assert untouched(mine) and (folder / "latest").resolve().parent == folder


@pytest.mark.slow
def test_rerun_writes_nothing_into_the_run_that_it_repeats(trained, tmp_path):
    folder, mine = tmp_path / "theirs", outside(tmp_path)
    shutil.copytree(trained, folder)
    for name in ("rerun.json", "log.txt", ".lock", "latest", "panels"):
        planted(folder, name, mine / "key")
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "outputs").mkdir()
    planted(tmp_path, "outputs/latest", mine / "folder")
    rerun.rerun(compose_checked("rerun", [f"run={folder}", f"outputs={tmp_path}/outputs"]))
    assert untouched(mine)
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    assert (tmp_path / "outputs/latest/rerun.json").is_file()


@pytest.mark.parametrize("name", ["run-x.wandb.log", "logs/debug.log", "..", "../../wandb"])
def test_sync_hands_wandb_no_folder_with_a_link_that_leads_out(name, tmp_path, monkeypatch):
    folder = tmp_path / "outputs/theirs/wandb/offline-run-20261127_101114-x"
    folder.mkdir(parents=True)
    (folder / "run-x.wandb").write_bytes(b"x")
    (folder.parent / "latest-run").symlink_to(folder.name)  # W&B's own
    (folder / "files").mkdir()
    (folder / "inner").symlink_to("files")
    mine, sent = outside(tmp_path), []
    monkeypatch.setattr("seg.commands.sync.upload_recordings", sent.append)
    cfg = compose_checked("sync", [f"outputs={tmp_path}/outputs", "send=true"])
    with pytest.raises(RunError, match="1 of 1 runs were not sent"):
        sync.sync(cfg)
    assert len(sent.pop()) == 1
    if name.startswith(".."):  # the folder itself lies elsewhere
        place = Path(os.path.normpath(folder / name))
        shutil.copytree(place, mine / "folder", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(place)
        place.symlink_to(mine / "folder")
    else:
        planted(folder, name, mine / "key")
    with pytest.raises(UnsafePath, match="a link to"):
        sync.sync(cfg)
    assert not sent and not (mine / "key").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trick", ["job", "record", "submitit"])
def test_a_sweep_of_somebody_else_is_taken_up_inside_its_folder_alone(trick, tmp_path):
    line = [
        *TINY,
        "seed=1,2",
        "model=unet",
        "panels=0",
        "save_predictions=0",
        f"outputs={tmp_path}/outputs",
    ]
    words = [word for word in line if not word.startswith("outputs=")]
    jobs = sweeper.plan_jobs(composed(tmp_path / "outputs", *words, line[-1]), {})
    folder, mine = tmp_path / "outputs/sweeps/theirs", outside(tmp_path)
    folder.mkdir(parents=True)
    if trick == "record":
        jobs[0]["folder"] = "../../../mine/folder"
    else:
        name = jobs[0]["folder"] if trick == "job" else ".submitit"
        planted(folder, name, mine / "folder")
    records.write_json(folder / "sweep.json", {"jobs": jobs})
    done = subprocess.run(
        [sys.executable, "-m", "seg.train", "-m", *line], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr + done.stdout
    assert untouched(mine)


# --- what can't be written is told before the work

WORK = {
    "evaluate": "seg.commands.evaluate.open_run_data", "export": "seg.commands.export.write_checked", "prune": "seg.inference.pruning.open_run_data",
    "compare": "seg.comparison.compare.rank_groups", "show": "seg.commands.show.open_training_data", "check": "seg.commands.check.inspect_all",
    "predict": "seg.inference.ensemble.load_members", "crossval": "seg.multirun.crossval.train", "train": "seg.training.run.build_data",
    "tune": "seg.multirun.search.worker.open_storage", "rerun": "seg.training.run.build_data",
}  # fmt: skip


QUICK = [
    ("evaluate", "file/x"),
    ("compare", "link"),
    ("check", "/proc/x"),
    ("predict", "taken"),
    ("show", "file/x"),
]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        pytest.param(command, place, marks=() if (command, place) in QUICK else pytest.mark.slow)
        for command in WORK
        for place in ("file/x", "/proc/x", "link", "taken")
    ],
)
def test_an_output_that_can_not_be_written_is_told_in_one_line_before_the_work(
    command, place, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name in ("metrics.json", "prune.json", "compare.csv", "check.json", "predict.json", CROSSVAL_FILE, "x.png",
                 "m.pt2"):  # fmt: skip
        Path(f"taken/{name}").mkdir(parents=True)
    if place == "link":
        shutil.copytree("taken", "linked")
        for name in [*Path("linked").iterdir()]:
            name.rmdir()
            name.symlink_to(tmp_path / "key")
        place = "linked"
    if command == "compare":
        comparable(Path("runs"))
    images_in(Path("d/images")), images_in(Path("d/masks"))
    folder = ["data=folder", "data.root=d", "data.classes=[a,b]"]
    words = {
        "evaluate": [f"run={trained}", f"output={place}"], "prune": [f"run={trained}", f"output={place}"],
        "export": [f"run={trained}", "format=torch", f"output={place}/m.pt2"], "show": [f"output={place}/x.png"],
        "compare": ["runs", f"output={place}"], "check": [f"output={place}"],
        "predict": [f"run={trained}", "input=d/images", f"output={place}"],
        "crossval": [*folder, "data.folds=2", f"output={place}"], "train": [f"outputs={place}"],
        "tune": ["optim.lr=choice(1,2)", f"outputs={place}"], "rerun": [f"run={trained}", f"outputs={place}"],
    }[command]  # fmt: skip
    if command in ("train", "tune", "rerun") and not place.endswith("/x"):
        pytest.skip("its files have names of their own, in new folders")
    before = sorted(tmp_path.rglob("*"))

    def worked(*given: Any, **more: Any) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.setattr(WORK[command], worked)
    monkeypatch.setattr(sys, "argv", [f"seg.{command}", *words])
    with pytest.raises(SystemExit) as ended:
        import_module(f"seg.{command}").main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and said.startswith("error: "), said
    assert ("a link to" if place == "linked" else "can't be written (") in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_refused_export_leaves_no_folder(trained, tmp_path):
    words = [f"run={trained}", "format=torch", "tolerance=1e-30", f"output={tmp_path}/new/er/m.pt2"]
    with pytest.raises(UserError, match="nothing is written"):
        export_run(compose_checked("export", words))
    assert not [*tmp_path.iterdir()]


def test_a_cross_validation_leaves_nothing_in_a_folder_of_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images_in(Path("d/images")), images_in(Path("d/masks"))
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    words = ["data=folder", "data.root=d", "data.classes=[a,b]", "data.folds=2", "output=out"]
    with pytest.raises(UserError, match="holds something else"):
        crossval.crossval(compose_checked("crossval", words))
    assert [p.name for p in Path("out").iterdir()] == ["thesis.tex"]


# --- names of files that aren't UTF-8

LATIN = os.fsdecode(b"caf\xe9")  # as a file of an old disk may be called


@pytest.fixture
def latin(tmp_path) -> Path:
    """Images and masks, where a file may have such a name."""
    root = tmp_path / "d"
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    try:
        (root / "images" / LATIN).touch()
    except OSError:  # macOS
        pytest.skip("this file system has names in UTF-8 alone")
    (root / "images" / LATIN).unlink()
    for i in range(6):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        image = (mask * 120 + rng.integers(0, 60, (32, 32))).astype(np.uint8)
        Image.fromarray(image).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    return root


def test_a_terminal_of_utf_8_shows_such_a_name(capsys):
    configure_logging()
    console.print(LATIN)
    table = Table(title=Text(LATIN))
    table.add_column(Text(LATIN))
    console.print(table)
    assert capsys.readouterr().out.count("caf\\udce9") == 3
    assert escape_controls(LATIN) == "caf\\udce9"


def test_an_image_whose_name_is_not_utf_8_ends_no_prediction(trained, latin, tmp_path):
    (latin / "images" / f"{LATIN}-bad.png").write_bytes(b"none")
    shutil.copyfile(latin / "images/0.png", latin / "images" / f"{LATIN}.png")
    words = [f"run={trained}", "accelerator=cpu", "save=[masks,instances]"]
    cfg = compose_checked("predict", [*words, "output=out", "input=in"])
    cfg.input, cfg.output = str(latin / "images"), str(tmp_path / "out")
    for attempt in range(2):  # the second finds the first's done
        with pytest.raises(UserError, match=r"-bad\.png"):
            file_prediction.predict_files(cfg)
        record = json.loads((tmp_path / "out/predict.json").read_text("utf-8"))
        assert len(record["done"]) == 7 and set(record["done"]) == {str(f) for f in good(latin)}
        (failed,) = record["failed"]
        assert str(latin / "images" / f"{LATIN}-bad.png") in failed, attempt
    assert len([*(tmp_path / "out/masks").iterdir()]) == 7


def good(root: Path) -> list[Path]:
    return [file for file in (root / "images").iterdir() if "bad" not in file.name]


def data_of(root: Path, name: str, *words: str) -> Any:
    cfg = compose_checked(name, ["data=folder", "data.root=d", "data.classes=[a,b]", "loader.crop=32" if name != "check" else "panels=2", *words])  # fmt: skip
    cfg.data.root = str(root)
    return cfg


@pytest.mark.slow
def test_folders_of_such_names_end_neither_check_nor_show(latin, tmp_path):
    output = tmp_path / f"{LATIN}-out"
    cfg = data_of(latin, "check")
    cfg.output = str(output)
    report = check.check_data(cfg)
    assert json.loads((output / "check.json").read_text("utf-8")) == report
    assert (output / "sheet.png").is_file()
    cfg = data_of(latin, "show", "n=2")
    cfg.output = str(output / "x.png")
    assert show.draw_samples(cfg).is_file()


def test_data_with_such_a_name_is_refused_before_anything_is_made(latin, tmp_path):
    for part in ("images", "masks"):
        shutil.copyfile(latin / part / "0.png", latin / part / f"{LATIN}.png")
    with pytest.raises(DataError, match="a name that is not UTF-8; rename the file"):
        train(data_of(latin, "train", f"outputs={tmp_path}/outputs"))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_folders_of_such_names_end_no_training_and_nothing_that_reads_its_run(latin, tmp_path):
    small = [word for word in TINY if not word.startswith("data.")]
    cfg = data_of(latin, "train", *small, "threshold=best")
    outputs = (
        tmp_path / f"{LATIN} $x_{{$"
    )  # in a plot's title that would be a formula, and a wrong one
    cfg.loader.cache, cfg.outputs = str(outputs / "cache"), str(outputs)
    cfg.name = LATIN
    train(cfg)
    folder = (outputs / "latest").resolve()
    record = records.read_json(folder / "run.json")
    assert record["status"] == "finished" and record["name"] == LATIN
    saved = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    assert saved["outputs"] == files.encodable(str(outputs))
    log = (folder / "log.txt").read_text("utf-8")
    assert f"run        {LATIN}" not in log and r"run        caf\udce9" in log

    def run_of(name: str, *words: str) -> Any:
        cfg = compose_checked(name, ["run=x", *words])
        cfg.run = str(folder)
        return cfg

    evaluate.evaluate(run_of("evaluate", "metrics=full", "panels=1"))
    report = json.loads((folder / "evaluate-val/metrics.json").read_text("utf-8"))
    assert report["checkpoint"] == str(folder / "checkpoints/best.ckpt")
    cfg = compose_checked("compare", ["runs=[x]", "resamples=10"])
    cfg.runs = [str(folder)]
    compare.compare_runs(cfg)
    assert "data:image" in (folder.parent / "compare.html").read_text("utf-8")
    assert r"caf\udce9" in (folder.parent / "compare.csv").read_text("utf-8")
    export_run(run_of("export", "format=torch"))
    cfg = run_of("rerun")
    cfg.outputs = str(outputs)
    assert rerun.rerun(cfg)["verdict"] == "same"
    record = records.read_json(folder / "run.json")
    records.write_json(folder / "run.json", record | {"status": "interrupted"})
    cfg = compose_checked("train", ["resume=x"])
    cfg.resume = str(folder)
    train(cfg)
