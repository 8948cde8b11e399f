"""Tiled prediction against the whole image at once."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seg.inference.tiling import Tiling, spans
from seg.logits import probabilities
from seg.models import UNet
from seg.models.contract import full_logits, mirrored


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([(96, 32), (64, 0), (160, 64)]))
@settings(max_examples=60, deadline=None)
def test_kept_parts_cover_each_pixel_once_and_start_on_the_grid(height, width, sizes):
    covered = np.zeros((height, width), int)
    both = [[*spans(side, *sizes)] for side in (height, width)]
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
        whole = probabilities(full_logits(model, torch.from_numpy(image - 0.5)[None, ..., 0][None]))
    np.testing.assert_allclose(tiled, whole[0].numpy(), atol=1e-5)
    # the paper's overlap-tile by hand: pad the mirrored context, and run the plain network
    side, context = model.input_side(200), model.context
    padded = np.pad(image[:, :200, 0], ((context, side - 200 - context),) * 2, mode="reflect")
    with torch.no_grad():
        by_hand = model(torch.from_numpy(padded - 0.5)[None, None])[..., :200, :200]
        ours = full_logits(model, torch.from_numpy(image[:, :200, 0] - 0.5)[None, None])
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
    assert mirrored(side, before, after).tolist() == wanted.tolist()
