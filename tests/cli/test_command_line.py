"""Every printed command runs as printed, wherever the runs lie."""

import logging
import os
import re
import shlex
import subprocess
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from forked import ended, forked, seg
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from seg.cli.command_line import quote_path, quote_shell, render_command, render_option
from seg.cli.compose import compose_checked
from seg.commands.sync import sync
from seg.training.run import train

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.text("a\\'\"${}[](),:=#~!*? \n-+%&|;<>`", max_size=8)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def read(word: str) -> object:
    """The value that a command gets: Hydra parses the word, OmegaConf resolves it."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"x": override.value()}), resolve=True)["x"]


@given(VALUES)
@example("outputs/a[b],c")
@example("a\\")
@example("a\\${b}\\")
@example("\\\\'\\\"")
@example("null")
@example("1e3")
@example("${oc.env:HOME}")
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_a_rendered_option_parses_back_to_its_value(value):
    word = render_option("x", value)
    assert read(word) == value
    quoted = quote_shell(word)
    assert quoted.startswith("$'") or shlex.split(quoted) == [word]


def test_a_plain_option_has_no_quotes():
    word = render_option("run", "outputs/2026-11-28_15-00-00-run")
    assert render_command("evaluate", word) == f"python -m seg.evaluate {word}"


NASTY = ["a b", "a[b],c", "it's", 'a"b', "$HOME", "${HOME}", "a=b", "#a", "~", "~root", "-m", "--help", "ü日本", "a\nb", "a\tb",
         "a\x1b[31m", "\x7f", "\u202eb", "a\udcffb", "\\", "a\\", "`id`", "$(id)", "*", "!!", "a;b", "a&b", "1", "null", "(a)", "{a,b}"]  # fmt: skip


def test_bash_gives_each_word_back():
    line = f"printf '%s\\0' {' '.join(map(quote_shell, NASTY))}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={})  # fmt: skip
    assert done.stdout.decode(errors="surrogateescape").split("\0")[:-1] == NASTY
    assert all(ord(c) >= 32 for c in line)  # a terminal shows the line as it is


@pytest.mark.parametrize("name", ["-m", "--help"])
def test_a_path_is_never_taken_for_a_flag(name):
    assert shlex.split(quote_path(name)) == [f"./{name}"]


def test_no_command_is_rendered_elsewhere():
    for file in Path(render_command.__code__.co_filename).parent.rglob("*.py"):
        for line in file.read_text().splitlines():
            if "log.info" in line or "print(" in line:
                assert not re.search(r"python -m seg\.\w+.*=\{", line), f"{file}: {line}"


def test_a_training_refuses_what_would_be_resolved_anew(tmp_path):
    done = seg("train", "outputs='a\\${seed}'", "data.size=32", cwd=tmp_path)
    assert (done.code, done.left) == (2, [])
    assert done.err.startswith("error: outputs=a${seed}: a run cannot store a value with ${")


# ---- run as printed

PLACE = "-m a[b],c=1 it's\"$\t#é"  # ${seed} in it is refused, $HOME is expanded
SMALL = ["data.size=32", "data.train=2", "data.val=1", "model.width=2", "model=unetpp", "model.depth=2", "loader.crop=32",
         "loader.repeats=1", "trainer=cpu", "trainer.max_epochs=1", "augment=none", "logger=none", "panels=1", "save_predictions=1"]  # fmt: skip


def printed(text: str) -> list[tuple[str, list[str]]]:
    """Command and words of each line printed that is one, as bash splits it."""
    lines = [line.partition("python -m ")[2] for line in text.splitlines()]
    lines = [line for line in lines if re.match(r"seg\.[a-z]+ \S", line)]
    found = []
    for line in lines:
        words = bash(f"printf '%s\\0' {line}")
        found.append((words[0].removeprefix("seg."), words[1:]))
    return found


def bash(line: str) -> list[str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


def paths(text: str) -> list[Path]:
    """Return the paths printed after ``run folder``, ``wrote`` and similar labels, as bash reads them."""
    found = re.findall(r"(?:run folder|pictures|numbers|plot|wrote|results in) +(\$?'.*?)(?:, |: |$)", text, re.M)  # fmt: skip
    return [Path(bash(f"printf '%s\\0' {path}")[0]) for path in found]


def run(cwd: Path, command: str, *words: str) -> str:
    """Run a command in a folder and return its output; it must succeed."""
    done = seg(command, *words, cwd=cwd)
    assert done.code == 0, (command, words, done.err)
    return done.out


@pytest.mark.slow
def test_every_printed_command_runs_wherever_the_runs_lie(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(images / "i.png")
    outputs = render_option("outputs", PLACE)
    said = run(tmp_path, "train", *SMALL, outputs)
    following = printed(said)
    assert [command for command, _ in following] == ["evaluate", "predict", "compare"]
    (folder,) = {path.resolve() for path in (tmp_path / PLACE).glob("2*")}
    assert paths(said) == [folder.relative_to(tmp_path), folder.relative_to(tmp_path) / "panels/all.png"]  # fmt: skip
    for command, words in following:
        words = [w.replace("IMAGES", "images").replace("PREDICTIONS", "masks") for w in words]
        for path in paths(run(tmp_path, command, *words)):
            assert (tmp_path / path).exists()
    said = run(tmp_path, "prune", render_option("run", folder), "depth=1", "rounds=1")
    ((command, words),) = printed(said)
    run(tmp_path, command, words[0], "input=images", "output=pruned")
    assert all(path.exists() for path in paths(said))
    for path in paths(run(tmp_path, "show", *SMALL, render_option("output", f"{PLACE}.png"))):
        assert (tmp_path / path).is_file()


@pytest.mark.slow
def test_what_goes_on_goes_on_as_printed(tmp_path):
    class Failing(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args) -> None:
            if trainer.current_epoch == 1:
                raise ValueError("stopped here")

    words = [*SMALL, "trainer.max_epochs=2", render_option("outputs", PLACE)]
    out = tmp_path.with_name(f"{tmp_path.name}.out")

    def stopped() -> None:
        os.chdir(tmp_path)
        with pytest.raises(ValueError):
            train(compose_checked("train", words), [Failing()])

    ended(forked(stopped, tmp_path, 3.0, 60), tmp_path, 180)
    ((command, words),) = printed(out.read_text())
    assert words[0].startswith("resume=")
    said = run(tmp_path, command, *words)
    assert [command for command, _ in printed(said)] == ["evaluate", "predict", "compare"]


@pytest.mark.slow
def test_the_commands_of_a_sweep_a_search_and_a_cross_validation_run(tmp_path, folder_root):
    root = folder_root.rename(tmp_path / PLACE)
    data = ["data=folder", render_option("data.root", root), "data.classes=[a,b,c]", "data.folds=2"]
    small = [w for w in SMALL if not w.startswith("data.")]
    said = run(tmp_path, "check", *data, *small, "output=check")
    following = printed(said)
    assert [command for command, _ in following] == ["train", "plan"]
    for command, words in following:
        run(tmp_path, command, *words)
    outputs = render_option("outputs", f"o{PLACE}")
    said = run(tmp_path, "train", "-m", *data, *small, outputs, "seed=0,1")
    ((command, words),) = printed(said)
    run(tmp_path, command, *words)
    said = run(tmp_path, "tune", *data, *small, outputs, "trials=1", "optim.lr=choice(0.1,0.01)")
    (command, words), (_, several) = printed(said)
    run(tmp_path, command, *words)
    assert several[0] == "-m" and several[-1] == "seed=1,2,3"
    output = render_option("output", f"c{PLACE}")
    said = run(tmp_path, "crossval", *data, *small, output)
    *_, (command, words) = printed(said)
    run(tmp_path, command, words[0], render_option("input", root / "images"), "output=masks")


def test_sync_prints_where_it_looked(tmp_path, caplog, monkeypatch):
    offline = tmp_path / PLACE / "run/wandb/offline-run-20261127_101112-abc"
    offline.mkdir(parents=True)
    (offline / "run-abc.wandb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("seg"), "propagate", True)
    logged = []
    monkeypatch.setattr(logging.getLogger("seg"), "info", lambda text, **_: logged.append(text))
    sync(compose_checked("sync", [render_option("outputs", PLACE)]))
    ((command, words),) = printed("\n".join(logged))
    assert (command, words[1]) == ("sync", "send=true") and compose_checked(
        command, words
    ).outputs == PLACE
