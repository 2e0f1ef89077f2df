"""sp: similarities of samples teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching which samples are alike beats learning from labels alone.",
        world="digits",
        settings={"sp": ("sp()", "sp(sp=300)", "sp(sp=30)", "sp(sp=300, lr_factor=0.5)")},
        against=("labels",),
        beside=("kd",),
    ),
)
