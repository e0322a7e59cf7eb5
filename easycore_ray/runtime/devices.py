"""Whether a process can use the GPU that Ray has given it: Ray believes what a node is started with."""

import socket

from easycore_ray.storage.errors import EasyCoreError


def problem_of(device: str) -> str | None:
    """Why torch cannot compute here on ``cpu`` or ``cuda``; None if it can."""
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return None
    why = "sees none" if torch.version.cuda else f"{torch.__version__} is built for CPUs alone"
    return (
        f"node {socket.gethostname()} was started with GPUs, but torch {why} there; start it with --num-gpus 0, mend "
        "its driver or its torch, or pass --gpus-per-worker 0"
    )


def check_device(device: str) -> None:
    """Make sure that torch can compute here on ``cpu`` or ``cuda``.

    Raises:
        EasyCoreError: it cannot; names the node.
    """
    if (problem := problem_of(device)) is not None:
        raise EasyCoreError(problem)
