"""Trajectory scores of one range of ids, while its epochs are added up; what they need to know of the whole run.

See ``core.trajectory_scores`` for the scores and ``reduce_task`` for the reduction that this is a part of.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.trajectory import RunFacts, TrajectoryScore
from easycore_ray.core.trajectory_scores import LearningTime, is_trajectory_score, parse_trajectory_score

_FRACTION_BITS = 52
_HALF = 1 << 26


class Trajectories:
    """The trajectory scores of some samples.

    Its arrays lie in the state of the reduction, among others, under ``SCORE/NAME``; whoever holds them may reorder
    them between epochs.

    Args:
        scores: that are asked for.
        epochs: scored ones, ascending, without the initial weights.
        run: the scoring run.
    """

    def __init__(self, scores: Sequence[TrajectoryScore], epochs: Sequence[int], run: RunFacts) -> None:
        self._scores = {str(score): score for score in scores}
        self._numbers = {epoch: number for number, epoch in enumerate(epochs)}
        self._run = run

    @property
    def columns(self) -> list[str]:
        """Columns of the score table that they are made of."""
        return list(dict.fromkeys(name for score in self._scores.values() for name in score.COLUMNS))

    def begin(self, size: int) -> dict[str, NDArray]:
        """State of ``size`` samples before the first epoch: arrays (size,)."""
        return {
            f"{text}/{name}": values
            for text, score in self._scores.items()
            for name, values in score.begin(size, self._run).items()
        }

    def add(self, state: Mapping[str, NDArray], rows: Mapping[str, NDArray], epoch: int) -> None:
        """Take in (n,) rows of an epoch; ``state``, of their samples in their order, is changed in place."""
        for text, score in self._scores.items():
            score.add(self._own(state, text), rows, self._numbers[epoch], self._run)

    def set_known(self, state: Mapping[str, NDArray], known: Mapping[str, Callable[[], NDArray]]) -> None:
        """Fill in what does not change from epoch to epoch, (n,) each in the order of the state; before the second.

        Args:
            state: of the samples, changed in place.
            known: by name, ``label`` and ``feature_squares``; called where a score goes by it.
        """
        for name, values in state.items():
            if (last := name.rpartition("/")[2]) in known:
                values[:] = known[last]()

    def finish(self, state: dict[str, NDArray]) -> dict[str, NDArray[np.float64]]:
        """The scores, float64 (n,), by their text; takes their arrays out of the state."""
        found = {}
        for text, score in self._scores.items():
            own = self._own(state, text)
            for name in own:
                del state[f"{text}/{name}"]
            found[text] = score.finish(own, self._run)
        return found

    def _own(self, state: Mapping[str, NDArray], text: str) -> dict[str, NDArray]:
        return {name.removeprefix(f"{text}/"): values for name, values in state.items() if name.startswith(f"{text}/")}


def trajectory_scores(only: Collection[str] | None) -> tuple[TrajectoryScore, ...]:
    """The trajectory scores among those that a reduction is asked for."""
    return tuple(parse_trajectory_score(text) for text in only or () if is_trajectory_score(text))


def needs_threshold(scores: Collection[TrajectoryScore]) -> bool:
    """Whether one of them compares with a mean over all samples, for which the table is read twice."""
    return any(isinstance(score, LearningTime) for score in scores)


def exact_sum(values: NDArray[np.float64]) -> int:
    """Sum of values (n,), each in [0, 2**30) and rounded down to whole multiples of 2**-52, as so many of them.

    Sums of any parts add up to the sum of the whole, to the bit.
    """
    whole = np.floor(values)
    parts = np.ldexp(values - whole, _FRACTION_BITS).astype(np.int64)
    low, high = parts % _HALF, parts // _HALF
    return (int(whole.astype(np.int64).sum()) << _FRACTION_BITS) + int(high.sum()) * _HALF + int(low.sum())


def exact_mean(total: int, count: int) -> float:
    """Mean of ``count`` values whose ``exact_sum`` is ``total``, rounded once."""
    return total / (count << _FRACTION_BITS)
