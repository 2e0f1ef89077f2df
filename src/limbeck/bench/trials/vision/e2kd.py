"""e2kd: a student that gives the teacher's reasons agrees with it more, with few data."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="With few data a student taught the teacher's explanations beside its soft targets "
        "agrees with it more often than by KD alone.",
        world="digits(n=150)",
        settings={
            "e2kd": (
                "e2kd()",
                "e2kd(tau=5.0)",
                "e2kd(explain=5.0)",
                "e2kd(tau=5.0, explain=5.0)",
            ),
            "no explanations": (
                "e2kd(explain=0.0)",
                "e2kd(explain=0.0, tau=5.0)",
                "e2kd(explain=0.0, lr_factor=0.5)",
                "e2kd(explain=0.0, tau=5.0, lr_factor=0.5)",
            ),
        },
        against=("kd", "no explanations"),
        beside=("labels",),
        measure="agreement",
        why="The shared KD has labels and this paper's has none, so both stand against it.",
    ),
)
