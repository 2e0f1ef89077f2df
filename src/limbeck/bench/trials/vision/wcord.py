"""wcord: both forms of a Wasserstein distance tell pairs apart better than their odds do."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Contrast by both forms of a Wasserstein distance beats contrast by odds, as crd's.",
        world="digits",
        settings={
            "wcord": (
                "wcord(negatives=64, rounds=20)",
                "wcord(negatives=64, rounds=20, gckt=4.0)",
                "wcord(negatives=64, rounds=20, gckt=4.0, lckt=0.5)",
                "wcord(negatives=64, rounds=20, lr_factor=0.5)",
            ),
            "crd": (
                "crd(negatives=64)",
                "crd(negatives=64, crd=0.2)",
                "crd(negatives=64, crd=2.0)",
                "crd(negatives=64, lr_factor=0.5)",
            ),
        },
        against=("crd",),
        beside=("labels", "kd"),
        seeds=12,
        budget={"epochs": 50},
        why="Both have 64 negatives for each of 500 pictures, where the paper has 16384 of 50000.",
    ),
)
