"""A few of the soak's damages, and what it does with a reader that takes no notice of them."""

import re

import pytest

from easycore_ray.data.ingest import archives
from tests.soak import fuzz


@pytest.mark.slow
def test_damaged_inputs_are_refused_or_read_as_what_they_were():
    """Every input and kind of damage; most are refused."""
    found = fuzz.run_case(0, damages=350)

    assert found["damages"] == 350
    assert found["refused"] + found["undamaged"] + found["cannot be told"] + found.get("said", 0) == 350
    assert found["refused"] > 250
    assert len(found["by input"]) == 7


def test_a_reader_that_stops_without_a_word_fails_the_case(monkeypatch):
    """As tarfile does at the first header it cannot read."""
    read_members = archives.read_members

    def careless(path):
        try:
            yield from read_members(path)
        except archives.EasyCoreError:
            return

    monkeypatch.setattr(archives, "read_members", careless)

    with pytest.raises(AssertionError) as caught:
        fuzz.run_case(0, damages=140)
    for name in (r"tar", r"tar\.gz"):
        assert re.search(rf"damage \d+ of seed 0 \({name}, \w+\): samples", str(caught.value))


def test_a_whole_archive_is_known_by_its_bytes(tmp_path):
    """By a walk of the test's own, which shares nothing with the reader."""
    fuzz.write_tar(tmp_path / "0.tar")
    content = (tmp_path / "0.tar").read_bytes()

    assert fuzz.is_whole(content)
    assert not fuzz.is_whole(content[:3000])
    assert not fuzz.is_whole(content.replace(b"0003.png", b"0004.png"))
    assert not fuzz.is_whole(content.rstrip(b"\0"))
