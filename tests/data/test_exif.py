"""Photos that lie on their side, imported and read back."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.data.materialize import materialize
from easycore_ray.data.samples import read_split
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SIDE = 160  # too large to be stored as raw pixels


def stored(number):
    """Pixels (height, width, 3) of a photo as its file has them."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photos of two classes; two of them lie on their side."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(6):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if number < 2 else 1
        buffer = io.BytesIO()
        Image.fromarray(stored(number)).save(buffer, "PNG", exif=exif.tobytes())
        path.write_bytes(buffer.getvalue())
    return str(root)


def expected(number, exif):
    """What a model sees of a photo: (3, height, width)."""
    pixels = stored(number)
    return (np.rot90(pixels, -1) if exif == "rotate" and number < 2 else pixels).transpose(2, 0, 1)


@pytest.mark.parametrize("exif", ["rotate", "ignore"])
def test_photos_are_read_as_they_were_imported(photos, tmp_path, capfd, exif):
    """Also from a coreset's own dataset; how many were turned is said and kept."""
    made = prepare(source=photos, out=str(tmp_path / "made"), val_fraction=0, test_fraction=0, exif=exif)
    part = materialize(open_dataset(made.path), np.arange(4), str(tmp_path / "part"))

    for artifact, count in ((made, 6), (part, 4)):
        images = read_split(open_dataset(artifact.path), "train").images.numpy()
        numbers = [0, 2, 4, 1, 3, 5][:count]
        assert (images == np.stack([expected(number, exif) for number in numbers])).all()
    assert (made.manifest["storage"], made.manifest["exif"]) == ("encoded", exif)
    assert made.manifest["remarks"]["rotated"] == (2 if exif == "rotate" else 0)
    line = next(line for line in capfd.readouterr().err.splitlines() if "6 images of" in line)
    assert ("2 turned upright by EXIF" in line) == (exif == "rotate")


@pytest.mark.parametrize("exif", ["rotate", "ignore"])
def test_jpegs_are_measured_as_they_are_read(tmp_path, exif):
    """Of photos that lie on their side: norms of the index, and the sides of the view."""
    for number in range(4):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        lying = Image.Exif()
        lying[0x0112] = 6
        # Bright on one side, so that a square from the middle of the turned photo has another norm.
        shade = np.linspace(0, 255, 300).astype(np.uint8) * np.linspace(0, 1, 200)[:, None] ** number
        Image.fromarray(shade.astype(np.uint8)).convert("RGB").save(path, "JPEG", exif=lying)

    made = prepare(
        source=str(tmp_path / "photos"), out=str(tmp_path / "made"), val_fraction=0, test_fraction=0, exif=exif
    )

    images = read_split(open_dataset(made.path), "train").images.numpy()
    assert images.shape == ((4, 3, 300, 200) if exif == "rotate" else (4, 3, 200, 300))
    norms = made.index("train")["input_norm"].to_numpy()
    assert norms == pytest.approx([np.linalg.norm(image / 255) for image in images])


def test_the_setting_belongs_to_the_identity(photos, tmp_path):
    """Another one is another dataset."""
    prepare(source=photos, out=str(tmp_path / "made"), val_fraction=0, test_fraction=0)

    with pytest.raises(EasyCoreError, match="--overwrite"):
        prepare(source=photos, out=str(tmp_path / "made"), val_fraction=0, test_fraction=0, exif="ignore")


def test_datasets_of_earlier_releases_are_read_as_they_were_made(photos, tmp_path):
    """Their manifests say nothing of EXIF, and nothing was turned."""
    made = prepare(source=photos, out=str(tmp_path / "made"), val_fraction=0, test_fraction=0, exif="ignore")
    manifest = {key: value for key, value in made.manifest.items() if key != "exif"}
    (tmp_path / "made/manifest.json").write_text(json.dumps(manifest))

    images = read_split(open_dataset(made.path), "train").images.numpy()

    assert (images[0] == expected(0, "ignore")).all()
