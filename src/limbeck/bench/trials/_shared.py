"""The arms that trials share: tuned once for a world and its pair, and measured once for a seed.

`rate` is a factor of the learning rate that serves the world's student best without a teacher.
"""

SHARED: dict[str, tuple[str, ...]] = {
    "labels": ("labels()", "labels(rate=0.5)", "labels(rate=2)", "labels(smoothing=0.1)"),
    "kd": (
        "kd()",
        "kd(tau=2)",
        "kd(label=0.5, kd=0.5)",
        "kd(rate=0.5)",
    ),
}
"""Each shared arm with its settings: the true labels alone, and knowledge distillation."""
