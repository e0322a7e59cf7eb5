"""A search for the points of a sweep, arm, fraction and β, by Optuna through Ray Tune.

Every point that was chosen is recorded in the sweep's folder before its trial begins. A sweep that is run again tells
Optuna first what the points before have shown, runs those again that were under way, and goes on to the same number.
"""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from easycore_ray.config.arms import parse_arm
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.config.fields import WEIGHTED
from easycore_ray.config.trial_choice import BETA_STEP, FRACTION_STEP
from easycore_ray.core.seeding import derive_seed
from easycore_ray.data.dataset import Dataset
from easycore_ray.experiments.comparison_rules import SHARE, VALIDATION
from easycore_ray.experiments.finished_trials import FinishedTrial
from easycore_ray.experiments.search_points import POINTS, Point, point_trial, read_points, select_point
from easycore_ray.experiments.stopped_trials import standings
from easycore_ray.experiments.trials import Trial
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim

# Times that Optuna may choose a point again before the search counts as exhausted.
_MOST_REPEATS = 100


class PointSearch(OptunaSearch):
    """Chooses the trials of a search: no point twice, each by a sampler of its own, seeded by seed and number.

    So what is chosen depends on what is known by then alone, also after the sweep was interrupted.

    Args:
        config: of the sweep.
        dataset: its dataset.
        made: the claim of the sweep.
        finished: trials by ``Trial.place``.
        ended: notes of trials that were stopped or diverged, by name.
    """

    def __init__(
        self,
        config: SweepConfig,
        dataset: Dataset,
        made: Claim,
        finished: Mapping[str, FinishedTrial],
        ended: Mapping[str, Mapping[str, Any]],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._dataset, self._made = config, dataset, made
        self._points: list[Point] = read_points(made.path)
        self._given: set[str] = set()
        """Names of the trials that are known to Optuna."""
        self.exhausted = False
        """Whether hardly any point is left that was not tried."""
        super().__init__(_space(config), metric=VALIDATION, mode="max")
        for point in self._points:
            trial = point_trial(config, made.path, point)
            if trial.place in finished or trial.name in ended:
                self._replay(point, trial, finished.get(trial.place), ended.get(trial.name, {}))
                self._given.add(trial.name)
            else:
                self._ot_study.enqueue_trial(_parameters(config, point))
        self.missing: int = config.num_trials - len(self._given)
        """Trials that are still to be run."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for Tuner.restore, which is never used here.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the points and the trials' artifacts are the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, see ``save``."""

    @property
    def metric(self) -> None:
        """None: Tune would refuse the result of a trial that diverged, which has no such metric."""
        return

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; its point is recorded and its coreset selected."""
        from optuna.trial import TrialState

        for repeat in range(_MOST_REPEATS):
            name, seed = f"{trial_id}-{repeat}", self._config.seeds[0]
            self._ot_study.sampler = _sampler(derive_seed("search", seed, len(self._given), repeat))
            point = _point(self._config, super().suggest(name))
            trial = point_trial(self._config, self._made.path, point)
            if trial.name in self._given:
                self._ot_study.tell(self._ot_trials[name], state=TrialState.FAIL)  # which the sampler leaves out
                continue
            self._ot_trials[trial_id] = self._ot_trials[name]
            self._given.add(trial.name)
            self._record(point)
            select_point(self._config, self._dataset, self._made.path, point)
            return {"trial": trial}
        self.exhausted = True
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a point is judged by the end of its trial."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what a trial has shown: its validation after the last epoch, or where it was stopped."""
        from optuna.trial import TrialState

        trial, result = self._ot_trials[trial_id], result or {}
        if error or VALIDATION not in result:
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif "summary" in result or any(key.startswith("summary/") for key in result):
            self._ot_study.tell(trial, result[VALIDATION])
        else:
            trial.report(result[VALIDATION], round(result[SHARE]))
            self._ot_study.tell(trial, state=TrialState.PRUNED)

    def _record(self, point: Point) -> None:
        if point in self._points:
            return
        self._made.check()
        self._points.append(point)
        paths.write_json(paths.join(self._made.path, POINTS), {"points": [one.as_json() for one in self._points]})

    def _replay(self, point: Point, trial: Trial, finished: FinishedTrial | None, note: Mapping[str, Any]) -> None:
        """Tell Optuna what an earlier run of the sweep has found out."""
        from optuna.trial import TrialState, create_trial

        state, value, shown = TrialState.FAIL, None, {}
        if finished is not None:
            (standing,) = standings(trial, finished.checkpoint.manifest["epochs"][-1:])
            state, value = TrialState.COMPLETE, standing[VALIDATION]
        elif VALIDATION in note:
            state, value = TrialState.PRUNED, note[VALIDATION]
            shown = {round(note[SHARE]): note[VALIDATION]}
        self._ot_study.add_trial(
            create_trial(
                state=state,
                value=value,
                params=_parameters(self._config, point),
                distributions=self._space,
                intermediate_values=shown,
            )
        )


def _sampler(seed: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed % 2**32)


def _arms(config: SweepConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in config.method if parse_arm(name).method != "full"))


def _space(config: SweepConfig) -> dict[str, Any]:
    """What is searched: the fraction, β where the objective has one, and the arm where there are several."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {"fraction": FloatDistribution(*config.fraction, step=FRACTION_STEP)}
    if WEIGHTED & {*config.training}:
        found["beta"] = FloatDistribution(*config.beta, step=BETA_STEP)
    if len(_arms(config)) > 1:
        found["method"] = CategoricalDistribution(_arms(config))
    return found


def _point(config: SweepConfig, parameters: Mapping[str, Any]) -> Point:
    beta = parameters.get("beta")
    return Point(
        method=parameters.get("method", _arms(config)[0]),
        fraction=round(parameters["fraction"], 2),
        beta=None if beta is None else round(beta, 1),
    )


def _parameters(config: SweepConfig, point: Point) -> dict[str, Any]:
    """A point as Optuna has it."""
    return {name: value for name, value in point.as_json().items() if name in _space(config)}
