"""What is known of a method's claim, as pieces of its page: verdict, arms, differences, history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.registry import PACKAGE, Entry
from limbeck.report.differences import differences_plot
from limbeck.report.page import Html, figure, join, note, text
from limbeck.report.trials import differences
from limbeck.report.words import wins

__all__ = ["Code", "badge", "trial"]

_MEASURES = {"score": "the world's score", "agreement": "the share of the teacher's answers"}


@dataclass(frozen=True)
class Code:
    """Lines of a language, which each kind of page sets in its own way."""

    language: str
    text: str


def badge(word: str) -> Html:
    """A status in its colour."""
    return Html(f'<span class="status {text(word.replace(" ", "-"))}">{text(word)}</span>')


def trial(entry: Entry, definitions: Sequence[Mapping[str, Any]]) -> Iterator[Html | Code]:
    """The pieces on a method's trial.

    Args:
        entry: the method.
        definitions: those that were measured, the one in force last.
    """
    key = entry.card.key
    if not definitions:
        yield note(_untried(entry))
        return
    *earlier, now = definitions
    yield _claim(now)
    if earlier:
        yield _definitions(definitions)
    yield _measured(key, now)
    same = "" if now["stale"] else ", which gives the same numbers"
    yield Html(f"<p>One seed of every arm again{same}:</p>")
    yield Code("bash", f"limbeck bench {key} --again {now['seeds'][0]}")
    yield from _age(key, now)
    for old in earlier:
        summary = f"Definition {old['number']}: {old['verdict']}"
        command = text(f"limbeck bench {key} --again {old['seeds'][0]}")
        again = Html(f"<p>One seed of every arm again: <code>{command}</code></p>")
        inner = join([_claim(old), _measured(key, old), again, *_age(key, old)])
        yield Html(
            f'<details class="trial">\n<summary>{text(summary)}</summary>\n{inner}\n</details>'
        )


def _untried(entry: Entry) -> str:
    place = PACKAGE / "bench" / "trials" / entry.room / f"{entry.card.key}.py"
    if place.is_file():
        return "The trial of its claim is defined and has not run yet."
    return "No trial of its claim is defined yet: its mathematics is tested, no more is known."


def _definitions(definitions: Sequence[Mapping[str, Any]]) -> Html:
    """All of them in a few words, in their order."""
    lines = "\n".join(
        f'<li value="{told["number"]}">{badge(told["verdict"])} '
        f"{text(told['why'] or told['claim'])}</li>"
        for told in definitions
    )
    return Html(
        "<p>The claim was defined more than once, each time with fresh seeds. The last definition "
        f"holds; those before it stand below.</p>\n<ol>\n{lines}\n</ol>"
    )


def _claim(told: Mapping[str, Any]) -> Html:
    return Html(f'<p class="claim">{badge(told["verdict"])} {text(told["claim"])}</p>')


def _measured(key: str, told: Mapping[str, Any]) -> Html:
    """World, arms and differences of a definition."""
    first, count = told["seeds"]
    name = told["measure"]
    measure = _MEASURES.get(name, name.replace("_", " "))
    budget = "".join(f", {value:g} {word}" for word, value in told["budget"].items())
    about = Html(
        f"<p>Measured is {text(measure)} on <code>{text(told['world'])}</code>{text(budget)}, on "
        f"{count} seeds from {first} on; {text(told['better'])} is better. Each arm has the best "
        "of its settings, chosen on <code>valid</code> with other seeds.</p>"
    )
    why = [Html(f'<p class="why">{text(told["why"])}</p>')] if told["why"] else []
    plots = "\n".join(_plot(key, told, arm) for arm in told["arms"] if arm != key)
    caption = note(
        "A dot is one seed, in which both arms have the same start and data; the bar is the 95 % "
        "interval of the mean difference. Right of zero the claim holds."
    )
    return join([about, *why, _arms(key, told), Html(f'<div class="pairs">\n{plots}\n</div>'),
                 caption, _facts(told)])  # fmt: skip


def _arms(key: str, told: Mapping[str, Any]) -> Html:
    rows = []
    for arm, facts in told["arms"].items():
        role = "the method" if arm == key else "decides" if arm in told["against"] else "beside"
        named = "" if facts["setting"].partition("(")[0] == arm else f"{arm}, "
        rows.append(
            f'<tr><th scope="row"><code>{text(facts["setting"])}</code>'
            f"<span>{text(named)}{role}</span></th>"
            f'<td class="n">{facts["mean"]:.4f}</td><td class="n">{facts["steps"]:,}</td>'
            f'<td class="n">{facts["seconds"]:.1f} s</td></tr>'
        )
    head = '<th scope="col">arm</th>' + "".join(
        f'<th scope="col" class="n">{word}</th>' for word in ("mean", "steps", "a seed")
    )
    body = "\n".join(rows)
    return Html(
        '<div class="scroll" role="region" tabindex="0" aria-label="arms">\n<table class="arms">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>"
    )


def _plot(key: str, told: Mapping[str, Any], arm: str) -> str:
    values = differences(told, key, arm)
    apart = told["arms"][arm]["difference"]
    title = f"{key} against {arm}" + ("" if arm in told["against"] else " (beside)")
    caption = (
        f"{apart['mean']:+.4f}, 95 % interval {apart['low']:+.4f} to {apart['high']:+.4f}; "
        f"better in {wins(values, 'seeds')}"
    )
    drawn = differences_plot(values, apart, (arm, key), f"Differences, {title}")
    return figure(drawn, caption, title)


def _facts(told: Mapping[str, Any]) -> Html:
    versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items())
    return note(
        f"Definition {told['number']}, hash {told['hash']}; {told['seconds']:,.0f} seconds of "
        f"processor time with its tuning; {versions}."
    )


def _age(key: str, told: Mapping[str, Any]) -> Iterator[Html]:
    """What has changed since the rows were written."""
    if told["stale"]:
        yield Html(
            '<p class="stale">The code has changed since; <code>limbeck bench '
            f"{text(key)} --changed</code> measures it anew.</p>"
        )
    if told["core"] != [1]:
        epochs = " and ".join(map(str, told["core"]))
        yield note(
            f"Measured in core epoch {epochs}: the engine gave other bits than in those before."
        )
