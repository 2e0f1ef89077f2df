"""mekd: logits compared as a generator's pictures teach more than their divergence alone."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="On made pictures, aligning logits by way of the generator beats KD on the same "
        "pictures.",
        world="digits",
        settings={
            "mekd": (
                "mekd(rate=0.002, lr_factor=0.25)",
                "mekd(rate=0.002, align=10.0, lr_factor=0.25)",
            ),
            "kd on made pictures": (
                "mekd(rate=0.002, align=0.0, lr_factor=0.25)",
                "mekd(rate=0.002, align=0.0, kl=10.0, lr_factor=0.25)",
            ),
        },
        against=("kd on made pictures",),
        seeds=12,
        budget={"steps": 300, "batch": 16},
    ),
)
