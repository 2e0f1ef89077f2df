"""rkd: relations of samples teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching distances and angles between samples beats learning from labels alone.",
        world="digits",
        settings={"rkd": ("rkd()", "rkd(rate=0.5)", "rkd(distance=5, angle=10)", "rkd(kd=0.9)")},
        against=("labels",),
        beside=("kd",),
    ),
)
