"""sskd: what a teacher makes of turned pictures teaches more than its answers alone."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student that follows the teacher on turned pictures beats one taught by kd.",
        world="fashion(size='14x14')",
        settings={
            "sskd": ("sskd()", "sskd(ss=1.0)", "sskd(tau=2.0, tf_tau=2.0)", "sskd(lr_factor=0.5)"),
            "sskd without ss": ("sskd(ss=0.0)", "sskd(ss=0.0, lr_factor=0.5)"),
        },
        against=("kd",),
        beside=("labels", "sskd without ss"),
        seeds=12,
    ),
)
