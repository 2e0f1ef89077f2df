"""The student as a graph, which needs no class of its own: torch's archive (pt2), and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import Missing, UsageError
from limbeck.runs._export_student import Ask, Form, Inputs, Student, short


class Only(nn.Module):
    """A student that takes its inputs by position and gives the one tensor that counts."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student.model
        self._student = student

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the student takes, in the order of the samples -> its logits."""
        named = dict(zip(self._student.samples, inputs, strict=True))
        return self._student.ask(self.student)(named)


def capture(student: Student, to: str) -> torch.export.ExportedProgram:
    """The student's graph, for batches of any size.

    Raises:
        UsageError: torch cannot make one of it.
    """
    batch = torch.export.Dim("batch")
    # An archive keeps its example: it is of zeros, nobody's data.
    zeros = tuple(torch.zeros_like(value) for value in student.batch(2).values())
    free = (tuple({0: batch} for _ in zeros),)
    try:
        with torch.no_grad():
            program = torch.export.export(Only(student), zeros, dynamic_shapes=free, strict=False)
    except Exception as error:
        raise _refused(to, error) from error
    for graph in program.graph_module.modules():
        for node in getattr(getattr(graph, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _refused(to: str, error: Exception) -> UsageError:
    return UsageError(
        f"the student cannot be exported to {to}: {short(error)}; export its weights with "
        "'safetensors', which works for every student"
    )


def write_pt2(student: Student, folder: Path, about: dict[str, Any]) -> Form:
    """model.pt2: `torch.export.load("model.pt2").module()` takes inputs by position."""
    path = folder / "model.pt2"
    program = capture(student, "pt2")
    try:
        torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:
        raise _refused("pt2", error) from error

    def load() -> Ask:
        # The file that was written a moment ago; limbeck reads no other archive.
        program = torch.export.load(path).module()
        return lambda inputs: program(*inputs.values())

    return Form("pt2", path.name, load)


def write_onnx(student: Student, folder: Path, about: dict[str, Any]) -> Form:
    """model.onnx, with the student's names for its inputs; beyond 2 GB weights lie beside it."""
    try:
        import onnx  # noqa: F401  # torch asks for it
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise Missing(
            "exporting to onnx needs onnx, onnxscript and onnxruntime; install them with: "
            "pip install 'limbeck[export]'"
        ) from None
    path = folder / "model.onnx"
    program = capture(student, "onnx")
    names: dict[str, Any] = {"input_names": list(student.samples), "output_names": [student.gives]}
    try:
        made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        made.rename_axes({made.model.graph.inputs[0].shape[0]: "batch"})
        made.save(path)
    except OSError:
        raise
    except Exception as error:
        raise _refused("onnx", error) from error

    def load() -> Ask:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except Exception as error:
            raise _refused("onnx", error) from error

        def ask(inputs: Inputs) -> Tensor:
            given = {name: value.numpy() for name, value in inputs.items()}
            return torch.from_numpy(session.run([student.gives], given)[0])

        return ask

    return Form("onnx", path.name, load)
