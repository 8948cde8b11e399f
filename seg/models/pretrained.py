"""ImageNet weights of AlexNet and VGG16, as published by torchvision."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from seg.models.blocks import NormName
from seg.models.encoders import EncoderName
from seg.models.fcn import FCN
from seg.models.segnet import SegNet

WEIGHTS_SITE = (
    "https://download.pytorch.org/models/"  # file names end in the first digits of the SHA-256
)
WEIGHTS_FILES = {
    ("vgg16", "none"): "vgg16-397923af.pth",
    ("vgg16", "batch"): "vgg16_bn-6c64b313.pth",
    ("alexnet", "none"): "alexnet-owt-7be5be79.pth",
}


def weights_url(encoder: EncoderName, norm: NormName) -> str:
    """Return the URL of torchvision's file for an encoder.

    Raises:
        ValueError: if there is none with this normalisation.
    """
    if (encoder, norm) not in WEIGHTS_FILES:
        known = ", ".join(f"{e} with norm={n}" for e, n in WEIGHTS_FILES)
        raise ValueError(
            f"no weights are published for {encoder} with norm={norm}; there are {known}"
        )
    return WEIGHTS_SITE + WEIGHTS_FILES[encoder, norm]


def download_weights(url: str) -> dict[str, Tensor]:
    """Return the state dict of a file, from PyTorch's cache or downloaded; its hash must be the one in its name.

    Raises:
        ValueError: if it can't be downloaded, or isn't the published file.
    """
    # PyTorch checks the hash of a download only, not of a file in its cache
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if cached.is_file():
        digest = hashlib.sha256(cached.read_bytes()).hexdigest()
        expected = cached.stem.rpartition("-")[2]
        if not digest.startswith(expected):
            raise ValueError(
                f"{cached}: its SHA-256 starts with {digest[:8]}, not {expected}; the file isn't the "
                "published one: remove it"
            )
    # Download, or read from the cache, without unpickling code
    try:
        return load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise ValueError(
            f"{url} can't be downloaded ({error}); put the file into {folder} yourself, or start "
            "without init=imagenet"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{url}: {error}; the file isn't the published one") from error


def list_convolutions(parts: list[nn.Module]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Return the convolutions in order, each with the normalisation that follows it."""
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for layer in (layer for part in parts for layer in part.modules()):
        if isinstance(layer, nn.Conv2d):
            pairs.append((layer, None))
        elif isinstance(layer, nn.BatchNorm2d):
            pairs[-1] = (pairs[-1][0], layer)
    return pairs


def list_stored_layers(
    weights: dict[str, Tensor],
) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Return a file's convolutions and linear layers in order: weight, bias, and the values of the normalisation."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        prefix, _, leaf = name.rpartition(".")
        layers.setdefault(prefix, {})[leaf] = value
    result: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for layer in layers.values():
        if "running_mean" in layer:
            result[-1] = (*result[-1][:2], layer)
        else:
            result.append((layer["weight"], layer["bias"], {}))
    return result


def copy_layer(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    weight: Tensor,
    bias: Tensor,
    their_norm: dict[str, Tensor],
    url: str,
) -> None:
    """Copy one layer; its bias goes into the normalisation if the convolution has no bias.

    Raises:
        ValueError: if the shapes differ.
    """
    # Bring the file's weight to the shape of this convolution.
    _, channels, *kernel = conv.weight.shape
    if weight.ndim == 2:  # a linear layer is a convolution over its whole input
        weight = weight.reshape(len(weight), -1, *kernel)
    # For grey images, sum over R, G and B: the response to three equal channels
    if channels == 1 and weight.shape[1] == 3:
        weight = weight.sum(1, keepdim=True)
    if weight.shape != conv.weight.shape:
        raise ValueError(
            f"{url} has {tuple(weight.shape)} where this network has {tuple(conv.weight.shape)}; "
            "give width=64 and images of 1 or 3 channels"
        )
    # Copy it; the bias goes into the normalisation if the convolution has none.
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.copy_(bias)
    elif norm is not None and their_norm:
        norm.load_state_dict(their_norm | {"running_mean": their_norm["running_mean"] - bias})
    elif norm is not None:
        norm.bias.copy_(bias)


def load_imagenet(model: nn.Module, url: str | None = None) -> str:
    """Load torchvision's ImageNet weights into an encoder, and into FCN's fc6 and fc7.

    For grey images the first filters are summed over red, green and blue, which gives the same as three equal channels.
    Where batch normalisation follows a convolution without a bias, the file's bias goes into it, which is equivalent.

    Args:
        model: an FCN or SegNet of width 64.
        url: of the file; None: torchvision's.

    Returns:
        The URL of the weights.

    Raises:
        ValueError: if there are no weights for the network, or their shapes differ.
    """
    if not isinstance(model, FCN | SegNet):
        raise ValueError(f"{type(model).__name__} has no published weights; FCN and SegNet have")
    # Match the layers of the network with those of the file, in order.
    ours = list_convolutions(
        [*model.stages, *([model.classifier] if isinstance(model, FCN) else [])]
    )
    # Find and download the file.
    if url is None:
        url, width = weights_url(model.encoder, model.norm), ours[0][0].out_channels
        if width != 64:  # before hundreds of MB are downloaded
            raise ValueError(f"the published weights are for width=64; this network's is {width}")
    theirs = list_stored_layers(download_weights(url))
    if len(theirs) < len(ours):
        raise ValueError(f"{url} has {len(theirs)} layers; this network needs {len(ours)}")
    # Copy layer by layer.
    with torch.no_grad():
        for (conv, norm), (weight, bias, their_norm) in zip(ours, theirs, strict=False):
            copy_layer(conv, norm, weight, bias, their_norm, url)
    return url
