"""README.txt beside an exported student: what it is, and lines that use it without limbeck."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from limbeck.core.sources.own import file_of
from limbeck.runs._export_sample import answer_of, scaled
from limbeck.runs._export_student import Form, Student

_NEEDS = {
    "pt2": "torch",
    "onnx": "onnxruntime and numpy",
    "timm": "timm",
    "transformers": "transformers and torch",
    "class": "torch, safetensors and the student's own class",
}
_BESIDE = """\
student.json says the same and more, for programs.
sample.json is one of your own samples: leave it out of what you pass on, if it is private."""
_OPEN = {
    "pt2": """\
import json
import torch

facts = json.load(open("student.json", encoding="utf-8"))
program = torch.export.load("model.pt2").module()

def student({params}):
    with torch.no_grad():
        return program({params})
""",
    "onnx": """\
import json
import numpy
import onnxruntime

facts = json.load(open("student.json", encoding="utf-8"))
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

def student({params}):
    return session.run([{gives}], {{{feed}}})[0]
""",
    "timm": """\
import json
import timm
import torch

facts = json.load(open("student.json", encoding="utf-8"))
model = timm.create_model("local-dir:.", pretrained=True).eval()

def student({params}):
    with torch.no_grad():
        return model({call})
""",
    "transformers": """\
import json
import torch
from transformers import {loader}

facts = json.load(open("student.json", encoding="utf-8"))
model = {loader}.from_pretrained(".").eval()

def student({params}):
    with torch.no_grad():
        return model({call})[{gives}]
""",
    "class": """\
import json
import torch
from safetensors.torch import load_model

facts = json.load(open("student.json", encoding="utf-8"))

def load(student):
    \"\"\"Give a module, built as it was for the run, the student's weights.\"\"\"
    load_model(student, "model.safetensors")
    return student.eval()
""",
}


def readme(student: Student, form: Form, facts: dict[str, Any]) -> str:
    """The text of README.txt, with a snippet (indented by four) that runs in the folder."""
    loader = ""
    if form.how == "transformers":
        from limbeck.runs._export_weights import transformers_class

        loader = transformers_class(student.model)
    names = list(student.samples)
    call = _call(student)
    opening = _OPEN[form.how].format(
        params=", ".join(names),
        call=call,
        feed=", ".join(f'"{n}": {n}' for n in names),
        gives=repr(student.gives),
        loader=loader,
    )
    using = _of_class(student, form, facts) if form.how == "class" else _use(student, form, facts)
    parts = [
        f"A student, as {form.main}; made with limbeck {facts['limbeck']}, without which it works.",
        _told(student, form, facts),
        f"Run this in this folder; it needs {_NEEDS[form.how]}:",
        textwrap.indent(f"{opening}\n{using}".rstrip(), "    "),
        _warning(student, form),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _told(student: Student, form: Form, facts: dict[str, Any]) -> str:
    """Inputs, outputs, scores and how the file was checked."""

    def one(word: str, each: dict[str, Any]) -> str:
        return f"{word}: {each['name']} ({', '.join(map(str, each['shape']))}) {each['dtype']}"

    lines = [*(one("takes", each) for each in facts["takes"]), one("gives", facts["gives"])]
    scores = facts["scores"] or {}
    told = ", ".join(
        f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in scores.items()
    )
    told = " ".join(told.split())
    lines += [f"scores: {told}"] if told else []
    check = facts["check"]
    lines.append(
        f"checked: on {check['samples']} samples, in batches of "
        f"{', '.join(map(str, check['batches']))}, its outputs differ from the original's by at "
        f"most {check['difference']:.2g} ({check['tolerance']:.2g} was allowed)"
    )
    return "\n".join([*lines, _BESIDE])


def _use(student: Student, form: Form, facts: dict[str, Any]) -> str:
    """Lines that make inputs, ask the student and show its answer."""
    onnx = form.how == "onnx"
    lines = [_made(each, onnx) for each in facts["takes"]]
    if len(lines) == 1 and facts["takes"][0]["dtype"] == "float32":
        lines = scaled(lines[0], facts["takes"][0], facts["inputs"] or {}, onnx)
    lines.insert(0, 'sample = json.load(open("sample.json", encoding="utf-8"))')
    plain = ", ".join(student.samples)
    answer = student.gives if student.gives.isidentifier() else "output"
    asked = f"{_call(student)}){student.picks}" if form.how == "class" else f"{plain})"
    lines.append(f"{answer} = student({asked}")
    names = facts["names"]
    each = len(facts["gives"]["shape"]) == 2  # one answer a sample, not one a word
    if names and each and _classes(facts) == len(names):
        told = answer_of(student, names)
        lines.append(f'print([facts["names"][i] for i in {answer}.argmax(-1)]){told}')
    elif each and answer == "logits":
        lines.append(f"print({answer}.argmax(-1))")
    else:
        lines.append(f"print({answer}.shape)")
    if facts.get("tokenizer") and hasattr(student.model, "generate"):
        lines.append(_WRITES)
    return "\n".join(lines)


_WRITES = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
words = tokenizer("In the beginning", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**words, max_new_tokens=20)[0]))"""


def _call(student: Student) -> str:
    """How the student's own module is called."""
    names = list(student.samples)
    return ", ".join(f"{n}={n}" for n in names) if student.keywords else ", ".join(names)


def _of_class(student: Student, form: Form, facts: dict[str, Any]) -> str:
    """The lines that use a module of the student's class, and make one where it is known how."""
    kind, file = type(student.model), file_of(type(student.model))
    use = f"def use(student):\n{textwrap.indent(_use(student, form, facts), '    ')}\n"
    made = _made_again(student, facts) if file is not None and file.stem.isidentifier() else None
    if file is None or made is None:
        name = kind.__name__ if kind.__name__.isidentifier() else "Student"
        return f"{use}\n# use(load({name}(...)))  # with the class, and built as it was for the run"
    line = f"from {file.stem} import {kind.__name__}  # copy {file.name} into this folder"
    return f"{use}\n{line}\n\nuse(load({made}))"


def _made_again(student: Student, facts: dict[str, Any]) -> str | None:
    """The call by which the student's class gives a module that its weights make the student."""
    kind = type(student.model)
    try:
        takes = "classes" in inspect.signature(kind).parameters
        given = {"classes": _classes(facts)} if takes else {}
        fresh = kind(**given)
        fresh.load_state_dict(student.model.state_dict())
        same = student.compare(student.ask(fresh.eval())).holds
    except Exception:  # whatever a class raises that is not made so
        return None
    told = ", ".join(f"{k}={v}" for k, v in given.items())
    return f"{kind.__name__}({told})" if same and kind.__qualname__.isidentifier() else None


def _classes(facts: dict[str, Any]) -> int:
    """The length of the student's last dimension."""
    return int(facts["gives"]["shape"][-1]) if len(facts["gives"]["shape"]) > 1 else 0


def _made(each: dict[str, Any], onnx: bool) -> str:
    given = f'{each["name"]} = {{}}(sample["{each["name"]}"], dtype={{}})'
    if onnx:
        kind = {"bool": "numpy.bool_"}.get(each["dtype"], f"numpy.{each['dtype']}")
        return given.format("numpy.array", kind)
    return given.format("torch.tensor", f"torch.{each['dtype']}")


def _warning(student: Student, form: Form) -> str:
    if form.how == "pt2":
        return (
            "Read .pt2 archives only of those whom you trust: torch.export.load may unpickle parts "
            "of one."
        )
    if form.how == "class":
        kind, file = type(student.model), file_of(type(student.model))
        name = f"{kind.__module__}.{kind.__qualname__}"
        name = name if file is None else f"{file.name}:{kind.__qualname__}"
        return (
            f"The student is a {name}, which is not in the file. "
            "Exported to pt2 or onnx, a student needs no class."
        )
    return ""
