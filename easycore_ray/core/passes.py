"""Passes over samples at fixed weights: exact scores of every row, and validation.

Takes batches of ``(sample_ids, images, labels)`` of any size, as the training loop does. No row depends on its
batch-mates but for rounding, so that batches are cut to what a device has memory for (``core.memory``).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from easycore_ray.core.ascent import Ascent, climb, worst_of
from easycore_ray.core.attacks import fgsm, frozen_eval, pgd
from easycore_ray.core.augment import to_device
from easycore_ray.core.last_layer import RECORDINGS
from easycore_ray.core.loop import Batches, prepare_inputs
from easycore_ray.core.losses import at_least_float32
from easycore_ray.core.memory import RowLimit, default_rows
from easycore_ray.core.score_columns import ScoreColumns
from easycore_ray.core.scores import pixel_scale, score_batch
from easycore_ray.core.seeding import generator
from easycore_ray.core.threat import random_point
from easycore_ray.core.training_plan import TrainingPlan


@dataclass(frozen=True)
class ScoreAttack:
    """The attack under which an exact pass also scores: ``attacks.pgd`` from one random start for each sample."""

    ascent: Ascent
    seed: int
    epoch: int
    """Under which the scores are recorded. A sample's start follows from seed, epoch and its id alone."""

    @classmethod
    def of_plan(cls, plan: TrainingPlan, epoch: int) -> "ScoreAttack | None":
        """That of a run, of the same size and steps as its training attack; None for standard training."""
        if plan.training == "standard":
            return None
        return cls(Ascent(plan.eps, plan.norm, plan.attack_steps, plan.attack_step_size), plan.seed, epoch)

    def score(self, model: nn.Module, sample_ids: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``adv_loss`` and ``adv_correct`` of rows, see ``scores.ADVERSARIAL_FIELDS``.

        Args:
            model: returns logits; left as it was.
            sample_ids: int64 (B,).
            inputs: (B, C, H, W) float32 pixels in [0, 1].
            labels: int64 (B,).
        """
        streams = [generator("score attack", self.seed, self.epoch, sample_id) for sample_id in sample_ids.tolist()]
        start = random_point(inputs, self.ascent.eps, self.ascent.norm, streams)
        with frozen_eval(model), torch.autocast(device_type=inputs.device.type, enabled=False):
            worst = worst_of(climb(model, inputs, start, labels, self.ascent))
        return {"adv_loss": worst.loss, "adv_correct": ~worst.wrong}


def score_epoch(
    model: nn.Module,
    batches: Batches,
    *,
    input_space: str = "pixel",
    attack: ScoreAttack | None = None,
    also: Collection[str] = (),
    limit: RowLimit | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Exact scores of every row at the current weights: evaluation mode, clean view, float32.

    Args:
        model: left as it was.
        batches: rows to score, images uint8 (B, C, H, W), in batches of any size; they are cut anew.
        input_space: inputs that gradients are taken with respect to, one of ``scores.INPUT_SPACES``.
        attack: under which rows are scored as well; the other scores are the same to the bit.
        also: what else to give of every row, of ``last_layer.RECORDINGS``.
        limit: rows that are scored at once; another number changes a score by rounding only. By default what
            ``memory.default_rows`` says.
        on_batch: called with the number of rows after each batch.

    Returns:
        ``sample_id`` and ``label`` int64 (N,), and the fields of ``core.scores``: float32 (N,), ``correct`` bool
        (N,); in the order of the batches. With an attack also ``adv_loss`` float32 (N,) and ``adv_correct`` bool (N,),
        with "features" ``last_layer.FEATURE_FIELDS``, float16 (N, D) and (N, num_classes), with "kd" ``softmax``,
        float32 (N, num_classes).

    Raises:
        ValueError: there are no batches.
    """
    device, scale = next(model.parameters()).device, pixel_scale(model, input_space)
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("there are no rows to score")
    limit = limit or _limit_for(first[1])
    found = ScoreColumns()
    for batch in _cut_anew(itertools.chain([first], source), limit.rows):
        for scores in limit.map(partial(_score_rows, model, device, scale, attack, also=also), *batch):
            found.add(scores)
        if on_batch is not None:
            on_batch(len(batch[0]))
    # Fetched once all are under way: a GPU would wait after every batch otherwise.
    return found.to_numpy()


def _limit_for(images: Tensor) -> RowLimit:
    return RowLimit(default_rows(images[:1].numel()))


def _cut_anew(batches: Iterable[tuple[Tensor, Tensor, Tensor]], rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same rows in batches of ``rows``, the last one of what is left."""
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        held.append(batch)
        while sum(len(ids) for ids, _, _ in held) >= rows:
            whole = _joined(held)
            yield _slice(whole, 0, rows)
            held = [_slice(whole, rows, len(whole[0]))]
    if held and len(last := _joined(held)[0]):
        yield _slice(_joined(held), 0, len(last))


def _joined(batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    if len(batches) == 1:
        return batches[0]
    ids, images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return ids, images, labels


def _slice(batch: tuple[Tensor, Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, images, labels = (column[start:stop] for column in batch)
    return ids, images, labels


def _score_rows(
    model: nn.Module,
    device: torch.device,
    scale: Tensor | None,
    attack: ScoreAttack | None,
    sample_ids: Tensor,
    images: Tensor,
    labels: Tensor,
    also: Collection[str] = (),
) -> dict[str, Tensor]:
    inputs, truth = prepare_inputs(images, device), to_device(labels, device)
    with _full_float32(device):
        # Bytes divided by 255 are in [0, 1]: nothing to check, for which a GPU would have to be waited for.
        with ExitStack() as stack:
            recorded = [stack.enter_context(RECORDINGS[name](model)) for name in also]
            scores = score_batch(model, inputs, truth, scale=scale, check=False)
        for found in recorded:
            scores |= found
        if attack is not None:
            scores |= attack.score(model, sample_ids, inputs, truth)
    return {"sample_id": sample_ids, "label": truth, **scores}


def _full_float32(device: torch.device) -> Any:
    """Context without TF32, which GPUs use for float32 convolutions by default (10 bits of mantissa)."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class Validation:
    """Counts over validation rows, int each, in 0 .. num_rows; and losses."""

    num_rows: int
    num_correct: int
    num_robust: int
    """Still correct under the attack; 0 if there was none."""
    num_fgsm: int = 0
    """Still correct under one step of the whole eps, FGSM; 0 if that was not asked for."""
    losses: tuple[float, ...] = ()
    """Sum of the cross-entropy, in nats, over the rows of each class; () if there are no rows."""
    class_rows: tuple[int, ...] = ()
    """Rows of each class."""


def validate(
    model: nn.Module,
    batches: Batches,
    *,
    eps: float = 0.0,
    norm: str = "linf",
    steps: int = 0,
    seed: int = 0,
    with_fgsm: bool = False,
    limit: RowLimit | None = None,
) -> Validation:
    """Count the rows that are predicted right, and those that stay right under a short PGD, in evaluation mode.

    Clean rows also give their cross-entropy, class by class.

    Args:
        model: left as it was.
        batches: whole batches are attacked with random starts of their own, seeded by ``seed`` and a batch's first
            ``sample_id``: the outcome does not depend on which worker has which batch, nor on the epoch.
        eps: radius of the attack in [0, 1] pixel units.
        norm: one of ``threat.NORMS``.
        steps: gradient steps of 2.5 · eps / steps each; 0: no attack.
        seed: of the random starts. torch's global generator is not touched.
        with_fgsm: also attack with FGSM, beside which a network that has overfitted to single steps looks robust.
        limit: rows that go through the model at once; by default what ``memory.default_rows`` says.
    """
    device = next(model.parameters()).device
    num_rows = num_correct = num_robust = num_fgsm = 0
    losses, class_rows = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for sample_ids, images, labels in batches:
        limit = limit or _limit_for(images)
        inputs, truth = prepare_inputs(images, device), to_device(labels, device)
        logits = _logits(model, inputs, limit)
        right = logits.argmax(dim=1) == truth
        of_class = _losses_of_classes(logits, truth)
        losses, class_rows = (before + new if len(before) else new
                              for before, new in zip((losses, class_rows), of_class, strict=True))  # fmt: skip
        num_rows, num_correct = num_rows + len(truth), num_correct + int(right.sum())
        if steps and right.any():
            # What is wrong already needs no attack.
            draws = generator("validate", seed, int(sample_ids[0]))
            attacked = pgd(model, inputs[right], truth[right], eps=eps, norm=norm, steps=steps, generator=draws,
                           until_fooled=True, limit=limit)  # fmt: skip
            num_robust += int(predicted_right(model, attacked, truth[right], limit).sum())
        if with_fgsm and right.any():
            attacked = fgsm(model, inputs[right], truth[right], eps=eps, norm=norm, limit=limit)
            num_fgsm += int(predicted_right(model, attacked, truth[right], limit).sum())
    return Validation(num_rows, num_correct, num_robust, num_fgsm, tuple(losses.tolist()), tuple(class_rows.tolist()))


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor, limit: RowLimit) -> Tensor:
    """(B, num_classes), in evaluation mode."""
    with frozen_eval(model):
        return torch.cat(limit.map(model, inputs))


def _losses_of_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over the rows of each class, float64 (num_classes,), and their numbers, int64."""
    losses = cross_entropy(at_least_float32(logits), labels, reduction="none").double().cpu()
    rows, none = labels.cpu(), torch.zeros(logits.shape[1], dtype=torch.float64)
    return none.index_add(0, rows, losses), torch.bincount(rows, minlength=logits.shape[1])


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, labels: Tensor, limit: RowLimit) -> tuple[Tensor, Tensor]:
    """Whether each row is classified right in evaluation mode, bool (B,), and how sure the model is, float32 (B,).

    Args:
        model: returns logits; left as it was.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,).
        limit: rows that go through the model at once.

    Returns:
        ``predicted_right``, and the largest probability of the softmax; 0 where the logits are not finite.
    """

    def classify(rows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(rows)
        sure = at_least_float32(logits).softmax(dim=1).amax(dim=1).float().nan_to_num(0.0)
        return logits.argmax(dim=1) == truth, sure

    with frozen_eval(model):
        right, sure = zip(*limit.map(classify, inputs, labels), strict=True)
    return torch.cat(right), torch.cat(sure)


@torch.no_grad()
def predicted_right(model: nn.Module, inputs: Tensor, labels: Tensor, limit: RowLimit) -> Tensor:
    """Whether each row is classified right in evaluation mode: bool (B,).

    Args:
        model: returns logits; left as it was.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,).
        limit: rows that go through the model at once.
    """
    with frozen_eval(model):
        return torch.cat(limit.map(lambda rows, truth: model(rows).argmax(dim=1) == truth, inputs, labels))
