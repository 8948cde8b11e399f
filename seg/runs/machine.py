"""Processor and memory of this machine, by the standard library alone."""

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the model of the processor, or its architecture if the model is unknown."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    if os.access(cpuinfo, os.R_OK):
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the main memory in GiB; None if unknown."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return None
    pages, size = (os.sysconf(name) for name in names)
    return round(pages * size / 2**30, 1)
