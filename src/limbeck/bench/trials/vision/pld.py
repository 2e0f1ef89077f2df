"""pld: the teacher's ranking is a better target than its probabilities."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A Plackett-Luce loss on the teacher's ranking, which needs no weights, beats KD.",
        world="digits",
        settings={"pld": ("pld()", "pld(tau=2)", "pld(tau=4)", "pld(lr_factor=0.5)")},
        against=("kd",),
        beside=("labels",),
    ),
    Trial(
        claim="A Plackett-Luce loss on the teacher's ranking, which needs no weights, beats KD.",
        world="fashion(size='14x14', n=1000)",
        settings={"pld": ("pld()", "pld(tau=2)", "pld(tau=4)", "pld(lr_factor=0.5)")},
        against=("kd",),
        beside=("labels",),
        why="Of ten digits the teacher is nearly always sure and right, and its order of the other "
        "classes says little, while the loss asks for all of it; clothes are alike in earnest.",
    ),
)
