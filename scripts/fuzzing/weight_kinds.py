"""The kinds of files that come with a network: weights, caches, and the configuration of a run."""

import io
import json
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file

from fuzzing.data_samples import records
from fuzzing.data_steps import digest
from fuzzing.hostile import Hostile
from fuzzing.kind import Files, Kind
from fuzzing.mutations import dump, mutate_bytes, mutate_value, read_zip, write_zip
from segdpo.data import Candidates, Preparation, Record, write_folder
from segdpo.inference import open_segmenter
from segdpo.models import (
    RewardModel,
    Segmenter,
    checksum,
    fingerprint,
    load_reward_model,
    load_weights,
    read_header,
    save_reward_model,
    save_weights,
)
from segdpo.preferences import best_worst, iou
from segdpo.recipes import KeptCandidates, KeptMined, build, config_for, run_of
from segdpo.training import ScoreTable

CONF = Path(__file__).resolve().parents[2] / "conf"
# One of the smallest.
ENCODER = "timm-mobilenetv3_small_minimal_100"
MONAI = {
    "_target_": "segdpo.models.wrap",
    "_convert_": "all",
    "network_factory": {
        "_target_": "monai.networks.nets.UNet",
        "_partial_": True,
        "spatial_dims": 2,
        "in_channels": 3,
        "channels": [2, 4],
        "strides": [2],
    },
    "classes": 2,
    "classes_argument": "out_channels",
    "multiple": 2,
}
SMP = {
    "_target_": "segdpo.models.smp_model",
    "_convert_": "all",
    "architecture": "unet",
    "encoder_name": ENCODER,
    "encoder_weights": None,
    "in_channels": 3,
    "encoder_depth": 3,
    "decoder_channels": [8, 4, 2],
    "classes": 2,
}


def description(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a run's weights."""
    rest = {"adapter": None, "classes": ["background", "cell"], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
    return {"model": dict(model), **rest}


def network(model: Mapping[str, Any], seed: int) -> Segmenter:
    """Return the network with weights of its own."""
    torch.manual_seed(seed)
    built: Segmenter = instantiate(dict(model), _convert_="all")
    return built.eval()


def monai_weights(root: Path, seed: int) -> None:
    """Write the policy of a run as .safetensors."""
    save_weights(root / "policy.safetensors", network(MONAI, seed), {"config": json.dumps(description(MONAI))})


def smp_weights(root: Path, seed: int) -> None:
    """Write the same of a network of segmentation_models_pytorch."""
    save_weights(root / "policy.safetensors", network(SMP, seed), {"config": json.dumps(description(SMP))})


def pretrained(root: Path, seed: int) -> None:
    """Write the folder of `save_pretrained`."""
    segmenter = network(SMP, seed)
    segmenter.description = {**description(SMP), "preparation": Preparation(window=64).native().stored()}
    segmenter.save_pretrained(root)


def checkpoint(root: Path, seed: int) -> None:
    """Write a checkpoint as Lightning does."""
    state = {f"policy.{name}": value for name, value in network(MONAI, seed).state_dict().items()}
    content = {"state_dict": state, "epoch": 3, "hyper_parameters": {"config": description(MONAI)}}
    torch.save(content, root / "last.ckpt")


def state_dict(root: Path, seed: int) -> None:
    """Write a state_dict of PyTorch."""
    torch.save(network(MONAI, seed).state_dict(), root / "w.pt")


def unsealed_weights(root: Path, seed: int) -> None:
    """Write the same as earlier versions and other packages do: without checksums."""
    path = root / "policy.safetensors"
    monai_weights(root, seed)
    save_file(load_file(path), path, read_header(path))


def reward_model(root: Path, seed: int) -> None:
    """Write a reward model with its settings in the header."""
    torch.manual_seed(seed)
    save_reward_model(root / "reward_model.safetensors", RewardModel(ENCODER, classes=2, encoder_depth=1))


def candidates(root: Path, seed: int) -> None:
    """Write the candidates that a run keeps for one record."""
    record = records(seed)[0]
    kept = KeptCandidates(lambda *_: Candidates(record.masks, record.mask_names), root / "made")
    kept(record, np.random.default_rng(0))
    (path,) = (root / "made").glob("*.npz")
    path.rename(root / "kept.npz")


def preferences(root: Path, seed: int) -> None:
    """Write the preferences that a run keeps for one record."""
    _kept(root / "made", seed)[0]
    (path,) = (root / "made").glob("*.npz")
    path.rename(root / "kept.npz")


def _kept(folder: Path, seed: int) -> KeptMined:
    """Return records whose preferences are kept in a folder, and made from random candidates."""

    def drawn(record: Record, rng: np.random.Generator) -> Candidates:
        return Candidates(rng.integers(0, 3, (3, *record.image.shape[:2])).astype(np.uint8), ("x", "y", "z"))

    return KeptMined(_Records(seed), drawn, iou, best_worst, seed=seed, folder=folder)


class _Records:
    classes = ("background", "cell", "vessel")

    def __init__(self, seed: int) -> None:
        self._records = records(seed)[:1]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def scores(root: Path, seed: int) -> None:
    """Write a file of the cache of a reference's scores."""
    ScoreTable(root, 2).add(_digests(seed), _rows(seed))
    (path,) = root.glob("*.scores")
    path.rename(root / "2-x.scores")


def _digests(seed: int) -> Any:
    return np.arange(4 * 16 * seed, 4 * 16 * (seed + 1), dtype=np.uint8).view("S16")


def _rows(seed: int) -> Any:
    return np.random.default_rng(seed).random((4, 2)).astype(np.float32)


@cache
def _run_config() -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("train", overrides=["data=folder", "data.root=data"])
    # As a run leaves it: every value is filled in.
    config: dict[str, Any] = {
        key: OmegaConf.to_container(found[key], resolve=True) if OmegaConf.is_config(found[key]) else found[key]
        for key in ("data", "transforms", "datamodule", "background", "seed")
    }
    return config


def run(root: Path, seed: int) -> None:
    """Write the configuration of a run, as the run leaves it, and its data beside it."""
    write_folder(root / "data", records(0), ("background", "cell", "vessel"))
    (root / "config.yaml").write_text(yaml.safe_dump({**_run_config(), "seed": seed}))


def read_network(folder: Path, out: Path) -> str:
    """Open a run's network as `segdpo predict` does, and call it once."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt"))
    segmenter, said = open_segmenter(found[0])
    plain = {**said, "preparation": said["preparation"].stored()}
    return digest(fingerprint(segmenter), json.dumps(plain, default=str, sort_keys=True))


def read_state(folder: Path, out: Path) -> str:
    """Load weights into a network."""
    segmenter = network(MONAI, 9)
    load_weights(folder / "w.pt", segmenter)
    return fingerprint(segmenter)


def read_reward(folder: Path, out: Path) -> str:
    """Open a reward model."""
    return fingerprint(load_reward_model(folder / "reward_model.safetensors"))


def read_candidates(folder: Path, out: Path) -> str:
    """Take kept candidates; damaged ones are made again."""
    record = records(0)[0]
    kept = KeptCandidates(lambda *_: Candidates(record.masks, record.mask_names), out / "made")  # its lock is beside it
    kept(record, np.random.default_rng(0))
    (path,) = (out / "made").glob("*.npz")
    path.unlink()
    path.symlink_to(folder / "kept.npz")
    found = kept(record, np.random.default_rng(0))
    return digest(found.masks, found.names)


def read_preferences(folder: Path, out: Path) -> str:
    """Take kept preferences; damaged ones are made again."""
    made = _kept(out / "made", 0)[0]  # its lock is beside it
    (path,) = (out / "made").glob("*.npz")
    path.unlink()
    path.symlink_to(folder / "kept.npz")
    found = _kept(out / "made", 0)[0]
    return digest(made.id, found.masks, found.mask_names, found.pairs, found.ranking, sorted(found.meta.items()))


def read_scores(folder: Path, out: Path) -> str:
    """Take scores from the cache; those that are not found are computed again."""
    rows, found = ScoreTable(folder, 2).find(_digests(0))
    return digest(np.where(found[:, None], rows, _rows(0)))


def read_run(folder: Path, out: Path) -> str:
    """Read a run's configuration as `segdpo evaluate` does, and build what it describes."""
    os.chdir(folder)
    run = run_of(folder)
    if run is None:
        return "no run"
    config = config_for(run, (), CONF)
    parts = [build(config.data), build(config.transforms.eval), build(config.datamodule.split)]
    return digest(len(parts[0]), parts[0].classes, config.seed, config.background, config.datamodule)


def safetensors(name: str, *keys: str) -> Any:
    """Return a mutation of a .safetensors' header; `keys` of its metadata are JSON in JSON."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        data = files[name]
        size = struct.unpack_from("<Q", data)[0]
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        if rng.random() < 0.8:
            metadata, key = header["__metadata__"], rng.choice(keys)
            metadata[key] = dump(rng, mutate_value(rng, json.loads(metadata[key]), hostile, calls=True)).decode()
            seal(metadata)
            text = json.dumps(header).encode()
        else:
            text = dump(rng, mutate_value(rng, header, hostile))
        return {name: struct.pack("<Q", len(text)) + text + rest}

    return mutate


def seal(metadata: dict[str, str]) -> None:
    """Let the checksum of a header fit, if there is one."""
    if metadata.pop("header_crc32", None):
        metadata["header_crc32"] = checksum(metadata)


def config_json(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change values of the config.json beside model.safetensors."""
    values = json.loads(files["config.json"])
    if rng.random() < 0.9:
        mutated = mutate_value(rng, values["_segdpo"], hostile, calls=True)
        if isinstance(mutated, dict) and mutated.pop("crc32", None):
            mutated["crc32"] = checksum(mutated)
        values["_segdpo"] = mutated
    else:
        values = mutate_value(rng, values, hostile, calls=True)
    return {"config.json": dump(rng, values)}


class _Call:
    """Pickled, it asks for a call."""

    def __init__(self, target: Any, *args: Any) -> None:
        self.call = target, args

    def __reduce__(self) -> Any:
        return self.call


def torch_file(name: str) -> Any:
    """Return a mutation of what torch.save was given; pickles that call something are among them."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        content = torch.load(io.BytesIO(files[name]), weights_only=True)
        state = content.get("state_dict", content)
        how = rng.random()
        if "hyper_parameters" in content and how < 0.7:
            content["hyper_parameters"] = mutate_value(rng, content["hyper_parameters"], hostile, calls=True)
        elif how < 0.85:
            call = _Call(rng.choice((Path.touch, exec, eval, __import__)), hostile.place.canary)
            (content if rng.random() < 0.5 else state)[rng.choice(("x", 3, *state))] = call
        else:
            key = rng.choice(list(state))
            odd = torch.zeros(1).expand(2**40), torch.zeros(1, dtype=torch.complex64), torch.zeros(2).to_sparse()
            state[key] = rng.choice((*odd, None, 3, "x", [state[key]], torch.zeros(0), state[key].double()))
        buffer = io.BytesIO()
        torch.save(
            content, buffer, pickle_protocol=rng.choice((2, 2, 4)), _use_new_zipfile_serialization=rng.random() < 0.9
        )
        return {name: buffer.getvalue()}

    return mutate


def npz(name: str) -> Any:
    """Return a mutation of the arrays in a .npz: their headers, their bytes, or what they are."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        members = read_zip(files[name])
        member = rng.choice(list(members))
        how = rng.random()
        if how < 0.4:
            shapes = ((2**40,), (2**31, 2**31), (-1,), (3, 6, 5), (0,), (300_000_000, 10), ())
            kinds = ("|u1", "<f4", "|O", "<U9", "<M8", "|V7", "[('a','<f4')]")
            said = f"'descr': {rng.choice(kinds)!r}, 'fortran_order': False, 'shape': {rng.choice(shapes)}, "
            head = f"{{{said}}}\n".encode()
            members[member] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + members[member][80:]
        elif how < 0.6:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                odd = (np.zeros((2, 2), np.uint8), np.array(["a"]), np.float32(3), np.array([_Call(exec, "1")], object))
                buffer = io.BytesIO()
                np.save(buffer, rng.choice(odd), allow_pickle=True)
            members[member] = buffer.getvalue()
        elif how < 0.65:
            del members[member]
        elif how < 0.7:
            head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (3221225472,), }\n"
            return {name: _zip_bomb(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head, members, member)}
        else:
            members[member] = mutate_bytes(rng, members[member], [members[member]])
        return {name: write_zip(members)}

    return mutate


def _zip_bomb(head: bytes, members: dict[str, bytes], member: str) -> bytes:
    """Return an archive in which a member has 64 MiB where its header says 3 GiB."""
    return write_zip({**members, member: head + bytes(1 << 26)})


def run_config(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change values of a run's config.yaml; what asks for a call, and what YAML itself can do, are among them."""
    text = files["config.yaml"]
    how = rng.random()
    if how < 0.05:
        names = "abcdefghij"
        lines = [f"{one}: &{one} [{', '.join(['*' + other] * 9)}]" for other, one in pairwise(names)]
        return {"config.yaml": text + ("\na: &a [1,2,3]\n" + "\n".join(lines)).encode()}
    if how < 0.1:
        tag = rng.choice(("object/apply:os.system", "name:os.system", "module:os", "object/new:os.system", "tuple"))
        return {"config.yaml": text + f"\nx: !!python/{tag} ['touch {hostile.place.canary}']\n".encode()}
    values = yaml.safe_load(text)
    key = rng.choice(("data", "transforms", "datamodule", "data", "transforms", None))
    if key is None:
        values = mutate_value(rng, values, hostile, calls=True)
    else:
        values[key] = mutate_value(rng, values[key], hostile, calls=True)
    return {"config.yaml": dump(rng, values, ensure_ascii=True)}


_RUN_ERRORS = (HydraException, OmegaConfBaseException)


def _weights(name: str, sample: Callable[[Path, int], None], **options: Any) -> Kind:
    return Kind(
        name,
        sample,
        "policy.safetensors",
        (read_network,),
        safetensors("policy.safetensors", "config"),
        **options,
    )


WEIGHT_KINDS = (
    _weights("weights", monai_weights, checked=True),
    _weights("weights-unsealed", unsealed_weights, share=0.3),
    _weights("weights-smp", smp_weights, checked=True, share=0.1),
    Kind("config.json", pretrained, "config.json", (read_network,), config_json, checked=True, share=0.1),
    Kind("checkpoint.ckpt", checkpoint, "last.ckpt", (read_network,), torch_file("last.ckpt"), checked=True),
    Kind("state_dict.pt", state_dict, "w.pt", (read_state,), torch_file("w.pt"), checked=True),
    Kind(
        "reward-model",
        reward_model,
        "reward_model.safetensors",
        (read_reward,),
        safetensors("reward_model.safetensors", "reward_model"),
        checked=True,
        share=0.1,
    ),
    Kind("candidates.npz", candidates, "kept.npz", (read_candidates,), npz("kept.npz"), checked=True),
    Kind("preferences.npz", preferences, "kept.npz", (read_preferences,), npz("kept.npz"), checked=True),
    Kind("scores", scores, "2-x.scores", (read_scores,), checked=True),
    Kind("config.yaml", run, "config.yaml", (read_run,), run_config, share=0.3, clean=_RUN_ERRORS, any_path=True),
)
