"""``s3://`` against a real server: files whole or not there, patience with a store, haste with a mistake."""

import io
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("moto")

from easycore_ray.cli.command import run
from easycore_ray.config.stages import ReduceConfig
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.ingest import readers, sources
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.selection.select import select
from easycore_ray.storage import artifact, object_store, paths
from easycore_ray.storage.artifact import Artifact, Claim
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, make_dataset, samples_of, write_parts
from tests.object_store import CREDENTIALS, Proxy, environment, free_port, running_store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BUCKET = "bucket-of-tests"
# More than one part of an upload.
LARGE = 25 * 1024 * 1024
OUTAGE_SECONDS = 1.0
# What is promised to whoever mistypes a bucket.
QUICK_SECONDS = 20


@pytest.fixture(scope="module")
def store():
    with running_store(BUCKET, "pictures", "classes.json") as running:
        yield running


@pytest.fixture
def proxy(store):
    return Proxy(store.port)


@pytest.fixture
def root(store, monkeypatch, request):
    """A folder in the store that this process is pointed to, of the test's own."""
    point_to(store.url, monkeypatch)
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def far_root(root, proxy, monkeypatch):
    """The same through the proxy."""
    point_to(proxy.url, monkeypatch)
    return root


def point_to(url, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["plain.bin", "a b/c d.txt", "50%25 off?x=1#y", "é+&=ü", "deep/er/est"])
def test_any_name_can_be_written_read_listed_and_sized(root, name):
    """Names that mean something in a URI are names here."""
    paths.write_bytes(f"{root}/{name}", b"12345")

    assert paths.read_bytes(f"{root}/{name}") == b"12345"
    assert paths.list_files(root) == [f"{root}/{name}"]
    assert (paths.size(f"{root}/{name}"), paths.exists(f"{root}/{name}")) == (5, True)


def test_folders_are_where_objects_are_and_need_no_markers(root, store):
    """A folder exists while something lies in it; making one writes nothing, deleting one leaves its neighbours."""
    paths.make_dir(f"{root}/x/y")
    assert not paths.exists(f"{root}/x")
    for name in ("x/y/1", "x/y/2", "xx/3"):
        paths.write_bytes(f"{root}/{name}", b"")

    assert paths.is_dir(f"{root}/x")
    assert not paths.is_dir(f"{root}/x/y/1")
    assert sorted(key for key in store.keys(BUCKET) if root.rpartition("/")[2] in key) == [
        f"{root}/{name}".removeprefix(f"s3://{BUCKET}/") for name in ("x/y/1", "x/y/2", "xx/3")
    ]
    for _ in range(2):
        paths.delete_tree(f"{root}/x")
    assert not paths.exists(f"{root}/x")
    assert paths.list_files(root) == [f"{root}/xx/3"]
    assert paths.list_files(f"{root}/nowhere") == []


def test_a_marker_of_another_tool_is_a_folder_and_no_file(root, store):
    """Empty objects that stand for folders do not make a place look taken."""
    store.client.put_object(Bucket=BUCKET, Key=f"{root}/marked/".removeprefix(f"s3://{BUCKET}/"), Body=b"")

    assert paths.is_dir(f"{root}/marked")
    assert paths.list_files(f"{root}/marked") == []
    assert isinstance(artifact.claim(f"{root}/marked", "coreset", "i"), Claim)


def test_a_column_is_read_without_the_rest_of_its_file(far_root, proxy):
    """Of 8 MB, one column of ten moves about a tenth."""
    sink = pa.BufferOutputStream()
    table = pa.table({f"c{number}": np.random.default_rng(number).random(100_000) for number in range(10)})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    content = sink.getvalue()
    paths.write_bytes(f"{far_root}/t.parquet", content)
    before = proxy.sent_down

    with paths.open_input(f"{far_root}/t.parquet") as stream:
        column = pq.ParquetFile(stream, pre_buffer=True).read(columns=["c7"])

    assert column["c7"].equals(table["c7"])
    assert proxy.sent_down - before < len(content) * 0.2


def test_a_filesystem_sent_to_another_process_stays_patient_and_holds_no_secret(root):
    """Its pickle is the way to open it again: address and patience, no credentials."""
    filesystem = paths.locate(root)[0]
    sent = pickle.dumps(filesystem)
    script = (
        "import pickle, sys\n"
        "store = pickle.loads(sys.stdin.buffer.read())\n"
        "print(*store.arguments, store.get_file_info(sys.argv[1]).type.name)"
    )
    done = subprocess.run([sys.executable, "-c", script, BUCKET], input=sent, capture_output=True, cwd=ROOT, check=True)

    assert not any(value.encode() in sent for value in CREDENTIALS.values())
    assert done.stdout.decode().split() == [*map(str, filesystem.arguments), "Directory"]
    assert filesystem.arguments[2] == object_store._ATTEMPTS
    assert paths.locate(f"{root}/other")[0] is filesystem


# ---------------------------------------------------------------- artifacts


def test_an_artifact_is_claimed_resumed_finished_reused_and_replaced(root):
    """The life of a folder is the same as on a disk."""
    out = f"{root}/runs/a"
    made = artifact.claim(out, "coreset", "one")
    paths.write_bytes(f"{out}/data", b"x")
    with pytest.raises(EasyCoreError, match="still being written"):
        artifact.open_artifact(out, "coreset")
    again = artifact.claim(out, "coreset", "one")
    assert (again.nonce, again.resumed) == (made.nonce, True)
    artifact.finish(made, fingerprint="f", config={}, parents={}, counts={}, wall_seconds=1.0)

    assert isinstance(artifact.claim(out, "coreset", "one"), Artifact)
    with pytest.raises(EasyCoreError, match="pass --overwrite"):
        artifact.claim(out, "coreset", "two")
    with pytest.raises(EasyCoreError, match="holds a coreset, not a dataset"):
        artifact.claim(out, "dataset", "one", overwrite=True)
    other = artifact.claim(out, "coreset", "two", overwrite=True)
    assert artifact.open_artifact(out).fingerprint == "f"
    paths.write_bytes(f"{other.path}/data", b"y")
    artifact.finish(other, fingerprint="g", config={}, parents={}, counts={}, wall_seconds=1.0)
    names = [f"gen-{other.nonce}/{name}" for name in ("data", "manifest.json", "run.json")]
    assert paths.list_files(out) == [f"{out}/{name}" for name in [*names, "manifest.json"]]
    assert artifact.open_artifact(out).path == other.path


def test_a_refused_claim_leaves_nothing(root):
    """A mistake found after claiming gives the place back."""
    made = artifact.claim(f"{root}/a", "coreset", "one")
    with pytest.raises(EasyCoreError), artifact.giving_back(made):
        raise EasyCoreError("no")

    assert paths.list_files(root) == []


def test_scores_are_reduced_and_selected_in_the_store_as_on_disk(root, tmp_path):
    """Score table → hardness → coreset without Ray: the same fingerprints in both places."""
    ids, labels = np.arange(300), np.arange(300) % 3
    found = {}
    for where in (root, str(tmp_path)):
        dataset = make_dataset(f"{where}/dataset", labels.tolist())
        parts = write_parts(f"{where}/run/table", draw_rows(ids, labels, [0, 1, 2]), ids % 2)
        finish_table(f"{where}/run", parts, samples_of(ids, labels), dataset)
        hardness = reduce(scores=f"{where}/run", out=f"{where}/run/hardness")
        core = select(scores=f"{where}/run", dataset=f"{where}/dataset", fraction=0.25, out=f"{where}/core")
        rows = read_hardness(open_hardness(f"{where}/run"))
        table = open_table(f"{where}/run/table").artifact.fingerprint
        found[where] = (table, hardness.fingerprint, core.fingerprint, rows.to_pydict(), read_sample_ids(core).tolist())

    assert str(found[root]) == str(found[str(tmp_path)])


# ---------------------------------------------------------------- sources


def png(seed):
    buffer = io.BytesIO()
    Image.frombytes("RGB", (4, 4), np.random.default_rng(seed).bytes(48)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["imagefolder", "parquet"])
def test_images_are_read_from_a_store_as_from_a_disk(root, tmp_path, layout, request):
    """Folders of images and Parquet files: the same pieces, classes and pixels."""
    found = []
    for where in (str(tmp_path / "source"), f"{root}/source"):
        if layout == "imagefolder":
            for number in range(6):
                paths.write_bytes(
                    f"{where}/{'train' if number < 4 else 'test'}/class {number % 2}/{number}%.png", png(number)
                )
        else:
            for split, numbers in (("train", range(5)), ("test", range(5, 7))):
                sink = pa.BufferOutputStream()
                rows = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers], "label": list(numbers)}
                pq.write_table(pa.table(rows), sink, row_group_size=2)
                paths.write_bytes(f"{where}/{split}-0.parquet", sink.getvalue())
        listed = sources.list_source(where)
        checked = {
            split: [pa.concat_tables(readers.check(0, piece, listed.classes)).to_pydict() for piece in pieces]
            for split, pieces in listed.pieces.items()
        }
        found.append((listed.classes, listed.num_rows, checked))

    assert found[0] == found[1]
    assert set(found[0][1]) == {"train", "test"}


def test_a_whole_bucket_can_be_the_source(root):
    """It has no parent in which class names may lie: a bucket that is called like their file is another's."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": [0, 1]}), sink)
    paths.write_bytes("s3://pictures/train.parquet", sink.getvalue())
    listed = sources.list_source("s3://pictures")

    assert (listed.total, listed.classes) == (2, None)


# ---------------------------------------------------------------- whole or not at all


_WRITER = """
import sys
from easycore_ray.storage import paths
paths.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))
"""


def test_a_writer_killed_in_the_middle_of_an_upload_leaves_no_object(far_root, proxy, store):
    """SIGKILL after 12 of 25 MiB: the name stays free, and a second attempt fills it."""
    target = f"{far_root}/large.bin"
    proxy.turn("hold", after=12 * 1024 * 1024)
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, target, str(LARGE)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while proxy.mode != "hold":
        assert writer.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    proxy.turn("pass")

    assert target.removeprefix(f"s3://{BUCKET}/") in store.uploads(BUCKET), "the upload had not begun"
    assert not paths.exists(target)
    assert paths.list_files(far_root) == []
    paths.write_bytes(target, b"whole")
    assert paths.read_bytes(target) == b"whole"


def test_a_writer_that_stops_keeps_the_object_that_was_there(far_root, proxy, monkeypatch):
    """An upload cut for good in the middle ends in one sentence; the name keeps its old content."""
    monkeypatch.setattr(object_store, "_ATTEMPTS", 2)
    target = f"{far_root}/large.bin"
    paths.write_bytes(target, b"before")
    proxy.turn("hang up", after=12 * 1024 * 1024)

    with pytest.raises(EasyCoreError, match=r"large.bin cannot be written: http://[\d.:]+ does not answer") as caught:
        paths.write_bytes(target, bytes(LARGE))
    proxy.turn("pass")

    assert "\n" not in str(caught.value)
    assert paths.read_bytes(target) == b"before"


@pytest.mark.parametrize(("fault", "size"), [pytest.param("hang up", LARGE, marks=pytest.mark.soak), ("busy", 1000)])
def test_an_outage_during_a_write_is_waited_out(far_root, proxy, fault, size):
    """Connections that break (in the middle of a large upload), or 503, for a while: written whole."""
    content = np.random.default_rng(0).bytes(size)
    paths.write_bytes(f"{far_root}/before", b"")
    proxy.turn(fault, after=size // 2)
    begun = proxy.connections
    threading.Timer(OUTAGE_SECONDS, proxy.turn, ["pass"]).start()

    paths.write_bytes(f"{far_root}/a.bin", content)

    assert proxy.mode == "pass", "the write did not meet the outage"
    assert proxy.connections > begun
    assert paths.read_bytes(f"{far_root}/a.bin") == content


@pytest.mark.parametrize("fault", [pytest.param("hang up", marks=pytest.mark.slow), "busy"])
def test_an_outage_during_a_read_is_waited_out(far_root, proxy, fault):
    """The same for reading and listing."""
    paths.write_bytes(f"{far_root}/a.bin", b"content")
    proxy.turn(fault)
    threading.Timer(OUTAGE_SECONDS, proxy.turn, ["pass"]).start()

    assert paths.list_files(far_root) == [f"{far_root}/a.bin"]
    assert proxy.mode == "pass"
    assert paths.read_bytes(f"{far_root}/a.bin") == b"content"


# ---------------------------------------------------------------- mistakes, within seconds


def refused(scores, capsys):
    """What a job says of its input, and how long it takes."""
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run(ReduceConfig, reduce, ["--scores", scores, "--out", scores + "/hardness"])
    seconds = time.monotonic() - started
    said = capsys.readouterr().err

    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said)
    return said, seconds


def test_a_wrong_bucket_is_named(root, capsys):
    """Also where the endpoint is that of S3 alone."""
    said, seconds = refused("s3://bucket-of-nobody/runs", capsys)

    assert "has no bucket bucket-of-nobody" in said
    assert seconds < QUICK_SECONDS


def test_wrong_credentials_are_told_from_an_absent_store(root, store, monkeypatch, capsys):
    """The variables to look at are named, their content is not."""
    for name in CREDENTIALS:
        monkeypatch.setenv(name, "AKIAWRONGWRONGWRONG")
    with store.demanding_credentials():
        said, seconds = refused(root, capsys)

    assert "refuses access" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert "WRONG" not in said
    assert seconds < QUICK_SECONDS


def test_missing_credentials_are_named(far_root, proxy, monkeypatch, capsys):
    """Without any, requests go unsigned and are forbidden (moto itself stumbles over them)."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    proxy.turn("forbid")
    said, seconds = refused(far_root, capsys)

    assert "refuses access" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert seconds < QUICK_SECONDS


def test_an_address_where_nobody_listens_is_named(root, monkeypatch, capsys):
    """AWS_ENDPOINT_URL_S3 goes before AWS_ENDPOINT_URL, which is right here."""
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    said, seconds = refused(root, capsys)

    assert f"{url} does not answer" in said
    assert seconds < QUICK_SECONDS


@pytest.mark.slow
@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up(far_root, proxy, capsys):
    """It accepts connections and says nothing: seconds, not minutes."""
    proxy.turn("hold")
    said, seconds = refused(far_root, capsys)

    assert "does not answer" in said
    assert seconds < QUICK_SECONDS


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://minio", "http://key:secret@minio:9000"])
def test_an_endpoint_that_is_no_address_is_refused(root, endpoint, monkeypatch, capsys):
    """With an example of one that is."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    said, _ = refused(root, capsys)

    assert "allowed is an address such as http://minio:9000" in said
    assert "secret" not in said


def test_credentials_in_a_path_are_refused_unrepeated(root, capsys):
    """They would be written into every manifest."""
    said, _ = refused(f"s3://KEY:SECRET@{BUCKET}/runs", capsys)

    assert "holds credentials" in said
    assert "SECRET" not in said.replace("AWS_SECRET_ACCESS_KEY", "")
    with pytest.raises(EasyCoreError, match=r"^the s3:// path holds credentials") as caught:
        reduce(scores=f"s3://KEY:SECRET@{BUCKET}/runs", out=f"{root}/out")
    assert "SECRET@" not in str(caught.value)


def test_a_root_of_relative_paths_is_asked_too(root, monkeypatch, capsys, tmp_path):
    """EASYCORE_ROOT may be a bucket that does not exist."""
    monkeypatch.setenv("EASYCORE_ROOT", "s3://bucket-of-nobody")
    with pytest.raises(EasyCoreError, match="has no bucket bucket-of-nobody"):
        reduce(scores="runs", out=str(tmp_path / "out"))


def test_a_listed_json_file_is_read_by_one_request(far_root, proxy):
    """Whatever it holds, longer lines than pyarrow reads at a time included; what is no JSON is named."""
    contents = [{}, {"text": 'a\u0001b, "c"\r\nä\t\'', "none": None, "list": [1, [2.5]]}, {"long": "x" * 3_000_000}]
    for number, content in enumerate(contents):
        paths.write_json(f"{far_root}/{number}.json", content)
    paths.write_bytes(f"{far_root}/3.json", b'{"a": 1')
    *whole, cut = paths.entries(far_root)
    before = sum(proxy.requests.values())
    found = [paths.read_listed_json(entry) for entry in whole]

    assert found == contents
    assert sum(proxy.requests.values()) - before == len(contents)
    with pytest.raises(EasyCoreError, match=r"3\.json is not valid JSON"):
        paths.read_listed_json(cut)
    paths.delete_file(cut.path)
    with pytest.raises(EasyCoreError, match=r"3\.json cannot be read"):
        paths.read_listed_json(cut)
