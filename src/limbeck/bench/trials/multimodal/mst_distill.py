"""mst_distill: masked teachers of several modalities, of which each sample gets its own."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Masked teachers of several modalities, routed by sample, teach a student of one "
        "modality more than KD from one teacher of both.",
        world="pairs",
        settings={
            "mst_distill": (
                "mst_distill()",
                "mst_distill(rate=0.001)",
                "mst_distill(rate=0.001, k=2)",
                "mst_distill(rate=0.001, kd_fall=1.0)",
            ),
            "no masks": (
                "mst_distill(mask=0.0, k=2, balance=0.0)",
                "mst_distill(rate=0.001, mask=0.0, k=2, balance=0.0)",
            ),
            "kd as long": ("kd(epochs=60)", "kd(epochs=60, tau=2)"),
        },
        against=("kd",),
        beside=("labels", "no masks", "kd as long"),
        seeds=12,
        budget={"epochs": 20},
        why="The student sees noisy digits, the teachers those, waveforms of the same class, or "
        "both. It trains its teachers along, so that it takes three times the steps of KD.",
    ),
    Trial(
        claim="Masked teachers of several modalities, routed by sample, teach a student of one "
        "modality more than KD for as many steps from one teacher of both.",
        world="pairs",
        settings={
            "mst_distill": (
                "mst_distill()",
                "mst_distill(rate=0.001)",
                "mst_distill(rate=0.001, k=2)",
                "mst_distill(rate=0.001, kd_fall=1.0)",
            ),
            "kd as long": ("kd(epochs=60)", "kd(epochs=60, tau=2)"),
        },
        against=("kd as long",),
        beside=("labels", "kd"),
        seeds=12,
        budget={"epochs": 20},
        why="KD had a third of the steps and had not ended learning; beside it, KD for as many did "
        "as well as the method.",
    ),
)
