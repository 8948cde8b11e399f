"""Other implementations of our networks, and the step of training and inference that all are timed with.

The textbook networks are written as tutorials write them, in the default layout; MONAI's need pip install monai. Each
has our network's parameters; those of MONAI differ a little.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Textbook(nn.Module):
    """U-Net with same-size convolutions, batch normalisation and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(
            self.double_conv(a, b) for a, b in zip([1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.fuse = nn.ModuleList(self.double_conv(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def double_conv(a: int, b: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for c in (a, b):
            layers += [nn.Conv2d(c, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.fuse, strict=True):
            x = up(x)
            skip = skips.pop()
            rest = (skip.shape[-1] - x.shape[-1]) // 2  # px; 0 with same-size convolutions
            skip = skip[..., rest : rest + x.shape[-2], rest : rest + x.shape[-1]]
            x = block(torch.cat([skip, x], 1))
        return self.head(x)


class TextbookPaper(Textbook):
    """U-Net of the paper: valid convolutions without normalisation; the skips are cropped."""

    @staticmethod
    def double_conv(a: int, b: int) -> nn.Sequential:
        first, second = nn.Conv2d(a, b, 3), nn.Conv2d(b, b, 3)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


class TextbookNested(nn.Module):
    """UNet++ L4 with deep supervision: four heads in training, the deepest one in inference."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.grid = [(i, j) for j in range(5) for i in range(5 - j)]
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for i, j in self.grid:
            above = (j + 1) * widths[i] if j else [1, *widths][i]
            self.nodes[f"{i}{j}"] = Textbook.double_conv(above, widths[i])
            if j:
                self.ups[f"{i}{j}"] = nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        found: dict[tuple[int, int], Tensor] = {}
        for i, j in self.grid:
            if j:
                same = [found[i, k] for k in range(j)]
                inputs = torch.cat([*same, self.ups[f"{i}{j}"](found[i + 1, j - 1])], 1)
            else:
                inputs = F.max_pool2d(found[i - 1, 0], 2) if i else x
            found[i, j] = self.nodes[f"{i}{j}"](inputs)
        if self.training:
            return [head(found[0, j]) for j, head in enumerate(self.heads, start=1)]
        return self.heads[3](found[0, 4])


class TextbookFCN(nn.Module):
    """FCN-8s on VGG16 with batch normalisation, without dropout; sides are multiples of 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.stages = nn.ModuleList()
        for above, below, convolutions in zip([1, *widths], widths, (2, 2, 3, 3, 3), strict=False):
            layers: list[nn.Module] = []
            for number in range(convolutions):
                layers += self.layer(below if number else above, below, 3)
            self.stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        wide = 64 * width
        self.classifier = nn.Sequential(
            *self.layer(widths[-1], wide, 7), *self.layer(wide, wide, 1)
        )
        self.scores = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (wide, widths[3], widths[2]))
        self.doubles = nn.ModuleList(
            nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False) for _ in range(2)
        )
        self.last = nn.ConvTranspose2d(1, 1, 16, 8, 4, bias=False)

    @staticmethod
    def layer(a: int, b: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x)
        logits = self.scores[0](self.classifier(x))
        for double, score, skip in zip(
            self.doubles, list(self.scores)[1:], pooled[3:1:-1], strict=True
        ):
            logits = double(logits) + score(skip)
        return self.last(logits)


def monai(name: str, width: int) -> nn.Module:
    """Return MONAI's BasicUNet or BasicUNetPlusPlus, with as many channels as ours."""
    from monai.networks import nets

    features = (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
    more = {"deep_supervision": True} if name.endswith("PlusPlus") else {}
    return getattr(nets, name)(2, 1, 1, features=features, upsample="deconv", **more)


def heads_of(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


def build_steps(
    model: nn.Module, images: Tensor, half: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a training step and an inference of a network on these images.

    A step is forward, binary cross-entropy of each head against a random mask, backward and AdamW.

    Args:
        model: on the device of the images; its mode is the caller's.
        images: (B, 1, H, W).
        half: bf16 autocast, else float32.
    """
    device = images.device.type
    autocast = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        side = heads_of(model(images))[-1].shape[-2:]
    mask = torch.randint(0, 2, (len(images), 1, *side), device=images.device).float()

    def train() -> None:
        optimizer.zero_grad()
        with autocast:
            output = model(images)
        loss = sum(F.binary_cross_entropy_with_logits(h.float(), mask) for h in heads_of(output))
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        with autocast:
            model(images)

    return train, infer
