"""Trained models as MLflow's own kind: loaded by ``mlflow.pyfunc.load_model``, with nothing that is unpickled."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.artifact import MANIFEST
from easycore_ray.storage.provenance import versions
from easycore_ray.tracking.runs import TrackedModel

_CODE = Path(__file__).with_name("served_model.py")


def save_model(model: TrackedModel, folder: Path) -> None:
    """Write a model in MLflow's format: the checkpoint's files, and code that loads them.

    Takes float32 pixels in [0, 1] of shape (images, channels, height, width), gives logits (images, classes).

    Args:
        model: which.
        folder: new.

    Raises:
        EasyCoreError: the checkpoint cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MLflow, about itself; and it would have an example
        _save(model, folder)


def _save(model: TrackedModel, folder: Path) -> None:
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    manifest = paths.read_json(paths.join(model.checkpoint, MANIFEST))
    shape, classes = tuple(manifest["model"]["image_shape"]), len(manifest["classes"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )
    installed = versions()
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary, "checkpoint")
        copied.mkdir()
        for name in (MANIFEST, *dict.fromkeys(manifest["weights"].values())):
            (copied / name).write_bytes(paths.read_bytes(paths.join(model.checkpoint, name)))
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(_CODE),
            artifacts={"checkpoint": str(copied)},
            signature=signature,
            # Named, so that MLflow does not look for them in a process of its own.
            pip_requirements=[f"easycore-ray=={installed['easycore-ray']}", f"torch=={installed['torch']}"],
        )


def keep_model(client: Any, experiment_id: str, run_id: str, model: TrackedModel) -> None:
    """Keep a model in MLflow beside a run, unless it is there already.

    Args:
        client: an ``MlflowClient``.
        experiment_id: of the run.
        run_id: the run that trained it.
        model: which.
    """
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    # One whose files did not all arrive stays PENDING.
    whole = [entry.model_id for entry in found if str(entry.status) == "READY"]
    model_id = whole[0] if whole else _upload(client, experiment_id, run_id, model)
    if model.register is not None:
        _register(client, model.register, model_id, run_id)


def _upload(client: Any, experiment_id: str, run_id: str, model: TrackedModel) -> str:
    """Id of the model, once all of it is there."""
    with tempfile.TemporaryDirectory() as temporary:
        save_model(model, Path(temporary, "model"))
        model_id: str = client.create_logged_model(experiment_id, model.name, run_id).model_id
        client.log_model_artifacts(model_id, str(Path(temporary, "model")))
    client.finalize_logged_model(model_id, "READY")
    return model_id


def _register(client: Any, name: str, model_id: str, run_id: str) -> None:
    """Make a model a version of a registered one, unless it is."""
    from mlflow.exceptions import MlflowException

    # A server knows its own models; without one, MLflow would look for the model in another store than this.
    served = client.tracking_uri.startswith("http")
    source = f"models:/{model_id}" if served else client.get_logged_model(model_id).artifact_location
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not any(version.run_id == run_id for version in client.search_model_versions(f"name = '{name}'")):
        client.create_model_version(name, source, run_id, model_id=model_id if served else None)
