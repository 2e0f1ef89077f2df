"""The shape of the source tree: what may import what, names, sizes, and what no room may do.

Only the source's text is read. A rule takes one file and gives a complaint for each fault. A file
in a room may be exempt from a rule, `EXEMPT = {"tree:RULE": "reason"}`, for as long as the rule has
something to complain of.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "limbeck"


def words(text: str) -> set[str]:
    return set(text.split())


ROOMS = words(
    "vision dense selfsup language reasoning retrieval multimodal speech condense generative scene"
    " continual federated control graph compress"
)
# How many exemptions from these rules the methods have; a change of it is said in CHANGELOG.md.
EXEMPTIONS = 0


@dataclass(frozen=True)
class Source:
    """The text of one file and its path within src/limbeck."""

    path: PurePosixPath
    text: str = field(repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def room(self) -> str:
        return self.path.parts[0] if self.path.parts[0] in ROOMS else ""

    @cached_property
    def key(self) -> str:
        """The method that this file belongs to; empty for a room's kit and outside rooms."""
        if not self.room or self.path.parts[1].startswith("_"):
            return ""
        return self.path.parts[1].removesuffix(".py")

    @cached_property
    def holds_card(self) -> bool:
        """True for ROOM/KEY.py and ROOM/KEY/__init__.py, not for the other files of a folder."""
        inner = self.path.parts[2:]
        return bool(self.key) and inner in ((), ("__init__.py",))

    @cached_property
    def area(self) -> str:
        first, *rest = self.path.parts
        if self.room:
            return "room"
        if not rest:
            return "top"
        return "worlds" if first == "bench" and rest[0] == "worlds" else first

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """What the module gives a name by a plain assignment."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                found[ast.unparse(node.targets[0])] = node.value
            elif isinstance(node, ast.AnnAssign) and node.value:
                found[ast.unparse(node.target)] = node.value
        return found

    def calls(self) -> Iterator[tuple[ast.Call, str, str]]:
        """Each call with the text of what is called, as `torch` and `rand`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                owner, _, name = ast.unparse(node.func).rpartition(".")
                yield node, owner, name

    def imports(self) -> Iterator[tuple[int, str, bool]]:
        """Each imported name, dotted and absolute, and whether importing the file imports it."""
        for node, early in walk_imports(self.tree, True):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                package = ("limbeck", *self.path.parent.parts)
                base = package[: len(package) + 1 - node.level] if node.level else ()
                whole = ".".join((*base, *filter(None, [node.module])))
                names = [f"{whole}.{alias.name}" for alias in node.names]
            for name in names:
                yield node.lineno, name, early


def walk_imports(node: ast.AST, early: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Find imports; those in functions and for the type checker only are not early."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, early
            continue
        late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        late |= isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from walk_imports(child, early and not late)


# --- what may import what ------------------------------------------------------------------------


class Layer(NamedTuple):
    """What the files of an area may import."""

    limbeck: str | None  # parts of limbeck, anywhere in the file; None: all but rooms
    packages: str = ""  # packages beside Python's own, when the file is imported
    early: str | None = None  # parts of limbeck, when the file is imported; None: as `limbeck`


BASE = "accelerate numpy rich safetensors sklearn torch"
# imports no torch, see below
LIGHT = "core.card core.seeds core.sources.specs core.times errors registry _shelf _source _values"
LAYERS = {
    "top": Layer(None, "", f"cli {LIGHT}"),
    "core": Layer("core errors registry __version__", "accelerate numpy rich safetensors torch"),
    "room": Layer("core errors registry", "numpy torch"),  # and its own kit, see below
    "worlds": Layer("core errors bench.worlds", BASE),
    "bench": Layer(None, BASE),
    "check": Layer(None, BASE),
    "runs": Layer("core registry report runs errors __version__ _shelf _source", BASE),
    "doctor": Layer("core registry runs doctor errors __version__", BASE),
    "report": Layer(f"report __version__ {LIGHT}", ""),
    "cli": Layer(None, "", f"cli {LIGHT} __version__"),
}


def within(name: str, allowed: str) -> bool:
    """Say whether a dotted name is, or lies in, one of some parts of limbeck."""
    return any(f"{name}.".startswith(f"limbeck.{part}.") for part in words(allowed))


def imports(source: Source) -> Iterator[str]:
    """Imports go downward; rooms never meet; optional packages wait for the function's call."""
    layer = LAYERS[source.area]
    for line, name, early in source.imports():
        top, *rest = name.split(".")
        if top != "limbeck":
            too_early = early and top not in words(layer.packages) | sys.stdlib_module_names
            if too_early or (source.area == "report" and top == "torch"):
                yield f"line {line}: {source.area} may not import {top} here"
            continue
        if source.room and rest[:1] == [source.room]:
            own_kit = len(rest) > 1 and rest[1].startswith("_")
            allowed = own_kit or (source.key and rest[1:2] == [source.key])
        elif rest and rest[0] in ROOMS:
            allowed = False
        else:
            allowed = layer.limbeck is None or within(name, layer.limbeck)
            if early and layer.early is not None:
                allowed = within(name, layer.early)
        if not allowed:
            yield f"line {line}: {source.area} may not import {name} here"


# --- what no room does ---------------------------------------------------------------------------


def loop(source: Source) -> Iterator[str]:
    """The engine alone goes backward and steps."""
    if not source.room:
        return
    for node, owner, name in source.calls():
        # An environment's step takes an action, an optimiser's takes nothing.
        steps = name == "step" and owner and (not node.args or re.search("opt|sched|scaler", owner))
        if name == "backward" or steps:
            yield f"line {node.lineno}: {owner}.{name}() belongs to the engine"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.optim":
            yield f"line {node.lineno}: a room names an Optimiser in a Phase, it makes none"
    for line, name, _ in source.imports():
        if name.startswith("torch.optim"):
            yield f"line {line}: a room names an Optimiser in a Phase, it makes none"


TORCH_DRAWS = words(
    "bernoulli multinomial normal poisson rand rand_like randint randint_like randn randn_like"
    " randperm"
)
TENSOR_DRAWS = words(
    "bernoulli bernoulli_ cauchy_ exponential_ geometric_ kaiming_normal_ kaiming_uniform_"
    " log_normal_ multinomial normal_ orthogonal_ random_ sparse_ trunc_normal_ uniform_"
    " xavier_normal_ xavier_uniform_"
)
GENERATORS = words(
    "Generator fork_rng gumbel_softmax initial_seed manual_seed manual_seed_all rsample"
    " set_rng_state"
)


def randomness(source: Source) -> Iterator[str]:
    """A room draws from the generators it is handed: `rng`, `clock.rng(name)`."""
    if not source.room:
        return
    for node, owner, name in source.calls():
        drawn = name in TENSOR_DRAWS or (owner == "torch" and name in TORCH_DRAWS)
        fed = any(keyword.arg == "generator" for keyword in node.keywords)
        if name in GENERATORS or (drawn and not fed):
            yield f"line {node.lineno}: {name}() draws, or makes a generator; pass generator=rng"
    elsewhere = r"(random|secrets|(np|numpy|torch)\.random|torch\.distributions)"
    for line, name, _ in source.imports():
        bare = name.startswith("torch.") and name[6:] in TORCH_DRAWS | GENERATORS
        if bare or re.match(rf"{elsewhere}\b", name):
            yield f"line {line}: a room may not import {name}: it draws from elsewhere"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(elsewhere, ast.unparse(node)):
            yield f"line {node.lineno}: {ast.unparse(node)} draws from elsewhere"


def module_level(source: Source) -> Iterator[str]:
    """Importing a method does no work: docstring, imports, CARD, EXEMPT, constants, definitions."""
    if not source.key:
        return
    for node in source.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            yield f"line {node.lineno}: {type(node).__name__} at module level"
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [ast.unparse(target) for target in targets]
        if not all(re.fullmatch(r"_?[A-Z]\w*|__all__", name) for name in names):
            yield f"line {node.lineno}: {', '.join(names)} is no constant's name"
        for call in (inner for inner in ast.walk(node) if isinstance(inner, ast.Call)):
            called = ast.unparse(call.func)
            if not re.fullmatch(r"Card|frozenset|TypeVar|math\.\w+|re\.compile", called):
                yield f"line {node.lineno}: a constant is computed by {called}()"


# --- names, sizes, cards, tests ------------------------------------------------------------------


def size(source: Source) -> Iterator[str]:
    """A file can be read in one sitting."""
    lines, most = source.text.count("\n"), 300 if source.area == "core" else 250
    if lines > most:
        yield f"{lines} lines, at most {most} are allowed"


def is_literal(node: ast.expr) -> bool:
    """Say whether an expression can be read without executing anything."""
    try:
        ast.literal_eval(node)
    except (TypeError, ValueError):
        return False
    return True


def card(source: Source) -> Iterator[str]:
    """A file in a room is a method named by its card's key, or begins with an underscore."""
    if not source.holds_card:
        return
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", source.key):
        yield f"{source.key} is not snake_case"
    node = source.constants.get("CARD")
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "Card"):
        yield "no CARD = Card(...); a file that holds no method begins with an underscore"
        return
    if node.args or not all(word.arg and is_literal(word.value) for word in node.keywords):
        yield "CARD is not made of literals alone, each with its name"
        return
    key = {word.arg: ast.literal_eval(word.value) for word in node.keywords}.get("key")
    if key != source.key:
        yield f"the card's key is {key!r}, the file's name says {source.key!r}"
    owners = [
        node.name
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
        and any(re.fullmatch("card(: .+)? = CARD", ast.unparse(line)) for line in node.body)
    ]
    if len(owners) != 1:
        yield f"exactly one class has card = CARD, here: {', '.join(owners) or 'none'}"


def test_file(source: Source) -> Iterator[str]:
    """Each method has a test of its own."""
    if source.holds_card:
        path = ROOT / "tests" / source.room / f"test_{source.key}.py"
        if not path.is_file() or "def test_" not in path.read_text(encoding="utf-8"):
            yield f"no test in {path.relative_to(ROOT)}"


test_file.__test__ = False  # a rule, whatever pytest takes its name for
RULES: dict[str, Callable[[Source], Iterator[str]]] = {
    rule.__name__: rule for rule in (imports, loop, randomness, module_level, size, card, test_file)
}


# --- exemptions ----------------------------------------------------------------------------------


def exemptions(source: Source) -> dict[str, str]:
    """The rules that a room's file is exempt from, each with its reason."""
    node = source.constants.get("EXEMPT") if source.room else None
    found = ast.literal_eval(node) if node else {}
    return {name[5:]: reason for name, reason in found.items() if name.startswith("tree:")}


def complaints(source: Source) -> list[str]:
    """All faults of a file, exemptions taken into account in both directions."""
    exempt, found = exemptions(source), []
    for name, reason in exempt.items():
        if name not in RULES:
            found.append(f"EXEMPT names no rule: tree:{name}; the rules are {', '.join(RULES)}")
        if not str(reason).strip():
            found.append(f"EXEMPT gives no reason for tree:{name}")
    for name, rule in RULES.items():
        faults = [f"{name}: {fault}" for fault in rule(source)]
        if name not in exempt:
            found += faults
        elif not faults:
            found.append(f"EXEMPT is needed no longer: tree:{name}")
    return found


# --- the tree as it is ---------------------------------------------------------------------------

SOURCES = [
    Source(PurePosixPath(path.relative_to(SRC).as_posix()), path.read_text(encoding="utf-8"))
    for path in sorted(SRC.rglob("*.py"))
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.path))
def test_file_keeps_the_rules(source: Source) -> None:
    found = complaints(source)
    assert not found, "\n".join([str(source.path), *found])


def test_exemptions_are_counted() -> None:
    found = [f"{source.path}: {name}" for source in SOURCES for name in exemptions(source)]
    assert len(found) == EXEMPTIONS, found


def repeated(sources: list[Source]) -> list[str]:
    """Keys that more than one room has."""
    keys = Counter(source.key for source in sources if source.holds_card)
    return [key for key, times in keys.items() if times > 1]


def test_keys_are_unique_over_rooms() -> None:
    assert not repeated(SOURCES)
    assert repeated([Source(PurePosixPath(room, "kd.py"), "") for room in ("vision", "graph")])


def cycle(sources: list[Source]) -> list[str]:
    """A circle of core's modules that import each other when they are imported."""
    modules = {
        ".".join(("limbeck", *source.path.with_suffix("").parts)): source for source in sources
    }
    graph = {
        name: {
            other
            for _, imported, early in source.imports()
            for other in modules
            if early and f"{imported}.".startswith(f"{other}.") and other != name
        }
        for name, source in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_core_imports_itself_downward_only() -> None:
    assert not cycle([source for source in SOURCES if source.area == "core"])
    up, down = PurePosixPath("core/up.py"), PurePosixPath("core/down.py")
    back = "from .up import g"
    assert cycle([Source(up, "from limbeck.core import down"), Source(down, back)])
    late = f"def f():\n    {back}"
    assert not cycle([Source(up, "from limbeck.core import down"), Source(down, late)])


TORCHLESS = [
    ".".join(("limbeck", *source.path.with_suffix("").parts)).removesuffix(".__init__")
    for source in SOURCES
    if source.area in ("top", "cli", "report") and source.path.name != "__main__.py"
]


@pytest.mark.parametrize("module", TORCHLESS)
def test_listing_methods_loads_no_torch(module: str) -> None:
    heavy = "{'torch', 'numpy'} & set(sys.modules)"
    ask = f"import sys, {module}; sys.exit(', '.join({heavy}) or 0)"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr


# A path that only some machine has; the same word within a longer path or an address is none.
MACHINE = re.compile(r"(?<![\w.~/-])/(?:work|tmp|home|root|Users)\b")


def test_no_path_of_a_machine_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: nothing says which files are the project's")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    faults = []
    for name in filter(None, listed.split("\0")):
        text = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        for line, words in enumerate(text.decode("utf-8", "ignore").splitlines(), 1):
            if MACHINE.search(words):
                faults.append(f"{name}:{line}: {words.strip()[:80]}")
    assert not faults


def test_a_path_of_a_machine_is_noticed() -> None:
    assert MACHINE.search("out = '/" + "tmp/x'")
    assert MACHINE.search("see /" + "work")
    assert not MACHINE.search("docs/work/x, https://host/tmp/x, $HOME/root, /tmpfs, this/home")


# --- each rule can fail, and does not fail what is right -----------------------------------------

GOOD = 'CARD = Card(key="new")\nclass New:\n    card = CARD\n'
WRONG = [
    ("imports", "core/taps.py", "import timm"),
    ("imports", "core/taps.py", "from limbeck.bench import runner"),
    ("imports", "core/taps.py", "def f():\n    from limbeck.vision import kd"),
    ("imports", "vision/new.py", "from limbeck.graph._kit import f"),
    ("imports", "vision/new.py", "from limbeck.vision.kd import kd_loss"),
    ("imports", "vision/new.py", "from . import kd"),
    ("imports", "vision/new.py", "from limbeck.bench.worlds import digits"),
    ("imports", "vision/new.py", "try:\n    import torchvision\nexcept ImportError:\n    pass"),
    ("imports", "vision/new.py", "import rich"),
    ("imports", "vision/_kit.py", "from .kd import KD"),
    ("imports", "bench/worlds/digits.py", "from limbeck import registry"),
    ("imports", "bench/runner.py", "from limbeck.vision.kd import KD"),
    ("imports", "check/runs.py", "import limbeck.vision.kd"),
    ("imports", "report/page.py", "def f():\n    import torch"),
    ("imports", "report/page.py", "from limbeck.bench import runner"),
    ("imports", "cli/run.py", "import tyro"),
    ("imports", "cli/run.py", "from limbeck.core import Task"),
    ("imports", "__init__.py", "from limbeck.core.task import Task"),
    ("loop", "vision/new.py", "def f(loss):\n    loss.backward()"),
    ("loop", "vision/new.py", "def f(optimizer):\n    optimizer.step()"),
    ("loop", "vision/_kit.py", "def f(scaler, a):\n    scaler.step(a)"),
    ("loop", "vision/new.py", "def f(w):\n    return torch.optim.SGD(w)"),
    ("loop", "vision/new.py", "from torch.optim import SGD"),
    ("randomness", "vision/new.py", "def f():\n    torch.manual_seed(0)"),
    ("randomness", "vision/new.py", "def f():\n    return torch.Generator()"),
    ("randomness", "vision/new.py", "def f():\n    return torch.randn(3)"),
    ("randomness", "vision/_kit.py", "def f(x):\n    x.normal_()"),
    ("randomness", "vision/new.py", "def f(x):\n    nn.init.trunc_normal_(x)"),
    ("randomness", "vision/new.py", "from torch import randperm"),
    ("randomness", "vision/new.py", "import random"),
    ("randomness", "vision/new.py", "def f():\n    return np.random.default_rng(0)"),
    ("module_level", "vision/new.py", "print(1)"),
    ("module_level", "vision/new.py", "table = {}"),
    ("module_level", "vision/new.py", "BANK = torch.zeros(9)"),
    ("size", "vision/new.py", "\n" * 251),
    ("size", "core/engine.py", "\n" * 301),
    ("card", "vision/new.py", "def f():\n    pass"),
    ("card", "vision/new.py", GOOD.replace('"new"', '"other"')),
    ("card", "vision/new.py", GOOD.replace('"new"', "NAME")),
    ("card", "vision/new.py", GOOD.replace("    card = CARD", "    pass")),
    ("card", "vision/NewOne.py", GOOD.replace('"new"', '"NewOne"')),
    ("card", "vision/new/__init__.py", ""),
    ("test_file", "vision/never_written.py", ""),
]
RIGHT = [
    ("imports", "core/taps.py", "import torch\nfrom limbeck.errors import x\nfrom . import card"),
    ("imports", "core/data.py", "def f():\n    import datasets"),
    ("imports", "vision/new.py", "from limbeck.vision._kit import f\ndef g():\n    import timm"),
    ("imports", "vision/new/__init__.py", "from limbeck.vision.new.prune import f"),
    ("imports", "vision/new/__init__.py", "from . import prune\nfrom .._kit import f"),
    ("imports", "bench/worlds/digits.py", "from sklearn.datasets import load_digits"),
    ("imports", "bench/runner.py", "from limbeck import registry, run"),
    ("imports", "cli/run.py", "import sys\ndef f():\n    from limbeck.core.run import run"),
    ("imports", "__init__.py", "if TYPE_CHECKING:\n    from limbeck.core.task import Task"),
    ("loop", "control/new.py", "def f(env, a):\n    return env.step(a)"),
    ("loop", "vision/new.py", "def f(x):\n    return torch.autograd.grad(x, x)"),
    ("loop", "core/engine.py", "def f(loss):\n    loss.backward()"),
    ("randomness", "vision/new.py", "def f(rng):\n    return torch.rand(3, generator=rng('a'))"),
    ("randomness", "vision/new.py", "def f(rng, i):\n    return rng('a', i).randn(3)"),
    ("randomness", "core/rng.py", "def f():\n    return torch.Generator()"),
    ("module_level", "vision/new.py", '"""Doc."""\nimport math\nFLOOR = math.log(2)\n' + GOOD),
    ("module_level", "vision/_kit.py", "table = {}"),
    ("size", "core/engine.py", "\n" * 300),
    ("card", "vision/new.py", GOOD),
    ("card", "vision/new/prune.py", ""),
    ("card", "vision/_kit.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), WRONG)
def test_rule_fails_what_is_wrong(rule: str, path: str, text: str) -> None:
    assert list(RULES[rule](Source(PurePosixPath(path), text)))


@pytest.mark.parametrize(("rule", "path", "text"), RIGHT)
def test_rule_passes_what_is_right(rule: str, path: str, text: str) -> None:
    assert not list(RULES[rule](Source(PurePosixPath(path), text)))


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _, _ in WRONG} == set(RULES)


def test_exemptions_are_strict_both_ways() -> None:
    def left(exempt: dict[str, str], text: str = "") -> list[str]:
        source = Source(PurePosixPath("vision/_kit.py"), f"EXEMPT = {exempt!r}\n{text}")
        return complaints(source)

    draws = "def f():\n    return torch.rand(3)\n"
    assert not left({"tree:randomness": "a reason", "resume": "another suite's"}, draws)
    assert "randomness: " in left({}, draws)[0]
    assert "needed no longer" in left({"tree:randomness": "a reason"})[0]
    assert "no reason" in left({"tree:randomness": " "}, draws)[0]
    assert "names no rule" in left({"tree:luck": "a reason"})[0]
