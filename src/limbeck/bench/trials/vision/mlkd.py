"""mlkd: several levels of alignment and several temperatures beat one of each."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Aligning samples, batch and classes at several temperatures beats plain KD.",
        world="digits",
        settings={
            "mlkd": (
                "mlkd()",
                "mlkd(classes=0.01, lr_factor=0.5)",
                "mlkd(instance=0.2, samples=0.2, classes=0.01)",
                "mlkd(views='one', instance=0.2, samples=0.2, classes=0.01)",
            ),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
