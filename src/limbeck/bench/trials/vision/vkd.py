"""vkd: an orthogonal projection of a normalised target."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="An orthogonal projector onto normalised features beats KD across architectures.",
        world="digits(student='vit-small')",
        settings={
            "vkd": ("vkd()", "vkd(vkd=4.0)", "vkd(tau=2)", "vkd(kl=4.0)"),
            "linear": (
                "vkd(projector='linear')",
                "vkd(projector='linear', vkd=4.0)",
                "vkd(projector='linear', tau=2)",
                "vkd(projector='linear', kl=4.0)",
            ),
        },
        against=("kd", "linear"),
        beside=("labels",),
        seeds=12,
    ),
)
