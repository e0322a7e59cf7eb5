"""Per-sample scores: equal to a slow loop and to finite differences, whatever batch a sample comes in."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from easycore_ray.core.models import build_model
from easycore_ray.core.scores import (
    SCORE_FIELDS,
    fused_scores,
    input_grad_norm,
    logit_scores,
    pixel_scale,
    score_batch,
)

NET = build_model("cnn", num_classes=5, image_shape=(3, 8, 8), width=4, mean=[0.4] * 3, std=[0.25] * 3, seed=3)
IMAGES = torch.rand(23, 3, 8, 8, generator=torch.Generator().manual_seed(7))
LABELS = torch.randint(0, 5, (23,), generator=torch.Generator().manual_seed(8))


def one_sample_loop(model, inputs, labels):
    """The scores by their definitions, one sample after the other."""
    model = copy.deepcopy(model).eval()
    rows = []
    for image, label in zip(inputs, labels, strict=True):
        point = image[None].clone().requires_grad_()
        logits = model(point)[0]
        loss = -torch.log_softmax(logits, 0)[label]
        loss.backward()
        others = torch.cat([logits[:label], logits[label + 1 :]])
        onehot = torch.eye(len(logits))[label]
        rows.append(
            {
                "grad_norm": point.grad.pow(2).sum().sqrt().item(),
                "loss": loss.item(),
                "margin": (logits[label] - others.max()).item(),
                "el2n": (logits.softmax(0) - onehot).pow(2).sum().sqrt().item(),
                "correct": logits.argmax().item() == label.item(),
            }
        )
    return {field: torch.tensor([row[field] for row in rows]) for field in SCORE_FIELDS}


def assert_same_scores(scores, expected, tolerance=1e-5):
    """Floats agree to the tolerance, answers exactly."""
    for field in SCORE_FIELDS:
        torch.testing.assert_close(scores[field], expected[field], rtol=tolerance, atol=tolerance, msg=field)


def test_scores_equal_a_loop_over_single_samples(model, inputs, labels):
    """Batched scores are what one sample alone gives, to 1e-5."""
    scores = score_batch(model, inputs, labels)
    assert_same_scores(scores, one_sample_loop(model, inputs, labels))
    assert scores["grad_norm"].min() > 1e-4  # or the comparison would say nothing


def test_grad_norm_equals_finite_differences(model, inputs, labels):
    """Moving one pixel at a time, in float64, gives the same gradient norm."""
    model, inputs = model.double(), inputs[:2].double()
    scores = score_batch(model, inputs, labels[:2])
    model.eval()
    for row in range(2):
        step = 1e-6 * torch.eye(inputs[row].numel(), dtype=torch.float64).view(-1, *inputs[row].shape)
        points = torch.cat([inputs[row] + step, inputs[row] - step])
        with torch.no_grad():
            losses = nn.functional.cross_entropy(model(points), labels[row].expand(len(points)), reduction="none")
        up, down = losses.chunk(2)
        assert scores["grad_norm"][row].item() == pytest.approx(((up - down) / 2e-6).norm().item(), rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(23)), st.integers(1, 23))
def test_scores_depend_on_neither_batch_size_nor_batch_mates_nor_order(order, batch_size):
    """Any order, cut into batches of any size, gives each sample the same scores."""
    whole = score_batch(NET, IMAGES, LABELS)
    order = torch.tensor(order)
    batches = [score_batch(NET, IMAGES[rows], LABELS[rows]) for rows in order.split(batch_size)]
    cut = {field: torch.cat([batch[field] for batch in batches]) for field in SCORE_FIELDS}
    assert_same_scores(cut, {field: whole[field][order] for field in SCORE_FIELDS})


def test_train_mode_would_have_mattered(model, inputs, labels):
    """The net does react to batch-mates in train mode, so the tests above can fail."""
    model.train()
    train_mode_loss = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    assert not torch.allclose(train_mode_loss, score_batch(model, inputs, labels)["loss"], atol=1e-2)


def test_scoring_leaves_no_trace(model, inputs, labels):
    """Weights, buffers, .grad, modes and inputs are as before, and no graph is kept."""
    model.train()
    model.network[1].eval()
    before, clean = copy.deepcopy(model), inputs.clone()
    with torch.no_grad():
        scores = score_batch(model, inputs, labels)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(inputs, clean)
    assert not inputs.requires_grad
    assert not any(values.requires_grad for values in scores.values())


def test_scoring_restores_the_model_when_it_fails(model, inputs, labels):
    """An error in the forward pass leaves the model in train mode."""
    model.train().network.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_batch(model, inputs, labels)
    assert all(module.training for module in model.modules())


def test_autocast_around_the_scoring_changes_nothing(model, inputs, labels):
    """Scores are float32 to the last bit whatever precision the caller trains in."""
    expected = score_batch(model, inputs, labels)
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_batch(model, inputs, labels)
    for field in SCORE_FIELDS:
        assert torch.equal(scores[field], expected[field])


def test_every_field_has_its_type_and_length(model, inputs, labels):
    """Four float32 columns and one of booleans, one value per row, in the order of the table."""
    scores = score_batch(model, inputs, labels)
    assert tuple(scores) == SCORE_FIELDS
    assert all(values.shape == (len(labels),) for values in scores.values())
    dtypes = {field: values.dtype for field, values in scores.items()}
    assert dtypes == dict.fromkeys(SCORE_FIELDS[:-1], torch.float32) | {"correct": torch.bool}


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_none_and_one_are_scored(model, inputs, labels, rows):
    """The smallest batches work."""
    scores = score_batch(model, inputs[:rows], labels[:rows])
    assert all(values.shape == (rows,) for values in scores.values())


def test_normalised_inputs_are_refused(model, inputs, labels):
    """A gradient in normalised space is another number; the error says where normalisation belongs."""
    with pytest.raises(ValueError, match="normalisation inside the model"):
        score_batch(model, inputs * 4 - 2, labels)


def test_logit_scores_of_a_row_by_hand():
    """Logits 0, log 3 and label 0: probabilities 1/4 and 3/4."""
    scores = logit_scores(torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]]), torch.tensor([0, 0]))
    assert scores["loss"].tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert scores["margin"].tolist() == pytest.approx([-math.log(3), math.log(3)])
    assert scores["el2n"].tolist() == pytest.approx([0.75 * math.sqrt(2), 0.25 * math.sqrt(2)])
    assert scores["correct"].tolist() == [False, True]


def test_confident_samples_still_have_an_order():
    """Gradients whose squares are below float32's range keep apart, and zero stays zero."""
    grad = torch.tensor([2e-25, 1e-25, 0.0, 1e25]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    norms = input_grad_norm(grad)
    assert norms.dtype == torch.float32
    assert torch.allclose(norms, torch.tensor([2e-25, 1e-25, 0.0, 1e25]) * math.sqrt(12), rtol=1e-6, atol=0)


def test_half_gradients_are_summed_in_higher_precision():
    """The norm of a float16 gradient does not overflow at 65504."""
    norms = input_grad_norm(torch.full((2, 3, 8, 8), 3e4, dtype=torch.float16))
    assert norms.dtype == torch.float32
    assert torch.allclose(norms, torch.full((2,), 3e4 * math.sqrt(192)), rtol=1e-3)


def test_a_broken_gradient_shows():
    """NaN is passed on, so that selection can refuse it by name."""
    assert input_grad_norm(torch.tensor([[1.0, math.nan], [1.0, 0.0]])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fused_scores_of_an_eval_mode_step_equal_the_exact_ones(model, inputs, labels, reduction):
    """Taken from a training loss and scaled to the sum, they are the exact scores where batch norm agrees."""
    expected = score_batch(model, inputs, labels)
    points = inputs.clone().requires_grad_()
    logits = model.eval()(points)
    nn.functional.cross_entropy(logits, labels, reduction=reduction).backward()
    scale = len(labels) if reduction == "mean" else 1
    scores = fused_scores(points.grad, logits, labels, grad_scale=scale)
    assert tuple(scores) == SCORE_FIELDS
    assert_same_scores(scores, expected)
    assert not any(values.requires_grad for values in scores.values())


def test_gradients_at_normalised_inputs_are_those_of_the_network_behind_the_normalisation(inputs, labels):
    """Exact and fused: equal to a loop over single samples that differentiates at what the network gets."""
    model = build_model("cnn", num_classes=5, image_shape=(3, 8, 8), width=4, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.9])
    expected = one_sample_loop(model.network, model.normalise(inputs), labels)
    scale = pixel_scale(model, "normalised")
    scores = score_batch(model, inputs, labels, scale=scale)
    points = inputs.clone().requires_grad_()
    logits = model.eval()(points)
    nn.functional.cross_entropy(logits, labels, reduction="sum").backward()

    assert_same_scores(scores, expected)
    assert_same_scores(fused_scores(points.grad, logits, labels, grad_scale=1.0, scale=scale), expected)
    ratio = scores["grad_norm"] / score_batch(model, inputs, labels)["grad_norm"]
    assert ratio.min() > 0.2
    assert ratio.max() < 0.9
    assert ratio.max() > 1.01 * ratio.min(), "no common factor, so the order may differ"


def test_the_scale_of_pixels_is_none():
    """Nothing is multiplied; other spaces need a normalisation, and a name that is known."""
    assert pixel_scale(nn.Linear(2, 2), "pixel") is None
    with pytest.raises(ValueError, match="needs a model with Normalise"):
        pixel_scale(nn.Linear(2, 2), "normalised")
    with pytest.raises(ValueError, match="must be one of pixel, normalised, got 'latent'"):
        pixel_scale(NET, "latent")
