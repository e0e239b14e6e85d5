"""Folders of images and masks as people have them, made from scratch, each with the records that it should give.

Every builder writes into an empty folder and returns what is expected there, worked out from the arrays below and not
by the code that reads it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

HEIGHT, WIDTH = 8, 12
IDS = ("a1", "b2", "c3", "d4", "e5", "f6")
BINARY = ("background", "object")
THREE = ("background", "cell", "nucleus")
COLOURS = np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200]], np.uint8)

rows, columns = np.indices((HEIGHT, WIDTH))
# One object, the same in no two images: rows from k on, right of the middle.
OBJECT = {name: np.uint8((rows > k) & (columns >= 6)) for k, name in enumerate(IDS)}
# Class 2 in two pieces, so that numbers are no objects; class 1 around them.
CLASSES = {
    name: np.uint8(np.where((rows > k) & (columns % 6 > 3), 2, (rows > k) & (columns % 6 > 1)))
    for k, name in enumerate(IDS)
}
# Two objects with numbers of their own.
NUMBERS = {name: np.uint16(np.where(columns < 3, k + 1, np.where(columns > 8, k + 2, 0))) for k, name in enumerate(IDS)}


@dataclass
class Expected:
    """What a folder should give.

    Args:
        gold: the gold mask of each image that has one.
        masks: by the name of who made them, those of each image.
        classes: the names.
        ids: of all images.
        says: what the line says, besides the number of images.
    """

    gold: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    classes: tuple[str, ...] = BINARY
    ids: tuple[str, ...] = IDS
    says: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


Builder = Callable[[Path], Expected]


def picture(name: str) -> np.ndarray:
    """The image of an id; a JPEG changes nothing in it that counts."""
    return np.full((HEIGHT, WIDTH, 3), 30 * (1 + IDS.index(name[-2:])), np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Pillow.fromarray(pixels).save(path, **options)


def images(root: Path, pattern: str, ids: tuple[str, ...] = IDS) -> None:
    for name in ids:
        save(root / pattern.replace("*", name), picture(name))


def palette(mask: np.ndarray) -> Pillow.Image:
    image = Pillow.fromarray(mask, "L")
    image.putpalette(COLOURS.tobytes())
    return image


# Gold of some images, in the ways that numbers are stored.


def black_and_white(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS[:3]:
        save(root / f"masks/{name}.png", OBJECT[name] * np.uint8(255))
    return Expected(
        {name: OBJECT[name] for name in IDS[:3]}, says=("images/", "gold of 3 in masks/ (0/255", "no candidates")
    )


def one_bit(root: Path) -> Expected:
    images(root, "imgs/*.jpg")
    for name in IDS:
        save(root / f"gt/{name}.png", OBJECT[name] > 0)
    return Expected(OBJECT, says=("imgs/", "gold of 6 in gt/ (0/1"))


def black_and_white_as_rgb(root: Path) -> Expected:
    images(root, "img/*.png")
    for name in IDS[:4]:
        save(root / f"labels/{name}.png", np.repeat(OBJECT[name][..., None] * np.uint8(255), 3, 2))
    return Expected({name: OBJECT[name] for name in IDS[:4]}, says=("labels/ (0/255",))


def sixteen_bit_white(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.tif", OBJECT[name] * np.uint16(65535))
    return Expected(OBJECT, says=("0/65535",))


def class_ids_and_ignore(root: Path) -> Expected:
    images(root, "images/*.png")
    gold = {name: np.where(rows == 7, np.uint8(255), CLASSES[name]) for name in IDS}
    for name in IDS:
        save(root / f"annotations/{name}.png", gold[name])
    return Expected(gold, classes=("background", "class_1", "class_2"), says=("0…2 and 255 for ignore",))


def voc(root: Path) -> Expected:
    images(root, "JPEGImages/*.jpg")
    for name in IDS[:5]:
        for folder in ("SegmentationClass", "SegmentationObject"):
            (root / folder).mkdir(exist_ok=True)
            palette(CLASSES[name]).save(root / folder / f"{name}.png")
    gold = {name: CLASSES[name] for name in IDS[:5]}
    return Expected(gold, classes=("background", "class_1", "class_2"), says=("gold of 5 in SegmentationClass/",))


def cvat(root: Path) -> Expected:
    """Colours, with a labelmap.txt."""
    images(root, "JPEGImages/*.png")
    for name in IDS[:2]:
        save(root / f"SegmentationClass/{name}.png", COLOURS[CLASSES[name]])
    lines = [f"{label}:{','.join(map(str, colour))}::" for label, colour in zip(THREE, COLOURS, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    return Expected({name: CLASSES[name] for name in IDS[:2]}, classes=THREE, says=("colours of labelmap.txt",))


def cvat_palette(root: Path) -> Expected:
    """Indices of a palette in another order than the labels: the colours count."""
    images(root, "JPEGImages/*.png")
    (root / "SegmentationClass").mkdir()
    for name in IDS:
        swapped = Pillow.fromarray(np.array([0, 2, 1], np.uint8)[CLASSES[name]], "L")
        swapped.putpalette(COLOURS[[0, 2, 1]].tobytes())
        swapped.save(root / "SegmentationClass" / f"{name}.png")
    lines = [f"{label}:{','.join(map(str, colour))}::" for label, colour in zip(THREE, COLOURS, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(lines))
    return Expected(CLASSES, classes=THREE, says=("colours of labelmap.txt",))


def class_table(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"labels/{name}.png", COLOURS[CLASSES[name]])
    lines = [f"{label},{','.join(map(str, colour))}" for label, colour in zip(THREE, COLOURS, strict=True)]
    (root / "class_dict.csv").write_text("name,r,g,b\n" + "\n".join(lines))
    return Expected(CLASSES, classes=THREE, says=("colours of class_dict.csv",))


def black_and_red(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[OBJECT[name]])
    return Expected(OBJECT, says=("black/#ff0000",))


def object_numbers(root: Path) -> Expected:
    """16 bits, more than 255 objects in one image."""
    images(root, "images/*.png")
    gold = {}
    for name in IDS:
        numbers = np.zeros((HEIGHT, WIDTH), np.uint16) if name != "a1" else np.uint16(1 + rows * WIDTH + columns)
        numbers[:, 6:] += np.uint16(300) * (name == "zz")
        save(root / f"masks/{name}.png", NUMBERS[name] if name != "a1" else numbers)
        gold[name] = np.uint8((NUMBERS[name] if name != "a1" else numbers) > 0)
    return Expected(gold)


# Names of files.


def mask_beside_image(root: Path) -> Expected:
    images(root, "*.jpg")
    for name in IDS[:2]:
        save(root / f"{name}_mask.png", OBJECT[name])
    return Expected({name: OBJECT[name] for name in IDS[:2]}, says=("images in *,", "gold of 2 in *_mask"))


def png_beside_jpg(root: Path) -> Expected:
    images(root, "photos of cells/*.jpg")
    for name in IDS[:4]:
        save(root / f"photos of cells/{name}.png", OBJECT[name] > 0)
    return Expected({name: OBJECT[name] for name in IDS[:4]}, says=("gold of 4 in photos of cells/*.png",))


def gt_tif_beside_png(root: Path) -> Expected:
    images(root, "data/*.png")
    for name in IDS:
        save(root / f"data/{name}_gt.tif", OBJECT[name] * np.uint8(255))
    return Expected(OBJECT, says=("gold of 6 in data/*_gt",))


def seg_in_another_folder(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}-seg.png", OBJECT[name])
    return Expected(OBJECT, says=("gold of 6 in masks/*-seg",))


def satellite(root: Path) -> Expected:
    images(root, "*_sat.jpg")
    for name in IDS:
        save(root / f"{name}_mask.png", OBJECT[name])
    return Expected(OBJECT, says=("images in *_sat", "gold of 6 in *_mask"))


def nnunet(root: Path) -> Expected:
    images(root, "imagesTr/*_0000.png")
    for name in IDS:
        save(root / f"labelsTr/{name}.png", CLASSES[name])
    values = {"channel_names": {"0": "R"}, "labels": {"background": 0, "cell": 1, "nucleus": 2}, "numTraining": 6}
    (root / "dataset.json").write_text(json.dumps({**values, "file_ending": ".png"}))
    return Expected(CLASSES, classes=THREE, says=("imagesTr/*_0000", "gold of 6 in labelsTr/"))


def patients(root: Path) -> Expected:
    """A folder a patient, each with images and masks."""
    gold, groups = {}, {}
    for k, name in enumerate(IDS):
        for slice_ in ("x", "y"):
            where = f"P{k}/{slice_}_{name}"
            save(root / f"{where}.tif", picture(name))
            save(root / f"{where}_mask.tif", OBJECT[name] * np.uint8(255))
            gold[where], groups[where] = OBJECT[name], f"P{k}"
    return Expected(gold, ids=tuple(gold), groups=groups, says=("**/*_mask", "group by folder"))


def split_folders(root: Path) -> Expected:
    gold, splits = {}, {}
    for name, split in zip(IDS, ("train", "train", "train", "train", "valid", "test"), strict=True):
        save(root / split / "images" / f"{name}.png", picture(name))
        save(root / split / "masks" / f"{name}.png", OBJECT[name])
        gold[f"{split}/{name}"], splits[f"{split}/{name}"] = OBJECT[name], {"valid": "val"}.get(split, split)
    return Expected(
        gold, ids=tuple(sorted(gold)), splits=splits, says=("*/images/**/*", "*/masks/**/*", "split by folder")
    )


def folders_of_masks_of_splits(root: Path) -> Expected:
    """train/ and train_masks/, as the cars of Carvana; no masks for test."""
    gold, splits = {}, {}
    for name, split in zip(IDS, ("test", "train", "train", "train", "val", "val"), strict=True):
        save(root / split / f"{name}.jpg", picture(name))
        splits[f"{split}/{name}"] = split
        if split != "test":
            save(root / f"{split}_masks" / f"{name}_mask.gif", OBJECT[name] * np.uint8(255))
            gold[f"{split}/{name}"] = OBJECT[name]
    return Expected(
        gold, ids=tuple(sorted(splits)), splits=splits, says=("gold of 5 in *_masks/**/*_mask (black/white → ",)
    )


def masks_inside_images(root: Path) -> Expected:
    images(root, "images/*.png")
    for name in IDS[:2]:
        save(root / f"images/masks/{name}.png", OBJECT[name])
    return Expected(
        {name: OBJECT[name] for name in IDS[:2]}, says=("6 images in images/", "gold of 2 in images/masks/")
    )


def cityscapes(root: Path) -> Expected:
    gold, splits = {}, {}
    for k, name in enumerate(IDS):
        where = f"{'train' if k < 4 else 'val'}/ulm/{name}"
        save(root / f"leftImg8bit/{where}_leftImg8bit.png", picture(name))
        save(root / f"gtFine/{where}_gtFine_labelIds.png", CLASSES[name])
        save(root / f"gtFine/{where}_gtFine_color.png", COLOURS[CLASSES[name]])
        gold[where], splits[where] = CLASSES[name], where.split("/")[0]
    classes = ("background", "class_1", "class_2")
    return Expected(gold, ids=tuple(gold), splits=splits, classes=classes, says=("gtFine/**/*_gtFine_labelIds",))


def index(root: Path) -> Expected:
    black_and_white(root)
    lines = [f"{name},hospital {k // 2},{'test' if k > 3 else 'train'}" for k, name in enumerate(IDS)]
    (root / "index.csv").write_text("id,patient,split\n" + "\n".join(lines))
    return Expected(
        {name: OBJECT[name] for name in IDS[:3]},
        splits={name: "test" if name in IDS[4:] else "train" for name in IDS},
        groups={name: f"hospital {k // 2}" for k, name in enumerate(IDS)},
        says=("index by index.csv", "split by split", "group by patient"),
    )


def images_alone(root: Path) -> Expected:
    images(root, "*.png")
    return Expected(says=("6 images in *", "no gold", "no candidates"))


# Masks of several people, and predictions.


def annotators(root: Path) -> Expected:
    images(root, "images/*.png")
    masks: dict[str, dict[str, np.ndarray]] = {"anna": {}, "ben": {}}
    for name in IDS:
        save(root / f"gold/{name}.png", OBJECT[name])
        masks["anna"][name] = OBJECT[name] * np.uint8(columns != 6)
        save(root / f"masks_anna/{name}.png", masks["anna"][name] * np.uint8(255))
    for name in IDS[:3]:
        masks["ben"][name] = OBJECT[name] * np.uint8(columns != 11)
        save(root / f"masks_ben/{name}.png", masks["ben"][name] * np.uint8(255))
    return Expected(OBJECT, masks, says=("gold of 6 in gold/ (0/1", "candidates anna (6), ben (3): 0/255"))


def annotators_in_one_folder(root: Path) -> Expected:
    images(root, "images/*.png")
    masks: dict[str, dict[str, np.ndarray]] = {"anna": {}, "ben": {}}
    for name in IDS:
        for who, column in (("anna", 6), ("ben", 11)):
            masks[who][name] = OBJECT[name] * np.uint8(columns != column)
            save(root / f"masks/{who}/{name}.png", masks[who][name] > 0)
    return Expected({}, masks, says=("no gold", "candidates anna (6), ben (6): 0/1 → background, object"))


def probability_maps(root: Path) -> Expected:
    images(root, "images/*.png")
    masks: dict[str, dict[str, np.ndarray]] = {f"predictions-level-{t}": {} for t in (0.2, 0.4, 0.6, 0.8)}
    for k, name in enumerate(IDS):
        chances = np.uint8(20 * columns + k)
        save(root / f"predictions/{name}.png", chances)
        for t in (0.2, 0.4, 0.6, 0.8):
            masks[f"predictions-level-{t}"][name] = np.uint8(chances / 255 >= t)
        save(root / f"gt/{name}.png", OBJECT[name])
    return Expected(OBJECT, masks, says=("gold of 6 in gt/", "candidates predictions (6): probabilities"))


def probability_arrays(root: Path) -> Expected:
    images(root, "images/*.png")
    masks: dict[str, dict[str, np.ndarray]] = {f"probs-level-{t}": {} for t in (0.2, 0.4, 0.6, 0.8)}
    for name in IDS[:4]:
        chances = np.float32(0.08 * columns + 0.01)
        save(root / f"probs/{name}.npy", chances)
        for t in (0.2, 0.4, 0.6, 0.8):
            masks[f"probs-level-{t}"][name] = np.uint8(chances >= t)
    return Expected({}, masks, says=("no gold", "probs (4): probabilities"))


# Regions in text.


def yolo(root: Path) -> Expected:
    """Polygons as parts of the image, classes from 0, splits below images/ and labels/."""
    gold, splits = {}, {}
    for k, name in enumerate(IDS):
        split = "train" if k < 4 else "val"
        save(root / "images" / split / f"{name}.png", picture(name))
        path = root / "labels" / split / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        # From pixel (2, 2) to (7, 5), both included, and a smaller one of the second class in it.
        lines = ["0 " + _box(2, 2, 8, 6), *(["1 " + _box(4, 3, 6, 5)] if k else [])]
        path.write_text("\n".join(lines) + "\n")
        mask = np.uint8((columns >= 2) & (columns < 8) & (rows >= 2) & (rows < 6))
        if k:
            mask[(columns >= 4) & (columns < 6) & (rows >= 3) & (rows < 5)] = 2
        gold[f"{split}/{name}"], splits[f"{split}/{name}"] = mask, split
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cell\n  1: nucleus\n")
    return Expected(gold, ids=tuple(gold), classes=THREE, splits=splits, says=("labels/ (polygons",))


def _box(left: int, top: int, right: int, bottom: int) -> str:
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners)


def coco(root: Path) -> Expected:
    """One file for all images; the last of those listed has no annotation, and one image is not listed."""
    images(root, "images/*.png")
    listed = [
        {"id": k, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH} for k, name in enumerate(IDS[:5], 1)
    ]
    boxes = [
        {"id": k, "image_id": k, "category_id": 9, "iscrowd": 0, "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]}
        for k in range(1, 5)
    ]
    values = {"images": listed, "annotations": boxes, "categories": [{"id": 9, "name": "cell"}]}
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(json.dumps(values))
    mask = np.uint8((columns >= 2) & (columns < 8) & (rows >= 2) & (rows < 6))
    return Expected(
        dict.fromkeys(IDS[:4], mask),
        classes=("background", "cell"),
        says=("gold of 4 in annotations/instances.json (COCO, 1 images without annotation → ",),
    )


def _task(name: str, results: list[dict[str, object]], number: int = 1, by: int = 7) -> dict[str, object]:
    address = {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}
    return {"id": number, "data": address, "annotations": [{"completed_by": by, "result": results}]}


def _polygon(label: str, points: list[list[float]]) -> dict[str, object]:
    value = {"points": points, "polygonlabels": [label]}
    return {"id": "p", "type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def label_studio_polygons(root: Path) -> Expected:
    images(root, "images/*.png")
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in ((2, 2), (8, 2), (8, 6), (2, 6))]
    tasks = [_task(name, [_polygon("cell", points)], k) for k, name in enumerate(IDS[:3])]
    (root / "project-1.json").write_text(json.dumps(tasks))
    mask = np.uint8((columns >= 2) & (columns < 8) & (rows >= 2) & (rows < 6))
    return Expected(dict.fromkeys(IDS[:3], mask), classes=("background", "cell"), says=("gold of 3 in project-1.json",))


def brush(mask: np.ndarray) -> list[int]:
    """The code of a brush stroke with every value as it is: one run of all RGBA values, as rle-pack writes it."""
    values = np.repeat(mask.reshape(-1, 1) * np.uint8(255), 4, 1).reshape(-1)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 8, 14, 16))
    bits += "0" + f"{3:02b}" + f"{len(values) - 1:016b}" + "".join(f"{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def label_studio_brush(root: Path) -> Expected:
    """Two people: their masks are candidates."""
    images(root, "images/*.png")
    masks: dict[str, dict[str, np.ndarray]] = {"annotator 7": {}, "annotator 8": {}}
    tasks = []
    for k, name in enumerate(IDS):
        task = _task(name, [], k)
        task["annotations"] = []
        for by, column in ((7, 6), (8, 11)):
            mask = OBJECT[name] * np.uint8(columns != column)
            masks[f"annotator {by}"][name] = mask
            value = {"format": "rle", "rle": brush(mask), "brushlabels": ["cell"]}
            result = {
                "id": "r",
                "type": "brushlabels",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "value": value,
            }
            task["annotations"].append({"completed_by": by, "result": [result]})
        tasks.append(task)
    (root / "project-2.json").write_text(json.dumps(tasks))
    return Expected({}, masks, classes=("background", "cell"), says=("candidates annotator 7 (6), annotator 8 (6)",))


def deep_images(root: Path) -> Expected:
    """16-bit grey images; the test sets their value range."""
    for name in IDS:
        save(root / f"images/{name}.tif", np.uint16(100) * picture(name)[..., 0])
        save(root / f"masks/{name}.png", OBJECT[name])
    return Expected(OBJECT)


KNOWN: tuple[Builder, ...] = (
    black_and_white, one_bit, black_and_white_as_rgb, sixteen_bit_white, class_ids_and_ignore, voc, cvat,
    cvat_palette, class_table, black_and_red, mask_beside_image, png_beside_jpg, gt_tif_beside_png,
    seg_in_another_folder, satellite, nnunet, patients, split_folders, folders_of_masks_of_splits,
    masks_inside_images, cityscapes, index, images_alone, annotators, annotators_in_one_folder, probability_maps,
    probability_arrays, yolo, coco, label_studio_polygons, label_studio_brush,
)  # fmt: skip
