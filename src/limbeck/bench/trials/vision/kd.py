"""kd: soft targets teach a small student more than the labels do."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A small student learns more from labels and soft targets than from labels alone.",
        world="digits",
        settings={},
        against=("labels",),
    ),
)
