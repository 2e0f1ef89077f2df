"""vid: what a student's layers tell of the teacher's, beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Layers that tell the teacher's, with learned variances, beat learning from labels "
        "alone, most where labels are few.",
        world="digits(n=200)",
        settings={
            "vid": ("vid()", "vid(variance=1)", "vid(vid=3, variance=1)", "vid(vid=3)"),
            "variance fixed": (
                "vid(fixed=True, variance=1)",
                "vid(vid=3, fixed=True, variance=1)",
            ),
        },
        against=("labels",),
        beside=("kd", "variance fixed"),
    ),
)
