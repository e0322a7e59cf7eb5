"""The threat model: which perturbed inputs an attacker may use.

Takes clean inputs, an eps and a norm, and gives points of the allowed set: the eps-ball around each input, within the
pixel range [0, 1]. Eps is always in [0, 1] pixel units, and normalisation lives inside the model; attacks in
normalised space with an eps in pixels are the most frequent mistake in the field's issue lists.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from easycore_ray.core.eps import check_norm


def check_inputs(inputs: Tensor) -> None:
    """Refuses inputs that are not float pixels in [0, 1].

    Args:
        inputs: of any shape, usually (B, C, H, W); may be empty.

    Raises:
        ValueError: integer inputs, or values outside [0, 1] (NaN included).
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be float pixels in [0, 1], got {inputs.dtype}; use augment.to_float first")
    if inputs.numel() == 0:
        return
    low, high = (bound.item() for bound in inputs.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"inputs must be pixels in [0, 1], got {low:.4g} .. {high:.4g}; put normalisation inside the model"
        )


def l2_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row over all its other dimensions; float32 (B,), or float64 for float64 rows.

    Squares are summed in float64: the gradient of a confident sample is so small (1e-23) that its square is
    0 in float32, and then the easiest samples would all tie.
    """
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64)
    return norms.to(torch.promote_types(rows.dtype, torch.float32))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """The (B,) values as (B, 1, …, 1), to be broadcast over the rows of ``like``."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def project(adv_inputs: Tensor, inputs: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """A nearby point of the allowed set for each row of ``adv_inputs``: in the eps-ball and in [0, 1].

    For linf it is the nearest one. For l2 the box comes before the ball, as in the official TRADES code, so
    that no part of the radius is spent on pixels outside [0, 1]; scaling towards the input cannot leave the
    box again.

    Args:
        adv_inputs: (B, …) any values.
        inputs: (B, …) pixels in [0, 1], the centres.
        eps: radius in [0, 1] pixel units, one for all or (B,).
        norm: one of NORMS.

    Returns:
        Like ``adv_inputs``; its distance is at most eps up to rounding.
    """
    check_norm(norm)
    if norm == "linf":
        limit = per_row(eps, inputs) if isinstance(eps, Tensor) else eps
        return adv_inputs.clamp(inputs - limit, inputs + limit).clamp_(0.0, 1.0)
    offsets = adv_inputs.clamp(0.0, 1.0) - inputs
    norms = l2_norms(offsets)
    scale = torch.where(norms > eps, eps / norms, 1.0).to(offsets.dtype)
    return (inputs + offsets * per_row(scale, offsets)).clamp(0.0, 1.0)


def random_point(inputs: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A point drawn uniformly from the eps-ball around each input, then moved into [0, 1].

    Drawn in float32 on the generator's device: a CPU generator gives the same start on every device.

    Args:
        inputs: (B, …) pixels in [0, 1].
        eps: radius in [0, 1] pixel units.
        norm: one of NORMS.
        generator: the stream to draw from; torch's global one on the inputs' device if None.

    Returns:
        Like ``inputs``.
    """
    check_norm(norm)
    if norm == "linf":
        offsets = (2 * draw(torch.rand, inputs.shape, inputs.device, generator) - 1) * eps
    else:
        direction = draw(torch.randn, inputs.shape, inputs.device, generator)
        share = draw(torch.rand, inputs.shape[:1], inputs.device, generator)
        # Volume grows with radius**d, so a uniform point has radius eps · u**(1/d).
        radius = eps * share ** (1.0 / max(inputs[:1].numel(), 1))
        offsets = direction * per_row(radius / l2_norms(direction), direction)
    return (inputs + offsets.to(inputs)).clamp(0.0, 1.0)


def draw(
    kind: Callable[..., Tensor], shape: Sequence[int], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Random numbers on a device, float32, without waiting for it.

    Args:
        kind: ``torch.rand`` or ``torch.randn``.
        shape: of the result.
        device: where it is wanted.
        generator: drawn from on its own device, so that a CPU generator gives the same numbers on every device;
            torch's global one on ``device`` if None.
    """
    source = device if generator is None else generator.device
    # A GPU fetches by itself from pinned memory only.
    pinned = source.type == "cpu" and device.type == "cuda"
    values = kind(tuple(shape), generator=generator, device=source, pin_memory=pinned)
    return values.to(device, non_blocking=True)
