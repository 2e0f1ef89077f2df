"""The sections of a run's page on language models: how well they predict, and what they write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limbeck.report.page import Html, note, section, table, text
from limbeck.report.reading import Told
from limbeck.report.words import bytes_of, number, percent

__all__ = ["prediction", "written"]

SIDES = ("teacher", "before", "student", "baseline")
CALLED = {
    "teacher": "teacher",
    "before": "student before",
    "student": "student after",
    "baseline": "alone",
}
EXAMPLES = 4
_LONG = 400  # characters of a text that are shown


def _rows(told: Told, tags: bool) -> Iterator[tuple[str, list[str]]]:
    """Each number's name and its words for the sides; with its standard error over texts."""
    for key, name in (
        ("bits_per_byte", "bits per byte"),
        ("nll", f"negative log-likelihood of a {'tag' if tags else 'token'}"),
    ):
        yield name, [_with_error(told, "sides", side, key) for side in SIDES]
    if not tags:
        yield "perplexity", [number(told.each("sides", side, "perplexity")) for side in SIDES]
    right = [told.mean("sides", side, "top1") for side in SIDES]
    likeliest = "likeliest tag is the word's" if tags else "likeliest token is the next one"
    yield likeliest, ["" if r is None else percent(r) for r in right]
    yield "KL divergence from the teacher", [_with_error(told, "agreement", s, "kl") for s in SIDES]
    same = [told.mean("agreement", side, "top1") for side in SIDES]
    yield (
        f"same likeliest {'tag' if tags else 'token'} as the teacher",
        ["" if r is None else percent(r) for r in same],
    )
    yield "ROUGE-L of what it writes", [_with_error(told, "sides", s, "rouge_l") for s in SIDES]
    speeds = [told.mean("sides", side, "tokens_per_second") for side in SIDES]
    yield "tokens written in a second", ["" if v is None else f"{v:,.0f}" for v in speeds]
    texts = len(told.first.at("written") or ())
    for key, name in (
        ("bytes", "memory of its weights"),
        ("cache_bytes", f"memory of its cache, writing {texts} texts at once"),
    ):
        sizes = [told.mean("sides", side, key) for side in SIDES]
        yield name, ["" if size is None else bytes_of(size) for size in sizes]


def _with_error(told: Told, *path: str) -> str:
    mean, error = told.mean(*path), told.mean(*path[:-1], f"{path[-1]}_se")
    if mean is None:
        return ""
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.2g}"


def prediction(told: Told) -> Html:
    """What the language models of a run are like, in one table."""
    tags = told.first.at("kind") == "tags"
    if not tags and told.first.at("kind") != "text":
        return Html("")
    rows = [(name, cells) for name, cells in _rows(told, tags) if any(cells)]
    used = [i for i in range(len(SIDES)) if any(cells[i] for _, cells in rows)]
    head = ["", *(CALLED[SIDES[i]] for i in used)]
    body = [(name, *(cells[i] for i in used)) for name, cells in rows]
    tokens, where = told.first.at("tokens"), told.first.at("set")
    caption = f"On {tokens:,} tokens of the {where} set; ± is the standard error over its texts."
    if tags:
        caption = f"On {tokens:,} words of the {where} set; ± is the standard error over its rows."
        about = "Negative log-likelihood and KL divergence, in nats a word: less is better."
        return section("As taggers of words", table(head, body, caption), note(about))
    about = "Bits per byte, KL divergence and perplexity: less is better. Logarithms are natural."
    return section("As language models", table(head, body, caption), note(about))


def written(told: Told) -> Html:
    """What the sides wrote to the same prompts."""
    found: list[dict[str, Any]] = told.first.at("written") or []
    if not found:
        return Html("")
    cards = "\n".join(_card(each) for each in found[:EXAMPLES])
    about = "Each side is given the same words and always takes its likeliest token."
    return section("What they write", Html(cards), note(about))


def _card(each: dict[str, Any]) -> str:
    rows = [("given", each["prompt"]), ("the text", each["text"])]
    rows += [(CALLED[side], each[side]) for side in SIDES if side in each]
    told = "".join(f"<dt>{text(name)}</dt><dd>{text(_cut(said))}</dd>" for name, said in rows)
    return f"<dl>{told}</dl>"


def _cut(said: str) -> str:
    return said if len(said) <= _LONG else f"{said[:_LONG]} ..."
