"""Configurations of what looks at artifacts, draws, exports or cleans them."""

from typing import Literal

import tyro

from easycore_ray.config.base import (
    Checked,
    JobConfig,
    configuration,
    setting,
)
from easycore_ray.config.fields import (
    Flag,
    Fraction,
    Natural,
    NonNegative,
    PartialShare,
    ScoreName,
    Text,
    WeightsName,
)


def _whole_path(path: str) -> str:
    from easycore_ray.storage import paths  # late: a configuration needs no library of file systems

    return paths.absolute(path)


@configuration
class ReportConfig(JobConfig):
    """Draw a sweep: tables, plots, easiest and hardest images, in one self-contained HTML page."""

    # The page names the sweep's folder, and the command that repeats it.
    sweep: Text = setting(identity=True, group="data", held=lambda config: _whole_path(config.sweep))
    """Folder of a finished sweep."""
    title: Text = setting(default="EasyCore: coresets for robust models", identity=True, group="output")
    """Heading of the page."""
    note: Text = setting(default="", identity=True, group="output")
    """A sentence shown in the report, e.g. what the data cannot be compared with."""


@configuration
class AuditConfig(JobConfig):
    """Say what scores tell of the data: likely label errors, copies, classes that a global cut would starve."""

    scores: Text = setting(identity=False, group="data")
    """Folder of a scoring run."""
    dataset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of the prepared dataset, where it has moved since it was scored."""
    score: ScoreName = setting(default="aum", identity=True, group="data")
    """Score that ranks likely label errors, hardest first: aum, csl (the loss), aign or any other the table has."""
    label_errors: PartialShare = setting(default=0.02, identity=True, group="data")
    """Share of the samples that is listed as likely label errors, in [0, 1), however many there are in truth; 0 lists
    none."""
    cut_score: ScoreName = setting(default="aign", identity=True, group="data")
    """Score of the global cut by which classes are compared."""
    fraction: Fraction = setting(default=0.5, identity=True, group="data")
    """Share of the samples that the global cut keeps, the easiest by --cut-score, in (0, 1]."""
    starved: PartialShare = setting(default=0.5, identity=True, group="data")
    """A class is starved where the cut keeps less than this share of its quota, what --balance class would keep."""


@configuration
class ExportConfig(Checked):
    """Write a trained model into one file for use elsewhere; it takes pixels in [0, 1] and normalises them itself."""

    checkpoint: Text = setting(identity=False, group="model")
    """Folder of a trained model."""
    out: Text = setting(identity=False, group="output")
    """File that is written."""
    format: Literal["weights", "pt2", "onnx"] = setting(default="weights", identity=False, group="output")
    """weights: safetensors, normalisation included. pt2: a torch.export program, which needs nothing of this package.
    onnx: checked with onnxruntime to 1e-4; needs the extra export. Both take batches of any size."""
    weights: WeightsName = setting(default="last", identity=False, group="model")
    """Weights after the last epoch, after the one that did best on the validation split, or averaged over the steps
    (train --ema)."""
    overwrite: Flag = setting(default=False, identity=False, group="output")
    """Replace a file that is there."""


@configuration
class StatusConfig(Checked):
    """Tell in one line whether a job has finished its artifact; exit code 0 if so, else 3."""

    path: tyro.conf.Positional[Text] = setting(identity=False, group="data")
    """Folder of the artifact, the job's --out: local path, s3:// or gs://."""


@configuration
class InspectConfig(Checked):
    """Tell what an artifact is: how it was made, what is in it, and whether all of it is still there."""

    path: tyro.conf.Positional[Text] = setting(identity=False, group="data")
    """Folder of any artifact, finished or not: local path, s3:// or gs://."""
    verify: Flag = setting(default=False, identity=False, group="output")
    """Reread everything: checksums, rows, schema, coverage; exit code 1 if anything is wrong."""
    score: ScoreName | None = setting(default=None, identity=False, group="output")
    """Score the easiest and hardest samples are shown by; aign, or what the table was made for, if left out."""
    count: Natural = setting(default=10, identity=False, group="output")
    """How many of the easiest and hardest samples to show; 0 for none."""
    images: Text | None = setting(default=None, identity=False, group="output")
    """Draw these samples with their scores and labels into this PNG file."""
    json: Flag = setting(default=False, identity=False, group="output")
    """Print JSON instead of text."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if self.images is not None and not self.images.endswith(".png"):
            found.append(f"images must end in .png, got {self.images!r}")
        if self.images is not None and not 1 <= self.count <= 100:
            found.append(f"count must be in 1..100 to draw images, got {self.count}")
        return found


@configuration
class CleanConfig(Checked):
    """List, and with --yes remove, what no artifact in a folder needs: orphaned parts, old training states."""

    path: tyro.conf.Positional[Text] = setting(identity=False, group="data")
    """Folder of any artifact, finished or not; the artifacts inside it are cleaned as well."""
    yes: Flag = setting(default=False, identity=False, group="output")
    """Remove what is listed; otherwise it is only listed."""
    older_than: NonNegative = setting(default=24.0, identity=False, group="output")
    """Hours a file of an unfinished artifact must have been left alone: a writer may be at work."""
