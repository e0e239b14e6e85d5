"""Where preferences come from: candidates, corruptions, judges, questions, selection, mining."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.preferences.candidates import checkpoints as checkpoints
    from segdpo.preferences.candidates import class_biases as class_biases
    from segdpo.preferences.candidates import distinct as distinct
    from segdpo.preferences.candidates import existing as existing
    from segdpo.preferences.candidates import from_function as from_function
    from segdpo.preferences.candidates import logit_noise as logit_noise
    from segdpo.preferences.candidates import mc_dropout as mc_dropout
    from segdpo.preferences.candidates import mixture as mixture
    from segdpo.preferences.candidates import samples as samples
    from segdpo.preferences.candidates import thresholds as thresholds
    from segdpo.preferences.candidates import turned_views as turned_views
    from segdpo.preferences.corruptions import corrupt as corrupt
    from segdpo.preferences.diversity import Diversity as Diversity
    from segdpo.preferences.diversity import SourceReport as SourceReport
    from segdpo.preferences.journal import Journal as Journal
    from segdpo.preferences.journal import Line as Line
    from segdpo.preferences.journal import Miner as Miner
    from segdpo.preferences.journal import Result as Result
    from segdpo.preferences.journal import Summary as Summary
    from segdpo.preferences.journal import in_this_process as in_this_process
    from segdpo.preferences.journal import journal_path as journal_path
    from segdpo.preferences.journal import run_mining as run_mining
    from segdpo.preferences.judges import CannotJudge as CannotJudge
    from segdpo.preferences.judges import Judge as Judge
    from segdpo.preferences.judges import Scores as Scores
    from segdpo.preferences.judges import agreement as agreement
    from segdpo.preferences.judges import boundary_iou as boundary_iou
    from segdpo.preferences.judges import by_function as by_function
    from segdpo.preferences.judges import by_network as by_network
    from segdpo.preferences.judges import consensus as consensus
    from segdpo.preferences.judges import dice as dice
    from segdpo.preferences.judges import gumbel as gumbel
    from segdpo.preferences.judges import hd95 as hd95
    from segdpo.preferences.judges import iou as iou
    from segdpo.preferences.judges import surface_dice as surface_dice
    from segdpo.preferences.mining import SCORES as SCORES
    from segdpo.preferences.mining import UNJUDGED as UNJUDGED
    from segdpo.preferences.mining import Mined as Mined
    from segdpo.preferences.mining import Mining as Mining
    from segdpo.preferences.mining import Outcome as Outcome
    from segdpo.preferences.mining import judged_masks as judged_masks
    from segdpo.preferences.mining import mined_of_old as mined_of_old
    from segdpo.preferences.mining import pack_judged as pack_judged
    from segdpo.preferences.mining import unpack_judged as unpack_judged
    from segdpo.preferences.network import Logits as Logits
    from segdpo.preferences.network import Network as Network
    from segdpo.preferences.network import asks_network as asks_network
    from segdpo.preferences.network import masks_of as masks_of
    from segdpo.preferences.network import to_image as to_image
    from segdpo.preferences.network import to_model_input as to_model_input
    from segdpo.preferences.network import with_network as with_network
    from segdpo.preferences.questions import Questions as Questions
    from segdpo.preferences.questions import adjacent_ranks as adjacent_ranks
    from segdpo.preferences.questions import all_pairs as all_pairs
    from segdpo.preferences.questions import answers_for as answers_for
    from segdpo.preferences.questions import answers_for_best as answers_for_best
    from segdpo.preferences.questions import answers_for_ranking as answers_for_ranking
    from segdpo.preferences.questions import best_worst as best_worst
    from segdpo.preferences.questions import bradley_terry as bradley_terry
    from segdpo.preferences.questions import by_gap as by_gap
    from segdpo.preferences.questions import flipped as flipped
    from segdpo.preferences.questions import random_pairs as random_pairs
    from segdpo.preferences.ray_cluster import on_ray as on_ray
    from segdpo.preferences.selection import at_random as at_random
    from segdpo.preferences.selection import disagreement as disagreement
    from segdpo.preferences.selection import entropy as entropy
    from segdpo.preferences.selection import everything as everything
    from segdpo.preferences.selection import most_promising as most_promising
    from segdpo.preferences.selection import part as part
    from segdpo.preferences.sliding_window import check_windows as check_windows
    from segdpo.preferences.sliding_window import whole_or_in_windows as whole_or_in_windows

__getattr__, __dir__ = attach(__name__)
