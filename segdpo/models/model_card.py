"""The model card: what a network was trained from, how good it is, and how it is loaded, as README.md of the hub."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segdpo.checks import is_finite
from segdpo.files import exists, read_file
from segdpo.models.allowed import NETWORKS
from segdpo.models.targets import current_name

SUMMARY, MAX_SUMMARY_BYTES = "summary.json", 2**24
# Entries of summary.json that the card repeats.
CHOICES = ("task", "loss", "data", "reference_training", "candidates", "judge", "questions", "seed", "max_steps")
COUNTS = {"train": "training images with preferences", "judgements": "judgements"}
FIGURES = {"iou": "IoU", "dice": "Dice"}
ROLES = {
    "model": "this network",
    "reference": "its reference, before preference training",
    "difference": "difference",
}
INTERVAL = ("mean", "low", "high", "n")
CARD = """---
{front}
---

# {name}

Segmentation of images into {number} classes: {classes}.

## Use

`pip install 'segdpo[hub]'`, then:

```python
import segdpo

model = segdpo.load({argument})
mask = model.predict("photo.png")  # class ids, uint8 [height, width]
```
{other}
## Images

{images}

## Training

{training}

## Figures

{figures}

## License

{license}
"""
OTHER = {
    "segmentation-models-pytorch": "`segmentation_models_pytorch.from_pretrained(…)`",
    "transformers": "`transformers.AutoModelForSemanticSegmentation.from_pretrained(…)`",
}


def training_of(folder: Path) -> dict[str, Any]:
    """Return what a run's summary.json says of its policy; nothing where it is missing, damaged or of another form."""
    path = folder / SUMMARY
    try:
        summary = json.loads(read_file(path, MAX_SUMMARY_BYTES)) if exists(path) else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(summary, Mapping):
        return {}
    found: dict[str, Any] = {
        name: summary[name] for name in CHOICES if isinstance(summary.get(name), str | int) and _is_used(name, summary)
    }
    pairs = _mapping(summary, "pairs")
    found |= {name: pairs[name] for name in COUNTS if type(pairs.get(name)) is int}
    kept = _mapping(summary, "kept").get("network", "policy")
    compared = {"policy": "model", "reference": "reference", "difference": "difference"}
    roles = {"reference": "model"} if kept == "reference" else compared
    figures = {role: _intervals(_mapping(summary, network)) for network, role in roles.items()}
    version = _mapping(summary, "versions").get("segdpo")
    return {
        **found,
        "kept": str(kept),
        "segdpo": str(version),
        "figures": {role: intervals for role, intervals in figures.items() if intervals},
    }


def _is_used(name: str, summary: Mapping[str, Any]) -> bool:
    """Return whether a choice had a part in the run: summary.json has the choice of every group."""
    if summary.get("task") == "supervised":
        return name in ("task", "data", "seed", "max_steps")
    return summary.get("questions") != "answered" or name not in ("candidates", "judge")


def model_card(description: Mapping[str, Any], library: str | None, license: str | None, name: str) -> str:  # noqa: A002
    """Return the text of README.md.

    Args:
        description: see `Segmenter.description`.
        library: that can load the network by itself, by its name on the hub.
        license: its name on the hub.
        name: OWNER/NAME, or the folder's name.
    """
    classes = [_plain(one) for one in description["classes"]]
    own = {target.partition(".")[0] for target in _targets(description["model"]) if not NETWORKS.has(target)}
    argument = json.dumps(name) + (f", trusted={json.dumps(sorted(own))}" if own else "")
    other = f"\nOr, without segdpo, `{library}`: {OTHER[library]}.\n" if library else ""
    tags = ["segdpo", "semantic-segmentation", "preference-learning", *([library] if library else [])]
    front = ["library_name: segdpo", "pipeline_tag: image-segmentation", "tags:", *(f"- {tag}" for tag in tags)]
    return CARD.format(
        front="\n".join([*([f"license: {license}"] if license else []), *front]),
        name=_plain(name),
        number=len(classes),
        classes=", ".join(f"{number} {one}" for number, one in enumerate(classes)),
        argument=argument,
        other=other,
        images=_images(description),
        training=_training(_mapping(description, "training")),
        figures=_figures(_mapping(description, "training")),
        license=license or "Not stated.",
    )


def check_license(name: str | None) -> None:
    """Refuse a name that cannot be the hub's of a license."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise ValueError(f"Expected the license by its name on the hub, such as mit or cc-by-4.0, but got {name!r}.")


def _images(description: Mapping[str, Any]) -> str:
    preparation = _mapping(description, "preparation")
    steps = _mapping(preparation, "views").get("steps") or []
    lines = [_step(one) for one in steps if isinstance(one, Mapping)] or ["at their own size"]
    if (channels := preparation.get("channels")) in (1, 3):
        lines.insert(0, "RGB" if channels == 3 else "grey")
    if preparation.get("value_range"):
        lines.append(f"values {_plain(preparation['value_range'])} become 0 and 255")
    if preparation.get("window"):
        lines.append(f"in windows of {_plain(preparation['window'])} pixels")
    lines.append(f"divided by 255, mean {_plain(description['mean'])}, std {_plain(description['std'])}")
    return "\n".join(f"- {line}" for line in lines)


def _step(node: Mapping[Any, Any]) -> str:
    name = str(node.get("_target_")).rpartition(".")[2]
    options = [f"{key}={value}" for key, value in node.items() if not str(key).startswith("_") and value is not None]
    return _plain(f"{name}({', '.join(options)})")


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return "Not known."
    lines = [f"| {name} | {_plain(training[name])} |" for name in CHOICES if name in training]
    lines += [f"| {words} | {_plain(training[name])} |" for name, words in COUNTS.items() if name in training]
    text = "\n".join(
        ["| option of segdpo | value |", "|---|---|", *lines, f"| segdpo | {_plain(training.get('segdpo'))} |"]
    )
    if training.get("kept") == "reference":
        text += (
            "\n\nThe held-out judgements did not show that the trained policy is better: these are the weights of the "
            "reference, the network before preference training."
        )
    return text


def _figures(training: Mapping[str, Any]) -> str:
    figures = _mapping(training, "figures")
    rows = []
    for role, words in ROLES.items():
        intervals = _intervals(_mapping(figures, role))
        if intervals:
            cells = [_interval(intervals.get(metric), sign=role == "difference") for metric in FIGURES]
            count = max(one["n"] for one in intervals.values())
            rows.append(f"| {words} | {' | '.join(cells)} | {count:.0f} |")
    if not rows:
        return "Not known."
    head = f"| | {' | '.join(FIGURES.values())} | test images |"
    return "\n".join([head, "|---|---|---|---|", *rows, "", "Means with 95 % intervals over the test images."])


def _interval(found: Mapping[str, float] | None, *, sign: bool) -> str:
    if found is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    return f"{found['mean']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def _intervals(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics of which mean, ends and count are finite numbers."""
    return {
        metric: {key: _mapping(found, metric)[key] for key in INTERVAL}
        for metric in FIGURES
        if all(is_finite(_mapping(found, metric).get(key)) for key in INTERVAL)
    }


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield current_name(node["_target_"])
        node = list(node.values())
    for part in node if isinstance(node, Sequence) and not isinstance(node, str) else ():
        yield from _targets(part)


def _plain(value: Any) -> str:
    """Return a value as text without Markdown and HTML: names of classes may come from a file."""
    return re.sub(r"[^\w .,:;=+/()\[\]'-]", " ", str(value))[:500]
