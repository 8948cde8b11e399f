"""Print versions, devices and extras for a bug report: ``python -m seg.info``.

Versions are those of the installed distributions, whose import would take seconds. PyTorch is imported last, for the
GPUs, and only if it is not a build for the CPU alone. No user, host or folder is printed.
"""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from seg.cli.conf_files import CONF, PACKAGE
from seg.errors import EXTRAS, install_command
from seg.runs.machine import cpu_name, memory_gib
from seg.version import __version__

LIBRARIES = (
    "torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "albumentations", "numpy", "scipy", "scikit-image", "pillow", "tifffile", "imagecodecs", "pydantic", "pandas", "optuna", "wandb",
)  # fmt: skip
OPENCV = (  # each holds the module cv2
    "opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python",
)  # fmt: skip
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_MODE")  # hold no secrets or folders


def print_info() -> None:
    """Print a line for each version, device and extra; the GPUs come last, as PyTorch takes seconds to import."""
    # Versions
    kind = "installed" if CONF.is_relative_to(PACKAGE) else "checkout"
    print_row("seg", f"{__version__} ({kind})")
    print_row("python", f"{platform.python_version()} ({platform.python_implementation()})")
    for library in LIBRARIES:
        print_row(library, installed_version(library) or "missing")
    engines = [f"{found} ({name})" for name in OPENCV if (found := installed_version(name))]
    print_row("opencv", ", ".join(engines) or "missing")
    # Extras
    for extra, packages in EXTRAS.items():
        versions = {package: installed_version(package) for package in packages}
        present = ", ".join(f"{package} {found}" for package, found in versions.items())
        missing = f"missing; {install_command(extra)}"
        print_row(f"extra {extra}", present if all(versions.values()) else missing)
    # Machine
    print_row("system", platform.platform())
    memory = memory_gib()
    print_row("processor", f"{cpu_name()}, {available_cores()} cores available")
    print_row("memory", "unknown" if memory is None else f"{memory:.0f} GiB")
    for name in VARIABLES:
        if name in os.environ:
            print_row(name, os.environ[name])
    print_row("gpu", describe_gpus())


def print_row(name: str, text: str) -> None:
    """Print a name and its value at once, before a slow import."""
    print(f"{name:<24}{text}", flush=True)


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_gpus() -> str:
    """Return name and memory of each GPU that PyTorch can use, or why there is none."""
    build = installed_version("torch") or ""
    if build.endswith("+cpu"):
        return f"none: PyTorch {build} is a build for the CPU alone"
    import torch  # here: it takes seconds

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in found)
        return f"{names}; CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return f"none that PyTorch can use (CUDA build: {torch.version.cuda or 'no'})"
