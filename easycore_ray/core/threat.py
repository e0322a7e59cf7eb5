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


def l1_norms(rows: Tensor) -> Tensor:
    """Sum of absolute values of each row over all other dimensions; float32 (B,), or float64 for float64 rows."""
    norms = torch.linalg.vector_norm(rows.flatten(1), ord=1, dim=1, dtype=torch.float64)
    return norms.to(torch.promote_types(rows.dtype, torch.float32))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """The (B,) values as (B, 1, …, 1), to be broadcast over the rows of ``like``."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def project(adv_inputs: Tensor, inputs: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """A nearby point of the allowed set for each row of ``adv_inputs``: in the eps-ball and in [0, 1].

    For linf and l1 it is the nearest one, for l1 see ``_project_l1``. For l2 the box comes before the ball, as in the
    official TRADES code, so that no part of the radius is spent on pixels outside [0, 1]; scaling towards the input
    cannot leave the box again.

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
    if norm == "l1":
        return _project_l1(adv_inputs, inputs, eps)
    offsets = adv_inputs.clamp(0.0, 1.0) - inputs
    norms = l2_norms(offsets)
    scale = torch.where(norms > eps, eps / norms, 1.0).to(offsets.dtype)
    return (inputs + offsets * per_row(scale, offsets)).clamp(0.0, 1.0)


def _project_l1(adv_inputs: Tensor, inputs: Tensor, eps: float | Tensor) -> Tensor:
    """The nearest point of the intersection of the L1 ball and [0, 1], row by row.

    Each offset moves towards 0 by one threshold, and is then cut where its pixel would leave [0, 1]. For the ball alone
    that is Duchi et al. 2008 (ICML, "Efficient projections onto the l1-ball"). Cutting after their threshold would
    spend a part of the radius outside the box, so the threshold is that of the intersection (Croce and Hein 2021,
    arXiv 2103.01208, "Mind the box"): the root of a piecewise linear function, found between its sorted breakpoints,
    in float64.
    """
    offsets = (adv_inputs - inputs).flatten(1).double()
    centres = inputs.flatten(1).double()
    lengths, room = offsets.abs(), torch.where(offsets > 0, 1 - centres, centres)
    if isinstance(eps, Tensor):
        limit = eps.double()[:, None]
    else:
        limit = torch.full((len(inputs), 1), eps, dtype=torch.float64, device=inputs.device)
    # As the threshold falls, an offset begins to count at its length, and has all its room at length minus room.
    points, order = torch.cat([lengths, lengths - room], dim=1).sort(dim=1, descending=True)
    slopes = torch.where(order < lengths.shape[1], 1.0, -1.0).to(points.dtype).cumsum(dim=1)
    norms = (slopes[:, :-1] * (points[:, :-1] - points[:, 1:])).cumsum(dim=1)  # at each breakpoint but the first
    last = (norms < limit).sum(dim=1, keepdim=True)  # of the breakpoints before the limit is reached
    last = last.clamp(max=norms.shape[1] - 1)
    reached = torch.cat([torch.zeros_like(limit), norms], dim=1).gather(1, last)
    slope = slopes.gather(1, last).clamp(min=1.0)
    threshold = (points.gather(1, last) - (limit - reached) / slope).clamp(min=0.0)
    inside = torch.minimum(lengths, room).sum(dim=1, keepdim=True) <= limit
    threshold = torch.where(inside, 0.0, threshold)
    moved = offsets.sign() * (lengths - threshold).clamp(min=0.0)
    return (inputs + moved.reshape(inputs.shape).to(inputs)).clamp(0.0, 1.0)


def sparse_step(points: Tensor, gradient: Tensor, length: float, pixels: int) -> Tensor:
    """The points moved by ``length`` in l1 where it counts most: the pixels of the largest gradient, within [0, 1].

    In the order of their gradient pixels move by length / ``pixels`` each, or as far as [0, 1] lets them, until the
    length is used up. With one pixel it is the steepest step of the ball and the box together (Croce and Hein 2021,
    arXiv 2103.01208); with several the sparse step of SLIDE (Tramèr and Boneh 2019, arXiv 1904.13000), which spends
    nothing on pixels that are at their end already.

    Args:
        points: (B, …) pixels.
        gradient: like ``points``; a row of zeros stays.
        length: of the step, in [0, 1] pixel units.
        pixels: among how many the step is divided, at least 1.

    Returns:
        Like ``points``, in [0, 1].
    """
    start, slopes = points.clamp(0.0, 1.0), gradient.flatten(1)
    flat = start.flatten(1).to(torch.promote_types(points.dtype, torch.float32))
    room = torch.where(slopes > 0, 1 - flat, flat).clamp(max=length / pixels) * (slopes != 0)
    order = slopes.abs().argsort(dim=1, descending=True, stable=True)
    ordered = room.gather(1, order)
    spent_before = ordered.cumsum(dim=1) - ordered
    moves = torch.minimum(ordered, (length - spent_before).clamp(min=0.0))
    moved = torch.zeros_like(flat).scatter(1, order, moves) * slopes.sign()
    return (start + moved.reshape(points.shape).to(points)).clamp(0.0, 1.0)


Draws = torch.Generator | Sequence[torch.Generator]
"""Where random numbers of a batch come from: one stream, or one for each row, whose draws then depend on no other."""


def random_point(inputs: Tensor, eps: float, norm: str, generator: Draws | None) -> Tensor:
    """A point drawn uniformly from the eps-ball around each input, then moved into [0, 1].

    Drawn in float32 on the generator's device: a CPU generator gives the same start on every device.

    Args:
        inputs: (B, …) pixels in [0, 1].
        eps: radius in [0, 1] pixel units.
        norm: one of NORMS.
        generator: the stream or streams to draw from; torch's global one on the inputs' device if None.

    Returns:
        Like ``inputs``.
    """
    check_norm(norm)
    if norm == "linf":
        offsets = (2 * draw(torch.rand, inputs.shape, inputs.device, generator) - 1) * eps
    else:
        direction = draw(torch.randn, inputs.shape, inputs.device, generator)
        if norm == "l1":
            # Of Laplace variables the direction is uniform on the l1 sphere, as of normal ones on that of l2.
            direction = direction.sign() * -torch.log1p(-draw(torch.rand, inputs.shape, inputs.device, generator))
        share = draw(torch.rand, inputs.shape[:1], inputs.device, generator)
        # Volume grows with radius**d, so a uniform point has radius eps · u**(1/d).
        radius = eps * share ** (1.0 / max(inputs[:1].numel(), 1))
        norms = l1_norms(direction) if norm == "l1" else l2_norms(direction)
        offsets = direction * per_row(radius / norms, direction)
    return (inputs + offsets.to(inputs)).clamp(0.0, 1.0)


def draw(kind: Callable[..., Tensor], shape: Sequence[int], device: torch.device, generator: Draws | None) -> Tensor:
    """Random numbers on a device, float32, without waiting for it.

    Args:
        kind: ``torch.rand`` or ``torch.randn``.
        shape: of the result, (B, …).
        device: where it is wanted.
        generator: drawn from on its own device, so that a CPU generator gives the same numbers on every device;
            torch's global one on ``device`` if None. B of them, on the CPU, draw a row each.
    """
    if isinstance(generator, Sequence):
        values = torch.empty(tuple(shape), pin_memory=device.type == "cuda")
        for row, stream in zip(values, generator, strict=True):
            row.copy_(kind(tuple(shape)[1:], generator=stream))
        return values.to(device, non_blocking=True)
    source = device if generator is None else generator.device
    # A GPU fetches by itself from pinned memory only.
    pinned = source.type == "cpu" and device.type == "cuda"
    values = kind(tuple(shape), generator=generator, device=source, pin_memory=pinned)
    return values.to(device, non_blocking=True)
