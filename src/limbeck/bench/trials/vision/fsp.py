"""fsp: a start from the teacher's flow, in a short training.

At the paper's sums the usual rate of this world, 0.2, is too high even for a hundredth of it.
"""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="After a stage of the teacher's flow a student learns the labels better in the same "
        "number of steps.",
        world="digits(teacher='resnet', student='cnn', n=200)",
        settings={
            "fsp": (
                "fsp(rate=0.005)",
                "fsp(rate=0.001)",
                "fsp(mean=True, rate=1)",
                "fsp(mean=True, rate=0.3)",
            ),
            "labels as long": ("labels(epochs=80)", "labels(epochs=80, lr_factor=0.5)"),
        },
        against=("labels",),
        beside=("kd", "labels as long"),
        budget={"epochs": 40},
        why="A start is worth most where the training that follows is short; the first stage "
        "doubles the steps, so labels are also shown with twice as many.",
    ),
)
