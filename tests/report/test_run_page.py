"""The page of a run: that it tells the truth of its folder, escapes all, and a browser shows it."""

import json
import re
import statistics
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli.reporting import report
from limbeck.errors import Missing, UsageError
from limbeck.report.dots import class_table
from limbeck.report.reliability import pooled, reliability
from limbeck.report.run import page_of, write
from limbeck.report.strips import Strip, strips
from limbeck.report.words import Measure, bytes_of, number, ratio

pytestmark = pytest.mark.xdist_group("run_page")

EVIL = "<script>alert(1)</script>"


def side(score: float, parameters: int, **more: Any) -> dict[str, Any]:
    bins = [[0.6, 0.5, 10], [0.99, 0.98, 90]]
    return {
        "score": score,
        "nll": 0.2,
        "ece": 0.019,
        "reliability": bins,
        "per_class": [0.95, score],
        "per_class_count": [50, 50],
        "entropy": 0.1,
        "confidence": 0.951,
        "parameters": parameters,
        "macs": 20 * parameters,
        "bytes": 4 * parameters,
        "latency_ms": {"1": parameters / 1000, "32": parameters / 100},
        **more,
    }


def appraisal(student: float, alone: float | None, names: list[str]) -> dict[str, Any]:
    sides = {"student": side(student, 810), "teacher": side(0.98, 94186)}
    agreement = {"student": {"top1": 0.91, "kl": 0.125}}
    if alone is not None:
        sides["baseline"] = side(alone, 810)
        agreement["baseline"] = {"top1": 0.83, "kl": 0.25}
    pixels = [[0, 255, 0, 9]] * 4
    return {
        "set": "test",
        "samples": 100,
        "classes": names,
        "score_name": "accuracy",
        "score_higher": True,
        "sides": sides,
        "agreement": agreement,
        "train": {"samples": 500, "student": 0.999, "teacher": 1.0, "baseline": alone},
        "apart": [
            {"index": 3, "y": 1, "student": [0, 0.9], "teacher": [1, 0.8], "x": x}
            for x in (
                {"kind": "picture", "pixels": pixels},
                {"kind": "picture", "pixels": [[[1, 2, 3]] * 4] * 4},
                {"kind": "numbers", "values": [1.5, -2], "names": [names[0], "b"]},
                {"kind": "numbers", "values": []},
            )
        ],
    }


def make(
    folder: Path,
    student: float = 0.9,
    alone: float | None = 0.8,
    seed: int = 0,
    names: tuple[str, str] = ("cat", "dog"),
    **told: Any,
) -> Path:
    folder.mkdir(parents=True)
    run = {
        "method": "kd",
        "fields": {"tau": 4.0},
        "world": "digits",
        "seed": seed,
        "command": "limbeck run kd --world digits",
        "threads": 1,
        "versions": {"limbeck": "0.1.0"},
        "task": {"train": "500 samples abc", "valid": "none", "test": "100 samples def"},
    }
    result = {
        "method": "kd",
        "fields": {"tau": 4.0},
        "seed": seed,
        "score": student,
        "score_of": "test",
        "score_name": "accuracy",
        "teacher": 0.98,
        **({} if alone is None else {"baseline": alone}),
        "parameters": 810,
        "stages": [{"stage": "fit", "steps": 1234, "batch": 64, "parameters": 810, "parts": 5}],
    }
    rows: list[dict[str, Any]] = [
        {"stage": stage, "step": i, "terms": {"label": 1.0 / (i + 1), "kd": 2.0}}
        for stage in ("fit", *(() if alone is None else ("baseline",)))
        for i in range(9)
    ]
    rows += [{"stage": "fit", "step": i, "norms": {"label": 0.5}} for i in range(3)]
    rows += [{"stage": "fit", "step": i, "valid": {"accuracy": 0.5}} for i in range(3)]
    (folder / "run.json").write_text(json.dumps(run | told.pop("run", {})))
    (folder / "result.json").write_text(json.dumps(result | told.pop("result", {})))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if told.pop("appraised", True):
        (folder / "appraisal.json").write_text(json.dumps(appraisal(student, alone, list(names))))
    return folder


def words(folder: Path) -> str:
    """What stands on the page of a folder, tags apart."""
    return plain(page_of(folder))


def plain(page: str) -> str:
    kept = re.sub(r"<(style|desc|title)>.*?</\1>", " ", page, flags=re.S)
    kept = re.sub(r"<[^>]+>", " ", kept).replace("&nbsp;", " ").replace("&#x27;", "'")
    return " ".join(kept.split())


# -- the verdict -----------------------------------------------------------------------------------


def test_a_better_student_is_told_of_with_its_share_of_the_gap(tmp_path: Path) -> None:
    told = words(make(tmp_path / "run"))
    assert "94,186 parameters taught a student with 810 (0.86 % as many)" in told
    assert "On the 100 test samples the student's accuracy is 90.0 %, the teacher's 98.0 %" in told
    # 0.9 - 0.8 of 0.98 - 0.8 is 56 %.
    assert "reaches 80.0 %, so the teaching is worth 10.0 points: 56 % of the gap" in told
    assert "The difference is 10 of 100 samples" in told
    assert "One seed gives an impression" in told


@pytest.mark.parametrize(
    ("student", "alone", "expected"),
    [
        (0.8, 0.83, "did not help here, it gave 3.0 points less"),
        (0.8, 0.8, "the teaching changed nothing"),
        (0.985, 0.8, "all of the gap to the teacher, and more"),
        (0.995, 0.99, "the teacher itself is no better than the student alone"),
        (0.9, None, "Add --baseline to the command"),
    ],
)
def test_the_verdict_is_honest(
    tmp_path: Path, student: float, alone: float | None, expected: str
) -> None:
    told = words(make(tmp_path / "run", student, alone))
    assert expected in told
    if alone is None or student <= alone:
        assert "teaching is worth" not in told
    if alone is None:
        assert "alone" not in told.split("What was done")[0].split("Accuracy on the test set")[1]


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (0.53, "Guessing among 2 classes would reach 50.0 %: the student has learned next to"),
        (0.9, None),
    ],
)
def test_what_guessing_would_reach_is_named(
    tmp_path: Path, student: float, said: str | None
) -> None:
    told = words(make(tmp_path / "run", student))
    assert said in told if said else "Guessing" not in told


def test_where_less_is_better_less_is_called_better(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", 3.0, 4.0, result={"score_name": "mse", "teacher": 2.0})
    path = folder / "appraisal.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score_higher": False}))
    told = words(folder)
    assert "so the teaching is worth 1: 50 % of the gap" in told
    assert "Less is better." in told


def test_seeds_are_told_of_with_their_spread(tmp_path: Path) -> None:
    students, alone = [0.90, 0.92, 0.85], [0.86, 0.86, 0.86]
    for i in range(3):
        make(tmp_path / "many" / f"seed-{i}", students[i], alone[i], i)
    told = words(tmp_path / "many")
    mean, sd = 100 * statistics.fmean(students), 100 * statistics.stdev(students)
    assert f"{mean:.1f} ± {sd:.1f} % over 3 seeds" in told
    assert "better in 2 of 3 seeds" in told
    assert "seeds 0, 1, 2" in told
    assert told.count(f"{mean:.1f} ± {sd:.1f} %") > 2
    assert page_of(tmp_path / "many").count("<circle") > 6
    make(tmp_path / "ten" / "seed-0")
    make(tmp_path / "ten" / "seed-10", seed=10)
    make(tmp_path / "ten" / "seed-9", seed=9)
    assert "seeds 0, 9, 10" in words(tmp_path / "ten")


# -- the sections ----------------------------------------------------------------------------------


def test_numbers_stand_side_by_side(tmp_path: Path) -> None:
    told = words(make(tmp_path / "run"))
    for row in (
        "accuracy 98.0 % 90.0 % 80.0 %",
        "accuracy on 500 training samples 100.0 % 99.9 % 80.0 %",
        "same answer as the teacher 91.0 % 83.0 %",
        "KL divergence from the teacher 0.125 0.25",
        "calibration error (ECE) 1.9 % 1.9 % 1.9 %",
        "parameters 94,186 810 116 times",
        "size in memory 377 kB 3.24 kB 116 times",
        "time for one sample 94.2 ms 0.81 ms 116 times",
        "fit 1,234 64 810 5",
        "settings tau = 4.0",
        "sets train 500, test 100 samples",
        "Distilling the Knowledge in a Neural Network (2015, arXiv 1503.02531)",
    ):
        assert row in told, row
    assert "They differ on 9 of 100 samples" in told
    # (0.6 * 10 + 0.99 * 90) / 100 is believed, (0.5 * 10 + 0.98 * 90) / 100 is right.
    assert "believes its answer to 95.1 % and is right in 93.2 % of cases" in told
    assert "limbeck run kd --world digits" in told


def test_every_term_of_every_stage_is_drawn(tmp_path: Path) -> None:
    page = page_of(make(tmp_path / "run"))
    names = re.findall(r"<h3>(.*?)</h3>", page)
    assert names == ["kd", "alone", "kd, gradient norms", "kd, score on valid"]
    curves = page[page.index("How it learned") : page.index("What was done")]
    assert curves.count("<polyline") == 2 + 2 + 1 + 1
    assert "label ends at 0.111" in curves


def test_a_loss_that_still_falls_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    steps = range(100)
    for slope, falls in ((0.05, True), (0.0, False)):
        rows = [
            {"stage": "fit", "step": i, "lr": 0.1, "terms": {"kd": 9 - slope * i + i % 3 / 10}}
            for i in steps
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        quarters = [[rows[i]["terms"]["kd"] for i in range(a, a + 25)] for a in (50, 75)]
        share = 1 - sum(quarters[1]) / sum(quarters[0])
        told = f"their sum was {share:.0%} below the quarter before"
        assert (told in words(folder)) == falls
        assert ("a longer run would go further" in words(folder)) == falls


def test_many_classes_are_those_where_most_is_lacking(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    path = folder / "appraisal.json"
    told = json.loads(path.read_text())
    told["classes"] = [f"class{i}." for i in range(40)]
    for name in told["sides"]:
        told["sides"][name]["per_class"] = [1.0] * 40
    told["sides"]["student"]["per_class"] = [1 - i / 100 for i in range(39)] + [None]
    path.write_text(json.dumps(told))
    page = words(folder).split("Class by class")[1].split("Where student and teacher part")[0]
    shown = [i for i in range(40) if f"class{i}. " in page]
    assert shown == list(range(19, 39))
    assert page.index("class38.") < page.index("class19.")
    assert "Of 40 classes, the 20" in page


@pytest.mark.parametrize("missing", ["appraisal.json", "metrics.jsonl"])
def test_a_page_says_what_there_is(tmp_path: Path, missing: str) -> None:
    folder = make(tmp_path / "run")
    (folder / missing).unlink()
    told = words(folder)
    assert "the teaching is worth 10.0 points" in told
    assert "Do it again" in told
    assert ("How it learned" in told) == (missing == "appraisal.json")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"scores": {"wide": 0.5, "deep": 0.75}}, "candidate score deep 0.75 wide 0.5"),
        ({"report": {"rounds": 3}}, "rounds 3"),
        ({}, "It gives no model"),
    ],
)
def test_methods_that_give_no_model_have_a_page(
    tmp_path: Path, result: dict[str, Any], expected: str
) -> None:
    folder = make(tmp_path / "run", appraised=False)
    told = {"method": "diswot", "seed": 0, "stages": [], **result}
    (folder / "result.json").write_text(json.dumps(told))
    assert expected in words(folder)


def test_half_an_appraisal_is_enough(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", alone=None)
    for told in (
        {},
        {"sides": {"student": {"score": 0.9}}},
        {"samples": 100, "set": "test", "sides": {"teacher": {"score": 0.9}}, "agreement": {}},
        {"sides": {"student": {"latency_ms": None, "macs": None, "parameters": 3, "bytes": 12}}},
    ):
        (folder / "appraisal.json").write_text(json.dumps(told))
        assert "accuracy is 90.0 %" in words(folder)


def test_what_was_looked_at_once_is_no_curve_but_a_number(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", alone=None)
    rows: list[dict[str, Any]] = [
        {"stage": stage, "step": step, "norms": {"label": value, "kd": 0.25}}
        for stage, step, value in (("hint", 0, 0.5), ("fit", 7, 0.75))
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = page_of(folder)
    part = page[page.index("How it learned") : page.index("What was done")]
    assert "<svg" not in part
    assert "hint, step 0 label 0.5, kd 0.25 fit, step 7 label 0.75, kd 0.25" in plain(part)
    rows.append({"stage": "fit", "step": 9, "norms": {"label": 0.5}})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "<polyline" in page_of(folder).split("How it learned")[1]


@pytest.mark.parametrize(
    ("students", "expected"),
    [
        ((0.90, 0.80, 0.70), "changed nothing, with the student better in 1 of 3 seeds, the same"),
        ((0.90, 0.90, 0.80), "worth 6.7 points: 37 % of the gap to the teacher, with the student "
        "better in 2 of 3 seeds, the same in 1."),
        ((0.70, 0.70, 0.80), "6.7 points less, with the student better in 0 of 3 seeds, the same"),
    ],
)  # fmt: skip
def test_ties_are_told_apart(tmp_path: Path, students: tuple[float, ...], expected: str) -> None:
    for i, score in enumerate(students):
        make(tmp_path / "many" / f"seed-{i}", score, 0.8, i)
    assert expected in words(tmp_path / "many")


def test_no_difference_is_not_counted_in_samples(tmp_path: Path) -> None:
    assert "The difference is" not in words(make(tmp_path / "run", 0.8, 0.8))


def test_samples_are_of_a_set_and_not_all_columns_are_shown(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    told = words(folder)
    assert told.count("test sample 3 ") == 4
    assert "columns are shown" not in told
    path = folder / "run.json"
    about = {"inputs": {"kind": "table", "columns": list("abcdefg")}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "about": about}))
    told = words(folder)
    assert "Of a row the first 2 of 7 columns are shown." in told
    assert (told.count("test row 3 "), told.count("test sample 3")) == (4, 0)
    assert "Rows are counted from 0, within the test set." in told
    (folder / "split.json").write_text("{}")
    assert "within the test set; split.json lists where" in words(folder)
    about = {"inputs": {"kind": "tensors", "shape": [2]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "about": about}))
    assert "columns are shown" not in words(folder)


def test_a_teacher_that_seems_to_be_wrong_is_told_of_where_it_is_judged(tmp_path: Path) -> None:
    doubt = "the teacher X agrees with 0% of the labels: look at the order of its classes"
    told = words(make(tmp_path / "run", result={"doubt": doubt}))
    assert f"the teacher's 98.0 %. T{doubt[1:]}. Trained on the labels alone" in told
    for seed in range(2):
        make(tmp_path / "many" / f"seed-{seed}", seed=seed, result={"doubt": doubt})
    assert f"T{doubt[1:]}." in words(tmp_path / "many")


@pytest.mark.parametrize(
    ("y", "sure", "expected"),
    [
        (1, 0.8, "Shown first: where the teacher is right, and both are surest of themselves."),
        (1, None, "Shown first: where the teacher is right, and the student is surest of itself."),
        (2, 0.8, "The teacher is right on none of them. Shown first: where both are surest"),
        (None, 0.8, "samples. Shown first: where both are surest of themselves."),
    ],
)
def test_what_is_shown_first_is_so(
    tmp_path: Path, y: int | None, sure: float | None, expected: str
) -> None:
    folder = make(tmp_path / "run")
    told = json.loads((folder / "appraisal.json").read_text())
    for each in told["apart"]:
        each |= {"y": y, "teacher": [1, sure]}
    (folder / "appraisal.json").write_text(json.dumps(told))
    assert expected in words(folder)


# -- words -----------------------------------------------------------------------------------------


def test_words_of_numbers() -> None:
    assert [bytes_of(v) for v in (12, 3240, 2.5e6, 7e9)] == ["12 B", "3.24 kB", "2.5 MB", "7 GB"]
    assert [ratio(94186, 810), ratio(3, 2), ratio(1, 2)] == ["116 times", "1.5 times", "0.5 times"]
    assert [number([]), number([0.5]), number([0.4, 0.6])] == ["", "0.5", "0.5 ± 0.14"]
    assert Measure("accuracy").size(-0.01) == "1.0 point"
    assert Measure("mse", False).gain([1.0], [3.0]) == [2.0]


def test_seeds_share_the_bins_of_one_plot() -> None:
    one, two = [[0.61, 0.5, 10], [0.95, 1.0, 30]], [[0.62, 1.0, 30]]
    assert pooled([one, two]) == [
        pytest.approx([(0.61 * 10 + 0.62 * 30) / 40, 35 / 40, 40]),
        [0.95, 1.0, 30],
    ]


def test_each_bin_is_a_dot_and_no_two_are_joined() -> None:
    sides = {"teacher": [[0.3, 0.5, 1], [0.95, 1.0, 99]], "student": [[0.55, 0.4, 50]]}
    drawn = reliability(sides, "")
    assert drawn.count("<circle") == 3
    assert "polyline" not in drawn
    sizes = [float(r) for r in re.findall(r' r="([\d.]+)"', drawn)]
    assert sizes[0] < sizes[1] <= sizes[2] == 11  # by the share: 1, 99, 100 %


# -- escaping --------------------------------------------------------------------------------------


def evil(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: evil(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [evil(inner) for inner in value]
    return EVIL if isinstance(value, str) else value


def test_every_name_is_escaped(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", names=(EVIL, "b"))
    for name in ("run.json", "result.json", "appraisal.json"):
        told = json.loads((folder / name).read_text())
        written = evil(told)
        for each, true in zip(written.get("apart", []), told.get("apart", []), strict=True):
            each["x"]["kind"] = true["x"]["kind"]
        written["fields"] = {EVIL: EVIL}
        written["request"] = {"data": EVIL, "teacher": EVIL, "student": EVIL}
        (folder / name).write_text(json.dumps(written))
    rows = [{"stage": f"{EVIL}{k}", "step": 0, "terms": {EVIL: 1.0}} for k in range(2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = page_of(folder)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


# -- plots -----------------------------------------------------------------------------------------


class Drawn(HTMLParser):
    """Texts and upright lines of a strip plot, in pixels, on a page of a given width."""

    def __init__(self, svg: str, wide: float) -> None:
        super().__init__()
        self.wide, self.text = wide, None  # type: tuple[float, Any]
        self.texts: list[tuple[float, float, float]] = []  # left, right, y
        self.lines: list[tuple[float, float, float]] = []  # x, top, bottom
        self.feed(svg)

    def at(self, value: str | None) -> float:
        assert value is not None
        part = value.endswith("%")
        return float(value.rstrip("%")) * (self.wide / 100 if part else 1)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        if tag == "text":
            self.text = [given, ""]
        if tag == "line" and given["x1"] == given["x2"]:
            ys = sorted((float(given["y1"]), float(given["y2"])))
            self.lines.append((self.at(given["x1"]), *ys))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        if self.text:
            self.text[1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "text":
            given, shown = self.text
            size = 6.2 * len(shown)  # a modest guess, in letters of 12 pixels
            x = self.at(given["x"])
            left = {"end": x - size, "middle": x - size / 2}.get(given.get("text-anchor"), x)
            self.texts.append((left, left + size, float(given["y"])))
            self.text = None


@pytest.mark.parametrize("wide", [358, 760])
@pytest.mark.parametrize(
    "values",
    [(0.95, 0.956, 0.988), (0.5, 0.9, 0.51), (0.97, 0.5, 0.98), (0.7, 0.8, 0.72), (0.9, 0.9, 0.9)],
)
def test_words_of_a_strip_meet_no_line_and_no_other_words(
    wide: float, values: tuple[float, float, float]
) -> None:
    alone, student, teacher = values
    rows = [Strip("taught by kd", [student], "95.6 ± 1.0 %"), Strip("alone", [alone], "95 %")]
    svg = strips(rows, {"alone": alone, "teacher": teacher}, title="t", desc="d")
    drawn = Drawn(re.sub(r"<(title|desc)>.*?</\1>", "", svg), wide)
    assert len(drawn.texts) > 4
    assert len(drawn.lines) > 6
    for left, right, y in drawn.texts:
        for x, top, bottom in drawn.lines:
            inside = left + 1 < x < right - 1
            assert not (inside and top < y and bottom > y - 9), (left, right, y, x, top, bottom)
        others = [t for t in drawn.texts if t != (left, right, y) and abs(t[2] - y) < 12]
        assert not [t for t in others if t[0] < right and left < t[1]], (left, right, y)


def test_dots_of_classes_lie_where_their_values_are() -> None:
    table = class_table(["a"], {"teacher": [1.0], "student": [0.9], "baseline": [None]}, "c")
    row = table[table.index("<tbody>") :]
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)%"', row)]
    rules = [float(x) for x in re.findall(r'class="rule" x1="([\d.]+)%"', row)]
    assert rules == sorted(rules)
    assert sorted(xs) == [rules[0], rules[-1]]  # 90 % and 100 %, where the scale begins and ends
    assert re.findall(r'class="n">(\d*)<', row) == ["100", "90", ""]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "run")
    assert report([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text() == page_of(folder)
    assert report([str(folder), "--out", str(tmp_path / "here.html")]) == 0
    assert (tmp_path / "here.html").read_text() == page_of(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here.html", "run"]


def test_a_mistake_is_a_sentence(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    with pytest.raises(Missing, match=r"there is no run in .*nowhere \(there is no such folder"):
        report([str(tmp_path / "nowhere")])
    with pytest.raises(Missing, match=r"it has no run\.json"):
        report([str(tmp_path)])
    with pytest.raises(UsageError, match="is a file; name the folder of a run"):
        report([str(folder / "run.json")])
    with pytest.raises(UsageError, match="cannot be written"):
        report([str(folder), "--out", str(tmp_path / "no" / "page.html")])
    (folder / "appraisal.json").write_text("{")
    with pytest.raises(UsageError, match=r"appraisal\.json cannot be read"):
        report([str(folder)])
    (folder / "appraisal.json").write_text("[]")
    with pytest.raises(UsageError, match="damaged: it holds no JSON object"):
        report([str(folder)])
    (folder / "result.json").unlink()
    with pytest.raises(UsageError, match="is not finished; go on with: limbeck resume"):
        report([str(folder)])
    (folder / "run.json").write_text('{"request": {"method": "kd"}}')  # all that is written first
    with pytest.raises(UsageError, match=r"stopped before its first step; .*limbeck resume"):
        report([str(folder)])
    (folder / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="is not of a run of limbeck"):
        report([str(folder)])
    assert not (folder / "report.html").exists()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text("{}")
    with pytest.raises(Missing, match="holds a demo"):
        report([str(tmp_path / "demo")])


def test_a_seed_that_is_not_finished_is_named(tmp_path: Path) -> None:
    make(tmp_path / "many" / "seed-0")
    (make(tmp_path / "many" / "seed-1") / "result.json").unlink()
    with pytest.raises(UsageError, match=r"the run in .*seed-1 is not finished"):
        page_of(tmp_path / "many")


# -- a browser -------------------------------------------------------------------------------------

PROBE = """<script>
addEventListener("load", () => {
  const flat = [...document.querySelectorAll("svg")].filter(
    (e) => e.getBoundingClientRect().width < 5 || e.getBoundingClientRect().height < 5);
  const broken = [...document.images].filter((e) => !e.complete || !e.naturalWidth);
  const told = {
    wide: document.documentElement.scrollWidth, seen: innerWidth,
    svgs: document.querySelectorAll("svg").length, flat: flat.length,
    images: document.images.length, broken: broken.length,
    scripts: document.querySelectorAll("script").length, alerted: Boolean(window.alerted),
  };
  parent.postMessage(JSON.stringify(told), "*");
});
window.alert = () => { window.alerted = true; };
</script>"""
OUTER = """<!doctype html><body style="margin:0"><pre id="told"></pre><script>
addEventListener("message", (e) => { document.getElementById("told").textContent = e.data; });
</script><iframe src="inner.html" style="border:0;width:WIDEpx;height:900px"></iframe>"""


Browse = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    for i in range(2):
        long = "a-very-long-name-without-any-space-in-it-" * 3
        make(base / "run" / f"seed-{i}", 0.9 + i / 50, 0.85, i, names=(EVIL, long))
    write(base / "run")
    return base / "run" / "report.html"


def test_a_browser_has_nothing_to_complain_of(written: Path, browse: Browse) -> None:
    said = browse(written)
    assert "CONSOLE" not in said.stderr
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in said.stdout
    # That a complaint would be seen: the page's policy forbids scripts.
    bad = written.with_name("bad.html")
    bad.write_text(written.read_text().replace("</main>", "<script>alert(1)</script></main>"))
    assert "CONSOLE" in browse(bad).stderr


@pytest.mark.parametrize("width", [390, 1000])
def test_plots_are_drawn_and_nothing_sticks_out(
    written: Path, tmp_path: Path, browse: Browse, width: int
) -> None:
    page = re.sub(r"<meta http-equiv[^>]*>", "", written.read_text())
    (tmp_path / "inner.html").write_text(page.replace("</head>", f"{PROBE}</head>"))
    (tmp_path / "outer.html").write_text(OUTER.replace("WIDE", str(width)))
    said = browse(tmp_path / "outer.html", "--window-size=1200,1000")
    found = re.search(r'<pre id="told">(\{.*?\})</pre>', said.stdout)
    assert found, said.stdout[:500]
    told = json.loads(found.group(1))
    assert told["seen"] == width
    assert told["wide"] <= width
    assert told["svgs"] > 10
    assert told["images"] == 2
    assert told["flat"] == told["broken"] == 0
    assert (told["scripts"], told["alerted"]) == (1, False)  # the probe alone
