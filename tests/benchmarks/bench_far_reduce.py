"""Reduce on an object store that takes its time: 50 ms a request, against the same files on this machine's disk.

    python tests/benchmarks/bench_far_reduce.py [--epochs 200] [--workers 64] [--rows 6400] [--delay 0.05]

The store is moto's server in a process of its own, behind a proxy in another that holds every request back. Both
figures are of whole reductions, one after the other in this process.
"""

import argparse
import multiprocessing
import os
import tempfile
import time

from tests.object_store import Proxy, environment, running_store
from tests.scoring.test_reduce_remote import make_run, timed, upload


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200, help="scored epochs")
    parser.add_argument("--workers", type=int, default=64, help="parts of an epoch")
    parser.add_argument("--rows", type=int, default=6400, help="samples")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds of a request")
    options = parser.parse_args()
    parts = options.epochs * options.workers
    with tempfile.TemporaryDirectory() as folder, running_store("far") as store:
        run = make_run(folder, options.epochs, options.workers, options.rows)
        os.environ |= environment(store.url)
        upload(run, "s3://far/run")
        with multiprocessing.get_context("spawn").Manager() as manager:
            shared = manager.dict()
            proxy = multiprocessing.get_context("spawn").Process(
                target=serve, args=(store.port, options.delay, shared), daemon=True
            )
            proxy.start()
            while "url" not in shared:
                time.sleep(0.05)
            os.environ["AWS_ENDPOINT_URL"] = shared["url"]
            near, rows = timed(run)
            before = dict(shared["requests"])
            far, same = timed("s3://far/run")
            time.sleep(0.2)
            requests = {name: count - before.get(name, 0) for name, count in shared["requests"].items()}
            assert same.equals(rows)
            proxy.terminate()
    print(f"{parts:,} parts: {near:.1f} s on the disk, {far:.1f} s in the store, {requests} requests of "
          f"{1000 * options.delay:g} ms; limit {3 * near + parts * options.delay:.1f} s")  # fmt: skip


def serve(port: int, delay: float, shared: dict) -> None:
    """A proxy in this process; what it has counted goes to ``shared``."""
    proxy = Proxy(port, delay)
    shared["url"] = proxy.url
    while True:
        shared["requests"] = dict(proxy.requests)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
