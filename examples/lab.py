# %% [markdown] lang="en"
# # From a folder of images to corrected objects
#
# A laboratory has a folder of images with touching cells, and masks that number them. Check, train, predict, measure; find a wrong mask, correct it, and train again.
# The images are made here, so that the truth is known; put your own folder in place of `lab`. In full size this takes a few minutes of one CPU core.

# %%
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

SMOKE = bool(os.environ.get("SEG_SMOKE"))  # small sizes, to see whether everything runs
SIZE, IMAGES, REPEATS, EPOCHS, WIDTH = (64, 6, 1, 1, 2) if SMOKE else (160, 12, 8, 10, 8)
rng = np.random.default_rng(0)
PALETTE = np.vstack([np.zeros(3), plt.get_cmap("tab20")(np.arange(20))[:, :3]])


def color_objects(labels):
    return PALETTE[np.where(labels > 0, 1 + labels % 20, 0)]


def show(pictures, height=3.2):
    """Draw pictures, title -> array, side by side."""
    _, axes = plt.subplots(
        1, len(pictures), figsize=(height * len(pictures), height), layout="constrained"
    )
    for axis, (title, picture) in zip(np.atleast_1d(axes), pictures.items(), strict=True):
        axis.imshow(picture, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    plt.show()


# %% [markdown] lang="en"
# ## 1. The folder
#
# `lab/images` and `lab/masks` hold PNGs of the same names. In a mask each cell has its own number, 0 is background, as StarDist, Cellpose and napari write them.


# %%
def make_image():
    """Return an image (H, W) uint8 of elliptic cells that touch, and their numbers (H, W) uint16."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    labels, image = np.zeros((SIZE, SIZE), np.uint16), np.full((SIZE, SIZE), 45.0)
    for _ in range(SIZE * SIZE // 130):
        row, column = rng.uniform(0, SIZE, 2)
        long, short, angle = rng.uniform(9, 13), rng.uniform(6, 9), rng.uniform(0, np.pi)
        along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        radius = (along / long) ** 2 + (across / short) ** 2
        inside = (radius <= 1) & (labels == 0)
        if inside.sum() < 0.93 * (radius <= 1).sum():
            continue  # it would lie on another one
        labels[inside] = labels.max() + 1
        image[inside] = rng.uniform(90, 160) * (1 - 0.45 * radius[inside])
    image = gaussian_filter(image, 1.0) + rng.normal(0, 9, image.shape)
    return image.clip(0, 255).astype(np.uint8), labels


lab, new, test = Path("lab"), Path("new"), Path("test")
for folder in (lab / "images", lab / "masks", new, test / "images", test / "masks"):
    folder.mkdir(parents=True)
for i in range(IMAGES):
    image, labels = make_image()
    Image.fromarray(image).save(lab / f"images/{i:02}.png")
    Image.fromarray(labels).save(lab / f"masks/{i:02}.png")
for name in "abcd":  # new images; their truth is kept for the end
    image, labels = make_image()
    Image.fromarray(image).save(new / f"{name}.png")
    Image.fromarray(image).save(f"test/images/{name}.png")
    Image.fromarray(labels).save(f"test/masks/{name}.png")
blurred = gaussian_filter(image.astype(float), 2.5) + rng.normal(0, 25, image.shape)
Image.fromarray(blurred.clip(0, 255).astype(np.uint8)).save(new / "e.png")  # d by a bad microscope

# %% [markdown] lang="en"
# Somebody forgot three cells when drawing the masks.

# %%
forgotten = []
for name, largest in (("01", 2), ("04", 1)):
    labels = np.array(Image.open(lab / f"masks/{name}.png"))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    for number in areas.argsort()[::-1][:largest]:
        forgotten.append((name, labels == number))
        labels[labels == number] = 0
    Image.fromarray(labels).save(lab / f"masks/{name}.png")
image = np.array(Image.open(lab / "images/01.png"))
show({"images/01.png": image, "masks/01.png": color_objects(np.array(Image.open(lab / "masks/01.png")))})  # fmt: skip

# %% [markdown] lang="en"
# ## 2. Check
#
# `check` reads every file and lists faults with their remedies. It sees files that don't fit, not cells that somebody forgot.

# %% tags=["quiet"]
from seg.api import check

DATA = {"data": "folder", "data.root": lab, "data.classes": ["background", "cell"], "data.task": "instances"}  # fmt: skip
checked = check(**DATA)

# %%
print("ok" if checked.ok else "errors", f"{len(checked.issues)} issues")
checked.issues

# %% [markdown] lang="en"
# ## 3. Train
#
# With `data.task=instances` a gap of 2 px is learned between touching cells, and cells are also scored one by one. `threshold=best` chooses the threshold and the splitting of
# touching objects on the validation images.

# %% tags=["quiet"]
from seg.api import train

TRAINING = {**DATA, "loader.crop": min(SIZE, 96), "loader.repeats": REPEATS, "trainer.max_epochs": EPOCHS,
            "model.width": WIDTH, "model.depth": 3, "threshold": "best", "logger": "none", "trainer": "cpu"}  # fmt: skip
first = train(name="first", **TRAINING)

# %%
curve = first.history.set_index("step")["val/dice/cell"].dropna().groupby(level=0).first()
curve.plot(marker="o", figsize=(5, 2.5))
plt.ylabel("Dice of cells, validation")
plt.show()

# %% [markdown] lang="en"
# ## 4. Predict and measure
#
# `predict` writes the numbered cells of each image, a table of measurements, and `quality.csv`, the quality to expect without a truth.

# %% tags=["quiet"]
from seg.api import predict

predict(first, new, "predicted", save=["instances", "contours"])

# %%
measurements = pd.read_csv("predicted/instances/a.csv")
measurements[["label", "area", "eccentricity", "perimeter", "intensity_mean-0", "probability_mean"]].head(8).round(3)  # fmt: skip

# %% [markdown] lang="en"
# Which images need a look? `known` is `no` for an image unlike those of the training, such as `e`: its expected score is not to be trusted. An image is also listed if less is expected of it than of
# 95 % of the validation images, of which there are only two here.

# %%
quality = pd.read_csv("predicted/quality.csv")
quality.loc[quality["class"] == "cell", ["image", "dice", "distance", "known", "farthest", "look"]]  # fmt: skip

# %%
found = {name: tifffile.imread(next(Path("predicted/instances").glob(f"{name}.tif*"))) for name in "ae"}  # fmt: skip
pictures = {}
for name, labels in found.items():
    pictures |= {f"{name}.png": np.array(Image.open(new / f"{name}.png")), f"{labels.max()} cells": color_objects(labels)}  # fmt: skip
show(pictures)

# %% [markdown] lang="en"
# ## 5. Find wrong masks
#
# A cross-validation predicts each image by a network that has not seen its mask. `seg.doubt` ranks the regions where this network and the mask contradict each other.

# %% tags=["quiet"]
from seg.api import crossval

folds = crossval(**TRAINING, **{"data.folds": 3, "output": "cv"})
doubt = [sys.executable, "-m", "seg.doubt", "run=cv"]
subprocess.run(doubt, check=True, capture_output=True)

# %%
doubts = pd.read_csv("cv/doubt/doubt.csv", dtype={"image": str})
doubts[["image", "kind", "left", "top", "said", "meant", "pixels", "confidence", "evidence", "stands_out"]].head(8)  # fmt: skip

# %% [markdown] lang="en"
# The first rows: image, label, the network's prediction, and where the region lies.

# %%
for file in sorted(Path("cv/doubt/panels").glob("*.png"))[:3]:
    with Image.open(file) as picture:
        figure, axis = plt.subplots(figsize=(8, 8 * picture.height / picture.width))
        axis.imshow(np.asarray(picture))
    axis.axis("off")
    plt.show()

# %% [markdown] lang="en"
# The folds' networks also predict, as an ensemble. Calibrated by all images of the folder, which are enough for intervals, `quality.csv` now has a 90 % interval for each known image.

# %% tags=["quiet"]
predict(folds, new, "ensemble", save=["instances"])

# %%
quality = pd.read_csv("ensemble/quality.csv")
quality.loc[quality["class"] == "cell", ["image", "dice", "dice_low", "dice_high", "known", "look"]]

# %% [markdown] lang="en"
# ## 6. Correct the masks
#
# A person looks at each row and decides. Here we know which cells were forgotten, so the decision is made for you: a row is right if its box holds most of a forgotten cell. The cell gets the outline that
# the network gave it out of fold; in practice, draw it in an annotation tool ([docs/annotate.md](../docs/annotate.md)).

# %%
from scipy.ndimage import binary_opening

from seg.objects import label_components

corrected = Path("corrected")
shutil.copytree(lab, corrected)
accepted = []
for place, row in doubts.iterrows():
    name = row["image"]
    box = np.s_[row["top"] : row["top"] + row["height"], row["left"] : row["left"] + row["width"]]
    shares = [cell[box].sum() / cell.sum() for image, cell in forgotten if image == name]
    if row["kind"] != "region" or row["meant"] != "cell" or max(shares, default=0) < 0.5:
        continue
    labels = np.array(Image.open(corrected / f"masks/{name}.png"))
    p = tifffile.imread(f"cv/out-of-fold/probabilities/{name}.tif")[1]
    free = label_components(binary_opening((p > 0.5) & (labels == 0), iterations=2))
    region = np.bincount(free[box].ravel(), minlength=2)[1:].argmax() + 1
    labels[free == region] = labels.max() + 1
    Image.fromarray(labels).save(corrected / f"masks/{name}.png")
    accepted.append(place)
print(
    f"{len(forgotten)} cells were forgotten; {len(doubts)} rows, of which rows {accepted} are corrected"
)

# %%
pictures = {}
for name in sorted({name for name, _ in forgotten}):
    for folder in (lab, corrected):
        labels = np.array(Image.open(folder / f"masks/{name}.png"))
        cells = len(np.unique(labels)) - 1
        pictures[f"{folder}/masks/{name}.png: {cells} cells"] = color_objects(labels)
show(pictures)

# %% [markdown] lang="en"
# ## 7. Train again, and measure
#
# The same training on the corrected folder, and both networks scored on the new images `a` to `d`, whose truth we kept. Three cells among many are not expected to change a network; they
# matter where the masks themselves are counted or scored.

# %% tags=["quiet"]
from seg.api import evaluate

second = train(name="second", **{**TRAINING, "data.root": corrected})
TEST = {**DATA, "data.root": test}
scores = {
    name: evaluate(run, **TEST).table for name, run in {"first": first, "second": second}.items()
}

# %%
chosen = {"all/dice/cell": "Dice of cells", "all/object_f1": "F1 of objects", "all/pq": "panoptic quality"}  # fmt: skip
pd.concat({name: table.loc[list(chosen)].rename(chosen) for name, table in scores.items()}, axis=1).round(3)  # fmt: skip

# %% tags=["quiet"]
predict(second, new, "final", save=["instances"])

# %%
tables = {file.stem: pd.read_csv(file) for file in sorted(Path("final/instances").glob("*.csv"))}
objects = pd.concat(tables, names=["image", None]).reset_index("image")
objects.groupby("image")[["area", "eccentricity", "probability_mean"]].agg(["count", "mean"]).round(
    3
)

# %% [markdown] lang="en"
# The table of a laboratory: cells per image, their area and eccentricity. Leave out image `e`, which is not known to the network. Predicted areas beside the true ones:

# %%
true_areas = np.concatenate([np.bincount(np.array(Image.open(file)).ravel())[1:] for file in (test / "masks").iterdir()])  # fmt: skip
known = objects[objects["image"] != "e"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
bins = np.linspace(0, max(true_areas.max(), known["area"].max()), 25)
left.hist([true_areas, known["area"]], bins, label=["true", "predicted"])
left.set(xlabel="area, px", ylabel="cells")
left.legend()
right.scatter(known["area"], known["eccentricity"], s=10)
right.set(xlabel="area, px", ylabel="eccentricity")
plt.show()

# %%
image = np.array(Image.open(new / "a.png"))
final = tifffile.imread(next(Path("final/instances").glob("a.tif*")))
truth = np.array(Image.open(test / "masks/a.png"))
show({"a.png": image, f"truth: {truth.max()} cells": color_objects(truth), f"predicted: {final.max()} cells": color_objects(final)})  # fmt: skip

# %% [markdown] lang="en"
# Outlines for QuPath, LabelMe, ImageJ or COCO are written by `save=["polygons"]`, `["labelme"]`, `["rois"]` and `["coco"]`; correct them there and train again ([docs/annotate.md](../docs/annotate.md)).
#
# **Exercises.** Forget ten cells instead of three: how many does `seg.doubt` list? Train with `data.border=0`: what happens to cells that touch?
