"""Print versions, devices and extras for a bug report: ``python -m seg.info``.

Takes no options. Of extras it says what is installed, and the command that installs what is missing.
"""

import sys


def main() -> None:
    from seg.cli.command import exit_user_error  # here: it imports Hydra
    from seg.commands.info import print_info
    from seg.errors import UserError
    from seg.version import __version__

    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(__doc__.rstrip())
    elif words == ["--version"]:
        print(f"seg {__version__}")
    elif words:
        exit_user_error(UserError(f"{words[0]}: seg.info takes no options"))
    else:
        print_info()


if __name__ == "__main__":
    main()
