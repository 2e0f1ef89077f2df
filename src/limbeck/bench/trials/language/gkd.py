"""gkd: a student learns most from its own texts."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student's texts are likelier when it is taught on them than on the data's.",
        world="markov(order=2)",
        settings={
            "gkd": (
                "gkd(own=0.5, lr_factor=8)",
                "gkd(own=0.5, lr_factor=16)",
                "gkd(own=1.0, lr_factor=8)",
                "gkd(own=1.0, lr_factor=16)",
            ),
            "data's": (
                "gkd(own=0.0, lr_factor=8)",
                "gkd(own=0.0, lr_factor=16)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=8)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=16)",
            ),
        },
        against=("data's",),
        measure="reverse_kl",
        better="lower",
        seeds=12,
        budget={"steps": 300},
        why="The world's rate is that of labels; every divergence wants a larger one here.",
    ),
)
