"""Losses and gradients of one training batch: computed step by step, or replayed from a CUDA graph.

Takes a network, inputs and labels on its device and the draws of the attack, and leaves the gradient of the summed loss
in the parameters. A TRADES step with ten attack steps starts thousands of kernels, and for small images starting them
takes longer than running them: a CUDA graph starts them all at once. It runs the same kernels in the same order.
"""

import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from easycore_ray.core.objectives import attack_batch, loss_rows
from easycore_ray.core.training_plan import TrainingPlan
from easycore_ray.core.weight_perturbation import perturbed_weights

# Batches of one shape computed step by step before they are recorded: libraries choose their kernels in the first.
_BATCHES_BEFORE_RECORDING = 2


class BatchResult(NamedTuple):
    """What a batch gives beside the gradients, valid until the next batch is computed."""

    losses: Tensor
    """float32 (B,), in nats."""
    logits: Tensor
    """(B, num_classes) of the clean inputs, for pgd and nfgsm of the attacked ones."""
    input_grad: Tensor | None
    """(B, C, H, W), of the summed loss at the clean inputs, if it was requested."""


class Gradients(Protocol):
    """Computes a batch: afterwards every parameter that was used holds the gradient of the summed loss."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        start: Tensor | None,
        plan: TrainingPlan,
        weights: Tensor | None = None,
    ) -> BatchResult:
        """Of inputs (B, C, H, W), which may require a gradient, labels int64 (B,), ``start`` from ``draw_start``.

        With ``weights``, float32 (B,), the loss of each row is multiplied by its own in that sum, and as it is in the
        result.
        """
        ...


def compute_gradients(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    start: Tensor | None,
    plan: TrainingPlan,
    weights: Tensor | None = None,
) -> BatchResult:
    """See ``Gradients``, which says the shapes."""
    for parameter in model.parameters():
        parameter.grad = None
    with _autocast(inputs.device, plan.precision):
        adv_inputs = attack_batch(model, inputs, labels, start, plan)
    loss = partial(_losses, model, inputs, adv_inputs, labels, plan)
    with perturbed_weights(model, plan.awp, lambda: _total(loss()[0], weights)):
        losses, logits = loss()
        _total(losses, weights).backward()
    forward_clean(model, inputs, plan)
    return BatchResult(losses.detach(), logits.detach(), inputs.grad)


@torch.no_grad()
def forward_clean(model: nn.Module, inputs: Tensor, plan: TrainingPlan) -> None:
    """Forward a clean batch in training mode, for the running statistics alone; nothing, unless the plan wants it.

    The code of Bag of Tricks for AT (Pang et al. 2021) reports clean accuracy during PGD-AT from forward passes in
    training mode, just before an update and just after it. So its running statistics see three batches a step, two of
    them clean, where plain PGD-AT shows them the attacked one alone.

    Args:
        model: in training mode; its running statistics change and nothing else.
        inputs: (B, C, H, W) float pixels in [0, 1].
        plan: of the run.
    """
    if plan.clean_forwards:
        with _autocast(inputs.device, plan.precision):
            model(inputs)


def _losses(
    model: nn.Module, inputs: Tensor, adv_inputs: Tensor | None, labels: Tensor, plan: TrainingPlan
) -> tuple[Tensor, Tensor]:
    with _autocast(inputs.device, plan.precision):
        return loss_rows(model, inputs, adv_inputs, labels, plan)


def _total(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.sum() if weights is None else (losses * weights).sum()


def _autocast(device: torch.device, precision: str) -> Any:
    """Context of the forward passes: autocast to bfloat16 for ``bf16``, no change (float32) for ``fp32``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class GraphedGradients:
    """``compute_gradients`` of a run on a GPU, recorded in a CUDA graph and replayed for batches of the same shape.

    Batches of other shapes, such as the last of an epoch, are computed step by step. So are batches with weights, whose
    shapes change from epoch to epoch, and every batch of a network that cannot be recorded: one that asks the GPU for a
    number, or that leaves no memory for the graph's own.
    """

    def __init__(self) -> None:
        self._seen: dict[torch.Size, int] = {}
        self._recorded: _Recording | None = None
        self.message = ""
        """Why nothing is recorded; empty while it can be."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        start: Tensor | None,
        plan: TrainingPlan,
        weights: Tensor | None = None,
    ) -> BatchResult:
        """See ``Gradients``; the network and the plan must be the same in every call."""
        if weights is not None:
            return compute_gradients(model, inputs, labels, start, plan, weights)
        if self._recorded is None and not self.message:
            self._seen[inputs.shape] = self._seen.get(inputs.shape, 0) + 1
            if self._seen[inputs.shape] > _BATCHES_BEFORE_RECORDING:
                self._record(model, inputs, labels, start, plan)
        if self._recorded is not None and self._recorded.takes(inputs):
            return self._recorded.replay(inputs, labels, start)
        return compute_gradients(model, inputs, labels, start, plan)

    def _record(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, start: Tensor | None, plan: TrainingPlan
    ) -> None:
        stream, draws = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        before = draws.clone_state()
        try:
            self._recorded = _Recording(model, inputs, labels, start, plan)
        except RuntimeError as error:
            # A recording that fails leaves its stream and its random numbers in place.
            torch.cuda.set_stream(stream)
            draws.graphsafe_set_state(before)
            reason = str(error).strip().splitlines()[0][:200]
            self.message = f"training steps are not recorded in a CUDA graph ({reason}); they are computed one by one"
            warnings.warn(self.message, RuntimeWarning, stacklevel=3)


class _Recording:
    """A CUDA graph of ``compute_gradients`` with the tensors that it reads and writes."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, start: Tensor | None, plan: TrainingPlan
    ) -> None:
        self._inputs = torch.empty_like(inputs.detach()).requires_grad_(inputs.requires_grad)
        self._labels = torch.empty_like(labels)
        self._start = None if start is None else torch.empty_like(start)
        self._fill(inputs, labels, start)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what is not allowed while this one records: pinning memory, asking for events.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = compute_gradients(model, self._inputs, self._labels, self._start, plan)
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def takes(self, inputs: Tensor) -> bool:
        """Whether the graph is of such a batch: of the same shape, with or without a gradient."""
        return inputs.shape == self._inputs.shape and inputs.requires_grad == self._inputs.requires_grad

    def replay(self, inputs: Tensor, labels: Tensor, start: Tensor | None) -> BatchResult:
        """Of a batch of the recorded shape."""
        self._fill(inputs, labels, start)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._result

    @torch.no_grad()
    def _fill(self, inputs: Tensor, labels: Tensor, start: Tensor | None) -> None:
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        if self._start is not None and start is not None:
            self._start.copy_(start)
