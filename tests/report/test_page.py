"""The pieces of pages: what is escaped, what is self-contained, what is drawn where."""

import base64
import json
import re
import statistics
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck.report.curves import Line, curves, key
from limbeck.report.logs import lines_of, read_metrics
from limbeck.report.page import code, facts, figure, lead, note, page, section, table, text
from limbeck.report.plots import pictures, short, ticks
from limbeck.report.strips import Strip, strips

EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Elements and text of a page; complains of what is not closed in order."""

    EMPTY = frozenset({"meta", "link", "img", "br", "line", "circle", "polyline", "polygon"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def whole() -> str:
    strip = Strip(EVIL, [0.8, 0.82], EVIL)
    line = Line(EVIL, [[(0, 1.0, 0.9, 1.1), (1, 0.5, 0.4, 0.6)]])
    body = [
        note(EVIL),
        code(EVIL),
        facts({EVIL: EVIL}),
        table([EVIL, EVIL], [(EVIL, EVIL)], EVIL, best=0),
        figure(strips([strip], {EVIL: 0.9}, title=EVIL, desc=EVIL), EVIL, EVIL),
        figure(curves([line], title=EVIL, desc=EVIL, across=EVIL), "", EVIL, key([line])),
        figure(curves([line], title="", desc="", parts=[(EVIL, 0.5), (EVIL, 1.0)])),
        pictures([[[0.0, 1.0]]], EVIL),
    ]
    return page(EVIL, EVIL, [lead(EVIL)], [section(EVIL, *body)])


def test_every_name_is_escaped() -> None:
    written = whole()
    reader = Reader(written)
    assert "<script" not in written
    assert not reader.all("script")
    assert "".join(reader.words).count(EVIL) > 15  # it is there, as text
    allowed = {"class", "role", "aria-label", "aria-hidden", "scope", "tabindex", "alt", "src"}
    for tag, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        if tag in ("p", "span", "td", "th", "div", "figure", "img"):
            assert set(attrs) <= allowed, (tag, attrs)


def test_a_page_asks_the_network_for_nothing() -> None:
    written = whole()
    reader = Reader(written)
    assert "http" not in re.sub(r"http-equiv", "", written)
    assert "@import" not in written
    assert not re.search(r"url\(", written)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    assert all(str(attrs["src"]).startswith("data:") for attrs in reader.all("img"))
    assert [attrs["href"] for attrs in reader.all("link")] == ["data:,"]
    policy = [a["content"] for a in reader.all("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_a_page_says_what_it_is_to_who_cannot_see_it() -> None:
    reader = Reader(whole())
    assert reader.tags[0] == ("html", {"lang": "en"})
    assert len(reader.all("h1")) == len(reader.all("main")) == 1
    assert all("alt" in attrs for attrs in reader.all("img"))
    assert all(a.get("role") == "img" or a.get("aria-hidden") for a in reader.all("svg"))
    assert len(reader.all("desc")) == len([a for a in reader.all("svg") if "role" in a])
    assert {attrs["scope"] for attrs in reader.all("th")} == {"col", "row"}
    assert len(reader.all("caption")) == len(reader.all("table"))


def contrast(a: str, b: str) -> float:
    """The ratio of WCAG 2."""

    def light(colour: str) -> float:
        colour = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_the_paper() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    schemes = re.findall(r":root\{[^}]*--paper[^}]*\}", whole())
    assert len(schemes) == 3  # light, dark, printed
    for scheme in schemes:
        colour = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", scheme))
        for name in ("ink", "soft", "c0", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(colour[name], colour["paper"]) >= 4.5, (scheme, name)


def test_numbers_and_ticks() -> None:
    assert [short(v) for v in (0, 0.25, 1500, 12_000, 2.5e6, 3e9, 2e-5)] == [
        "0", "0.25", "1500", "12k", "2.5M", "3G", "2e-5",
    ]  # fmt: skip
    assert ticks(0.83, 0.991) == [0.85, 0.9, 0.95]
    assert ticks(0, 600, 5) == [0, 200, 400, 600]
    assert ticks(1, 1) == [1]
    assert all(len(ticks(0, 10**k * m)) <= 7 for k in range(-4, 5) for m in (1, 1.7, 3.3, 9))


def positions(svg: str, tag: str, name: str) -> list[float]:
    return [float(str(attrs[name]).rstrip("%")) for attrs in Reader(svg).all(tag)]


def test_a_strip_has_its_dots_where_the_values_lie() -> None:
    svg = strips([Strip("a", [0.5, 0.75, 1.0])], {}, title="t", desc="d")
    first, middle, last = positions(svg, "circle", "cx")
    assert middle - first == pytest.approx(last - middle, abs=0.02)
    assert 0 < first < middle < last < 100
    mean = [a for a in Reader(svg).all("line") if a.get("stroke-width") == "2.5"]
    assert float(str(mean[0]["x1"]).rstrip("%")) == pytest.approx(middle, abs=0.01)
    band = [a for a in Reader(svg).all("line") if a.get("stroke-width") == "9"]
    # The standard deviation of 0.5, 0.75, 1 is 0.25: from dot to dot.
    assert float(str(band[0]["x1"]).rstrip("%")) == pytest.approx(first, abs=0.01)


def test_strips_of_one_value_and_of_equal_values_are_drawn() -> None:
    for values in ([0.9], [0.9, 0.9]):
        svg = strips([Strip("a", values)], {"m": 0.9}, title="t", desc="d")
        assert "nan" not in svg
        assert positions(svg, "circle", "cx") == [50.0] * len(values)


def test_a_band_that_is_wider_than_its_dots_stays_in_the_picture() -> None:
    for values, percent in (([0.9, 0.98], True), ([0.97, 1.0], True), ([-3.0, 5.0], False)):
        svg = strips([Strip("a", values)], {}, title="t", desc="d", percent=percent)
        band = next(a for a in Reader(svg).all("line") if a.get("stroke-width") == "9")
        ends = [float(str(band[name]).rstrip("%")) for name in ("x1", "x2")]
        assert 0 <= ends[0] < ends[1] <= 100
        assert ends[0] < min(positions(svg, "circle", "cx"))
        assert not re.search(r"10[1-9][.\d]* %", svg)  # nothing is more than all


def test_numbers_below_a_curve_end_where_it_ends() -> None:
    svg = curves([Line("a", [[(0.0, 1.0, 1.0, 1.0), (100.0, 2.0, 2.0, 2.0)]])], title="", desc="")
    last = next(a for a in Reader(svg).all("text") if float(str(a["x"])) > 330)
    assert (last["x"], last["text-anchor"]) == ("340.0", "end")


def test_a_line_of_code_ends_between_words() -> None:
    html = code("limbeck run kd --world digits\nsecond 'a b' --x=<1>")
    words = re.findall(r'<span class="word">(.*?)</span>', html)
    assert words[3:] == ["--world", "digits", "second", "&#x27;a", "b&#x27;", "--x=&lt;1&gt;"]
    reader = Reader(html)
    assert "".join(reader.words) == "limbeck run kd --world digits\nsecond 'a b' --x=<1>"
    assert '<span class="word">--seeds</span> 12' in note("no proof; --seeds 12 shows; a--b")


def ys(svg: str) -> list[float]:
    line = Reader(svg).all("polyline")[0]
    return [float(pair.split(",")[1]) for pair in str(line["points"]).split()]


def test_curves_are_linear_or_logarithmic() -> None:
    def drawn(*values: float) -> list[float]:
        points = [(float(i), v, v, v) for i, v in enumerate(values)]
        return ys(curves([Line("a", [points])], title="t", desc="d"))

    a, b, c = drawn(1, 2, 3)
    assert a - b == pytest.approx(b - c, abs=0.11)
    assert a > b > c  # down the page is down
    a, b, c = drawn(1, 10, 100)
    assert a - b == pytest.approx(b - c, abs=0.11)
    a, b, c = drawn(0, 10, 100)  # zero has no logarithm
    assert c - b < 8 * (b - a) < 0


def test_odd_curves_are_drawn() -> None:
    for lines in (
        [],
        [Line("a", [[(3.0, 1.0, 1.0, 1.0)]])],
        [Line("a", [[(0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)]])],
        [Line("a", [[(0.0, -1.0, -2.0, 0.0), (1.0, 5.0, 4.0, 6.0)]])],
        [Line(str(i), [[(0.0, 1e-9, 1e-9, 1e-9), (1.0, 1e9, 1e9, 1e9)]], i) for i in range(9)],
    ):
        svg = curves(lines, title="t", desc="d")
        Reader(svg + key(lines))
        assert "nan" not in svg
        assert "inf" not in svg


def test_pictures_are_grey_images_side_by_side() -> None:
    html = pictures([[[0, 1], [0.2, 0.4]], [[1, 1], [0, 0]]], "two")
    png = base64.b64decode(str(Reader(html).all("img")[0]["src"]).split(",")[1])
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (width, height, depth, kind) == (5, 2, 8, 4)
    size = struct.unpack(">I", png[33:37])[0]
    rows = zlib.decompress(png[41 : 41 + size])
    assert zlib.crc32(png[37 : 41 + size]) == struct.unpack(">I", png[41 + size : 45 + size])[0]
    ink = [list(rows[11 * y + 2 : 11 * y + 11 : 2]) for y in range(2)]
    assert ink == [[0, 255, 0, 255, 255], [51, 102, 0, 0, 0]]


def test_logs_are_read_whatever_is_broken(tmp_path: Path) -> None:
    rows = [
        {"stage": "fit", "step": 0, "terms": {"label": 2.0, "kd": float("nan")}},
        {"stage": "fit", "step": 5, "valid": {"accuracy": 0.5}},
        {"stage": "fit", "step": 10, "terms": {"label": 1.0}},
    ]
    lines = [*map(json.dumps, rows), "[1]", "{", '{"stage": "fit", "step": 11, "terms": {"la']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == {"fit": {"label": [(0, 2.0), (10, 1.0)]}}
    assert read_metrics(tmp_path / "none.jsonl") == {}


def test_seeds_are_joined_and_stages_follow_each_other() -> None:
    first = {"hint": {"hint": [(0, 4.0), (9, 2.0)]}, "kd": {"kd": [(0, 1.0), (5, 0.5)]}}
    second = {"hint": {"hint": [(0, 6.0), (9, 2.0)]}, "kd": {"kd": [(0, 3.0)]}}
    (hint, kd), parts = lines_of([first, second])
    assert (hint.name, hint.pieces) == ("hint", [[(0, 5.0, 4.0, 6.0), (9, 2.0, 2.0, 2.0)]])
    assert (kd.name, kd.pieces) == ("kd", [[(10, 2.0, 1.0, 3.0), (15, 0.5, 0.5, 0.5)]])
    assert parts == [("hint", 10), ("kd", 16)]
    assert lines_of([]) == ([], [])


def test_long_logs_are_thinned_and_keep_their_mean() -> None:
    values = [(i, float(i % 7)) for i in range(1000)]
    ((line,), _) = lines_of([{"fit": {"a": values}}], most=50)
    *thinned, last = [point[:2] for point in line.pieces[0]]
    assert 40 < len(thinned) < 50
    assert last == values[-1]  # a curve ends at the value that is told beside its name
    assert line.last == 999 % 7
    size = 1000 // 49 + 1  # rows in a point; the last one may have less
    for i, point in enumerate(thinned):
        some = values[i * size : min((i + 1) * size, 999)]
        assert point == pytest.approx([statistics.fmean(each) for each in zip(*some, strict=True)])


@pytest.mark.parametrize("rows", [1, 2, 60, 61, 62, 119, 121])
def test_a_curve_ends_at_its_last_value(rows: int) -> None:
    ((line,), _) = lines_of([{"fit": {"a": [(i, float(i * i)) for i in range(rows)]}}])
    assert line.last == (rows - 1) ** 2
    assert len(line.pieces[0]) <= 60


def test_one_term_in_two_stages_is_one_line_of_two_pieces() -> None:
    runs = [{"a": {"kd": [(0, 1.0)]}, "b": {"kd": [(0, 2.0)]}}]
    ((line,), _) = lines_of(runs)
    assert [len(piece) for piece in line.pieces] == [1, 1]
    assert line.last == 2.0


def test_text_is_escaped_for_attributes_too() -> None:
    assert text("a\"b'<&>") == "a&quot;b&#x27;&lt;&amp;&gt;"
