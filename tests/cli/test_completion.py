"""Completion of ``seg`` in a shell, from the code that the shell evaluates to the words that it offers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from script import ROOT, install_script

from seg.cli.dispatch import COMMANDS

ASK = """
ask() {  # what bash does on Tab after the line $1
  COMP_LINE="$1" COMP_POINT=${#1}
  IFS=' ' read -ra COMP_WORDS <<< "$1"
  if [[ "$1" == *" " ]]; then COMP_WORDS+=(""); fi
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  COMPREPLY=()
  hydra_bash_completion
  echo "${COMPREPLY[*]}"
}
"""


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs a script of a shell in an empty folder, with ``seg`` on the path."""
    (tmp_path / "bin").mkdir()
    install_script(tmp_path / "bin")
    place = tmp_path / "place"
    place.mkdir()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}

    def run(program: str, code: str) -> list[str]:
        done = subprocess.run(
            [program, "-c", code], cwd=place, env=env, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    run.place = place  # type: ignore[attr-defined]
    return run


def test_bash_completes_commands_groups_options_and_values(shell):
    lines = [
        "seg ",
        "seg tr",
        "seg train model=unet_",
        "seg train model=unetpp model.up",
        "seg train optim.lr=",
    ]
    asks = "\n".join(f'ask "{line}"' for line in lines)
    found = [line.split() for line in shell("bash", f'eval "$(seg -sc install=bash)"\n{ASK}{asks}')]
    assert found[0] == list(COMMANDS) and found[1] == ["train"]
    files = sorted(file.stem for file in (ROOT / "conf/model").glob("unet_*.yaml"))
    assert found[2] == [f"model={name}" for name in files]
    assert found[3] == ["model.up="]
    assert found[4] == ["optim.lr=0.003"]


def test_a_line_that_makes_no_sense_has_no_completions(shell):
    lines = ["seg nope ", "seg train --nope x", "seg info ", "seg list 'a"]
    asks = "\n".join(f'ask "{line}"' for line in lines)
    assert shell("bash", f'eval "$(seg -sc install=bash)"\n{ASK}{asks}') == [""] * len(lines)


def test_the_name_of_a_file_is_offered_and_never_executed(shell):
    place: Path = shell.place
    for name in ("run", "$(touch executed)", "`touch executed`"):
        (place / name).mkdir()
    code = f'eval "$(seg -sc install=bash)"\n{ASK}ask "seg evaluate run=./"'
    assert shell("bash", code) == ["run=./run"]
    assert not (place / "executed").exists()


def test_the_completion_can_be_removed(shell):
    code = 'eval "$(seg -sc install=bash)"; eval "$(seg -sc uninstall=bash)"; complete -p | grep -c seg || true'
    assert shell("bash", code) == ["0"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish isn't installed")
def test_fish_completes(shell):
    code = (
        "seg -sc install=fish | source; complete -C 'seg tr'; complete -C 'seg train model=unet_w'"
    )
    assert shell("fish", code) == ["train", "model=unet_wide"]


def test_each_command_prints_the_code_of_the_script(shell):
    module = shell("bash", f"{sys.executable} -m seg.train --shell-completion install=bash")
    assert module == shell("bash", "seg --shell-completion install=bash")
    assert module[-1].endswith("-F hydra_bash_completion seg")
