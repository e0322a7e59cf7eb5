"""A reduction in an object store: parts are fetched many at a time, in two requests each."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.read_ahead import READERS, read_ahead
from tests.artifacts import draw_rows, finish_table, make_dataset, samples_of, write_parts
from tests.object_store import Proxy, environment, running_store

EPOCHS, WORKERS, SECONDS = 16, 12, 0.05
# Finding the table, claiming and finishing the result.
OTHER_REQUESTS = 80


def make_run(folder, epochs=EPOCHS, workers=WORKERS, rows=240):
    """A score table of many small parts, on this machine's disk."""
    ids, labels = np.arange(rows), np.arange(rows) % 3
    dataset = make_dataset(f"{folder}/dataset", labels.tolist())
    parts = write_parts(f"{folder}/run/table", draw_rows(ids, labels, range(1, epochs + 1)), ids % workers)
    finish_table(f"{folder}/run", parts, samples_of(ids, labels), dataset)
    return f"{folder}/run"


def upload(run, target):
    """Copy it to a store."""
    names = [path[len(run) + 1 :] for path in paths.list_files(run)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: paths.copy_file(f"{run}/{name}", f"{target}/{name}"), names))


def timed(run):
    """Seconds of a reduction, and its rows."""
    started = time.perf_counter()
    reduce(scores=run, out=f"{run}/hardness")
    return time.perf_counter() - started, read_hardness(open_hardness(run))


@pytest.mark.slow
def test_many_small_parts_far_away_are_reduced_about_as_fast_as_near(tmp_path, monkeypatch):
    """50 ms a request: three times as long as on a disk, and one request after the other for each part, at most."""
    local = make_run(tmp_path)
    with running_store("far") as store:
        for name, value in environment(store.url).items():
            monkeypatch.setenv(name, value)
        upload(local, "s3://far/run")
        proxy = Proxy(store.port, delay=SECONDS)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        near, rows = timed(local)
        far, same = timed("s3://far/run")

    assert same.equals(rows)
    assert far <= 3 * near + EPOCHS * WORKERS * SECONDS, proxy.requests
    assert sum(proxy.requests.values()) <= 2 * EPOCHS * WORKERS + OTHER_REQUESTS, proxy.requests
    assert proxy.requests["GET"] <= EPOCHS * WORKERS + OTHER_REQUESTS


def test_reads_come_in_their_order_and_many_at_a_time():
    """However long each takes; no more is held ahead than is said."""
    running, most = [], []

    def read(number, seconds):
        running.append(number)
        most.append(len(running))
        time.sleep(seconds)
        running.remove(number)
        return number

    reads = ((1, lambda number=number: read(number, 0.002 * (50 - number))) for number in range(50))
    assert list(read_ahead(reads)) == list(range(50))
    assert 5 < max(most) <= READERS
    assert list(read_ahead([])) == []

    started = []
    large = ((1 << 26, lambda number=number: started.append(number)) for number in range(9))
    found = read_ahead(large)
    next(found)
    time.sleep(0.05)
    assert len(started) <= 2
    found.close()


def test_what_a_read_raises_comes_in_its_turn():
    """After the results before it."""

    def fail():
        raise EasyCoreError("part 2 is damaged")

    found = read_ahead([(1, lambda: "first"), (1, fail), (1, lambda: "third")])
    assert next(found) == "first"
    with pytest.raises(EasyCoreError, match="part 2 is damaged"):
        next(found)
