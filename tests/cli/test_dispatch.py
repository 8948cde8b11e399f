"""The command ``seg``: what it lists, starts and refuses."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from script import ROOT, install_script, run_script

import seg
from seg.cli import dispatch
from seg.cli.command_line import command_words, render_command, typed_command
from seg.cli.conf_files import CONF
from seg.cli.dispatch import COMMANDS, list_commands
from seg.version import __version__

PACKAGE = Path(seg.__file__).parent


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    return install_script(tmp_path_factory.mktemp("bin"))


def pages() -> dict[str, str]:
    """Name -> docstring of each module with a function ``main`` that ``python -m seg.NAME`` runs."""
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    found = {}
    for file in files:
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = file.parent.name if file.stem == "__main__" else file.stem
            found[name] = ast.get_docstring(tree) or ""
    return found


def test_every_command_is_listed_by_the_first_words_of_its_page():
    docstrings = pages()
    assert set(COMMANDS) == set(docstrings) >= {file.stem for file in CONF.glob("*.yaml")}
    text = list_commands()
    for name, summary in COMMANDS.items():
        assert docstrings[name].startswith(summary), name
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, re.M), name
        assert f"seg.{name}" in docstrings[name].replace("python -m ", ""), name


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(words):
    code = (
        "import sys; from seg.cli.dispatch import main; before = set(sys.modules); main(); "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} & "
        "{'hydra', 'omegaconf', 'yaml', 'numpy', 'torch', 'lightning', 'rich'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    text = f"seg {__version__}" if words == ["--version"] else list_commands()
    assert done.stdout == f"{text}\nset()\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "model=unet"], "trian: no such command; did you mean train? (commands: check, "),
        (["xyzw"], "xyzw: no such command (commands: check, "),
        (["model=unet"], "model=unet: a command comes first, as in: seg train model=unet"),
        (["-m"], "-m: a command comes first, as in: seg train -m"),
        (["--shell-completion"], "--shell-completion: give install=bash"),
        (["-sc", "install=tcsh"], "--shell-completion: give install=bash"),
        (["-sc", "query=bash"], "query=bash: asked by a shell; install=bash makes it ask"),
    ],
)
def test_a_wrong_command_is_one_line_and_exits_with_2(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["seg", *words])
    monkeypatch.delenv("COMP_LINE", raising=False)
    with pytest.raises(SystemExit) as end:
        dispatch.main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(f"error: {message}")


def test_the_script_does_what_the_module_does(script, tmp_path):
    module = [sys.executable, "-m", "seg.models", "modl=unet"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.run(module, cwd=tmp_path, env=env, capture_output=True, text=True)
    done = run_script(script, "models", "modl=unet", cwd=tmp_path)
    assert done.stderr == other.stderr != "" and done.stdout == other.stdout
    assert done.returncode == other.returncode == 2


def test_commands_are_printed_and_recorded_as_this_one_was_typed(monkeypatch, script, tmp_path):
    done = run_script(script, "evaluate", "--help", cwd=tmp_path)
    assert done.stdout.startswith("seg evaluate [GROUP=CHOICE ...]")
    monkeypatch.setattr(sys, "orig_argv", ["/a/python3", "/a b/bin/seg", "train", "name=x y"])
    assert command_words("show") == ["seg", "show"]
    assert render_command("predict", "run=a b") == "seg predict 'run=a b'"
    assert typed_command() == ["seg", "train", "name=x y"]
    for words in (["-m", "seg.train", "seed=1"], ["-m", "seg", "train", "seed=1"], ["-c", "1"], []):
        monkeypatch.setattr(sys, "orig_argv", ["/a/python3", *words])
        assert command_words("show") == ["python", "-m", "seg.show"]
        assert typed_command()[1:] == words


def test_a_class_in_the_current_folder_is_found_after_installed_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seg", "--version"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_networks.py").write_text("")
    (tmp_path / "torch.py").write_text("")
    dispatch.run_script()
    assert find_spec("my_own_networks").origin == str(tmp_path / "my_own_networks.py")
    assert Path(find_spec("torch").origin).name == "__init__.py"


@pytest.mark.slow
def test_a_run_of_the_script_is_recorded_as_typed_and_goes_on_by_the_commands_it_prints(
    script, tmp_path
):
    small = [
        "trainer=smoke", "data.size=64", "data.train=2", "data.val=1", "loader.crop=32", "model.width=2", "logger=none",
    ]  # fmt: skip
    done = run_script(script, "train", *small, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    record = json.loads((tmp_path / "outputs/latest/run.json").read_text())
    assert record["command"] == ["seg", "train", *small]
    (line,) = (row for row in done.stdout.splitlines() if row.startswith("  seg evaluate "))
    done = run_script(script, *line.split()[1:], "panels=1", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize("words", ["", "--help", "info"])
def test_a_reader_that_closes_ends_it_quietly(words):
    line = f"{sys.executable} -m seg {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ""  # 0: written before it closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "seg"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output can't be written (No space left on device)\n"
