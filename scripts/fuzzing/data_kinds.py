"""The kinds of data files."""

from functools import partial

from fuzzing import data_samples as samples
from fuzzing import data_steps as steps
from fuzzing import data_structured as structured
from fuzzing.kind import Kind

_FOLDER = (steps.read, steps.check, steps.to_pack)
_PACK = (steps.read, steps.to_folder, steps.to_coco)


def _image(suffix: str, share: float) -> Kind:
    sample = partial(samples.image, suffix=suffix)
    png = structured.png("images/a.png") if suffix == ".png" else None
    return Kind(
        f"image{suffix}", sample, f"images/a{suffix}", (steps.read_image,), png, checked=suffix == ".png", share=share
    )


def _deep(suffix: str) -> Kind:
    sample = partial(samples.deep_image, suffix=suffix)
    target = f"images/a{suffix}"
    structure = {".png": structured.png(target), ".npy": structured.npy(target)}.get(suffix)
    return Kind(f"deep{suffix}", sample, target, (steps.read_deep_image,), structure, checked=suffix == ".png")


def _mask(kind: str, suffix: str) -> Kind:
    sample = partial(samples.mask_file, kind=kind, suffix=suffix)
    target = f"mask{suffix}"
    structures = {".png": structured.png, ".npy": structured.npy, ".npz": structured.npz, ".json": structured.json_file}
    structure = structures[suffix](target) if suffix in structures else None
    step = partial(steps.read_mask_file, kind=kind)
    step.__name__ = "read_mask_file"  # type: ignore[attr-defined]
    checked = suffix in (".png", ".npz")
    return Kind(f"{kind}{suffix}", sample, target, (step,), structure, checked=checked)


def _classes(suffix: str) -> Kind:
    sample = partial(samples.class_file, suffix=suffix)
    structure = structured.json_file("classes.json") if suffix == ".json" else None
    return Kind(f"classes{suffix}", sample, f"classes{suffix}", (steps.read_class_file,), structure, share=0.3)


DATA_KINDS = (
    Kind(
        "manifest.jsonl", samples.folder, "manifest.jsonl", _FOLDER, structured.json_file("manifest.jsonl", lines=True)
    ),
    Kind("manifest.csv", samples.csv_folder, "manifest.csv", _FOLDER, structured.csv_file("manifest.csv")),
    Kind("dataset.json", samples.folder, "dataset.json", _FOLDER, structured.json_file("dataset.json")),
    Kind("sealed-manifest", samples.sealed_folder, "manifest.jsonl", _FOLDER, structured.sealed_folder, checked=True),
    Kind("index.csv", samples.plain_folder, "index.csv", (steps.read_plain,), structured.csv_file("index.csv")),
    Kind("parquet", samples.parquet, "train.parquet", (steps.read, steps.to_folder)),
    Kind("arrow-stream", samples.arrow, "data-00000-of-00001.arrow", (steps.read, steps.to_folder)),
    Kind("coco", samples.coco, "coco.json", _FOLDER, structured.json_file("coco.json")),
    Kind("coco-foreign", samples.foreign_coco, "coco.json", _FOLDER, structured.json_file("coco.json")),
    _image(".png", 1),
    _image(".jpg", 1),
    _image(".tif", 1),
    _image(".webp", 0.3),
    _image(".gif", 0.3),
    _image(".bmp", 0.3),
    Kind("mask.png", samples.mask, "masks/a.png", (steps.read_mask,), structured.png("masks/a.png"), checked=True),
    *map(_deep, (".png", ".tif", ".npy")),
    _mask("ids", ".npy"),
    _mask("colors", ".png"),
    _mask("instances", ".png"),
    _mask("probabilities", ".npz"),
    _mask("yolo", ".txt"),
    _mask("label_studio", ".json"),
    _mask("coco_rle", ".json"),
    *map(_classes, (".txt", ".yaml", ".json")),
    Kind("pack.json", samples.pack, "pack.json", _PACK, structured.pack_settings, checked=True),
    Kind("shard", samples.pack, "shard-00000.bin", _PACK, structured.record, checked=True),
    Kind(
        "shard-pixels",
        partial(samples.pack, images="pixels", per_shard=1),
        "shard-00000.bin",
        _PACK,
        structured.record,
        checked=True,
    ),
    Kind("records.arrow", samples.pack, "records.arrow", _PACK, structured.table, checked=True),
    Kind(
        "unfinished-pack",
        samples.begun_pack,
        "begun.pack/shard-00000.bin",
        (steps.resume_pack,),
        structured.shard_index,
        checked=True,
    ),
    Kind(
        "journal",
        samples.journal,
        "x.mining.jsonl",
        (steps.resume_journal,),
        structured.json_file("x.mining.jsonl", lines=True),
    ),
)
