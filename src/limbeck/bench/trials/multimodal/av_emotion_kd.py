"""av_emotion_kd: a self-distilled extractor of faces, fused with one of sounds."""

from limbeck.bench.trial import Trial

TRIALS = (
    Trial(
        claim="Valence and arousal are followed better when the network of faces has been taught "
        "by an earlier self, on more faces than have labels.",
        world="affect",
        settings={
            "av_emotion_kd": (
                "av_emotion_kd()",
                "av_emotion_kd(kd=4.0)",
                "av_emotion_kd(lr_factor=0.5)",
            ),
            "labelled faces alone": (
                "av_emotion_kd(generations=0)",
                "av_emotion_kd(generations=0, lr_factor=0.5)",
                "av_emotion_kd(generations=0, lr_factor=2)",
            ),
            "no match": ("av_emotion_kd(kd=0.0)",),
        },
        against=("labelled faces alone",),
        beside=("no match",),
        seeds=12,
        budget={"steps": 200},
        why="The network of sounds and the fusion are the same in all. The second network of faces "
        "has as many steps once more, which 'no match' has too, without what the first one says.",
    ),
    Trial(
        claim="Valence and arousal are followed better when the network of faces has been taught "
        "by an earlier self, on more faces than have labels.",
        world="affect",
        settings={
            "av_emotion_kd": (
                "av_emotion_kd()",
                "av_emotion_kd(kd=4.0)",
                "av_emotion_kd(lr_factor=2)",
                "av_emotion_kd(kd=4.0, lr_factor=2)",
            ),
            "labelled faces alone": (
                "av_emotion_kd(generations=0)",
                "av_emotion_kd(generations=0, lr_factor=0.5)",
                "av_emotion_kd(generations=0, lr_factor=2)",
                "av_emotion_kd(generations=0, lr_factor=4)",
            ),
        },
        against=("labelled faces alone",),
        seeds=12,
        budget={"steps": 200},
        why="Before, twice the rate was tried of the rival alone, and chosen: it decided.",
    ),
)
