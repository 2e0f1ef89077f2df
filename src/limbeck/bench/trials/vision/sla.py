"""sla: the joint label of class and rotation, distilled into one pass."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Labels of class and rotation, aggregated into one pass, beat labels of class alone.",
        world="digits(teacher='none')",
        settings={
            "sla": ("sla()", "sla(distil=0.5)", "sla(rotations=2)", "sla(lr_factor=0.5)"),
        },
        against=("labels",),
    ),
)
