"""One JSON file with the masks of many images, of COCO or Label Studio: what it has of each, as JSON of its own."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from segdpo.checks import IGNORE
from segdpo.data.mask_files.label_studio import LABELS, label_studio_tasks
from segdpo.data.record import check_classes
from segdpo.files import MAX_TEXT_BYTES, DataError, parse_json, read_file

PREDICTION = "prediction"
MOST_FILES = 20  # more .json files are of one image each


@dataclass(frozen=True)
class AnnotationFile:
    """The annotations of many images.

    Args:
        kind: how `decode_mask` reads the documents.
        classes: the classes that the file names; class 0 is what no annotation covers.
        documents: JSON of one image each, by who made it and the image's file name without suffix.
        images: how many images the file lists, with annotations or without.
    """

    kind: Literal["coco_rle", "label_studio"]
    classes: tuple[str, ...]
    documents: Mapping[str, Mapping[str, bytes]]
    images: int

    def of(self, maker: str, where: str) -> Mapping[str, bytes]:
        """Return the documents of one maker; of "", those of the only one.

        Raises:
            DataError: there is no such maker, or several of the same image.
        """
        if maker:
            if maker not in self.documents:
                raise DataError(f"{where}: Expected one of {', '.join(self.documents)} after # but got {maker!r}.")
            return self.documents[maker]
        people = [made for name, made in self.documents.items() if not name.startswith(PREDICTION)]
        found: dict[str, bytes] = {}
        for made in people:
            if twice := sorted(found.keys() & made.keys()):
                raise DataError(
                    f"{where}: Expected one annotation an image but got several for {twice[0]!r}; name one annotator, "
                    f"as in {Path(where).name}#{next(iter(self.documents))}.",
                    "manifest",
                )
            found.update(made)
        return found


def read_annotations(path: Path) -> AnnotationFile:
    """Return the annotations in a JSON file of COCO or Label Studio.

    COCO's crowd regions are ignored (255), and an image that is listed without any annotation has no mask: a file does
    not say whether it was looked at.
    """
    data = read_file(path, MAX_TEXT_BYTES)
    return _annotations_in(parse_json(data, str(path)), data, path)


def _annotations_in(values: Any, data: bytes, path: Path) -> AnnotationFile:
    """Return the annotations in a JSON file's values; Label Studio's are read from its bytes."""
    if is_coco(values):
        try:
            return _coco(values, path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: Expected COCO but got none ({error!r}).", "manifest") from None
    return _label_studio(data, path)


def read_annotation_files(root: Path, files: Iterable[str]) -> dict[str, AnnotationFile]:
    """Return the files of COCO and Label Studio among the .json files of a folder."""
    paths = [path for path in files if path.lower().endswith(".json")]
    found = {}
    for path in paths if len(paths) <= MOST_FILES else ():
        data = read_file(root / path, MAX_TEXT_BYTES)
        if data.lstrip()[:1] not in (b"{", b"["):
            continue
        values = parse_json(data, str(root / path))
        if is_coco(values) or is_label_studio(values):
            found[path] = _annotations_in(values, data, root / path)
    return found


def is_coco(values: Any) -> bool:
    """Return whether JSON is of COCO."""
    return isinstance(values, dict) and {"images", "annotations", "categories"} <= values.keys()


def is_label_studio(values: Any) -> bool:
    """Return whether JSON is a list of tasks of Label Studio."""
    first = values[0] if isinstance(values, list) and values else None
    return isinstance(first, dict) and "data" in first and bool({"annotations", "completions"} & first.keys())


def names_of_images(documents: Mapping[str, bytes], images: Iterable[str]) -> dict[str, bytes]:
    """Return the documents by the ids of the images; those of no image keep their names.

    A file names its images with or without their folders, and Label Studio adds eight characters before the names.
    """
    ids = list(images)
    by_name: dict[str, list[str]] = {}
    for name in ids:
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    known, found = set(ids), {}
    for name, document in documents.items():
        short = name.rpartition("/")[2]
        places = by_name.get(short) or by_name.get(re.sub(r"^[0-9a-f]{8}-", "", short)) or []
        found[name if name in known or len(places) != 1 else places[0]] = document
    return found


def _coco(values: dict[str, Any], path: Path) -> AnnotationFile:
    categories = sorted(values["categories"], key=lambda category: int(category["id"]))
    objects = [category for category in categories if category["name"] != "background"]
    class_of = {int(category["id"]): 0 for category in categories}
    class_of.update({int(category["id"]): number for number, category in enumerate(objects, 1)})
    classes = check_classes(("background", *(str(category["name"]) for category in objects)), f"{path}: ")
    names = {image["id"]: str(PurePosixPath(image["file_name"]).with_suffix("")) for image in values["images"]}
    regions: dict[str, list[dict[str, Any]]] = {}
    for one in values["annotations"]:
        if one["image_id"] not in names or one["category_id"] not in class_of:
            raise DataError(
                f"{path}, annotation {one.get('id')}: Expected a listed image and category but got image "
                f"{one['image_id']}, category {one['category_id']}.",
                "manifest",
            )
        number = IGNORE if one.get("iscrowd") else class_of[one["category_id"]]
        part = {"category_id": number, "segmentation": one["segmentation"]}
        regions.setdefault(names[one["image_id"]], []).append(part)
    documents = {name: json.dumps(parts).encode() for name, parts in regions.items()}
    return AnnotationFile("coco_rle", classes, {"annotations": documents}, len(names))


def _label_studio(data: bytes, path: Path) -> AnnotationFile:
    tasks = label_studio_tasks(data, str(path))
    documents: dict[str, dict[str, bytes]] = {}
    labels: set[str] = set()
    for task in tasks:
        name = str(PurePosixPath(task.image).with_suffix(""))
        for maker, results in task.annotations.items():
            made = documents.setdefault(maker, {})
            if name in made:
                raise DataError(f"{path}: Expected one task an image but {task.image!r} is in two.", "id")
            made[name] = json.dumps({"result": results}).encode()
            values = [result["value"] for result in results if isinstance(result, dict) and "value" in result]
            labels.update(str(label) for value in values for key in LABELS for label in value.get(key) or ())
    if not labels:
        raise DataError(f"{path}: Expected annotations with labels but got none in {len(tasks)} tasks.", "manifest")
    names = sorted(labels - {"background"})
    return AnnotationFile("label_studio", check_classes(("background", *names), f"{path}: "), documents, len(tasks))
