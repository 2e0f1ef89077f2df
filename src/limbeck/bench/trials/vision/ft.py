"""ft: the teacher's last map in a paraphraser's words."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student that follows a trained paraphraser of its teacher's map is better than "
        "with labels alone, and than with a paraphraser that was not trained.",
        world="digits(n=200)",
        settings={
            "ft": ("ft()", "ft(ft=50)", "ft(ft=5)", "ft(ft=50, rate=0.1)"),
            "untrained": ("ft(rec=0, ft=50)", "ft(rec=0, ft=5)"),
        },
        against=("labels", "untrained"),
        beside=("kd",),
    ),
)
