"""Completion of commands, groups, options and values in bash, zsh and fish: Hydra's, for the command ``seg``.

The shell calls ``seg --shell-completion query=SHELL``, with the typed line in the environment variable COMP_LINE.
"""

import os
import re
import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from typing import Any

from seg.errors import UserError

SHELLS = ("bash", "zsh", "fish")
PLAIN_WORD = re.compile(
    r"[\w.,:/@%^=+~-]+"
)  # bash would run what stands in `...` or $(...) of a completion


def check_completion(words: list[str]) -> None:
    """Raise UserError unless ``--shell-completion`` has one valid request; only a shell may send ``query``."""
    request, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if request not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UserError("--shell-completion: give install=bash or uninstall=bash (or zsh, fish)")
    if request == "query" and "COMP_LINE" not in os.environ:
        raise UserError(f"{words[0]}: asked by a shell; install={shell} makes it ask")


def print_shell_code(action: str, shell: str) -> None:
    """Print Hydra's shell code that installs or uninstalls the completion of ``seg``."""
    from hydra._internal.core_plugins import bash_completion, fish_completion, zsh_completion

    plugins: dict[str, Any] = {
        "bash": bash_completion.BashCompletion,
        "zsh": zsh_completion.ZshCompletion,
        "fish": fish_completion.FishCompletion,
    }
    sys.argv[0] = "seg"  # the program that Hydra's code completes and asks
    if action == "uninstall" and shell != "fish":
        # Hydra's code restores an earlier rule, but removes none
        print("complete -r seg 2> /dev/null")
    getattr(plugins[shell](None), action)()


def print_completions(
    line: str, shell: str, commands: Collection[str], run_command: Callable[[str], None]
) -> None:
    """Print the completions of the last word of a typed line, separated as the shell expects.

    Args:
        line: ``seg train model=un``, up to the cursor.
        shell: that asks.
        commands: names of all commands.
        run_command: runs a command with the words of ``sys.argv``; it prints Hydra's completions.
    """
    _, _, typed = line.lstrip().partition(" ")  # without the program
    name, space, rest = typed.lstrip().partition(" ")
    if not space:
        found = [command for command in commands if command.startswith(name)]
    elif name in commands:
        found = complete_options(name, rest, shell, run_command)
    else:
        found = []
    print(("\n" if shell == "fish" else " ").join(found))


def complete_options(
    name: str, rest: str, shell: str, run_command: Callable[[str], None]
) -> list[str]:
    """Return Hydra's completions of the last of a command's words; none if the words cannot be parsed.

    Completions that a shell might execute, as names of files may be, are left out.
    """
    os.environ["COMP_LINE"] = f"seg {rest}"
    sys.argv[1:] = ["--shell-completion", f"query={shell}"]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()), suppress(SystemExit):
        run_command(name)
    separator = "\n" if shell == "fish" else " "
    return [
        word for word in out.getvalue().strip("\n").split(separator) if PLAIN_WORD.fullmatch(word)
    ]
