"""distilbert: a student that begins with the teacher's layers."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Begun with its teacher's layers, a student does better than one drawn at random.",
        world="masklm",
        settings={
            "distilbert": ("distilbert()", "distilbert(lr_factor=0.5)"),
            "at random": ("distilbert(init=False)", "distilbert(init=False, lr_factor=0.5)"),
            "labels alone": (
                "labels()",
                "labels(lr_factor=0.5)",
                "labels(lr_factor=2)",
                "labels(lr_factor=4)",
            ),
        },
        against=("at random",),
        beside=("labels alone",),
        better="lower",
        seeds=12,
        budget={"steps": 200},
    ),
)
