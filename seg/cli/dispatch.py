"""Start a command by its name: ``seg train model=unet`` does what ``python -m seg.train model=unet`` does.

``seg`` alone lists the commands. Only the standard library is imported before the command is known.
"""

import os
import runpy
import sys

from seg.version import __version__

COMMANDS = {  # name -> first words of its page's docstring, in the order of a working day
    "check": "Check a data set before training",
    "plan": "Choose the settings of a training",
    "show": "Draw training samples",
    "models": "Print the layers of a network",
    "train": "Train a network",
    "tune": "Search hyper-parameters",
    "crossval": "Cross-validate",
    "enough": "Tell what more labelled images would bring",
    "doubt": "Find labels that are wrong",
    "list": "List runs and remove some",
    "compare": "Compare many runs",
    "evaluate": "Evaluate a run on a split or on other data",
    "predict": "Segment images with a trained run",
    "next": "Choose what to annotate next",
    "prune": "Compare UNet++ at each depth, and write a small one",
    "export": "Export a trained run as one file for other programs",
    "rerun": "Train a finished run again, and compare its numbers",
    "sync": "List W&B runs that were recorded offline, and upload them",
    "info": "Print versions, devices and extras for a bug report",
}


def run_script() -> None:
    """Run as the installed script ``seg``; modules in the current folder can be imported, after installed ones."""
    if not sys.flags.safe_path:
        sys.path.append(os.getcwd())
    main()


def main() -> None:
    """Run the command that the first word names; end with code 141 if the reader of stdout closed, as ``| head`` does."""
    try:
        dispatch_command()
        sys.stdout.flush()
    except OSError as error:  # of stdout: commands report their own errors
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        print(f"error: the output can't be written ({error.strerror})", file=sys.stderr)
        sys.exit(1)


def dispatch_command() -> None:
    """Run the command that the first word names, with the other words."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(list_commands())
    elif name == "--version":
        print(f"seg {__version__}")
    elif name in ("-sc", "--shell-completion"):
        complete_words(sys.argv[2:])
    elif name.startswith("--shell-completion="):
        complete_words([name.partition("=")[2], *sys.argv[2:]])
    elif name in COMMANDS:
        del sys.argv[1]
        run_command(name)
    else:
        refuse_word(name)


def run_command(name: str) -> None:
    """Run a command as ``python -m seg.NAME`` does: Lightning starts further processes by the name of that module."""
    runpy.run_module(f"seg.{name}", run_name="__main__", alter_sys=True)


def list_commands() -> str:
    """Return the text of ``seg --help``."""
    rows = [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "seg COMMAND [GROUP=CHOICE ...] [OPTION=VALUE ...]",
            "",
            *rows,
            "",
            "seg COMMAND --help lists its groups, options and defaults; seg --version prints the version.",
            'Completion in bash: eval "$(seg --shell-completion install=bash)"; also zsh, fish.',
        ]
    )


def refuse_word(word: str) -> None:
    """Report an unknown command in one line, with the most similar one, and exit with code 2."""
    from seg.cli.command import exit_user_error  # here: they import Hydra
    from seg.cli.conf_files import did_you_mean
    from seg.errors import UserError

    if word.startswith("-") or "=" in word:
        exit_user_error(UserError(f"{word}: a command comes first, as in: seg train {word}"))
    close = did_you_mean(word, COMMANDS)
    exit_user_error(UserError(f"{word}: no such command{close} (commands: {', '.join(COMMANDS)})"))


def complete_words(words: list[str]) -> None:
    """Print the shell code that completes ``seg``, or the completions that a shell asks for."""
    from seg.cli.completion import check_completion, print_completions, print_shell_code
    from seg.errors import UserError

    try:
        check_completion(words)
    except UserError as error:
        from seg.cli.command import exit_user_error  # here: it imports Hydra

        exit_user_error(error)
    action, _, shell = words[0].partition("=")
    if action == "query":
        print_completions(os.environ["COMP_LINE"], shell, COMMANDS, run_command)
    else:
        print_shell_code(action, shell)
