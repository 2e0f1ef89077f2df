"""wsld: soft labels with less weight where the student fits the label already."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Soft labels weighted by how far the student lags behind beat plain KD.",
        world="digits",
        settings={
            "wsld": ("wsld()", "wsld(tau=2)", "wsld(label=0.1, wsl=0.9)", "wsld(lr_factor=0.5)"),
        },
        against=("kd",),
        beside=("labels",),
    ),
)
