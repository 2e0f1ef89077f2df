"""distillm: a skewed divergence is steadier than the forward one."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Skewed KL with replayed own texts beats the forward KL and the JSD on given texts.",
        world="markov(order=2)",
        settings={
            "distillm": (
                "distillm(lr_factor=8)",
                "distillm(lr_factor=16)",
                "distillm(divergence='skew_reverse_kl', lr_factor=8)",
                "distillm(divergence='skew_reverse_kl', lr_factor=16)",
            ),
            "forward KL": (
                "gkd(own=0.0, divergence='forward_kl', lr_factor=4)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=8)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=16)",
                "gkd(own=0.0, divergence='forward_kl', lr_factor=32)",
            ),
            "JSD": (
                "gkd(own=0.0, lr_factor=4)",
                "gkd(own=0.0, lr_factor=8)",
                "gkd(own=0.0, lr_factor=16)",
                "gkd(own=0.0, lr_factor=32)",
            ),
        },
        against=("forward KL", "JSD"),
        measure="reverse_kl",
        better="lower",
        budget={"steps": 300},
        why="The world's rate is that of labels; every divergence wants a larger one here.",
    ),
)
