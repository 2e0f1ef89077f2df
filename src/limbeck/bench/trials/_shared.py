"""The arms that trials share: tuned once for a world and its pair, and measured once for a seed.

`lr_factor` multiplies the learning rate that serves the world's student best without a teacher.
"""

SHARED: dict[str, tuple[str, ...]] = {
    "labels": ("labels()", "labels(lr_factor=0.5)", "labels(lr_factor=2)", "labels(smoothing=0.1)"),
    "kd": (
        "kd()",
        "kd(tau=2)",
        "kd(label=0.5, kd=0.5)",
        "kd(lr_factor=0.5)",
    ),
}
"""Each shared arm with its settings: the true labels alone, and knowledge distillation."""
