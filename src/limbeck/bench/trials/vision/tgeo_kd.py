"""tgeo_kd: a ratio of teacher and labels for each sample beats one for all."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Where some labels are wrong, a ratio of teacher and labels learnt for each sample "
        "beats the best fixed one.",
        world="digits(noise=0.2)",
        settings={
            "tgeo_kd": (
                "tgeo_kd(judges='valid', fusion_lr=0.01)",
                "tgeo_kd(judges='valid', fusion_lr=0.003)",
                "tgeo_kd(judges='valid', fusion_lr=0.01, tau=2)",
                "tgeo_kd(judges='valid', fusion_lr=0.01, lr_factor=0.5)",
            ),
            "fixed": (
                "kd(label=0.7, kd=0.3)",
                "kd(label=0.5, kd=0.5)",
                "kd(label=0.1, kd=0.9)",
                "kd(label=0.5, kd=0.5, tau=2)",
            ),
        },
        against=("fixed",),
        beside=("labels", "kd"),
        seeds=12,
        budget={"epochs": 50},
        why="The 200 clean pictures of valid, on which the fixed ratio is chosen, judge the learnt "
        "one too, as the paper's validation set does; judges held out of the noisy labels speak "
        "for those. The score is of test.",
    ),
)
