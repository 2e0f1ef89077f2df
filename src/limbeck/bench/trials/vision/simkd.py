"""simkd: the teacher's classifier on the student's projected map."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student whose map is brought to the teacher's and answered by the teacher's "
        "classifier, without labels, is better than one of KD.",
        world="digits",
        settings={
            "simkd": (
                "simkd()",
                "simkd(align=10.0)",
                "simkd(align=100.0)",
                "simkd(lr_factor=2.0)",
            ),
        },
        against=("labels", "kd"),
    ),
)
