"""The classes that an earlier run was taught must be those of the data that it is to teach."""

import json
from pathlib import Path

import pytest

from limbeck.core.sources.classes import check_teacher
from limbeck.core.sources.specs import model_of
from limbeck.errors import UsageError


@pytest.mark.parametrize("form", ["{}", "timm:resnet18@{}/teacher.safetensors"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["ant", "bee"], ""),
        (["0", "1"], ""),
        (["ant", "bee", "cow"], ""),  # another number is refused where the model is made
        (["bee", "ant"], "in another order .class 0 is 'ant' there and 'bee' in the data"),
        (["bee", "zebra"], "has other classes than the data .class 0 is 'ant' there and 'bee' in"),
    ],
)
def test_a_runs_classes(form: str, names: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"about": {"names": ["ant", "bee"]}}))
    (tmp_path / "teacher.safetensors").touch()
    model = model_of(form.format(tmp_path), "teacher")
    if not said:
        check_teacher(model, names)
        return
    with pytest.raises(UsageError, match=said):
        check_teacher(model, names)


def test_a_model_of_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"about": {"names": ["ant", "bee"]}}))
    check_teacher(model_of("timm:resnet18", "teacher"), ["bee", "ant"])
