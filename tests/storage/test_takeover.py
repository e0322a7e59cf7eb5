"""What goes along when an unfinished artifact is taken over: all that it resumes from, and nothing else."""

from easycore_ray.storage.takeover import copy_state

STATE = (
    "commits/train/part.bin", "table/epoch=1/part.parquet", "extra/table/epoch=1/part.parquet", "last_good/model.bin",
    "shards-0123abcd/0.parquet", "budget.json", "diverged.json", "stopped.json",
)  # fmt: skip
OTHERS = ("run.json", "manifest.json", "summary.json", "hardness/part.parquet", "extra/hardness/part.parquet")


def test_all_that_a_run_resumes_from_is_copied(tmp_path):
    for name in (*STATE, *OTHERS):
        file = tmp_path / "held" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    copy_state(str(tmp_path / "held"), str(tmp_path / "own"))

    copied = {file.relative_to(tmp_path / "own").as_posix() for file in (tmp_path / "own").rglob("*") if file.is_file()}
    assert copied == set(STATE)
