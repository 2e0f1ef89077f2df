"""ickd: correlations between channels add to soft targets and labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching correlations of channels beside soft targets beats soft targets alone.",
        world="digits",
        settings={"ickd": ("ickd()", "ickd(ickd=25)", "ickd(ickd=0.25)", "ickd(lr_factor=0.5)")},
        against=("kd",),
        beside=("labels",),
    ),
)
