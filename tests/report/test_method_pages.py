"""The pages of methods: what they say of a trial, that links lead somewhere, that filters work."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from limbeck import registry
from limbeck.cli.reporting import report
from limbeck.errors import UsageError
from limbeck.registry import cards, find
from limbeck.report.claims import Code, trial
from limbeck.report.differences import differences_plot
from limbeck.report.every import write_all
from limbeck.report.table import VERDICTS, chance, methods_table, overview
from limbeck.report.trials import all_told

pytestmark = pytest.mark.xdist_group("method_pages")

Browse = Callable[..., subprocess.CompletedProcess[str]]
EVIL = "<script>alert(1)</script>"


def definition(number: int, verdict: str, *values: float, **more: Any) -> dict[str, Any]:
    """A measured definition of kd's trial, whose differences to labels are `values`."""
    mean = sum(values) / len(values)
    apart = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
    arm = {"steps": 700, "seconds": 1.5}
    return {
        "verdict": verdict,
        "number": number,
        "hash": f"hash{number}",
        "claim": f"claim {number}",
        "world": "digits(teacher='cnn')",
        "budget": {"epochs": 20},
        "measure": "score",
        "better": "higher",
        "why": f"reason {number}",
        "against": ["labels"],
        "seeds": [1000 * number, len(values)],
        "arms": {
            "kd": {"setting": "kd(tau=2)", "mean": 0.9, "values": [0.9] * len(values), **arm},
            "labels": {
                "setting": "labels()",
                "mean": 0.9 - mean,
                "values": [0.9 - v for v in values],
                "difference": apart,
                **arm,
            },
        },
        "seconds": 123.0,
        "core": [1],
        "versions": {"torch": "2.0"},
        "stale": False,
        **more,
    }


def plain(*pieces: Any) -> str:
    whole = " ".join(piece.text if isinstance(piece, Code) else piece for piece in pieces)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", whole)).split())


# -- the plot --------------------------------------------------------------------------------------


def places(svg: str, tag: str, kind: str) -> list[dict[str, float]]:
    found = re.findall(rf'<{tag} class="{kind}"([^>]*)>', svg)
    pair = r'(\w+)="([\d.]+)%?"'
    return [{name: float(value) for name, value in re.findall(pair, each)} for each in found]


def test_a_dot_stands_where_its_difference_lies() -> None:
    values = [-0.02, 0.0, 0.02, 0.06]
    told = {"mean": 0.015, "low": 0.0, "high": 0.06}
    svg = differences_plot(values, told, ("a", "b"), "t")
    (zero,) = places(svg, "line", "zero")
    dots = places(svg, "circle", "c4")
    assert dots[1]["cx"] == zero["x1"] == zero["x2"]
    gap = dots[2]["cx"] - dots[1]["cx"]
    assert dots[1]["cx"] - dots[0]["cx"] == pytest.approx(gap, abs=0.02)
    assert dots[3]["cx"] - dots[1]["cx"] == pytest.approx(3 * gap, abs=0.05)
    band, mean = places(svg, "line", "c4")
    assert (band["x1"], band["x2"]) == (zero["x1"], dots[3]["cx"])
    assert mean["x1"] == pytest.approx(zero["x1"] + 0.75 * gap, abs=0.02)


def test_equal_differences_are_stacked_and_none_is_hidden() -> None:
    told = {"mean": 0.5, "low": 0.2, "high": 0.8}
    dots = places(differences_plot([0.5] * 5 + [0.501, 1.0], told, ("a", "b"), "t"), "circle", "c2")
    assert len({(dot["cx"], dot["cy"]) for dot in dots}) == 7
    assert len({dot["cy"] for dot in dots[:6]}) == 6
    assert dots[-1]["cy"] == max(dot["cy"] for dot in dots)  # it stands on the ground


def test_the_colour_says_what_the_interval_says_and_nothing_breaks() -> None:
    for low, high, colour in ((0.1, 0.2, "c2"), (-0.2, -0.1, "c5"), (-0.1, 0.2, "c4")):
        told = {"mean": (low + high) / 2, "low": low, "high": high}
        assert places(differences_plot([0.0, 0.1], told, ("a", "b"), "t"), "circle", colour)
    flat = differences_plot([0.0] * 3, {"mean": 0.0, "low": 0.0, "high": 0.0}, (EVIL, EVIL), EVIL)
    assert "nan" not in flat
    assert "<script" not in flat


# -- what is said ----------------------------------------------------------------------------------


def test_all_definitions_are_told_with_verdict_and_reason() -> None:
    first = definition(1, "contradicted", -0.02, -0.04)
    second = definition(2, "shown", 0.02, 0.04)
    pieces = list(trial(find("kd"), [first, second]))
    told = plain(*pieces)
    assert "which gives the same numbers" in told
    now, before = told.split("Definition 1: contradicted")
    for words in (
        "shown claim 2", "reason 2", "hash2", "digits(teacher='cnn')", ", 20 epochs", "kd(tau=2)",
        "2 seeds from 2000 on", "+0.0300, 95 % interval +0.0200 to +0.0400", "better in 2 of 2",
        "0.8700", "123 seconds", "contradicted reason 1 shown reason 2",
    ):  # fmt: skip
        assert words in now, words
    for words in ("contradicted claim 1", "reason 1", "hash1", "better in 0 of 2 seeds"):
        assert words in before, words
    codes = [piece.text for piece in pieces if isinstance(piece, Code)]
    assert codes == ["limbeck bench kd --again 2000"]  # only the one in force can be run again
    assert "changed since" not in told
    assert "epoch 1" not in told


def test_what_is_old_is_told() -> None:
    told = plain(*trial(find("kd"), [definition(1, "shown", 0.1, 0.2, stale=True, core=[2, 3])]))
    assert "The code has changed since; limbeck bench kd --changed measures it anew." in told
    assert "core epoch 2 and 3" in told
    lower = definition(1, "shown", -0.1, -0.2, better="lower")
    assert "lower is better" in plain(*trial(find("kd"), [lower]))
    assert "better in 2 of 2 seeds" in plain(*trial(find("kd"), [lower]))


def test_a_method_without_a_trial_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert plain(*trial(find("kd"), [])) == "The trial of its claim is defined and has not run yet."
    entry = find("kd")
    monkeypatch.setattr("limbeck.report.claims.PACKAGE", tmp_path)
    assert "No trial of its claim is defined yet" in plain(*trial(entry, []))


def test_chance_is_counted_over_definitions() -> None:
    one, two = definition(1, "shown", 0.1, 0.2), definition(2, "shown", 0.1, 0.2)
    assert "of 44 definitions measured" in chance([[one, two]] * 20 + [[], *[[one]] * 4])
    assert "44 x 0.025 = 1.1 are" in chance([[one, two]] * 20 + [[], *[[one]] * 4])


def test_verdicts_are_counted_as_the_digest_has_them() -> None:
    digest = json.loads((registry.PACKAGE / "results.json").read_text())
    told = plain(overview(cards(), all_told()))
    for verdict in VERDICTS:
        count = sum(row["verdict"] == verdict for row in digest.values())
        assert re.search(rf"\b{count} {verdict}\b", told)
    assert f"{len(cards()) - len(digest)} no trial yet" in told


def rows() -> list[dict[str, str]]:
    found = re.findall(r"<tr( data-.*?)>.*?</tr>", methods_table(cards(), all_told()))
    keys = re.findall(r'<tr data-.*?<a href="(\w+)\.html">', methods_table(cards(), all_told()))
    pairs = [dict(re.findall(r'data-(\w+)="(.*?)"', each)) for each in found]
    return [{"key": key, **each} for key, each in zip(keys, pairs, strict=True)]


@pytest.mark.parametrize("name", ["room", "kind", "needs", "status"])
def test_filters_give_what_the_command_gives(name: str) -> None:
    words = {word for row in rows() for word in row[name].split("|")}
    assert words
    for word in words - {"no trial yet"} - (set(VERDICTS) if name == "status" else set()):
        asked: dict[str, Any] = {name: word}
        expected = {entry.card.key for entry in cards(**asked)}
        assert {row["key"] for row in rows() if word in row[name].split("|")} == expected, word


def test_what_is_partial_is_found_by_its_verdict_too() -> None:
    known = {"distilbert": [definition(1, "not shown", 0.0, 0.1)]}
    assert find("distilbert").card.lacks
    assert 'data-status="not shown|partial"' in methods_table([find("distilbert")], known)


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "new" / "methods"
    assert report(["--all", str(out)]) == 0
    return out


def test_every_method_has_a_page_and_all_links_lead_somewhere(folder: Path) -> None:
    assert {path.stem for path in folder.iterdir()} == {"index", *(e.card.key for e in cards())}
    words = {name: {w for row in rows() for w in row[name].split("|")} for name in rows()[0]}
    for path in folder.iterdir():
        page = path.read_text()
        assert page.count("<script") == (path.stem == "index")
        assert "@import" not in page
        for link in re.findall(r'href="([^"]+)"', page):
            place, _, chosen = link.partition("#")
            if not place.startswith(("https://", "data:")):
                assert (folder / (place or path.name)).is_file(), (path.name, link)
                for pair in filter(None, chosen.split("&")):
                    name, _, word = pair.partition("=")
                    assert word.replace("+", " ") in words[name] | set(VERDICTS), link


def test_a_methods_page_says_what_show_says(folder: Path) -> None:
    said = plain((folder / "kd.html").read_text().split("</style>")[1])
    assert "Distilling the Knowledge in a Neural Network , 2015" in said
    assert "--tau" in said
    assert "limbeck run kd --world digits" in said
    for told in all_told()["kd"]:
        assert told["claim"] in said
        assert f"limbeck bench kd --again {told['seeds'][0]}" in said


def test_only_pages_of_limbeck_are_written_over(folder: Path, tmp_path: Path) -> None:
    write_all(folder)
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UsageError, match=r"index.html is not a page of limbeck; name another"):
        write_all(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "index.html"]
    with pytest.raises(UsageError, match="cannot be written"):
        write_all(tmp_path / "index.html")
    for words in ([], ["a", "--all", "b"]):
        with pytest.raises(UsageError, match="name the folder of a run, or one for the pages"):
            report(words)
    with pytest.raises(UsageError, match="--out is for the page of a run"):
        report(["--all", "a", "--out", "b"])


# -- a browser -------------------------------------------------------------------------------------

DRIVER = """<script>
addEventListener("load", () => {
  const all = [...document.querySelectorAll("table.methods tbody tr")];
  const seen = () => [...document.querySelectorAll("table.methods tbody tr")]
    .filter((row) => row.getClientRects().length).map((row) => row.querySelector("a").textContent);
  const form = document.querySelector("form.filters");
  const set = (name, value) => {
    form.elements[name].value = value;
    form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
  };
  const head = (name) => [...document.querySelectorAll("table.methods thead button")]
    .find((button) => button.textContent === name).click();
  const state = () => ({
    keys: seen(), hash: location.hash, count: document.querySelector("p.count").textContent,
    options: Object.fromEntries([...form.querySelectorAll("select")].map(
      (select) => [select.name, [...select.options].map((option) => option.text)])),
    wide: document.documentElement.scrollWidth, inner: innerWidth,
  });
  const told = {};
  told.start = state();
  STEPS
  parent.postMessage(JSON.stringify(told), "*");
});
</script>"""
STEPS = """
  set("room", "vision"); told.room = state();
  set("kind", "feature"); told.kind = state();
  set("needs", "y"); told.needs = state();
  set("search", "Hints thin"); told.search = state();
  set("search", "no such words"); told.none = state();
  document.querySelector("p.count button").click(); told.again = state();
  head("year"); told.year = state();
  head("year"); told.back = state();
  head("year"); told.own = state();
  head("status"); told.status = state();
"""
OUTER = """<!doctype html><body style="margin:0"><pre id="told"></pre><script>
addEventListener("message", (e) => { document.getElementById("told").textContent += e.data; });
</script><iframe src="inner/PAGE" style="border:0;width:WIDEpx;height:900px"></iframe>"""


def driven(
    browse: Browse, folder: Path, tmp: Path, width: int, steps: str, at: str = "index.html"
) -> str:
    """What the index tells in a browser while it is used; `at` may have a `#` and filters."""
    shutil.copytree(folder, tmp / "inner")
    for path in (tmp / "inner").iterdir():
        page = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text())
        mark = "<script>parent.postMessage(document.title, '*')</script>"
        if path.name == "index.html":
            mark = DRIVER.replace("STEPS", steps)
        path.write_text(page.replace("</body>", f"{mark}</body>"))
    outer = tmp / "outer.html"
    outer.write_text(OUTER.replace("WIDE", str(width)).replace("PAGE", at.replace("&", "&amp;")))
    done = browse(outer, "--window-size=1200,1000")
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[:500]
    return unescape(found.group(1))


@pytest.mark.parametrize("width", [390, 1000])
def test_filter_search_and_sort(folder: Path, tmp_path: Path, browse: Browse, width: int) -> None:
    told = json.loads(driven(browse, folder, tmp_path, width, STEPS))
    every = {entry.card.key: entry for entry in cards()}
    assert told["start"]["keys"] == list(every)
    assert told["start"]["count"] == f"{len(every)} methods"

    def keys(**asked: Any) -> list[str]:
        return [entry.card.key for entry in cards(**asked)]

    assert told["room"]["keys"] == keys(room="vision")
    assert told["kind"]["keys"] == keys(room="vision", kind="feature")
    left = keys(room="vision", kind="feature", needs="y")
    assert told["needs"]["keys"] == left
    assert told["needs"]["count"] == f"{len(left)} of {len(every)} methods show all"
    assert told["needs"]["hash"] == "#room=vision&kind=feature&needs=y"
    # An option says how many it would leave beside the others: of rooms, with this kind and need.
    assert f"vision ({len(left)})" in told["needs"]["options"]["room"]
    other = len(keys(room="language", kind="feature", needs="y"))
    assert f"language ({other})" in told["needs"]["options"]["room"]
    assert told["search"]["keys"] == ["fitnets"]  # in its title, whatever stands between
    assert told["none"]["keys"] == []
    assert told["none"]["count"] == "No method is like that. show all"
    assert told["again"]["keys"] == list(every)
    assert told["again"]["hash"] == ""
    by_year = sorted(every, key=lambda key: every[key].card.year)
    assert told["year"]["keys"] == by_year
    assert told["year"]["hash"] == "#sort=year"
    years = [every[key].card.year for key in told["back"]["keys"]]
    assert years == sorted(years, reverse=True)
    assert told["own"]["keys"] == list(every)
    told_first = all_told().get(told["status"]["keys"][0], [])
    assert told_first
    assert told_first[-1]["verdict"] == "shown"
    for name, state in told.items():
        assert state["inner"] == width
        assert state["wide"] <= width, name


def test_an_address_names_a_choice_and_links_work(
    folder: Path, tmp_path: Path, browse: Browse
) -> None:
    at = "index.html#room=language&sort=-year&kind=nonsense"
    told = json.loads(driven(browse, folder, tmp_path / "a", 390, "", at))["start"]
    years = {entry.card.key: entry.card.year for entry in cards(room="language")}
    assert sorted(told["keys"]) == sorted(years)
    assert [years[key] for key in told["keys"]] == sorted(years.values(), reverse=True)
    click = (
        "set('search', 'fitnets'); document.querySelector('tr:not([hidden]) a').click(); return;"
    )
    assert driven(browse, folder, tmp_path / "b", 390, click) == "fitnets"
    tile = """document.querySelector('.tiles a').click();
      setTimeout(() => parent.postMessage(JSON.stringify(state()), '*'), 50); return;"""
    shown = json.loads(driven(browse, folder, tmp_path / "c", 390, tile))["keys"]
    assert shown == [key for key in (e.card.key for e in cards())
                     if all_told().get(key, [{}])[-1].get("verdict") == "shown"]  # fmt: skip


def test_a_browser_has_nothing_to_complain_of(folder: Path, tmp_path: Path, browse: Browse) -> None:
    """With the page's own policy, which lets its script run and no other."""
    done = browse(folder / "index.html")
    assert "CONSOLE" not in done.stderr
    assert f">{len(cards())} methods</p>" in done.stdout  # so its script ran
    page = (folder / "index.html").read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(page.replace("</body>", "<script>let other;</script></body>"))
    assert "CONSOLE" in browse(bad).stderr
    for key in ("kd", "crd"):
        assert "CONSOLE" not in browse(folder / f"{key}.html").stderr
