"""cc: correlations between samples add to the soft targets of each."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching correlations between samples beside soft targets beats soft targets alone.",
        world="digits",
        settings={"cc": ("cc()", "cc(cc=1)", "cc(label=0.1)", "cc(sampler='class')")},
        against=("kd",),
        beside=("labels",),
    ),
)
