"""tfkd: a student that teaches itself, or is taught by a distribution made by hand."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A student taught by its own first training does better than it did on labels alone.",
        world="digits(teacher='none')",
        settings={
            "tfkd": (
                "tfkd()",
                "tfkd(tau=6)",
                "tfkd(label=0.6, tfkd=0.4)",
                "tfkd(lr_factor=0.5)",
            ),
            "tfkd, made by hand": (
                "tfkd(machine='reg', label=0.9, tfkd=0.1)",
                "tfkd(machine='reg', label=0.5, tfkd=0.5)",
                "tfkd(machine='reg', label=0.9, tfkd=0.1, soften='logits')",
                "tfkd(machine='reg', label=0.9, tfkd=0.1, lr_factor=0.5)",
            ),
            "labels as long": ("labels(epochs=200)", "labels(epochs=200, lr_factor=0.5)"),
        },
        against=("labels",),
        beside=("tfkd, made by hand", "labels as long"),
        why="The first training counts too; so labels are also shown with as many steps.",
    ),
)
