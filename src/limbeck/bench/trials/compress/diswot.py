"""diswot: the score of untrained students tells which will learn well from the teacher."""

from typing import Any

from limbeck.bench.trial import Trial


def rank(task: Any, result: Any, on: str) -> float:
    """Spearman's correlation of scores with the accuracies of all candidates, taught by KD.

    Each is taught with the seed of the run, for a fifth of the world's epochs; one score for all
    ranks nothing and has 0.
    """
    from dataclasses import replace

    from scipy.stats import spearmanr

    from limbeck import registry
    from limbeck.core.data import Table
    from limbeck.core.evaluate import measure
    from limbeck.runs.door import run

    names = sorted(result.scores)
    if len(set(result.scores.values())) == 1:
        return 0.0
    budget = replace(task.budget, epochs=task.budget.epochs / 5)
    table, found = Table(task.set(on), on), []
    for name in names:
        one = replace(task, student=task.data["space"][name], budget=budget)
        taught = run(registry.make("kd"), one, seed=result.facts["seed"])
        assert taught.model is not None
        found.append(measure(taught.model, table, task.score))
    return float(spearmanr([result.scores[name] for name in names], found).statistic)


TRIALS = (
    Trial(
        claim="The likeness of an untrained student to its untrained teacher ranks students by "
        "what they learn from KD.",
        world="digits",
        settings={
            "diswot": (
                "diswot(train=False)",
                "diswot(train=False, inits=16)",
                "diswot(train=False, relation=64.0)",
                "diswot(train=False, inits=16, relation=64.0)",
            ),
            "no score": ("diswot(train=False, semantic=0.0, relation=0.0)",),
        },
        against=("no score",),
        measure="rank",
        seeds=12,
        why="Twelve candidates are taught for 20 epochs each. The paper also compares with other "
        "scores that need no training, which are no methods here; a choice without a score has "
        "the correlation 0.",
    ),
)
