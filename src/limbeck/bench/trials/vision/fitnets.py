"""fitnets: a hint in the middle makes a deep and thin student trainable."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A deep and thin student learns better after a hint than from labels or KD alone.",
        world="digits(student='deep-thin')",
        settings={
            "fitnets": (
                "fitnets()",
                "fitnets(kd=1.0)",
                "fitnets(share=0.5)",
                "fitnets(lr_factor=0.5)",
            ),
            "kd twice": ("kd(epochs=200)",),
        },
        against=("labels", "kd"),
        beside=("kd twice",),
        seeds=12,
        why="The hint's stage doubles the steps, so KD is also shown with twice as many.",
    ),
    Trial(
        claim="A deep and thin student learns better after a hint than from labels or KD alone.",
        world="digits(student='deep-thin')",
        settings={
            "fitnets": (
                "fitnets()",
                "fitnets(kd=1.0)",
                "fitnets(share=0.5)",
                "fitnets(lr_factor=0.5)",
            ),
            "kd twice": ("kd(epochs=100)",),
        },
        against=("labels", "kd"),
        beside=("kd twice",),
        seeds=24,
        budget={"epochs": 50},
        why="KD learnt nothing with one seed in twelve, which made the interval as wide as the "
        "scale; with half the steps there is time for twice the seeds.",
    ),
)
