"""Train a segmentation network from preferences: compose, run, return what a search optimises.

python train.py loss=hinge_anchor
python train.py -m loss=dpo,lse_anchor,hinge_anchor seed=0,1,2
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from segdpo.recipes import in_words, run_recipe, with_choices


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Run the story of the chosen task."""
    with in_words():
        return run_recipe(config).get("metric")


if __name__ == "__main__":
    with_choices(main, Path(__file__).parent / "conf", "train")
