"""A package that is not installed: the message names the extra."""

import ast
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from segdpo.extras import extra_of, missing_extra

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    f'{package}; extra == "{extra}"' for extra, found in PROJECT["optional-dependencies"].items() for package in found
]
CORE = {"torch", "jaxtyping", "segdpo"}


def imported_modules():
    """Return the packages that files of segdpo import, apart from Python's own."""
    names = set()
    for path in (ROOT / "segdpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    return sorted(names - sys.stdlib_module_names - CORE)


def test_the_first_extra_is_named():
    lines = [
        "torch>=2.6",
        'segdpo[train]; extra == "dev"',
        'opencv-python-headless>=4.9; extra == "train"',
        'Some.Package>=1,<2; python_version > "3.8" and extra == "coco"',
        'some-package>=1; extra == "dev"',
    ]
    found = [extra_of(name, lines) for name in ("cv2", "some_package.part", "torch", "elsewhere")]
    assert found == ["train", "coco", None, None]


def test_causes_are_searched():
    try:
        try:
            raise ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch")
        except ModuleNotFoundError as cause:
            raise ValueError("Error locating target") from cause
    except ValueError as error:
        said = missing_extra(error)
    assert said is not None
    assert "lightning," in said
    assert "pip install 'segdpo[train]'" in said
    assert missing_extra(ModuleNotFoundError("No module named 'my_module'", name="my_module")) is None
    assert missing_extra(ValueError("another")) is None


# Triton comes with torch where there are kernels for it.
UNDECLARED = {"triton"}


@pytest.mark.parametrize("module", [name for name in imported_modules() if name not in UNDECLARED])
def test_what_segdpo_imports_is_in_an_extra(module):
    assert extra_of(module, LINES) is not None


def brought_by(extra):
    """Return the packages that an extra installs, by the metadata of those that are installed here."""
    waiting = [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]
    found = set()
    while waiting:
        one = waiting.pop()
        if (one.name, *sorted(one.extras)) not in found:
            found.add((one.name, *sorted(one.extras)))
            further = [Requirement(line) for line in metadata.requires(one.name) or ()]
            extras = one.extras or {""}
            waiting += [r for r in further if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {name.lower() for name, *_ in found}


def test_training_needs_no_package_of_a_single_feature():
    unwanted = "transformers datasets pandas sqlalchemy grpcio tensorboard onnx onnxruntime onnxscript optuna peft"
    brought = brought_by("train")
    assert {"lightning", "timm", "aiohttp"} <= brought
    assert not brought & set(unwanted.split())


# transformers and datasets are missing from the list: torchmetrics imports them where their metadata are there.
OTHER_EXTRAS = ["onnx", "onnxruntime", "onnxscript", "optuna", "peft", "pycocotools", "submitit", "tensorboard"]
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({OTHER_EXTRAS}))  # not installed, for an import
import segdpo.extras
segdpo.extras.metadata.requires = lambda name: {LINES}
from importlib import import_module
from pkgutil import walk_packages
for found in walk_packages(segdpo.__path__, "segdpo."):
    try:
        import_module(found.name)
    except ModuleNotFoundError as error:
        print(found.name, error.name.partition(".")[0])
import torch
from functools import partial
from pathlib import Path
from segdpo import data, inference, models
network = models.Segmenter(torch.nn.Conv2d(3, 1, 1), 2)
for use in (
    partial(models.add_lora, network),
    partial(inference.export, network, Path("network.onnx"), (1, 3, 8, 8)),
    partial(data.decode_region, [[0, 0, 2, 0, 2, 2]], (4, 4), ""),
    lambda: segdpo.recipes.run_search,
):
    try:
        use()
    except ModuleNotFoundError as error:
        print("message:", error)
"""


@pytest.mark.untraced
def test_training_imports_no_package_of_another_extra(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    messages = [line for line in lines if line.startswith("message:")]
    imported = {line.split()[0] for line in lines if line not in messages and "triton" not in line}
    assert imported == {"segdpo.recipes.search", "segdpo.reports.trials", "segdpo.training.callbacks.pruning"}
    expected = [("peft", "lora"), ("onnxruntime", "export"), ("pycocotools", "coco"), ("optuna", "search")]
    for message, (package, extra) in zip(messages, expected, strict=True):
        assert package in message
        assert f"pip install 'segdpo[{extra}]'" in message
    assert not list(tmp_path.iterdir())


VERBS = {
    "train": ["loss=sft"],
    "mine": [],
    "check": ["images"],
    "pack": ["images", "new.pack"],
    "predict": ["run", "images", "--out", "masks"],
    "evaluate": ["run"],
    "report": ["run"],
    "collect": ["sweep"],
    "search": ["hparams_search=anchors"],
    "export": ["run", "network.onnx"],
    "publish": ["run", "cells"],
}
# In the place of an environment that has the core alone.
CORE_ALONE = """
import contextlib, io, json, sys
missing, verbs = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from segdpo import cli
def run(words):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return cli.main(words), said.getvalue()
found = {verb: run([verb, *words]) for verb, words in verbs.items()}
print(json.dumps([list(cli.VERBS), found]))
"""


def test_every_verb_says_in_one_line_what_to_install(tmp_path):
    missing = set(imported_modules()) - {"filelock", "jinja2", "markupsafe", "triton"}  # which torch brings
    words = [json.dumps(sorted(missing)), json.dumps(VERBS)]
    done = subprocess.run(
        [sys.executable, "-c", CORE_ALONE, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    verbs, found = json.loads(done.stdout)
    assert verbs == list(VERBS)
    for verb, (status, said) in found.items():
        assert status == 1, verb
        assert said.count("\n") == 1, (verb, said)
        assert "which is not installed; run pip install 'segdpo[" in said
    assert not any(tmp_path.iterdir())
