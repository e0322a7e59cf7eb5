"""Which helpers of Ray Train run beside a run."""

import ray

from easycore_ray.engine.collectives import Collectives
from easycore_ray.engine.trainer import Trainer
from easycore_ray.runtime.cluster import OWN_RAY


def helpers():
    """Names of the callbacks of a trainer."""
    trainer = Trainer(print, backend_config=Collectives(), scaling_config=ray.train.ScalingConfig(num_workers=1))
    return [type(callback).__name__ for callback in trainer._create_default_callbacks()]


def test_a_ray_of_ones_own_has_no_process_that_asks_its_dashboard(monkeypatch):
    """It has no dashboard; on a cluster that process frees what a lost controller had reserved."""
    monkeypatch.setenv(OWN_RAY, "1")
    assert "PlacementGroupCleanerCallback" not in helpers()
    monkeypatch.delenv(OWN_RAY)
    assert "PlacementGroupCleanerCallback" in helpers()


def test_no_process_hands_out_datasets_of_which_there_are_none():
    """The settings of Ray Data reach the workers all the same."""
    found = helpers()
    assert "DatasetsCallback" not in found
    assert found.count("_ContextOfData") == 1
