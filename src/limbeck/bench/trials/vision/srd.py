"""srd: a linear projector, standardised embeddings and a soft maximum of their errors."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Standardised embeddings, a linear projector and the logarithm of summed fourth "
        "powers beside KD teach better than KD alone.",
        world="digits",
        settings={
            "srd": (
                "srd()",
                "srd(srd=0.2)",
                "srd(srd=0.2, tau=4)",
                "srd(lr_factor=0.5)",
            ),
        },
        against=("labels", "kd"),
    ),
)
