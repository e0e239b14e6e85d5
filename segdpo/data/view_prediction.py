"""A network asked about images at their own size, through the views that it was trained and is measured on."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from segdpo.data.native_size import box_of, probes_of
from segdpo.data.transforms import Pipeline
from segdpo.pairs.prediction import Images, Logits, Predict


def predict_in_views(model: nn.Module, *, views: Pipeline, device: str = "cpu") -> Predict:
    """Return the `predict` of a network in eval mode: each image goes through `views`, its logits come back resampled.

    A network that learned on images resized to 128² knows them at that size alone; candidates that it drew at an
    image's own size would be those of a much worse network. `views` have to show the whole image (`transforms.eval`).
    """
    model.to(device).eval()
    return partial(_forward, model=model, views=views, device=device)


def _forward(images: Images, *, model: nn.Module, views: Pipeline, device: str) -> Logits:
    size = images.shape[1:3]
    probes = probes_of(size)
    seen = [views(image, probes, np.random.default_rng(0)) for image in images]
    rows, columns = box_of("transforms.eval", seen[0], size)
    with torch.inference_mode():
        logits: Tensor = model(torch.from_numpy(np.stack([view.image for view in seen])).to(device))
        logits = logits[:, :, rows, columns].float()
        if logits.shape[2:] != size:
            logits = nn.functional.interpolate(logits, size, mode="bilinear", antialias=True)
    return np.asarray(logits.cpu().numpy())
