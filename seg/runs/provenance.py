"""What a run came from: code, libraries, data and machine, as far as its numbers depend on them.

run.json holds it, with two files beside: diff.patch, how the code differs from its commit, and
fingerprints.csv, a hash of each image and mask. No user, host or folder of this machine is named, except in
the command, which stands as it was typed.
"""

import csv
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from seg.cli.conf_files import CONF
from seg.files import open_text, write_bytes
from seg.runs.safe_loading import read_rows

PACKAGE = Path(__file__).parents[1]
SOURCES = ("seg", "conf", "pyproject.toml", "constraints.txt")  # of a checkout, from its top
MOST = 2**20  # bytes of a diff that is kept whole
PACKAGES = (
    "seg", "torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "albumentations", "albucore",
    "numpy", "scipy", "scikit-image", "pillow", "tifffile", "imagecodecs", "wandb",
    "segmentation-models-pytorch", "timm", "torchvision", "pycocotools",
)  # fmt: skip
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "OPENCV_IPP", "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTORCH_ENABLE_MPS_FALLBACK", "PYTHONHASHSEED",
)  # fmt: skip
Digests = dict[
    str, tuple[str, str]
]  # name -> hash of image and mask, as seg.data.statistics has it


def origin() -> dict[str, Any]:
    """Where a run comes from: command, versions, code, hardware, environment."""
    checkout = checkout_of(PACKAGE.parent)
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git": checkout and checkout.state(),
        "source": source_hash(PACKAGE, CONF),
        "hardware": hardware(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Of Python and each library that is there and that numbers may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["opencv"] = cv2.__version__  # a package of any of four names
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if cudnn := torch.backends.cudnn.version():
        found["cudnn"] = str(cudnn)
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs; ``instructions`` are those that PyTorch's own loops use."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory(),
        "gpus": gpus,
    }


def cpu_name() -> str:
    """The processor's model, or its kind where the system doesn't say."""
    told = Path("/proc/cpuinfo")  # of Linux
    if os.access(told, os.R_OK):
        lines = told.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def memory() -> float | None:
    """GiB of the machine; None where the system doesn't say."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return None
    pages, size = (os.sysconf(name) for name in names)
    return round(pages * size / 2**30, 1)


@cache  # the code that runs is what was there when the process began, also in a long sweep
def source_hash(package: Path, conf: Path) -> str:
    """12 hex digits of the SHA-256 of the package's files, the same for a checkout and its wheel."""
    files = {f"seg/{file.relative_to(package).as_posix()}": file for file in package.rglob("*.py")}
    files |= {f"conf/{file.relative_to(conf).as_posix()}": file for file in conf.rglob("*.yaml")}
    digest = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:12]


class Checkout(NamedTuple):
    """A commit, and how the files of the package differ from it.

    Attributes:
        commit: its hash.
        patch: what ``git apply`` takes, untracked .py and .yaml files included; empty: nothing differs.
    """

    commit: str
    patch: bytes

    def state(self) -> dict[str, Any]:
        """As run.json has it."""
        diff = hashlib.sha256(self.patch).hexdigest()[:12] if self.patch else None
        return {"commit": self.commit, "dirty": bool(self.patch), "diff": diff}

    def kept(self) -> bytes:
        """What diff.patch holds: of a very large diff the names of the files alone."""
        if len(self.patch) <= MOST:
            return self.patch
        size = f"# {len(self.patch) / 2**20:.1f} MiB, too much to be kept; these files differ:\n"
        names = re.findall(rb"^diff --git a/(.*) b/\1$", self.patch, re.MULTILINE)
        return size.encode() + b"".join(b"# %s\n" % name for name in names)


@cache  # likewise
def checkout_of(top: Path) -> Checkout | None:
    """The state of a checkout; None without git, and for a package that no repository tracks.

    Args:
        top: folder that holds seg/ and conf/.
    """
    try:
        listed = git(top, *LIST, "-z", "--", *SOURCES).decode().split("\0")
        if "H seg/__init__.py" not in listed:
            return None
        commit = git(top, "rev-parse", "HEAD").decode().strip()
        patch = git(top, *DIFF, "HEAD", "--", *SOURCES)
        others = [row[2:] for row in listed if row.startswith("? ")]
        new = [added(top, name) for name in others if name.endswith((".py", ".yaml"))]
    except (OSError, subprocess.SubprocessError):
        return None
    return Checkout(commit, patch + b"".join(new))


def added(top: Path, name: str) -> bytes:
    """A new file as git shows it; nothing for a link, which may lead anywhere."""
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


LIST = ("ls-files", "-t", "--cached", "--others", "--exclude-standard")  # H tracked, ? new
# nothing of the user's configuration: no external tool, no colours, prefixes that git apply takes
DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
        "--relative", "--binary")  # fmt: skip
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DIFF_OPTS")  # set within a git hook


def git(top: Path, *arguments: str) -> bytes:
    """What git says in a folder; it writes nothing, starts no pager, and asks nothing.

    Raises:
        SubprocessError: when it fails or takes longer than 10 s.
    """
    settings = ("--no-pager", "--no-optional-locks", "-c", "core.fsmonitor=false")
    environment = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    return subprocess.run(
        ["git", "-C", str(top), *settings, *arguments], stdin=subprocess.DEVNULL, check=True,
        capture_output=True, timeout=10, env=environment | {"GIT_NO_LAZY_FETCH": "1"},
    ).stdout  # fmt: skip


def data_fingerprint(digests: Digests) -> str:
    """16 hex digits of the SHA-256 of names and pixels, as they are read; the same for a copy elsewhere."""
    lines = (f"{name} {image} {mask}\n" for name, (image, mask) in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@rank_zero_only
def write_beside(folder: Path, digests: Digests) -> None:
    """Writes diff.patch, where the code differs from its commit, and fingerprints.csv into a run's folder.

    What is there stays: of a run that was resumed they tell how it began, as its run.json does.
    """
    if (folder / "fingerprints.csv").exists():
        return
    checkout = checkout_of(PACKAGE.parent)
    if checkout and checkout.patch:
        write_bytes(folder / "diff.patch", checkout.kept(), folder)
    with open_text(folder / "fingerprints.csv", folder) as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "image", "mask"))
        writer.writerows((name, *pair) for name, pair in sorted(digests.items()))


def read_digests(file: Path) -> Digests:
    """What ``write_beside`` wrote; empty where there is no such file.

    Raises:
        ValueError: when it was damaged.
    """
    if not file.is_file():
        return {}
    rows = list(read_rows(file))
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"{file}: three columns are needed, name, image and mask")
    return {name: (image, mask) for name, image, mask in rows[1:]}
