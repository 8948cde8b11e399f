"""Test-time augmentation against means by hand, and the context that tiles need against what is known of a network."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.stats import entropy
from torch import Tensor, nn

from seg.data.normalization import Normalization
from seg.inference.ensemble import Ensemble
from seg.inference.predictor import Predictor
from seg.inference.tiling import Tiling, needed_overlap
from seg.inference.tta import TTANetwork, invert_view, normalized_entropy, transform_view, with_tta
from seg.models import FCN, NestedUNet, Peer, SegNet, UNet
from seg.models.network import Extent, Network
from seg.runs.load import LoadedRun

# what it does to an image (..., H, W), and its inverse, by numpy alone
VIEWS = [
    (lambda x, k=k, f=f: np.rot90(x[..., ::-1] if f else x, k, (-2, -1)),
     lambda x, k=k, f=f: np.rot90(x, -k, (-2, -1))[..., :: -1 if f else 1])
    for f in (False, True) for k in range(4)
]  # fmt: skip
FLIPS = [view for i, view in enumerate(VIEWS) if i in (0, 2, 4, 6)]  # without quarter turns
MIRROR = [VIEWS[0], VIEWS[4]]  # left and right alone


def network(k: int = 1, **words) -> nn.Module:
    torch.manual_seed(3)
    return UNet(2, k, width=3, depth=2, norm="none", **words).eval()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)


def said(model: nn.Module, image: np.ndarray, overlapping: bool = False) -> np.ndarray:
    """Probabilities (C, H, W) in float64, by their formulas."""
    with torch.no_grad():
        logits = model(torch.from_numpy(image.copy())[None])[0].double().numpy()
    if overlapping:
        return 1 / (1 + np.exp(-logits))
    if len(logits) == 1:
        return np.concatenate([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))])
    return np.exp(logits) / np.exp(logits).sum(0)


@pytest.mark.parametrize(
    ("moves", "views"), [("none", VIEWS[:1]), ("mirror", MIRROR), ("flips", FLIPS), ("d4", VIEWS)]
)
@pytest.mark.parametrize(("k", "overlapping"), [(1, False), (2, False), (3, False), (2, True)])
def test_it_is_the_mean_of_probabilities_over_the_views(moves, views, k, overlapping):
    assert len(views) == {"none": 1, "mirror": 2, "flips": 4, "d4": 8}[moves]
    model, image = network(k), noise(64, 96)  # on the grid: nothing is padded
    wanted = np.mean([undo(said(model, do(image), overlapping)) for do, undo in views], axis=0)
    found = said(TTANetwork(model, moves, overlapping=overlapping), image, overlapping)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if moves != "none":
        assert np.abs(found - said(model, image, overlapping)).max() > 0.01  # or it shows nothing


def test_the_moves_are_the_eight_of_the_square_and_each_is_undone():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    for name, number in (("mirror", 2), ("flips", 4), ("d4", 8)):
        every = [transform_view(image, move) for move in TTANetwork(nn.Identity(), name).moves]
        ours = {(tuple(m.shape), tuple(m.flatten().tolist())) for m in every}
        views = [
            do(image.numpy()) for do, _ in {"mirror": MIRROR, "flips": FLIPS, "d4": VIEWS}[name]
        ]
        assert ours == {(v.shape, tuple(v.flatten().tolist())) for v in views}
        assert len(ours) == number
        for move in TTANetwork(nn.Identity(), name).moves:
            assert torch.equal(invert_view(transform_view(image, move), move), image)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_moved_image_gives_the_moved_result(number, padding):
    do, _ = VIEWS[number]
    image = noise(64, 96)
    model = TTANetwork(network(padding=padding), "d4")
    np.testing.assert_allclose(said(model, do(image)), do(said(model, image)), atol=1e-6)
    flips = TTANetwork(network(padding=padding), "flips")
    away = np.abs(said(flips, do(image)) - do(said(flips, image))).max()
    assert (away < 1e-6) == (number in (0, 2, 4, 6))  # four views know no quarter turns


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["d4", "none"]))
@settings(max_examples=12, deadline=None)
def test_off_the_grid_a_transposed_image_still_gives_the_transposed_result(height, width, moves):
    # a flip can't: what is continued to the grid, on the right and below, then is another side of it
    image = noise(height, width)
    model = TTANetwork(network(), "d4", [1.0] if moves == "d4" else [1.0, 0.5])
    p = said(model, image)
    assert p.shape == (2, height, width)
    np.testing.assert_allclose(said(model, image.swapaxes(1, 2)), p.swapaxes(1, 2), atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (41, 70), (1, 50), (1, 1)])
def test_off_the_grid_the_image_is_continued_mirrored(size):
    model, image = network(), noise(*size)
    more = [(0, 0), (0, -size[0] % 32), (0, -size[1] % 32)]
    padded = np.pad(image, more, mode="reflect")
    for moves, views in (("mirror", MIRROR), ("flips", FLIPS), ("d4", VIEWS)):
        whole = np.mean([undo(said(model, do(padded))) for do, undo in views], axis=0)
        found = said(TTANetwork(model, moves), image)
        np.testing.assert_allclose(found, whole[:, : size[0], : size[1]], atol=1e-6)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres at halves, the border repeated."""
    rows, columns = (
        (np.arange(new) + 0.5) * old / new - 0.5
        for new, old in zip((height, width), image.shape[1:], strict=True)
    )
    at = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([map_coordinates(one, at, order=1, mode="nearest") for one in image])


@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0], [0.75, 1, 1.25]])
def test_scales_are_means_over_the_resized_image(scales):
    model, image = network(3), noise(128, 256)  # on the grid of each scale
    model.head.weight.data *= 3  # clear of half
    heads = []
    for scale in scales:
        height, width = round(128 * scale), round(256 * scale)
        seen = resized(image, height, width).astype(np.float32)
        seen = np.pad(seen, [(0, 0), (0, -height % 32), (0, -width % 32)], mode="reflect")
        with torch.no_grad():
            logits = model(torch.from_numpy(seen)[None])[0, :, :height, :width].double().numpy()
        logits = resized(logits, 128, 256)
        heads.append(np.exp(logits) / np.exp(logits).sum(0))
    found = said(TTANetwork(model, "none", scales), image)
    np.testing.assert_allclose(found, np.mean(heads, axis=0), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)])
def test_a_scaled_image_of_few_pixels_keeps_one(size):
    p = said(TTANetwork(network(), "d4", [0.1, 1.0, 2.0]), noise(*size))
    assert p.shape == (2, *size) and np.isfinite(p).all()


@pytest.mark.parametrize("model", [FCN(2, 2, width=2), SegNet(2, 2, width=2), NestedUNet(2, 2, width=2, depth=2)], ids=lambda m: type(m).__name__)  # fmt: skip
def test_other_networks_turn_too(model):
    image, model = noise(64, 96), TTANetwork(model.eval(), "d4")
    for do, _ in VIEWS[1:6:4]:
        np.testing.assert_allclose(said(model, do(image)), do(said(model, image)), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("d8", [1.0]), "tta=d8: one of none, mirror, flips, d4 is needed"),
        (("none", []), r"scales=\[\]"),
        (("none", [0.0]), r"scales=\[0.0\]: factors above 0"),
        (("none", [-1]), "factors above 0"),
        (("flips", [9.0]), "up to 8"),
        (("flips", [float("nan")]), "factors above 0"),
    ],
)
def test_other_moves_and_scales_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        with_tta(nn.Identity(), *words, overlapping=False)


def test_one_view_is_the_network_itself():
    model = nn.Identity()
    assert with_tta(model, "none", [1], False) is model
    assert not with_tta(model, "flips", [1], False).training


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_uncertainty_is_the_entropy_over_its_greatest_value(classes):
    p = np.random.default_rng(0).dirichlet([0.3] * classes, (6, 7)).astype(np.float32)
    p[0, 0], p[0, 1] = np.eye(classes)[0], 1 / classes
    found = normalized_entropy(torch.from_numpy(p.transpose(2, 0, 1)))
    np.testing.assert_allclose(found.numpy(), entropy(p, axis=-1) / np.log(classes), atol=1e-5)
    assert found[0, 0] == 0 and found[0, 1] == pytest.approx(1)


def test_uncertainty_of_overlapping_classes_is_the_mean_of_each_one_s():
    p = np.random.default_rng(0).random((3, 6, 7)).astype(np.float32)
    p[:, 0, 0] = 0, 1, 0.5
    found = normalized_entropy(torch.from_numpy(p), overlapping=True).numpy()
    np.testing.assert_allclose(found, entropy([p, 1 - p], base=2).mean(0), atol=1e-5)
    assert found[0, 0] == pytest.approx(1 / 3)


class Shift(Network):
    """The pixel so far up and left, outside 0 or the border's: what it sees is known exactly."""

    def __init__(self, px: int, outside: str = "constant") -> None:
        super().__init__()
        self.px, self.outside = px, outside

    @property
    def stride(self) -> int:
        return 1

    def forward(self, image: Tensor) -> Tensor:
        wider = F.pad(image, (self.px, 0, self.px, 0), mode=self.outside)
        return wider[..., : image.shape[-2], : image.shape[-1]]

    def receptive_field(self, outputs: Extent) -> Extent:
        return outputs.shifted(-self.px)


@pytest.mark.parametrize(("sees", "context"), [(0, 0), (1, 32), (32, 32), (33, 64), (64, 64), (65, 96), (260, 288)])  # fmt: skip
def test_the_context_is_the_multiple_of_the_grid_that_covers_what_is_seen(sees, context):
    assert needed_overlap(Shift(sees)) == (sees, context, False)


def test_the_context_of_networks():
    # test_receptive_field.py has how they come about
    assert needed_overlap(network()) == (22, 32, False)
    assert needed_overlap(UNet(2, 1, 1, 3).eval()) == (46, 64, False)
    assert needed_overlap(UNet(1, 1, 1, 4, padding="valid").eval()) == (96, 96, False)
    assert needed_overlap(UNet(1, 1, 1, 6).eval()) == (382, 384, False)  # its grid is 64 px
    # 61 px go, yet a part that ends on the grid needs 65
    valid = UNet(1, 1, 1, 4, padding="valid", up="bilinear", block="bottleneck").eval()
    assert valid.context == 61 and needed_overlap(valid) == (65, 96, False)
    assert needed_overlap(UNet(1, 1, 2, 2, norm="group").eval()) == (22, 32, True)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_tiles_with_the_stated_context_have_no_seams(depth, padding):
    torch.manual_seed(1)
    model = UNet(1, 2, width=3, depth=depth, padding=padding, norm="none").double().eval()
    image = np.random.default_rng(0).normal(size=(230, 70, 1))
    for view in (model, TTANetwork(model, "d4")):
        _, context, _ = needed_overlap(view)
        largest, mean = Tiling(view, lambda i: i, 2 * context + 64, context).seams(image)
        assert mean <= largest <= 1e-7  # in float64; kept as float32
    image = np.random.default_rng(0).normal(size=(300, 261, 1)).astype(np.float32)
    shorter = Tiling(Shift(100), lambda i: i, 160, 32).seams(image)
    assert shorter[0] > 0.1 and shorter[1] > 0.01  # what too little context does


@pytest.mark.parametrize("scales", [[0.5, 1.0], [1.5]], ids=str)
def test_tiles_of_scaled_images_have_no_seams(scales):
    torch.manual_seed(1)
    network = UNet(1, 2, width=3, depth=1, norm="none").double().eval()
    model = TTANetwork(network, "flips", scales)
    _, context, _ = needed_overlap(model)
    image = np.random.default_rng(0).normal(size=(300, 61, 1))
    tiling = Tiling(model, lambda i: i, 2 * context + model.stride, context)
    assert tiling.seams(image)[0] <= 1e-7
    assert tiling.tile < 300  # or it shows nothing


def predictor(model: nn.Module, intensity: Normalization, tile: int = 1024, **words) -> Predictor:
    run = LoadedRun(
        Path("x.ckpt"), Path(), model, {"model": {"num_classes": 1}}, ["a", "b"], [], intensity,
        task="overlapping" if words.pop("overlapping", False) else "classes",
    )  # fmt: skip
    return Predictor(run, 0.5, tile=tile, accelerator="cpu", **words)


def test_an_ensemble_sees_as_much_as_the_member_that_sees_most():
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    members: list[nn.Module] = [Shift(10, "replicate"), Shift(70, "replicate")]
    both = Ensemble(members, [grey, grey])
    assert predictor(both, both.intensity).overlap == 96
    same = UNet(1, 1, width=3, depth=3).eval()
    pair = Ensemble([same, same], [grey, dataclasses.replace(grey, mean=[0.5])])
    assert predictor(pair, pair.intensity).overlap == predictor(same, grey).overlap == 64
    coarse = Ensemble([UNet(1, 1, width=1, depth=6).eval(), same], [grey, grey])
    assert predictor(coarse, coarse.intensity).overlap == 384


def test_a_pruned_depth_needs_less_context():
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    needed = {d: predictor(NestedUNet(1, 1, 1, 4, output=d).eval(), grey).overlap for d in (1, 2, 3, 4)}  # fmt: skip
    assert needed == {1: 32, 2: 32, 3: 64, 4: 96}
    assert predictor(NestedUNet(1, 1, 1, 4, output="average").eval(), grey).overlap == 96
    assert predictor(NestedUNet(1, 1, 1, 3, pruned=True).eval(), grey).overlap == 64


def test_the_context_is_in_px_of_the_image_also_where_it_is_shrunk():
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    # at half the size a part begins at -1 with what resizing reads, the network sees 40 px more, 82 px of the image
    # and one more by resizing: 83; the grid is 64 px
    assert predictor(Shift(40), grey, scales=[1.0, 0.5]).overlap == 128
    assert predictor(Shift(40), grey, scales=[2.0]).overlap == 32  # 20 px
    assert predictor(Shift(70), grey, scales=[2.0]).overlap == 64  # 35 px


def test_a_tile_that_is_too_small_for_the_context_says_which_is_enough(caplog):
    caplog.set_level(logging.INFO, "seg")
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    assert predictor(Shift(100), grey, tile=160).overlap == 64  # the most that leaves a middle
    said = caplog.messages[-1]
    assert (
        "reaches 100 px beyond" in said and "tiles will differ" in said and "take tile=288" in said
    )
    caplog.clear()
    assert predictor(Shift(100), grey, tile=288).overlap == 128  # which is enough indeed
    assert "tiles equal the whole image" in caplog.messages[-1]
    caplog.clear()
    assert predictor(Shift(100), grey, tile=160, overlap=32).overlap == 32  # as asked
    assert not caplog.messages


def test_how_the_context_is_known_and_what_it_costs_is_said(caplog):
    caplog.set_level(logging.INFO, "seg")
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    assert predictor(UNet(1, 1, 1, 4).eval(), grey).overlap == 96
    # (1024 / (1024 - 2 * 96)) ** 2 = 1.51
    assert caplog.messages[-1] == (
        "overlap    96 px: from the architecture, the receptive field reaches 94 px beyond the kept part of a tile; "
        "tiles equal the whole image but for rounding, at up to 1.5 times its time"
    )


def test_a_normalisation_over_the_image_is_never_called_seamless(caplog):
    caplog.set_level(logging.INFO, "seg")
    grey = Normalization(0.0, 255.0, [0.4], [0.2])
    assert predictor(UNet(1, 1, 2, 4, norm="group").eval(), grey).overlap == 96
    said = caplog.messages[-1]
    assert "no overlap makes tiles equal" in said and "tiles equal the whole image" not in said
    blind = Peer(1, 1, nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1)))
    assert predictor(blind, grey).overlap == 256
    assert "no overlap makes tiles equal" in caplog.messages[-1]
