"""docs/reading.md: every line runs as it stands, on real artifacts, and gives the rows that are there."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray import select
from easycore_ray.scoring import hardness_table, score_table
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from tests.artifacts import make_image_dataset, make_scoring_run

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "reading.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LABELS = [number % 3 for number in range(30)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A scoring run with a part that no one lists, its coreset, and the images it came from."""
    root = tmp_path_factory.mktemp("read")
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    orphan = root / "scores" / "table" / "epoch=00001" / "part-beef-r00000.parquet"
    orphan.write_bytes((orphan.parent / "part-00000-a-r00000.parquet").read_bytes())
    coreset = select(out=f"{root}/coreset", scores=scores.path, fraction=0.5)
    for number, label in enumerate(LABELS):
        path = root / "source" / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    return {"RUN": scores.path, "CORESET": coreset.path, "SOURCE": f"{root}/source"}


def run(block, names):
    """Run a block as a reader would; what it has set. Skips if what it imports is not installed."""
    for package in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    exec(block, names)
    return names


def run_all_up_to(word, folders, **names):
    """The block that sets a name, after the one that lists the parts."""
    (first,) = [block for block in BLOCKS if re.search(r"^parts = ", block, re.MULTILINE)]
    (block,) = [block for block in BLOCKS if re.search(rf"^{word} = ", block, re.MULTILINE)]
    return run(block, run(first, {**folders, **names}))[word]


@pytest.fixture
def ids(folders):
    """The coreset's ids."""
    return np.load(f"{folders['CORESET']}/sample_ids.npy").tolist()


def test_listed_parts_hold_every_row_once(folders):
    """A glob would count those of a lost worker twice."""
    rows = run_all_up_to("scores", folders)
    everything = list(Path(folders["RUN"], "table").glob("epoch=*/*.parquet"))

    assert rows.schema.names == score_table.SCORE_SCHEMA.names
    assert rows.num_rows == 3 * len(LABELS)
    assert sum(pq.read_metadata(path).num_rows for path in everything) > rows.num_rows


def test_pyarrow_reads_hardness(folders):
    """All samples, the columns asked for."""
    rows = run_all_up_to("hardness", folders)

    assert rows.to_pydict() == read_hardness(open_hardness(folders["RUN"]), ["sample_id", "label", "aign"]).to_pydict()


def test_pandas_finds_the_hardest(folders):
    """Ten, in order."""
    expected = read_hardness(open_hardness(folders["RUN"])).sort_by([("aign", "descending")])["sample_id"][:10]

    assert run_all_up_to("hardest", folders)["sample_id"].tolist() == expected.to_pylist()


def test_polars_averages_by_class(folders):
    """As NumPy does."""
    table = read_hardness(open_hardness(folders["RUN"]))
    found = {row["label"]: row["aign"] for row in run_all_up_to("by_class", folders).to_dicts()}

    for label in range(3):
        mean = table["aign"].to_numpy()[table["label"].to_numpy() == label].mean()
        assert found[label] == pytest.approx(mean, rel=1e-12)


def test_duckdb_averages_by_epoch_without_orphans(folders):
    """From the listed parts: epochs 0, 1, 2, each sample once."""
    found = run_all_up_to("by_epoch", folders)
    rows = run_all_up_to("scores", folders)

    assert [epoch for epoch, _ in found] == [0, 1, 2]
    for epoch, mean in found:
        mine = rows["grad_norm"].to_numpy()[rows["epoch"].to_numpy() == epoch]
        assert mean == pytest.approx(mine.astype(float).mean(), rel=1e-6)


def test_a_coreset_is_read_whole(folders, ids):
    """Ids, scores, labels and keys."""
    rows = run_all_up_to("coreset", folders)

    assert rows.schema.names == ["sample_id", "score", "label", "key"]
    assert rows["sample_id"].to_pylist() == ids


def test_a_subset_by_position(folders, ids):
    """PyTorch's own class."""
    assert list(run_all_up_to("subset", folders, training_set=list(range(30)))) == ids


def test_hugging_face_selects_by_position(folders, ids):
    """Their dataset takes the array as it is."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"at": list(range(30))})

    assert run_all_up_to("selected", folders, hf_training_set=data)["at"] == ids


def test_a_subset_by_key(folders, ids):
    """The images themselves: each one's grey value is its id."""
    found = run_all_up_to("kept", folders)

    assert sorted(image.getpixel((0, 0))[0] for image, _ in found) == ids


def test_the_page_names_every_column_with_its_type():
    """Of both tables; so that a changed schema changes the page."""
    for schema in (score_table.ADVERSARIAL_SCORE_SCHEMA, hardness_table.ADVERSARIAL_HARDNESS_SCHEMA):
        for field in schema:
            (line,) = [line for line in TEXT.splitlines() if re.match(rf"\| .*`{field.name}`.* \| ", line)
                       and str(field.type) in line.split("|")[2]][:1]  # fmt: skip
            assert line


def test_every_block_is_tried_here():
    """A new line on the page needs a test that looks at what it gives."""
    tried = set(re.findall(r'run_all_up_to\("(\w+)"', Path(__file__).read_text())) | {"parts"}
    for block in BLOCKS:
        assert set(re.findall(r"^(\w+) = ", block, re.MULTILINE)) & tried, block
