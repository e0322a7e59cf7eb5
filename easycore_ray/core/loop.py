"""The one training loop: an epoch of steps, the score pass after it, validation.

It takes batches of ``(sample_ids, images, labels)`` and knows nothing of where they come from or how
many workers share them: with more than one, ``combine`` adds up gradients. Losses are summed,
not averaged, and gradients divided by the number of rows in the global batch, so that uneven batches
and workers weigh every sample the same and the input gradient of a step is already per sample.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easycore_ray.core.augment import augment, to_device, to_float
from easycore_ray.core.gradients import Gradients, compute_gradients, forward_clean
from easycore_ray.core.objectives import draw_start
from easycore_ray.core.schedules import learning_rate
from easycore_ray.core.score_columns import ScoreColumns
from easycore_ray.core.scores import fused_scores, pixel_scale
from easycore_ray.core.seeding import generator, seeded
from easycore_ray.core.sgd import SGD
from easycore_ray.core.training_plan import TrainingPlan

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Of ``sample_ids`` int64 (B,), images uint8 (B, C, H, W) and labels int64 (B,)."""
Combine = Callable[[list[Tensor], int], int]
"""Adds the gradients and the loss (a list of tensors, in place) of all workers; takes this worker's number of rows and
returns that of all, which must be known without asking the device."""


class NotFiniteError(ValueError):
    """Training has diverged: its loss or its weights are not finite."""


# Steps between two looks at the loss where a look makes the device wait; elsewhere every step is looked at.
_STEPS_PER_LOOK = {"cpu": 1}
_STEPS_PER_LOOK_ON_DEVICES = 32


@dataclass(frozen=True)
class EpochResult:
    """Results of one training epoch on this worker's rows.

    ``loss_sum`` is the loss summed over ``num_rows`` rows, in nats; ``steps`` counts optimizer steps.
    ``scores`` holds arrays of shape (num_rows,).
    """

    loss_sum: float
    num_correct: int
    """Of the clean training views; of the attacked ones for pgd and nfgsm, which forward no others."""
    num_rows: int
    steps: int
    scores: dict[str, np.ndarray] | None
    """Fused scores with ``sample_id`` and ``label``, one entry a row, if they were requested."""
    row_losses: dict[str, np.ndarray] | None = None
    """``sample_id`` int64 (num_rows,) and ``loss`` float32 (num_rows,), without weights, if they were requested."""
    stall_share: float = 0.0
    """Share of the epoch's time in which the device did nothing but wait for the next batch, in [0, 1]."""


def make_optimizer(model: nn.Module, plan: TrainingPlan) -> SGD:
    """SGD over all parameters, which stay float32; each step is given its learning rate.

    Args:
        model: the bare module.
        plan: gives momentum, Nesterov and weight decay.
    """
    nesterov = plan.nesterov and plan.momentum > 0
    return SGD(model.parameters(), momentum=plan.momentum, nesterov=nesterov, weight_decay=plan.weight_decay)


def prepare_inputs(images: Tensor, device: torch.device) -> Tensor:
    """uint8 pixels (B, C, H, W) as models take them: float32 in [0, 1] on the device, channels last."""
    inputs = to_float(to_device(images, device))
    # Convolutions are faster in this layout on CPUs and GPUs alike (1.5 × here); single channels have no layout.
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.shape[1] > 1 else inputs


def _views(images: Tensor, sample_ids: Tensor, plan: TrainingPlan, epoch: int) -> Tensor:
    return augment(images, sample_ids, plan.augment, seed=plan.seed, epoch=epoch, pad=plan.crop_pad,
                   reflect=plan.crop_reflect)  # fmt: skip


def train_epoch(
    model: nn.Module,
    optimizer: SGD,
    batches: Batches,
    plan: TrainingPlan,
    *,
    epoch: int,
    step: int,
    segment: int = 0,
    rank: int = 0,
    combine: Combine | None = None,
    record_scores: bool = False,
    on_step: Callable[[int], None] | None = None,
    gradients: Gradients = compute_gradients,
    weigh: Callable[[Tensor], Tensor] | None = None,
    record_losses: bool = False,
) -> EpochResult:
    """Train on every batch of an epoch, or of one of its segments, once; returns sums over this worker's rows.

    Args:
        model: the bare module; left in training mode.
        optimizer: from ``make_optimizer``.
        batches: this worker's share; every worker has the same number of batches, none empty.
        plan: of the run.
        epoch: number of the epoch, from 1.
        step: optimizer steps done before; the epoch ends early at ``plan.total_steps``.
        segment: of the epoch, from 0; epoch, segment and rank seed attack noise and dropout.
        rank: this worker.
        combine: adds up gradients and losses over workers; None for one worker.
        record_scores: also take per-sample scores from each step's own input gradient (fused); not for pgd.
        on_step: called after each step, with the number of steps done.
        gradients: computes a batch; a ``GraphedGradients`` of this run and its network starts a GPU's work faster.
        weigh: from ids (B,) the weights of their losses in the gradient, float32 (B,); all 1 if None.
        record_losses: also give the loss of each row.

    Raises:
        NotFiniteError: the loss over all workers' rows or the weights after the last step are not finite. Names the
            first such step, the same on every worker; no worker is left waiting.
    """
    device, attack_draws = next(model.parameters()).device, generator("attack", plan.seed, epoch, segment, rank)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    watch = _DivergenceWatch(plan, epoch, _STEPS_PER_LOOK.get(device.type, _STEPS_PER_LOOK_ON_DEVICES))
    sums = _EpochSums(model, plan, record_scores, record_losses)
    timed = _TimedBatches(islice(batches, max(plan.total_steps - step, 0)), device)
    model.train()
    # Layers such as dropout draw from torch's global generator.
    with seeded("layers", plan.seed, epoch, segment, rank):
        for sample_ids, images, labels in timed:
            images, labels = to_device(images, device), to_device(labels, device)
            weights = None if weigh is None else to_device(weigh(sample_ids), device)
            inputs = prepare_inputs(_views(images, sample_ids, plan, epoch), device).requires_grad_(record_scores)
            result = gradients(model, inputs, labels, draw_start(inputs, plan, attack_draws), plan, weights)
            watch.see(step, _update(optimizer, parameters, result.losses, combine, _rate(plan, step)))
            forward_clean(model, inputs, plan)
            sums.add(sample_ids, labels, *result)
            step += 1
            if on_step is not None:
                on_step(step)
    watch.finish(parameters, step)
    return sums.to_result(timed)


class _EpochSums:
    """Sums over an epoch's rows, kept on the device: fetching them in each step would make a GPU wait."""

    def __init__(self, model: nn.Module, plan: TrainingPlan, record_scores: bool, record_losses: bool) -> None:
        device = next(model.parameters()).device
        self._scale = pixel_scale(model, plan.input_space)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._num_rows = self._steps = 0
        self._scores = ScoreColumns() if record_scores else None
        self._row_losses = ScoreColumns() if record_losses else None

    def add(
        self, sample_ids: Tensor, labels: Tensor, losses: Tensor, logits: Tensor, input_grad: Tensor | None
    ) -> None:
        """Add a batch: ids, labels and losses (B,), logits (B, num_classes), gradient at the inputs (B, C, H, W)."""
        if self._scores is not None:
            assert input_grad is not None
            scores = fused_scores(input_grad, logits.float(), labels, grad_scale=1.0, scale=self._scale)
            self._scores.add({"sample_id": sample_ids, "label": labels, **scores})
        if self._row_losses is not None:
            self._row_losses.add({"sample_id": sample_ids, "loss": losses})
        self._loss += losses.sum(dtype=torch.float64)
        self._correct += (logits.argmax(dim=1) == labels).sum()
        self._num_rows += len(labels)
        self._steps += 1

    def to_result(self, timed: "_TimedBatches") -> EpochResult:
        """The sums as numbers, and how long was waited for the batches."""
        scores, row_losses = (
            None if columns is None else columns.to_numpy() for columns in (self._scores, self._row_losses)
        )
        return EpochResult(float(self._loss), int(self._correct), self._num_rows, self._steps, scores, row_losses,
                           timed.waiting_share())  # fmt: skip


class _TimedBatches:
    """Iterates over batches and measures the time in which the device has nothing to do but wait for them.

    A GPU may still have steps to do while the next batch is waited for; only if it has none when the batch comes does
    that wait count, and then as a whole.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._started, self._waited = batches, time.perf_counter(), 0.0
        self._done = torch.cuda.Event() if device.type == "cuda" else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        batches, end = iter(self._batches), object()
        while True:
            if self._done is not None:
                self._done.record()
            started = time.perf_counter()
            batch: Any = next(batches, end)
            if self._done is None or self._done.query():
                self._waited += time.perf_counter() - started
            if batch is end:
                return
            yield batch

    def waiting_share(self) -> float:
        """Share of the time since the start that was spent waiting."""
        return self._waited / max(time.perf_counter() - self._started, 1e-9)


def _update(
    optimizer: SGD,
    parameters: list[nn.Parameter],
    losses: Tensor,
    combine: Combine | None,
    rate: float,
) -> Tensor:
    """Take an optimizer step on the mean gradient of the global batch; returns the batch's summed loss, float32 ()."""
    loss, count = losses.sum(), len(losses)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if combine is not None:
        count = combine([*gradients, loss], count)
    torch._foreach_div_(gradients, float(count))
    optimizer.step(rate)
    return loss


def _rate(plan: TrainingPlan, step: int) -> float:
    """Learning rate of the step after ``step`` others."""
    return learning_rate(step, total_steps=plan.total_steps, base=plan.lr, kind=plan.schedule,
                         warmup_steps=plan.warmup_steps, milestones=plan.milestones, final=plan.final_lr)  # fmt: skip


class _DivergenceWatch:
    """Checks that losses are finite, without making a GPU wait in any step.

    All workers see the same summed losses and check them after the same steps, so they stop together. On a GPU the
    losses of some steps are fetched together, and looked at when the next are: they have arrived by then.
    """

    def __init__(self, plan: TrainingPlan, epoch: int, steps_per_look: int) -> None:
        self._plan, self._epoch, self._steps_per_look = plan, epoch, steps_per_look
        self._waiting: list[tuple[int, Tensor]] = []
        self._fetched: tuple[list[int], Tensor, torch.cuda.Event | None] | None = None

    def see(self, step: int, loss: Tensor) -> None:
        """Take note of the summed loss, of shape (), of the step after ``step`` others."""
        self._waiting.append((step, loss))
        if len(self._waiting) < self._steps_per_look:
            return
        if loss.is_cuda:
            self._refuse_fetched()
            self._fetch()
        else:
            self.look()

    def look(self) -> None:
        """Refuse the first loss since the last look that is not finite.

        Raises:
            NotFiniteError: names step, epoch and learning rate.
        """
        self._refuse_fetched()
        self._fetch()
        self._refuse_fetched()

    def _fetch(self) -> None:
        """Have the losses copied to memory that the CPU can read."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        losses, arrived = torch.stack([loss for _, loss in waiting]), None
        if losses.is_cuda:
            losses = torch.empty(len(waiting), pin_memory=True).copy_(losses, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._fetched = ([step for step, _ in waiting], losses, arrived)

    def _refuse_fetched(self) -> None:
        fetched, self._fetched = self._fetched, None
        if fetched is None:
            return
        steps, losses, arrived = fetched
        if arrived is not None:
            arrived.synchronize()
        for step, loss in zip(steps, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise NotFiniteError(self._diverged(f"the loss is {loss} in", step))

    def finish(self, parameters: list[nn.Parameter], step: int) -> None:
        """Check the remaining losses, then the weights after ``step`` steps."""
        self.look()
        self.refuse_weights(parameters, step)

    def refuse_weights(self, parameters: list[nn.Parameter], step: int) -> None:
        """Refuse weights that the last of ``step`` steps has broken, which no loss has shown yet.

        Raises:
            NotFiniteError: names step, epoch and learning rate.
        """
        if not bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all()):
            raise NotFiniteError(self._diverged("the weights are not finite after", step - 1))

    def _diverged(self, what: str, step: int) -> str:
        plan = self._plan
        return (
            f"training diverged: {what} step {step + 1} of {plan.total_steps} (epoch {self._epoch}, learning rate "
            f"{_rate(plan, step):.4g}); lower --lr or raise --warmup-fraction"
        )
