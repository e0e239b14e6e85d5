"""Several rounds: each collects preferences between masks of the policy that the round before has left.

Each is a training of its own (optimiser, schedule, order of images) of max_steps / rounds steps, in RUN/round_N; what
is drawn in it, candidates first of all, is drawn by a seed of its own.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segdpo.models.atomic_file import write_atomically
from segdpo.story.configs import leaves, plain
from segdpo.story.preferences import asks_a_network
from segdpo.story.setting import Setting

# Far beyond the seeds that people give, so that no round draws what another run does.
SEEDS_APART = 1_000_000


def rounds_of(setting: Setting) -> list[Setting]:
    """Return the setting of each round; one round is the run itself."""
    config = setting.config
    check_rounds(config)
    if config.rounds == 1:
        return [setting]
    steps = shares(config.trainer.max_steps, config.rounds)
    return [replace(setting, config=_own(config, *one), folder=_folder(setting, one[0])) for one in enumerate(steps)]


def check_rounds(config: DictConfig) -> None:
    """Refuse, before anything is trained, what no rounds can be made of."""
    if config.rounds < 1 or config.round_reference not in ("latest", "first"):
        raise ValueError(
            "Expected rounds of at least 1 and round_reference latest or first but got "
            f"rounds={config.rounds} round_reference={config.round_reference}."
        )
    if config.rounds == 1:
        return
    asks, held = asks_a_network(plain(config.pairs)), config.reference._target_.rpartition(".")[2]
    expected = {
        f"pairs that ask the policy for masks but got {config.pairs._target_}, which gives the same ones each round; "
        "choose pairs=logit_noise, tta, mc_dropout, thresholds or class_biases": asks,
        f"trainer.max_steps of at least {config.rounds}, to share out among the rounds, but got "
        f"{config.trainer.max_steps}": config.trainer.max_steps >= config.rounds,
        f"trainer.devices=1 but got {config.trainer.devices}": str(config.trainer.devices) == "1",
        "a reference that can follow but got adapter_off; choose reference=frozen, or round_reference=first": (
            held != "AdapterOff" or config.round_reference == "first"
        ),
        f"ckpt_path=last, or none, but got {config.ckpt_path}: a file does not say of which round it is": (
            config.ckpt_path in (None, "last")
        ),
    }
    for words, met in expected.items():
        if not met:
            raise ValueError(f"Expected, with rounds={config.rounds}, {words}.")


def shares(steps: int, rounds: int) -> list[int]:
    """Share the steps out evenly, the first rounds taking what is left over.

    >>> shares(60, 3), shares(8, 3)
    ([20, 20, 20], [3, 3, 2])
    """
    return [steps // rounds + (number < steps % rounds) for number in range(rounds)]


def join_metrics(folders: Sequence[Path], steps: Sequence[int], out: Path) -> None:
    """Write the rounds' metrics.csv as one, with steps that go on from round to round."""
    rows, columns, begin = [], ["epoch", "step"], 0
    for folder, length in zip(folders, steps, strict=True):
        path = folder / "metrics.csv"
        found = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        rows += [{**row, "step": str(int(row["step"]) + begin)} for row in found]
        columns += [name for name in (found[0] if found else {}) if name not in columns]
        begin += length
    if rows:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(out, text.getvalue().encode())


def _own(config: DictConfig, number: int, steps: int) -> DictConfig:
    own = config.copy()
    # Folds, images, or a reward model that go with the run's seed are not another round's.
    for name, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and "${seed}" in value:
            OmegaConf.update(own, name, OmegaConf.select(config, name))
    own.run_folder = str(Path(config.run_folder) / f"round_{number + 1}")
    own.seed = config.seed + number * SEEDS_APART
    own.trainer.max_steps = steps
    return own


def _folder(setting: Setting, number: int) -> Path:
    folder = setting.folder / f"round_{number + 1}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
