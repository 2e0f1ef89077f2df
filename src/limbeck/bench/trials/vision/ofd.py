"""ofd: the teacher's features before ReLU teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching features before ReLU, where they matter, beats learning from labels alone.",
        world="digits",
        settings={"ofd": ("ofd()", "ofd(ofd=0.0001)", "ofd(ofd=0.01)", "ofd(lr_factor=0.5)")},
        against=("labels",),
        beside=("kd",),
    ),
)
