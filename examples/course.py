# %% [markdown] lang="en"
# # From Dice by hand to a pruned UNet++
#
# FCN, U-Net and UNet++, with the figures of the papers drawn by the code that trains. The images are made by a generator: nothing is downloaded.
# Each section ends with an exercise.
#
# 中文: [course.zh-CN.ipynb](course.zh-CN.ipynb)

# %% [markdown] lang="zh"
# # 从手算 Dice 到剪枝后的 UNet++
#
# FCN、U-Net 与 UNet++，论文中的图都由参与训练的同一份代码画出。图像由生成器产生，无需下载任何数据。
# 每一节以一道练习结束。
#
# English: [course.ipynb](course.ipynb)

# %%
import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

SMOKE = bool(os.environ.get("SEG_SMOKE"))  # small sizes, to see whether everything runs
SIZE, IMAGES, REPEATS, EPOCHS, WIDTH = (64, 4, 1, 1, 2) if SMOKE else (192, 24, 8, 8, 8)
torch.manual_seed(0)
plt.rcParams["image.cmap"] = "gray"


def show(pictures, height=2.8, **options):
    """Draw pictures, title -> array, side by side."""
    _, axes = plt.subplots(
        1, len(pictures), figsize=(height * len(pictures), height), layout="constrained"
    )
    for axis, (title, picture) in zip(np.atleast_1d(axes), pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest", **options)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    plt.show()


# %% [markdown] lang="en"
# ## 1. Scores and losses on sixteen pixels
#
# A truth of 4x4 pixels, and the probabilities of a network. Above 0.5 a pixel is predicted as cell.

# %% [markdown] lang="zh"
# ## 1. 十六个像素上的评分与损失
#
# 一个 4x4 像素的真值，以及网络给出的概率。概率大于 0.5 的像素判为细胞。

# %%
truth = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
p = np.array(
    [[0.1, 0.1, 0.1, 0.1], [0.1, 0.9, 0.6, 0.1], [0.2, 0.8, 0.4, 0.1], [0.1, 0.3, 0.1, 0.7]]
)
found = p > 0.5


def show_numbers(tables, high=1.0):
    """Draw small tables, title -> array, with their numbers."""
    _, axes = plt.subplots(1, len(tables), figsize=(2.6 * len(tables), 2.8), layout="constrained")
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        axis.imshow(table, vmin=0, vmax=high, cmap="Blues")
        for (row, column), value in np.ndenumerate(table):
            dark = value > 0.6 * high
            axis.text(column, row, f"{round(float(value), 2):g}", ha="center", va="center", color="w" if dark else "k")  # fmt: skip
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    plt.show()


show_numbers({"truth": truth, "probability p of cell": p, "prediction": found.astype(int)})

# %% [markdown] lang="en"
# Dice and IoU count true positives (TP), false positives (FP) and false negatives (FN). By hand and by `seg.metrics`, which counts one confusion
# matrix over all images, the numbers are the same.

# %% [markdown] lang="zh"
# Dice 与 IoU 统计真阳性（TP）、假阳性（FP）和假阴性（FN）。手算与 `seg.metrics`（在全部图像上统计一个混淆矩阵）的结果相同。

# %%
from seg.logits import predicted_classes
from seg.metrics.confusion import PixelScores

tp = (found & (truth == 1)).sum()
fp = (found & (truth == 0)).sum()
fn = (~found & (truth == 1)).sum()
by_hand = {
    "dice": 2 * tp / (2 * tp + fp + fn),
    "iou": tp / (tp + fp + fn),
    "precision": tp / (tp + fp),
    "recall": tp / (tp + fn),
}
logits = torch.logit(torch.tensor(p))[None, None]  # (1, 1, 4, 4): one logit for two classes
mask = torch.tensor(truth)[None]  # (1, 4, 4)
scores = PixelScores(["background", "cell"])
scores.update(predicted_classes(logits), mask)
counted = {name: float(scores.compute()[f"{name}/cell"]) for name in by_hand}
pd.testing.assert_series_equal(pd.Series(by_hand), pd.Series(counted))
print(f"TP {tp}, FP {fp}, FN {fn}")
pd.DataFrame({"by hand": by_hand, "seg.metrics": counted})

# %% [markdown] lang="en"
# Counts have no gradient, so networks are trained with losses of the probabilities: binary cross-entropy (BCE), focal loss
# ([Lin et al. 2017](https://arxiv.org/abs/1708.02002), equations 4 and 5) and soft Dice ([Milletari et al. 2016](https://arxiv.org/abs/1606.04797), section 3; here the mean
# of both classes, with 1 added above and below).

# %% [markdown] lang="zh"
# 计数没有梯度，因此训练时使用关于概率的损失：二元交叉熵（BCE）、焦点损失（focal，[Lin 等 2017](https://arxiv.org/abs/1708.02002)，式 4、5）和
# 软 Dice（[Milletari 等 2016](https://arxiv.org/abs/1606.04797)，第 3 节；此处取两类的平均，分子分母各加 1）。

# %%
from seg.losses import CrossEntropy, Dice, Focal

p_true = np.where(truth == 1, p, 1 - p)  # probability of the true class
bce = -np.log(p_true)
focal = (1 - p_true) ** 2 * bce


def soft_dice(p, g):
    return 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)


by_hand = {
    "BCE": bce.mean(),
    "focal, gamma 2": focal.mean(),
    "soft Dice": (soft_dice(p, truth) + soft_dice(1 - p, 1 - truth)) / 2,
}
losses = zip(by_hand, (CrossEntropy(), Focal(gamma=2.0), Dice()), strict=True)
computed = {name: float(loss(logits, mask)) for name, loss in losses}
pd.testing.assert_series_equal(pd.Series(by_hand), pd.Series(computed))
show_numbers({"BCE of each pixel": bce, "focal loss of each pixel": focal}, high=1.3)
pd.DataFrame({"by hand": by_hand, "seg.losses": computed})

# %% [markdown] lang="en"
# BCE also penalises pixels that are clearly right; focal loss reduces their share (figure 1 of Lin et al.).

# %% [markdown] lang="zh"
# 已经明显判对的像素，BCE 仍会惩罚；焦点损失降低了它们的份量（Lin 等，图 1）。

# %%
x = torch.linspace(-5, 5, 201).view(1, 1, 1, -1)  # logits
ones = torch.ones(1, 1, 201, dtype=torch.long)
for gamma in (0, 0.5, 1, 2, 5):
    label = "BCE" if gamma == 0 else f"focal, gamma {gamma}"
    plt.plot(x.sigmoid().flatten(), Focal(gamma=gamma).pixel_values(x, ones).flatten(), label=label)
plt.gcf().set_size_inches(5, 3)
plt.xlabel("probability of the true class")
plt.ylabel("loss of the pixel")
plt.legend(fontsize=8)
plt.show()

# %% [markdown] lang="en"
# **Exercise.** Predict background everywhere (`p = np.full((4, 4), 0.01)`). Which of accuracy, Dice, BCE and soft Dice still look good, and why is
# `bce_dice` the default loss of this project?

# %% [markdown] lang="zh"
# **练习。** 把所有像素都判为背景（`p = np.full((4, 4), 0.01)`）。准确率、Dice、BCE 和软 Dice 中，哪些看上去仍然很好？为什么本项目的默认损失是 `bce_dice`？

# %% [markdown] lang="en"
# ## 2. The data
#
# `Membranes` draws sections in the style of ISBI 2012, the data set of the U-Net paper: membrane is class 0, cell is class 1. Organelles look like membranes.

# %% [markdown] lang="zh"
# ## 2. 数据
#
# `Membranes` 按 ISBI 2012（U-Net 论文所用的数据集）的样式画出切片：膜为类别 0，细胞为类别 1。细胞器看上去很像膜。

# %%
from seg.data import Membranes
from seg.objects import label_components

source = Membranes(size=SIZE, train=IMAGES, val=6, test=6)
image, mask = source.read("train-000")
cells = label_components(mask == 1)
colors = plt.get_cmap("tab20")(np.arange(1 + cells.max()) % 20)
colors[0] = 0
show({"image": image[..., 0], "mask": mask, f"its {cells.max()} cells": colors[cells][..., :3]})
print({split: len(names) for split, names in source.splits.items()}, f"{(mask == 0).mean():.0%} membrane")  # fmt: skip

# %% [markdown] lang="en"
# **Exercise.** Draw an image with `difficulty=1`. Find a stretch of membrane that you would not have drawn without the mask.

# %% [markdown] lang="zh"
# **练习。** 用 `difficulty=1` 画一张图。找出一段没有掩膜你就画不出来的膜。

# %% [markdown] lang="en"
# ## 3. FCN: a classification network applied at every position
#
# [Long, Shelhamer and Darrell 2015](https://arxiv.org/abs/1411.4038). A fully connected layer over 7x7 features is a 7x7 convolution (their figure 2). On a
# larger image the same weights give a map of scores.

# %% [markdown] lang="zh"
# ## 3. FCN：在每个位置上应用的分类网络
#
# [Long、Shelhamer 与 Darrell 2015](https://arxiv.org/abs/1411.4038)。7x7 特征上的全连接层就是一个 7x7 卷积（其图 2）。图像更大时，同样的权重给出一张得分图。

# %%
linear, convolution = torch.nn.Linear(8 * 7 * 7, 5), torch.nn.Conv2d(8, 5, 7)
with torch.no_grad():
    convolution.weight.copy_(linear.weight.view(5, 8, 7, 7))
    convolution.bias.copy_(linear.bias)
features = torch.randn(1, 8, 7, 7)
torch.testing.assert_close(convolution(features).flatten(1), linear(features.flatten(1)))
print("7x7:", tuple(convolution(features).shape), "16x16:", tuple(convolution(torch.randn(1, 8, 16, 16)).shape))  # fmt: skip

# %% [markdown] lang="en"
# The map is coarse: one score for 32x32 px. A transposed convolution enlarges it: each value is multiplied by a kernel and put down at steps of the stride. It starts
# as bilinear interpolation, and may be learned.

# %% [markdown] lang="zh"
# 得分图很粗：每 32x32 像素一个得分。转置卷积将其放大：每个值乘以一个核，按步幅放置并相加。初始时它就是双线性插值，也可以继续学习。

# %%
from seg.models.fcn import bilinear_upsampling

double = bilinear_upsampling(1, 4).requires_grad_(False)
dot, ramp = torch.zeros(1, 1, 5, 5), torch.rand(1, 1, 5, 5)
dot[..., 2, 2] = 1
pictures = {"kernel, stride 4": double.weight[0, 0], "a dot": dot[0, 0], "the dot, enlarged": double(dot)[0, 0],
            "a map": ramp[0, 0], "the map, enlarged": double(ramp)[0, 0]}  # fmt: skip
show(pictures, 2.2)

# %% [markdown] lang="en"
# Figure 3 of the paper: FCN-32s enlarges the coarse scores at once. FCN-16s doubles them and *adds* the scores of pool4, FCN-8s does it once more with pool3. The sizes are
# those of the network in this package.

# %% [markdown] lang="zh"
# 论文图 3：FCN-32s 一步放大粗略的得分。FCN-16s 先放大两倍，再*加上* pool4 的得分；FCN-8s 用 pool3 再做一次。图中的尺寸取自本软件包的网络。

# %%
from seg.models import FCN


def trace(model, size):
    """Return the shape (C, H, W) of each layer's output, by name, in the order in which the layers run."""
    shapes = {}

    def note(name):
        return lambda layer, given, out: shapes.update({name: tuple(out.shape[1:])})

    for name, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(note(name))
    model(torch.empty(1, model_channels(model), size, size))
    return shapes


def model_channels(model):
    return next(part for part in model.modules() if isinstance(part, torch.nn.Conv2d)).in_channels


with torch.device("meta"):  # shapes without numbers
    shapes = trace(FCN(in_channels=1, num_classes=1, width=64, stride=8).eval(), 224)


def box(axis, x, y, title, name, color):
    channels, side, _ = shapes[name]
    text = f"{title}\n{side}x{side}\n{channels} ch."
    axis.text(x, y, text, ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "fc": color})  # fmt: skip


def arrow(axis, start, end, color="k"):
    style = {"arrowstyle": "->", "color": color, "shrinkA": 20, "shrinkB": 20}
    axis.annotate("", end, start, arrowprops=style)


figure, axis = plt.subplots(figsize=(10, 4))
for i in range(5):
    box(axis, 2 * i, 2, f"pool{i + 1}", f"pools.{i}", "#cfe3f5")
    arrow(axis, (2 * i, 2), (2 * i + 2, 2))
box(axis, 10, 2, "fc7", "classifier.2.2", "#cfe3f5")
for i, (x, y) in enumerate([(10, 1), (6, 0), (4, -1)]):
    box(axis, x, y, "scores", f"scores.{i}", "#f7d9b0")
    arrow(axis, (x, 2), (x, y))
for i, y in enumerate([0, -1]):
    box(axis, 8, y, "doubled", f"doubles.{i}", "#cdebc5")
    arrow(axis, (10 if i == 0 else 6, y + 1), (8, y), "#2a7a2a")
    arrow(axis, (8, y), (6 if i == 0 else 4, y), "#b03030")
    axis.text(7 if i == 0 else 6, y + 0.12, "+", color="#b03030", fontsize=14)
box(axis, 1, -1, "FCN-8s logits", "last", "#cdebc5")
arrow(axis, (4, -1), (1, -1), "#2a7a2a")
axis.set(xlim=(-1, 11), ylim=(-1.6, 2.6))
axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# Train them as the paper does, coarse to fine, each from the weights of the one before, with a lower learning rate (a third here, a hundredth in the paper). `seg.api.train` takes the words of
# `python -m seg.train`; the output of trainings is left out of this notebook.

# %% [markdown] lang="zh"
# 像论文那样由粗到细训练，每个网络从前一个的权重开始，学习率更低（此处为三分之一，论文中为百分之一）。`seg.api.train` 接受与 `python -m seg.train` 相同的词；
# 训练过程的输出未保留在本笔记本中。

# %% tags=["quiet"]
from seg.api import train

DATA = {"data.size": SIZE, "data.train": IMAGES}
TRAINING = {**DATA, "loader.crop": min(SIZE, 128), "loader.repeats": REPEATS, "trainer.max_epochs": EPOCHS,
            "model.width": WIDTH, "logger": "none", "trainer": "cpu"}  # fmt: skip
fcn32 = train("model=fcn", name="fcn32s", **TRAINING, **{"model.stride": 32})
FINER = {**TRAINING, "optim.lr": 1e-3}
fcn16 = train("model=fcn", name="fcn16s", init=fcn32, **FINER, **{"model.stride": 16})
fcn8 = train("model=fcn", name="fcn8s", init=fcn16, **FINER, **{"model.stride": 8})

# %% [markdown] lang="en"
# Figure 4 of the paper, coarse to fine: a test image, and the probability of cell.

# %% [markdown] lang="zh"
# 论文图 4，由粗到细：一张测试图像，以及细胞的概率。

# %%
test_image, test_mask = source.read("test-000")
pictures = {"image": test_image[..., 0], "truth": test_mask}
for name, run in {"FCN-32s": fcn32, "FCN-16s": fcn16, "FCN-8s": fcn8}.items():
    title = f"{name}, membrane Dice {run.metrics['test/dice/membrane']:.3f}"
    pictures[title] = run.predict(test_image).probabilities[1]
show(pictures)

# %% [markdown] lang="en"
# **Exercise.** Train FCN-8s with `"model.fixed_upsampling": "none"`, so that the last upsampling is learned, too. Is it better, or only different?

# %% [markdown] lang="zh"
# **练习。** 用 `"model.fixed_upsampling": "none"` 训练 FCN-8s，让最后的上采样也参与学习。结果更好了，还是只是不同？

# %% [markdown] lang="en"
# ## 4. U-Net: a contracting and an expanding path
#
# [Ronneberger, Fischer and Brox 2015](https://arxiv.org/abs/1505.04597). Figure 1 of the paper, drawn from the shapes of `UNet`: 572x572 px in, 388x388 px out, because each 3x3 convolution without padding
# removes a pixel on each side. Numbers: channels above, side below. Arrows: convolution (blue), pooling (red), transposed convolution (green), copied and cropped skip (grey).

# %% [markdown] lang="zh"
# ## 4. U-Net：收缩路径与扩张路径
#
# [Ronneberger、Fischer 与 Brox 2015](https://arxiv.org/abs/1505.04597)。论文图 1，按 `UNet` 的各层尺寸画出：输入 572x572，输出 388x388，因为每个不填充的 3x3 卷积在每边去掉一个像素。
# 数字：上方为通道数，下方为边长。箭头：卷积（蓝）、池化（红）、转置卷积（绿）、复制并裁剪的跳跃连接（灰）。

# %%
from seg.models import UNet

with torch.device("meta"):
    paper = UNet(1, 2, width=64, padding="valid", norm="none", dropout=0.5).eval()
    shapes = trace(paper, 572)
DEPTH = len(paper.pools)
steps = [("image", 0, "blue", (1, 572, 572))]  # name, level, colour of the arrow to it, shape
for level in range(DEPTH + 1):
    if level:
        steps.append((f"pools.{level - 1}", level, "red", shapes[f"pools.{level - 1}"]))
    steps += [(f"down.{level}.{i}", level, "blue", shapes[f"down.{level}.{i}"]) for i in (0, 2)]
for k in range(DEPTH):
    level = DEPTH - 1 - k
    half, side, _ = shapes[f"up.{k}.conv"]
    steps.append((f"up.{k}.conv", level, "green", (2 * half, side, side)))  # with its skip
    steps += [(f"fuse.{k}.{i}", level, "blue", shapes[f"fuse.{k}.{i}"]) for i in (0, 2)]
steps.append(("head", 0, "blue", shapes["head"]))

figure, axis = plt.subplots(figsize=(11, 5.5))
places, x = {}, 0.0
for name, level, color, (channels, side, _) in steps:
    width, height, y = 0.12 + 0.02 * channels**0.5, side / 572, -1.25 * level
    axis.add_patch(plt.Rectangle((x, y - height / 2), width, height, fc="#cfe3f5", ec="k", lw=0.6))
    if name.startswith("up"):  # the left half is the skip
        axis.add_patch(plt.Rectangle((x, y - height / 2), width / 2, height, fc="w", ec="k", lw=0.6))  # fmt: skip
    axis.text(x + width / 2, y + height / 2 + 0.05, channels, ha="center", fontsize=7)
    axis.text(x + width / 2, y - height / 2 - 0.05, side, ha="center", va="top", fontsize=7, rotation=90)  # fmt: skip
    if places:
        (left, before), here = places[list(places)[-1]], (x, y)
        axis.annotate("", here, (left, before), arrowprops={"arrowstyle": "->", "color": color})
    places[name] = (x + width, y)
    if name.startswith("up"):
        start = places[f"down.{level}.2"]
        axis.annotate("", (x, y), start, arrowprops={"arrowstyle": "->", "color": "grey", "ls": "--"})  # fmt: skip
    x += width + 0.35
axis.set(xlim=(-0.2, x), ylim=(-1.25 * DEPTH - 0.6, 0.9))
axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# A skip is not added but *concatenated*: the next convolution sees the channels of both. With valid convolutions it is cropped before.

# %% [markdown] lang="zh"
# 跳跃连接不是相加，而是*拼接*：下一个卷积同时看到两者的通道。使用不填充的卷积时，先裁剪。

# %%
rows = []
for k in range(DEPTH):
    level = DEPTH - 1 - k
    skip, up, after = (shapes[name] for name in (f"down.{level}.2", f"up.{k}.conv", f"fuse.{k}.0"))
    rows.append({"level": level, "skip": skip[0], "its side": skip[1], "cropped to": up[1],
                 "channels from below": up[0], "concatenated": skip[0] + up[0], "after a convolution": after[0]})  # fmt: skip
pd.DataFrame(rows).set_index("level")

# %% [markdown] lang="en"
# **Overlap-tile strategy** (figure 2). To predict the yellow square the network reads the blue one; beyond the image's border the context is mirrored.

# %% [markdown] lang="zh"
# **重叠切块**（图 2）。要预测黄框内的像素，网络需要读取蓝框；超出图像边界的部分用镜像补上。

# %%
valid = UNet(1, 1, width=2, padding="valid")
reads = valid.input_side(SIZE // 2)
keeps = reads - 2 * valid.context
mirrored = np.pad(image[..., 0], valid.context, mode="reflect")
figure, axis = plt.subplots(figsize=(4, 4))
axis.imshow(mirrored)
square = {"fill": False, "lw": 2}
axis.add_patch(plt.Rectangle((0, 0), reads, reads, ec="deepskyblue", **square))
axis.add_patch(plt.Rectangle((valid.context,) * 2, keeps, keeps, ec="yellow", **square))
axis.add_patch(plt.Rectangle((valid.context,) * 2, SIZE, SIZE, ec="w", fill=False, ls=":"))
axis.set_title(f"reads {reads}x{reads}, predicts {keeps}x{keeps}; dotted: the image", fontsize=9)
axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# Padded convolutions need the context as well. The receptive field of this U-Net of depth 2 says how much: tiles with less differ from the whole image along their seams, tiles
# with all of it don't.

# %% [markdown] lang="zh"
# 带填充的卷积同样需要上下文。这个深度为 2 的 U-Net 的感受野说明需要多少：上下文不足时，切块沿接缝与整图不同；足够时则没有差别。

# %%
from seg.inference.tiling import Tiling, needed_overlap

small = UNet(1, 1, width=4, depth=2).eval()
margin, enough, _ = needed_overlap(small)
grey = mirrored[..., None].astype(np.float32) / 255
whole = Tiling(small, np.asarray, tile=1024, overlap=enough).whole(grey)
pictures = {"image": grey[..., 0]}
for overlap in (0, enough):
    tiled = Tiling(small, np.asarray, tile=3 * enough, overlap=overlap).whole(grey)
    gap = np.abs(tiled - whole)[1]
    pictures[f"context {overlap} px: differs by up to {gap.max():.0e}"] = gap > 1e-5
print(
    f"the receptive field reaches {margin} px beyond a tile's kept part; tiles lie on a grid of 32 px"
)
show(pictures)

# %% [markdown] lang="en"
# **Elastic deformation** (section 3.1): a coarse 3x3 grid is displaced at random, with bicubic interpolation in between. Image and mask move together, and the borders are mirrored.

# %% [markdown] lang="zh"
# **弹性形变**（第 3.1 节）：随机移动一个 3x3 粗网格，其间用双三次插值。图像与掩膜一起移动，边界取镜像。

# %%
from seg.data.augment import Augment, CoarseElastic

lines = image.copy()
lines[:: SIZE // 12], lines[:, :: SIZE // 12] = 255, 255
elastic = Augment(CoarseElastic(grid=3, sigma=10.0, p=1.0), crop=None, seed=0)
moved, (moved_mask,) = elastic(image, [mask], epoch=0, index=0)
moved_lines, _ = elastic(lines, [mask], epoch=0, index=0)
show({"image, with lines": lines[..., 0], "deformed": moved_lines[..., 0], "as the network sees it": moved[..., 0],
      "mask": moved_mask})  # fmt: skip

# %% [markdown] lang="en"
# **Weight map** (figure 3 and equation 2): between cells, w(x) = w0 exp(-(d1 + d2)^2 / (2 sigma^2)) with the distances d1 and d2 to the two nearest cells. Narrow gaps cost most.

# %% [markdown] lang="zh"
# **权重图**（图 3 与式 2）：细胞之间 w(x) = w0 exp(-(d1 + d2)^2 / (2 sigma^2))，d1、d2 为到最近两个细胞的距离。越窄的缝，代价越大。

# %%
from seg.losses import WeightMap

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
axes[0].imshow(image[..., 0])
axes[1].imshow(colors[cells][..., :3], interpolation="nearest")
drawn = axes[2].imshow(1 + WeightMap(w0=10, sigma=5).gaps(mask), cmap="jet")
figure.colorbar(drawn, ax=axes[2])
for axis, title in zip(axes, ("image", "cells", "weight, w0 = 10, sigma = 5 px"), strict=True):
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% tags=["quiet"]
unet = train("model=unet", name="unet", **TRAINING)

# %% [markdown] lang="en"
# Figure 4 of the paper shows results as outlines. Here, the U-Net of a few minutes: outlines of the predicted cells, and errors in colour (vermilion: membrane predicted as cell, blue: cell predicted as
# membrane).

# %% [markdown] lang="zh"
# 论文图 4 用轮廓展示结果。这里是只训练了片刻的 U-Net：预测细胞的轮廓，以及彩色的错误（橙红：膜被判为细胞；蓝：细胞被判为膜）。

# %%
from seg.display.panels import draw_contours, draw_errors

predicted = unet.predict(test_image)
outlined = draw_contours(test_image, predicted.mask, predicted.colors)
errors = draw_errors(test_image, test_mask, predicted.mask)
show({"image": test_image[..., 0], "outlines": outlined, "errors": errors})

# %% [markdown] lang="en"
# **Exercise.** Train with `"loss": "weight_map"` and compare outlines and Dice. The membranes become thicker and Dice falls; do fewer cells run together?

# %% [markdown] lang="zh"
# **练习。** 用 `"loss": "weight_map"` 训练，比较轮廓与 Dice。膜变粗了，Dice 下降了；粘在一起的细胞变少了吗？

# %% [markdown] lang="en"
# ## 5. UNet++: U-Nets of all depths in one grid
#
# [Zhou et al. 2018](https://arxiv.org/abs/1807.10165) and [2020](https://arxiv.org/abs/1912.05074). How deep should a U-Net be? UNet++ holds the U-Nets of depth 1 to 4 in one grid: the node X(i, j) lies at level i, j steps along the
# skip. Figure 1a and 1c, drawn from the network's nodes: what is blue is needed by the head of depth d, and is all that is left after pruning to Ld.

# %% [markdown] lang="zh"
# ## 5. UNet++：一张网格中各种深度的 U-Net
#
# [Zhou 等 2018](https://arxiv.org/abs/1807.10165) 与 [2020](https://arxiv.org/abs/1912.05074)。U-Net 该有多深？UNet++ 在一张网格里包含了深度 1 到 4 的 U-Net：节点 X(i, j) 位于第 i 层、沿跳跃连接第 j 步。
# 图 1a 与 1c，按网络的节点画出：蓝色是深度 d 的输出头所需要的，也正是剪枝为 Ld 后留下的全部。

# %%
from seg.models import NestedUNet
from seg.models.unetpp import grid_nodes

grid = NestedUNet(1, 1, width=32, depth=4)


def place(i, j):
    return 2 * j + i, -i


def draw_grid(axis, depth):
    """Draw the nodes and links of the grid; those that the head of a depth needs in blue."""
    needed = set(grid.needed([depth]))
    for i, j in grid_nodes(grid.depth):
        below = [(i - 1, 0)] if j == 0 and i else []
        raised = [(i + 1, j - 1)] if j else []
        skips = grid.same_level(i, j) if j else []
        color = "#1f6fb4" if (i, j) in needed else "#cccccc"
        for node in below + raised + skips:
            bend = "arc3" if node not in skips or j - node[1] == 1 else "arc3,rad=-0.35"
            style = {"arrowstyle": "->", "color": color, "ls": "--" if node in skips else "-", "connectionstyle": bend}  # fmt: skip
            axis.annotate("", place(i, j), place(*node), arrowprops=style | {"shrinkA": 9, "shrinkB": 9})  # fmt: skip
        axis.text(*place(i, j), f"{i},{j}", ha="center", va="center", fontsize=7, color="w",
                  bbox={"boxstyle": "circle", "fc": color, "ec": "none"})  # fmt: skip
    axis.set_title(f"L{depth}", loc="left")
    axis.set(xlim=(-0.8, 8.8), ylim=(-4.6, 1.7))
    axis.axis("off")


figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
for depth, axis in enumerate(axes.flat, start=1):
    draw_grid(axis, depth)
plt.show()

# %% [markdown] lang="en"
# The first skip pathway, as in figure 1b: each node convolves all nodes before it at its level, and the node below, upsampled (Up).

# %% [markdown] lang="zh"
# 第一条跳跃通路，如图 1b：每个节点对同一层之前的所有节点，以及上采样（Up）后的下层节点做卷积。

# %%
for j in range(1, grid.depth + 1):
    inputs = ", ".join(f"X(0,{k})" for _, k in grid.same_level(0, j))
    channels = grid.nodes[f"0_{j}"][0].in_channels
    print(f"X(0,{j}) = H[{inputs}, Up X(1,{j - 1})]    {channels} channels in, 32 out")

# %% [markdown] lang="en"
# **Deep supervision**: in training each X(0, j) has a head with a loss of its own, so that each depth is a network that works alone.

# %% [markdown] lang="zh"
# **深监督**：训练时每个 X(0, j) 都有自己的输出头和损失，因此每个深度都是能单独工作的网络。

# %% tags=["quiet"]
unetpp = train("model=unetpp", name="unetpp", **TRAINING)

# %%
import seg

pictures = {"image": test_image[..., 0]}
for depth in range(1, 5):
    found = seg.load(unetpp.folder, depth=depth).predict(test_image)
    scores = PixelScores(found.classes)
    scores.update(torch.tensor(found.mask)[None].long(), torch.tensor(test_mask)[None].long())
    membrane = float(scores.compute()["dice/membrane"])
    pictures[f"head {depth}, membrane Dice {membrane:.3f}"] = found.probabilities[1]
show(pictures)

# %% [markdown] lang="en"
# **Pruning** measures L1 to L4 on the test split: `python -m seg.prune` times them in turn, and with `depth=2` writes a checkpoint of that depth alone, whose logits equal those of head 2 bit for bit.

# %% [markdown] lang="zh"
# **剪枝**在测试集上衡量 L1 到 L4：`python -m seg.prune` 轮流计时；加上 `depth=2` 则另写一个只含该深度的检查点，其输出与头 2 逐位相同。

# %%
command = [sys.executable, "-m", "seg.prune", f"run={unetpp.folder}", "data.split=test", "depth=2"]
subprocess.run(command, check=True, capture_output=True)
measured = json.loads((unetpp.folder / "prune/prune.json").read_text())["levels"]
levels = pd.DataFrame({
    "membrane Dice": [level["scores"]["dice/membrane"] for level in measured],
    "parameters": [level["parameters"] for level in measured],
    "G multiply-adds": [level["multiply_adds"] / 1e9 for level in measured],
    "ms an image": [1000 * level["seconds"] for level in measured],
}, index=[level["name"] for level in measured])  # fmt: skip
levels.round(3)

# %% [markdown] lang="en"
# Dice against time; the area of a disc is the number of parameters.

# %% [markdown] lang="zh"
# Dice 与时间；圆的面积表示参数个数。

# %%
single = levels.drop(index="average")
area = 1500 * single["parameters"] / single["parameters"].max()
figure, axis = plt.subplots(figsize=(5, 3.2))
axis.scatter(single["ms an image"], single["membrane Dice"], s=area, alpha=0.4)
axis.scatter(single["ms an image"], single["membrane Dice"], s=8, color="k")
for name, row in single.iterrows():
    axis.annotate(name, (row["ms an image"], row["membrane Dice"]), (6, -12), textcoords="offset points")  # fmt: skip
axis.set(xlabel="ms an image", ylabel="membrane Dice")
axis.margins(0.25)
plt.show()

# %% [markdown] lang="en"
# **Exercise.** Train with `"model.deep_supervision": False` and look at the heads again (`seg.prune` refuses: why?). Then with `model=unet_e`: what do the dense links bring?

# %% [markdown] lang="zh"
# **练习。** 用 `"model.deep_supervision": False` 训练，再看各个输出头（`seg.prune` 会拒绝：为什么？）。然后试 `model=unet_e`：密集连接带来了什么？

# %% [markdown] lang="en"
# ## 6. Comparison of the three
#
# The same images and width, one seed; FCN-8s had the steps of its two predecessors in addition. The interval is over the six test images: it says how these trained networks would do on other images, not whether another seed would do
# the same.

# %% [markdown] lang="zh"
# ## 6. 三者的比较
#
# 同样的图像与宽度，一个种子；FCN-8s 另有其两个前身的训练步数。区间针对六张测试图像：它说明这些训练好的网络在其他图像上会怎样，而不说明换一个种子会怎样。

# %% tags=["quiet"]
from seg.api import evaluate

runs = {"FCN-8s": fcn8, "U-Net": unet, "UNet++": unetpp}
tables = {name: evaluate(run, "data.split=test").table for name, run in runs.items()}

# %%
from seg.models.profiling import count_multiply_adds, count_parameters

rows = {}
for name, run in runs.items():
    network = run.load().run.model
    row = tables[name].loc["test/dice/membrane"]
    rows[name] = {
        "membrane Dice": row["value"],
        "low": row["low"],
        "high": row["high"],
        "cell Dice": run.metrics["test/dice/cell"],
        "parameters": count_parameters(network),
        "G multiply-adds": count_multiply_adds(network, torch.empty(1, 1, SIZE, SIZE))["Global"] / 1e9,
    }  # fmt: skip
pd.DataFrame(rows).T.round(3).astype({"parameters": int})

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, run in runs.items():
    run.history.set_index("step")["val/dice/membrane"].dropna().plot(ax=axis, marker="o", ms=3, label=name)  # fmt: skip
axis.set(xlabel="step", ylabel="membrane Dice, validation")
axis.legend(fontsize=8)
plt.show()
pictures = {"image": test_image[..., 0]}
for name, run in runs.items():
    pictures[name] = draw_errors(test_image, test_mask, run.predict(test_image).mask)
show(pictures)

# %% [markdown] lang="en"
# FCN-8s starts from its predecessors' weights, so its curve begins higher. One seed and few steps show that each network learns; they don't rank them.
# [compare.ipynb](compare.ipynb) compares thirty runs, and [lab.ipynb](lab.ipynb) goes from a folder of images to corrected objects.
#
# **Exercise.** Write `"seed": 1` into `TRAINING` and run all again. Which differences in the table keep their sign?

# %% [markdown] lang="zh"
# FCN-8s 从前身的权重开始，所以它的曲线起点较高。一个种子、很少的步数只能说明每个网络都在学习，不能排名。
# [compare.ipynb](compare.ipynb) 比较三十次运行，[lab.ipynb](lab.ipynb) 从一个图像文件夹走到修正后的对象。
#
# **练习。** 在 `TRAINING` 中写上 `"seed": 1`，全部重新运行。表中的哪些差异保持符号不变？
