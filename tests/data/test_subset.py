"""Subsets of the training images are nested, whole in groups, and leave the other splits alone."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seg.data import DataModule, Membranes
from seg.data.subset import draw_subset, restrict_training, training_units, unit_word
from seg.errors import DataError


def source_of(count: int, groups: int | None):
    """A source of some training images, of which each third starts a new group."""
    names = [f"i{n}" for n in range(count)]
    found = (
        None
        if groups is None
        else {n: f"g{i % groups}" for i, n in enumerate(names)} | {"v": "g-v"}
    )
    return SimpleNamespace(splits={"train": names, "val": ["v"]}, groups=found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.none() | st.integers(1, 8), st.integers(0, 2**32 - 1), st.data())
def test_a_larger_subset_contains_each_smaller_one(count, groups, seed, data):
    source = source_of(count, groups)
    units = len(training_units(source))
    assert units == (count if groups is None else min(groups, count))
    small, large = sorted(data.draw(st.lists(st.integers(1, units), min_size=2, max_size=2)))
    first, second = (draw_subset(source, size, seed) for size in (small, large))
    assert set(first) <= set(second) and len(set(second)) == len(second)
    if groups is not None:
        chosen = {source.groups[name] for name in first}
        assert len(chosen) == small
        assert first == [n for n in source.splits["train"] if source.groups[n] in chosen]
    else:
        assert len(first) == small
    assert draw_subset(source, units, seed) == source.splits["train"]


def test_seeds_draw_different_subsets_and_each_image_as_often():
    source, times = source_of(8, None), dict.fromkeys(source_of(8, None).splits["train"], 0)
    for seed in range(400):
        for name in draw_subset(source, 2, seed):
            times[name] += 1
    assert all(60 <= n <= 140 for n in times.values())  # 100 expected


def test_a_module_trains_and_normalises_on_the_subset_alone():
    given = Membranes(size=32, train=6, val=2, test=1)
    whole = [*given.splits["train"]]
    data = DataModule(given, subset=2, seed=3, crop=32)
    names = data.source.splits["train"]
    assert names == draw_subset(given, 2, 3) and data.source.splits["val"] == given.splits["val"]
    assert given.splits["train"] == whole  # the given source is unchanged
    alone = Membranes(size=32, train=6, val=2, test=1)
    alone.splits = {**alone.splits, "train": names}
    assert data.intensity == DataModule(alone, seed=3, crop=32).intensity
    assert {n for batch in data.train_dataloader() for n in batch["name"]} == set(names)


@pytest.mark.parametrize(("groups", "word", "count"), [(None, "images", 9), (3, "groups", 3)])
def test_more_than_there_are_is_refused_with_the_number(groups, word, count):
    source = source_of(9, groups)
    assert unit_word(source) == word
    with pytest.raises(
        DataError, match=f"subset=10: the training split has {count} {word}; give {count} or less"
    ):
        restrict_training(source, 10, 0)
