"""ban: a student taught by its twin outdoes it."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A network taught by one of its own kind does better than that one did on labels.",
        world="digits(teacher='none')",
        settings={
            "ban": (
                "ban()",
                "ban(generations=1)",
                "ban(label=1.0)",
                "ban(lr_factor=0.5)",
            ),
            "labels as long": ("labels(epochs=400)", "labels(epochs=400, lr_factor=0.5)"),
        },
        against=("labels",),
        beside=("labels as long",),
        seeds=12,
        why="Three generations take four times the steps; so labels are also shown with as many.",
    ),
)
