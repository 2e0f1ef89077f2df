"""aem: attention that is kept from settling on few instances overfits less."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Paying for attention of low entropy beats attention-based pooling on labels alone.",
        world="bags(teacher='none')",
        settings={
            "aem": ("aem()", "aem(entropy=0.01)", "aem(entropy=1.0)", "aem(lr_factor=2)"),
        },
        against=("labels",),
        seeds=12,
        why="Labels alone are the paper's ABMIL: the student has gated attention. A fixed picture "
        "in each bag tells its label in training and on valid, and tells nothing in the test.",
    ),
)
