"""Per-sample scores: how hard one sample is for the model as it stands.

Takes a model and a batch, gives one number per row and score. Averaged over epochs, ``grad_norm`` is AIGN,
the score of EasyCore (arXiv 2510.11018).

The exact pass scores *the sample*, not the batch it came in. Eval mode, because in train mode batch norm lets
batch-mates into every gradient (88 % agreement on the easiest 30 % in a small test). Sum-reduced loss, because a mean
divides every gradient by the batch size and so inflates the last, smaller batch. Float32 without autocast, because
gradients of confident samples (1e-8) vanish in half precision. And every field is kept beside the norm, because a
norm near 0 alone does not separate "fitted" from "saturated on the wrong class".
"""

import torch
from torch import Tensor, nn

from easycore_ray.core.attacks import frozen_eval
from easycore_ray.core.losses import at_least_float32, cross_entropy_rows
from easycore_ray.core.models import Normalise
from easycore_ray.core.threat import check_inputs, l2_norms

SCORE_FIELDS = ("grad_norm", "loss", "margin", "el2n", "correct")
ADVERSARIAL_FIELDS = ("adv_loss", "adv_correct")
"""What an exact pass under an attack adds: the cross-entropy in nats at the attacked image, higher is harder, and
whether the highest logit there is the label's."""
INPUT_SPACES = ("pixel", "normalised")
"""Inputs that gradients are taken with respect to: pixels in [0, 1], or what ``Normalise`` makes of them."""


def pixel_scale(model: nn.Module, input_space: str) -> Tensor | None:
    """What a gradient at the pixels is multiplied by to be one in an input space; None for pixels themselves.

    A normalised input is (pixel - mean) / std, so its gradient is that of the pixel times std.

    Args:
        model: from ``build_model``, or compiled.
        input_space: one of INPUT_SPACES.

    Returns:
        For "normalised" the std of the model's ``Normalise``: float32 (1, C, 1, 1), on the model's device.

    Raises:
        ValueError: an unknown space, or a model without ``Normalise``.
    """
    if input_space not in INPUT_SPACES:
        raise ValueError(f"input_space must be one of {', '.join(INPUT_SPACES)}, got {input_space!r}")
    if input_space == "pixel":
        return None
    for module in model.modules():
        if isinstance(module, Normalise):
            return module.std
    raise ValueError("input_space normalised needs a model with Normalise in it, as build_model makes them")


def input_grad_norm(grad: Tensor, scale: Tensor | None = None) -> Tensor:
    """L2 norm of each row of an input gradient; averaged over epochs it is AIGN. Higher is harder.

    Args:
        grad: (B, …), the gradient of the *summed* loss at the inputs, any float type.
        scale: multiplies the gradient first, see ``pixel_scale``; broadcast to its shape.

    Returns:
        float32 (B,), at least 0; finite and not 0 wherever float32 can hold the true norm. NaN stays NaN.
    """
    return l2_norms(grad.detach() if scale is None else grad.detach() * scale)


def logit_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The scores that need no gradient: loss, margin, el2n, correct.

    - loss: cross-entropy in nats. Higher is harder.
    - margin: logit of the label - highest other logit. Higher is easier. On logits, as in the original AUM
      (Pleiss et al. 2020, arXiv 2001.10528); CCS takes it on the softmax.
    - el2n: ‖softmax - onehot‖₂ in [0, √2], not squared (Paul et al. 2021, arXiv 2107.07075, data_diet); the squared
      variant ranks differently once averaged over epochs. Higher is harder.
    - correct: the highest logit is the label's.

    Args:
        logits: (B, num_classes).
        labels: int64 (B,).

    Returns:
        float32 (B,) each, detached; correct is bool (B,).
    """
    logits = at_least_float32(logits.detach())
    label_column = labels.unsqueeze(1)
    others = logits.scatter(1, label_column, -torch.inf)
    errors = logits.softmax(dim=1).scatter_add(1, label_column, -torch.ones_like(logits[:, :1]))
    return {
        "loss": cross_entropy_rows(logits, labels),
        "margin": logits.gather(1, label_column).squeeze(1) - others.amax(dim=1),
        "el2n": errors.norm(dim=1),
        "correct": logits.argmax(dim=1) == labels,
    }


def score_batch(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, scale: Tensor | None = None, check: bool = True
) -> dict[str, Tensor]:
    """All SCORE_FIELDS of a batch in the exact pass; a row's scores do not depend on the other rows.

    The model is left as it was: weights, gradients, buffers and the mode of every submodule.

    Args:
        model: returns logits, normalises inside; float32 weights.
        inputs: (B, C, H, W) float pixels in [0, 1], the clean view.
        labels: int64 (B,).
        scale: from ``pixel_scale``, for gradients in another space than that of pixels.
        check: refuse inputs outside [0, 1], for which a GPU must be waited for.

    Returns:
        float32 (B,) per field (correct: bool), detached, on the device of the inputs.

    Raises:
        ValueError: inputs that are not float pixels in [0, 1].
    """
    if check:
        check_inputs(inputs)
    points = at_least_float32(inputs.detach()).requires_grad_()
    with (
        frozen_eval(model),
        torch.enable_grad(),
        torch.autocast(device_type=inputs.device.type, enabled=False),
    ):
        logits = model(points)
        (grad,) = torch.autograd.grad(cross_entropy_rows(logits, labels).sum(), points)
    return {"grad_norm": input_grad_norm(grad, scale), **logit_scores(logits, labels)}


def fused_scores(
    input_grad: Tensor, logits: Tensor, labels: Tensor, *, grad_scale: float, scale: Tensor | None = None
) -> dict[str, Tensor]:
    """All SCORE_FIELDS from what a training step has computed anyway.

    Not the exact scores: train-mode batch norm, the augmented view, training precision. Tables of the two
    kinds are never mixed.

    Args:
        input_grad: (B, …), the gradient of the training loss at the inputs.
        logits: (B, num_classes) of the same forward pass.
        labels: int64 (B,).
        grad_scale: what turns the training loss into the sum over rows: B for a mean, 1 for a sum, divided
            by the loss scale if a scaler was used.
        scale: as for ``score_batch``.

    Returns:
        As ``score_batch``.
    """
    return {"grad_norm": input_grad_norm(input_grad, scale) * grad_scale, **logit_scores(logits, labels)}
