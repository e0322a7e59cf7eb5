"""Asynchronous successive halving (Li et al. 2020) of a sweep's trials, by Ray Tune's own scheduler.

Trials are compared after the first epoch that ends at or after a rung, a share of their steps: a coreset of half the
samples is as far as all data when half as many steps are done. When a sweep is run again, what its trials have shown is
fed to the scheduler first; what was noted stays as it is, and what was not is decided anew.
"""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from easycore_ray.config.experiments import GridConfig
from easycore_ray.experiments.comparison_rules import SHARE, VALIDATION, WHOLE, compared_by, rungs_of
from easycore_ray.experiments.finished_trials import FinishedTrial
from easycore_ray.experiments.stopped_trials import decided_history, note_stop, standings
from easycore_ray.experiments.trials import FULL, Trial


class EarlyStopping(FIFOScheduler):
    """Stops trials that are behind in validation, and notes it; all data are neither stopped nor compared with.

    One comparison for each metric: adversarial objectives, attacked alike in validation, compete with each other.

    Args:
        config: of the sweep.
        check: called before a note is written; what it raises ends the sweep.
    """

    def __init__(self, config: GridConfig, check: Callable[[], None]) -> None:
        super().__init__()
        self._rungs, self._check = rungs_of(config), check
        self._by_metric = {
            metric: ASHAScheduler(
                time_attr=SHARE,
                metric=VALIDATION,
                mode="max",
                max_t=1.0001 * self._rungs[-1],
                grace_period=self._rungs[0],
                reduction_factor=config.reduction_factor,
                # Else a trial would be stopped at the end of its training, and a later epoch count at an earlier rung.
                stop_last_trials=False,
            )
            for metric in {compared_by(training) for training in config.training}
        }
        self._known: set[str] = set()
        self.stopped: dict[str, dict[str, Any]] = {}
        """Notes of the trials that were stopped, by name."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for Tuner.restore, which is never used here.
        return {}

    def replay(
        self,
        trials: Iterable[Trial],
        finished: Mapping[str, FinishedTrial],
        stopped: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Take up what trials have shown in earlier runs of the sweep; nothing is decided again.

        Args:
            trials: those of the sweep.
            finished: by ``Trial.place``.
            stopped: notes by name.
        """
        for trial in trials:
            if trial.place in finished:
                history = finished[trial.place].checkpoint.manifest["epochs"]
            else:
                history = stopped[trial.name]["epochs"] if trial.name in stopped else decided_history(trial)
            for standing in standings(trial, history) if history else ():
                self._compare(trial, standing)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See ``TrialScheduler``."""
        spec: Trial = trial.config["trial"]
        decision = self._compare(spec, result)
        if decision == TrialScheduler.STOP:
            self._check()
            standing = {name: result[name] for name in (SHARE, VALIDATION)}
            rung = max(rung for rung in self._rungs if rung <= standing[SHARE])
            self.stopped[spec.name] = note_stop(spec, standing, rung)
        return decision

    def _compare(self, spec: Trial, standing: Mapping[str, Any]) -> str:
        """What Tune's scheduler decides, under the name of the trial, which it has in every run of the sweep."""
        if spec.arm == FULL or standing.get(SHARE, WHOLE) >= WHOLE:
            return TrialScheduler.CONTINUE
        scheduler, named = self._by_metric[compared_by(spec.training)], SimpleNamespace(trial_id=spec.name)
        if spec.name not in self._known:
            scheduler.on_trial_add(None, named)
            self._known.add(spec.name)
        return scheduler.on_trial_result(None, named, dict(standing))
