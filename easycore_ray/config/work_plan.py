"""What a dry run returns: the work a verb would do, how much it is, and what it is estimated to cost. Pure data."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time for one kind of work, from the images that one worker gets through in a second."""

    work: str
    """What is done with the images: standard training, trades training, exact scoring, pgd20 attack …"""
    images: int
    """How often an image goes through the network in this way, over all epochs, models and eps."""
    images_per_second: float | None
    """Of one worker; None: there is no figure."""
    workers: int
    """Workers at the same time."""
    source: str
    """Where the figure comes from: ``assumed: …`` with hardware and date, ``measured: …``, or why there is none."""

    @property
    def seconds(self) -> float | None:
        """Wall time; None without a figure."""
        return None if self.images_per_second is None else self.images / self.images_per_second / self.workers

    @property
    def device_hours(self) -> float | None:
        """Hours × workers; None without a figure."""
        return None if self.images_per_second is None else self.images / self.images_per_second / 3600


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What a verb would do. Nothing has been written, and no Ray started unless it was measured."""

    verb: str
    """Name of the verb: score, train …"""
    work: str
    """What would be done, as what follows "would"."""
    out: str
    """Folder of the result."""
    trials: int = 0
    """Training runs of a sweep, study or pipeline that are not finished yet."""
    steps: int = 0
    """Optimizer steps, over all of them."""
    samples: int = 0
    """Samples the work is about: training samples, attacked images, rows."""
    bytes_written: int | None = None
    """Estimate of the result's size; None where nothing is known before the work. Training states, kept to resume from,
    are not in it."""
    estimates: tuple[Estimate, ...] = ()
    """Time by kind of work; the start of Ray and its workers (about 20 s on a laptop) is not in it."""
    makes: tuple[str, ...] = ()
    """Folders and files that would be made."""
    finished: tuple[str, ...] = ()
    """Artifacts that are finished already and would be reused."""
    warnings: tuple[str, ...] = ()
    """What should be looked at first: idle or missing GPUs, a folder that holds something else."""
    measured: bool = False
    """Whether figures were measured in this process and the cluster was asked."""

    @property
    def seconds(self) -> float | None:
        """Estimated wall time of the work that is estimated; None if any of its figures is missing."""
        return _sum(estimate.seconds for estimate in self.estimates)

    @property
    def device_hours(self) -> float | None:
        """Estimated hours × workers; None if any figure is missing."""
        return _sum(estimate.device_hours for estimate in self.estimates)

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The plan for a terminal: a sentence, then a line for each thing that is known."""
        return "\n  ".join([f"{self.verb}: would {self.work}", *_lines(self)])


def plan_for(verb: str, config: Any, kind: str, identity: str, **details: Any) -> WorkPlan:
    """The plan of a verb that makes one artifact: as described, or nothing where it is finished already.

    Args:
        verb: its name.
        config: a ``JobConfig``; its ``out`` and ``overwrite`` are used.
        kind: of the artifact.
        identity: hash of what decides its content.
        details: further fields of the plan.
    """
    from easycore_ray.storage import paths
    from easycore_ray.storage.artifact import peek

    out = paths.absolute(config.out)
    found = peek(out, kind, identity)
    if found == "finished" and not config.overwrite:
        return WorkPlan(verb=verb, work=f"do nothing: {out} is finished and would be reused", out=out, finished=(out,))
    notes = {
        "unfinished": f"{out} holds an unfinished run of this configuration, which would be resumed",
        "other": f"{out} holds a result of another configuration or input; it would be "
        + ("replaced" if config.overwrite else "refused without --overwrite"),
    }
    warnings = (*details.pop("warnings", ()), *([notes[found]] if found in notes else []))
    return WorkPlan(verb=verb, out=out, warnings=warnings, **{"makes": (out,), **details})


def join_plans(verb: str, work: str, out: str, stages: Iterable[WorkPlan]) -> WorkPlan:
    """The plan of a verb that runs others: their sums, one after the other."""
    parts = list(stages)
    known = [part.bytes_written for part in parts if part.bytes_written is not None]
    return WorkPlan(
        verb=verb,
        work=work,
        out=out,
        trials=sum(part.trials for part in parts),
        steps=sum(part.steps for part in parts),
        samples=max((part.samples for part in parts), default=0),
        bytes_written=sum(known) if known else None,
        estimates=tuple(estimate for part in parts for estimate in part.estimates),
        makes=tuple(dict.fromkeys(made for part in parts for made in part.makes)),
        finished=tuple(dict.fromkeys(done for part in parts for done in part.finished)),
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
        measured=any(part.measured for part in parts),
    )


def _lines(plan: WorkPlan) -> list[str]:
    sizes = [f"{count:,} {name}" for name, count in
             (("trials", plan.trials), ("steps", plan.steps), ("samples", plan.samples)) if count]  # fmt: skip
    if plan.bytes_written is not None:
        sizes.append(f"about {plan.bytes_written / 2**20:,.1f} MiB written")
    lines = [", ".join(sizes)] if sizes else []
    if plan.estimates:
        lines += [_time_line(plan), *(f"  {_estimate_line(estimate)}" for estimate in plan.estimates)]
    lines += [f"makes {path}" for path in plan.makes]
    lines += [f"finished already: {path}" for path in plan.finished]
    return lines + [f"warning: {text}" for text in plan.warnings]


def _time_line(plan: WorkPlan) -> str:
    if plan.seconds is None or plan.device_hours is None:
        return "time: not known"
    kind = "measured" if plan.measured else "assumed"
    return f"time: about {_time_text(plan.seconds)}, {plan.device_hours:.2g} device-hours, from {kind} figures:"


def _estimate_line(estimate: Estimate) -> str:
    if estimate.images_per_second is None:
        return f"{estimate.work}, {estimate.images:,} images: {estimate.source}"
    rate = f"{estimate.images_per_second:,.0f}" if estimate.images_per_second >= 10 else (
        f"{estimate.images_per_second:.2g}"
    )  # fmt: skip
    return f"{estimate.work}, {estimate.images:,} images at {rate} a second and worker ({estimate.source})"


def _time_text(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _sum(values: Iterable[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
