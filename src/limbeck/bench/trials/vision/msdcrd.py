"""msdcrd: local features of several scales have more to contrast than one vector of a picture."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Within a batch, contrasting local features of several scales beats contrasting one "
        "global feature of each picture.",
        world="digits",
        settings={
            "msdcrd": (
                "msdcrd()",
                "msdcrd(sample_wise=0.2, feature_wise=0.2)",
                "msdcrd(tau=0.5)",
                "msdcrd(lr_factor=0.5)",
            ),
            "one scale": (
                "msdcrd(scales=(1,), feature_wise=0.0)",
                "msdcrd(scales=(1,), feature_wise=0.0, sample_wise=0.2)",
                "msdcrd(scales=(1,), feature_wise=0.0, tau=0.5)",
                "msdcrd(scales=(1,), feature_wise=0.0, lr_factor=0.5)",
            ),
        },
        against=("one scale",),
        beside=("labels", "kd"),
        seeds=12,
        budget={"epochs": 50},
        why="The last map has 2 x 2 places, so that of the scales 1, 2 and 4 two are left.",
    ),
)
