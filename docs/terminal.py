"""Record the three commands of the README as a picture: ``python docs/terminal.py [FILE]``, in docs/images/terminal.svg without one.

They run in an empty folder, on made images; the training takes two minutes or more.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
COLUMNS = 100
SECTION = "docs/images/section.png"
COMMANDS = {  # and how many lines of its output are shown: the first and the last ones
    "seg train experiment=demo": (4, 15),
    "seg evaluate run=outputs/latest data.split=test": (14, 0),
    f"seg predict run=outputs/latest input={SECTION} output=predictions": (3, 0),
}
NO_DOWNLOADED_FONT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)


def run(command: str, folder: Path) -> list[str]:
    """Return the lines that a command prints in a folder."""
    seg = Path(sys.executable).with_name("seg")  # beside the Python of this environment
    env = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [seg, *command.split()[1:]], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def shorten(lines: list[str], first: int, last: int) -> list[Text]:
    """Return the first and last lines, with a line between them that says how many are left out."""
    left_out = len(lines) - first - last
    if left_out <= 1:
        return [Text(line) for line in lines]
    gap = Text(f"... {left_out} more lines", style="dim italic")
    return [*map(Text, lines[:first]), gap, *map(Text, lines[len(lines) - last :])]


def main(file: Path) -> None:
    console = Console(width=COLUMNS, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / SECTION).parent.mkdir(parents=True)
        shutil.copy(ROOT / SECTION, folder / SECTION)
        for command, (first, last) in COMMANDS.items():
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            for line in shorten(run(command, folder), first, last):
                console.print(line, soft_wrap=False)
    console.save_svg(
        str(file),
        title="seg",
        theme=DIMMED_MONOKAI,
        code_format=NO_DOWNLOADED_FONT,
        unique_id="seg",
    )
    print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images/terminal.svg")
