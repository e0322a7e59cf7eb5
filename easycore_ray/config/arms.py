"""Arms of a comparison: ``METHOD[:SCORE][/class]``, as command lines and tables name them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from easycore_ray.config.fields import Balance, Text, check_score, cli_option
from easycore_ray.core.selection import METHODS
from easycore_ray.core.trajectory import TooFewEpochsError
from easycore_ray.core.trajectory_scores import is_trajectory_score, parse_trajectory_score
from easycore_ray.storage.errors import EasyCoreError

DYNAMIC = {
    "rs2": "All samples, in another order each time, for the steps of a coreset of this size.",
    "infobatch": "All samples with a loss of at least the mean and a random half of the others, weighted for all and "
    "drawn anew in each epoch, for the steps of a coreset of this size.",
}
"""Arms of a comparison that select no coreset, but draw their samples anew while they train, and what they do.

``rs2``: repeated random sampling (Okanovic et al. 2024, arXiv 2305.18424), without replacement until all samples were
seen. ``infobatch``: see ``core.pruning``.
"""


@dataclass(frozen=True)
class Arm:
    """A way to select: method, score that orders the samples (None: not needed), balance."""

    method: str
    score: str | None
    balance: Balance

    @property
    def name(self) -> str:
        """The arm as it is written on the command line, e.g. ``easiest:el2n/class``."""
        default = None if self.is_dynamic else METHODS[self.method].default_score
        score = f":{self.score}" if self.score not in (None, default) else ""
        return f"{self.method}{score}{'/class' if self.balance == 'class' else ''}"

    @property
    def is_dynamic(self) -> bool:
        """Whether it draws samples while it trains."""
        return self.method in DYNAMIC

    @property
    def needs_score(self) -> bool:
        """Whether it goes by a scoring run."""
        return not self.is_dynamic and METHODS[self.method].needs_score

    @property
    def needs_recorded(self) -> tuple[str, ...]:
        """What a scoring run must have recorded besides scores for its method and its score."""
        found = ["features"] if not self.is_dynamic and METHODS[self.method].needs_features else []
        if self.score is not None and is_trajectory_score(self.score):
            score = parse_trajectory_score(self.score)
            found += ["features"] * score.NEEDS_FEATURES + ["kd"] * ("kd_prev" in score.COLUMNS)
        return tuple(dict.fromkeys(found))

    @property
    def draws(self) -> bool:
        """Whether another seed selects another coreset."""
        return not self.is_dynamic and METHODS[self.method].draws


def parse_arm(text: str) -> Arm:
    """``METHOD[:SCORE][/class]`` as an ``Arm``.

    Raises:
        EasyCoreError: says which part is unknown and what is allowed.
    """
    name, slash, balance = text.partition("/")
    method, colon, score = name.partition(":")
    if text in DYNAMIC:
        return Arm(text, None, "none")
    if method in DYNAMIC:
        raise EasyCoreError(f"method {method} draws from all samples by no score, got {text!r}; write {method}")
    methods = (*METHODS, *DYNAMIC)
    if method not in methods:
        raise EasyCoreError(f"unknown method {method!r}; allowed are {', '.join(sorted(methods))}")
    if colon:
        score = check_score(score)
    if slash and balance != "class":
        raise EasyCoreError(f"method may end in /class only, got {text!r}")
    if colon and METHODS[method].default_score is None:
        raise EasyCoreError(f"method {method} uses no score, got {text!r}; write {method}")
    if problem := bound_score_problem(method, score or None):
        raise EasyCoreError(problem)
    return Arm(method, score or METHODS[method].default_score, "class" if balance else "none")


def bound_score_problem(method: str, score: str | None) -> str:
    """What is wrong with a score for a method whose name stands for its score as well: EasyCore's is AIGN."""
    chosen = METHODS[method]
    if not chosen.bound or score is None or score.partition(":")[0] == chosen.default_score:
        return ""
    other = {"easycore": "easiest for another score"}.get(method, "another method for it")
    return f"method {method} goes by {chosen.default_score}, got score {score!r}; write {other}"


def trajectory_problems(arms: Iterable[Arm], scored_epochs: int) -> list[str]:
    """Arms whose score takes more scored epochs than there are."""
    found = []
    for arm in arms:
        if arm.score is not None and is_trajectory_score(arm.score):
            try:
                parse_trajectory_score(arm.score).check_epochs(scored_epochs)
            except TooFewEpochsError as error:
                found.append(f"method {arm.name}: {error}; score more, or give it a shorter window")
    return found


def needs_validation(arm: Arm) -> bool:
    """Whether its score compares with the validation losses of a scoring run."""
    known = arm.score is not None and is_trajectory_score(arm.score)
    return known and parse_trajectory_score(arm.score or "").NEEDS_VALIDATION


def _check_arm(text: str) -> str:
    parse_arm(text)
    return text


ArmName = Annotated[
    Text, AfterValidator(_check_arm), cli_option("{" + ",".join((*METHODS, *DYNAMIC)) + "}[:SCORE][/class]")
]
