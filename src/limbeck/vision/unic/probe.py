"""The linear probe: a frozen encoder's head, fitted by logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.run import current, stage
from limbeck.core.taps import UpTo
from limbeck.core.task import Task
from limbeck.errors import UsageError


def logistic(z: Tensor, y: Tensor, classes: int, strength: float) -> dict[str, Tensor]:
    """A logistic regression on embeddings z (N, D) and labels y (N,), as a linear layer for them.

    It minimises sum CE + |w|^2 / (2 strength) over standardised z; the layer takes z as it is.
    A class without samples gets the logit -10000.

    Returns:
        weight (classes, D) and bias (classes,).
    """
    from sklearn.linear_model import LogisticRegression

    mean, sd = z.double().mean(0), z.double().std(0).clamp_min(1e-6)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(((z - mean) / sd).numpy(), y.numpy())
    w = torch.from_numpy(fitted.coef_) / sd
    b = torch.from_numpy(fitted.intercept_) - w @ mean
    if len(w) == 1:  # of two classes only the difference is fitted
        w, b = torch.cat((-w, w)) / 2, torch.cat((-b, b)) / 2
    weight, bias = torch.zeros(classes, z.shape[1]), torch.full((classes,), -1e4)
    weight[fitted.classes_], bias[fitted.classes_] = w.float(), b.float()
    return {"weight": weight, "bias": bias}


def head_of(task: Task, student: nn.Module) -> str:
    """The name of the student's linear layer whose input is its embedding; "" without labels."""
    labelled = "y" in Table(task.set("train"), "train").rows(torch.arange(1), "first")
    if not labelled or task.count_classes() is None:
        return ""
    path = task.taps.get("embedding", (None, None))[1]
    name, _, end = str(path).partition(":")
    if end != "in" or not isinstance(dict(student.named_modules()).get(name), nn.Linear):
        raise UsageError(
            "the probe is fitted on the student's embedding and becomes its head, but the tap of "
            f"that embedding is {path!r}; name the linear layer that it enters, as in "
            "taps={'embedding': (teacher path, 'head:in')}, or give probe=0"
        )
    return name


def fit_head(student: nn.Module, name: str, task: Task, strength: float) -> None:
    """Put a logistic regression on the embeddings of the training set in the head's place."""
    device, classes = current().device, task.count_classes()
    assert classes is not None

    def fitted() -> dict[str, Tensor]:
        encoder = UpTo(student, f"{name}:in", "logits")
        table, reader = Table(task.train, "train"), reader_of(task.readers, "student")
        with evaluating(encoder):
            z, y = predict(encoder, table, reader, device)
        return logistic(z, y, classes, strength)

    found = stage("probe", fitted)
    head = nn.Linear(found["weight"].shape[1], classes, device="meta")  # draws nothing
    head.load_state_dict(found, assign=True)
    student.set_submodule(name, head.to(device))
