"""Train a segmentation network from preferences between masks.

python train.py loss=hinge_anchor
python train.py -m loss=dpo,lse_anchor,hinge_anchor seed=0,1,2
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from segdpo.recipes import errors_as_messages, run_application, run_recipe


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Run the recipe of the chosen task and return the metric that searches and sweeps optimise."""
    with errors_as_messages():
        return run_recipe(config).get("metric")


if __name__ == "__main__":
    run_application(main, Path(__file__).parent / "conf", "train")
