"""pad: a learnt variance weighs how much each sample's embedding is mimicked."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Weighing what a student mimics by a variance that it learns beats the plain squared "
        "error of embeddings.",
        world="digits",
        settings={
            "pad": (
                "pad()",
                "pad(l2=10.0)",
                "pad(l2=10.0, pad=0.3)",
                "pad(lr_factor=0.5)",
            ),
            "plain": (
                "pad(share=1.0)",
                "pad(l2=10.0, share=1.0)",
                "pad(l2=30.0, share=1.0)",
                "pad(share=1.0, lr_factor=0.5)",
            ),
        },
        against=("labels", "plain"),
        beside=("kd",),
    ),
)
