"""ab: a student that starts from the teacher's boundaries learns its labels better."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Starting from the teacher's activation boundaries beats learning from labels alone.",
        world="digits",
        settings={
            "ab": ("ab()", "ab(share=0.5)", "ab(ab=0.0003)", "ab(lr_factor=0.5)"),
            "labels longer": ("labels(epochs=150)",),
        },
        against=("labels",),
        beside=("labels longer", "kd"),
        why="The first stage is beside the budget, half of it at most; so labels alone are also "
        "shown with that many more epochs.",
    ),
)
