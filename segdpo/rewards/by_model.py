"""A trained reward model as a reward: what a policy gradient climbs where there is no gold."""

from jaxtyping import Float
from torch import Tensor, nn

from segdpo.rewards.request import RewardRequest


def by_model(request: RewardRequest, *, model: nn.Module) -> Float[Tensor, "masks"]:
    """Ask `model(image, masks, image_index) -> [masks]`, in evaluation mode and on the images' device.

    >>> from functools import partial
    >>> reward = partial(by_model, model=nn.Module())   # conf/reward/reward_model.yaml: a RewardModel of a file
    """
    classes = getattr(model, "classes", None)
    if classes is not None and classes != request.classes:
        raise ValueError(
            f"Expected a reward model of masks with {request.classes} classes, as the policy predicts, but this one "
            f"was trained on masks with {classes}; train one on this data (python train.py task=reward)."
        )
    rewards: Tensor = model.to(request.image.device).eval()(request.image, request.shown(), request.image_index)
    return rewards
