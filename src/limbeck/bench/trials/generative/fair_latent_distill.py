"""fair_latent_distill: rows made of distilled fair latents."""

from typing import Any

from limbeck.bench.trial import Trial


def balance(task: Any, result: Any, on: str) -> float:
    """The trained classifier's demographic parity ratio, by x's last column, times its accuracy."""
    import torch

    from limbeck.core.data import Table, reader_of
    from limbeck.core.evaluate import evaluating, predict

    table = Table(task.set(on), on)
    with evaluating(result.model):
        logits, y = predict(result.model, table, reader_of(task.readers, "student"))
    group = table.rows(torch.arange(len(table))).x[:, -1]
    granted = (logits.argmax(1) == 1).double()
    rates = [float(granted[group == g].mean()) for g in group.unique()]
    accuracy = float((logits.argmax(1) == y).double().mean())
    return accuracy * min(rates) / max(rates) if max(rates) else 0.0


TRIALS = (
    Trial(
        claim="A classifier of rows from distilled fair latents is fairer, at its accuracy, than "
        "one of real rows or of a plain VAE's.",
        world="protected(teacher='none')",
        settings={
            "fair_latent_distill": (
                "fair_latent_distill()",
                "fair_latent_distill(beta=1e8)",
                "fair_latent_distill(beta=1e6)",
                "fair_latent_distill(fair=1e7)",
            ),
            "plain VAE": (
                "fair_latent_distill(beta=0.0)",
                "fair_latent_distill(beta=0.0, rate=3e-3)",
                "fair_latent_distill(beta=0.0, lr_factor=0.5)",
                "fair_latent_distill(beta=0.0, lr_factor=2)",
            ),
            "apart": (
                "fair_latent_distill(apart=True)",
                "fair_latent_distill(apart=True, beta=0.0)",
            ),
        },
        against=("labels", "plain VAE"),
        beside=("apart",),
        measure="balance",
        seeds=12,
        budget={"epochs": 20, "batch": 128},
        why="Parity alone would favour a classifier that grants to all, so accuracy counts too. "
        "The paper's rivals are other fair generators; here it is what its own parts add. "
        "A plain VAE has no covariance.",
    ),
)
