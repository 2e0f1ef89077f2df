"""unic: a ladder of projectors and dropped teachers help an encoder of several teachers."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="A ladder from all blocks and teacher dropping beat one projector each and the mean "
        "of the teachers' losses, by a linear probe of the student.",
        world="digits(teacher='cnn+resnet')",
        settings={
            "unic": (
                "unic(hidden=64, last_hidden=256)",
                "unic(hidden=64, last_hidden=256, ladder_lr=0.003)",
                "unic(hidden=64, last_hidden=256, lr_factor=0.5)",
                "unic(hidden=64, last_hidden=256, lr_factor=2)",
            ),
            "plain": (
                "unic(hidden=64, last_hidden=256, blocks=(-1,), drop=0.0)",
                "unic(hidden=64, last_hidden=256, blocks=(-1,), drop=0.0, ladder_lr=0.003)",
                "unic(hidden=64, last_hidden=256, blocks=(-1,), drop=0.0, lr_factor=0.5)",
                "unic(hidden=64, last_hidden=256, blocks=(-1,), drop=0.0, lr_factor=2)",
            ),
        },
        against=("plain",),
        beside=("labels",),
        budget={"epochs": 30},
        why="The projectors are narrower than the paper's. Teachers of two architectures stand "
        "for those of several trainings; the probe is of the classes that both know.",
    ),
)
