"""The script ``seg`` as pip would install it, for the package under test."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def install_script(folder: Path) -> Path:
    """Write the script of pyproject.toml's entry point into a folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["seg"].partition(":")
    file = folder / "seg"
    file.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    file.chmod(0o755)
    return file


def run_script(file: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([file, *words], cwd=cwd, env=env, capture_output=True, text=True)
