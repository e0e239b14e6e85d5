"""What `import segdpo` costs and shows."""

import pkgutil
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
    assert listed - packages - {"TYPE_CHECKING", "attach"} == PUBLIC


def test_a_fresh_import_is_light_and_silent():
    code = (
        "import warnings; warnings.simplefilter('error'); import sys; before = set(sys.modules); import segdpo; "
        f"heavy = {HEAVY!r}; new = set(sys.modules) - before; "
        "print(sorted(m for m in new if m.split('.')[0] in heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""
