"""What `import segdpo` costs and shows."""

import pkgutil
import py_compile
import subprocess
import sys

import segdpo

PUBLIC = {
    "IGNORE",
    "Anchor",
    "Boundary",
    "LossTerms",
    "MaskIndex",
    "PairIndex",
    "PairScores",
    "PreferenceLoss",
    "Score",
    "anchors",
    "listwise",
    "mask_index",
    "objectives",
    "pair_index",
    "kl_to_reference",
    "score_drift",
    "score_masks",
    "score_pairs",
    "score_ranking",
}
TRAINING = {"DataModule", "PreferenceTask", "Summary", "load", "train"}
HEAVY = [
    "torch",
    "numpy",
    "lightning",
    "hydra",
    "omegaconf",
    "segmentation_models_pytorch",
    "albumentations",
    "torchvision",
    "scipy",
    "pandas",
]


def test_public_names_are_the_list():
    """Adding or taking away a public name is a decision: change this list and CHANGELOG.md with it."""
    listed = {name for name in dir(segdpo) if not name.startswith("_")}
    packages = {module.name for module in pkgutil.iter_modules(segdpo.__path__)}
    assert listed - packages - {"TYPE_CHECKING", "attach"} == PUBLIC | TRAINING


def test_a_fresh_import_is_light_and_silent():
    code = (
        "import warnings; warnings.simplefilter('error'); import sys; before = set(sys.modules); import segdpo; "
        f"heavy = {HEAVY!r}; new = set(sys.modules) - before; "
        "print(sorted(m for m in new if m.split('.')[0] in heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""


def python(code, **options):
    """Run code in a fresh interpreter and return what it printed."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options)
    return run.stdout.split()


def test_packages_and_a_star_import():
    """Packages are there after `import segdpo`, as if it had imported them; a star imports what needs torch alone."""
    code = (
        "import segdpo; print(segdpo.losses.PreferenceLoss is segdpo.PreferenceLoss, hasattr(segdpo, 'lazy_')); "
        "from segdpo import *; print(Score is segdpo.Score, *segdpo.__all__)"
    )
    assert python(code) == ["True", "False", "True", *sorted(PUBLIC)]


def test_byte_code_alone_is_refused_with_the_fix(tmp_path):
    for name in ("__init__", "lazy"):
        py_compile.compile(f"{segdpo.__path__[0]}/{name}.py", cfile=str(tmp_path / "segdpo" / f"{name}.pyc"))
    code = "try:\n    import segdpo\nexcept ImportError as error:\n    print(error)"
    assert {"segdpo,", ".py"} <= set(python(code, cwd=tmp_path))
