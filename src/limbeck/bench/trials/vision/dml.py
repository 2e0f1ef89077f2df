"""dml: two untrained students that teach each other."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student that learns beside an untrained peer does better than one alone.",
        world="digits(teacher='none')",
        settings={
            "dml": ("dml()", "dml(cohort=4)", "dml(lr_factor=0.5)", "dml(lr_factor=2)"),
            "dml, together": ("dml(update_in='together')", "dml(update_in='together', cohort=4)"),
        },
        against=("labels",),
        beside=("dml, together",),
        seeds=12,
    ),
)
