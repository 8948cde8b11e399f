"""Packages of the BioImage Model Zoo (https://bioimage.io): a network that Fiji, ilastik, QuPath and deepImageJ open.

A package is a zip file with the network as ONNX, a test input with its output, a cover, a text, and their description
``rdf.yaml`` in format 0.5 (https://github.com/bioimage-io/spec-bioimage-io).
"""

import hashlib
import io
import re
import zipfile
from datetime import UTC, datetime
from keyword import iskeyword
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from omegaconf import DictConfig
from PIL import Image

from seg.data.image_io import read_image
from seg.display.panels import draw_overlay, flatten_labels, legend_entries, to_rgb
from seg.errors import UserError
from seg.files import read_bytes
from seg.inference.exported_network import ExportedFunction
from seg.inference.predictor import check_image_channels
from seg.inference.tiling import needed_overlap
from seg.logits import classes_from_probabilities
from seg.models.contract import tile_stride
from seg.runs.load import LoadedRun

FORMAT_VERSION = "0.5.3"
MAX_ONNX_BYTES = 2**31  # bytes of one ONNX file
MAX_TEST_SIDE = 512  # px
NAME_LETTERS = re.compile(r"[A-Za-z0-9_+() -]{5,128}")  # of the title, as the format demands
PAPERS = {  # class of a network -> its paper and DOI
    "UNet": (
        "Ronneberger, Fischer, Brox 2015: U-Net: convolutional networks for biomedical image segmentation",
        "10.1007/978-3-319-24574-4_28",
    ),
    "NestedUNet": (
        "Zhou et al. 2018: UNet++: a nested U-Net architecture for medical image segmentation",
        "10.1007/978-3-030-00889-5_1",
    ),
    "FCN": (
        "Long, Shelhamer, Darrell 2015: Fully convolutional networks for semantic segmentation",
        "10.1109/CVPR.2015.7298965",
    ),
    "SegNet": (
        "Badrinarayanan, Kendall, Cipolla 2017: SegNet: a deep convolutional encoder-decoder architecture",
        "10.1109/TPAMI.2016.2644615",
    ),
}


class Sides(NamedTuple):
    """Sides of the images that other programs may put through the network.

    Attributes:
        smallest: px.
        step: px between two sides.
        halo: px at each border of a tile whose probabilities depend on what lies outside.
    """

    smallest: int
    step: int
    halo: int


def check_package(options: DictConfig, run: LoadedRun) -> np.ndarray:
    """Check the options of a package, and return its test image (H, W, C) as stored.

    Args:
        options: ``bioimageio`` of conf/export.yaml.
        run: that is exported.

    Raises:
        UserError: if a required option is missing, or the run needs neighbouring sections.
        DataError: if the image can't be read or isn't like the training images.
    """
    for name, example in (
        ("image", "IMAGE"), ("authors", "[Ada Lovelace]"), ("license", "CC-BY-4.0"),
    ):  # fmt: skip
        if not options[name]:
            raise UserError(
                f"bioimageio.{name} is not set: format=bioimageio needs it; give 'bioimageio.{name}={example}'"
            )
    if options.name and not NAME_LETTERS.fullmatch(options.name):
        raise UserError(
            f"bioimageio.name={options.name}: 5 to 128 letters, digits, spaces and _+-() are needed"
        )
    if run.intensity.neighbours:
        raise UserError(
            f"{run.checkpoint}: trained with data.neighbours={run.intensity.neighbours}, and programs of the Model "
            "Zoo give the network one section; take format=onnx"
        )
    file = Path(options.image)
    image = read_image(file)
    check_image_channels(image.shape[-1], run, file)
    dtype = run.intensity.stored_type
    if dtype is not None and image.dtype != dtype:
        raise UserError(
            f"bioimageio.image={file}: values of type {image.dtype}; the run was trained on {dtype}: give such an image"
        )
    return fit_test_image(image, allowed_sides(run))


def allowed_sides(run: LoadedRun) -> Sides:
    """Return the sides of images for the network, whose tiles have a middle beside the halo."""
    step = tile_stride(run.model)
    _, halo, everywhere = needed_overlap(run.model)
    halo = 0 if everywhere else halo
    return Sides(2 * halo + step, step, halo)


def fit_test_image(image: np.ndarray, sides: Sides) -> np.ndarray:
    """Return the middle of an image, of an allowed side up to 512 px or the smallest; mirrored where it is smaller."""
    fitted = image
    for axis in (0, 1):
        most = max(MAX_TEST_SIDE, sides.smallest)
        side = max(min(image.shape[axis], most), sides.smallest)
        side -= (side - sides.smallest) % sides.step
        missing = max(side - image.shape[axis], 0)
        widths = [(0, 0)] * 3
        widths[axis] = (missing // 2, missing - missing // 2)
        fitted = np.pad(fitted, widths, "symmetric")
        first = (fitted.shape[axis] - side) // 2
        fitted = fitted.take(range(first, first + side), axis)
    return fitted


def write_package(
    run: LoadedRun,
    facts: dict[str, Any],
    onnx_file: Path,
    network: ExportedFunction,
    image: np.ndarray,
    file: Path,
    cfg: DictConfig,
) -> None:
    """Write the package of a network.

    Args:
        run: that is exported.
        facts: stored beside the network, see seg.inference.export.
        onnx_file: the network.
        network: the function of this file.
        image: test image (H, W, C) as stored.
        file: zip file to write.
        cfg: as conf/export.yaml.
    """
    tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    probabilities = network(tensor)
    contents = {
        "weights.onnx": read_bytes(onnx_file, MAX_ONNX_BYTES),
        "test_input.npy": encode_array(tensor),
        "test_output.npy": encode_array(probabilities),
        "cover.png": draw_cover(run, image, probabilities[0]),
        "README.md": describe_network(run, facts, cfg.bioimageio).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    description = describe_package(run, facts, hashes, cfg)
    contents["rdf.yaml"] = yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def encode_array(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def draw_cover(run: LoadedRun, image: np.ndarray, probabilities: np.ndarray) -> bytes:
    """Return a PNG of the test image beside its predicted classes."""
    mask = classes_from_probabilities(probabilities, run.threshold, run.overlapping)
    _, colors = legend_entries(run.classes, run.colors, run.overlapping)
    pictures = [to_rgb(image), draw_overlay(image, flatten_labels(mask), colors)]
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(stream, "PNG")
    return stream.getvalue()


def network_name(run: LoadedRun, options: DictConfig) -> str:
    """Return the title of the package."""
    classes = re.sub(r"[^A-Za-z0-9_+() -]", "-", " and ".join(run.classes))
    return options.name or f"{run.model.name} for {classes}"[:128]


def describe_network(run: LoadedRun, facts: dict[str, Any], options: DictConfig) -> str:
    """Return the text of the package, in Markdown."""
    intensity = run.intensity
    if run.overlapping:
        use = f"A pixel has each class whose probability is above {run.threshold:g}."
    elif len(run.classes) == 2:
        use = f"A pixel is {run.classes[1]} where its probability is above {run.threshold:g}."
    else:
        use = "A pixel has the most probable class."
    low, high = intensity.value_range or (intensity.low, intensity.high)
    lines = [
        f"# {network_name(run, options)}",
        options.description or "",
        "## Input",
        f"Images of {intensity.channels} channel(s) as stored ({intensity.dtype or 'float32'}); those of the training "
        f"ranged from {low:g} to {high:g}. The network normalises them itself.",
        "## Output",
        f"A probability for each class: {', '.join(run.classes)}. {use}",
        "## Validation",
        "The test output is what this network predicts for the test input. Compare the predictions for images of your "
        "own with masks drawn by hand before you use them.",
        f"Written by seg {facts['seg']}.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def channel_identifiers(classes: list[str]) -> list[str]:
    """Return a Python identifier for each class, as the format requires; different ones for different classes."""
    found: list[str] = []
    for number, name in enumerate(classes):
        word = re.sub(r"\W", "_", name)
        if not word.isidentifier() or iskeyword(word):
            word = f"class_{word}"
        while word in found:
            word = f"{word}_{number}"
        found.append(word)
    return found


def describe_package(
    run: LoadedRun, facts: dict[str, Any], hashes: dict[str, str], cfg: DictConfig
) -> dict[str, Any]:
    """Return the content of rdf.yaml.

    Args:
        run: that is exported.
        facts: stored beside the network.
        hashes: SHA-256 of each file of the package.
        cfg: as conf/export.yaml.
    """
    options, sides = cfg.bioimageio, allowed_sides(run)
    paper = PAPERS.get(type(run.model).__name__)
    low, high = run.intensity.value_range or (run.intensity.low, run.intensity.high)
    colors = ["red", "green", "blue"] if run.intensity.channels == 3 else None
    names = colors or [f"channel{c}" for c in range(run.intensity.channels)]

    def source(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashes[name]}

    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": network_name(run, options),
        "description": options.description or f"Segments images into {', '.join(run.classes)}.",
        "authors": [{"name": str(name)} for name in options.authors],
        "cite": [{"text": paper[0], "doi": paper[1]}] if paper else [],
        "license": options.license,
        "tags": ["segmentation", "2d", "pytorch", "onnx"],
        "timestamp": datetime.now(UTC).isoformat(),
        "documentation": "README.md",
        "covers": ["cover.png"],
        "inputs": [
            {
                "id": "image",
                "description": "Image as stored; the network normalises it.",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": names},
                    *(
                        {
                            "type": "space",
                            "id": axis,
                            "size": {"min": sides.smallest, "step": sides.step},
                        }
                        for axis in "yx"
                    ),
                ],
                "data": {"type": "float32", "range": [float(low), float(high)]},
                "test_tensor": source("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "description": "Probability of each class.",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": channel_identifiers(run.classes)},
                    *(
                        {
                            "type": "space",
                            "id": axis,
                            "size": {"tensor_id": "image", "axis_id": axis, "offset": 0},
                            "halo": sides.halo,
                        }
                        for axis in "yx"
                    ),
                ],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": source("test_output.npy"),
            }
        ],
        "weights": {"onnx": source("weights.onnx") | {"opset_version": cfg.opset}},
        "config": {"seg": facts},
    }
