"""Scores from outside: joined by id or by key, and never to another sample."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.index import write_index
from easycore_ray.selection.select import select
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_dataset

COUNT = 40


@pytest.fixture
def dataset(tmp_path):
    """Forty training samples of two classes, and five test samples with keys of their own."""
    made = make_dataset(tmp_path / "d", [number % 2 for number in range(COUNT)])
    train = open_dataset(made.path).index("train")
    test = train.slice(0, 5).to_pydict()
    test |= {"split": ["test"] * 5, "key": [f"held out/{number}.png" for number in range(5)]}
    write_index(pa.concat_tables([train, pa.table(test, schema=train.schema)]), made.path)
    return made.path


def write(path, **columns):
    """The user's file."""
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    return str(path)


def key(number):
    """As ``make_dataset`` names its samples."""
    return f"{number % 2}/{number}.png"


def easiest(dataset, file, out, **options):
    """Ids of the easiest tenth by the user's scores."""
    made = select(out=str(out), dataset=dataset, user_scores=file, **{"method": "easiest", "fraction": 0.1, **options})
    return read_sample_ids(made).tolist()


def refused(dataset, file, out, match):
    """One line, and nothing is written."""
    with pytest.raises(EasyCoreError, match=match) as caught:
        easiest(dataset, file, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def test_ids_that_are_no_training_sample_are_refused(dataset, tmp_path):
    """A file of all rows counts otherwise, and every score may be another sample's."""
    file = write(tmp_path / "all.parquet", sample_id=range(COUNT + 5), score=range(COUNT + 5))

    said = refused(dataset, file, tmp_path / "c", r"scores of 5 ids that are no training sample .*first: 40")

    assert "40 training samples from 0 in the order of the source" in said
    assert "key" in said


def test_scores_are_joined_by_key(dataset, tmp_path):
    """In any order; those of test samples are passed over."""
    order = np.random.default_rng(0).permutation(COUNT).tolist()
    keys = [*map(key, order), "held out/3.png"]
    file = write(tmp_path / "mine.parquet", key=keys, score=[*[-float(number) for number in order], -1000.0])

    assert easiest(dataset, file, tmp_path / "c") == [36, 37, 38, 39]


def test_keys_that_are_nowhere_are_refused(dataset, tmp_path):
    """They belong to another dataset, or are written otherwise."""
    file = write(tmp_path / "mine.parquet", key=[*map(key, range(COUNT)), "x/1.png"], score=range(COUNT + 1))

    refused(dataset, file, tmp_path / "c", r"1 keys that are not in .*first: x/1\.png")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ([key(number) for number in range(1, COUNT)], r"lacks scores of 1 samples \(first sample_id: 0\)"),
        ([*map(key, range(COUNT)), key(3)], r"more than one score for some key"),
        ([*map(key, range(COUNT)), None], r"keys? .*null|null.*key"),
    ],
)
def test_keys_that_do_not_fit_are_refused(dataset, tmp_path, keys, match):
    """Missing, twice, empty."""
    file = write(tmp_path / "mine.parquet", key=keys, score=range(len(keys)))

    refused(dataset, file, tmp_path / "c", match)


def test_a_key_of_two_splits_is_ambiguous(dataset, tmp_path):
    """A source may use a path in train and in test."""
    index = open_dataset(dataset)
    train, test = index.index("train"), index.index("test").to_pydict()
    test["key"] = [key(7), *test["key"][1:]]
    write_index(pa.concat_tables([train, pa.table(test, schema=train.schema)]), dataset)
    file = write(tmp_path / "mine.parquet", key=map(key, range(COUNT)), score=range(COUNT))

    refused(dataset, file, tmp_path / "c", rf"{key(7)} .*more than one split.*sample_id")


def test_ids_and_keys_must_agree(dataset, tmp_path):
    """Ids of another import of the same source, say with another seed."""
    right = [key(number) for number in range(COUNT)]
    file = write(tmp_path / "right.parquet", sample_id=range(COUNT), key=right, score=range(COUNT))
    assert easiest(dataset, file, tmp_path / "a") == [0, 1, 2, 3]

    wrong = [*right[:-2], right[-1], right[-2]]
    file = write(tmp_path / "wrong.parquet", sample_id=range(COUNT), key=wrong, score=range(COUNT))
    refused(dataset, file, tmp_path / "c", r"2 of 40 samples other keys .*first: sample_id 38")


@pytest.mark.parametrize(("balance", "words"), [("class", "rounds to none"), ("none", "--balance class")])
def test_classes_that_are_left_without_a_sample_are_said(tmp_path, capsys, balance, words):
    """By name: a model would never see them."""
    labels = [0] * 30 + [1] * 30 + [2] * 2
    made = make_dataset(tmp_path / "d", labels)
    file = write(tmp_path / "mine.parquet", sample_id=range(62), score=range(62))

    easiest(made.path, file, tmp_path / "c", balance=balance)

    said = capsys.readouterr().err
    assert f"{1 if balance == 'class' else 2} of 3 classes have no sample in the coreset" in said
    assert "class 2" in said
    assert words in said
