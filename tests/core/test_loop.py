"""The training loop: steps, scores taken on the way, divergence, validation."""

import copy
import time

import numpy as np
import pytest
import torch

from easycore_ray.core import gradients, loop
from easycore_ray.core.attacks import pgd, pgd_training_attack, trades_attack
from easycore_ray.core.augment import augment, to_float
from easycore_ray.core.loop import (
    NotFiniteError,
    make_optimizer,
    prepare_inputs,
    train_epoch,
)
from easycore_ray.core.losses import cross_entropy_rows
from easycore_ray.core.models import build_model, compiled
from easycore_ray.core.passes import score_epoch, validate
from easycore_ray.core.seeding import generator
from easycore_ray.core.training_plan import TRAINING, TrainingPlan


def make_plan(**changes):
    fields = dict(
        training="standard", beta=6.0, eps=0.1, norm="linf", attack_steps=2, attack_step_size=0.05, lr=0.1,
        momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="constant", warmup_steps=0, total_steps=10**6,
        augment="none", crop_pad=1, precision="fp32", seed=0,
    )  # fmt: skip
    return TrainingPlan(**fields | changes)


def make_model(seed=0):
    return build_model("cnn", num_classes=3, image_shape=(1, 8, 8), width=4, mean=(0.5,), std=(0.25,), seed=seed)


def make_batches(sizes=(5, 4, 1), seed=0):
    draws = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    images = torch.randint(0, 256, (total, 1, 8, 8), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 3, (total,), generator=draws)
    ids = torch.randperm(1000, generator=draws)[:total]
    return list(zip(ids.split(sizes), images.split(sizes), labels.split(sizes), strict=True))


def test_a_step_equals_torch_sgd_on_the_mean_loss():
    """One epoch moves the weights as plain PyTorch with mean reduction does."""
    batches, plan = make_batches((6, 4)), make_plan()
    ours, theirs = make_model(), make_model()
    train_epoch(ours, make_optimizer(ours, plan), batches, plan, epoch=1, step=0)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    theirs.train()
    for _, images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(to_float(images)), labels).backward()
        optimizer.step()

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_fused_scores_are_the_steps_own_input_gradient_rescaled_to_the_sum():
    """A fused row's gradient norm is the training step's input gradient times the batch size (mean to sum)."""
    (ids, images, labels), plan = make_batches((7,))[0], make_plan(lr=1e-9)
    model = make_model()
    result = train_epoch(model, make_optimizer(model, plan), [(ids, images, labels)], plan, epoch=1, step=0,
                         record_scores=True)  # fmt: skip

    twin = make_model().train()
    inputs = to_float(images).requires_grad_()
    torch.nn.functional.cross_entropy(twin(inputs), labels).backward()
    expected = inputs.grad.flatten(1).norm(dim=1) * len(labels)

    np.testing.assert_array_equal(result.scores["sample_id"], ids.numpy())
    np.testing.assert_allclose(result.scores["grad_norm"], expected.numpy(), rtol=1e-5)


def test_recording_scores_does_not_change_the_weights():
    """Taking fused scores leaves training bit-identical."""
    weights = []
    for record in (False, True):
        model, plan = make_model(), make_plan(augment="crop")
        train_epoch(model, make_optimizer(model, plan), make_batches(), plan, epoch=1, step=0, record_scores=record)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))

    assert torch.equal(*weights)


def test_the_score_pass_leaves_the_model_as_it_was():
    """Scoring touches neither weights, running statistics, gradients nor the mode."""
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_epoch(model, make_batches())

    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_do_not_depend_on_how_rows_are_grouped():
    """Batches of one give the scores of batches of ten."""
    model, together = make_model(), make_batches((10,))
    single = [tuple(column[i : i + 1] for column in together[0]) for i in range(10)]
    whole, apart = score_epoch(model, together), score_epoch(model, single)

    for name in ("grad_norm", "loss", "margin", "el2n"):
        np.testing.assert_allclose(whole[name], apart[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", TRAINING[1:])
def test_the_same_epoch_is_repeated_bit_for_bit(training):
    """Seed, epoch and rank decide augmentation and attack noise."""
    weights = []
    for _ in range(2):
        model, plan = make_model(), make_plan(training=training, augment="crop-flip")
        train_epoch(model, make_optimizer(model, plan), make_batches(), plan, epoch=3, step=0, rank=1)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))

    assert torch.equal(*weights)


def test_a_model_that_draws_is_repeated_bit_for_bit():
    """Dropout depends on seed, epoch and rank, not on what was drawn before, and leaves torch's generator alone."""
    weights = []
    for before, epoch in ((0, 3), (5, 3), (0, 4)):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
        torch.rand(before)
        state, plan = torch.get_rng_state(), make_plan()
        train_epoch(model, make_optimizer(model, plan), make_batches(), plan, epoch=epoch, step=0)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model[2].weight.detach())

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_another_epoch_sees_other_views():
    """The augmentation of epoch 2 is not that of epoch 1."""
    weights = []
    for epoch in (1, 2):
        model, plan = make_model(), make_plan(augment="crop")
        train_epoch(model, make_optimizer(model, plan), make_batches((10,)), plan, epoch=epoch, step=0)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))

    assert not torch.equal(*weights)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_pgd_step_is_sgd_on_the_cross_entropy_of_the_attacked_batch(norm):
    """Gradients of a pgd step equal mean cross-entropy at the attack's points, in training mode, to 1e-6."""
    rows, plan = make_batches((7,))[0], make_plan(training="pgd", norm=norm, eps=0.3, attack_step_size=0.1)
    ours, theirs = make_model(), make_model()
    result = train_epoch(ours, make_optimizer(ours, plan), [rows], plan, epoch=2, step=0, rank=1)

    inputs, labels = to_float(rows[1]), rows[2]
    adv_inputs = pgd_training_attack(theirs, inputs, labels, eps=0.3, norm=norm, steps=2, step_size=0.1,
                                     generator=generator("attack", 0, 2, 0, 1))  # fmt: skip
    assert (adv_inputs - inputs).abs().max() > 0.01
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    logits = theirs.train()(adv_inputs)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()

    assert result.loss_sum / 7 == pytest.approx(loss.item(), rel=1e-6)
    assert result.num_correct == int((logits.argmax(1) == labels).sum())
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps", "step_size"), [("linf", 0.031, 0.007), ("l2", 0.5, 0.1)])
def test_a_trades_step_is_sgd_on_the_official_loss(norm, eps, step_size):
    """Loss, weights and running statistics after a step are those of the official code in torch's words, to 1e-6.

    Batch norm is in evaluation mode in the attack and in training mode in the loss, which forwards the clean inputs
    a second time, as the official code does.
    """
    rows = make_batches((7,))[0]
    plan = make_plan(training="trades", norm=norm, eps=eps, attack_steps=10, attack_step_size=step_size)
    ours, theirs, modes = make_model(), make_model(), []
    ours.register_forward_pre_hook(lambda module, _: modes.append({part.training for part in module.modules()}))
    result = train_epoch(ours, make_optimizer(ours, plan), [rows], plan, epoch=2, step=0, rank=1)

    inputs, labels = to_float(rows[1]), rows[2]
    noise = torch.randn(inputs.shape, generator=generator("attack", 0, 2, 0, 1))
    attacked = trades_attack(theirs, inputs, eps=eps, norm=norm, steps=10, step_size=step_size, noise=noise)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    natural = torch.nn.functional.cross_entropy(theirs.train()(inputs), labels)
    adversarial = theirs(attacked).log_softmax(1)
    divergence = torch.nn.KLDivLoss(reduction="sum")(adversarial, theirs(inputs).softmax(1))
    loss = natural + 6.0 / 7 * divergence
    loss.backward()
    optimizer.step()

    assert modes == [{False}] * 11 + [{True}] * 2
    assert result.loss_sum / 7 == pytest.approx(loss.item(), rel=1e-6)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", TRAINING[:-1])
@pytest.mark.parametrize("world", [2, 3])
def test_workers_together_take_the_one_process_step(training, world):
    """Gradients summed over uneven workers and divided by the global count equal one process on all rows."""
    model_arguments = dict(num_classes=3, in_features=64)
    rows, plan = make_batches((11,))[0], make_plan(training=training, eps=0.1 if training == "standard" else 0.0)
    whole = _without_batch_norm(**model_arguments)
    train_epoch(whole, make_optimizer(whole, plan), [rows], plan, epoch=1, step=0)

    parts = [tuple(column.tensor_split(world)[rank] for column in rows) for rank in range(world)]
    shared = [_gradients(_without_batch_norm(**model_arguments), part, plan) for part in parts]
    total = [sum(each) for each in zip(*shared, strict=True)]

    def combine(gradients, count):
        torch._foreach_copy_(gradients, total)
        return len(rows[2])

    one = _without_batch_norm(**model_arguments)
    train_epoch(one, make_optimizer(one, plan), [parts[0]], plan, epoch=1, step=0, combine=combine)

    for mine, other in zip(one.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def _without_batch_norm(num_classes, in_features):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_features, 8), torch.nn.ReLU(),
                               torch.nn.Linear(8, num_classes))  # fmt: skip


def _gradients(model, part, plan):
    """A worker's summed gradients, caught where they are handed over."""
    caught = []

    def combine(gradients, count):
        caught.extend(gradient.clone() for gradient in gradients)
        return count

    train_epoch(model, make_optimizer(model, plan), [part], plan, epoch=1, step=0, combine=combine)
    return caught


def test_multistep_drops_the_rate_of_the_optimizer_at_its_milestones(monkeypatch):
    """The rate of every step, as the optimizer is given it: a tenth after half of the steps, a hundredth after 3/4."""
    model, plan = make_model(), make_plan(schedule="multistep", milestones=(0.5, 0.75), total_steps=4)
    optimizer, rates = make_optimizer(model, plan), []
    monkeypatch.setattr(optimizer, "step", rates.append)
    train_epoch(model, optimizer, make_batches((2,) * 4), plan, epoch=1, step=0)

    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_training_stops_at_the_last_step():
    """An epoch ends early when the run's steps are used up."""
    model, plan = make_model(), make_plan(total_steps=2)
    result = train_epoch(model, make_optimizer(model, plan), make_batches((4, 4, 4)), plan, epoch=1, step=0)

    assert (result.steps, result.num_rows) == (2, 8)


class BreaksOnWhite(torch.nn.Module):
    """A linear model whose logits are infinite, then not numbers, for images that are all white."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(64, 3)

    def forward(self, inputs):
        white = (inputs == 1).flatten(1).all(dim=1, keepdim=True)
        return self.inner(inputs.flatten(1)) * torch.where(white, torch.inf, 1.0)


@pytest.mark.parametrize("steps_per_look", [1, 3, 32])
def test_divergence_is_said_with_step_epoch_and_learning_rate(monkeypatch, steps_per_look):
    """The first step whose loss is no number is named with its own rate, however seldom the loss is looked at."""
    monkeypatch.setattr(loop, "_STEPS_PER_LOOK", {"cpu": steps_per_look})
    model, plan = BreaksOnWhite(), make_plan(lr=1.0, warmup_steps=100, total_steps=200)
    batches = make_batches((4,) * 7)
    batches[4][1][:] = 255

    with pytest.raises(
        NotFiniteError, match=r"the loss is nan in step 15 of 200 \(epoch 4, learning rate 0.15\); lower --lr"
    ):
        train_epoch(model, make_optimizer(model, plan), batches, plan, epoch=4, step=10)


def test_a_worker_stops_in_the_step_in_which_another_ones_loss_breaks():
    """What is added up over the workers is the loss too, so that all of them see the same and none waits for others."""
    seen = []

    def combine(tensors, count):
        seen.append(len(tensors))
        if len(seen) == 3:
            tensors[-1] += torch.nan  # the other worker's
        return count

    model, plan = make_model(), make_plan()
    with pytest.raises(ValueError, match=r"the loss is nan in step 3 "):
        train_epoch(model, make_optimizer(model, plan), make_batches((4,) * 7), plan, epoch=1, step=0, combine=combine)

    assert len(seen) == 3
    assert seen[0] == 1 + len(list(model.parameters()))


def test_weights_that_the_last_step_broke_are_no_good_epoch():
    """Without a further loss to show it, an epoch that ends in infinite weights is refused all the same."""
    model, plan = make_model(), make_plan(lr=100.0, weight_decay=1e38)

    with pytest.raises(
        ValueError, match=r"the weights are not finite after step 1 of .* \(epoch 1, learning rate 100\)"
    ):
        train_epoch(model, make_optimizer(model, plan), make_batches((4,)), plan, epoch=1, step=0)


def test_validation_counts_right_and_robust_predictions():
    """Both counts equal those by hand, in evaluation mode; mode and torch's generator are left alone."""
    model, batches, plan = make_model(), make_batches((40, 30, 1)), make_plan()
    for epoch in range(1, 6):
        train_epoch(model, make_optimizer(model, plan), batches[:2], plan, epoch=epoch, step=0)
    state = torch.get_rng_state()
    found = validate(model, batches, eps=0.3, steps=3, seed=7)

    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    right = robust = 0
    for ids, images, labels in batches:
        correct = model(to_float(images)).argmax(1) == labels
        draws = generator("validate", 7, int(ids[0]))
        attacked = pgd(model, to_float(images)[correct], labels[correct], eps=0.3, steps=3, generator=draws)
        right += int(correct.sum())
        robust += int((model(attacked).argmax(1) == labels[correct]).sum())
    assert (found.num_rows, found.num_correct, found.num_robust) == (71, right, robust)
    assert 0 < robust < right < 71, "nothing to tell apart"


def test_validation_is_the_same_on_any_number_of_workers():
    """Blocks counted apart add up to the whole, and without an attack there is no robust count."""
    model, batches = make_model(), make_batches((40, 30, 1))
    whole = validate(model, batches, eps=0.3, steps=3)
    apart = [validate(model, batches[rank::2], eps=0.3, steps=3) for rank in (0, 1)]

    for name in ("num_rows", "num_correct", "num_robust"):
        assert sum(getattr(part, name) for part in apart) == getattr(whole, name)
    plain = validate(model, batches)
    assert (plain.num_correct, plain.num_robust) == (whole.num_correct, 0)


def test_the_fused_loss_is_the_training_loss():
    """Loss and correctness recorded on the way are those of the step itself."""
    model, plan, batches = make_model(), make_plan(lr=1e-9), make_batches((8,))
    result = train_epoch(model, make_optimizer(model, plan), batches, plan, epoch=1, step=0, record_scores=True)
    with torch.no_grad():
        logits = make_model().train()(prepare_inputs(batches[0][1], torch.device("cpu")))

    np.testing.assert_allclose(result.scores["loss"], cross_entropy_rows(logits, batches[0][2]).numpy(), rtol=1e-5)
    assert result.loss_sum == pytest.approx(float(result.scores["loss"].sum()), rel=1e-5)


@pytest.mark.slow
def test_waiting_for_batches_is_measured_as_a_share_of_the_epoch():
    """A feed that takes most of the time is reported as such, one that takes none as nothing."""

    def slow(seconds):
        for batch in make_batches((4, 4)):
            time.sleep(seconds)
            yield batch

    model, plan = make_model(), make_plan()
    train_epoch(model, make_optimizer(model, plan), make_batches((4,)), plan, epoch=1, step=0)
    started = time.perf_counter()
    waiting = train_epoch(model, make_optimizer(model, plan), slow(0.5), plan, epoch=1, step=0).stall_share
    whole = time.perf_counter() - started
    none = train_epoch(model, make_optimizer(model, plan), slow(0.0), plan, epoch=1, step=0).stall_share

    assert 1.0 / whole <= waiting <= 1
    assert none < waiting


def test_images_are_augmented_on_the_models_device_with_draws_of_the_cpu(monkeypatch):
    """Bytes are moved first; torch's meta device, which holds no data, stands in for a GPU."""
    seen = []

    def watching(images, sample_ids, kind, **draws):
        seen.append((images.device.type, images.dtype, sample_ids.device.type))
        return augment(images, sample_ids, kind, **draws)

    monkeypatch.setattr(loop, "augment", watching)
    model, plan = make_model().to("meta"), make_plan(augment="crop")
    with pytest.raises(Exception, match="meta"):  # numbers are asked for at the end, and there are none
        train_epoch(model, make_optimizer(model, plan), make_batches((4,)), plan, epoch=1, step=0)

    assert seen == [("meta", torch.uint8, "cpu")]


@pytest.mark.parametrize("training", ["trades", "pgd"])
def test_no_weight_gradient_is_computed_in_the_attack(training):
    """Of all backward passes through a convolution only those of the update ask for its weights' gradient."""
    asked = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                asked.append(args[-1][1])
            return function(*args, **(kwargs or {}))

    model, plan = make_model(), make_plan(training=training, attack_steps=5)
    with Watching():
        train_epoch(model, make_optimizer(model, plan), make_batches((4,)), plan, epoch=1, step=0)

    convolutions, forwards = 3, 2 if training == "trades" else 1
    assert asked == [False] * convolutions * 5 + [True] * convolutions * forwards


@pytest.mark.parametrize("training", TRAINING)
def test_losses_are_float32_under_bf16(training, monkeypatch):
    """The forward passes run in bfloat16, what is summed and differentiated is float32, and weights stay so."""
    seen = []
    objective = gradients.loss_rows

    def watching(*arguments):
        rows, logits = objective(*arguments)
        seen.append((rows.dtype, logits.dtype))
        return rows, logits

    monkeypatch.setattr(gradients, "loss_rows", watching)
    model, plan = make_model(), make_plan(training=training, precision="bf16", fold=True)
    result = train_epoch(model, make_optimizer(model, plan), make_batches((6,)), plan, epoch=1, step=0)

    assert seen == [(torch.float32, torch.bfloat16)]
    assert np.isfinite(result.loss_sum)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "sizes"), [("standard", (6,)), pytest.param("trades", (6, 5, 5), marks=pytest.mark.soak)]
)
def test_compiled_steps_are_the_plain_ones(training, sizes, monkeypatch):
    """They move the weights as without a compiler, up to rounding, under the same names; also in uneven batches."""
    from torch._inductor import config

    # The little that is compiled here is not worth processes that compile.
    monkeypatch.setattr(config, "compile_threads", 1)
    plain, plan = make_model(), make_plan(training=training, lr=0.01)
    quick = copy.deepcopy(plain)
    batches = make_batches(sizes)
    expected = train_epoch(plain, make_optimizer(plain, plan), batches, plan, epoch=1, step=0)
    steps = compiled(quick, torch.device("cpu"))
    found = train_epoch(steps, make_optimizer(quick, plan), batches, plan, epoch=1, step=0)

    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-3)
    assert list(quick.state_dict()) == list(plain.state_dict())
    for mine, other in zip(quick.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    """What torch says is passed on, with the machine's name and the way out."""

    def broken(*arguments, **options):
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        ValueError, match=r"no working compiler on .*no g\+\+; install a C\+\+ compiler .* --compile out"
    ):
        compiled(make_model(), torch.device("cpu"))


@pytest.mark.parametrize(
    "changes", [{"training": "Trades"}, {"precision": "fp16"}, {"augment": "flip"}, {"norm": "Linf"}]
)
def test_a_plan_of_words_that_no_branch_knows_is_refused(changes):
    """Each would be taken for another branch: standard training, float32, and so on."""
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        make_plan(**changes)
