"""What a run does: one file a task, and the commands that train, search, mine and evaluate."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.recipes.best_of import run_best_of as run_best_of
    from segdpo.recipes.collect import answered as answered
    from segdpo.recipes.collect import collect_preferences as collect_preferences
    from segdpo.recipes.command_line import run_application as run_application
    from segdpo.recipes.command_line import search_path as search_path
    from segdpo.recipes.config import build as build
    from segdpo.recipes.evaluate import SPLITS as SPLITS
    from segdpo.recipes.evaluate import Request as Request
    from segdpo.recipes.evaluate import config_for as config_for
    from segdpo.recipes.evaluate import evaluate_weights as evaluate_weights
    from segdpo.recipes.evaluate import images_of_split as images_of_split
    from segdpo.recipes.evaluate import run_of as run_of
    from segdpo.recipes.finetune import run_finetune as run_finetune
    from segdpo.recipes.fitting import fit as fit
    from segdpo.recipes.fitting import make_data as make_data
    from segdpo.recipes.fitting import make_policy as make_policy
    from segdpo.recipes.fitting import make_trainer as make_trainer
    from segdpo.recipes.from_python import Summary as Summary
    from segdpo.recipes.from_python import train as train
    from segdpo.recipes.kept_preferences import KeptCandidates as KeptCandidates
    from segdpo.recipes.kept_preferences import KeptMined as KeptMined
    from segdpo.recipes.mine import ConfiguredMiner as ConfiguredMiner
    from segdpo.recipes.mine import run_mine as run_mine
    from segdpo.recipes.policy_gradient import run_policy_gradient as run_policy_gradient
    from segdpo.recipes.preference import make_task as make_task
    from segdpo.recipes.preference import run_preference as run_preference
    from segdpo.recipes.reference import train_or_load_reference as train_or_load_reference
    from segdpo.recipes.reward import run_reward as run_reward
    from segdpo.recipes.rounds import Round as Round
    from segdpo.recipes.rounds import rounds_of as rounds_of
    from segdpo.recipes.run import Clock as Clock
    from segdpo.recipes.run import Run as Run
    from segdpo.recipes.run import open_run as open_run
    from segdpo.recipes.run import quieten as quieten
    from segdpo.recipes.run import run_recipe as run_recipe
    from segdpo.recipes.search import run_search as run_search
    from segdpo.recipes.supervised import run_supervised as run_supervised
    from segdpo.recipes.sweep_folder import SweepFolder as SweepFolder

__getattr__, __dir__ = attach(__name__)
