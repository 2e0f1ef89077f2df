"""at: the places that the teacher attends to teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching the teacher's attention maps beats learning from labels alone.",
        world="digits",
        settings={
            "at": (
                "at()",
                "at(at=3)",
                "at(at=0.1, form='norm')",
                "at(at=1, form='norm')",
            ),
        },
        against=("labels",),
        beside=("kd",),
    ),
)
