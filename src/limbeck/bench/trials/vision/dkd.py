"""dkd: the non-target classes, weighted apart, teach more."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Weighting the non-target classes apart from the target class beats plain KD.",
        world="digits",
        settings={"dkd": ("dkd()", "dkd(nckd=2)", "dkd(nckd=4, tau=2)", "dkd(nckd=1)")},
        against=("kd",),
        beside=("labels",),
    ),
)
