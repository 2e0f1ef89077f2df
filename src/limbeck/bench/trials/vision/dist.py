"""dist: relations of probabilities teach what matching them does, and more."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Relating the student's probabilities to the teacher's beats matching them.",
        world="digits",
        settings={
            "dist": ("dist()", "dist(tau=4)", "dist(inter=0.5, intra=0.5, tau=4)", "dist(tau=2)"),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
