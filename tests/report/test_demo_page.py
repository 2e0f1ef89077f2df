"""The demo's page: that it tells the truth of what it is given, and escapes all of it."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from limbeck.report.demo import crowds_of, demo_page, rows_of

EVIL = "<script>alert(1)</script>"


def spread(*values: float) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "each": list(values)}


def arm(*values: float, gain: tuple[float, ...] = (), steps: int = 100) -> dict[str, Any]:
    told = {
        "name": "a student",
        "accuracy": spread(*values),
        "parameters": 810,
        "latency_ms": 0.0642,
        "steps": steps,
        "runs": [],
    }
    if gain:
        about = {"title": "A Paper", "year": 2015, "arxiv": "1503.02531", "fields": {"tau": 4.0}}
        told |= {"gain": spread(*gain), **about}
    return told


def told(**students: dict[str, Any]) -> dict[str, Any]:
    teacher = {
        "name": "a teacher",
        "accuracy": spread(0.98, 0.98),
        "parameters": 94186,
        "latency_ms": 0.144,
    }
    return {
        "teacher": teacher,
        "scratch": arm(0.85, 0.87),
        "students": students,
        "world": "digits",
        "seeds": [1000, 1001],
        "budget": {"steps": 100, "lr": 0.1},
        "tuning": "as follows",
        "data": {
            "what": "digits",
            "train": 200,
            "valid": 201,
            "test": 597,
            "classes": ["0", "1"],
            "pictures": ["0f f0", "ff 00"],
        },
        "machine": {"cores": 2},
        "command": "limbeck demo --out here",
        "seconds": 61.2,
    }


def page_of(folder: Path, result: dict[str, Any]) -> str:
    (folder / "result.json").write_text(json.dumps(result))
    return demo_page(folder).replace("&nbsp;", " ")


def test_the_best_student_is_told_of(tmp_path: Path) -> None:
    kd = arm(0.90, 0.91, gain=(0.05, 0.04))
    hint = arm(0.93, 0.86, gain=(0.08, -0.01))
    written = page_of(tmp_path, told(kd=kd, hint=hint))
    assert "Taught by kd, it reaches 90.5 %, 4.5 points more, after as many steps" in written
    assert "better in 2 of 2 seeds" in written
    assert "0.86 % as many" in written  # 810 of 94,186
    assert written.count("<tr") == 5


def test_more_steps_are_not_called_as_many(tmp_path: Path) -> None:
    written = page_of(tmp_path, told(kd=arm(0.90, 0.91, gain=(0.05, 0.04), steps=250)))
    assert "as many steps" not in written
    assert "after 2.5 times the steps" in written


def test_where_nothing_helps_the_page_says_so(tmp_path: Path) -> None:
    written = page_of(tmp_path, told(kd=arm(0.84, 0.86, gain=(-0.01, -0.01))))
    assert "None of the taught students is better" in written
    assert "Taught by" not in written
    assert 'class="best"' not in written


def test_rows_have_means_spreads_and_gains() -> None:
    teacher, scratch, kd = rows_of(told(kd=arm(0.90, 0.91, gain=(0.05, 0.04))))
    assert teacher == ("teacher", "98.0 %", "", "", "", "94,186", "0.14 ms")
    assert scratch == ("scratch", "86.0 ± 1.4 %", "", "", "100", "810", "0.06 ms")
    assert kd[1:4] == ("90.5 ± 0.7 %", "+4.5 ± 0.7", "2 of 2")
    assert rows_of(told(kd=arm(0.90, gain=(0.05,))))[2][1:4] == ("90.0 %", "+5.0", "1 of 1")


def test_ties_are_told_apart(tmp_path: Path) -> None:
    result = told(kd=arm(0.85, 0.91, gain=(0.0, 0.04)))
    assert rows_of(result)[2][3] == "1 of 2, 1 the same"
    assert "better in 1 of 2 seeds, the same in 1." in page_of(tmp_path, result)


def test_several_teachers_are_told_of(tmp_path: Path) -> None:
    one, two = arm(0.90, 0.91, gain=(0.05, 0.04)), arm(0.93, 0.92, gain=(0.08, 0.05))
    assert crowds_of(told(kd=one)) == []
    two["teacher"] = {"name": "two teachers, large and small", "accuracy": spread(0.97, 0.97)}
    written = page_of(tmp_path, told(kd=one, unic=two))
    assert "Taught by unic, with two teachers, large and small, it reaches" in written
    assert "unic had two teachers, large and small: 97.0 % together." in written
    assert "tau=4.0; two teachers, large and small" in written


@pytest.mark.parametrize("seeds", [2, 12])
def test_few_seeds_are_called_few(tmp_path: Path, seeds: int) -> None:
    result = told(kd=arm(0.90, 0.91, gain=(0.05, 0.04)))
    result["seeds"] = list(range(seeds))
    assert ("no proof" in page_of(tmp_path, result)) == (seeds < 12)


def test_curves_are_drawn_from_the_runs(tmp_path: Path) -> None:
    result = told(kd=arm(0.90, 0.91, gain=(0.05, 0.04)))
    assert "<polyline" not in page_of(tmp_path, result)
    result["students"]["kd"]["runs"] = ["kd/seed-1000", "kd/seed-1001"]
    (tmp_path / "kd" / "seed-1000").mkdir(parents=True)  # the other one is gone
    rows = [{"stage": "fit", "step": i, "terms": {"label": 1.0, "soft": 2.0}} for i in range(4)]
    log = tmp_path / "kd" / "seed-1000" / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    written = page_of(tmp_path, result)
    assert written.count("<polyline") == 2
    assert "soft ends at 2" in written


def evil(value: Any) -> Any:
    """The same with every text made evil, and every name but those that limbeck itself gives."""
    if isinstance(value, dict):
        return {key: evil(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [evil(inner) for inner in value]
    return EVIL if isinstance(value, str) else value


def test_every_name_is_escaped(tmp_path: Path) -> None:
    result = evil(told(kd=arm(0.90, 0.91, gain=(0.05, 0.04))))
    result["data"]["pictures"] = []
    result["students"] = {EVIL: result["students"]["kd"]}
    result["students"][EVIL]["fields"] = {EVIL: EVIL}
    result["budget"] = result["machine"] = {EVIL: EVIL}
    result["students"][EVIL]["runs"] = ["run"]
    (tmp_path / "run").mkdir()
    rows = [{"stage": f"{EVIL}{k}", "step": 0, "terms": {EVIL: 1.0}} for k in range(2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    written = page_of(tmp_path, result)
    assert "<script" not in written
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
