"""The soak resumes, keeps every line it wrote, and fails if a case fails."""

import json

from tests.soak import __main__ as soak


def test_a_soak_resumes_from_its_lines_and_a_failed_case_fails_it(tmp_path, monkeypatch, capsys):
    """Cases with a line are not run again; a line cut off by a kill is none; a failure names its case."""
    seen = []

    def broken(seed):
        seen.append(seed)
        assert seed != 3, "lost rows"
        return {"rows": seed}

    monkeypatch.setattr(soak, "KINDS", {"even": lambda seed: seen.append(seed) or {}, "odd": broken})
    results = tmp_path / "soak.jsonl"
    assert soak.main(["--cases", "0:2", "--results", str(results)]) == 0
    with results.open("a") as stream:
        stream.write('{"case": 2, "ki')
    assert soak.main(["--cases", "0:5", "--results", str(results)]) == 1
    assert seen == [0, 1, 2, 3, 4]
    assert soak.main(["--cases", "0:5", "--results", str(results)]) == 1
    assert soak.main(["--cases", "0:5", "--results", str(results), "--kinds", "even"]) == 0
    assert seen == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out.splitlines()[-2] == "5 cases, 1 failed: [3]"
    lines = [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]
    assert [(line["case"], line["kind"], line["passed"]) for line in lines] == [
        (0, "even", True), (1, "odd", True), (2, "even", True), (3, "odd", False), (4, "even", True),
    ]  # fmt: skip
    assert "lost rows" in lines[3]["error"]
