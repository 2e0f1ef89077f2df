"""crd: telling samples apart in the teacher's space beats soft targets."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Contrastive representation distillation beats KD, without its soft targets.",
        world="digits",
        settings={"crd": ("crd()", "crd(crd=0.2)", "crd(crd=2.0)", "crd(lr_factor=0.5)")},
        against=("kd",),
        beside=("labels",),
    ),
)
