"""lskd: standardised logits make KD better."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Standardising each sample's logits before the softmax makes KD better.",
        world="digits",
        settings={
            "lskd": (
                "lskd()",
                "lskd(of='kd(label=0.1, kd=3.0, tau=2.0)')",
                "lskd(of='kd(label=0.1, kd=0.9, tau=1.0)')",
                "lskd(lr_factor=0.5)",
            ),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
