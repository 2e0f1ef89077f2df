"""The page's sections on language models."""

import dataclasses

import pytest

pytest.importorskip("transformers", reason="needs transformers")

import limbeck
from limbeck.bench import worlds
from limbeck.report.reading import read_run
from limbeck.report.run import page_of
from limbeck.report.words import bytes_of
from limbeck.report.writing import prediction, written

pytestmark = pytest.mark.xdist_group("text_worlds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "lm"
    task = worlds.make("charlm", tiny=True)
    task = dataclasses.replace(task, about={"begins": "truncate:1"})
    limbeck.run("gkd", task, own=0.0, baseline=True, out=out)
    return out


def test_all_sides_are_compared(folder) -> None:
    told = read_run(folder)
    page = str(prediction(told))
    for column in ("teacher", "student before", "student after", "alone"):
        assert f">{column}</th>" in page
    side = told.first.at("sides", "student")
    assert f"{side['bits_per_byte']:.3f} ± {side['bits_per_byte_se']:.2g}" in page
    assert f"{told.first.at('agreement', 'student', 'kl'):.3f}" in page
    assert told.first.result["score"] == pytest.approx(side["bits_per_byte"], rel=1e-6)


def test_the_memory_of_writing_is_told(folder) -> None:
    told = read_run(folder)
    page, config = str(prediction(told)), worlds.make("charlm", tiny=True).new_student(0).config
    texts = len(told.first.at("written"))
    assert f"memory of its cache, writing {texts} texts at once" in page
    held = told.first.at("sides", "student", "cache_bytes")
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    token = 4 * 2 * config.num_hidden_layers * heads  # bytes: keys and values in float32
    assert held % token == 0
    assert texts <= held // token < texts * config.max_position_embeddings
    assert f">{bytes_of(held)}<" in page
    assert f">{bytes_of(told.first.at('sides', 'teacher', 'bytes'))}<" in page


def test_what_they_wrote_is_escaped(folder) -> None:
    told = read_run(folder)
    told.first.appraisal["written"][0]["student"] = "<script>alert(1)</script>"
    page = str(written(told))
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert page.count("<dl>") == 4


def test_the_page_has_them_in_place_of_the_table_of_classifiers(folder) -> None:
    page = str(page_of(folder))
    assert "As language models" in page
    assert "What they write" in page
    assert "Side by side" not in page
