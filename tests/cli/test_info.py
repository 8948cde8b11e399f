"""``seg info``: what it says, and that it says nothing private."""

import getpass
import socket
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import seg.info
from seg.commands import info
from seg.commands.info import describe_gpus, print_info
from seg.errors import EXTRAS


def test_it_names_versions_extras_and_the_machine(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    print_info()
    text = capsys.readouterr().out
    rows = {line[:24].rstrip(): line[24:] for line in text.splitlines()}
    assert rows["torch"] == version("torch") and rows["lightning"] == version("lightning")
    assert rows["hydra-core"] == version("hydra-core") and "(opencv-" in rows["opencv"]
    assert rows["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert rows["CUDA_VISIBLE_DEVICES"] == "1" and "cores available" in rows["processor"]
    assert {f"extra {extra}" for extra in EXTRAS} | {"gpu", "memory", "system"} <= set(rows)
    for private in (str(Path.home()), socket.gethostname(), f"/{getpass.getuser()}/"):
        assert private not in text


def test_a_missing_extra_has_its_command_and_a_missing_library_is_said(capsys, monkeypatch):
    real = info.installed_version
    absent = {"onnxruntime", "scipy"}
    monkeypatch.setattr(info, "installed_version", lambda d: None if d in absent else real(d))
    print_info()
    rows = {line[:24].rstrip(): line[24:] for line in capsys.readouterr().out.splitlines()}
    assert rows["extra export"] == "missing; pip install 'seg-experiments[export]'"
    assert rows["scipy"] == "missing"


class Gpu:
    name, total_memory = "NVIDIA X", 80 * 2**30


def test_gpus_are_those_that_pytorch_can_use(monkeypatch):
    import torch

    monkeypatch.setattr(info, "installed_version", lambda name: "2.13.0+cpu")
    assert describe_gpus() == "none: PyTorch 2.13.0+cpu is a build for the CPU alone"
    monkeypatch.setattr(info, "installed_version", lambda name: "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert describe_gpus() == "none that PyTorch can use (CUDA build: 13.0)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Gpu)
    assert describe_gpus() == "NVIDIA X (80 GiB), NVIDIA X (80 GiB); CUDA 13.0"


@pytest.mark.parametrize(("word", "start"), [("--help", "Print versions"), ("--version", "seg 0.")])
def test_it_has_help_and_a_version(capsys, monkeypatch, word, start):
    monkeypatch.setattr(sys, "argv", ["seg", word])
    seg.info.main()
    assert capsys.readouterr().out.startswith(start)


def test_it_takes_no_options(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["seg", "x=1"])
    with pytest.raises(SystemExit, match="2"):
        seg.info.main()
    assert capsys.readouterr().err == "error: x=1: seg.info takes no options\n"
