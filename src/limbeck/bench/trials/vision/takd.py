"""takd: an assistant of middle size bridges a large gap."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student learns more by way of an assistant than straight from a large teacher.",
        world="digits",
        settings={
            "takd": (
                "takd()",
                "takd(tau=(2.0,))",
                "takd(lam=(0.5,))",
                "takd(lr_factor=0.5)",
            ),
            "kd as long": ("kd(epochs=250)", "kd(tau=2, epochs=250)"),
        },
        against=("kd",),
        beside=("labels", "kd as long"),
        seeds=12,
        budget={"epochs": 50},
        why="Assistants take five times the steps, so KD is also shown with as many.",
    ),
)
