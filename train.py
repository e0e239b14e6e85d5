"""The main job: a reference from cheap masks, preferences, a policy, and how the two compare.

python train.py loss=hinge_anchor
python train.py -m loss=dpo,lse_anchor,hinge_anchor seed=0,1,2
"""

import json
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from examples.plain_pytorch import run


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float:
    """Compose, build, run; return the metric that searches and sweeps optimise."""
    torch.set_num_threads(config.threads)
    loss = instantiate(config.loss)
    choices = HydraConfig.get().runtime.choices
    print(f"loss={choices['loss']} score={choices['score']} beta={config.beta} seed={config.seed}")
    story = run(loss, seed=config.seed, steps=config.steps)
    folder = Path(HydraConfig.get().runtime.output_dir)
    summary = {
        "loss": choices["loss"],
        "seed": config.seed,
        "reference": {"iou": story.reference_iou},
        "policy": {"iou": story.policy_iou},
        "curves": story.curves,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"curves and summary: {folder / 'summary.json'}")
    return story.policy_iou


if __name__ == "__main__":
    main()
