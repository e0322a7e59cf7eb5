"""Artifacts: what is finished is reused, what is not is resumed, anything else is refused."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.storage import artifact
from easycore_ray.storage.artifact import Artifact, Claim, claim, finish, identity, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash


def make(folder, kind="coreset", key="k", fingerprint="f" * 64):
    """A finished artifact at ``folder``."""
    made = claim(str(folder), kind, key)
    assert isinstance(made, Claim)
    return finish(made, fingerprint=fingerprint, config={"seed": 1}, parents={}, counts={"samples": 3}, wall_seconds=1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- claim


def test_a_free_place_is_claimed_and_a_second_claim_resumes_it(tmp_path):
    """The nonce stays, so that state kept under it is found again."""
    first = claim(str(tmp_path / "x"), "coreset", "k")
    second = claim(str(tmp_path / "x"), "coreset", "k")

    assert isinstance(first, Claim)
    assert not first.resumed
    assert isinstance(second, Claim)
    assert second.resumed
    assert second.nonce == first.nonce


def test_a_finished_artifact_is_returned(tmp_path):
    """Claiming it again is how a job finds that there is nothing to do."""
    made = make(tmp_path / "x")

    assert claim(str(tmp_path / "x"), "coreset", "k") == made


@pytest.mark.parametrize("finished", [False, True])
def test_another_identity_is_refused_unless_overwritten(tmp_path, finished):
    """With --overwrite it grows inside, under another nonce, and in the end takes the place of all that was there."""
    before = claim(str(tmp_path / "x"), "coreset", "k")
    if finished:
        make(tmp_path / "x")
    (tmp_path / "x" / "old").mkdir()
    (tmp_path / "x" / "old" / "part").write_text("")

    with pytest.raises(EasyCoreError, match=r"coreset made with another configuration.*--overwrite"):
        claim(str(tmp_path / "x"), "coreset", "other")
    after = claim(str(tmp_path / "x"), "coreset", "other", overwrite=True)
    assert isinstance(after, Claim)
    assert not after.resumed
    assert after.nonce != before.nonce
    assert {"old", "run.json", f"gen-{after.nonce}"} <= set(names(tmp_path / "x")), "nothing goes before"
    done = finish(after, fingerprint="new", config={}, parents={}, counts={}, wall_seconds=1.0)
    assert names(tmp_path / "x") == [f"gen-{after.nonce}", "manifest.json"]
    assert open_artifact(str(tmp_path / "x")).path == done.path == after.path
    assert claim(str(tmp_path / "x"), "coreset", "other").path == done.path


def test_overwrite_replaces_the_same_configuration_too(tmp_path):
    """Who asks for it wants it made anew."""
    make(tmp_path / "x")

    first = claim(str(tmp_path / "x"), "coreset", "k", overwrite=True)
    assert claim(str(tmp_path / "x"), "coreset", "k", overwrite=True) == replace(first, resumed=True)
    finish(first, fingerprint="1", config={}, parents={}, counts={}, wall_seconds=1.0)
    second = claim(str(tmp_path / "x"), "coreset", "k", overwrite=True)
    assert second.nonce != first.nonce
    finish(second, fingerprint="2", config={}, parents={}, counts={}, wall_seconds=1.0)
    assert names(tmp_path / "x") == [f"gen-{second.nonce}", "manifest.json"]


def replaced(folder, key, fingerprint):
    """Replace an artifact; its new content's folder."""
    made = claim(str(folder), "coreset", key, overwrite=True)
    return finish(made, fingerprint=fingerprint, config={}, parents={}, counts={}, wall_seconds=1.0).path


def test_a_replacement_that_was_whole_is_taken_and_not_made_again(tmp_path):
    """Killed between its own manifest and the one that names it."""
    make(tmp_path / "x")
    before = (tmp_path / "x" / "manifest.json").read_bytes()
    whole = replaced(tmp_path / "x", "k", "new")
    (tmp_path / "x" / "manifest.json").write_bytes(before)

    assert claim(str(tmp_path / "x"), "coreset", "k", overwrite=True).path == whole
    assert open_artifact(str(tmp_path / "x")).fingerprint == "new"


def test_what_was_replaced_is_never_taken_for_its_replacement(tmp_path):
    """Killed before the old files were gone: of equal identity, but not what is asked for now."""
    make(tmp_path / "x")
    old = replaced(tmp_path / "x", "k", "old")
    shutil.copytree(old, tmp_path / "kept")
    new = replaced(tmp_path / "x", "k", "new")
    shutil.copytree(tmp_path / "kept", old)

    again = claim(str(tmp_path / "x"), "coreset", "k", overwrite=True)
    assert isinstance(again, Claim)
    assert not again.resumed
    assert open_artifact(str(tmp_path / "x")).path == new


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_kind_is_never_replaced(tmp_path, overwrite):
    """A dataset is not deleted by mistyping --out of a coreset."""
    make(tmp_path / "x", kind="score_table")

    with pytest.raises(EasyCoreError, match="holds a score table, not a coreset; choose another --out"):
        claim(str(tmp_path / "x"), "coreset", "k", overwrite=overwrite)
    assert open_artifact(str(tmp_path / "x")).kind == "score_table"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photo.jpg", ""),
        ("deep/er/file", ""),
        ("manifest.json", '{"name": "web app"}'),
        ("manifest.json", "[]"),
        ("run.json", "3"),
        ("lease.json", '{"car": "blue"}'),
        ("thesis.tmp", "somebody's"),
        (".thesis.tex.ab_c1234.tmp", "somebody's"),
        ("deep/.run.json.ab_c1234.tmp", "somebody's"),
    ],
)
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, name, content, overwrite):
    """Whatever it holds, also a manifest of someone else's."""
    path = tmp_path / "x" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)

    with pytest.raises(EasyCoreError, match=rf"not empty and not ours \(it holds .*{name}\)"):
        claim(str(tmp_path / "x"), "coreset", "k", overwrite=overwrite)
    assert path.read_text() == content


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_place(tmp_path, overwrite):
    """Neither the file itself nor a folder below it."""
    (tmp_path / "file").write_text("keep me")

    with pytest.raises(EasyCoreError, match="file is a file; --out must be a folder"):
        claim(str(tmp_path / "file"), "coreset", "k", overwrite=overwrite)
    with pytest.raises(EasyCoreError, match=r"file/x cannot be written.*choose another --out"):
        claim(str(tmp_path / "file" / "x"), "coreset", "k", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "keep me"


def test_the_debris_of_a_killed_write_does_not_occupy_a_folder(tmp_path):
    """A process killed while it wrote run.json leaves a temporary file only."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".run.json.ab_c1234.tmp").write_text("{")

    assert isinstance(claim(str(tmp_path / "x"), "coreset", "k"), Claim)


def test_a_damaged_manifest_is_named(tmp_path):
    """It is neither overwritten nor taken for unfinished."""
    make(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").write_text("{")

    with pytest.raises(EasyCoreError, match=r"manifest\.json is not valid JSON"):
        claim(str(tmp_path / "x"), "coreset", "k")


# ---------------------------------------------------------------- open


def test_open_gives_what_finish_wrote(tmp_path):
    """Path, kind, fingerprint, and all that children and readers look up."""
    parent = make(tmp_path / "parent", kind="dataset", fingerprint="a" * 64)
    made = claim(str(tmp_path / "x"), "coreset", "k")
    written = finish(
        made,
        fingerprint="b" * 64,
        config={"fraction": 0.5},
        parents={"dataset": parent},
        counts={"samples": 3},
        wall_seconds=1.23456,
        device_seconds=4.0,
        method="easycore",
    )
    opened = open_artifact(str(tmp_path / "x"), "coreset")

    assert opened == written
    assert (opened.kind, opened.fingerprint, opened.path) == ("coreset", "b" * 64, str(tmp_path / "x"))
    content = opened.manifest
    assert content["parents"]["dataset"] == {
        "kind": "dataset", "path": str(tmp_path / "parent"), "fingerprint": "a" * 64,
    }  # fmt: skip
    assert (content["config"], content["counts"], content["method"]) == ({"fraction": 0.5}, {"samples": 3}, "easycore")
    assert (content["wall_seconds"], content["device_seconds"]) == (1.235, 4.0)
    assert (content["format_version"], content["identity"]) == (2, "k")
    assert {"ray", "torch", "pyarrow", "numpy"} <= set(content["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["created"])


def test_device_seconds_are_wall_seconds_on_one_device(tmp_path):
    """Unless a stage knows better."""
    assert make(tmp_path / "x").manifest["device_seconds"] == 1


def test_a_relative_path_is_opened_from_the_working_directory(tmp_path, monkeypatch):
    """The artifact knows its absolute path, for children and workers."""
    make(tmp_path / "x")
    monkeypatch.chdir(tmp_path)

    assert open_artifact("x").path == str(tmp_path / "x")


def test_what_is_not_finished_cannot_be_opened(tmp_path):
    """Missing, empty, under way: each is told apart."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    claim(str(tmp_path / "begun"), "score_table", "k")

    for name, message in [
        ("missing", r"does not exist; pass the folder of a finished score table"),
        ("empty", r"is no score table: it has no manifest\.json"),
        ("file", r"is no score table: it has no manifest\.json"),
        ("begun", r"is still being written; pass the folder of a finished score table, or run its job"),
    ]:
        with pytest.raises(EasyCoreError, match=message):
            open_artifact(str(tmp_path / name), "score_table")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dataset"}, "holds a dataset, not a coreset"),
        ({"format_version": 3}, "format_version 3, this release reads up to 2; upgrade easycore-ray"),
        ({"format_version": 1}, r"was made by .* \(format 1\); run again into another --out"),
        ({"kind": None}, "not one of ours"),
        ({"fingerprint": None}, "not one of ours"),
    ],
)
def test_an_artifact_that_cannot_be_used_is_refused(tmp_path, changes, message):
    """Another kind, a newer format, another program's manifest."""
    make(tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    with pytest.raises(EasyCoreError, match=message):
        open_artifact(str(tmp_path / "x"), "coreset")


def test_without_a_wanted_kind_any_artifact_opens(tmp_path):
    """For tools that look at whatever is there."""
    assert isinstance(open_artifact(make(tmp_path / "x", kind="sweep").path), Artifact)


# ---------------------------------------------------------------- hashes


@given(st.permutations([("a", 1), ("b", [0.5, None]), ("c", "x")]), st.permutations([("p", "1"), ("q", "2")]))
def test_identity_does_not_depend_on_the_order_of_keys(config, parents):
    """A field may move in the code without making every artifact another."""
    assert identity("coreset", dict(config), dict(parents)) == identity(
        "coreset", {"a": 1, "b": [0.5, None], "c": "x"}, {"p": "1", "q": "2"}
    )


@pytest.mark.parametrize(
    ("kind", "config", "parents"),
    [
        ("dataset", {"a": 1}, {"p": "1"}),
        ("coreset", {"a": 2}, {"p": "1"}),
        ("coreset", {"b": 1}, {"p": "1"}),
        ("coreset", {"a": 1, "b": None}, {"p": "1"}),
        ("coreset", {"a": 1}, {"p": "2"}),
        ("coreset", {"a": 1}, {"q": "1"}),
        ("coreset", {"a": 1}, {}),
    ],
)
def test_identity_changes_with_everything_that_decides_the_content(kind, config, parents):
    """Kind, each field, each parent and its role."""
    assert identity(kind, config, parents) != identity("coreset", {"a": 1}, {"p": "1"})


def test_identity_changes_with_the_format(monkeypatch):
    """What an older release wrote is not resumed by a newer one."""
    before = identity("coreset", {}, {})
    monkeypatch.setattr(artifact, "FORMAT_VERSION", 3)

    assert identity("coreset", {}, {}) != before


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_content_hash_tells_parts_apart(one, other):
    """Equal for equal parts only: moving a byte over a boundary is another content."""
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


def test_content_hash_takes_text_as_its_bytes():
    """Text and bytes of the same content are the same content."""
    assert content_hash("é", b"x") == content_hash("é".encode(), "x")


def test_hashes_are_the_same_in_every_process():
    """Golden: an artifact made yesterday is still the same one today."""
    assert identity("coreset", {"fraction": 0.5}, {"dataset": "ab"})[:16] == "28563c133c05f8cd"
    assert content_hash("a", b"b")[:16] == "cf6ab613e3942391"
