"""minillm: the reverse KL of whole texts, by policy gradient."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Minimising the reverse KL of whole texts makes them likelier than forward KL does.",
        world="markov(order=2)",
        settings={
            "minillm": (
                "minillm(lr_factor=4)",
                "minillm(lr_factor=8)",
                "minillm(lr_factor=16)",
            ),
            "forward KL": (
                "gkd(own=0.0, divergence='forward_kl', lr_factor=8)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=16)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=32)",
            ),
        },
        against=("forward KL",),
        measure="reverse_kl",
        better="lower",
        seeds=12,
        budget={"steps": 300},
        why="The world's rate is that of labels; every divergence wants a larger one here.",
    ),
)
