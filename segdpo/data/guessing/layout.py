"""Which files of a folder are images, and which are masks of which image: told from their names alone."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from segdpo.data.formats.file_patterns import MASK_SUFFIXES, SPLIT_NAMES, FilePattern, names_classes
from segdpo.data.images import SUFFIXES
from segdpo.data.mask_files.annotations import AnnotationFile
from segdpo.files import DataError

Role = Literal["gold", "masks", "predictions", "annotator", "unknown"]

IMAGES = {
    *("images", "image", "imgs", "img", "jpegimages", "imagestr", "photos", "pictures", "inputs", "input"),
    *("leftimg8bit", "raw", "frames", "patches", "tiles"),
}
GOLD = {
    *("gold", "gt", "gts", "groundtruth", "ground_truth", "ground-truth", "truth", "manual", "reference"),
    *("labelstr", "segmentationclass", "gtfine", "gtcoarse"),
}
MASKS = {
    *("masks", "mask", "labels", "label", "annotations", "annotation", "seg", "segs", "segmentation", "segmentations"),
    *("targets", "target", "labelmaps", "mask_images", "masks_png", "annotations_png"),
}
PREDICTIONS = {
    *("predictions", "prediction", "preds", "pred", "probabilities", "probability", "probs", "prob", "softmax"),
    *("outputs", "output", "scores"),
}
# What names of masks may have before or after the id of their image, and names of images too.
KIND = r"(?:masks?|labels?|annotations?|segs?|segmentations?)"
MASK_WORDS = (
    *("mask", "masks", "gt", "seg", "segmentation", "label", "labels", "gold", "groundtruth", "ground_truth", "truth"),
    *("manual1", "manual", "annotation", "L", "gtFine_labelIds", "gtCoarse_labelIds", "labelIds"),
)
MASK_ENDS = tuple(f"{sign}{word}" for word in MASK_WORDS for sign in "_-")
MASK_STARTS = ("mask_", "mask-", "masks_", "gt_", "seg_", "label_")
IMAGE_ENDS = ("_0000", "_image", "-image", "_img", "-img", "_sat", "_rgb", "_raw", "_training", "_leftImg8bit")
IMAGE_STARTS = ("image_", "image-", "img_", "img-")
# ID_mask and ID_mask_NAME.
BESIDE = re.compile(rf"(.+?)((?:{'|'.join(sorted(MASK_ENDS, key=len, reverse=True))})(?:[_-]([^/]+))?)")
SPLIT_MASKS = re.compile(rf"({'|'.join(SPLIT_NAMES)})([_-]{KIND})", re.IGNORECASE)  # train_masks beside train
# Formats that may change the values of pixels.
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class MaskFiles:
    """Masks that belong together.

    Args:
        pattern: names their files, see FilePattern.
        name: of the annotator, or of the folder.
        role: what the names say of them.
        files: the file of each image that has one.
        extra: files whose names are of no image.
        annotations: what one file has of many images.
    """

    pattern: str
    name: str
    role: Role
    files: Mapping[str, str] = field(default_factory=dict)
    extra: Sequence[str] = ()
    annotations: AnnotationFile | None = None


@dataclass(frozen=True)
class Layout:
    """The images of a folder and the masks beside them.

    Args:
        images: the pattern of the images.
        files: the file of each image.
        masks: the sets of masks.
        split: whether the first folder of each id names its split.
        unused: folders of masks of which no file belongs to an image.
    """

    images: str
    files: Mapping[str, str]
    masks: Sequence[MaskFiles]
    split: bool = False
    unused: Sequence[str] = ()


def find_layout(files: Sequence[str], images: str | None = None) -> Layout:
    """Return the layout of a folder.

    Args:
        files: all files, as paths in the folder.
        images: the pattern of the images if it is known.

    Raises:
        DataError: there are no images, or it is not clear which they are; the message has the option to set.
    """
    pictures = [path for path in files if path.lower().endswith(SUFFIXES)]
    if not pictures:
        suffixes = Counter("." + path.rpartition("/")[2].partition(".")[2] for path in files)
        among = f"{len(files)} files" + "".join(f", most of them {suffix}" for suffix, _ in suffixes.most_common(1))
        raise DataError(
            f"Expected images ({', '.join(SUFFIXES)}) but found none among {among}; save images in one of these "
            "formats (of volumes, one slice a file).",
            "layout",
        )
    text = images or _image_folder(pictures)
    pattern = FilePattern(text, SUFFIXES)
    matching = pattern.matching(pictures)
    inside = [path for path in pictures if path in matching and not _below_masks(path, pattern.folder)]
    nested = any("/" in path.removeprefix(f"{pattern.folder}/" if pattern.folder else "") for path in inside)
    base = f"{text}/**/*" if nested and "*" not in text else text  # from which names of masks are made
    folders = {_folder_of(path) for path in inside}
    image_end, beside = _masks_beside(base, [path for path in files if _folder_of(path) in folders])
    text, base = (with_name(base, "", image_end),) * 2 if image_end else (text, base)
    taken = {path for one in beside for path in with_files(one, {}, files).extra}
    own = FilePattern(text, SUFFIXES).ids(path for path in inside if path not in taken)
    affix, apart = _masks_apart(base, own, sorted(set(files).difference(taken, own.values())))
    text = with_name(base, affix.start, affix.end) if affix != NO_AFFIX else text
    found = FilePattern(text, SUFFIXES).ids(own.values())
    masks = [with_files(one, found, files) for one in _with_own_names([*beside, *apart])]
    split = all("/" in name and name.split("/")[0].lower() in SPLIT_NAMES for name in found)
    return Layout(text, found, masks, split, _unused(pictures, found, masks, matching))


def _below_masks(path: str, folder: str) -> bool:
    """Return whether a picture lies in a folder of masks below a folder."""
    below = path.removeprefix(f"{folder}/") if folder else path
    return any(map(_is_masks, below.split("/")[:-1]))


def _unused(
    pictures: Sequence[str], images: Mapping[str, str], masks: Sequence[MaskFiles], matching: Collection[str]
) -> list[str]:
    """Return the folders of masks of which no file belongs to an image.

    Raises:
        DataError: the pattern of the images matches them, so that they would be images.
    """
    used = {*images.values(), *(path for one in masks for path in (*one.files.values(), *one.extra))}
    left = [path for path in pictures if path not in used and _below_masks(path, "")]
    if wrong := [path for path in left if path in matching]:
        raise DataError(
            f"{wrong[0]}: Expected masks with the names of images but {len(wrong)} files in folders of masks, among "
            "the images, have none; name the folder of the images with data.images=FOLDER, or rename the masks.",
            "layout",
        )
    return sorted({_folder_of(path) for path in left})


def role_of(folder: str) -> tuple[Role, str]:
    """Return what the name of a folder says of the masks in it, and whose they are.

    >>> role_of("masks_anna"), role_of("GT"), role_of("gt_masks"), role_of("depth")
    (('annotator', 'anna'), ('gold', 'GT'), ('gold', 'gt_masks'), ('unknown', 'depth'))
    """
    low = folder.lower()
    if low in GOLD:
        return "gold", folder
    if low in MASKS or low in PREDICTIONS:
        return "masks" if low in MASKS else "predictions", folder
    if whose := re.fullmatch(rf"{KIND}[_-](.+)|(.+)[_-]{KIND}", folder, re.IGNORECASE):
        name = whose[1] or whose[2]
        if name.lower() in (*SPLIT_NAMES, "*"):
            return "masks", folder
        return ("gold", folder) if name.lower() in GOLD else ("annotator", name)
    return "unknown", folder


def with_files(masks: MaskFiles, images: Collection[str], files: Sequence[str]) -> MaskFiles:
    """Return the set with its files: those of the images, and extra ones."""
    found = FilePattern(masks.pattern, MASK_SUFFIXES).ids(path for path in files if not names_classes(path))
    own = {name: path for name, path in found.items() if name in images}
    return replace(masks, files=own, extra=[path for name, path in found.items() if name not in images])


def _with_own_names(masks: Sequence[MaskFiles]) -> list[MaskFiles]:
    """Return the sets with names of their own: masks_before and labels_before are not both `before`."""
    counts = Counter(one.name for one in masks)
    last = [_folder_of(f"{one.pattern}/x".replace("/**/*", "").replace("/*", "")).rpartition("/")[2] for one in masks]
    return [
        replace(one, name=name if counts[one.name] > 1 else one.name) for one, name in zip(masks, last, strict=True)
    ]


def _image_folder(pictures: Sequence[str]) -> str:
    """Return the pattern of the images, from the names of the folders that pictures are in."""
    folders = sorted({_folder_of(path) for path in pictures})
    anchors = sorted({anchor for folder in folders if (anchor := _anchor(folder))})
    if len(anchors) == 1:
        return anchors[0]
    if anchors:
        return _over_splits(anchors) or _ask_for_images(anchors)
    rest = [folder for folder in folders if not any(map(_is_masks, folder.split("/")))]
    if not rest:
        raise DataError(
            f"Expected images but all {len(pictures)} pictures are in folders of masks ({', '.join(folders[:5])}); "
            "put the images into a folder images/ beside them, or name theirs with data.images=FOLDER.",
            "layout",
        )
    if "" in rest:
        return "*"
    if len(rest) == 1:
        return rest[0]
    common = os.path.commonpath(rest)
    below = f"{common}/**/*" if common else "**/*"
    in_splits = all(folder.split("/")[0].lower() in SPLIT_NAMES for folder in rest)
    return below if in_splits or _masks_beside(below, pictures)[1] else _ask_for_images(rest)


def _ask_for_images(folders: Sequence[str]) -> str:
    shown = ", ".join(folders[:5]) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "")
    raise DataError(
        f"Expected one folder of images but found pictures in {shown}; name it with data.images={folders[0]}.",
        "layout",
    )


def _anchor(folder: str) -> str:
    """Return the folder up to the part that names images; "" if no part does, or if it lies in a folder of masks."""
    parts = folder.split("/")
    for k, part in enumerate(parts):
        if part.lower() in IMAGES:
            return "/".join(parts[: k + 1])
        if _is_masks(part):
            return ""
    return ""


def _is_masks(name: str) -> bool:
    return role_of(name)[0] != "unknown"


def _over_splits(anchors: Sequence[str]) -> str:
    """Return `*/images/**/*` for train/images and test/images, "" for folders that are not of splits."""
    parts = [anchor.split("/") for anchor in anchors]
    around = {(*names[:-2], "*", names[-1]) for names in parts}
    if len(around) == 1 and all(len(names) > 1 and names[-2].lower() in SPLIT_NAMES for names in parts):
        return "/".join([*around.pop(), "**", "*"])
    return ""


def _masks_beside(text: str, files: Sequence[str]) -> tuple[str, list[MaskFiles]]:
    """Return masks in the folders of the images, ID_mask.png beside ID.png or ID.png beside ID.jpg.

    What the names of images have after the id comes with them: "_sat" of ID_sat.jpg, mostly nothing.
    """
    stems = {_stem(path) for path in files if path.lower().endswith(SUFFIXES)}
    bases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in files:
        if path.lower().endswith(MASK_SUFFIXES) and (found := BESIDE.fullmatch(_stem(path))):
            bases[found[2], found[3] or ""].append(found[1])
    counts = {end: sum(base + end in stems for ones in bases.values() for base in ones) for end in ("", *IMAGE_ENDS)}
    image_end = max(counts, key=lambda end: counts[end])
    named = [
        MaskFiles(with_name(text, "", end), whose or end[1:], "annotator" if whose else _role_of_end(end))
        for (end, whose), ones in sorted(bases.items())
        if any(base + image_end in stems for base in ones)
    ]
    if named:
        return image_end, named
    return "", _masks_of_another_suffix(text, files)


def _role_of_end(end: str) -> Role:
    return "gold" if end[1:].lower() in GOLD | {"gold", "manual1"} else "masks"


def _masks_of_another_suffix(text: str, files: Sequence[str]) -> list[MaskFiles]:
    """Return masks that have the name of an image and another suffix: those that store every pixel as it was."""
    suffixes: dict[str, set[str]] = defaultdict(set)
    for path in files:
        if path.lower().endswith(MASK_SUFFIXES) and not names_classes(path):
            suffixes[_stem(path)].add(path[len(_stem(path)) :])
    found: set[str] = set()
    for couple in sorted({tuple(sorted(ones)) for ones in suffixes.values() if len(ones) > 1}):
        pictures = [suffix for suffix in couple if suffix.lower() in SUFFIXES]
        images = [suffix for suffix in pictures if suffix.lower() in LOSSY] if len(pictures) > 1 else pictures
        if FilePattern(text, SUFFIXES).has_suffix:
            images = [suffix for suffix in pictures if text.endswith(suffix)]
        if len(images) != 1:
            raise DataError(
                f"Expected images and masks of one name to have suffixes that tell them apart but got {couple}; say "
                f"which are which: data.images={with_name(text, '', couple[0])} "
                f"data.gold={with_name(text, '', couple[1])}, or the other way round.",
                "layout",
            )
        found.update(set(couple).difference(images))
    return [MaskFiles(with_name(text, "", suffix), suffix[1:], "masks") for suffix in sorted(found)]


@dataclass(frozen=True)
class _Affix:
    """What stands before and after an id in the names of files."""

    start: str = ""
    end: str = ""

    def strip(self, stem: str) -> str:
        """Return what the stem of a file has besides, "" if the affix is not there."""
        front, _, name = stem.rpartition("/")
        if len(name) <= len(self.start + self.end) or not (name.startswith(self.start) and name.endswith(self.end)):
            return ""
        return (f"{front}/" if front else "") + name[len(self.start) : len(name) - len(self.end)]

    def count(self, stems: Iterable[str], names: Collection[str]) -> int:
        """Return how many stems are one of the names with this affix."""
        return sum(self.strip(stem) in names for stem in stems)


NO_AFFIX = _Affix()


def _masks_apart(text: str, images: Collection[str], files: Sequence[str]) -> tuple[_Affix, list[MaskFiles]]:
    """Return masks in other folders than those of the images, and what the names of images have around the id.

    Args:
        text: the pattern of the images.
        images: their ids by that pattern.
        files: all other files.
    """
    folders = _stems_by_folder(text, {name.count("/") for name in images}, files)
    options = [NO_AFFIX]
    if text.rsplit("/", 1)[-1] == "*" or "*" not in text:
        ends, starts = [_Affix("", end) for end in IMAGE_ENDS], [_Affix(start) for start in IMAGE_STARTS]
        options += [affix for affix in (*ends, *starts) if all(map(affix.strip, images))]
    found: dict[_Affix, list[tuple[str, _Affix, int]]] = {}
    for option in options:
        names = {option.strip(name) for name in images}
        matched = [(folder, *_best_affix(stems, names, option)) for folder, stems in folders.items()]
        found[option] = [one for one in matched if 2 * one[2] >= min(len(folders[one[0]]), len(names))]
        found[option] = [one for one in found[option] if one[2]]
    best = max(options, key=lambda option: sum(count for _, _, count in found[option]))
    _check_known_folders(folders, found[best], images)
    per_parent = Counter(folder.rpartition("/")[0] for folder, _, _ in found[best])
    sets = []
    for folder, affix, _ in found[best]:
        role, name = _role_in(folder, per_parent)
        sets.append(MaskFiles(_pattern_of(folder, affix, images), name, role))
    return best, sets


def _best_affix(stems: Collection[str], names: Collection[str], images: _Affix) -> tuple[_Affix, int]:
    """Return the affix by which most stems are masks of the named images, and of how many."""
    exact = NO_AFFIX.count(stems, names)
    if 2 * exact >= len(stems):
        return NO_AFFIX, exact
    ends = [*MASK_ENDS, *([images.end, *(images.end + end for end in MASK_ENDS)] if images.end else [])]
    options = [NO_AFFIX, *(_Affix("", end) for end in ends), *(_Affix(start) for start in MASK_STARTS)]
    counts = {option: option.count(stems, names) for option in options}
    best = max(options, key=lambda option: counts[option])
    return best, counts[best]


def _stems_by_folder(text: str, depths: Collection[int], files: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of files without suffix, by folder; those of ids in folders have these folders before them."""
    parts = FilePattern(text, SUFFIXES).parts
    over_splits = parts.index("*") if "*" in parts[:-1] else None
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        if not path.lower().endswith(MASK_SUFFIXES) or names_classes(path):
            continue
        names = _stem(path).split("/")
        if text == "**/*" and (split := SPLIT_MASKS.fullmatch(names[0])) and len(names) > 1:
            found[f"*{split[2]}"].append("/".join([split[1], *names[1:]]))
            continue
        if over_splits is not None:
            if len(names) > over_splits + 2:
                folder = [*names[:over_splits], "*", names[over_splits + 1]]
                found["/".join(folder)].append("/".join([names[over_splits], *names[over_splits + 2 :]]))
            continue
        for depth in depths:
            if depth < len(names):
                found["/".join(names[: -depth - 1])].append("/".join(names[-depth - 1 :]))
    return dict(sorted(found.items()))


def _role_in(folder: str, per_parent: Mapping[str, int]) -> tuple[Role, str]:
    """Return the role of a folder by its name, or by that of the folder around it: masks/anna is of annotator anna."""
    parent, _, name = folder.rpartition("/")
    role, label = role_of(name)
    if role != "unknown" or not _is_masks(parent.rpartition("/")[2]):
        return role, label
    return ("annotator", name) if per_parent[parent] > 1 else (role_of(parent.rpartition("/")[2])[0], name)


def _check_known_folders(
    folders: Mapping[str, Sequence[str]], found: Sequence[tuple[str, _Affix, int]], images: Collection[str]
) -> None:
    """Refuse masks of which none has the name of an image, where no others are found."""
    known = [folder for folder in folders if _is_masks(folder.rpartition("/")[2])]
    if known and not found:
        raise DataError(
            f"{known[0]}: Expected masks with the names of images but none of its {len(folders[known[0]])} files has "
            f"one: {folders[known[0]][0]!r}, and the images are {min(images, default='')!r} …; rename them, or say how "
            f"they are named with data.gold={known[0]}/*_END (* is the name of the image).",
            "layout",
        )


def _pattern_of(folder: str, affix: _Affix, images: Collection[str]) -> str:
    nested = any("/" in name for name in images)
    if affix == NO_AFFIX and "*" not in folder:
        return folder or "*"
    front = f"{folder}/" if folder else ""
    return f"{front}{'**/' if nested else ''}{affix.start}*{affix.end}"


def with_name(text: str, start: str, end: str) -> str:
    """Return the pattern with another name of the file: what stands before and after the star.

    >>> with_name("images", "", "_mask"), with_name("*", "", ".png"), with_name("*/images/**/*", "", "_gt")
    ('images/*_mask', '*.png', '*/images/**/*_gt')
    """
    return f"{text}/{start}*{end}" if "*" not in text else f"{text.rpartition('*')[0]}{start}*{end}"


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]
