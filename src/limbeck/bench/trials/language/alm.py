"""alm: likelihoods of pieces of text teach a language model, whatever its tokens are."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Matching the likelihoods of pieces of text teaches more than next tokens alone, and "
        "more than sorted probabilities beside them.",
        world="markov(concentration=1.0)",
        settings={
            "alm": ("alm()", "alm(tau=1.0)", "alm(lr_factor=2)", "alm(lr_factor=4)"),
            "labels alone": (
                "labels()",
                "labels(lr_factor=0.5)",
                "labels(lr_factor=2)",
                "labels(lr_factor=4)",
            ),
            "uld": ("uld()", "uld(uld=0.3)", "uld(lr_factor=2)", "uld(lr_factor=4)"),
        },
        against=("labels alone", "uld"),
        beside=(),
        better="lower",
        why="Teacher and student read the same symbols, so that each is a piece of its own and "
        "nothing is lost between tokenizers; tests hold what is done where they differ.",
    ),
)
