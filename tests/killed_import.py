"""An import that ends its own process at a chosen moment, by SIGKILL: a program for tests.

    python tests/killed_import.py '{"fields": {"source": "…", "out": "…"}, "moment": "staged", "here": true}'

Moments: ``staging`` (some files are staged), ``staged`` (all are), ``writing`` (some shards are written), ``written``
(all are), ``indexed`` (the index is written) and ``finish`` (all but the manifest is). With ``here`` its tasks run in
this process and no Ray is started.
"""

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from easycore_ray.data.ingest import pipeline, shard_writer

AFTER = {"staged": "concat_samples", "written": "write_shards", "indexed": "write_index_parts"}
FILES = {"staging": "**/staging-*/*[0-9]", "writing": "**/shards/*.parquet"}


def run_here(map_tasks, *args, **options):
    """``map_tasks`` in this process, where what a test sets is seen."""
    return map_tasks(*args, **{**options, "resources": None})


def die(*_args, **_options):
    """End this process as a lost machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(function, *args, **options):
    """Die when a function has done its work."""
    function(*args, **options)
    die()


def die_with_file(out, pattern):
    """Die once a file of this pattern is there."""
    while not list(Path(out).glob(pattern)):
        time.sleep(0.001)
    die()


def main():
    """Import as the first argument says."""
    request = json.loads(sys.argv[1])
    moment, fields = request["moment"], request["fields"]
    if request["here"]:
        pipeline.cluster.connect = lambda: None
        for module in (pipeline, shard_writer):
            module.map_tasks = partial(run_here, module.map_tasks)
    if moment in FILES:
        threading.Thread(target=die_with_file, args=(fields["out"], FILES[moment]), daemon=True).start()
    elif moment == "finish":
        pipeline.finish = die
    else:
        name = AFTER[moment]
        setattr(pipeline, name, partial(die_after, getattr(pipeline, name)))
    pipeline.prepare(**fields)


if __name__ == "__main__":
    main()
