"""seqkd: the teacher's best texts are easier to learn than people's."""

from typing import Any

from limbeck.bench.trial import Trial


def greedy_bleu(task: Any, result: Any, on: str) -> float:
    """BLEU of the likeliest word each time, against all right translations."""
    return float(task.data["bleu"](result.model, beams=1, on=on))


TRIALS = (
    Trial(
        claim="Taught on its teacher's texts, a student's likeliest texts are right more often.",
        world="transduce",
        settings={
            "seqkd": (
                "seqkd(inter=0.0)",
                "seqkd(inter=0.0, lr_factor=1.5)",
                "seqkd(inter=0.0, lr_factor=2)",
            ),
            "word": (
                "seqkd(first='data', word=True, inter=0.0)",
                "seqkd(first='data', word=True, inter=0.0, lr_factor=1.5)",
                "seqkd(first='data', word=True, inter=0.0, lr_factor=2)",
            ),
            "labels alone": (
                "labels()",
                "labels(lr_factor=1.5)",
                "labels(lr_factor=2)",
            ),
        },
        against=("labels alone", "word"),
        measure="greedy_bleu",
        seeds=12,
        budget={"steps": 800},
        why="Of 1500 sentences, instead of 4000, the teacher knows every text by heart and writes "
        "it again, so that its texts are the data's.",
    ),
)
