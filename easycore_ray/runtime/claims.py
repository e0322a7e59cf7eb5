"""Claims of artifacts by configuration, and a warning where what they continue was made by other versions or CPUs."""

from collections.abc import Iterable, Mapping
from typing import Any

from easycore_ray.config.identity import artifact_identity
from easycore_ray.runtime.console import say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import RUN, Artifact, Claim, claim
from easycore_ray.storage.machine import differences
from easycore_ray.storage.provenance import versions

# What this process has said already: the trials of a sweep share their parents.
_SAID: set[str] = set()


def claim_artifact(kind: str, config: Any, parents: Mapping[str, Artifact], **more: Any) -> Artifact | Claim:
    """Claim ``config.out`` for the artifact of a configuration; the finished one if it is there.

    Args:
        kind: of the artifact.
        config: how it is made.
        parents: what it is made from, by role.
        more: see ``artifact_identity``.

    Raises:
        EasyCoreError: see ``storage.artifact.claim``.
    """
    key = artifact_identity(kind, config, parents, **more)
    made = claim(paths.absolute(config.out), kind, key, overwrite=config.overwrite, take_over=config.take_over)
    warn_of_other_machines(made, parents.values())
    return made


def warn_of_other_machines(made: Artifact | Claim, parents: Iterable[Artifact]) -> None:
    """Say in one line what an unfinished run, or finished parents of one, were made with that differs here.

    Nothing is said of a finished artifact: nothing will be computed.
    """
    if isinstance(made, Artifact):
        return
    found = [(parent.path, "was made", parent.manifest) for parent in parents]
    if made.resumed:
        found.insert(0, (made.path, "was begun", paths.read_json(paths.join(made.path, RUN))))
    here, told = versions(), []
    for path, verb, recorded in found:
        if differing := "; ".join(differences(recorded, here)):
            told.append(f"{path} {verb} with {differing}")
    new = [text for text in dict.fromkeys(told) if text not in _SAID]
    if new:
        _SAID.update(new)
        say(f"warning: {', and '.join(new)}: the result may differ in rounding from that of one machine")
