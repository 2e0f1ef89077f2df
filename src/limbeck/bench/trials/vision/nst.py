"""nst: the patterns that the teacher's neurons like teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching which patterns of places neurons like beats learning from labels alone.",
        world="digits",
        settings={
            "nst": (
                "nst()",
                "nst(nst=5)",
                "nst(nst=1)",
                "nst(nst=1, kernel='linear')",
            ),
        },
        against=("labels",),
        beside=("kd",),
    ),
)
