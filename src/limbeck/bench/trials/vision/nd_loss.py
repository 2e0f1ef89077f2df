"""nd_loss: longer features that point to the teacher's class means improve KD."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A loss on the norm and direction of features, added to KD, beats KD alone.",
        world="digits",
        settings={
            "nd_loss": (
                "nd_loss()",
                "nd_loss(nd=0.5)",
                "nd_loss(of='kd(tau=2)')",
                "nd_loss(of='kd(label=0.5, kd=0.5)')",
            ),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
