"""The CPU of this machine, which can change a number as library versions can: recorded, never part of an identity."""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Instruction sets by which libraries of arithmetic choose their kernels, and with them the order of additions.
_INSTRUCTIONS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "asimd", "asimddp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip


@functools.cache
def cpu() -> str:
    """Model and instruction sets of this machine's CPU: ``AMD EPYC 7R13, family 25, model 1 (avx avx2 fma)``."""
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:
        found = ""
    return _describe_cpu(found) or platform.processor() or platform.machine()


def _describe_cpu(cpuinfo: str) -> str:
    """What Linux says of the first core; empty where it names no model."""
    first = cpuinfo.strip().split("\n\n")[0].splitlines()
    entries = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    known = {*entries.get("flags", "").split(), *entries.get("Features", "").split()}
    found = " ".join(name for name in _INSTRUCTIONS if name in known)
    # Virtual machines hide the model's name, but not its numbers; Arm gives numbers alone.
    words = ["model name", "cpu family", "model", "CPU implementer", "CPU part"]
    model = ", ".join(
        entries[word] if word == "model name" else f"{word.removeprefix('cpu ')} {entries[word]}"
        for word in words
        if word in entries
    )
    return f"{model} ({found})" if model and found else model


def differences(recorded: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """What was otherwise when an artifact was made, or begun: a phrase for each library, and for the CPU.

    Args:
        recorded: its manifest, or the entry of an unfinished one; what it does not say is not compared.
        versions: of the libraries here.
    """
    theirs = recorded.get("versions", {})
    both = [name for name in versions if name in theirs]
    found = [f"{name} {theirs[name]}, here {versions[name]}" for name in both if theirs[name] != versions[name]]
    if recorded.get("cpu", cpu()) != cpu():
        found.append(f"the CPU {recorded['cpu']}, here {cpu()}")
    return found
