"""Provenance of a run: code, libraries, data and machine, where numbers depend on them.

It is written to run.json and to two more files of the run folder: diff.patch, the difference of the code from its
commit, and fingerprints.csv, a hash of each image and mask. User, host and folders of the machine are not
recorded, except in the command, which is kept as typed.
"""

import csv
import hashlib
import os
import platform
import re
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from seg.cli.command_line import typed_command
from seg.cli.conf_files import CONF
from seg.display.console import rank_zero_only
from seg.files import open_text, write_bytes
from seg.runs.machine import cpu_name, memory_gib
from seg.runs.safe_loading import read_rows
from seg.version import __version__

PACKAGE_FOLDER = Path(__file__).parents[1]
SOURCE_PATHS = (
    "seg",
    "conf",
    "pyproject.toml",
    "constraints.txt",
)  # recorded paths, relative to the top of a checkout
MAX_PATCH_BYTES = 2**20  # bytes; of a larger diff only the file names are kept
RECORDED_PACKAGES = (
    "torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "albumentations", "albucore",
    "numpy", "scipy", "scikit-image", "pillow", "tifffile", "imagecodecs", "wandb",
    "segmentation-models-pytorch", "timm", "torchvision", "pycocotools",
)  # fmt: skip
RECORDED_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "OPENCV_IPP", "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTORCH_ENABLE_MPS_FALLBACK", "PYTHONHASHSEED",
)  # fmt: skip
ImageDigests = dict[
    str, tuple[str, str]
]  # image name -> hash of image and hash of mask (seg.data.statistics)


def collect_provenance() -> dict[str, Any]:
    """Return command, start time, versions, code, hardware and environment of this process, as run.json has them."""
    checkout = read_checkout(PACKAGE_FOLDER.parent)
    return {
        "command": typed_command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": library_versions(),
        "git": checkout and checkout.state(),
        "source": source_hash(PACKAGE_FOLDER, CONF),
        "hardware": describe_hardware(),
        "environment": {
            name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ
        },
    }


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of each installed library that numbers may depend on."""
    versions_of = {"python": platform.python_version(), "seg": __version__}
    for package in RECORDED_PACKAGES:
        try:
            versions_of[package] = version(package)
        except PackageNotFoundError:
            continue
    versions_of["opencv"] = cv2.__version__  # its package has one of four names
    if torch.version.cuda:
        versions_of["cuda"] = torch.version.cuda
    if cudnn := torch.backends.cudnn.version():
        versions_of["cudnn"] = str(cudnn)
    return versions_of


def describe_hardware() -> dict[str, Any]:
    """Return processor, memory and GPUs; see ``seg.runs.record.HardwareState``."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "gpus": gpus,
    }


@cache  # the running code is that of the start of the process, even in a long sweep
def source_hash(package: Path, conf: Path) -> str:
    """Return 12 hex digits of the SHA-256 of the package's files; equal for a checkout and its wheel."""
    files = {f"seg/{file.relative_to(package).as_posix()}": file for file in package.rglob("*.py")}
    files |= {f"conf/{file.relative_to(conf).as_posix()}": file for file in conf.rglob("*.yaml")}
    digest = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:12]


class Checkout(NamedTuple):
    """A git commit and the uncommitted changes of the package.

    Attributes:
        commit: hash of the commit.
        patch: changes for ``git apply``, with untracked .py and .yaml files; empty: no changes.
    """

    commit: str
    patch: bytes

    def state(self) -> dict[str, Any]:
        """Return the state as run.json holds it; see ``seg.runs.record.GitState``."""
        diff = hashlib.sha256(self.patch).hexdigest()[:12] if self.patch else None
        return {"commit": self.commit, "dirty": bool(self.patch), "diff": diff}

    def kept(self) -> bytes:
        """Return the content of diff.patch; of a diff over 1 MiB only the names of the files."""
        if len(self.patch) <= MAX_PATCH_BYTES:
            return self.patch
        size = f"# {len(self.patch) / 2**20:.1f} MiB, too large to keep; files that differ:\n"
        names = re.findall(rb"^diff --git a/(.*) b/\1$", self.patch, re.MULTILINE)
        return size.encode() + b"".join(b"# %s\n" % name for name in names)


@cache  # see source_hash
def read_checkout(top: Path) -> Checkout | None:
    """Return the state of a checkout; None without git, or if no repository tracks the package.

    Args:
        top: folder of seg/ and conf/.
    """
    try:
        listed = run_git(top, *LIST_ARGUMENTS, "-z", "--", *SOURCE_PATHS).decode().split("\0")
        if "H seg/__init__.py" not in listed:
            return None
        commit = run_git(top, "rev-parse", "HEAD").decode().strip()
        patch = run_git(top, *DIFF_ARGUMENTS, "HEAD", "--", *SOURCE_PATHS)
        others = [row[2:] for row in listed if row.startswith("? ")]
        new = [new_file_patch(top, name) for name in others if name.endswith((".py", ".yaml"))]
    except (OSError, subprocess.SubprocessError):
        return None
    return Checkout(commit, patch + b"".join(new))


def new_file_patch(top: Path, name: str) -> bytes:
    """Return an untracked file as a git patch; empty for a link, whose target may be outside."""
    if (top / name).is_symlink():
        return b""
    *lines, last = (top / name).read_bytes().split(b"\n")
    text = b"".join(b"+%s\n" % line for line in lines)
    if last:
        text += b"+%s\n\\ No newline at end of file\n" % last
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    count = len(lines) + bool(last)
    hunk = f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{count} @@\n" if count else ""
    return f"{head}{hunk}".encode() + text


LIST_ARGUMENTS = (
    "ls-files",
    "-t",
    "--cached",
    "--others",
    "--exclude-standard",
)  # H tracked, ? new
# independent of the user's git configuration: no external tools, no colours, prefixes for git apply
DIFF_ARGUMENTS = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
        "--relative", "--binary")  # fmt: skip
HOOK_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_DIFF_OPTS",
)  # set in a git hook; unset here


def run_git(top: Path, *arguments: str) -> bytes:
    """Run git in a folder and return its output; git writes nothing and starts no pager or prompt.

    Raises:
        SubprocessError: if git fails or takes longer than 10 s.
    """
    settings = ("--no-pager", "--no-optional-locks", "-c", "core.fsmonitor=false")
    environment = {k: v for k, v in os.environ.items() if k not in HOOK_VARIABLES}
    return subprocess.run(
        ["git", "-C", str(top), *settings, *arguments], stdin=subprocess.DEVNULL, check=True,
        capture_output=True, timeout=10, env=environment | {"GIT_NO_LAZY_FETCH": "1"},
    ).stdout  # fmt: skip


def data_fingerprint(digests: ImageDigests) -> str:
    """Return 16 hex digits of the SHA-256 of all names and pixels; equal for a copy of the data."""
    lines = (f"{name} {image} {mask}\n" for name, (image, mask) in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@rank_zero_only
def write_provenance_files(folder: Path, digests: ImageDigests) -> None:
    """Write diff.patch, if the code differs from its commit, and fingerprints.csv into a run folder.

    Existing files are kept: for a resumed run they describe its start, as run.json does.
    """
    if (folder / "fingerprints.csv").exists():
        return
    checkout = read_checkout(PACKAGE_FOLDER.parent)
    if checkout and checkout.patch:
        write_bytes(folder / "diff.patch", checkout.kept(), folder)
    with open_text(folder / "fingerprints.csv", folder) as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "image", "mask"))
        writer.writerows((name, *pair) for name, pair in sorted(digests.items()))


def read_digests(file: Path) -> ImageDigests:
    """Return the content of fingerprints.csv; empty if there is no such file.

    Raises:
        ValueError: if it is damaged.
    """
    if not file.is_file():
        return {}
    rows = list(read_rows(file))
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"{file}: three columns are needed, name, image and mask")
    return {name: (image, mask) for name, image, mask in rows[1:]}
