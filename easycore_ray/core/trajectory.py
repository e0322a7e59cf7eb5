"""What a score of a sample's whole trajectory is: how it takes in a score table, epoch by epoch.

See ``trajectory_scores`` for the scores. NumPy only.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_State = dict[str, NDArray]
"""What is kept of some samples: arrays (n,) in one order, changed in place."""


class TooFewEpochsError(ValueError):
    """A trajectory is shorter than a score needs."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a score needs to know of a whole scoring run."""

    count: int
    """Scored epochs, the initial weights not among them."""
    val_loss: _Floats | None = None
    """Mean validation loss of each class after each scored epoch: (count, num_classes), in nats."""
    threshold: float | None = None
    """What ``LearningTime`` compares with: ``RunningNorm`` averaged over all samples."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryScore:
    """A score as asked for, with its options as fields.

    Options are ints of at least their ``LEAST``. ``epochs`` cuts the trajectory after so many scored epochs; where
    fewer were scored, all are used.
    """

    NAME: ClassVar[str]
    DOC: ClassVar[str]
    """What it says of a sample, and its source, for help and docs."""
    COLUMNS: ClassVar[tuple[str, ...]]
    """Columns of the score table it reads."""
    HIGHER_IS_HARDER: ClassVar[bool]
    LEAST: ClassVar[Mapping[str, int]] = {}
    NEEDS_VALIDATION: ClassVar[bool] = False
    """Whether it compares with the validation losses of the run."""
    NEEDS_FEATURES: ClassVar[bool] = False
    """Whether it reads the features of the run's final weights, so that its epochs must end with them."""

    def __post_init__(self) -> None:
        """Refuse options that mean nothing.

        Raises:
            ValueError: names the option, its value and the least one.
        """
        for name, least in self.LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{self.NAME}:{name} must be at least {least}, got {getattr(self, name)}")

    def __str__(self) -> str:
        """As it is written on a command line, without options that have their default value."""
        given = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return self.NAME + (":" + ",".join(given) if given else "")

    @property
    def least_epochs(self) -> int:
        """Scored epochs it needs."""
        return 1

    def check_epochs(self, count: int) -> None:
        """Refuse a table of too few scored epochs.

        Raises:
            TooFewEpochsError: says how many there are and how many it takes.
        """
        if count < self.least_epochs:
            raise TooFewEpochsError(f"score {self} needs at least {self.least_epochs} scored epochs, there are {count}")

    def begin(self, size: int, run: RunFacts) -> _State:
        """The state of so many samples before the first epoch."""
        raise NotImplementedError

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """Take in a scored epoch.

        Args:
            state: of the samples whose rows these are, in their order; changed in place.
            rows: COLUMNS, (n,) each.
            number: of the epoch among the scored ones, from 0.
            run: the scoring run.
        """
        raise NotImplementedError

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """The score of each sample, float64 (n,), after all scored epochs."""
        raise NotImplementedError
