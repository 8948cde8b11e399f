"""Tiled prediction against the whole image at once."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seg.cli.compose import compose_checked
from seg.inference.predictor import load_predictor
from seg.inference.tiling import Tiling, needed_overlap, tile_spans
from seg.logits import classes_from_probabilities, probabilities
from seg.models import FCN, NestedUNet, SegNet, UNet
from seg.models.contract import reflect_indices, same_size_logits, tile_stride
from seg.models.network import Extent, Network
from seg.training.run import train

REAL = Path(__file__).parents[3] / "shared/data/isbi2012"


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([(96, 32), (64, 0), (160, 64)]))
@settings(max_examples=60, deadline=None)
def test_kept_parts_cover_each_pixel_once_and_start_on_the_grid(height, width, sizes):
    covered = np.zeros((height, width), int)
    both = [[*tile_spans(side, *sizes)] for side in (height, width)]
    for read, keep, put in (zip(*pair, strict=True) for pair in product(*both)):
        covered[put] += 1
        for r, k, p in zip(read, keep, put, strict=True):
            assert r.start % 32 == 0 and r.start + k.start == p.start and r.stop <= 400
            assert k.stop - k.start == p.stop - p.start and r.stop - r.start <= sizes[0]
    assert (covered == 1).all()


def test_tiles_equal_the_whole_image_when_their_context_covers_the_receptive_field():
    torch.manual_seed(0)
    model = UNet(1, 2, width=4, depth=2, norm="none").eval()  # sees less than 32 px around a pixel
    image = np.random.default_rng(0).random((200, 230, 1), np.float32)
    tiled = Tiling(model, lambda i: i - 0.5, tile=128, overlap=32).whole(image)
    with torch.no_grad():
        whole = probabilities(model(torch.from_numpy(image - 0.5)[None, ..., 0][None]))[0]
    np.testing.assert_allclose(tiled, whole.numpy(), atol=1e-5)
    np.testing.assert_allclose(tiled.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(("tile", "overlap"), [(100, 32), (128, 20), (128, 64), (128, -32)])
def test_tiles_off_the_grid_or_without_a_middle_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"tile={tile} and overlap={overlap}"):
        Tiling(UNet(1, 1, width=2), lambda i: i, tile, overlap)


@pytest.mark.parametrize("up", ["transposed", "bilinear", "unpool"])
def test_tiles_of_a_valid_unet_equal_the_whole_image_up_to_its_borders(up):
    torch.manual_seed(0)
    model = UNet(1, 2, width=4, depth=2, padding="valid", norm="none", up=up).eval()
    image = np.random.default_rng(0).random((200, 230, 1), np.float32)
    tiled = Tiling(model, lambda i: i - 0.5, tile=96, overlap=32).whole(image)
    with torch.no_grad():
        whole = probabilities(
            same_size_logits(model, torch.from_numpy(image - 0.5)[None, ..., 0][None])
        )
    np.testing.assert_allclose(tiled, whole[0].numpy(), atol=1e-5)
    # the paper's overlap-tile by hand: pad the mirrored context, and run the plain network
    side, context = model.input_side(200), model.context
    padded = np.pad(image[:, :200, 0], ((context, side - 200 - context),) * 2, mode="reflect")
    with torch.no_grad():
        by_hand = model(torch.from_numpy(padded - 0.5)[None, None])[..., :200, :200]
        ours = same_size_logits(model, torch.from_numpy(image[:, :200, 0] - 0.5)[None, None])
    torch.testing.assert_close(ours, by_hand)


def test_an_overlap_smaller_than_the_context_is_refused():
    model = UNet(1, 1, width=2, padding="valid").eval()
    with pytest.raises(
        ValueError, match=r"overlap=32: this network needs 92 px of context; take overlap=96"
    ):
        Tiling(model, lambda i: i, tile=128, overlap=32)


def test_a_network_of_coarser_stride_has_a_coarser_grid():
    with pytest.raises(ValueError, match="multiples of 64 px"):
        Tiling(UNet(1, 1, 1, 6), lambda i: i, 160, 32)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirroring_goes_on_as_numpy_s_does(side, before, after):
    wanted = np.pad(np.arange(side), (before, after), mode="reflect")
    assert reflect_indices(side, before, after).tolist() == wanted.tolist()


# -- the context that a network states is enough for any weights, and a grid step less is not


@st.composite
def networks(draw) -> Network:
    """A network of random options and weights, as if trained: normalisation has statistics of its own."""
    choose = lambda *words: draw(st.sampled_from(words))  # noqa: E731
    depth, norm = choose(1, 2, 3), choose("batch", "none")
    parts = {
        "down": choose("max", "average", "strided"),
        "up": choose("transposed", "bilinear", "nearest", "pixel_shuffle", "unpool"),
        "fuse": choose("concat", "add"),
        "block": choose("double_conv", "residual", "bottleneck"),
    }
    torch.manual_seed(draw(st.integers(0, 2**32)))
    kind = choose(*["unet"] * 3, *["nested"] * 3, "fcn", "segnet")
    if kind == "unet":
        model: Network = UNet(1, 2, 2, depth, choose("same", "valid"), norm, **parts)
    elif kind == "nested":
        links, output = choose("none", "short", "dense"), choose("deepest", "average", 1)
        model = NestedUNet(1, 2, 2, depth, links, norm, output=output, **parts)
    elif kind == "fcn":
        model = FCN(1, 2, choose("vgg16", "alexnet"), 1, choose(8, 16, 32), norm)
    else:
        model = SegNet(1, 2, 1, norm)
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.is_floating_point():
            last = name.rsplit(".", 1)[1]
            with torch.no_grad():
                if last == "running_var" or (last == "weight" and values.ndim == 1):
                    values.uniform_(0.5, 2)
                elif values.ndim == 1:  # biases and means
                    values.normal_(0, 0.3)
                else:
                    values.add_(torch.randn_like(values) * values.abs().mean())
    return model.eval().double()


def compare(model: nn.Module, overlap: int, side: int, turned: bool) -> float:
    """The largest difference of probabilities in tiles and at once, in float64 but for the result."""
    step = tile_stride(model)
    rng, tile = np.random.default_rng(0), 2 * overlap + step
    image = rng.normal(size=(tile + side, step + 5, 1))
    image = image.swapaxes(0, 1) if turned else image
    tiled = Tiling(model, lambda i: i, tile, overlap).whole(image)
    with torch.no_grad():
        logits = same_size_logits(model, torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    return float(np.abs(tiled - probabilities(logits)[0].numpy()).max())


@given(networks(), st.integers(1, 140), st.booleans())
@settings(max_examples=25, deadline=None)
def test_tiles_equal_the_whole_image_whatever_the_network(model, side, turned):
    _, overlap, everywhere = needed_overlap(model)
    assert not everywhere
    # the result is float32; float64 within, so that it isn't rounding in convolutions of other sizes that differs
    assert compare(model, overlap, side, turned) <= 6e-8


@pytest.mark.slow
@given(networks(), st.integers(1, 140), st.booleans())
@settings(max_examples=400, deadline=None)
def test_tiles_equal_the_whole_image_whatever_many_networks(model, side, turned):
    _, overlap, _ = needed_overlap(model)
    assert compare(model, overlap, side, turned) <= 6e-8


@pytest.mark.parametrize("links", ["none", "short", "dense", "unet", "valid"])
def test_a_grid_step_less_than_the_stated_context_leaves_a_seam(links):
    torch.manual_seed(0)
    if links in ("unet", "valid"):
        padding = "valid" if links == "valid" else "same"
        model: Network = UNet(1, 1, 1, 4, padding, "none", down="average", up="bilinear")
    else:
        model = NestedUNet(1, 1, 1, 4, links, "none", down="average", up="bilinear")
    # nothing cancels and nothing is cut off: all that is seen counts
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(1 / values[0].numel() if name.endswith("weight") else 0)
    model = model.double().eval()
    _, overlap, _ = needed_overlap(model)
    assert overlap == 128  # 110 and 113 px
    assert compare(model, overlap, 140, False) <= 6e-8

    # a float32 probability can't tell the farthest pixels from none; logits in float64 can
    field = model.receptive_field(Extent(0, 16))
    image = torch.zeros(1, 1, 544, 16, dtype=torch.float64)
    image[:, :, [272 + field.low, 272 + field.high - 1]] = 1

    def gap(context: int) -> float:
        with torch.no_grad():
            whole = same_size_logits(model, image)[:, :, 272:288]
            part = same_size_logits(model, image[:, :, 272 - context : 288 + context])
        return float((whole - part[:, :, context : context + 16]).abs().max())

    assert gap(128) == 0 < gap(96)


@pytest.mark.slow  # two minutes
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/isbi2012 is absent")
@pytest.mark.parametrize("model", ["unetpp", "unet"])
def test_tiles_of_trained_networks_equal_whole_real_sections(tmp_path, model):
    words = [
        "experiment=isbi2012", f"data.root={REAL}", f"model={model}", "model.width=8", "loader.crop=128",
        "loader.repeats=4", "trainer.max_epochs=8", "trainer.check_val_every_n_epoch=8", "logger=none",
        "trainer.accelerator=cpu", "panels=0", f"outputs={tmp_path}",
    ]  # fmt: skip
    train(compose_checked("train", words))
    sections = np.concatenate(
        [
            tifffile.imread(REAL / "train-volume.tif")[24:],
            tifffile.imread(REAL / "test-volume.tif")[:4],
        ]
    )  # 2.6 million px that it did not train on
    at_once = load_predictor(tmp_path / "latest", tile=512, accelerator="cpu")
    tiled = load_predictor(tmp_path / "latest", tile=256, accelerator="cpu")
    short = load_predictor(tmp_path / "latest", tile=256, overlap=64, accelerator="cpu")
    assert tiled.overlap == 96
    largest, doubt, seams = 0.0, 0.0, 0.0
    for section in sections[..., None]:
        whole, tiles = at_once.probabilities(section), tiled.probabilities(section)
        largest = max(largest, float(np.abs(tiles - whole).max()))
        other = classes_from_probabilities(tiles, 0.5) != classes_from_probabilities(whole, 0.5)
        doubt = max(doubt, float(np.abs(whole[1, other] - 0.5).max(initial=0)))
        seams = max(seams, float(np.abs(short.probabilities(section) - whole).max()))
    # rounding: a convolution of another size adds up in another order; a label is another one where it is a tie
    assert largest <= 1e-5 and doubt <= 1e-5
    assert seams > 1e-3  # 64 px, which noise says are enough, are not

    # in float64 nothing is left of it, and no label is another one
    intensity = tiled.run.intensity
    exact = [
        Tiling(tiled.model.double(), lambda i: intensity.normalised(intensity.scaled(i)).astype(np.float64), tile, 96)
        for tile in (256, 512)
    ]  # fmt: skip
    for section in sections[::5, ..., None]:
        tiles, whole = (tiling.whole(section) for tiling in exact)
        assert np.abs(tiles - whole).max() <= 6e-8
        assert (
            classes_from_probabilities(tiles, 0.5) == classes_from_probabilities(whole, 0.5)
        ).all()
