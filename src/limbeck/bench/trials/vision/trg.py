"""trg: relations of the patches of a batch teach more than those of whole pictures."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="On long-tailed data the relations of patches beat KD, and the same relations of "
        "whole pictures.",
        world="digits(tail=20, n=1000)",
        settings={
            "trg": (
                "trg()",
                "trg(contrast=0.1)",
                "trg(label=0.1, kd=0.9, contrast=0.1)",
                "trg(label=0.1, kd=0.9, inner=0.1, local=0.1, contrast=0.1)",
            ),
            "whole pictures": (
                "trg(grid=1, sampled=1)",
                "trg(grid=1, sampled=1, contrast=0.1)",
                "trg(grid=1, sampled=1, label=0.1, kd=0.9, contrast=0.1)",
                "trg(grid=1, sampled=1, label=0.1, kd=0.9, local=0.1, contrast=0.1)",
            ),
        },
        against=("kd", "whole pictures"),
        beside=("labels",),
        seeds=12,
        why="A picture has 2 x 2 patches and a batch 64 pictures; the score is of all classes "
        "alike. At the paper's weights the relations leave the soft targets no say here, so that "
        "those of KD with weaker relations are among the settings.",
    ),
)
