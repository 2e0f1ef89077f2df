"""pkt: neighbourhoods of samples teach a student beside the labels."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching each sample's chances of its neighbours beats learning from labels alone.",
        world="digits",
        settings={
            "pkt": ("pkt()", "pkt(pkt=3000)", "pkt(pkt=300)", "pkt(pkt=3000, lr_factor=0.5)")
        },
        against=("labels",),
        beside=("kd",),
    ),
)
