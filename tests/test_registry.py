"""Cards, registry and the lazy package, on method files made here."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

import limbeck
from limbeck import registry
from limbeck.core.card import KINDS, Card, Need, call, parse_needs
from limbeck.errors import Missing, NonFinite, UsageError, nearest

CARD = {
    "title": "A Paper",
    "year": 2015,
    "arxiv": "1503.02531",
    "code": "",
    "kinds": ("response",),
    "needs": ("logits", "y"),
    "gives": "model",
    "world": "digits(teacher='cnn+mlp')",
    "stages": ("distil",),
    "tiny": {"tau": 2.0},
    "departs": "none known",
}

BODY = """
@dataclass(frozen=True)
class Toy:
    \"\"\"Teaches nothing.\"\"\"

    tau: float = 4.0
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["mean", "sum"] = "mean"
    card = CARD

    def __post_init__(self):
        if self.tau <= 0:
            raise ValueError(f"tau is {self.tau}; it must be above 0")

    def run(self, task):
        return None
"""


def write_card(key, **changes):
    values = {"key": key, **CARD, **changes}
    lines = "".join(f"    {name}={value!r},\n" for name, value in values.items())
    return f"CARD = Card(\n{lines})\n"


def write(folder, name, key=None, body=BODY, card=None, **changes):
    """Write a method file; returns its path."""
    key = key or name.removesuffix(".py").removesuffix("/__init__")
    imports = "from dataclasses import dataclass\nfrom typing import Literal\n\n"
    head = imports + "from limbeck import Card\n\n"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + (write_card(key, **changes) if card is None else card) + body)
    return path


@pytest.fixture
def root(tmp_path):
    """A package root with four methods in three rooms, and files that are none."""
    write(tmp_path / "vision", "kd.py")
    write(
        tmp_path / "vision", "crd.py", kinds=("contrast", "relation"), needs=("embedding", "index")
    )
    write(
        tmp_path / "language", "gkd.py", needs=("logits|hidden+head", "teacher:text"), lacks=("x",)
    )
    write(tmp_path / "compress", "diswot/__init__.py", gives="scores", needs=("data:space",))
    (tmp_path / "vision" / "_kit.py").write_text("raise RuntimeError\n")
    (tmp_path / "vision" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "vision" / "helper.py").write_text("raise RuntimeError\n")
    return tmp_path


def run_python(code, *, path=()):
    """Run code in a fresh process with this source; returns what it printed."""
    source = Path(limbeck.__file__).parents[1]
    setup = f"import sys; sys.path[:0] = {[str(source), *map(str, path)]!r}\n"
    made = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


# the package


def test_import_brings_neither_torch_nor_rooms():
    rooms = [f"limbeck.{room}" for room in registry.ROOMS]
    code = f"import limbeck; print([m for m in ['torch', 'rich', *{rooms}] if m in sys.modules])"
    assert run_python(code) == "[]"


def test_public_names_agree():
    assert sorted(limbeck._HOME) == sorted(limbeck.__all__)
    assert set(limbeck.__all__) <= set(dir(limbeck))
    shown = Path(limbeck.__file__).read_text().partition("if TYPE_CHECKING:")[2]
    shown = shown.partition("_NAMES")[0]
    pairs = set()
    for line in shown.splitlines():
        if line.startswith("    from "):
            module, _, names = line.strip().removeprefix("from limbeck.").partition(" import ")
            pairs |= {(name, module) for name in names.split(", ")}
    assert pairs == set(limbeck._HOME.items())


def test_public_names_are_there():
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Taks'"):
        limbeck.Taks  # noqa: B018


def test_all_rooms_are_packages():
    here = Path(limbeck.__file__).parent
    assert [room for room in registry.ROOMS if not (here / room / "__init__.py").is_file()] == []


def test_the_library_s_own_cards_read():
    assert {entry.room for entry in registry.cards()} <= set(registry.ROOMS)


# errors


def test_errors_are_usage_errors_and_say_what_they_say():
    assert issubclass(Missing, LookupError)
    assert issubclass(NonFinite, ArithmeticError)
    assert str(Missing("a 'b' c")) == "a 'b' c"


@pytest.mark.parametrize(
    ("name", "names", "told"),
    [
        ("dk", ["kd", "crd"], "; did you mean 'kd'?"),
        ("fitnet", ["kd", "fitnets"], "; did you mean 'fitnets'?"),
        ("KD", ["kd"], "; did you mean 'kd'?"),
        ("zzz", ["kd", "crd"], "; the choices are: kd, crd"),
        ("zzz", [f"a{i}" for i in range(14)], "and 2 more"),
        ("zzz", [], "; there are none"),
    ],
)
def test_nearest(name, names, told):
    assert nearest(name, names).endswith(told)


# the card


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"key": "My-KD"}, "snake_case"),
        ({"title": " "}, "title is empty"),
        ({"year": "2015"}, "year is '2015'"),
        ({"year": 215}, "year is 215"),
        ({"arxiv": "1503.025"}, "arxiv is '1503.025'"),
        ({"code": "github.com/a"}, "https://"),
        ({"kinds": ()}, "kinds is empty"),
        ({"kinds": "response"}, "write a tuple"),
        ({"kinds": ("respons",)}, "did you mean 'response'"),
        ({"kinds": ("response", "response")}, "twice"),
        ({"needs": ("logit",)}, "did you mean 'logits'"),
        ({"needs": ("taecher:logits",)}, "did you mean 'teacher'"),
        ({"needs": ("student:y",)}, "no known entry"),
        ({"needs": ("logits|",)}, "not known"),
        ({"needs": ("data:",)}, "names no set"),
        ({"gives": "modle"}, "did you mean 'model'"),
        ({"world": "digits(8)"}, "without a name"),
        ({"world": "digits teacher"}, "not a name with values"),
        ({"tiny": {"tau": [1]}}, "tau"),
        ({"tiny": (1,)}, "tiny"),
        ({"departs": ""}, "write 'none known'"),
        ({"lacks": "x"}, "write a tuple"),
    ],
)
def test_card_refuses(changes, told):
    with pytest.raises(UsageError, match="the card of ") as caught:
        Card(**{"key": "kd", **CARD, **changes})
    assert told in str(caught.value)


@pytest.mark.parametrize("arxiv", ["", "1503.02531", "1312.6184", "cs/0101001", "cond-mat/9901001"])
def test_card_takes_arxiv_numbers(arxiv):
    assert Card("kd", **{**CARD, "arxiv": arxiv}).arxiv == arxiv


def test_card_is_a_value():
    card = Card("kd", **CARD)
    assert card == Card("kd", **CARD)
    assert hash(card) == hash(Card("kd", **CARD))
    assert card != replace(card, year=2016)


def test_parse_needs():
    both = {name: Need("both", name) for name in ("logits", "hidden", "head")}
    assert parse_needs(("logits|hidden+head", "teacher:text", "again", "data:pool")) == (
        (frozenset({both["logits"]}), frozenset({both["hidden"], both["head"]})),
        (frozenset({Need("teacher", "text")}),),
        (frozenset({Need("plain", "again")}),),
        (frozenset({Need("data", "pool")}),),
    )
    assert str(Need("teacher", "text")) == "teacher:text"
    assert str(Need("both", "logits")) == "logits"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("digits", ("digits", {})),
        ("digits()", ("digits", {})),
        ("digits(teacher='cnn+mlp')", ("digits", {"teacher": "cnn+mlp"})),
        ("kd(tau=4, label=-0.1)", ("kd", {"tau": 4, "label": -0.1})),
        ("my/new-kd.py(sizes=(1, 2))", ("my/new-kd.py", {"sizes": (1, 2)})),
        ("of(of='kd(tau=(1))')", ("of", {"of": "kd(tau=(1))"})),
    ],
)
def test_call(text, read):
    assert call(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kd(",
        "kd)",
        "kd(4)",
        "kd(**{})",
        "kd(tau=x)",
        "kd(tau=f())",
        "kd(a=1, a=2)",
        "a b",
        "kd(a=1)(b=2)",
    ],
)
def test_call_refuses(text):
    with pytest.raises(UsageError):
        call(text)


# listing


def test_cards_lists_by_room_and_imports_nothing(root):
    entries = registry.cards(roots=[root])
    assert [(e.room, e.card.key) for e in entries] == [
        ("vision", "crd"),
        ("vision", "kd"),
        ("language", "gkd"),
        ("compress", "diswot"),
    ]
    assert entries[1].path == root / "vision" / "kd.py"
    assert entries[1].card == Card("kd", **CARD)


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        ({"room": "vision"}, "crd kd"),
        ({"kind": "relation"}, "crd"),
        ({"needs": "logits"}, "kd gkd"),
        ({"needs": "hidden"}, "gkd"),
        ({"needs": "text"}, "gkd"),
        ({"needs": "teacher:text"}, "gkd"),
        ({"needs": "student:text"}, ""),
        ({"needs": "index"}, "crd"),
        ({"needs": "data"}, "diswot"),
        ({"needs": "data:space"}, "diswot"),
        ({"needs": "data:pool"}, ""),
        ({"gives": "scores"}, "diswot"),
        ({"status": "partial"}, "gkd"),
        ({"status": "exact", "room": "vision"}, "crd kd"),
    ],
)
def test_filters(root, filters, keys):
    assert [e.card.key for e in registry.cards(**filters, roots=[root])] == keys.split()


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"room": "visoin"}, "'vision'"),
        ({"kind": "relations"}, "'relation'"),
        ({"needs": "logit"}, "'logits'"),
        ({"gives": "score"}, "'scores'"),
        ({"status": "show"}, "'shown'"),
    ],
)
def test_unknown_filters(root, filters, told):
    with pytest.raises(UsageError, match="is not known; did you mean") as caught:
        registry.cards(**filters, roots=[root])
    assert told in str(caught.value)


def test_status_comes_from_the_digest(root):
    text = (
        '{"kd": {"verdict": "shown"}, "gkd": {"verdict": "shown"}, "crd": {"verdict": "not shown"}}'
    )
    (root / "results.json").write_text(text)
    status = {e.card.key: e.status for e in registry.cards(roots=[root])}
    assert status == {"kd": "shown", "gkd": "partial", "crd": "not shown", "diswot": "exact"}
    assert registry.find("kd", roots=[root]).status == "shown"


@pytest.mark.parametrize("text", ["", "[]", '{"kd": 1}', '{"kd": {"verdict": "great"}}'])
def test_damaged_digest(root, text):
    (root / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"results\.json"):
        registry.cards(roots=[root])


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("CARD = Card(key='bad')\n", "a line ')'"),
        ("CARD = Card(\n    key='bad',\n)\n", "does not say its title, year"),
        ("CARD = Card(\n    'bad',\n)\n", "must be named"),
        (
            "CARD = Card(\n    key='bad'\n    year=1\n)\n",
            "line 6: the card does not read as Python",
        ),
        (write_card("bad").replace("2015", "YEAR"), "year is YEAR, which is not a literal"),
        (write_card("bad").replace("2015", "2000 + len('x')"), "not a literal"),
        (write_card("bad").replace("year=", "yaer="), "no field 'yaer'; did you mean 'year'?"),
        (write_card("bad", kinds=("odd_kind",)), "'odd_kind' is not known"),
        (write_card("other"), "the card's key 'other' is not the file's name"),
    ],
)
def test_broken_card_is_named(root, card, told):
    write(root / "dense", "bad.py", card=card)
    for ask in (lambda: registry.cards(roots=[root]), lambda: registry.find("bad", roots=[root])):
        with pytest.raises(UsageError) as caught:
            ask()
        assert str(Path("dense") / "bad.py") in str(caught.value)
        assert told in str(caught.value)
    assert registry.find("kd", roots=[root]).card.key == "kd"  # others are not touched


def test_several_broken_cards_are_all_named(root):
    for name in ("one.py", "two.py"):
        write(root / "dense", name, year=1)
    with pytest.raises(UsageError, match=r"one\.py.*\n.*two\.py"):
        registry.cards(roots=[root])


def test_two_methods_with_one_key(root):
    write(root / "dense", "kd.py")
    with pytest.raises(UsageError, match="both have the key 'kd'"):
        registry.cards(roots=[root])
    with pytest.raises(UsageError, match="the key 'kd' stands in"):
        registry.find("kd", roots=[root])


def test_a_card_in_other_dress_is_read(tmp_path):
    card = write_card("odd", title='Of ) and "quotes"').replace(
        "CARD = ", "CARD: limbeck.Card = limbeck."
    )
    write(tmp_path / "vision", "odd.py", card=card)
    assert registry.cards(roots=[tmp_path])[0].card.title == 'Of ) and "quotes"'


# finding and importing


def test_unknown_key(root):
    with pytest.raises(Missing, match="no method is called 'krd'; did you mean 'kd', 'crd' or"):
        registry.find("krd", roots=[root])
    with pytest.raises(Missing):
        registry.find("helper", roots=[root])
    with pytest.raises(Missing):
        registry.find("_kit", roots=[root])
    with pytest.raises(UsageError, match="give its key or file"):
        registry.find(3, roots=[root])


def test_get_imports_one_file(root):
    toy = registry.get("kd", roots=[root])
    assert toy.card.key == "kd"
    assert toy().tau == 4.0
    assert registry.get("kd", roots=[root]) is toy
    assert registry.get("diswot", roots=[root]).card.gives == "scores"


def test_folder_method_imports_its_own_files(root):
    folder = root / "compress" / "diswot"
    (folder / "machine.py").write_text("VALUE = 3\n")
    path = folder / "__init__.py"
    path.write_text("from .machine import VALUE\n" + path.read_text())
    assert sys.modules[registry.get("diswot", roots=[root]).__module__].VALUE == 3


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "here: none"),
        (BODY + BODY.replace("Toy", "Other"), "here: Toy, Other"),
        (BODY.replace("(frozen=True)", ""), "frozen dataclass"),
        (BODY.replace("def run", "def ran"), "must be an Objective or a Method"),
        (BODY + "\n    def", "invalid syntax"),
        (BODY + "\nimport no_such_package\n", "imports 'no_such_package'"),
    ],
)
def test_get_refuses(root, body, told):
    path = write(root / "dense", "bad.py", body=body)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(UsageError, match=r"bad\.py") as caught:
            registry.get(path)
        assert told in str(caught.value)


def test_an_alias_is_not_a_second_class(tmp_path):
    path = write(tmp_path, "mine.py", body=BODY + "\nAlias = Toy\n")
    assert registry.get(path).__name__ == "Toy"


# a file of one's own


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A method file in the working directory, with a key that is not its name."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, "mine.py", key="my_kd")


def test_own_file_is_taken_for_a_key(mine):
    entry = registry.find("mine.py")
    assert (entry.card.key, entry.room, entry.path) == ("my_kd", "own", mine)
    toy = registry.get("mine.py")
    assert toy is registry.get(mine) is registry.get("./mine.py")
    assert toy.__module__ != "mine"
    assert registry.make("mine.py") == toy()
    assert registry.make("mine.py(tau=2)") == registry.make(mine, tau=2) == toy(tau=2.0)


def test_equal_names_do_not_collide(mine, tmp_path):
    other = write(tmp_path / "sub", "mine.py", key="other_kd")
    assert registry.get(other).card.key == "other_kd"
    assert registry.get(mine).card.key == "my_kd"


def test_missing_own_file(mine, tmp_path):
    with pytest.raises(Missing, match=r"there is no file 'mien\.py'; did you mean 'mine\.py'"):
        registry.find("mien.py")
    with pytest.raises(Missing, match="there is no file"):
        registry.find("nowhere/mine.py")
    with pytest.raises(Missing, match=r"write 'mine\.py'"):
        registry.find("mine")
    (tmp_path / "plain.py").write_text("x = 1\n")
    with pytest.raises(Missing, match="holds no card"):
        registry.find("plain.py")


def test_a_file_of_the_library_by_path_is_the_library_s(root, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", root)
    assert registry.find(root / "vision" / "kd.py") == registry.find("kd")
    assert registry.find(root / "compress" / "diswot").room == "compress"


# making


@pytest.fixture
def package(root, monkeypatch):
    """The root as the package itself."""
    monkeypatch.setattr(registry, "PACKAGE", root)
    return root


def test_make_reads_literals(package):
    made = limbeck.make("kd(tau=4, sizes=[3, 4], mode='sum')")
    assert (made.tau, made.sizes, made.mode) == (4.0, (3, 4), "sum")
    assert repr(made) == "Toy(tau=4.0, sizes=(3, 4), mode='sum')"
    assert limbeck.make("kd(tau=4)", tau=2).tau == 2.0
    assert limbeck.make("kd", tau=2) == limbeck.make("kd(tau=2)")


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("kd(tua=4)", Missing, "kd has no field 'tua'; did you mean 'tau'?"),
        ("kd(card=4)", Missing, "kd has no field 'card'"),
        ("kd(tau=0)", UsageError, "kd: tau is 0.0; it must be above 0"),
        ("kd(tau=x)", UsageError, "not a literal"),
        ("dk(tau=4)", Missing, "did you mean 'kd'?"),
    ],
)
def test_make_refuses(package, text, kind, told):
    with pytest.raises(kind) as caught:
        limbeck.make(text)
    assert told in str(caught.value)


REAL = """
from limbeck import Method, Result


@dataclass(frozen=True)
class Real(Method):
    \"\"\"Teaches nothing.\"\"\"

    size: int
    tau: float = 4.0
    fade: float | None = None
    mode: Literal["mean", "sum"] = "mean"
    card = CARD

    def run(self, task):
        return Result()
"""


def test_make_checks_types_of_real_methods(package):
    write(package / "dense", "real.py", body=REAL)
    made = limbeck.make("real(size=3, tau=1, fade=2)")
    assert repr(made) == "Real(size=3, tau=1.0, fade=2.0, mode='mean')"
    for values in ("size='3'", "size=3.5", "size=True", "size=3, tau='a'", "size=3, mode='men'"):
        with pytest.raises(UsageError):
            limbeck.make(f"real({values})")
    with pytest.raises(UsageError, match="real needs a value for its field 'size'"):
        limbeck.make("real")


def test_kinds_are_words():
    assert all(kind.isidentifier() and kind.islower() for kind in KINDS)
    assert all(KINDS.values())
