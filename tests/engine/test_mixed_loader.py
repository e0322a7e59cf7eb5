"""Batches with extra rows: which rows of which source are in each, in memory, streamed, on workers, after a restart."""

from collections import Counter

import numpy as np
import pytest
import torch

from easycore_ray import select
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.augment import augment
from easycore_ray.core.passes import score_epoch
from easycore_ray.core.seeding import derive_seed, generator
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import block_of_split, read_split
from easycore_ray.engine.extra_data import extra_data
from easycore_ray.engine.loader import describe_streaming, open_loader
from easycore_ray.engine.mixed_segments import Deal, MixedSegments
from easycore_ray.engine.plan import build
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.shares import check_share
from easycore_ray.scoring.score import make_scoring_fit
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import make_training_fit
from tests.artifacts import edit_manifest, make_image_dataset
from tests.soak.segments import Case, ids_of, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_threads")]

NAMES = ["class 2", "class 0"]
"""Of the extra dataset, which has them in another order than the main one and lacks one."""
EXTRA_IDS = 1 << 61


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Paths of 53 images in three classes and 31 others in two of them."""
    root = tmp_path_factory.mktemp("mixed")
    labels = [number % 3 for number in range(53)]
    main = make_image_dataset(root / "main", labels, val_labels=labels[:9])
    extra = make_image_dataset(root / "extra", [number % 2 for number in range(31)])
    edit_manifest(extra.path, classes=NAMES)
    return main.path, extra.path


def make_fit(datasets, kind=TrainConfig, **fields):
    """A run of 12 rows a step, 8 of them extra, in segments of two steps."""
    main, extra = datasets
    small = dict(out="unused", model="cnn", width=2, epochs=4, batch_size=12, segment_images=24, num_workers=1, seed=5,
                 augment="crop", crop_pad=1, extra_dataset=extra)  # fmt: skip
    if kind is ScoreConfig:
        small |= {"score_pass": "eval"}
    config = kind(dataset=main, **small | fields)
    dataset, parents = open_run_inputs(config)
    make = make_scoring_fit if kind is ScoreConfig else make_training_fit
    return make(config, dataset, parents.get("coreset"), None, extra_data(config, dataset, parents))


def source_of(sample_id):
    """(source, pass, id) of an id in a batch."""
    if sample_id < EXTRA_IDS:
        return "main", 0, sample_id
    number, own = divmod(sample_id - EXTRA_IDS, 1 << 40)
    return "extra", number, own


def drawn(loader, epochs):
    """The rows of each batch of some epochs, by (source, pass, id), a list an epoch."""
    return [
        [
            [source_of(sample_id) for sample_id in batch.sample_ids.tolist()]
            for segment in range(loader.segments.count)
            for batch in loader.shuffled(epoch, segment)
        ]
        for epoch in epochs
    ]


# ---------------------------------------------------------------- which rows


def expected(fit, rank, world, epochs):
    """The same as plain Python says: two sequences, dealt and cut by counting."""
    extra, segments = fit.extra, fit.segments(world)
    sequences = {}
    for source, path, seed, passes in (
        ("main", fit.dataset, fit.plan.seed, epochs),
        ("extra", extra.dataset, derive_seed("extra", fit.plan.seed), epochs * segments.extra_per_epoch),
    ):
        ids = block_of_split(open_dataset(path), "train", None, rank, world)
        sequences[source] = [
            (source, number * (source == "extra"), int(ids[place]))
            for number in range(1, passes + 1)
            for place in torch.randperm(len(ids), generator=generator("order", seed, number, rank)).tolist()
        ]
    batches = -(-fit.num_rows // (fit.batch_size - extra.batch_rows))
    few, more = divmod(fit.num_rows, batches)
    taken = {"main": [0], "extra": [0]}
    for epoch in range(epochs):
        done = 0
        for number in range(batches):
            done += few + (number < more)
            wanted = -(-done * extra.batch_rows // (fit.batch_size - extra.batch_rows))
            taken["main"].append(epoch * fit.num_rows + done)
            taken["extra"].append(epoch * segments.extra_per_epoch + wanted)
    owned = {
        source: [Deal(fit.num_rows if source == "main" else extra.num_rows, world).dealt(total, rank) for total in ends]
        for source, ends in taken.items()
    }
    rows = [
        [row for source, ends in owned.items() for row in sequences[source][ends[at] : ends[at + 1]]]
        for at in range(epochs * batches)
    ]
    return [rows[epoch * batches : (epoch + 1) * batches] for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("world", "fraction", "batch_rows"),
    [(1, None, 8), (2, None, 8), (3, None, 8), (2, 0.3, 4), (3, 0.01, 1), (1, 0.999, 11)],
)
def test_batches_are_those_of_plain_python(datasets, world, fraction, batch_rows):
    """Row by row over four epochs: passes of 31 rows within epochs, batches and more than one pass a batch."""
    fit = make_fit(datasets, num_workers=world, extra_fraction=fraction)
    found = [drawn(open_loader(fit, rank, world), range(1, 5)) for rank in range(world)]
    assert found == [expected(fit, rank, world, 4) for rank in range(world)]
    assert fit.extra.batch_rows == batch_rows
    passes = Counter(row[:2] for worker in found for epoch in worker for batch in epoch for row in batch)
    complete = [count for (source, _), count in sorted(passes.items()) if source == "extra"][:-1]
    assert complete == [31] * (4 * fit.segments(world).extra_per_epoch // 31), "a row was repeated before all were seen"
    rows = [row for worker in found for epoch in worker for batch in epoch for row in batch]
    assert max(Counter(row for row in rows if row[0] == "extra").values()) == 1
    assert Counter(row for row in rows if row[0] == "main") == {("main", 0, number): 4 for number in range(53)}


def test_workers_that_are_left_without_a_main_row_are_refused(datasets):
    """One main row a batch cannot be shared by two."""
    fit = make_fit(datasets, extra_fraction=0.999, num_workers=2)
    with pytest.raises(EasyCoreError, match="53 samples in batches of 1 cannot be shared by 2 workers"):
        check_share(53, 12, [2], extra_rows=fit.extra.batch_rows)


def test_a_batch_may_hold_several_passes(tmp_path, datasets):
    """Of five extra rows, eight a batch: each comes before any comes again."""
    few = make_image_dataset(tmp_path / "few", [0, 1, 2, 0, 1])
    fit = make_fit((datasets[0], few.path))
    rows = [row for epoch in drawn(open_loader(fit), [1, 2]) for batch in epoch for row in batch if row[0] == "extra"]
    assert [number for _, number, _ in rows] == [1 + place // 5 for place in range(len(rows))]
    assert all({own for _, _, own in rows[start : start + 5]} == set(range(5)) for start in range(0, len(rows) - 5, 5))
    # Twice in an epoch, with another view each.
    ids = torch.tensor([EXTRA_IDS + (number << 40) + 3 for number in range(1, 9)])
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(8, -1, -1, -1)
    views = augment(image, ids, "crop", seed=5, epoch=1, pad=1)
    assert len({view.numpy().tobytes() for view in views}) > 2


def test_each_row_has_its_own_image_and_the_main_label(datasets):
    """Labels by name: the extra dataset's 0 is the main one's 2, its 1 is 0."""
    fit = make_fit(datasets)
    by_source = {name: read_split(open_dataset(path), "train")
                 for name, path in zip(("main", "extra"), datasets, strict=True)}  # fmt: skip
    for batch in open_loader(fit).shuffled(1, 0):
        for sample_id, image, label in zip(*batch, strict=True):
            source, _, own = source_of(int(sample_id))
            rows = by_source[source]
            assert torch.equal(image, rows.images[own])
            assert int(label) == (int(rows.labels[own]) if source == "main" else [2, 0][int(rows.labels[own])])


def test_a_restart_at_any_segment_sees_the_same_batches(datasets):
    """Which pass has come how far is arithmetic."""
    fit = make_fit(datasets)
    whole = open_loader(fit)
    everything = {(epoch, segment): [batch.sample_ids.tolist() for batch in whole.shuffled(epoch, segment)]
                  for epoch in (1, 2, 3) for segment in range(whole.segments.count)}  # fmt: skip
    assert len(everything) == 3 * 7
    for (epoch, segment), batches in everything.items():
        found = open_loader(fit).shuffled(epoch, segment)
        assert [batch.sample_ids.tolist() for batch in found] == batches


def test_a_coreset_of_the_extra_data_restricts_it(datasets, tmp_path):
    """Its ids alone, each once a pass."""
    coreset = select(out=f"{tmp_path}/coreset", dataset=datasets[1], method="random", fraction=0.5)
    fit = make_fit(datasets, extra_coreset=coreset.path)
    rows = [row for epoch in drawn(open_loader(fit), [1]) for batch in epoch for row in batch if row[0] == "extra"]
    assert fit.extra.num_rows == 16
    assert {own for _, number, own in rows if number == 1} == set(coreset.sample_ids().tolist())


def test_scoring_has_every_row_of_both_once(datasets):
    """Main rows first; extra rows under their own ids."""
    fit = make_fit(datasets, ScoreConfig)
    for world in (1, 2):
        loaders = [open_loader(fit, rank, world) for rank in range(world)]
        segments = loaders[0].segments
        assert isinstance(segments, MixedSegments)
        found = {"main": [], "extra": []}
        for segment in range(segments.scored_segments):
            batches = [batch.sample_ids for loader in loaders for batch in loader.ordered(segment)]
            assert sum(map(len, batches)) == segments.scored_rows(segment)
            found["main" if segment < segments.count else "extra"] += torch.cat(batches).tolist()
        assert {name: sorted(ids) for name, ids in found.items()} == {"main": [*range(53)], "extra": [*range(31)]}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("encoded", "keeps_main", "world"),
    [
        (False, False, 2),
        pytest.param(True, False, 1, marks=pytest.mark.soak),
        pytest.param(False, True, 1, marks=pytest.mark.soak),
        pytest.param(True, True, 2, marks=pytest.mark.soak),
    ],
)
def test_streamed_batches_have_the_same_shares_and_passes(datasets, tmp_path, encoded, keeps_main, world):
    """As those from memory: sources, passes and counts of every batch, and the rows of a pass; in another order."""
    extra = make_image_dataset(tmp_path / "extra", [number % 3 for number in range(31)], encoded=encoded)
    cached = make_fit((datasets[0], extra.path))
    # The main rows take 53 * 16 bytes; of what they leave there is not enough for 31 others.
    streamed = make_fit((datasets[0], extra.path), cache_gib=53 * 16 / 2**30 if keeps_main else 0.0)
    assert "extra images are streamed" in describe_streaming(streamed, 1)
    assert describe_streaming(streamed, 1).startswith("images are") != keeps_main
    for rank in range(world):
        loaders = [open_loader(fit, rank, world) for fit in (cached, streamed)]
        kept, found = (drawn(loader, [1, 2]) for loader in loaders)
        counted = [[[Counter(row[:2] for row in batch) for batch in epoch] for epoch in each] for each in (kept, found)]
        assert counted[0] == counted[1]
        ends = [
            Counter(row for epoch in each for batch in epoch for row in batch if row[1] == 1) for each in (kept, found)
        ]
        assert ends[0] == ends[1]
        again = [batch.sample_ids.tolist() for batch in open_loader(streamed, rank, world).shuffled(2, 3)]
        assert again == [batch.sample_ids.tolist() for batch in loaders[1].shuffled(2, 3)]
        scored = [
            [i for at in range(9) for batch in loader.ordered(at) for i in batch.sample_ids.tolist()]
            for loader in loaders
        ]
        assert loaders[0].segments.scored_segments == 7 + 2
        assert sorted(scored[0]) == sorted(scored[1])


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(datasets, tmp_path):
    """Workers die at some events of training and scoring: weights, metrics and both tables are those of a whole run."""
    main, extra = datasets
    case = Case(main, 2, score_pass="eval", initial_pass=True, epochs=2, commit_minutes=2.0, extra_dataset=extra,
                augment="crop")  # fmt: skip
    whole, state = case.attempt(tmp_path / "whole")
    expected = case.outcome(state, tmp_path / "whole")
    assert case.lost_and_doubled(state, tmp_path / "whole") == (0, 0)
    reached = set()
    for number, event in enumerate(range(7, min(whole.events), min(whole.events) // 9)):
        folder = tmp_path / str(number)
        assert case.attempt(folder, (number % 2, event))[1] is None
        _, state = case.attempt(folder)
        assert case.outcome(state, folder) == expected
        assert case.lost_and_doubled(state, folder) == (0, 0)
        reached.add(whole.names[event][:2])
    assert len(reached) > 3


def test_both_tables_hold_the_scores_of_the_weights(datasets, tmp_path):
    """Of the last epoch, as each dataset alone is scored with the final weights; labels are each dataset's own."""
    main, extra = datasets
    case = Case(main, 2, score_pass="eval", epochs=2, extra_dataset=extra)
    _, state = case.attempt(tmp_path)
    model = build(case.fit.model)
    model.load_state_dict(state.model)
    for path, of_extra, folder in ((main, False, tmp_path), (extra, True, tmp_path / "extra")):
        rows = read_split(open_dataset(path), "train")
        labels = torch.tensor([2, 0])[rows.labels] if of_extra else rows.labels
        scores = score_epoch(model, [rows._replace(labels=labels)])
        table = rows_of(case.parts(state, tmp_path, of_extra), folder)
        assert list(table) == [1, 2]
        found = table[2].sort_by("sample_id")
        assert found["sample_id"].to_pylist() == ids_of(open_dataset(path)).tolist()
        assert found["label"].to_pylist() == rows.labels.tolist()
        for name in ("grad_norm", "loss", "margin", "el2n"):
            np.testing.assert_allclose(found[name].to_numpy(), scores[name], rtol=1e-4, atol=1e-6)
    assert {"extra_mean_grad_norm", "extra_easiest_overlap", "easiest_overlap"} <= state.history[-1].keys()


@pytest.mark.parametrize("job", ["standard", "trades", "pgd", "mart", "nfgsm"])
def test_every_objective_trains_on_both(datasets, tmp_path, job):
    """Two workers see the rows that arithmetic says, and a step is divided by rows of both kinds."""
    main, extra = datasets
    case = Case(main, 2, job, epochs=1, extra_dataset=extra, ema=None)
    _, state = case.attempt(tmp_path)
    segments = case.fit.segments(2)
    assert state.step == segments.num_batches == 14
    assert case.fit.epoch_rows == 53 + segments.extra_per_epoch
    sources = case.fit.describe_sources(state.step)["sources"]
    assert sources["main"] == {"samples": 53, "rows_per_epoch": 53, "rows": 53}
    assert sources["extra"] == {
        "samples": 31, "batch_rows": 8, "rows_per_epoch": 106, "rows": 106, "passes": round(106 / 31, 3)
    }  # fmt: skip
