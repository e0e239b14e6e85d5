"""LightningModules, references, callbacks, schedules."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.training.callbacks.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
    from segdpo.training.callbacks.checkpoints import LastCheckpoint as LastCheckpoint
    from segdpo.training.callbacks.checkpoints import RandomState as RandomState
    from segdpo.training.callbacks.checkpoints import ResumeHint as ResumeHint
    from segdpo.training.callbacks.displacement import Displacement as Displacement
    from segdpo.training.callbacks.panels import Panels as Panels
    from segdpo.training.callbacks.panels import panel_rows as panel_rows
    from segdpo.training.callbacks.progress import Progress as Progress
    from segdpo.training.callbacks.pruning import PruneTrial as PruneTrial
    from segdpo.training.held_out import GAINS as GAINS
    from segdpo.training.held_out import HeldOutGains as HeldOutGains
    from segdpo.training.losses import cross_entropy as cross_entropy
    from segdpo.training.losses import dice as dice
    from segdpo.training.losses import smp_loss as smp_loss
    from segdpo.training.losses import weighted_sum as weighted_sum
    from segdpo.training.metrics_file import MetricsFile as MetricsFile
    from segdpo.training.preference import PAIRS as PAIRS
    from segdpo.training.preference import PreferenceTask as PreferenceTask
    from segdpo.training.references import AdapterOff as AdapterOff
    from segdpo.training.references import FrozenCopy as FrozenCopy
    from segdpo.training.references import Moving as Moving
    from segdpo.training.references import NoReference as NoReference
    from segdpo.training.references import Reference as Reference
    from segdpo.training.references import frozen_copy as frozen_copy
    from segdpo.training.reward import JudgeScores as JudgeScores
    from segdpo.training.reward import RewardTask as RewardTask
    from segdpo.training.reward import margins_of as margins_of
    from segdpo.training.reward import rewards_of as rewards_of
    from segdpo.training.reward import share_ahead as share_ahead
    from segdpo.training.schedules import Adaptive as Adaptive
    from segdpo.training.schedules import constant as constant
    from segdpo.training.schedules import constant_beta as constant_beta
    from segdpo.training.schedules import cosine as cosine
    from segdpo.training.schedules import cosine_beta as cosine_beta
    from segdpo.training.schedules import linear as linear
    from segdpo.training.schedules import linear_beta as linear_beta
    from segdpo.training.score_cache import CachedScores as CachedScores
    from segdpo.training.score_cache import ScoreTable as ScoreTable
    from segdpo.training.scoring import PreferenceBatch as PreferenceBatch
    from segdpo.training.scoring import images_of as images_of
    from segdpo.training.scoring import score_batch as score_batch
    from segdpo.training.scoring import weight_of as weight_of
    from segdpo.training.scoring import without_logits as without_logits
    from segdpo.training.shared_encoder import SharedEncoder as SharedEncoder
    from segdpo.training.supervised import SupervisedTask as SupervisedTask
    from segdpo.training.task import MakeOptimizer as MakeOptimizer
    from segdpo.training.task import MakeScheduler as MakeScheduler
    from segdpo.training.task import NonFiniteLossError as NonFiniteLossError
    from segdpo.training.task import Task as Task
    from segdpo.training.task import batch_in_errors as batch_in_errors

__getattr__, __dir__ = attach(__name__)
