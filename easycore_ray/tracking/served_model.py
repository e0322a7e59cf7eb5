"""What MLflow runs when it loads one of our models: its file is kept beside the weights, and nothing is unpickled."""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import easycore_ray


class CheckpointModel(PythonModel):
    """Logits of images, by the network of a checkpoint."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the checkpoint, once."""
        self._network = easycore_ray.open(context.artifacts["checkpoint"]).load_model()

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Logits float32 (images, classes) of float32 pixels in [0, 1], (images, channels, height, width)."""
        import torch

        with torch.no_grad():
            return self._network(torch.from_numpy(np.ascontiguousarray(model_input, np.float32))).numpy()


set_model(CheckpointModel())
