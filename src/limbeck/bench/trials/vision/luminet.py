"""luminet: statistics over the batch rescale each class's logits."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Logits that are standardised for each class over the batch make KD better.",
        world="digits",
        settings={
            "luminet": (
                "luminet()",
                "luminet(perception=100.0)",
                "luminet(perception=10.0)",
                "luminet(perception=100.0, lr_factor=0.5)",
            ),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
