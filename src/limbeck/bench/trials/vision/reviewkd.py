"""reviewkd: deep stages of the student help to match shallow ones of the teacher."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student that reviews the teacher's earlier stages with its later ones is better "
        "than one of labels alone, and than one that matches stage by stage.",
        world="digits",
        settings={
            "reviewkd": (
                "reviewkd()",
                "reviewkd(review=1.0)",
                "reviewkd(review=0.3)",
                "reviewkd(review=1.0, lr_factor=0.5)",
            ),
            "stage by stage": (
                "reviewkd(fuse='none')",
                "reviewkd(fuse='none', review=1.0)",
                "reviewkd(fuse='none', review=0.3)",
                "reviewkd(fuse='none', review=1.0, lr_factor=0.5)",
            ),
        },
        against=("labels", "stage by stage"),
        beside=("kd",),
    ),
)
