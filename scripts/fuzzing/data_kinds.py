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


DATA_KINDS = (
    Kind(
        "manifest.jsonl", samples.folder, "manifest.jsonl", _FOLDER, structured.json_file("manifest.jsonl", lines=True)
    ),
    Kind("manifest.csv", samples.csv_folder, "manifest.csv", _FOLDER, structured.csv_file("manifest.csv")),
    Kind("dataset.json", samples.folder, "dataset.json", _FOLDER, structured.json_file("dataset.json")),
    Kind("sealed-manifest", samples.sealed_folder, "manifest.jsonl", _FOLDER, structured.sealed_folder, checked=True),
    Kind("index.csv", samples.plain_folder, "index.csv", (steps.read_plain,), structured.csv_file("index.csv")),
    Kind("coco", samples.coco, "coco.json", _FOLDER, structured.json_file("coco.json")),
    Kind("coco-foreign", samples.foreign_coco, "coco.json", _FOLDER, structured.json_file("coco.json")),
    _image(".png", 1),
    _image(".jpg", 1),
    _image(".tif", 1),
    _image(".webp", 0.3),
    _image(".gif", 0.3),
    _image(".bmp", 0.3),
    Kind("mask.png", samples.mask, "masks/a.png", (steps.read_mask,), structured.png("masks/a.png"), checked=True),
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
