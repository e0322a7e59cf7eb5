"""Splits, ids and places of rows, without Ray."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.data.ingest.splits import LEFT_OUT, TEST, TRAIN, VAL, assign_splits, class_names, equal_parts, place
from easycore_ray.data.ingest.staging import placement_hash
from easycore_ray.storage.errors import EasyCoreError


def split(labels, own=None, own_splits=("train",), val=0.2, test=0.2, seed=0):
    labels = np.asarray(labels)
    own = np.zeros(len(labels), np.int64) if own is None else np.asarray(own)
    return assign_splits(labels, own, own_splits, val_fraction=val, test_fraction=test, seed=seed)


class TestSplits:
    @given(
        sizes=st.lists(st.integers(5, 60), min_size=1, max_size=6),
        val=st.sampled_from([0.1, 0.2, 0.5]),
        seed=st.integers(0, 3),
    )
    def test_held_out_samples_have_the_exact_count_and_every_class_its_share(self, sizes, val, seed):
        """Largest remainder: the total is exact, no class is off by more than one."""
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))

        splits = split(labels, val=val, test=0, seed=seed)

        assert (splits == VAL).sum() == int(val * len(labels) + 0.5)
        for label, size in enumerate(sizes):
            assert abs((splits[labels == label] == VAL).sum() - val * size) <= 1

    def test_test_is_held_out_before_val(self):
        """Validation is a share of what is left for training, as its option says."""
        splits = split([0, 1] * 50, val=0.5, test=0.2)

        assert [int((splits == number).sum()) for number in (TRAIN, VAL, TEST)] == [40, 40, 20]

    def test_own_splits_stay_as_they_are(self):
        """A source with its own test and val split keeps them, to the row."""
        own = [TRAIN] * 6 + [VAL] * 2 + [TEST] * 2

        splits = split([0, 1] * 5, own=own, own_splits=("train", "val", "test"))

        assert splits.tolist() == own

    def test_another_seed_holds_out_other_samples(self):
        """The seed decides which samples, not how many."""
        first, again, other = (split([0, 1] * 50, seed=seed) for seed in (0, 0, 1))

        assert (first == again).all()
        assert (first != other).any()
        assert np.bincount(first).tolist() == np.bincount(other).tolist()

    def test_a_fraction_that_gives_no_image_is_refused(self):
        """An empty split is never made silently."""
        with pytest.raises(EasyCoreError, match=r"val split is empty: val_fraction 0.02 of 10 images .* pass 0"):
            split([0, 1] * 5, val=0.02, test=0)

    def test_fractions_of_zero_do_without_the_split(self):
        """Zero is a choice, not a mistake."""
        assert (split([0, 1] * 5, val=0, test=0) == TRAIN).all()

    def test_an_own_split_without_usable_images_is_refused(self):
        """If every test image was skipped, the training images are not tapped instead."""
        with pytest.raises(EasyCoreError, match="the test split has no usable image"):
            split([0, 1] * 5, own_splits=("train", "test"))


class TestClasses:
    def test_unnamed_classes_are_named_by_their_labels(self):
        """Without names from the source, the label is the name."""
        assert class_names(np.array([2, 0, 1]), np.zeros(3), None) == ["0", "1", "2"]

    def test_a_class_without_training_image_is_refused_by_name(self):
        """A class that only the test split has cannot be learned; the list or folder of it is named."""
        labels, splits, words = np.array([0, 1, 2]), np.array([TRAIN, TEST, TRAIN]), "have no training image, the first"
        with pytest.raises(EasyCoreError, match=rf"1 of 3 classes of /a/list.txt {words} is class 1 \(dog\)"):
            class_names(labels, splits, ["cat", "dog", "emu"], where="/a/list.txt")

    def test_a_stray_label_is_refused_without_listing_all_below_it(self):
        """A label of two billion is answered at once."""
        with pytest.raises(EasyCoreError, match=r"1,999,999,999 of 2,000,000,001 .* first is class 1;"):
            class_names(np.array([0, 2_000_000_000]), np.zeros(2), None)


class TestPlacement:
    @given(
        splits=st.lists(st.sampled_from([TRAIN, TRAIN, TRAIN, VAL, TEST]), min_size=1, max_size=200),
        rows_per_shard=st.integers(1, 50),
        seed=st.integers(0, 3),
    )
    def test_every_row_has_one_place_and_every_split_dense_ids(self, splits, rows_per_shard, seed):
        """Ids follow source order, places are a permutation, shards are full to within one row."""
        splits = np.array(splits, np.int8)

        hashes = placement_hash(seed, 0, np.arange(len(splits)))

        placed = place(splits, hashes, rows_per_shard)

        places = zip(splits.tolist(), placed.shard.tolist(), placed.row.tolist(), strict=True)
        assert len(set(places)) == len(splits)
        for (of, number), rows in zip(placed.names, placed.rows_of_shards(), strict=True):
            assert (placed.shard[rows] == number).all()
            assert placed.row[rows].tolist() == list(range(len(rows)))
            assert {("train", "val", "test")[split] for split in splits[rows]} == {of}
            assert (np.diff(hashes[rows].astype(object)) > 0).all()
        for number, name in enumerate(("train", "val", "test")):
            assert placed.sample_id[splits == number].tolist() == list(range((splits == number).sum()))
            sizes = [
                len(rows) for (of, _), rows in zip(placed.names, placed.rows_of_shards(), strict=True) if of == name
            ]
            assert sum(sizes) == (splits == number).sum()
            if sizes:
                assert max(sizes) <= rows_per_shard
                assert max(sizes) - min(sizes) <= 1

    def test_rows_that_are_left_out_have_no_place(self):
        """Ids and shards are as if they had never been there."""
        hashes = placement_hash(0, 0, np.arange(5))

        placed = place(np.array([TRAIN, LEFT_OUT, TRAIN, LEFT_OUT, TEST], np.int8), hashes, 10)

        assert placed.sample_id[[0, 2, 4]].tolist() == [0, 1, 0]
        assert sorted(placed.order.tolist()) == [0, 2, 4]

    @given(seed=st.integers(0, 2**40), pieces=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2, unique=True))
    def test_no_two_rows_of_a_source_have_one_hash(self, seed, pieces):
        """Nor does their order depend on where they come from."""
        hashes = np.concatenate([placement_hash(seed, piece, np.arange(1000)) for piece in pieces])

        assert len(np.unique(hashes)) == 2000
        assert 300 < (np.argsort(hashes)[:1000] < 1000).sum() < 700

    def test_sorted_classes_are_mixed_in_every_shard(self):
        """A source that lists one class after the other is not streamed like that."""
        labels = np.repeat(np.arange(4), 500)

        placed = place(np.zeros(2000, np.int8), placement_hash(0, 0, np.arange(2000)), 250)

        for shard in range(8):
            counts = np.bincount(labels[placed.shard == shard], minlength=4)
            assert counts.min() > 30

    def test_parts_of_no_rows_are_none(self):
        """An empty split has no shard."""
        assert equal_parts(np.arange(0), 10) == []
