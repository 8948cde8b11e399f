"""A checkpoint takes no more memory and time than its size, whatever it says of itself."""

import collections
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import seg
from seg.cli.compose import compose_checked, instantiate_node, plain_config
from seg.cli.conf_files import CONF
from seg.errors import RunError
from seg.models import UNet
from seg.runs import load
from seg.runs.archive import (
    ArchiveError,
    DeclaredStorage,
    DeclaredTensor,
    declare_tensor,
    read_skeleton,
)
from seg.runs.checkpoint import read_checkpoint

MEMORY = 500 * 2**20  # bytes that a refusal may take


@contextmanager
def little_memory() -> Generator[None]:
    """Lets nothing take more than ``MEMORY``."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def repack(file: Path, change: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Writes an archive anew with other content in some records."""
    with zipfile.ZipFile(file) as there:
        records = {name: there.read(name) for name in there.namelist()}
    top = next(iter(records)).partition("/")[0]
    with zipfile.ZipFile(file, "w", method) as new:
        for name, content in (records | {f"{top}/{k}": v for k, v in change.items()}).items():
            new.writestr(name, content)


def saved(file: Path, content: Any) -> Path:
    torch.save(content, file)
    return file


def pickled(file: Path, opcodes: bytes) -> Path:
    """An archive whose pickle is this."""
    saved(file, {"a": torch.zeros(3)})
    repack(file, {"data.pkl": b"\x80\x02" + opcodes + b"."})
    return file


def packed(file: Path) -> None:
    """20 GiB of zeros would be 20 MB; here 200 MiB are, as much as a test can take."""
    repack(saved(file, {"a": torch.zeros(1)}), {"data/0": bytes(200 * 2**20)}, zipfile.ZIP_DEFLATED)


def short(file: Path) -> None:
    repack(saved(file, {"a": torch.zeros(10**6)}), {"data/0": bytes(4)})


def missing(file: Path) -> None:
    content = file.with_name("b")
    saved(content, {"a": torch.zeros(3)})
    with zipfile.ZipFile(content) as there, zipfile.ZipFile(file, "w") as new:
        for name in there.namelist():
            if "/data/" not in name:
                new.writestr(name, there.read(name))


def overlapping(file: Path) -> None:
    """Two records in one place: the directory names the first record's for both."""
    saved(file, {"a": torch.zeros(1000), "b": torch.ones(1000)})
    with zipfile.ZipFile(file) as there:
        one, two = (there.getinfo(f"{file.stem}/data/{i}").header_offset for i in (0, 1))
    content = file.read_bytes()
    assert content.count(struct.pack("<I", two)) == 1
    file.write_bytes(content.replace(struct.pack("<I", two), struct.pack("<I", one)))


def many_references(file: Path) -> None:
    node: list = []
    for _ in range(45):
        node = [node, node]
    saved(file, {"seg": node})


def shared(file: Path) -> None:
    one = torch.zeros(1000)
    saved(file, {str(i): one.view(1000) for i in range(1000)})


def legacy(file: Path) -> None:
    torch.save({"a": 1}, file, _use_new_zipfile_serialization=False)


def commented(file: Path) -> None:
    saved(file, {"a": 1})
    with zipfile.ZipFile(file, "a") as there:
        there.comment = b"x" * 100


REFUSED = {
    "packed records": (packed, "compressed"),
    "a record shorter than its storage": (short, "another length than declared"),
    "a storage without a record": (missing, "missing"),
    "records that overlap": (overlapping, "overlap"),
    "a tensor of one number, expanded": (lambda f: saved(f, {"a": torch.zeros(1).expand(10**10)}), "repeats elements"),
    "a tensor that overlaps itself": (lambda f: saved(f, torch.zeros(100).as_strided((50, 50), (1, 1))), "repeats elements"),
    "many tensors of one storage": (shared, "share storages"),
    "lists that hold each other": (many_references, "more than 1000000 values"),
    "many containers": (lambda f: pickled(f, b"]" * (2**20)), "more than 1000000 values"),
    "a number of a value that takes 16 GiB": (lambda f: pickled(f, b"}r\xff\xff\xff\x7f"), "as torch.save writes it"),
    "bytes of which there are none": (lambda f: pickled(f, b"\x96" + struct.pack("<Q", 2**34)), "plain values|bytes"),
    "a pickle of 9 MB": (lambda f: pickled(f, b"N" * (17 * 2**20)), "at most 16777216 are read"),
    "a tensor changed after it is declared": (
        lambda f: pickled(f, b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
                             b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03\x85K\x01\x85\x89}tR}X\x05\x00\x00\x00shapeK\x09\x85sb"),
        "changed after",
    ),
    "code": (lambda f: pickled(f, b"cos\nsystem\n(X\x02\x00\x00\x00lstR"), "more than weights"),
    "a record of the former format": (legacy, "zip archive"),
    "an archive with a comment": (commented, "zip archive"),
    "nothing": (lambda f: f.write_bytes(b""), "zip archive"),
    "a number of 2000 bits": (lambda f: saved(f, {"a": 2**2000}), "64 bits"),
    "a sparse tensor": (lambda f: saved(f, {"a": torch.eye(3).to_sparse()}), "more than weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_asks_for_more_than_it_holds_is_refused_with_little_memory_and_time(tmp_path, case):
    make, said = REFUSED[case]
    file = tmp_path / "a.ckpt"
    make(file)
    started = time.process_time()
    with little_memory(), pytest.raises(ArchiveError, match=said):
        read_skeleton(file)
    assert time.process_time() - started < 20
    with little_memory(), pytest.raises(RunError, match=r"a\.ckpt: "):
        read_checkpoint(file)


def test_a_skeleton_is_what_is_loaded_without_its_numbers(tmp_path):
    """Values, types, dtypes and shapes, against torch.load."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], "one": torch.tensor(0.5),
        "half": torch.ones(2, dtype=torch.bfloat16), "view": torch.arange(10)[3:5], "empty": torch.zeros(0, 3),
        "turned": torch.ones(2, 3).t(), "last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": network[0].weight, "plain": [1, 2.5, "x", None, True, (1, 2), {"a": {"b": []}}],
        "ordered": collections.OrderedDict(a=1), "bytes": b"ab\xff", "size": torch.Size([1, 2]), "set": {1, 2},
    }  # fmt: skip
    file = saved(tmp_path / "a.ckpt", content)

    def compare(one: Any, two: Any) -> int:
        if isinstance(two, torch.Tensor):
            assert type(one) is DeclaredTensor and one.shape == two.shape and one.dtype == two.dtype
            return 1
        assert type(one) is type(two)
        if isinstance(two, dict):
            assert list(one) == list(two)
            return sum(compare(one[key], two[key]) for key in two)
        if isinstance(two, list | tuple):
            return sum(compare(a, b) for a, b in zip(one, two, strict=True))
        assert one == two
        return 0

    assert compare(read_skeleton(file), torch.load(file, weights_only=True)) > 15


def checkpoint(file: Path, model: nn.Module, node: dict[str, Any], **changes: Any) -> Path:
    """A whole checkpoint of a network."""
    card = {
        "format": 1, "version": seg.version.__version__, "classes": ["a", "b"], "task": "classes",
        "config": {"model": node, "loss": {"_target_": "seg.losses.Dice"}},
        "colors": [[0, 0, 0], [255, 255, 255]], "threshold": 0.5,
        "intensity": {"low": 0.0, "high": 255.0, "mean": [0.5], "std": [0.2]},
    }  # fmt: skip
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return saved(file, {"state_dict": weights, "seg": card | changes})


MODELS = [
    pytest.param(file.stem, marks=[] if file.stem in ("fcn", "unet_paper") else pytest.mark.slow)
    for file in sorted((CONF / "model").glob("*.yaml"))
    if file.stem != "smp"
]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_comes_back_as_it_was(tmp_path, name):
    """Each tensor bit for bit, its type and whether it learns, and what the network gives."""
    more = ["model.width=2"] if "unet" in name or name in ("fcn", "segnet") else []
    node = plain_config(compose_checked("train", [f"model={name}", *more]).model) | {
        "in_channels": 1,
        "num_classes": 1,
    }
    torch.manual_seed(0)
    model = instantiate_node(OmegaConf.create(node), "model").eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01)  # as after training: buffers too
    found = load.load_run(checkpoint(tmp_path / "a.ckpt", model, node)).model
    assert type(found) is type(model) and not found.training
    for (one, wanted), (two, got) in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*found.named_parameters(), *found.named_buffers()], strict=True,
    ):  # fmt: skip
        assert one == two and got.device.type == "cpu" and got.dtype == wanted.dtype
        assert got.requires_grad == wanted.requires_grad and torch.equal(got, wanted)
    side = 32 if getattr(model, "context", 0) == 0 else model.input_side(4)
    image = torch.rand(1, 1, side, side)
    with torch.inference_mode():
        assert torch.equal(model(image), found(image))


def test_a_network_that_does_not_fit_its_weights_takes_no_memory(tmp_path):
    node = {
        "_target_": "seg.models.UNet",
        "in_channels": 1,
        "num_classes": 1,
        "width": 2,
        "depth": 1,
    }
    model = UNet(1, 1, width=2, depth=1)
    for options, said in (
        ({"width": 3000}, "has the shape"),
        ({"width": 30_000, "depth": 12}, "has the shape"),
        ({"depth": 60}, "depth"),
        ({"depth": 2}, "has the shape"),
        ({"num_classes": 10**6}, "1000000 logits"),
        ({"in_channels": 10**6}, "1000000 channels"),
        ({"width": "wide"}, "width"),
        ({"wide": 1}, "wide"),
    ):
        file = checkpoint(tmp_path / "a.ckpt", model, node | options)
        with little_memory(), pytest.raises(RunError, match=rf"a\.ckpt.*{said}"):
            load.load_run(file)


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """A package in the place of segmentation-models-pytorch, whose network reads a number as it is built."""
    folder = tmp_path / "segmentation_models_pytorch/decoders"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width, encoder_weights=None, rates=True):\n"
        "        super().__init__()\n"
        "        if rates:\n"
        "            self.rates = [x.item() for x in torch.linspace(0, 1, 3)]\n"
        "        self.conv = torch.nn.Conv2d(1, width, 3, padding=1)\n"
        "        self.head = torch.nn.Conv2d(width, 1, 1)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(x))\n"
    )
    (folder.parent / "__init__.py").write_text("from .decoders import Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("seg.errors.find_spec", lambda name: True)
    for name in [m for m in sys.modules if m.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [m for m in sys.modules if m.startswith("segmentation_models_pytorch")]:
        del sys.modules[name]


@pytest.mark.parametrize("rates", [True, False])
def test_a_peers_network_is_loaded_also_where_it_reads_numbers_as_it_is_built(
    tmp_path, peer, rates
):
    inner = {"_target_": "segmentation_models_pytorch.Net", "width": 3, "rates": rates}
    node = {"_target_": "seg.models.Peer", "in_channels": 1, "num_classes": 1, "network": inner}
    model = instantiate_node(OmegaConf.create(node), "model")
    found = load.load_run(checkpoint(tmp_path / "a.ckpt", model, node)).model
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True)
    )
    for width, said in (
        (4, "has the shape"),
        (10**7, "at most 1024" if rates else "has the shape"),
    ):
        wrong = node | {"network": inner | {"width": width}}
        with little_memory(), pytest.raises(RunError, match=said):
            load.load_run(checkpoint(tmp_path / "a.ckpt", model, wrong))


@pytest.mark.parametrize(
    ("count", "offset", "fits"), [(6, 0, True), (5, 0, False), (6, 1, False), (7, 1, True)]
)
def test_a_tensor_ends_with_its_storage_at_the_latest(count, offset, fits):
    storage = DeclaredStorage("0", torch.float32, count)
    if fits:
        assert declare_tensor(storage, offset, (2, 3), (3, 1)).shape == (2, 3)
        return
    with pytest.raises(ArchiveError, match="larger than its storage"):
        declare_tensor(storage, offset, (2, 3), (3, 1))
