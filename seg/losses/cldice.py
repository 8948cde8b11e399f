"""clDice: whether the centre lines of thin structures are met, so that gaps cost more than width."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seg.losses.dice import PIXELS, Dice, check_smooth
from seg.losses.targets import overlaps, probabilities_and_truth

MOST = 1000  # erosions, each of which keeps several copies of the batch for its gradient


class ClDice(nn.Module):
    """(1 - alpha) Dice + alpha (1 - 2 Tprec Tsens / (Tprec + Tsens)) of thin structures.

    Tprec = sum skel(p) g / sum skel(p), Tsens = sum skel(g) p / sum skel(g), smooth added to both sides of
    each; soft skeletons. Shit et al. 2021, arXiv:2003.07311, eq. 1 and 2, algorithms 1 and 2. Alone
    (alpha = 1) it can't tell a full image from an empty one, which have no skeleton: hence the Dice.

    Args:
        alpha: share of clDice in 0..1; up to 0.5 in the paper.
        iterations: erosions; at least half the width of the widest structure, px.
        smooth: above 0; keeps the fractions defined where nothing is there.
        classes: indices of the thin classes (labels); None: all but class 0, or all labels.
    """

    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        iterations: Annotated[int, Field(ge=1, le=MOST)] = 3,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        classes: list[Annotated[int, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in 0..1")
        if not 1 <= iterations <= MOST:
            raise ValueError(f"iterations is {iterations}; it must be 1 to {MOST}")
        check_smooth(smooth)
        self.alpha, self.iterations, self.smooth, self.classes = alpha, iterations, smooth, classes
        self.dice = Dice(smooth)

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        p_BCHW, g_BCHW, valid = probabilities_and_truth(logits_BKHW, mask)
        every = range(0 if overlaps(mask) else 1, p_BCHW.shape[1])
        thin = list(every) if self.classes is None else self.classes
        if not thin or min(thin) < 0 or max(thin) >= p_BCHW.shape[1]:
            raise ValueError(f"classes is {thin}; the indices are 0..{p_BCHW.shape[1] - 1}")
        p, g = p_BCHW[:, thin], g_BCHW[:, thin]
        valid = valid[:, thin] if overlaps(mask) else valid
        skel_p, skel_g = (skeleton(x, valid, self.iterations) for x in (p, g))
        precision_C = self.share(skel_p * g, skel_p)
        recall_C = self.share(skel_g * p, skel_g)
        lines = 1 - (2 * precision_C * recall_C / (precision_C + recall_C)).mean()
        return (1 - self.alpha) * self.dice(logits_BKHW, mask) + self.alpha * lines

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        return (part.sum(PIXELS) + self.smooth) / (whole.sum(PIXELS) + self.smooth)


def skeleton(x: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """Soft skeleton of x (B, C, H, W) in 0..1: what an opening takes away, after 0, 1, 2 ... erosions.

    Ignored pixels are like the outside of the image: they neither erode nor dilate what lies beside them.
    """
    lines = torch.relu(x - opened(x, valid))
    for _ in range(iterations):
        x = eroded(x, valid)
        more = torch.relu(x - opened(x, valid))
        lines = lines + torch.relu(more - lines * more)
    return lines * valid


def eroded(x: Tensor, valid: Tensor) -> Tensor:
    """The least of a pixel and its four neighbours."""
    negative = -x.where(valid, 1)
    rows = F.max_pool2d(negative, (3, 1), 1, (1, 0))
    columns = F.max_pool2d(negative, (1, 3), 1, (0, 1))
    return -torch.maximum(rows, columns)


def opened(x: Tensor, valid: Tensor) -> Tensor:
    """Eroded, then the largest of each 3 x 3 px."""
    return F.max_pool2d(eroded(x, valid).where(valid, 0), 3, 1, 1)
