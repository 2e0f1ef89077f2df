"""ofa_kd: stages of another architecture learn in the space of logits."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Exits after each stage, in the space of logits, beat KD across architectures.",
        world="digits(teacher='cnn-large', student='vit-small')",
        settings={
            "ofa_kd": (
                "ofa_kd()",
                "ofa_kd(gamma=(1.2,))",
                "ofa_kd(final=4.0)",
                "ofa_kd(branches=0.3)",
            ),
            "no exits": (
                "ofa_kd(branches=0.0)",
                "ofa_kd(branches=0.0, gamma=(1.2,))",
                "ofa_kd(branches=0.0, final=4.0)",
            ),
        },
        against=("kd", "no exits"),
        beside=("labels",),
        seeds=12,
    ),
    Trial(
        claim="Exits after each stage, in the space of logits, beat KD across architectures.",
        world="digits(teacher='vit', n=150)",
        settings={
            "ofa_kd": (
                "ofa_kd()",
                "ofa_kd(gamma=(1.2,))",
                "ofa_kd(final=4.0)",
                "ofa_kd(branches=0.3)",
            ),
            "no exits": (
                "ofa_kd(branches=0.0)",
                "ofa_kd(branches=0.0, gamma=(1.2,))",
                "ofa_kd(branches=0.0, final=4.0)",
            ),
        },
        against=("kd", "no exits"),
        beside=("labels",),
        why="KD itself taught that student nothing beyond the labels, so there was nothing to be "
        "better at; from a ViT to a CNN, with fewer labels, it does.",
    ),
)
