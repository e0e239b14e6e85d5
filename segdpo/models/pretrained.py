"""A trained Segmenter on disk or on the Hugging Face hub: read, save as a folder, publish.

The folder of `save_pretrained`, which is also what a repository of the hub holds:

    model.safetensors   the weights of `segmenter.network`, under its own names
    config.json         the description and its checksum under the key "_segdpo"; of a network of smp or transformers,
                        also what its own library reads
    README.md           the model card
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from segdpo.extras import extra_named
from segdpo.files import DataError, exists, read_file, write_atomically
from segdpo.models.adapters import has_adapter, merge_adapter
from segdpo.models.allowed import ADAPTERS
from segdpo.models.hugging_face import is_of_transformers, load_transformers, without_download
from segdpo.models.model_card import check_license, model_card, training_of
from segdpo.models.segmenter import Segmenter
from segdpo.models.trust import build_named, without_interpolations
from segdpo.models.weights import (
    checksum,
    from_json,
    load_weights,
    read_checkpoint,
    read_header,
    read_tensors,
    save_tensors,
)

POLICY, WEIGHTS, CONFIG, CARD = "policy.safetensors", "model.safetensors", "config.json", "README.md"
# smp gives every key to its constructors, but those that begin with an underscore.
KEY, CHECKSUM = "_segdpo", "crc32"
NEEDED = ("model", "classes", "mean", "std")
MAX_CONFIG_BYTES = 2**24
ON_THE_HUB = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def load_pretrained(path: str | Path, trusted: Sequence[str] = ()) -> Segmenter:
    """Return the Segmenter of a run, a file or a repository; see `Segmenter.from_pretrained`."""
    path = weights_path(path)
    description = read_description(path)
    front = f"{CONFIG}: " if path.name == WEIGHTS else ""
    segmenter = build_named(description["model"], path, f"{front}model", trusted=trusted)
    if not isinstance(segmenter, Segmenter):
        raise ValueError(f"{path}: Expected model to build a Segmenter but it builds a {type(segmenter).__name__}.")
    if description.get("adapter"):
        adapt = build_named(description["adapter"], path, f"{front}adapter", table=ADAPTERS, trusted=trusted)
        segmenter = _adapted(segmenter, adapt, path)
    try:
        if path.name == WEIGHTS and is_of_transformers(segmenter.network):
            load_transformers(path, segmenter.network)
        else:
            load_weights(path, segmenter)
    except ValueError as error:
        if not _was_pretrained(description["model"]) or "segdpo" in trusted:
            raise
        hint = "The architecture came from pretrained=…, which is not downloaded here; --trust segdpo downloads it."
        raise ValueError(f"{error} {hint}") from error
    merged = merge_adapter(segmenter) if has_adapter(segmenter) else segmenter
    merged.description = {**description, "adapter": None}
    return merged.eval()


def save_pretrained(
    segmenter: Segmenter,
    folder: str | Path,
    license: str | None = None,  # noqa: A002
    repo_id: str | None = None,
) -> None:
    """Write the folder; see `Segmenter.save_pretrained`."""
    folder, description = Path(folder), _checked_description(segmenter)
    check_license(license)
    description["model"] = without_download(description["model"])
    network = segmenter.network
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
        config = _write_network(network, Path(place), description["classes"]) | {KEY: _with_checksum(description)}
        content = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False).encode()
        os.replace(Path(place, WEIGHTS), folder / WEIGHTS)
    write_atomically(folder / CONFIG, content)
    card = model_card(description, _library_of(network), license, repo_id or folder.resolve().name)
    write_atomically(folder / CARD, card.encode())


def push_folder(folder: Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload the three files of a folder to a repository of the hub, which is made if it is not there.

    Returns:
        The address of the commit.
    """
    hub = _hub().HfApi(token=token)
    name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, CARD]))


def weights_path(path: str | Path) -> Path:
    """Return the file of weights that a path or a name on the hub means.

    Args:
        path: a run's folder (its policy), a folder of `save_pretrained`, a .safetensors, a .ckpt, or, where no such
            path exists, OWNER/NAME or OWNER/NAME@REVISION on the hub.
    """
    path = local_copy(path, (WEIGHTS, CONFIG))
    if path.is_file():
        if path.suffix not in (".safetensors", ".ckpt"):
            raise ValueError(f"{path}: Expected a run's folder, a .safetensors or a .ckpt but got another file.")
        return path
    if (path / POLICY).is_file():
        return path / POLICY
    if (path / CONFIG).is_file():
        return path / WEIGHTS
    others = sorted(found for suffix in ("*.safetensors", "*.ckpt") for found in path.rglob(suffix))
    hint = f"the folder has {', '.join(map(str, others[:3]))}: give one of them" if others else "did the run finish?"
    raise FileNotFoundError(f"{path}: Expected a run's folder with {POLICY} but it has none; {hint}.")


def local_copy(path: str | Path, files: Iterable[str]) -> Path:
    """Return the path if it exists; else the folder with these files of the repository that it names on the hub.

    The hub is asked only for OWNER/NAME or OWNER/NAME@REVISION where there is no folder OWNER here.
    """
    path = Path(path)
    if exists(path):
        return path
    named = ON_THE_HUB.fullmatch(path.as_posix())
    if named is None or exists(Path(path.parts[0])) or path.suffix in (".safetensors", ".ckpt"):
        raise FileNotFoundError(f"{path}: no such run or file; give a run's folder, a .safetensors or a .ckpt.")
    hub = _hub()
    try:
        return Path(hub.snapshot_download(named["id"], revision=named["revision"], allow_patterns=list(files)))
    except Exception as error:  # of a dozen kinds: offline, no such repository, no access, a wrong name
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{path}: no such run or file here, and no repository of that name could be read from the hub ({reason}); "
            "correct the path, or connect to the network (a repository is downloaded once)."
        ) from error


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of the network in a file of weights, or in the config.json beside model.safetensors."""
    if path.suffix == ".ckpt":
        content = read_checkpoint(path, mmap=True)
        parameters = content.get("hyper_parameters") if isinstance(content, Mapping) else None
        config = parameters.get("config") if isinstance(parameters, Mapping) else None
    else:
        config = from_json(read_header(path).get("config", "null"), path)
    source = path
    if config is None and path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        source = path.parent / CONFIG
        content = from_json(read_file(source, MAX_CONFIG_BYTES).decode(errors="replace"), source)
        config = _without_checksum(content.get(KEY), source) if isinstance(content, Mapping) else None
    missing = [key for key in NEEDED if not isinstance(config, Mapping) or key not in config]
    if missing:
        raise ValueError(
            f"{source}: Expected a description of the network ({', '.join(NEEDED)}) with the weights but "
            f"{', '.join(missing)} is missing; give a file that train.py or save_pretrained wrote."
        )
    found = cast(dict[str, Any], without_interpolations(config, source))
    check_description(found, source)
    if path.name == POLICY and (training := training_of(path.parent)):
        found["training"] = training
    return found


def _with_checksum(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description with the checksum of its JSON: what else is in config.json may be written anew."""
    return {**description, CHECKSUM: checksum(description)}


def _without_checksum(found: Any, source: Path) -> Any:
    """Return the description without its checksum; earlier versions wrote none."""
    if not isinstance(found, Mapping) or CHECKSUM not in found:
        return found
    description = {name: value for name, value in found.items() if name != CHECKSUM}
    if found[CHECKSUM] != checksum(description):
        raise DataError(
            f"{source}: Expected {KEY} to fit its {CHECKSUM} but it does not: the file is damaged or was edited; save "
            f"the network again, or, if the change was meant, remove {CHECKSUM} from {KEY}.",
            "damaged",
        )
    return description


def check_description(found: Mapping[str, Any], source: object) -> None:
    """Refuse a description whose classes, mean or std are not lists of names and numbers."""
    for name, kind in (("classes", str), ("mean", int | float), ("std", int | float)):
        values = found[name]
        if not isinstance(values, list | tuple) or not values or not all(isinstance(one, kind) for one in values):
            raise ValueError(
                f"{source}: Expected {name} of the network as a list of {'names' if kind is str else 'numbers'} but "
                f"got {values!r:.200}; give a file that train.py wrote."
            )


def _checked_description(segmenter: Segmenter) -> dict[str, Any]:
    description = dict(segmenter.description or {})
    if missing := [key for key in NEEDED if key not in description]:
        raise ValueError(
            f"Expected segmenter.description with {', '.join(NEEDED)} but {', '.join(missing)} is missing; open the "
            "network of a run with Segmenter.from_pretrained, or set the description (docs/howto/hub.md)."
        )
    check_description(description, "segmenter.description")
    if has_adapter(segmenter):
        raise ValueError("Expected a network without an adapter but it has one; save segdpo.models.merge_adapter(…).")
    return description


def _write_network(network: nn.Module, folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Write the weights, and return what the network's own library reads from config.json."""
    library = _library_of(network)
    if library == "transformers":
        own = cast(Any, network)
        # In the names of its files, which are not those of its modules.
        own.save_pretrained(folder, max_shard_size="1000GB")
        save_tensors(folder / WEIGHTS, read_tensors(folder / WEIGHTS), read_header(folder / WEIGHTS))
        config = json.loads((folder / CONFIG).read_text())
        labels = classes if len(config["id2label"]) == len(classes) else classes[1:]
        names = {str(number): name for number, name in enumerate(labels)}
        return {**config, "id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    save_tensors(folder / WEIGHTS, network.state_dict(), {"format": "pt"})
    if library == "segmentation-models-pytorch":
        # The weights of the encoder are in the file: smp has none to download.
        return {**cast(Any, network).config, "encoder_weights": None, "_model_class": type(network).__name__}
    return {}


def _library_of(network: nn.Module) -> str | None:
    """Return the library that can load the network by itself, by its name on the hub."""
    if is_of_transformers(network):
        return "transformers"
    package, _, rest = type(network).__module__.partition(".")
    of_smp = package == "segmentation_models_pytorch" and rest.startswith("decoders.") and hasattr(network, "config")
    return "segmentation-models-pytorch" if of_smp else None


def _hub() -> Any:
    with extra_named():
        import huggingface_hub

    return huggingface_hub


def _was_pretrained(config: Any) -> bool:
    """Return whether the network's architecture was downloaded, as with transformers_model's pretrained=…."""
    if isinstance(config, Mapping):
        return bool(config.get("pretrained")) or any(map(_was_pretrained, config.values()))
    return isinstance(config, list) and any(map(_was_pretrained, config))


def _adapted(segmenter: Segmenter, adapt: Any, path: Path) -> Segmenter:
    try:
        return cast(Segmenter, adapt(segmenter))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: adapter cannot be added from its description: {error}") from error
