"""Scoring in adversarial training: scores under attack, by a slow loop, and whatever way a run is made."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from easycore_ray import inspect, reduce, score
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.ascent import Ascent
from easycore_ray.core.memory import RowLimit
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.seeding import generator
from easycore_ray.inspection.verify import verify
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.scoring.hardness_table import ADVERSARIAL_HARDNESS_SCHEMA, read_hardness
from easycore_ray.scoring.plans import scoring_works
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import draw_rows, edit_manifest, finish_table, make_image_dataset, samples_of, write_parts
from tests.hardness import EPOCHS, expected, in_ranges, population
from tests.soak.segments import Case, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_threads")]

CLEAN = ("sample_id", "label", "grad_norm", "loss", "margin", "el2n", "correct")
LABELS = [number % 3 for number in range(49)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_image_dataset(tmp_path_factory.mktemp("adversarial") / "dataset", LABELS).path


# ---------------------------------------------------------------- one pass


@pytest.fixture(scope="module")
def network():
    """With running statistics of its own, as after some training."""
    model = build_model("cnn", num_classes=5, image_shape=(3, 8, 8), width=4, mean=[0.4] * 3, std=[0.25] * 3, seed=3)
    with torch.no_grad():
        model.train()(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.fixture(scope="module")
def rows():
    """Ids with gaps in no order, images, labels."""
    draws = torch.Generator().manual_seed(7)
    ids = torch.randperm(90, generator=draws)[:23]
    images = torch.randint(0, 256, (23, 3, 8, 8), generator=draws, dtype=torch.uint8)
    return ids, images, torch.randint(0, 5, (23,), generator=draws)


def attack_of(norm, *, seed=5, epoch=2, eps=None, steps=4):
    """Of a size at which some attacks succeed and others do not."""
    eps = {"linf": 0.02, "l2": 0.2}[norm] if eps is None else eps
    return ScoreAttack(Ascent(eps, norm, steps, 2.5 * eps / steps), seed, epoch)


def one_sample_pgd(model, sample_id, image, label, attack):
    """Loss and correctness of one sample at the worst point that plain projected gradient ascent passes through."""
    model.eval()
    clean, (eps, norm, steps, size) = (image.float() / 255)[None], attack.ascent
    draws = generator("score attack", attack.seed, attack.epoch, sample_id)
    if norm == "linf":
        offset = (2 * torch.rand(clean.shape[1:], generator=draws) - 1)[None] * eps
    else:
        direction = torch.randn(clean.shape[1:], generator=draws)[None]
        offset = direction / direction.norm() * eps * torch.rand((), generator=draws) ** (1 / clean.numel())
    point, visited = (clean + offset).clamp(0, 1), []
    for step in range(steps + 1):
        point = point.detach().requires_grad_()
        logits = model(point)[0]
        loss = -torch.log_softmax(logits, 0)[label]
        visited.append((logits.argmax().item() != label, loss.item()))
        if step == steps:
            break
        (slope,) = torch.autograd.grad(loss, point)
        if norm == "linf":
            point = torch.minimum(torch.maximum(point + size * slope.sign(), clean - eps), clean + eps).clamp(0, 1)
        else:
            moved = (point + size * slope / slope.norm()).clamp(0, 1) - clean
            point = clean + moved * min(1.0, eps / moved.norm().item())
    wrong, worst = max(visited)
    return worst, not wrong


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_scores_under_attack_are_those_of_one_sample_after_the_other(network, rows, norm):
    """To 1e-5, and exactly for whether the attack succeeds; the start is drawn for the sample alone."""
    attack = attack_of(norm)
    found = score_epoch(network, [rows], attack=attack)
    slow = [one_sample_pgd(network, *row, attack) for row in zip(rows[0].tolist(), *rows[1:], strict=True)]

    assert found["adv_loss"].dtype == np.float32
    assert found["adv_correct"].dtype == bool
    assert 0 < found["adv_correct"].sum() < found["correct"].sum()
    np.testing.assert_allclose(found["adv_loss"], [loss for loss, _ in slow], rtol=1e-5)
    assert found["adv_correct"].tolist() == [right for _, right in slow]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("at_once", [1, 5, 16])
def test_batches_and_their_order_change_rounding_only(network, rows, norm, at_once):
    """The same sample has the same start whoever its batch-mates are."""
    whole = score_epoch(network, [rows], attack=attack_of(norm))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(at_once))
    cut = zip(*(column[order].split(7) for column in rows), strict=True)
    found = score_epoch(network, cut, attack=attack_of(norm), limit=RowLimit(at_once))

    np.testing.assert_array_equal(found["sample_id"], whole["sample_id"][order])
    np.testing.assert_allclose(found["adv_loss"], whole["adv_loss"][order], rtol=1e-5)
    np.testing.assert_array_equal(found["adv_correct"], whole["adv_correct"][order])


def test_an_attack_leaves_all_other_scores_and_the_network_as_they_were(network, rows):
    """To the bit; other seeds and epochs have other starts."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    plain, found = score_epoch(network, [rows]), score_epoch(network, [rows], attack=attack_of("linf"))

    assert tuple(plain) == CLEAN
    assert all(found[name].tobytes() == plain[name].tobytes() for name in CLEAN)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    for other in (attack_of("linf", seed=6), attack_of("linf", epoch=3)):
        assert (score_epoch(network, [rows], attack=other)["adv_loss"] != found["adv_loss"]).any()


def test_without_a_perturbation_the_attack_finds_the_clean_image(network, rows):
    """The same loss, and as many right."""
    found = score_epoch(network, [rows], attack=attack_of("linf", eps=0.0))
    np.testing.assert_allclose(found["adv_loss"], found["loss"], rtol=1e-6)
    np.testing.assert_array_equal(found["adv_correct"], found["correct"])


# ---------------------------------------------------------------- a run


def run(dataset, folder, *, workers=1, kill=None, **fields):
    """A scoring run of three segments an epoch: the case, its group, its last state (None if killed)."""
    small = dict(score_pass="eval", training="trades", eps=0.1, attack_steps=2, epochs=2, commit_minutes=0.0)
    case = Case(dataset, workers, **small | fields)
    return case, *case.attempt(folder, kill)


def table_of(case, state, folder):
    """The rows of every scored epoch, sorted by id."""
    return {epoch: table.sort_by("sample_id") for epoch, table in rows_of(case.parts(state, folder), folder).items()}


@pytest.mark.parametrize("training", ["trades", "pgd", "mart"])
def test_a_run_trains_as_train_does_and_scores_under_attack(dataset, tmp_path, training):
    """The weights are those of a training run of the same recipe, and every epoch's metrics the means of its rows."""
    case, _, state = run(dataset, tmp_path / "score", training=training)
    trained = Case(dataset, 1, training, eps=0.1, attack_steps=2, epochs=2, ema=None, commit_minutes=0.0)
    _, expected_state = trained.attempt(tmp_path / "train")
    rows = table_of(case, state, tmp_path / "score")

    assert all(torch.equal(value, expected_state.model[name]) for name, value in state.model.items())
    assert rows.keys() == {1, 2}
    for entry in state.history:
        mine = rows[entry["epoch"]]
        assert entry["mean_adv_loss"] == pytest.approx(pc.mean(mine["adv_loss"].cast("float64")).as_py(), rel=1e-12)
        assert entry["adv_accuracy"] == pytest.approx(pc.mean(mine["adv_correct"].cast("int64")).as_py(), rel=1e-12)
        assert pc.mean(mine["adv_loss"]).as_py() > pc.mean(mine["loss"]).as_py()


@pytest.mark.parametrize("training", ["trades", "pgd"])
def test_clean_columns_are_those_of_the_same_weights_without_attack(dataset, tmp_path, training):
    """Initial weights do not depend on the objective: bit for bit those of a standard run."""
    found = []
    for objective in (dict(training=training), dict(training="standard", eps=8 / 255, attack_steps=10)):
        folder = tmp_path / objective["training"]
        case, _, state = run(dataset, folder, epochs=1, initial_pass=True, **objective)
        found.append(table_of(case, state, folder)[0])

    assert found[0].column_names == [*found[1].column_names, "adv_loss", "adv_correct"]
    assert found[0].select(found[1].column_names) == found[1]


def test_numbers_of_workers_change_rounding_only(dataset, tmp_path):
    """Of given weights: those that every run begins with."""
    found = []
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        case, _, state = run(dataset, folder, workers=workers, epochs=1, initial_pass=True)
        found.append(table_of(case, state, folder)[0])
    for other in found[1:]:
        np.testing.assert_allclose(other["adv_loss"], found[0]["adv_loss"], rtol=1e-5)
        assert other.select(["sample_id", "adv_correct"]) == found[0].select(["sample_id", "adv_correct"])


@pytest.mark.parametrize(
    ("training", "norm", "workers"), [("trades", "linf", 2), pytest.param("pgd", "l2", 1, marks=pytest.mark.slow)]
)
def test_a_run_that_dies_in_its_scoring_pass_resumes_to_the_same_bits(dataset, tmp_path, training, norm, workers):
    """Between the segments of a pass, before and after their commits; table, weights and metrics."""
    fields = dict(training=training, norm=norm, workers=workers, score_every=2, epochs=3, initial_pass=True)
    case, whole, state = run(dataset, tmp_path / "whole", **fields)
    expected_outcome = case.outcome(state, tmp_path / "whole")
    scored = [at for at, name in enumerate(whole.names) if name[:2] == ("batch", "scored")]
    commits = [at for at, name in enumerate(whole.names) if name[0] in ("commit", "half a commit", "committed")]
    points = [*scored[1::6], *[min(at for at in commits if at > event) for event in scored[::6]]]
    assert len(points) >= 4
    for number, event in enumerate(points):
        folder = tmp_path / str(number)
        *_, killed = run(dataset, folder, kill=(0, event), **fields)
        case, _, state = run(dataset, folder, **fields)
        assert killed is None
        found = case.outcome(state, folder)
        assert [name for name in expected_outcome if found[name] != expected_outcome[name]] == []
        assert case.lost_and_doubled(state, folder) == (0, 0)


def test_a_run_ends_once_its_scores_are_stable(dataset, tmp_path):
    """By AIGN, as ever; nothing of the sums under attack is left over."""
    case, _, state = run(dataset, tmp_path, training="pgd", epochs=9, stop_when_stable=0.05)
    rows = table_of(case, state, tmp_path)

    assert state.epoch == 2
    assert rows.keys() == {1, 2}
    assert {"adv_loss", "adv_correct"} <= set(rows[2].column_names)


def test_an_input_space_is_that_of_gradients_and_no_attack(dataset, tmp_path):
    """Attacks are in pixels; gradients are multiplied by the deviation of the one channel."""
    case, _, state = run(dataset, tmp_path, epochs=1, initial_pass=True, input_space="normalised")
    found = table_of(case, state, tmp_path)[0]
    plain, _, state = run(dataset, tmp_path / "plain", epochs=1, initial_pass=True)
    pixels = table_of(plain, state, tmp_path / "plain")[0]

    assert found.drop(["grad_norm"]) == pixels.drop(["grad_norm"])
    (std,) = case.dataset.std
    np.testing.assert_allclose(found["grad_norm"], std * pixels["grad_norm"].to_numpy(), rtol=1e-6)


# ---------------------------------------------------------------- tables


@pytest.fixture
def attacked(tmp_path):
    """A finished score table of adversarial training, and its hardness by a plain loop."""
    ids, labels = population()
    rows, samples = draw_rows(ids, labels, EPOCHS, attacked=True), samples_of(ids, labels)
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.arange(37) % 3), samples, training="trades")
    return tmp_path, rows, samples


@pytest.mark.parametrize("num_ranges", [1, 2, 7, 40])
def test_hardness_under_attack_is_that_of_a_plain_loop(attacked, num_ranges):
    """However ids are cut; the control of epoch 0 enters neither column."""
    folder, rows, samples = attacked
    plain = expected(rows, samples)

    assert set(plain["problematic"].to_pylist()) == set(range(len(EPOCHS)))
    assert in_ranges(folder, num_ranges).equals(plain)


def test_an_epoch_range_rules_scores_under_attack_too(attacked):
    """3:5 alone."""
    folder, rows, samples = attacked
    found = read_hardness(reduce(scores=str(folder), out=f"{folder}/some", epoch_range="3:5"))

    assert found.equals(expected([columns for columns in rows if columns["epoch"][0] in (0, 3, 5)], samples))


@pytest.mark.parametrize("only", [("adv_loss",), ("problematic",), ("aign", "problematic"), ("aign",)])
def test_only_some_scores_are_the_same(attacked, only):
    """The file has their columns alone, and is found to be as it should."""
    folder, rows, samples = attacked
    artifact = reduce(scores=str(folder), out=f"{folder}/some", only=only)
    file = pq.read_table(f"{artifact.path}/{artifact.manifest['files'][0]['path']}")

    assert file == expected(rows, samples).select(["sample_id", "label", *only])
    assert read_hardness(artifact, ["adv_loss"])["adv_loss"].null_count == (0 if "adv_loss" in only else 37)
    assert verify(artifact) == []


def test_both_tables_are_verified_as_what_they_are(attacked):
    """Whole ones have nothing wrong; what is not finite or of the other kind is named."""
    folder, _, _ = attacked
    hardness, table = reduce(scores=str(folder), out=f"{folder}/hardness"), open_artifact(f"{folder}/table")

    assert hardness.manifest["training"] == "trades"
    assert read_hardness(hardness).schema == ADVERSARIAL_HARDNESS_SCHEMA
    assert verify(hardness) == verify(table) == []
    edit_manifest(f"{folder}/table", config={"score_pass": "eval"})
    edit_manifest(f"{folder}/hardness", training="standard")
    problems = verify(open_artifact(f"{folder}/table"))
    assert len(problems) == len(table.manifest["parts"])
    assert all("another schema than the parts of its table" in problem for problem in problems)
    assert "another schema than a hardness table" in verify(open_artifact(f"{folder}/hardness"))[0]


def test_a_loss_under_attack_that_is_not_finite_is_refused(tmp_path):
    """When it is written, naming the sample."""
    ids, labels = population()
    (columns,) = draw_rows(ids, labels, [1], attacked=True)
    columns["adv_loss"][3] = np.inf
    with pytest.raises(EasyCoreError, match=rf"epoch 1: adv_loss is not finite for 1 samples .*: {ids[3]}\)"):
        write_parts(tmp_path, [columns], np.zeros(37))


@pytest.mark.parametrize("training", ["standard", "trades"])
def test_a_table_of_both_kinds_of_parts_is_refused(tmp_path, training):
    """Whichever kind it says it is of."""
    ids, labels = population()
    rows = [*draw_rows(ids, labels, [1]), *draw_rows(ids, labels, [2], attacked=True)]
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.zeros(37)), samples_of(ids, labels),
                 training=training)  # fmt: skip
    with pytest.raises(EasyCoreError, match="has another schema than the parts of its table"):
        reduce(scores=str(tmp_path), out=f"{tmp_path}/hardness")


@pytest.mark.parametrize("score", ["adv_loss", "problematic"])
def test_a_run_in_standard_training_has_no_scores_under_attack(tmp_path, score):
    """Refused in one line that says what is needed, before anything is written."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, [1, 2]), np.zeros(37))
    finish_table(tmp_path, parts, samples_of(ids, labels))
    with pytest.raises(EasyCoreError, match=rf"has no {score}: .*score --training trades --score-pass eval") as caught:
        reduce(scores=str(tmp_path), out=f"{tmp_path}/hardness", only=("aign", score))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hardness").exists()


def test_inspect_says_how_a_run_was_trained(attacked):
    """Beside the pass, of both tables; and shows the scores under attack."""
    folder, _, _ = attacked
    reduce(scores=str(folder), out=f"{folder}/hardness")
    for name in ("table", "hardness"):
        assert "score pass" in to_text(inspect(path=f"{folder}/{name}"))
        assert "eval, training trades" in to_text(inspect(path=f"{folder}/{name}"))
    assert "problematic" in to_text(inspect(path=f"{folder}/hardness", score="problematic"))


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"training": "trades"},
            r"score_pass must be eval with training trades, got 'fused\+eval': .*--score-pass eval",
        ),
        ({"training": "pgd", "score_pass": "fused"}, "score_pass must be eval with training pgd, got 'fused'"),
        ({"training": "nfgsm"}, "training must be one of standard, trades, pgd, mart, got 'nfgsm'"),
        ({"eps": 0.1}, "eps 0.1 decides nothing where scores are taken in standard training; pass --training trades"),
        ({"norm": "l2"}, "norm l2 decides nothing"),
        ({"attack_steps": 3}, "attack_steps 3 decides nothing"),
        ({"attack_step_size": 0.1}, "attack_step_size 0.1 decides nothing"),
        ({"beta": 2.0}, "beta 2 decides nothing where scores are taken in standard training"),
        (
            {"training": "pgd", "score_pass": "eval", "beta": 2.0},
            "beta 2 decides nothing where scores are taken in pgd training; pass --training trades or mart, or leave",
        ),
        ({"training": "pgd", "score_pass": "eval", "eps": 8.0}, "did you mean 8/255"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    """In a sentence each."""
    with pytest.raises(FieldsError, match=message):
        ScoreConfig(dataset="d", out="o", **fields)


def test_an_attack_wider_than_the_images_is_refused_before_any_work(dataset, tmp_path):
    """As by train: 8 for 8/255, in l2."""
    fields = dict(training="pgd", score_pass="eval", norm="l2", eps=8.0, model="cnn", num_workers=1)
    with pytest.raises(EasyCoreError, match=r"got 8\.0"):
        score(dataset=dataset, out=f"{tmp_path}/s", **fields)
    assert not (tmp_path / "s").exists()


def test_dry_runs_count_the_attack(dataset, tmp_path):
    """In training by its objective; in each exact pass 2 forward passes a step, and 1."""
    fields = dict(dataset=dataset, out=f"{tmp_path}/s", model="cnn", epochs=4, score_pass="eval", num_workers=1)
    plain, attacked = (
        scoring_works(ScoreConfig(**fields, **more), 100, 4) for more in ({}, {"training": "trades", "attack_steps": 5})
    )
    plan = score.plan(**fields, training="trades", attack_steps=5)

    assert [(work.task, work.images, work.attack_steps) for work in plain] == [("standard", 400, 0), ("exact", 400, 0)]
    assert [(work.task, work.images) for work in attacked] == [("trades", 400), ("exact", 400)]
    assert attacked[0].forward_passes == 17
    assert attacked[1].forward_passes - plain[1].forward_passes == 11
    assert [estimate.work for estimate in plan.estimates] == ["trades training", "exact scoring under attack"]
    assert plan.work.startswith("train cnn (trades) for 4 epochs on 49 samples")
    assert plan.bytes_written > score.plan(**fields).bytes_written
