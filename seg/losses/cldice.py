"""Centre-line Dice (clDice): a gap in a thin structure costs more than a wrong width."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seg.losses.dice import Dice
from seg.losses.targets import has_label_planes, probabilities_and_one_hot
from seg.ranges import check_ranges

MAX_EROSIONS = 1000  # erosions; each keeps several copies of the batch for its gradient


class ClDice(nn.Module):
    """Soft Dice plus clDice: (1 - alpha) Dice + alpha (1 - 2 Tprec Tsens / (Tprec + Tsens)).

    Tprec = (sum skel(p) g + smooth) / (sum skel(p) + smooth) and Tsens = (sum skel(g) p + smooth) /
    (sum skel(g) + smooth), with soft skeletons. Shit et al. 2021, arXiv:2003.07311, eq. 1 and 2, algorithms
    1 and 2. With alpha = 1 a full and an empty prediction cost the same, because neither has a skeleton.

    Args:
        alpha: share of clDice in 0..1; up to 0.5 in the paper.
        iterations: number of erosions; at least half the width of the widest structure, px.
        smooth: above 0; keeps the fractions defined where a class is absent.
        classes: indices of the thin classes or labels; None: all but class 0, or all labels.

    Raises:
        ValueError: if an argument is out of range; from ``forward``, if an index in classes is too high.
    """

    @check_ranges
    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        iterations: Annotated[int, Field(ge=1, le=MAX_EROSIONS)] = 3,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        classes: list[Annotated[int, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.iterations, self.smooth, self.classes = alpha, iterations, smooth, classes
        self.dice = Dice(smooth)

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        p_BCHW, g_BCHW, valid = probabilities_and_one_hot(logits_BKHW, mask)
        # Probabilities and truth of the thin classes.
        default = range(0 if has_label_planes(mask) else 1, p_BCHW.shape[1])
        thin = list(default) if self.classes is None else self.classes
        if not thin or min(thin) < 0 or max(thin) >= p_BCHW.shape[1]:
            raise ValueError(f"classes is {thin}; class indices are 0..{p_BCHW.shape[1] - 1}")
        p, g = p_BCHW[:, thin], g_BCHW[:, thin]
        valid = valid[:, thin] if has_label_planes(mask) else valid
        # Eq. 1: topology precision and sensitivity, on soft skeletons.
        skel_p, skel_g = (soft_skeleton(x, valid, self.iterations) for x in (p, g))
        precision_C = self.share(skel_p * g, skel_p)
        recall_C = self.share(skel_g * p, skel_g)
        # Eq. 2, mixed with soft Dice by alpha.
        lines = 1 - (2 * precision_C * recall_C / (precision_C + recall_C)).mean()
        return (1 - self.alpha) * self.dice(logits_BKHW, mask) + self.alpha * lines

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return the smoothed fraction (C,) of two sums over the pixels of the batch."""
        return (part.sum((0, 2, 3)) + self.smooth) / (whole.sum((0, 2, 3)) + self.smooth)


def soft_skeleton(x: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """Return the soft skeleton of x: what an opening removes, summed over 0, 1, ... iterations erosions.

    Ignored pixels are treated as the outside of the image: they change no neighbouring pixel.

    Shape:
        x (B, C, H, W) in 0..1, valid (B, 1 or C, H, W) bool -> (B, C, H, W).
    """
    # Algorithm 1: what each erosion's opening removes, if no earlier one did.
    lines = torch.relu(x - soft_open(x, valid))
    for _ in range(iterations):
        x = soft_erode(x, valid)
        more = torch.relu(x - soft_open(x, valid))
        lines = lines + torch.relu(more - lines * more)
    return lines * valid


def soft_erode(x: Tensor, valid: Tensor) -> Tensor:
    """Soft erosion: the minimum over a pixel and its four neighbours."""
    negative = -x.where(valid, 1)
    rows = F.max_pool2d(negative, (3, 1), 1, (1, 0))
    columns = F.max_pool2d(negative, (1, 3), 1, (0, 1))
    return -torch.maximum(rows, columns)


def soft_open(x: Tensor, valid: Tensor) -> Tensor:
    """Soft opening: an erosion, then the maximum over 3 x 3 px."""
    return F.max_pool2d(soft_erode(x, valid).where(valid, 0), 3, 1, 1)
