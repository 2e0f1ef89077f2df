"""funmatch: the same view for both sides, mixed, and patience."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="With a long schedule, the same mixed view for both sides beats a fixed teacher.",
        world="digits",
        settings={
            "funmatch": (
                "funmatch(crop='none', flip=False)",
                "funmatch(crop='none', flip=False, tau=2)",
                "funmatch(crop='none', flip=False, lr_factor=0.5)",
                "funmatch(crop='mild', flip=False)",
            ),
            "fixed": (
                "funmatch(teaching='fixed', crop='none', flip=False)",
                "funmatch(teaching='fixed', crop='none', flip=False, tau=2)",
                "funmatch(teaching='fixed', crop='none', flip=False, lr_factor=0.5)",
                "funmatch(teaching='fixed', crop='mild', flip=False)",
            ),
        },
        against=("fixed",),
        seeds=12,
        budget={"epochs": 150},
        why="Digits must not be mirrored, and 8x8 pixels leave nothing of the paper's small crops.",
    ),
)
