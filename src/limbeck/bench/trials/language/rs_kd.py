"""rs_kd: a few sampled entries teach what all of them do."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Twelve sampled entries of the teacher's distribution teach more than its top ones.",
        world="markov(concentration=1.0)",
        settings={
            "rs_kd": (
                "rs_kd(draws=12)",
                "rs_kd(draws=12, lr_factor=0.5)",
                "rs_kd(draws=12, lr_factor=2)",
                "rs_kd(draws=12, lr_factor=4)",
            ),
            "top k": (
                "rs_kd(estimate='topk', k=12)",
                "rs_kd(estimate='topk', k=12, lr_factor=0.5)",
                "rs_kd(estimate='topk', k=12, lr_factor=0.25)",
                "rs_kd(estimate='topk', k=12, lr_factor=0.125)",
            ),
            "whole": ("gkd(own=0.0, divergence='forward_kl')",),
            "labels alone": (
                "labels()",
                "labels(lr_factor=0.5)",
                "labels(lr_factor=2)",
                "labels(lr_factor=4)",
            ),
        },
        against=("top k",),
        beside=("whole", "labels alone"),
        better="lower",
    ),
)
