"""The Ray this process works on: a running cluster, or one started here for the occasion.

A job that would hang is refused before any work. Ray waits for ever
for CPUs that Train workers hold or that no node can bring, so every job states its demand first and
it is compared with what the cluster has now and with what its autoscaler may add.
"""

import logging
import math
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from easycore_ray.runtime.autoscaler import Outlook, look, total_of
from easycore_ray.runtime.console import say
from easycore_ray.runtime.interrupts import keeping_handler
from easycore_ray.runtime.ray_errors import quieten_ray
from easycore_ray.runtime.room import await_room, nodes_there
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# Set once a job connects, unless the user has set them.
_ENVIRONMENT = {
    # Ray reports usage to its makers by default.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train workers would otherwise be polled every 2 s, and wait as long for each epoch to be committed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Nodes may have to be started in the place of lost ones; Ray Train would begin anew after a minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Tune would print a folder of its own that is deleted at the end.
    "RAY_AIR_NEW_OUTPUT": "0",
}
OWN_RAY = "EASYCORE_OWN_RAY"
"""Environment variable of all processes of a Ray that ``connect`` has started, on this machine, for its own job."""
# Set where Ray is started here.
_OWN_ENVIRONMENT = {
    OWN_RAY: "1",
    # Nobody takes this machine away with a notice; looking out for one costs a process, and a second of each run.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Those of them that this process has set, not its user.
_SET_HERE: set[str] = set()
_PORTS = {"": 6379, "ray": 10001}
_ANSWER_SECONDS = 10.0
# What the files of a Ray that has just started take up, about; with less it waits for itself for half a minute.
_START_BYTES = 1 << 20

# CPUs left to reading by default. Reading reserves none of its own (see ``data.stream``), so workers may also be given
# every CPU; decoding reserves one for each task.
_DATA_CPUS = 1.0
# Where images are decoded: CPUs of a worker that computes on a GPU, and what others leave.
_CPUS_BESIDE_GPU = 2
_DECODING_SHARE = 0.25
# Tasks that work is divided into where nobody knows what nodes an autoscaler may add.
_TASKS_OF_UNKNOWN = 16


@dataclass(frozen=True)
class Demand:
    """What a job wants reserved at the same time."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    decodes: bool = False
    """Whether images are decoded beside the workers, which takes one more CPU at least."""
    driver_cpus: float = 0.0
    """Of the process that directs the workers, if it reserves any."""
    most: dict[str, float] | None = None
    """What the user says that the cluster may grow to."""

    @property
    def cpus(self) -> float:
        """All of them."""
        return self.num_workers * self.cpus_per_worker + self.driver_cpus + self.decodes

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Resources of each worker, and of what decodes for them."""
        worker = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        named = {name: value for name, value in worker.items() if value}
        others = [{"CPU": self.driver_cpus}] * (self.driver_cpus > 0) + [{"CPU": 1.0}] * self.decodes
        return [named] * self.num_workers + others


def connect() -> None:
    """Connect to the cluster named by ``RAY_ADDRESS`` (set inside submitted jobs), or start Ray on this machine.

    Does nothing if this process is connected already.

    Raises:
        EasyCoreError: ``RAY_ADDRESS`` names a cluster that does not answer, or Ray cannot start here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    _check_answers(address)
    _describe_ray(own=address == "local")
    if address == "local":
        _check_room(_ray_folder())
    try:
        with keeping_handler():
            # Never joins a cluster that happens to run on this machine: that takes RAY_ADDRESS=auto.
            own = {"include_dashboard": False} if address == "local" else {}
            quieten_ray()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        why = " ".join(str(error).split())
        if address == "local":
            hint = f"its files go to {_ray_folder()}/ray; set RAY_TMPDIR to a folder of yours with a short name"
            home = os.environ.get("HOME")
            if home and isinstance(error, OSError) and str(error.filename).startswith(home):
                hint = "it keeps a token there; set HOME to a folder of yours"
            raise EasyCoreError(f"Ray cannot start on this machine: {why}; {hint}") from error
        raise EasyCoreError(f"no Ray cluster answers at RAY_ADDRESS={address}: {why}; unset it to run here") from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # Without it the order of rows, and even which worker gets them, differs from run to run.
    context.execution_options.preserve_order = True
    # It would announce that its progress bars are off; ours say more.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _describe_ray(own: bool) -> None:
    """Set what processes of a Ray that is started here inherit; take it back before another is joined."""
    for name in _SET_HERE:
        os.environ.pop(name, None)
    _SET_HERE.clear()
    os.environ.pop(OWN_RAY, None)
    if own:
        _SET_HERE.update(name for name in _OWN_ENVIRONMENT if name not in os.environ)
        os.environ.update({name: _OWN_ENVIRONMENT[name] for name in _SET_HERE})


def _ray_folder() -> str:
    """Where a Ray that is started here puts its files."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def _check_room(folder: str) -> None:
    """Refuse to start Ray on a disk that is full."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_START_BYTES))
    except OSError as error:
        if paths.is_full(error):
            raise EasyCoreError(
                f"Ray cannot start on this machine: the disk of {folder} is full; make room, or set RAY_TMPDIR to "
                "another folder of yours with a short name"
            ) from error


def _check_answers(address: str) -> None:
    """Refuse an address where no server of Ray's protocol listens; Ray itself would wait for many minutes."""
    if address in ("local", "auto"):
        return
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":") if ":" in place else (place, "", str(_PORTS.get(scheme, 6379)))
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            _check_speaks_grpc(f"{host}:{port}")
    except (OSError, ValueError, OverflowError) as error:
        raise EasyCoreError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; it must be HOST:PORT of a running cluster, "
            "as ray start --head prints it; unset it to run here"
        ) from error


def _check_speaks_grpc(place: str) -> None:
    try:
        import grpc
    except ImportError:  # comes with MLflow, not with Ray's smallest installation
        return
    with grpc.insecure_channel(place) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise ConnectionError("something listens there that is no Ray") from None


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what it may come to have."""

    ever: dict[str, float]
    """Resources of all nodes there are and may be added; where that is not known, of those there are."""
    grows: bool = False
    """Whether an autoscaler may add nodes."""
    shapes: tuple[dict[str, float], ...] = ()
    """Resources of every kind of node there is, or that may be added; none if that is not known."""
    known: bool = True
    """Whether ``ever`` is all there can be."""

    @property
    def limit(self) -> str:
        """Between "the cluster" and an amount."""
        return "can ever give" if self.grows else "has"

    @property
    def tasks(self) -> int:
        """Tasks of one CPU that work can be divided into, at least one."""
        return max(1, int(self.ever.get("CPU", 0.0)), 0 if self.known else _TASKS_OF_UNKNOWN)


def capacity(most: dict[str, float] | None = None) -> Capacity:
    """Resources of the cluster that this process is connected to, by the word of its autoscaler, or of the user."""
    return capacity_of(nodes_there(), look(), most)


def capacity_of(nodes: Sequence[dict[str, float]], outlook: Outlook, most: dict[str, float] | None = None) -> Capacity:
    """Of these nodes, and of what an autoscaler says of others; where it says nothing, ``most`` is all of them."""
    now = total_of(nodes)
    if not outlook.grows:
        return Capacity(now, shapes=tuple(nodes))
    if most is not None and not outlook.types:
        return Capacity(most, True)
    added = total_of(kind.resources for kind in outlook.types for _ in range(kind.most))
    # Nodes that are there may be among those that it adds.
    ever = {name: max(now.get(name, 0.0), added.get(name, 0.0)) for name in now | added}
    shapes = (*nodes, *(kind.resources for kind in outlook.types))
    return Capacity(ever, True, shapes, known=bool(outlook.types))


def cpus_per_worker(
    num_workers: int,
    requested: float | None,
    gpus_per_worker: float = 0.0,
    *,
    decodes: bool = False,
    there: Capacity | None = None,
) -> float:
    """CPUs to reserve for each training worker: as requested, or an equal share beside Ray Data's.

    Ray Data's is one CPU; where it decodes images, a quarter of them, or all but two for each worker with a GPU.
    Whole numbers where the share is 1 or more, fractions of a CPU on small machines; one CPU where an autoscaler
    decides what nodes there will be and does not say.
    """
    if requested is not None:
        return requested
    there = capacity() if there is None else there
    if not there.known:
        return 1.0
    cpus, kept = there.ever.get("CPU", 1.0), _DATA_CPUS
    if decodes:
        kept = max(kept, cpus - _CPUS_BESIDE_GPU * num_workers if gpus_per_worker else cpus * _DECODING_SHARE)
    share = (cpus - kept) / num_workers
    if share >= 1:
        # A worker lives on one node, however many CPUs the others bring; if it needs a GPU, on one with GPUs.
        homes = [shape for shape in there.shapes if shape.get("GPU", 0.0) >= gpus_per_worker]
        most = max((shape.get("CPU", 0.0) / _workers_on(shape, gpus_per_worker) for shape in homes), default=share)
        return max(1.0, float(math.floor(min(share, most))))
    # On a laptop: two workers on two CPUs get half a CPU each and still use both cores.
    return max(math.floor(share * 100) / 100, 0.01)


def _workers_on(shape: dict[str, float], gpus_per_worker: float) -> int:
    """Workers that share a node: as many as it has GPUs for; one where none are requested."""
    return int(shape.get("GPU", 0.0) // gpus_per_worker) if gpus_per_worker else 1


def preflight(demand: Demand, label: str) -> None:
    """Refuse a demand that the cluster can never meet; wait for nodes that it may add, and for what others hold.

    Says where GPUs stay idle.

    Args:
        demand: of the job.
        label: the job, for messages.

    Raises:
        EasyCoreError: says what is wanted, what the cluster has or may grow to, and which option to lower.
    """
    there = capacity(demand.most)
    check_demand(demand, there)
    if (gpus := there.ever.get("GPU")) and not demand.gpus_per_worker:
        say(f"the cluster {there.limit} {gpus:g} GPUs, which stay idle; --gpus-per-worker 1 uses them")
    # Elsewhere nobody else is at work.
    if there.grows or os.environ.get("RAY_ADDRESS", "local") != "local":
        await_room(demand.bundles, label, "--num-workers, --cpus-per-worker or --gpus-per-worker")


def await_place(task: dict[str, float], label: str) -> None:
    """Wait until a cluster that may grow has room for a task of these resources, see ``room.await_room``.

    Raises:
        EasyCoreError: it never can.
    """
    if capacity().grows:
        await_room([{name: value for name, value in task.items() if value}], label, "what a task reserves")


def check_demand(demand: Demand, there: Capacity | None = None) -> None:
    """Refuse what is known to be too much, without waiting.

    Args:
        demand: of the job.
        there: what the cluster has; asked if None.

    Raises:
        EasyCoreError: see ``preflight``.
    """
    there = capacity(demand.most) if there is None else there
    if not there.known:
        return
    ever, limit = there.ever, there.limit
    _check("CPU", demand.cpus - demand.decodes, ever, limit, "--num-workers or --cpus-per-worker")
    if demand.decodes and (missing := demand.cpus - ever.get("CPU", 0.0)) > 1e-9:
        raise EasyCoreError(
            f"workers take all {ever.get('CPU', 0.0):g} CPUs the cluster {limit}, and none is left to decode images "
            f"for them; lower --num-workers or --cpus-per-worker by {missing:g} CPUs in all"
        )
    _check("GPU", demand.num_workers * demand.gpus_per_worker, ever, limit, "--num-workers or --gpus-per-worker")
    worker = {"CPU": demand.cpus_per_worker, "GPU": demand.gpus_per_worker}
    large_enough = [all(shape.get(key, 0.0) >= value for key, value in worker.items()) for shape in there.shapes]
    if large_enough and not any(large_enough):
        raise EasyCoreError(
            f"a worker wants {worker['CPU']:g} CPUs and {worker['GPU']:g} GPUs on one node, and no node the cluster "
            f"{limit} is that large; lower --cpus-per-worker or --gpus-per-worker"
        )


def _check(resource: str, wanted: float, ever: dict[str, float], limit: str, option: str) -> None:
    there = ever.get(resource, 0.0)
    if wanted > there + 1e-9:
        raise EasyCoreError(f"{wanted:g} {resource}s are wanted, the cluster {limit} {there:g}; lower {option}")
