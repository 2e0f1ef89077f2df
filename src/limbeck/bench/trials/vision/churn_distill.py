"""churn_distill: a new model that answers as the old one did."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Distilled from the old model, a new one keeps more of its answers than one anew.",
        world="digits(teacher='cnn-small', student='cnn-small')",
        settings={
            "churn_distill": (
                "churn_distill(lam=(0.3, 0.6, 1.0))",
                "churn_distill(lam=(0.5,))",
                "churn_distill(lam=(0.3, 0.6, 1.0), anchor=True)",
            ),
            "labels as long": ("labels(epochs=300)",),
        },
        against=("labels",),
        beside=("labels as long",),
        measure="agreement",
        seeds=12,
        why="Ten mixtures of the targets are cut to three; churn is one less agreement.",
    ),
    Trial(
        claim="Distilled from the old model, a new one keeps more of its answers than one anew.",
        world="renewed",
        settings={
            "churn_distill": (
                "churn_distill(lam=(0.3, 0.6, 1.0))",
                "churn_distill(lam=(0.5,))",
                "churn_distill(lam=(0.3, 0.6, 1.0), anchor=True)",
            ),
            "labels as long": ("labels(epochs=300)",),
        },
        against=("labels",),
        beside=("labels as long", "kd"),
        measure="agreement",
        seeds=12,
        why="The old model had seen all that the new one sees, and answers its own training set "
        "as the labels do; here it has seen half, as in the paper.",
    ),
)
