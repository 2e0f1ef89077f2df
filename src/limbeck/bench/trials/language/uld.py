"""uld: sorted probabilities beside the next tokens."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching the teacher's sorted probabilities beside next tokens beats next tokens "
        "alone.",
        world="markov(concentration=1.0)",
        settings={
            "uld": ("uld()", "uld(uld=0.3)", "uld(uld=0.1)", "uld(uld=0.3, lr_factor=2)"),
            "labels alone": (
                "labels()",
                "labels(lr_factor=0.5)",
                "labels(lr_factor=2)",
                "labels(lr_factor=4)",
            ),
        },
        against=("labels alone",),
        better="lower",
        why="Both sides read the same symbols, of which the loss knows nothing. Students begin at "
        "random, the paper's from pretrained weights: who does not know yet which token is likely "
        "is asked here to be as sure as the teacher.",
    ),
)
