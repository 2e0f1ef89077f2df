"""rkd: relations of samples teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching distances and angles between samples beats learning from labels alone.",
        world="digits",
        settings={
            "rkd": (
                "rkd()",
                "rkd(distance=5, angle=10)",
                "rkd(distance=1, angle=2)",
                "rkd(lr_factor=0.5)",
            ),
        },
        against=("labels",),
        beside=("kd",),
    ),
)
