"""dot: momentum apart for each loss favours the distillation term."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="More momentum for the distillation term and less for the label term beats plain KD.",
        world="digits",
        settings={
            "dot": (
                "dot()",
                "dot(of='kd(tau=2)')",
                "dot(of='kd(label=0.5, kd=0.5)')",
                "dot(lr_factor=0.5)",
            ),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
