"""Random streams named by what they are for, so that a draw never depends on what was drawn before it.

Takes the parts of a name, as in ``generator("augment", seed, epoch, rank)``, and gives a seed, a generator or a
seeded block. Every stream is derived by hashing its full name, so that two purposes never share a stream, and a
restart at epoch 7 draws what an uninterrupted run would have drawn there.
"""

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

# Imported where it is used: tasks that draw numbers only need not wait seconds for it.
if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on the parts alone, the same in every process and on every platform.

    The encoding is unambiguous: ("ab", "c") differs from ("a", "bc"), and 1 from "1".

    Args:
        *parts: the name of the stream, for example ("shuffle", seed, epoch).

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    digest = hashlib.blake2b(b"".join(_encode(part) for part in parts), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A torch generator for the stream of this name.

    Args:
        *parts: the name of the stream, see ``derive_seed``.
        device: where its draws are made; draws of CPU and GPU generators differ.

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """A numpy generator (PCG64) for the stream of this name.

    Args:
        *parts: the name of the stream, see ``derive_seed``.

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside the block torch's global generator is at the start of this stream; afterwards it is as it was.

    Meant for what draws from the global generator whether we like it or not: the initial weights of a model.
    Covers the CPU and, once CUDA is in use, the current CUDA device.
    """
    import torch

    cuda = torch.cuda.is_initialized()  # asking for the state of an unused device would start CUDA
    devices = [torch.cuda.current_device()] if cuda else []
    with torch.random.fork_rng(devices=devices):
        seed = derive_seed(*parts)
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def _encode(part: int | str) -> bytes:
    """Tag, length and content, so that no two lists of parts have one encoding."""
    tag, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
    content = text.encode()
    return f"{tag}{len(content)}:".encode() + content
