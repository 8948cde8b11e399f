"""Pictures: each claim is checked on pixels."""

import numpy as np
import pytest
from PIL import Image

from seg.display.colors import default_colors
from seg.display.layout import stack_pictures
from seg.display.panels import (
    FALSE_NEGATIVE_COLOR,
    FALSE_POSITIVE_COLOR,
    WRONG_COLOR,
    colorize,
    draw_errors,
    draw_overlay,
    draw_panel,
    flatten_labels,
    legend_entries,
    to_rgb,
)
from seg.labels import IGNORE


def noise(*shape, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def is_coloured(picture):
    """(H, W) True where a pixel isn't grey."""
    return np.ptp(picture.astype(int), axis=-1) > 0


def pixels(picture, color):
    """How many pixels of a PIL image have exactly this colour."""
    return int((np.asarray(picture) == color).all(-1).sum())


# to_rgb


def test_8_bit_rgb_is_shown_as_it_is():
    image = noise(20, 30, 3)
    shown = to_rgb(image)
    np.testing.assert_array_equal(shown, image)
    assert not np.shares_memory(shown, image)


@pytest.mark.parametrize(
    "image",
    [
        np.linspace(0, 65535, 10_000).reshape(100, 100, 1).astype(np.uint16),
        np.linspace(-3, 5, 10_000).reshape(100, 100, 1).astype(np.float32),
        np.linspace(100, 140, 10_000).reshape(100, 100),
    ],
    ids=["uint16", "float", "no channel axis"],
)
def test_grey_of_any_range_is_stretched_from_black_to_white(image):
    shown = to_rgb(image)
    assert shown.shape == (100, 100, 3) and shown.dtype == np.uint8
    assert not is_coloured(shown).any()
    assert shown.min() == 0 and shown.max() == 255
    assert abs(int(shown[50, 0, 0]) - 128) <= 1  # the middle of the ramp
    assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()


def test_hot_pixels_do_not_darken_the_picture():
    image = noise(100, 100, 1, dtype=np.uint16, high=1000)
    image[0, 0] = 65535
    assert 120 < to_rgb(image).mean() < 135


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_a_constant_image_is_black_without_a_warning(channels, value):
    shown = to_rgb(np.full((8, 9, channels), value, np.float32))
    assert shown.shape == (8, 9, 3) and shown.max() == 0


def test_two_channels_are_green_and_magenta():
    image = np.zeros((2, 2, 2), np.uint16)
    image[0, 0, 0], image[1, 1, 1] = 500, 60000
    shown = to_rgb(image)
    assert shown[0, 0].tolist() == [0, 255, 0] and shown[1, 1].tolist() == [255, 0, 255]
    assert shown[0, 1].tolist() == [0, 0, 0]


def test_five_channels_show_the_first_three_each_stretched():
    image = np.zeros((2, 2, 5), np.uint16)
    image[0, 0, 0], image[0, 1, 1], image[1, 0, 2], image[1, 1, 3] = 5, 500, 50000, 9
    shown = to_rgb(image).tolist()
    assert shown == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]


# colorize, overlay, errors


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_colorize_puts_exactly_the_class_colours(dtype):
    mask = np.array([[0, 1], [1, 0]], dtype)
    red, blue = (200, 10, 20), (0, 30, 255)
    assert colorize(mask, [red, blue]).tolist() == [[[*red], [*blue]], [[*blue], [*red]]]


def test_ignored_pixels_are_grey_in_the_mask():
    mask = np.full((16, 16), IGNORE, np.uint8)
    mask[0, 0] = 1
    shown = colorize(mask, [(255, 0, 0), (0, 255, 0)])
    assert shown[0, 0].tolist() == [0, 255, 0]
    assert set(np.unique(shown.reshape(-1, 3)[1:])) == {128, 176}
    assert is_coloured(shown).sum() == 1


@pytest.mark.parametrize("value", [2, 254, -1])
def test_a_class_without_a_colour_is_refused_by_its_number(value):
    with pytest.raises(ValueError, match=f"mask holds {value}"):
        colorize(np.array([[0, value]]), default_colors(2))


def test_overlay_tints_inside_and_draws_one_pixel_between_classes():
    image, mask = np.full((6, 6, 3), 100, np.uint8), np.zeros((6, 6), int)
    mask[:, 3:], mask[5] = 1, IGNORE
    shown = draw_overlay(image, mask, [(0, 0, 0), (200, 0, 100)], alpha=0.5)
    assert shown[0, 0].tolist() == [50, 50, 50] and shown[0, 5].tolist() == [150, 50, 100]
    assert (shown[:4] == 255).all(-1).sum(1).tolist() == [1, 1, 1, 1]
    assert (shown[:4, 2] == 255).all()
    assert shown[5, 0].tolist() == [100, 100, 100]  # ignored: the image itself


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_perfect_prediction_has_no_error_pixels(num_classes):
    truth = noise(20, 20, high=num_classes)
    assert not is_coloured(draw_errors(noise(20, 20, 3), truth, truth.astype(np.int64))).any()


def test_a_wrong_pixel_is_marked_exactly_there_in_the_colour_of_its_kind():
    truth = noise(20, 20, high=2)
    truth[3, 4], truth[7, 8] = 0, 1
    prediction = truth.copy()
    prediction[3, 4], prediction[7, 8] = 1, 0
    shown = draw_errors(noise(20, 20, 3), truth, prediction)
    assert np.argwhere(is_coloured(shown)).tolist() == [[3, 4], [7, 8]]
    assert tuple(shown[3, 4]) == FALSE_POSITIVE_COLOR and tuple(shown[7, 8]) == FALSE_NEGATIVE_COLOR


def test_among_many_classes_any_wrong_pixel_is_red():
    truth = np.full((9, 9), 2)
    prediction = truth.copy()
    prediction[1, 2], prediction[5, 6] = 0, 4
    shown = draw_errors(noise(9, 9, 1), truth, prediction)
    assert np.argwhere((shown == WRONG_COLOR).all(-1)).tolist() == [[1, 2], [5, 6]]
    assert is_coloured(shown).sum() == 2


def test_ignored_pixels_are_not_marked_as_errors():
    truth = np.zeros((16, 16), np.uint8)
    truth[:8] = IGNORE
    shown = draw_errors(noise(16, 16, 1), truth, np.ones((16, 16), int))
    assert not is_coloured(shown[:8]).any() and (shown[8:] == FALSE_POSITIVE_COLOR).all()
    assert set(np.unique(shown[:8])) == {128, 176}


# panel, sheet


@pytest.mark.parametrize(
    "shape, cell_width, cell_height",
    [
        ((64, 64, 1), 256, 256),  # times 4
        ((360, 480, 3), 480, 360),
        ((1024, 1024, 1), 512, 512),
        ((2000, 500, 1), 128, 512),  # portrait: the height decides
        ((1, 1, 1), 200, 200),
    ],
)
def test_cells_are_enlarged_or_shrunk_to_a_readable_size(shape, cell_width, cell_height):
    mask = np.ones(shape[:2], np.uint8)
    purple, green = (120, 0, 130), (1, 150, 3)
    shown = draw_panel(noise(*shape), mask, mask, ["off", "on"], [purple, green])
    column = max(cell_width, 200)
    em = max(14, cell_width // 20)
    assert shown.width == 4 * column + 5 * em  # three gaps, two margins
    assert cell_height < shown.height < cell_height + 10 * em
    green_pixels = pixels(shown, green) - (em - 2) ** 2  # the legend's swatch, framed
    assert green_pixels == 2 * cell_width * cell_height  # truth and prediction, no blended edge


def test_a_wrong_pixel_of_a_small_image_is_an_enlarged_square():
    truth = np.zeros((64, 64), np.uint8)
    prediction = truth.copy()
    prediction[10, 20] = 1
    shown = draw_panel(noise(64, 64, 1), truth, prediction, ["a", "b"], default_colors(2))
    assert (
        pixels(shown, FALSE_POSITIVE_COLOR) == 4 * 4 + 12 * 12
    )  # the pixel, and the swatch inside its frame
    assert pixels(shown, FALSE_NEGATIVE_COLOR) == 12 * 12


def test_without_truth_the_row_is_image_prediction_overlay():
    image, mask = noise(64, 64, 3), noise(64, 64, high=2)
    shown = draw_panel(image, None, mask, ["a", "b"], default_colors(2))
    assert shown.width == 3 * 256 + 4 * 14
    assert pixels(shown, FALSE_POSITIVE_COLOR) == pixels(shown, FALSE_NEGATIVE_COLOR) == 0
    first, second, third = (shown.crop((x, 36, x + 256, 292)) for x in (14, 284, 554))
    image, mask = (a.repeat(4, axis=0).repeat(4, axis=1) for a in (image, mask))
    np.testing.assert_array_equal(first, image)
    np.testing.assert_array_equal(second, colorize(mask, default_colors(2)))
    np.testing.assert_array_equal(third, draw_overlay(image, mask, default_colors(2)))


def test_a_legend_of_many_classes_wraps_within_the_panel():
    image, mask = noise(64, 64, 1), noise(64, 64, high=12)
    colors = default_colors(40)
    heights = []
    for n in (12, 40):
        names = [f"a class with a long name {i}" for i in range(n)]
        shown = draw_panel(image, mask, mask, names, colors[:n])
        heights.append(shown.height)
        assert shown.width == 4 * 256 + 5 * 14
        assert all(pixels(shown, color) >= 12 * 12 for color in colors[:n])  # every swatch is there
    assert heights[1] > heights[0]


def test_the_legend_tells_of_ignored_pixels_only_where_there_are_some():
    image, mask = noise(300, 300, 1), np.zeros((300, 300), np.uint8)
    some = mask.copy()
    some[0, 0] = IGNORE
    without = np.asarray(draw_panel(image, mask, mask, ["a", "b"], default_colors(2)))
    having = np.asarray(draw_panel(image, some, mask, ["a", "b"], default_colors(2)))
    assert without.shape == having.shape
    assert (without[350:] != having[350:]).any()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "日本語",
        "\ud800\x00\n\t",
        "a" * 5000,
        "%s {0} \\",
        "e\u0301",
        "🧬" * 99,
        "\u00b5m \u2013 \u00d7",
    ],
)
def test_any_text_can_be_drawn(name):
    image, mask = noise(8, 8, 1), np.zeros((8, 8), int)
    shown = draw_panel(image, mask, mask, [name, name], default_colors(2), name, name)
    assert shown.width == 4 * 200 + 5 * 14 and shown.height < 600


def test_foreign_letters_become_question_marks_and_accents_go():
    image, mask = noise(8, 8, 1), np.zeros((8, 8), int)
    foreign = draw_panel(image, None, mask, ["日", "café \u00b5m"], default_colors(2))
    plain = draw_panel(image, None, mask, ["?", "cafe um"], default_colors(2))
    assert foreign.tobytes() == plain.tobytes()


def test_sizes_and_numbers_that_disagree_are_refused():
    image, mask = noise(8, 8, 1), np.zeros((8, 8), int)
    with pytest.raises(ValueError, match="prediction is"):
        draw_panel(image, mask, mask[:4], ["a", "b"], default_colors(2))
    with pytest.raises(ValueError, match="2 classes but 3 colours"):
        draw_panel(image, mask, mask, ["a", "b"], default_colors(3))
    with pytest.raises(ValueError, match="mask holds 300"):
        draw_panel(image, mask, mask + 300, ["a", "b"], default_colors(2))


def test_a_sheet_stacks_panels_of_any_width_on_white():
    page = stack_pictures([Image.new("RGB", (30, 10), "red"), Image.new("RGB", (50, 20), "blue")])
    assert page.size == (50, 30)
    assert pixels(page, (255, 0, 0)) == 300 and pixels(page, (0, 0, 255)) == 1000
    assert page.getpixel((40, 5)) == (255, 255, 255)


# default_colors


def test_254_default_colours_are_distinct_and_none_is_white_or_the_ignored_grey():
    colors = default_colors(254)
    assert len(set(colors)) == 254
    assert not {(255, 255, 255), (128, 128, 128), (176, 176, 176)} & set(colors)
    assert all(0 <= v <= 255 and isinstance(v, int) for color in colors for v in color)


def test_the_first_colours_stay_when_classes_are_added():
    assert default_colors(0) == []
    assert default_colors(20)[:9] == default_colors(9)


def test_the_first_twenty_colours_are_far_apart():
    rgb = np.array(default_colors(20), float)
    gap = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + 999 * np.eye(20)
    assert gap.min() > 40


def test_more_colours_than_a_mask_can_hold_are_refused():
    with pytest.raises(ValueError, match="255 colours"):
        default_colors(255)


def test_of_overlapping_classes_the_first_lies_on_top():
    mask = np.array([[[1, 0, 0, IGNORE]], [[1, 1, 0, IGNORE]]], np.uint8)
    assert flatten_labels(mask).tolist() == [[1, 2, 0, IGNORE]]
    names, colors = legend_entries(["a", "b"], [(1, 1, 1), (2, 2, 2)], overlapping=True)
    assert names == ["none", "a", "b"] and colors[1:] == [(1, 1, 1), (2, 2, 2)]
    assert flatten_labels(mask[0]).tolist() == mask[0].tolist()
