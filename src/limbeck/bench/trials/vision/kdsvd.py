"""kdsvd: how the layers' singular vectors lie to each other, with labels in the lead."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student whose layers' singular vectors relate as the teacher's is better than "
        "with labels alone.",
        world="digits(teacher='resnet', student='cnn', n=200)",
        settings={
            "kdsvd": ("kdsvd()", "kdsvd(svd=100)", "kdsvd(svd=100, k=2)", "kdsvd(svd=10)"),
            "no clip": ("kdsvd(clip=False)", "kdsvd(clip=False, svd=10)"),
        },
        against=("labels",),
        beside=("kd", "no clip"),
    ),
)
