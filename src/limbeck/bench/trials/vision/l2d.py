"""l2d: each label's own probability, and relations of label embeddings."""

from limbeck.bench.trial import Trial

_SMALL = "dim=64, inner=128, attend=4"

TRIALS = (
    Trial(
        claim="Where pictures have several labels, relations of label embeddings beside each "
        "label's own probability beat the labels alone, and the probabilities alone.",
        world="multilabel",
        settings={
            "l2d": (
                f"l2d({_SMALL})",
                f"l2d({_SMALL}, cd=10.0, id=100.0)",
                f"l2d({_SMALL}, mld=1.0, cd=1.0, id=10.0)",
            ),
            "probabilities": (
                f"l2d({_SMALL}, cd=0.0, id=0.0)",
                f"l2d({_SMALL}, mld=1.0, cd=0.0, id=0.0)",
                f"l2d({_SMALL}, cd=0.0, id=0.0, lr_factor=2)",
            ),
            "labels alone": (
                f"l2d({_SMALL}, mld=0.0, cd=0.0, id=0.0)",
                f"l2d({_SMALL}, mld=0.0, cd=0.0, id=0.0, lr_factor=0.5)",
                f"l2d({_SMALL}, mld=0.0, cd=0.0, id=0.0, lr_factor=2)",
            ),
            "softmax": ("kd(label=0.0, kd=1.0)",),
        },
        against=("probabilities", "labels alone"),
        beside=("softmax",),
        seeds=12,
        budget={"steps": 150},
        why="All have the same small decoder, but for KD over a softmax of all labels. At the "
        "paper's weights, made for 80 labels, relations drown the labels here, so that smaller "
        "ones are among the settings.",
    ),
)
