"""dhkd: a head of its own keeps the logit loss from hurting the classifier."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A second head for the binary logit loss beats KD and the same loss on one head.",
        world="digits",
        settings={
            "dhkd": ("dhkd()", "dhkd(bkl=0.3)", "dhkd(head='linear')", "dhkd(tau=4)"),
            "one head": (
                "dhkd(head='none')",
                "dhkd(head='none', bkl=0.3)",
                "dhkd(head='none', bkl=0.1)",
                "dhkd(head='none', tau=4)",
            ),
        },
        against=("kd", "one head"),
        beside=("labels",),
    ),
)
