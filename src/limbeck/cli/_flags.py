"""The flags that say what a command works on, the same for every command. No torch."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys

from limbeck._source import outline
from limbeck.cli._asked import BUDGET, asked, name_of
from limbeck.core.sources import specs
from limbeck.registry import Entry

__all__ = ["BUDGET", "add_budget", "add_fields", "add_task", "asked", "load_torch", "name_of"]

_SHORT = {"int": "N", "float": "X", "bool": "B"}


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the flags for models and data of one's own, a ready-made world, or a task file."""
    own = parser.add_argument_group("your own models and data")
    add = own.add_argument
    models = "timm:NAME, torchvision:NAME, hf:ID, FILE.gguf, FILE.py:NAME or a run's folder"
    also = "also timm:NAME@FILE.safetensors, a URL, openai:URL#MODEL, or none for no teacher"
    add("--teacher", metavar="T", help=f"{models}; {also}")
    add("--student", metavar="S", help=f"{models}; of a language model also truncate:10")
    add(
        "--data",
        metavar="D",
        help="a folder of pictures or texts, a .csv, .npz or .jsonl file, hf:ID, sklearn:digits "
        "or FILE.py:NAME",
    )
    add("--test", metavar="D", help="data for the reported score (held out of --data)")
    add("--target", metavar="COLUMN", help="a table's column of class names (the last one)")
    rooms = ", ".join(specs.ROOMS)
    add("--room", metavar="R", help=f"who makes the task: {rooms} (by models and data)")
    fetched = "whether the teacher has trained weights, fetched where need be: yes or no (yes)"
    add("--pretrained", choices=("yes", "no"), default="yes", metavar="Y", help=fetched)
    add("--augment", metavar="A", default="none", help="none, flip, crop or crop,flip (none)")
    spent = "the command stops, all answers are kept, and a further call may make as many again"
    about = f"requests to a teacher behind a URL, at most; when they are spent {spent} (no limit)"
    add("--requests", type=int, metavar="N", help=about)
    add("--context", type=int, metavar="N", help="tokens of a text at most (512)")
    add(
        "--rank",
        type=int,
        metavar="N",
        help="train low-rank adapters of a language model alone (all of it)",
    )
    other = parser.add_argument_group("or a ready-made task")
    add = other.add_argument
    worlds = "such as digits or \"digits(teacher='cnn', student='mlp')\""
    add(
        "--world", metavar="W", help=f"{worlds} (of `run` the method's own, unless a task is named)"
    )
    add("--task", metavar="FILE.py:FUNCTION", help="a function that gives a limbeck.Task")
    add = parser.add_argument_group("any task").add_argument
    add(
        "--taps",
        metavar="NAME=T,S",
        nargs="+",
        action="extend",
        help="where a method reads inside teacher and student: mid=layer3,features.7, several "
        "places as blocks=layer1+layer2,features.3+features.7 (the task's, or a guess that is "
        "told)",
    )
    add("--device", metavar="D", help="cpu, cuda, ... (a GPU where there is one)")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change the task's budget."""
    told = "the budget, instead of the task's (for your own models the values in brackets)"
    add = parser.add_argument_group(told).add_argument
    passes = "passes over the training set (10; of tables more where those are under 1,500 steps)"
    add("--epochs", type=float, metavar="X", help=passes)
    add("--steps", type=int, metavar="N", help="optimiser steps, instead of --epochs")
    add("--batch", type=int, metavar="N", help="samples in a step (64, of small sets fewer)")
    add("--lr", type=float, metavar="X", help="the optimiser's highest learning rate (0.001)")
    kinds = ("fp32", "bf16", "fp16")
    add("--precision", choices=kinds, metavar="P", help=f"{', '.join(kinds)} (fp32)")
    add("--accumulate", type=int, metavar="N", help="micro-batches in a step, to save memory (1)")
    add("--workers", type=int, metavar="N", help="processes that read ahead (0)")


def add_fields(parser: argparse.ArgumentParser, entry: Entry) -> None:
    """Add a method's fields as options, each kept as `field_NAME`."""
    add = parser.add_argument_group(f"the fields of {entry.card.key}").add_argument
    for field in outline(entry.path).fields:
        words = re.findall(r"[^,'\"\s\[\]]+", field.type.partition("Literal[")[2])
        short = "|".join(words) if len("".join(words)) <= 14 else ""
        usual = "V,..." if field.type.startswith("tuple[") else "V"
        told = [field.help.rstrip("; "), field.range, "" if short else ", ".join(words)]
        default = f"({field.default.strip(chr(39)) or 'needed'})"
        about = " ".join(filter(None, ("; ".join(filter(None, told)), default)))
        flag = f"--{field.name.replace('_', '-')}"
        add(
            flag,
            dest=f"field_{field.name}",
            metavar=_SHORT.get(field.type, short or usual),
            help=about.replace("%", "%%"),
        )


def load_torch() -> None:
    """Import torch, and tell a terminal of the seconds that this takes."""
    if "RANK" in os.environ:  # several processes: a remark of torch's, on a setting that is right
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    told = sys.stderr.isatty()
    if told:
        print("loading torch ...", end="\r", file=sys.stderr, flush=True)
    importlib.import_module("torch")
    if told:
        print("                 ", end="\r", file=sys.stderr, flush=True)
