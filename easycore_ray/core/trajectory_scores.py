"""Scores of a sample's whole trajectory: how its loss, margin, gradient norm went from scored epoch to scored epoch.

Takes a table's epochs one after the other, each a block of rows; gives one float64 number per sample. What a score
keeps of the epochs so far is a few arrays of one entry per sample, so that a reduction can hold them in any order and
for any part of the samples. ``p = exp(-loss)`` is the probability of the label; ``std`` divides by n - 1, as the
sources' code does. Windows and lengths count *scored* epochs.

A score is written ``NAME`` or ``NAME:OPTION=VALUE,...``, e.g. ``dual:window=10,epochs=30``. Adding one is one class
here; command lines, help, selection and the contract tests read the registry. NumPy only.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.trajectory import RunFacts, TrajectoryScore

_Floats = NDArray[np.float64]
_State = dict[str, NDArray]


def label_probability(loss: NDArray) -> _Floats:
    """Probability of the label, float64 (n,) in [0, 1], from the cross-entropy in nats."""
    return np.exp(-loss.astype(np.float64))


class _Windowed(TrajectoryScore):
    """A mean over all windows of so many consecutive scored epochs, each reduced to one number by ``measure``."""

    window: int

    @property
    def least_epochs(self) -> int:
        """See ``TrajectoryScore``."""
        return self.window

    def measure(self, mean: _Floats, std: _Floats) -> _Floats:
        """What is averaged over windows, from the mean and the std of p within one."""
        raise NotImplementedError

    def uses(self, number: int) -> bool:
        """Whether an epoch belongs to the trajectory."""
        return True

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``: the last ``window`` values of p, and the sum over windows."""
        return {f"p{place}": np.zeros(size) for place in range(self.window)} | {"sum": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        if not self.uses(number):
            return
        state[f"p{number % self.window}"][:] = label_probability(rows["loss"])
        if number + 1 < self.window:
            return
        values = [state[f"p{(number + 1 + place) % self.window}"] for place in range(self.window)]
        mean = sum(values[1:], values[0]) / self.window
        squares = sum(((value - mean) ** 2 for value in values), np.zeros_like(mean))
        state["sum"] += self.measure(mean, np.sqrt(squares / (self.window - 1)))

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        used = sum(self.uses(number) for number in range(run.count))
        return state["sum"] / (used - self.window + 1)


@dataclass(frozen=True, kw_only=True)
class DynUnc(_Windowed):
    """Dyn-Unc (He et al. 2024, arXiv 2306.05175): mean over windows of the std of p within one."""

    NAME = "dyn_unc"
    DOC = "how much the label's probability varies within windows of epochs (Dyn-Unc, He et al. 2024)"
    COLUMNS = ("loss",)
    HIGHER_IS_HARDER = True
    LEAST = {"window": 2}  # noqa: RUF012
    window: int = 10

    def measure(self, mean: _Floats, std: _Floats) -> _Floats:
        """See ``_Windowed``."""
        return std


@dataclass(frozen=True, kw_only=True)
class Dual(_Windowed):
    """DUAL (Cho et al. 2025, arXiv 2502.06905): mean over windows of std · (1 - mean) of p, in the first epochs."""

    NAME = "dual"
    DOC = "variation of the label's probability times its distance from 1, early in training (DUAL, Cho et al. 2025)"
    COLUMNS = ("loss",)
    HIGHER_IS_HARDER = True
    LEAST = {"window": 2, "epochs": 2}  # noqa: RUF012
    window: int = 10
    epochs: int = 30

    def __post_init__(self) -> None:
        """See ``TrajectoryScore``; a window must fit in the epochs."""
        super().__post_init__()
        if self.window > self.epochs:
            raise ValueError(f"{self.NAME}:window must be at most epochs, {self.epochs}, got {self.window}")

    def uses(self, number: int) -> bool:
        """See ``_Windowed``."""
        return number < self.epochs

    def measure(self, mean: _Floats, std: _Floats) -> _Floats:
        """See ``_Windowed``."""
        return std * (1.0 - mean)


@dataclass(frozen=True, kw_only=True)
class Confidence(TrajectoryScore):
    """Mean of p over the first scored epochs: what DUAL's Beta sampling goes by, beside ``dual``."""

    NAME = "confidence"
    DOC = "mean probability of the label, early in training"
    COLUMNS = ("loss",)
    HIGHER_IS_HARDER = False
    LEAST = {"epochs": 1}  # noqa: RUF012
    epochs: int = 30

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {"sum": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        if number < self.epochs:
            state["sum"] += label_probability(rows["loss"])

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return state["sum"] / min(run.count, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Frequency(TrajectoryScore):
    """Frequency pruning (Nieth et al. 2024, arXiv 2406.13283): sum of the amplitudes of p's Fourier transform.

    Without the constant part: Σ_{f=1}^{T-1} |Σ_t p_t exp(-2πi f t / T)|. Keeps p of all epochs while it reads them.
    """

    NAME = "frequency"
    DOC = "how much the label's probability oscillates over the epochs (frequency pruning, Nieth et al. 2024)"
    COLUMNS = ("loss",)
    HIGHER_IS_HARDER = True
    LEAST = {"epochs": 2}  # noqa: RUF012
    epochs: int = 1000

    @property
    def least_epochs(self) -> int:
        """See ``TrajectoryScore``."""
        return 2

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {f"p{number}": np.zeros(size) for number in range(min(run.count, self.epochs))}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        if number < self.epochs:
            state[f"p{number}"][:] = label_probability(rows["loss"])

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        trajectory = np.stack([state[f"p{number}"] for number in range(min(run.count, self.epochs))])
        # Of real values the upper half mirrors the lower one.
        half = np.abs(np.fft.rfft(trajectory, axis=0))
        whole = 2 * half[1:].sum(axis=0)
        return whole - half[-1] if len(trajectory) % 2 == 0 else whole


@dataclass(frozen=True, kw_only=True)
class Correctness(TrajectoryScore):
    """Number of scored epochs in which the sample was classified right; CCS calls it accuracy."""

    NAME = "correctness"
    DOC = "in how many epochs it was classified right"
    COLUMNS = ("correct",)
    HIGHER_IS_HARDER = False

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {"sum": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        state["sum"] += rows["correct"]

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return state["sum"]


class _Spread(TrajectoryScore):
    """Standard deviation of a column over the scored epochs, by Welford's updates."""

    @property
    def least_epochs(self) -> int:
        """See ``TrajectoryScore``."""
        return 2

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {"mean": np.zeros(size), "squares": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        values = rows[self.COLUMNS[0]].astype(np.float64)
        change = values - state["mean"]
        state["mean"] += change / (number + 1)
        state["squares"] += change * (values - state["mean"])

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return np.sqrt(state["squares"] / (run.count - 1))


@dataclass(frozen=True, kw_only=True)
class MarginStd(_Spread):
    """Standard deviation of the margin, in logits, over the scored epochs."""

    NAME = "margin_std"
    DOC = "how much the margin varies over the epochs"
    COLUMNS = ("margin",)
    HIGHER_IS_HARDER = True


@dataclass(frozen=True, kw_only=True)
class GradNormStd(_Spread):
    """Standard deviation of the input gradient norm over the scored epochs: AIGN is its mean."""

    NAME = "grad_norm_std"
    DOC = "how much the input gradient norm varies over the epochs"
    COLUMNS = ("grad_norm",)
    HIGHER_IS_HARDER = True


@dataclass(frozen=True, kw_only=True)
class RunningNorm(TrajectoryScore):
    """Mean over epochs t of C_t, the mean gradient norm of the scored epochs up to t; see ``LearningTime``."""

    NAME = "running_aign"
    DOC = "mean over epochs of the AIGN up to each"
    COLUMNS = ("grad_norm",)
    HIGHER_IS_HARDER = True

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {"norms": np.zeros(size), "sum": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        state["norms"] += rows["grad_norm"]
        state["sum"] += state["norms"] / (number + 1)

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return state["sum"] / run.count


@dataclass(frozen=True, kw_only=True)
class LearningTime(TrajectoryScore):
    """Learning time by input gradients (Ravikumar et al. 2025, code of CSL-Mem).

    LT = 1 - mean_t [C_t < τ], C_t the AIGN up to epoch t and τ its mean over all samples and epochs: the share of the
    epochs in which the sample was not yet easier than that.
    """

    NAME = "learning_time"
    DOC = "share of the epochs before its AIGN was below the mean of all (LT, Ravikumar et al. 2025)"
    COLUMNS = ("grad_norm",)
    HIGHER_IS_HARDER = True

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {"norms": np.zeros(size), "below": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        assert run.threshold is not None
        state["norms"] += rows["grad_norm"]
        state["below"] += state["norms"] / (number + 1) < run.threshold

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return 1.0 - state["below"] / run.count


@dataclass(frozen=True, kw_only=True)
class Cld(TrajectoryScore):
    """CLD (Nagaraj et al. 2025, arXiv 2508.20230): correlation of loss differences with those of validation.

    Pearson's correlation over epochs of ``loss_{t+1} - loss_t`` with the same differences of the mean validation loss
    of the sample's class; 0 where either does not vary. The authors keep the highest of each class.
    """

    NAME = "cld"
    DOC = "how well its loss goes with the validation loss of its class (CLD, Nagaraj et al. 2025)"
    COLUMNS = ("loss",)
    HIGHER_IS_HARDER = False
    NEEDS_VALIDATION = True

    @property
    def least_epochs(self) -> int:
        """See ``TrajectoryScore``."""
        return 3

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``. ``label`` is filled in by whoever holds the state."""
        names = ("last", "mean", "squares", "product")
        return {"label": np.zeros(size, np.int32)} | {name: np.zeros(size) for name in names}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``."""
        loss = rows["loss"].astype(np.float64)
        if number:
            change = loss - state["last"] - state["mean"]
            state["mean"] += change / number
            state["squares"] += change * (loss - state["last"] - state["mean"])
            state["product"] += (loss - state["last"]) * self._validation(run)[number - 1][state["label"]]
        state["last"][:] = loss

    def _validation(self, run: RunFacts) -> _Floats:
        """Differences of the validation loss less their mean over epochs, float64 (count - 1, num_classes)."""
        assert run.val_loss is not None
        changes = np.diff(run.val_loss, axis=0)
        return changes - changes.mean(axis=0)

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        spread = np.sqrt((self._validation(run) ** 2).sum(axis=0))[state["label"]] * np.sqrt(state["squares"])
        found = np.divide(state["product"], spread, out=np.zeros_like(spread), where=spread > 0)
        return np.clip(found, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Grand(TrajectoryScore):
    """GraNd of the last layer alone (Paul et al. 2021, as DeepCore computes it), at the final weights.

    The gradient of a sample's cross-entropy at weights and bias of the last layer is the outer product of
    softmax - onehot with (features, 1): its norm is el2n · sqrt(1 + ‖features‖²). Of the sum over rows: DeepCore's mean
    divides by the size of the batch, and so inflates the last one.
    """

    NAME = "grand"
    DOC = "gradient norm of the last layer at the final weights (GraNd, Paul et al. 2021); needs --record features"
    COLUMNS = ("el2n",)
    HIGHER_IS_HARDER = True
    NEEDS_FEATURES = True

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``. ``feature_squares``, ‖features‖², is filled in by whoever holds the state."""
        return {"feature_squares": np.zeros(size), "el2n": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``; the last epoch counts alone."""
        if number == run.count - 1:
            state["el2n"][:] = rows["el2n"]

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return state["el2n"] * np.sqrt(1.0 + state["feature_squares"])


@dataclass(frozen=True, kw_only=True)
class Tdds(TrajectoryScore):
    """TDDS (Zhang et al. 2024, arXiv 2311.13613): spread of KL changes within windows, the last weighing most.

    With KD_t from ``score --record kd``: V_k = sqrt(Σ_{t in window k} (KD_t - mean)²) over the ``window`` - 1 changes
    between its ``window`` epochs, and Σ_k V_k · decay · (1 - decay)^(K - k) over the windows k = 1..K.
    """

    NAME = "tdds"
    DOC = "how much its prediction still changes in the end (TDDS, Zhang et al. 2024); needs score --record kd"
    COLUMNS = ("kd_prev",)
    HIGHER_IS_HARDER = True
    LEAST = {"window": 3}  # noqa: RUF012
    window: int = 10

    _DECAY: ClassVar[float] = 0.9

    @property
    def least_epochs(self) -> int:
        """See ``TrajectoryScore``."""
        return self.window

    def begin(self, size: int, run: RunFacts) -> _State:
        """See ``TrajectoryScore``."""
        return {f"kd{place}": np.zeros(size) for place in range(self.window - 1)} | {"sum": np.zeros(size)}

    def add(self, state: _State, rows: Mapping[str, NDArray], number: int, run: RunFacts) -> None:
        """See ``TrajectoryScore``; of the first scored epoch there is no change yet."""
        changes = self.window - 1
        if not number:
            return
        state[f"kd{number % changes}"][:] = rows["kd_prev"]
        if number < changes:
            return
        values = [state[f"kd{place}"] for place in range(changes)]
        mean = sum(values[1:], values[0]) / changes
        spread = np.sqrt(sum(((value - mean) ** 2 for value in values), np.zeros_like(mean)))
        state["sum"] *= 1.0 - self._DECAY
        state["sum"] += self._DECAY * spread

    def finish(self, state: _State, run: RunFacts) -> _Floats:
        """See ``TrajectoryScore``."""
        return state["sum"]


TRAJECTORY_SCORES: dict[str, type[TrajectoryScore]] = {
    kind.NAME: kind
    for kind in (
        DynUnc,
        Dual,
        Confidence,
        Frequency,
        Cld,
        LearningTime,
        MarginStd,
        GradNormStd,
        Correctness,
        Tdds,
        Grand,
    )
}
"""Scores that a reduction makes when they are asked for, by name."""


def parse_trajectory_score(text: str) -> TrajectoryScore:
    """``NAME`` or ``NAME:OPTION=VALUE,...`` as a score.

    Raises:
        ValueError: an unknown name or option, or a value it cannot have.
    """
    name, colon, rest = text.partition(":")
    if name not in TRAJECTORY_SCORES:
        raise ValueError(f"no trajectory score {name!r}; there are {', '.join(TRAJECTORY_SCORES)}")
    kind = TRAJECTORY_SCORES[name]
    known, given = [field.name for field in dataclasses.fields(kind)], {}
    for part in rest.split(",") if colon else ():
        option, _, value = part.partition("=")
        if option not in known:
            raise ValueError(f"score {name} has no option {option!r}; its options are: {', '.join(known) or 'none'}")
        if not value.isdigit():
            raise ValueError(f"{name}:{option} must be a whole number, got {value!r}")
        given[option] = int(value)
    return kind(**given)


def is_trajectory_score(text: str) -> bool:
    """Whether a score is written as one of these."""
    return text.partition(":")[0] in TRAJECTORY_SCORES
