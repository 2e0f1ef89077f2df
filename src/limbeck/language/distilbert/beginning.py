"""A student's weights to begin with: its teacher's embeddings, some of its layers, and its head."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError

__all__ = ["begin", "spread"]

# What a weight of a DistilBERT is called in a BERT.
NAMES = {
    r"^distilbert\.": "bert.",
    r"^bert\.transformer\.": "bert.encoder.",
    r"\.attention\.q_lin\.": ".attention.self.query.",
    r"\.attention\.k_lin\.": ".attention.self.key.",
    r"\.attention\.v_lin\.": ".attention.self.value.",
    r"\.attention\.out_lin\.": ".attention.output.dense.",
    r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
    r"\.ffn\.lin1\.": ".intermediate.dense.",
    r"\.ffn\.lin2\.": ".output.dense.",
    r"\.output_layer_norm\.": ".output.LayerNorm.",
    r"^vocab_transform\.": "cls.predictions.transform.dense.",
    r"^vocab_layer_norm\.": "cls.predictions.transform.LayerNorm.",
    r"^vocab_projector\.": "cls.predictions.decoder.",
}


def spread(few: int, many: int) -> tuple[int, ...]:
    """Layers of a teacher that a student begins with: evenly spread, the first and last of them.

    Of 12 for 6 they are the paper's 0, 2, 4, 7, 9, 11.

    Args:
        few: layers of the student.
        many: layers of the teacher.
    """
    gaps = max(few - 1, 1)
    return tuple((2 * i * (many - 1) + gaps) // (2 * gaps) for i in range(few))


@torch.no_grad()
def begin(student: nn.Module, teacher: nn.Module, layers: tuple[int, ...] = ()) -> None:
    """Copy a teacher's embeddings, some of its layers and its head into a student, in place.

    Args:
        student: of the same architecture with fewer layers, or a DistilBERT.
        teacher: whose weights are copied.
        layers: the teacher's, one for each of the student's; evenly spread where empty.

    Raises:
        UsageError: the numbers cannot be, or a weight of the student is not the teacher's.
    """
    few, many = (int(m.config.num_hidden_layers) for m in (student, teacher))  # type: ignore[arg-type,union-attr]
    layers = layers or spread(few, many)
    if few > many or len(layers) != few or not all(0 <= i < many for i in layers):
        raise UsageError(
            f"the student has {few} layers and is to begin with {len(layers)} of the teacher's "
            f"{many} (layers={','.join(map(str, layers))}); give as many as it has, from 0 to "
            f"{many - 1}, or init=false"
        )
    theirs = teacher.state_dict()
    for name, weight in student.state_dict().items():
        source = theirs.get(_source(name, layers, theirs))
        if source is None or source.shape != weight.shape:
            there = "is not in the teacher"
            if source is not None:
                there = f"is {tuple(weight.shape)}, and the teacher's {tuple(source.shape)}"
            raise UsageError(
                f"the student's '{name}' {there}, so it cannot begin with the teacher's weights; "
                "give a student of its architecture and width (truncate:6), or init=false"
            )
        weight.copy_(source)


def _source(name: str, layers: tuple[int, ...], theirs: Mapping[str, Tensor]) -> str:
    """The teacher's name of a student's weight; the first number in a name is its layer's."""
    found = re.sub(r"\.(\d+)\.", lambda m: f".{layers[int(m[1])]}.", name, count=1)
    if found not in theirs:
        for pattern, other in NAMES.items():
            found = re.sub(pattern, other, found)
    return found
