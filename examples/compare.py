# %% [markdown] lang="en"
# # Thirty runs compared
#
# Two networks, three losses, five seeds: which recipe is better, and is the difference real? Runs are small, so that thirty of them take a few minutes of one CPU core.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd

SMOKE = bool(os.environ.get("SEG_SMOKE"))  # small sizes, to see whether everything runs
SIZE, IMAGES, TEST, EPOCHS, SEEDS = (32, 2, 6, 1, 3) if SMOKE else (96, 8, 16, 8, 5)
LOSSES = "bce,dice" if SMOKE else "bce,dice,bce_dice"

# %% [markdown] lang="en"
# ## 1. A sweep
#
# Values separated by commas are combined: `seg.api.sweep` trains each combination. The same call goes on after an interruption.

# %% tags=["quiet"]
from seg.api import sweep

swept = sweep(
    "model=unet,unetpp",
    f"loss={LOSSES}",
    f"seed={','.join(map(str, range(SEEDS)))}",
    **{"data.size": SIZE, "data.train": IMAGES, "data.val": 4, "data.test": TEST, "loader.crop": min(SIZE, 64)},
    **{"model.width": 4, "model.depth": 3, "trainer.max_epochs": EPOCHS, "trainer.check_val_every_n_epoch": EPOCHS},
    **{"logger": "none", "trainer": "cpu", "panels": 0, "save_predictions": 0},
)  # fmt: skip

# %%
print(f"{len(swept.runs)} runs, {swept.table['status'].eq('finished').sum()} finished")

# %% tags=["quiet"]
from seg.api import compare

MEMBRANE = {"score": "dice/membrane", "group_by": ["model", "loss"]}
compared = compare(swept, **MEMBRANE)

# %% [markdown] lang="en"
# ## 2. The ranking
#
# A group is a recipe; its runs differ in the seed. `difference` is from the best group, with a 95 % interval over images; both p are adjusted by Holm over all pairs.

# %%
compared.groups.drop(columns=["baseline", "incomparable", "seeds"]).round(4)

# %%
groups = compared.groups.set_index("group")
runs = compared.runs.copy()
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for place, name in enumerate(groups.index):
    scores = runs.loc[runs["group"] == name, "test/dice/membrane"].astype(float)
    axis.plot(scores, [place] * len(scores), "o", alpha=0.5)
    axis.plot(groups.loc[name, "mean"], place, "k|", ms=16)
axis.set_yticks(range(len(groups)), groups.index)
axis.invert_yaxis()
axis.set_xlabel("membrane Dice on the test images; a dot a seed, a line the mean")
plt.show()

# %% [markdown] lang="en"
# ## 3. Is a difference real?
#
# Two questions, two intervals of the difference from `unet + bce`. Thick, over images: would *these trained networks* differ on other images? Thin, over seeds: would the *recipes* differ with
# other seeds on these images (Welch)? A claim about recipes needs both to exclude 0.

# %% tags=["quiet"]
BASELINE = "unet + bce"
against = compare(swept, **MEMBRANE, baseline="model=unet,loss=bce", output="against")

# %%
from scipy.stats import ttest_ind

scores = {name: rows["test/dice/membrane"].astype(float) for name, rows in runs.groupby("group")}
table = against.groups.query("not baseline").set_index("group")
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for place, (name, row) in enumerate(table.iterrows()):
    low, high = ttest_ind(scores[name], scores[BASELINE], equal_var=False).confidence_interval()
    table.loc[name, ["seeds low", "seeds high"]] = low, high
    axis.plot([low, high], [place] * 2, color="C1", lw=1.5)
    axis.plot([row["low"], row["high"]], [place] * 2, color="C0", lw=6, alpha=0.6)
    axis.plot(row["difference"], place, "ko", ms=4)
axis.axvline(0, color="grey", lw=0.8)
axis.set_yticks(range(len(table)), table.index)
axis.invert_yaxis()
axis.set_xlabel(f"membrane Dice minus that of {BASELINE}")
plt.show()
table[["difference", "low", "high", "p_images", "seeds low", "seeds high", "p_seeds"]].round(4)

# %%
alpha = 0.05
claims = {(True, True): "the recipes differ", (True, False): "these networks differ, the recipes perhaps not",
          (False, True): "the recipes differ on these images", (False, False): "nothing is shown"}  # fmt: skip
shown = {
    name: claims[row["p_images"] <= alpha, row["p_seeds"] <= alpha]
    for name, row in table.iterrows()
}
pd.Series(shown, name=f"against {BASELINE}").to_frame()

# %% [markdown] lang="en"
# ## 4. Images or seeds?
#
# An image that is hard for one recipe is hard for the other. Comparing the *same* images removes this part of the spread: the paired differences vary less than the scores. The table has the spread over images, over
# seeds, and of the paired differences.

# %%
images = {}
for run in swept.runs:
    counts = pd.read_csv(run.folder / "images.csv").query(
        "split == 'test' and `class` == 'membrane'"
    )
    dice = 2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])
    choices = run.record["overrides"]
    recipe = tuple(next(w for w in choices if w.startswith(f"{key}=")).partition("=")[2] for key in ("model", "loss"))  # fmt: skip
    seed = next(w for w in choices if w.startswith("seed=")).partition("=")[2]
    images[(" + ".join(recipe), int(seed))] = dice.set_axis(counts["image"])
images = pd.DataFrame(images)  # a row per test image, a column per run
means = images.T.groupby(level=0).mean().T  # of the seeds
first, second = against.groups["group"].iloc[0], BASELINE
if first == BASELINE:
    second = against.groups["group"].iloc[1]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(means[second], means[first], "o", alpha=0.7)
limits = [means.min().min(), means.max().max()]
left.plot(limits, limits, color="grey", lw=0.8)
left.set(xlabel=second, ylabel=first, title="a dot a test image, Dice")
right.boxplot([means[second], means[first], means[first] - means[second]])
right.set_xticks([1, 2, 3], [second, first, "difference"], fontsize=8)
right.set_title("over the test images")
plt.show()

# %%
spread = pd.DataFrame({
    "sd over images": images.T.groupby(level=0).mean().T.std(),
    "sd over seeds": images.mean().groupby(level=0).std(),
    "sd over images of the difference": (means.sub(means[BASELINE], axis=0)).std(),
})  # fmt: skip
spread.round(4)

# %% [markdown] lang="en"
# ## 5. What a single seed shows
#
# The best recipe by each seed alone, and the rank of each recipe by its mean and by its best seed. A table of single runs, or of best seeds, partly reports chance.

# %%
per_seed = images.mean().unstack(0)  # rows: seeds, columns: recipes
winners = per_seed.idxmax(axis=1).rename("winner with this seed alone").to_frame()
winners["ahead of the last by"] = per_seed.max(axis=1) - per_seed.min(axis=1)
winners.rename_axis("seed").round(4)

# %%
best = pd.DataFrame({"mean of the seeds": per_seed.mean(), "best seed": per_seed.max()})
best["rank by mean"] = best["mean of the seeds"].rank(ascending=False).astype(int)
best["rank by best seed"] = best["best seed"].rank(ascending=False).astype(int)
best.sort_values("rank by mean").round(4)

# %% [markdown] lang="en"
# `compare` also wrote `compare.html`, a page with all runs, learning curves and predictions side by side, and `compare.csv`. [docs/compare.md](../docs/compare.md) explains the tests.
#
# **Exercises.** Test with four images instead (`data.test=4`): which interval grows, and what does the warning of `compare` say? Add seeds until the thin interval of one recipe excludes 0: how many does it take,
# and is that difference large enough to matter?
