"""Mine preferences: candidates × a judge × questions → a data set on disk, and a report on the sources.

    python scripts/mine_pairs.py data=shapes candidates=corruptions judge=iou questions=best_worst out=outputs/mined

Interrupted at any moment and started again with the same settings, it resumes and writes the same bytes. conf/mine.yaml
has all options.
"""

import hydra
from omegaconf import DictConfig

from segdpo.recipes import run_mine


@hydra.main(version_base=None, config_path="../conf", config_name="mine")
def main(config: DictConfig) -> None:
    """Mine as `config` says."""
    run_mine(config)


if __name__ == "__main__":
    main()
