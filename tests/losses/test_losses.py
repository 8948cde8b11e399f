"""Loss x kind of logits x boundary condition, each against a float64 reference from the paper's formula."""

import itertools
import math
import zlib
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.ndimage import grey_dilation, grey_erosion
from sklearn.metrics import jaccard_score

import seg.losses as L
from seg.labels import IGNORE
from seg.logits import invalid_labels
from seg.losses import targets
from seg.losses.class_weights import fill_auto_weights

CONF = Path(__file__).parents[2] / "conf" / "loss"
KINDS = {"one": 1, "two": 2, "many": 4, "labels": 3}  # K; the last: overlapping
LARGE = "256x256 half"
SITUATIONS = [
    "plain", "ignored pixels", "all ignored", "empty mask", "full mask", "class absent", "one pixel",
    LARGE, "logits of 1e4",
]  # fmt: skip
W = np.array([0.5, 2.0, 1.5, 0.25])  # of classes or labels; all weights here are exact in float32
POS = np.array([3.0, 0.5, 2.0])  # of labels; two classes take the first


Row = namedtuple("Row", "make wanted")  # kind -> loss; what is seen -> its reference


def added(*terms: tuple[str, float]) -> Row:
    """Sum of rows, weighed."""

    def make(kind):
        return L.Sum({name: {"weight": w, "loss": ROWS[name].make(kind)} for name, w in terms})

    return Row(make, lambda s: sum(w * ROWS[name].wanted(s) for name, w in terms))


# fmt: off
ROWS = {  # name in conf/loss, then .variant
    "bce": Row(lambda kind: L.CrossEntropy(), lambda s: pixels(s)),
    "cross_entropy": Row(lambda kind: L.CrossEntropy(of(kind)), lambda s: pixels(s, lambda c, g: W[c])),
    "weighted_bce": Row(
        lambda kind: L.WeightedBCE(POS.tolist() if kind == "labels" else POS[0]),
        lambda s: pixels(s, lambda c, g: np.where(g, POS[c] if s.overlapping else POS[0], 1))),
    "focal": Row(lambda kind: L.Focal(), lambda s: pixels(s, hard=lambda q: q**2)),
    "focal.alpha": Row(
        lambda kind: L.Focal(1.5, of(kind) if kind == "many" else 0.25),
        lambda s: pixels(s, lambda c, g: W[c] if s.p.shape[1] == 4 else np.where(g, 0.25, 0.75), lambda q: q**1.5)),
    "focal.list": Row(lambda kind: L.Focal(0.5, of(kind)), lambda s: pixels(s, lambda c, g: W[c], lambda q: q**0.5)),
    "dice": Row(lambda kind: L.Dice(), lambda s: by_class(s, dice)),
    "dice.squared": Row(lambda kind: L.Dice(0.25, squared=True), lambda s: by_class(
        s, lambda p, g: 1 - (2 * (p * g).sum() + 0.25) / ((p * p).sum() + (g * g).sum() + 0.25))),
    "iou": Row(lambda kind: L.Jaccard(2.0), lambda s: by_class(
        s, lambda p, g: 1 - ((p * g).sum() + 2) / (p.sum() + g.sum() - (p * g).sum() + 2))),
    "tversky": Row(lambda kind: L.Tversky(), lambda s: by_class(s, lambda p, g: 1 - ((p * g).sum() + 1) / (
        (p * g).sum() + 0.3 * (p * (1 - g)).sum() + 0.7 * ((1 - p) * g).sum() + 1))),
    "lovasz": Row(lambda kind: L.Lovasz(), lambda s: by_class(s, lovasz)),
    "lovasz.present_only": Row(lambda kind: L.Lovasz(present_only=True), lambda s: by_class(s, lovasz, only_present=True)),
    "cldice": Row(lambda kind: L.ClDice(), lambda s: cldice(s, 0.5, 3, 1.0)),
    "cldice.chosen": Row(lambda kind: L.ClDice(0.75, 1, 0.5, [0]), lambda s: cldice(s, 0.75, 1, 0.5, [0])),
    "weight_map": Row(lambda kind: L.WeightMap(), lambda s: weight_map(s, 10, 5, (1,), np.ones(4))),
    "weight_map.weights": Row(
        lambda kind: L.WeightMap(4.0, 2.0, of(kind), [1, 2] if kind == "many" else [1]),
        lambda s: weight_map(s, 4, 2, (1, 2) if s.p.shape[1] == 4 else (1,), W)),
    "bce_dice": added(("bce", 0.5), ("dice", 1.0)),
    "dice_focal": added(("dice", 1.0), ("focal", 1.0)),
    "sum": added(("cross_entropy", 0.5), ("lovasz", 2.0), ("weight_map", 0.25)),
}
# fmt: on
PAIRS = [pair for pair in itertools.product(ROWS, KINDS) if pair != ("weighted_bce", "many")]
every_pair = pytest.mark.parametrize(("row", "kind"), PAIRS)


def of(kind: str) -> list[float]:
    return W[: 2 if kind == "one" else KINDS[kind]].tolist()


# ---- references: float64 numpy, no line shared with seg.losses


# probabilities, their logarithms, one-hot truth, what counts: (B, C, H, W); the mask
Seen = namedtuple("Seen", "log_p log_not_p p g valid mask overlapping")


def see(logits: torch.Tensor, mask: torch.Tensor) -> Seen:
    z, m = logits.detach().double().numpy(), mask.numpy()
    if m.ndim == 4:
        log_p, log_not_p = -np.logaddexp(0, -z), -np.logaddexp(0, z)
        return Seen(log_p, log_not_p, np.exp(log_p), 1.0 * (m == 1), m != 255, m, True)
    if z.shape[1] == 1:  # sigmoid(z) = e^z / (e^0 + e^z)
        z = np.concatenate([0 * z, z], axis=1)
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    g = 1.0 * (m[:, None] == np.arange(z.shape[1])[:, None, None])
    valid = np.broadcast_to(m[:, None] != 255, z.shape)
    return Seen(log_p, log_p, np.exp(log_p), g, valid, m, False)


def pixels(s: Seen, weight=lambda c, g: 1.0, hard=lambda q: 1.0) -> float:
    """Mean of weight(class or label, whether there) hard(1 - p) (-log p) of what is true."""
    keep = s.valid & (s.overlapping | (s.g == 1))  # one entry a pixel, or one a label
    if not keep.any():
        return 0.0
    c = np.broadcast_to(np.arange(s.p.shape[1])[:, None, None], s.p.shape)[keep]
    there = s.g[keep] == 1 if s.overlapping else c == 1
    log_p = np.where(there, s.log_p[keep], s.log_not_p[keep])
    return float(np.mean(-weight(c, there) * hard(-np.expm1(log_p)) * log_p))


def by_class(s: Seen, cost, only_present: bool = False) -> float:
    costs = []
    for c in range(s.p.shape[1]):
        keep = s.valid[:, c]
        p, g = s.p[:, c][keep], s.g[:, c][keep]
        if g.any() or not only_present:
            costs.append(cost(p, g))
    return float(np.mean(costs)) if costs else 0.0


def dice(p, g, smooth=1.0):
    return 1 - (2 * (p * g).sum() + smooth) / (p.sum() + g.sum() + smooth)


def lovasz(p, g):
    """Sum of e_i (J(M_i) - J(M_i-1)): J(M) = |M| / |G u M| of the set M of the i worst mistakes; J({}) = 0."""
    error = np.abs(g - p)
    worst_first = np.argsort(-error)
    set_size = np.arange(1, len(error) + 1)
    union = g.sum() + np.cumsum(1 - g[worst_first])
    jaccard_loss = np.concatenate([[0], set_size / np.maximum(union, 1)])
    return (error[worst_first] * np.diff(jaccard_loss)).sum()


def cldice(s: Seen, alpha, k, smooth, classes=None) -> float:
    costs = []
    for c in classes or range(0 if s.overlapping else 1, s.p.shape[1]):
        v = s.valid[:, c]
        p, g = np.where(v, s.p[:, c], 0), np.where(v, s.g[:, c], 0)
        skel_p, skel_g = skeleton(p, v, k), skeleton(g, v, k)
        precision = ((skel_p * g).sum() + smooth) / (skel_p.sum() + smooth)
        recall = ((skel_g * p).sum() + smooth) / (skel_g.sum() + smooth)
        costs.append(1 - 2 * precision * recall / (precision + recall))
    overlap = by_class(s, lambda p, g: dice(p, g, smooth))
    return float((1 - alpha) * overlap + alpha * np.mean(costs))


def skeleton(image, valid, k):
    """Shit et al., algorithm 1, of (B, H, W); borders and ignored pixels are in no neighbourhood."""

    def pool(x, filter, size, beyond):
        x = filter(np.where(valid, x, beyond), size=size, mode="constant", cval=beyond)
        return np.where(valid, x, 0)

    def minpool(x):
        return np.minimum(*(pool(x, grey_erosion, n, np.inf) for n in ((1, 3, 1), (1, 1, 3))))

    def maxpool(x):
        return pool(x, grey_dilation, (1, 3, 3), -np.inf)

    bones = np.maximum(image - maxpool(minpool(image)), 0)
    for _ in range(k):
        image = minpool(image)
        bones = bones + (1 - bones) * np.maximum(image - maxpool(minpool(image)), 0)
    return bones


def weight_map(s: Seen, w0, sigma, values, class_weights) -> float:
    planes = s.mask.reshape(-1, *s.mask.shape[-2:])
    term = np.stack([gaps(x.tobytes(), x.shape, w0, sigma, values) for x in planes])
    term = np.broadcast_to(term.reshape(len(s.mask), -1, *term.shape[1:]), s.p.shape)
    keep = s.valid & (s.overlapping | (s.g == 1))
    return pixels(s, lambda c, g: class_weights[c] + term[keep])


@cache
def gaps(raw: bytes, shape, w0, sigma, values) -> np.ndarray:
    plane = np.frombuffer(raw, np.int64).reshape(shape)
    to_do = {tuple(map(int, yx)) for yx in np.argwhere(np.isin(plane, values))}
    outside = np.array([yx for yx in np.ndindex(shape) if yx not in to_do])
    distances = []  # of each pixel outside of cells to each cell
    while to_do:
        cell, edge = [], [to_do.pop()]
        while edge:
            y, x = edge.pop()
            cell.append((y, x))
            for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if beside in to_do and plane[beside] == plane[y, x]:
                    to_do.remove(beside)
                    edge.append(beside)
        if len(outside):
            distances.append(np.min([np.hypot(*(outside - yx).T) for yx in cell], axis=0))
    term = np.zeros(shape)
    if len(distances) > 1:
        d1, d2 = np.sort(distances, axis=0)[:2]
        term[tuple(outside.T)] = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return term


# ---- the cells


@cache
def cell(kind: str, situation: str) -> tuple[torch.Tensor, torch.Tensor, Seen]:
    """Logits, mask, and what a reference sees of them; not to be changed."""
    random = np.random.default_rng(zlib.crc32(f"{kind} {situation}".encode()))
    k, classes = KINDS[kind], 2 if kind in ("one", "labels") else KINDS[kind]
    b, h, w = {"one pixel": (1, 1, 1), LARGE: (1, 256, 256)}.get(situation, (2, 8, 10))
    planes = (b, k) if kind == "labels" else (b,)
    logits = torch.from_numpy(random.normal(0, 2, (b, k, h, w))).float()
    mask = random.integers(0, classes, (*planes, (h + 1) // 2, (w + 1) // 2))
    mask = mask.repeat(2, -2).repeat(2, -1)[..., :h, :w]  # regions of 2 x 2 px
    if situation == "ignored pixels":
        mask[random.random(mask.shape) < 0.3] = IGNORE
    elif situation in ("all ignored", "empty mask", "full mask"):
        mask[:] = {"all": IGNORE, "empty": 0, "full": 1}[situation.split()[0]]
    elif situation == "class absent" and kind == "labels":
        mask[:, -1] = 0
    elif situation == "class absent":
        mask[mask == 1] = 0
        mask[0, 0] = IGNORE
    elif situation == LARGE:  # five cells, near and far, a ribbon, ignored pixels
        logits, mask[:] = logits.half(), 0
        for y, x in ((0, 0), (3, 6), (150, 150), (154, 154), (240, 90)):
            mask[..., y : y + 4, x : x + 4] = 1
        mask[..., 100:110, :], mask[..., 200, :] = classes - 1 if classes > 2 else 0, IGNORE
    elif situation == "logits of 1e4":
        logits = logits.sign() * 1e4
    mask = torch.from_numpy(mask)
    return logits, mask, see(logits, mask)


def run(loss, logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient; the mask stays as it is."""
    before, logits = mask.clone(), logits.detach().clone().requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert torch.equal(mask, before)
    return value.detach(), logits.grad


# ---- the claims


def test_each_file_of_conf_loss_has_a_row_of_its_class():
    found = {path.stem: OmegaConf.load(path)._target_ for path in CONF.glob("*.yaml")}
    rows = {n.split(".")[0]: f"seg.losses.{type(r.make('two')).__name__}" for n, r in ROWS.items()}
    assert rows == found


@every_pair
def test_every_cell_is_finite_not_negative_and_equals_the_reference(row, kind):
    for situation in SITUATIONS:
        logits, mask, seen = cell(kind, situation)
        wanted = ROWS[row].wanted(seen)
        for dtype, close in ((logits.dtype, 2e-5), (torch.float64, 1e-7)):
            value, gradient = run(ROWS[row].make(kind), logits.to(dtype), mask)
            assert value.isfinite() and value >= 0 and gradient.isfinite().all(), situation
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert float(value) == pytest.approx(wanted, rel=close, abs=close / 10), situation
            if situation == "all ignored":
                assert value == 0 and not gradient.any()
            if situation == LARGE:
                break  # float64 adds time only


@every_pair
def test_logits_of_ignored_pixels_change_neither_value_nor_gradient(row, kind):
    logits, mask, _ = cell(kind, "ignored pixels")
    ignored = (mask if kind == "labels" else mask.unsqueeze(1).expand_as(logits)) == IGNORE
    value, gradient = run(ROWS[row].make(kind), logits, mask)
    assert not gradient[ignored].any() and gradient[~ignored].any()
    for other in (-3 * logits, logits.sign() * 1e4):
        moved = run(ROWS[row].make(kind), other.where(ignored, logits), mask)
        assert torch.equal(moved[0], value) and torch.equal(moved[1], gradient)


@every_pair
def test_ignoring_half_equals_cropping_it_away(row, kind):
    """The weight map too: cells that nobody marked in the ignored half are no cells."""
    logits, mask, _ = cell(kind, "plain")
    for kept in ((..., slice(3), slice(None)), (..., slice(5, None))):
        half = torch.full_like(mask, IGNORE)
        half[kept] = mask[kept]
        value, gradient = run(ROWS[row].make(kind), logits, half)
        cropped = run(ROWS[row].make(kind), logits[kept], mask[kept])
        torch.testing.assert_close(value, cropped[0])
        torch.testing.assert_close(gradient[kept], cropped[1])


@every_pair
def test_the_gradient_is_that_of_the_value(row, kind):
    logits, mask, _ = cell(kind, "ignored pixels")
    logits = logits[:1, :, :4, :5].double().requires_grad_()
    mask = mask[:1, ..., :4, :5].contiguous()
    loss = ROWS[row].make(kind)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("row", ROWS)
def test_two_logits_whose_difference_is_the_one_cost_the_same(row):
    for situation in (s for s in SITUATIONS if s != LARGE):
        one, mask, _ = cell("one", situation)
        one = one.double()
        below = torch.linspace(-3, 3, one.numel(), dtype=one.dtype).reshape(one.shape)
        two = torch.cat([below, below + one], dim=1)
        value, gradient = run(ROWS[row].make("two"), two, mask)
        wanted, slope = run(ROWS[row].make("one"), one, mask)
        torch.testing.assert_close(value, wanted, msg=lambda text, s=situation: f"{s}: {text}")
        if situation != "logits of 1e4":  # there Lovasz has ties, whose order decides its slope
            torch.testing.assert_close(gradient, torch.cat([-slope, slope], dim=1))


@every_pair
def test_half_precision_is_judged_in_float32(row, kind):
    logits, mask, _ = cell(kind, "ignored pixels")
    for half in (logits.half(), logits.bfloat16()):
        value, gradient = run(ROWS[row].make(kind), half, mask)
        assert value.dtype == torch.float32 and gradient.dtype == half.dtype
        assert torch.equal(value, ROWS[row].make(kind)(half.float(), mask))


def marred(kind: str) -> list[tuple[int, torch.Tensor]]:
    """A value that is no class, and a mask with a pixel of it."""
    mask = cell(kind, "ignored pixels")[1]
    at = (torch.arange(mask.numel()) == 23).view(mask.shape)
    return [(v, mask.where(~at, v)) for v in (4 if kind == "many" else 2, -1, 254, 256)]


@every_pair
def test_a_mask_value_that_is_no_class_is_an_error_that_names_it(row, kind):
    for wrong, mask in marred(kind):
        with pytest.raises(ValueError, match=rf"mask holds \[{wrong}\]"):
            ROWS[row].make(kind)(cell(kind, "plain")[0], mask)


@every_pair
def test_on_a_device_such_a_value_makes_the_loss_nan(row, kind, monkeypatch):
    """With a device's check, on the CPU: no index may run out of range on the way."""
    late = lambda mask, num_classes: targets.nan_if(invalid_labels(mask, num_classes))  # noqa: E731
    monkeypatch.setattr(targets, "check_or_nan", late)
    for _, mask in marred(kind):
        assert ROWS[row].make(kind)(cell(kind, "plain")[0], mask).isnan()


@every_pair
def test_a_mask_of_another_shape_or_of_floats_is_an_error(row, kind):
    logits, _, _ = cell(kind, "plain")
    message = "logits are .* and the mask" + ("|pos_weight" if row == "weighted_bce" else "")
    b, h, w = 2, 8, 10
    for shape in ((h, w), (b, h, 9), (1, h, w), (b, 9, h, w), (b, 3, h, 1), (b, 1, 3, h, w)):
        with pytest.raises(ValueError, match=message):
            ROWS[row].make(kind)(logits, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="integers"):
        ROWS[row].make(kind)(logits, cell(kind, "plain")[1].float())


def test_what_is_for_two_classes_refuses_more_and_says_what_to_take():
    logits, mask, _ = cell("many", "plain")
    with pytest.raises(ValueError, match="loss=cross_entropy"):
        L.WeightedBCE(2.0)(logits, mask)
    with pytest.raises(ValueError, match="4 classes; give a list"):
        L.Focal(alpha=0.25)(logits, mask)
    with pytest.raises(ValueError, match="class_weights has 3 numbers and the data 4 classes"):
        L.CrossEntropy([1.0, 2.0, 3.0])(logits, mask)


@given(st.integers(0, 10**6), st.sampled_from(PAIRS), st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=100, deadline=None)
def test_any_batch_equals_the_reference(seed, pair, sizes):
    random, (row, kind), (b, h, w) = np.random.default_rng(seed), pair, sizes
    logits = random.normal(0, random.choice([0.1, 3, 30]), (b, KINDS[kind], h, w))
    shape = logits.shape if kind == "labels" else (b, h, w)
    mask = random.integers(0, 2 if kind == "labels" else max(2, KINDS[kind]), shape)
    mask[random.random(shape) < random.choice([0, 0.2, 0.8])] = IGNORE
    logits, mask = torch.from_numpy(logits), torch.from_numpy(mask)
    wanted = ROWS[row].wanted(see(logits, mask))
    assert float(ROWS[row].make(kind)(logits, mask)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


# ---- what other libraries, identities and arithmetic say


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_lovasz_of_certain_answers_is_one_minus_scikit_learn_s_iou(seed, classes):
    found, truth = np.random.default_rng(seed).integers(0, classes, (2, 1, 4, 4))
    logits = 200.0 * F.one_hot(torch.from_numpy(found), classes).permute(0, 3, 1, 2)
    union = np.union1d(found, truth)  # IoU of a class that is in neither is 0 / 0; it costs nothing
    score = jaccard_score(truth.ravel(), found.ravel(), labels=union, average=None)
    wanted = (1 - score).sum() / classes
    assert float(L.Lovasz()(logits, torch.from_numpy(truth))) == pytest.approx(wanted, abs=1e-6)


def test_weighed_cross_entropies_are_torch_s():
    logits, mask, _ = cell("many", "ignored pixels")
    weights = torch.tensor(W).float()
    wanted = F.cross_entropy(logits, mask, weights, ignore_index=255, reduction="sum")
    wanted = wanted / (mask != 255).sum()
    torch.testing.assert_close(L.CrossEntropy(W.tolist())(logits, mask), wanted)
    logits, mask, _ = cell("labels", "plain")
    pos = torch.tensor(POS).float().view(3, 1, 1)
    wanted = F.binary_cross_entropy_with_logits(logits, mask.float(), pos_weight=pos)
    torch.testing.assert_close(L.WeightedBCE(POS.tolist())(logits, mask), wanted)


LN2, HALF = math.log(2), (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("loss", "p", "g", "wanted"),
    [  # a label of four pixels in a row: probabilities and truths
        (L.CrossEntropy(), HALF, (1, 1, 0, 0), LN2),
        (L.Focal(2.0), HALF, (1, 1, 0, 0), 0.25 * LN2),  # (1 - .5)^2 log 2
        (L.Dice(1.0), HALF, (1, 1, 0, 0), 0.4),  # overlap 1, p 2, g 2: 1 - (2 + 1) / (4 + 1)
        (L.Dice(1.0, squared=True), HALF, (1, 1, 0, 0), 0.25),  # p^2 1: 1 - (2 + 1) / (3 + 1)
        (L.Jaccard(1.0), HALF, (1, 1, 0, 0), 0.5),  # 1 - (1 + 1) / (2 + 2 - 1 + 1)
        (L.Sum({"a": {"weight": 2.0, "loss": L.CrossEntropy()}, "b": {"weight": 1.0, "loss": L.Dice()}}), HALF, (1, 1, 0, 0), 2 * LN2 + 0.4),
        (L.CrossEntropy([3.0]), HALF, (1, 0, 0, 255), 3 * LN2),  # w of a label, there or not
        (L.WeightedBCE(3.0), HALF, (1, 0, 0, 255), (3 + 1 + 1) / 3 * LN2),
        (L.Focal(1.0, 0.25), HALF, (1, 0, 0, 0), (0.25 + 3 * 0.75) / 4 * 0.5 * LN2),
        # hit 1.5, invented .5, missed 1.5: 1 - 2.5 / (1.5 + .3 .5 + .7 1.5 + 1)
        (L.Tversky(0.3, 0.7), HALF, (1, 1, 1, 0), 1 - 2.5 / 3.7),
        # mistakes .6 at a true pixel, .3 at a false, .1 at a true; J of 1, 2, 3 mistakes: 1/2, 2/3, 3/3
        (L.Lovasz(), (0.9, 0.4, 0.3, 0.8), (1, 1, 0, 255), 0.6 / 2 + 0.3 / 6 + 0.1 / 3),
        # absent: the largest error
        (L.Lovasz(), (0.9, 0.4, 0.3, 0.8), (0, 0, 0, 255), 0.9),
        # two cells with a gap of 2 px: d1 + d2 = 1 + 2 twice, so w = 1, 1 + e, 1 + e, 1
        (L.WeightMap(10, 5), HALF, (1, 0, 0, 1), LN2 * (4 + 2 * 10 * math.exp(-9 / 50)) / 4),
    ],
)  # fmt: skip
def test_a_hand_worked_value(loss, p, g, wanted):
    value = loss(torch.tensor(p).logit().view(1, 1, 1, 4), torch.tensor(g).view(1, 1, 1, 4))
    assert float(value) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("overlapping", [False, True])
def test_sums_over_images_and_without_the_background_by_hand(overlapping):
    # Two images of four pixels; p of class 1: .8 .2 .6 .4, all right, and .5 everywhere, of which one pixel is true.
    p = torch.tensor([[0.8, 0.2, 0.6, 0.4], [0.5, 0.5, 0.5, 0.5]])
    g = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]])
    logits, mask = torch.logit(p)[:, None, None], g[:, None]
    mask = mask[:, None] if overlapping else mask

    def dice_loss(p, g):
        return 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)

    both = [(p, g)] if overlapping else [(1 - p, 1 - g), (p, g)]
    batch = np.mean([dice_loss(a, b) for a, b in both])
    images = np.mean([dice_loss(a[i], b[i]) for a, b in both for i in range(2)])
    assert float(L.Dice()(logits, mask)) == pytest.approx(batch)
    assert float(L.Dice(per_image=True)(logits, mask)) == pytest.approx(images)
    assert images != pytest.approx(batch, abs=1e-3)
    assert float(L.Tversky(0.5, 0.5, 0.5, per_image=True)(logits, mask)) == pytest.approx(images)
    for loss in (
        L.Dice(foreground_only=True),
        L.Jaccard(foreground_only=True),
        L.Tversky(foreground_only=True),
    ):
        if overlapping:
            with pytest.raises(ValueError, match="labels overlap: none of them is the background"):
                loss(logits, mask)
    if not overlapping:
        assert float(L.Dice(foreground_only=True)(logits, mask)) == pytest.approx(
            float(dice_loss(p, g))
        )
        jaccard = 1 - ((p * g).sum() + 1) / (p.sum() + g.sum() - (p * g).sum() + 1)
        assert float(L.Jaccard(foreground_only=True)(logits, mask)) == pytest.approx(float(jaccard))
        # One image at a time gives the loss per image, whatever the batch.
        each = [float(L.Dice()(logits[i : i + 1], mask[i : i + 1])) for i in range(2)]
        assert np.mean(each) == pytest.approx(images)


def test_cldice_of_a_line_with_a_gap_by_hand():
    truth = torch.zeros(1, 1, 3, 5, dtype=torch.int64)
    truth[..., 1, :] = 1  # one pixel thin: its own skeleton, as is the answer's
    found = truth.clone()
    found[..., 1, 2] = 0
    # precision (4 + 1) / (4 + 1), recall (4 + 1) / (5 + 1): 1 - 2 (5 / 6) / (11 / 6) = 1 / 11
    value = L.ClDice(alpha=1.0)((found - 0.5) * 100, truth)
    assert float(value) == pytest.approx(1 / 11)
    # Dice 1 - (2 4 + 1) / (4 + 5 + 1) = 1 / 10
    value = L.ClDice(alpha=0.25)((found - 0.5) * 100, truth)
    assert float(value) == pytest.approx(0.75 / 10 + 0.25 / 11)


def test_cells_that_touch_at_a_corner_or_differ_in_class_are_two():
    near = 4 * math.exp(-(2**2) / (2 * 2**2))  # 1 px from both, w0 4, sigma 2
    corner = L.WeightMap(4, 2).gaps(np.array([[1, 0], [0, 1]]))
    np.testing.assert_allclose(corner, [[0, near], [near, 0]], rtol=1e-6)
    classes = L.WeightMap(4, 2, cells=[1, 2]).gaps(np.array([[1, 2], [1, 0], [0, 0]]))
    assert classes[1, 1] == pytest.approx(near) and not classes[:2, 0].any() and not classes[0, 1]
    assert not L.WeightMap(4, 2).gaps(np.array([[1, 0, 0]])).any()  # one cell has no neighbour


def test_heads_are_judged_by_their_weights_and_each_term_by_name():
    (a, mask, _), (b, _, _) = cell("one", "ignored pixels"), cell("one", "plain")
    loss, gap = ROWS["sum"].make("one"), torch.full(mask.shape, 7.0)
    value, terms = L.compute_loss(loss, [a, b], mask, [1.0, 3.0], gap)
    for name, weight in (("cross_entropy", 0.5), ("lovasz", 2.0), ("weight_map", 0.25)):
        part, options = loss.losses[name], (gap,) if name == "weight_map" else ()
        wanted = (part(a, mask, *options) + 3 * part(b, mask, *options)) / 4
        torch.testing.assert_close(terms[name], wanted)
        value = value - weight * wanted
    assert value.abs() < 1e-6
    plain = (L.WeightMap()(a, mask, gap) + L.WeightMap()(b, mask, gap)) / 2
    torch.testing.assert_close(L.compute_loss(L.WeightMap(), [a, b], mask, gaps=gap), (plain, {}))
    torch.testing.assert_close(
        L.compute_loss(L.Dice(), [a], mask, [1.0, 3.0])[0], L.Dice()(a, mask)
    )
    with pytest.raises(ValueError):
        L.compute_loss(L.Dice(), [a, b], mask, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("name", "shares", "overlapping", "wanted"),
    [
        # 1 / 1.5, 1 / .9, 1 / .6
        ("class_weights", [0.5, 0.3, 0.2], False, [0.6667, 1.111, 1.667]),
        ("class_weights", [0.5, 0.25], True, [0.6667, 1.333]),  # 2 and 4, over 3
        ("pos_weight", [0.8, 0.2], False, 4.0),
        ("pos_weight", [0.5, 0.25], True, [1.0, 3.0]),
    ],
)
def test_auto_becomes_weights_at_any_depth(name, shares, overlapping, wanted):
    leaf = {"_target_": "x", name: "auto", "smooth": 1.0, "classes": None}
    known = leaf | {name: wanted}
    unused = {"weight": 0.0, "loss": {"pos_weight": "auto"}}  # no error though classes are three
    node = {"terms": {"a": {"weight": 2.0, "loss": leaf}, "b": unused}, "list": [leaf]}
    options = np.array(shares), ["c", "d", "e"][: len(shares)], overlapping
    filled = fill_auto_weights(node, *options)
    assert filled == {"terms": {"a": {"weight": 2.0, "loss": known}}, "list": [known]}
    assert leaf[name] == "auto" and "b" in node["terms"]  # the config stays as it was


def test_auto_says_which_class_is_absent_and_that_pos_weight_is_for_two():
    with pytest.raises(ValueError, match="d has no pixel"):
        fill_auto_weights({"class_weights": "auto"}, np.array([0.5, 0.0, 0.5]), ["c", "d", "e"])
    with pytest.raises(ValueError, match="loss=cross_entropy"):
        fill_auto_weights({"pos_weight": "auto"}, np.array([0.5, 0.3, 0.2]), ["c", "d", "e"])
    kept = {"class_weights": [1.0, 2.0], "alpha": None}
    assert (
        fill_auto_weights(kept, np.array([1.0, 0.0]), ["c", "d"]) == kept
    )  # nothing asked, nothing checked


def test_a_weight_map_in_a_sum_in_a_sum_gets_the_gaps_of_whole_images():
    logits, mask, _ = cell("one", "plain")
    gaps = torch.full(mask.shape, 7.0)
    inner = L.Sum({"map": {"weight": 2.0, "loss": L.WeightMap()}})
    outer = L.Sum({"inner": {"weight": 0.5, "loss": inner}})
    torch.testing.assert_close(outer(logits, mask, gaps), L.WeightMap()(logits, mask, gaps))


@pytest.mark.parametrize("cells", [[7], [], [-1]])
def test_cells_of_no_class_are_an_error(cells):
    logits, mask, _ = cell("one", "plain")
    with pytest.raises(ValueError, match=r"give class indices, 0\.\.1"):
        L.WeightMap(cells=cells)(logits, mask)


NAN = float("nan")


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.WeightedBCE(NAN), lambda: L.CrossEntropy([1.0, NAN]), lambda: L.Focal(NAN),
        lambda: L.Dice(NAN), lambda: L.Tversky(NAN, 1.0), lambda: L.WeightMap(NAN),
        lambda: L.WeightMap(sigma=NAN), lambda: L.ClDice(NAN),
        lambda: L.Sum({"a": {"weight": NAN, "loss": L.Dice()}}),
    ],
)  # fmt: skip
def test_nan_is_no_setting(make):
    with pytest.raises(ValueError):
        make()
