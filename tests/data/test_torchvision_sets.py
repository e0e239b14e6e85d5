import numpy as np
import pytest
from PIL import Image as Pillow

from segdpo.data.formats.torchvision_sets import VOC_CLASSES, PetDataset, VocDataset
from segdpo.data.images import decode_image
from segdpo.files import DataError

TRIMAP = np.array([[2, 2, 2, 2], [2, 3, 3, 2], [2, 3, 1, 3]], np.uint8)


def jpeg(path, size=(3, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations/trimaps").mkdir(parents=True)
    for name in ("Abyssinian_1", "great_dane_2"):
        jpeg(base / f"images/{name}.jpg")
        Pillow.fromarray(TRIMAP).save(base / f"annotations/trimaps/{name}.png")
    (base / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\n")
    (base / "annotations/test.txt").write_text("great_dane_2 2 2 1\n")
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("ImageSets/Segmentation", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    jpeg(base / "JPEGImages/2007_000032.jpg")
    mask = Pillow.fromarray(np.array([[0, 0, 255, 1], [0, 255, 1, 1], [20, 20, 255, 1]], np.uint8), "P")
    mask.putpalette(list(range(256)) * 3)
    mask.save(base / "SegmentationClass/2007_000032.png")
    (base / "ImageSets/Segmentation/val.txt").write_text("2007_000032\n")
    return tmp_path


def test_the_pets_border_is_ignored_or_a_class(pets):
    source = PetDataset(pets)
    record = source[0]
    assert (len(source), record.id, source.classes) == (1, "Abyssinian_1", ("background", "pet"))
    assert record.gold.tolist() == [[0, 0, 0, 0], [0, 255, 255, 0], [0, 255, 1, 255]]
    assert record.masks.shape == (0, 3, 4)
    bordered = PetDataset(pets, border="class")
    assert bordered.classes == ("background", "pet", "border")
    assert bordered[0].gold.tolist() == [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 1, 2]]


def test_splits_and_files(pets, voc):
    assert PetDataset(pets).describe(0).split == ""
    test = PetDataset(pets, split="test")
    assert (test.describe(0).id, test[0].split) == ("great_dane_2", "test")
    for source in (test, VocDataset(voc, image_set="val")):
        assert np.array_equal(decode_image(source.image_file(0).data, ""), source[0].image)


def test_voc_ids_and_ignore(voc):
    source = VocDataset(voc, image_set="val")
    assert source[0].gold.tolist() == [[0, 0, 255, 1], [0, 255, 1, 1], [20, 20, 255, 1]]
    assert (source[0].id, source[0].split, len(source)) == ("2007_000032", "val", 1)
    assert (len(source.classes), source.classes[1], source.classes[15], source.classes[20]) == (
        21,
        "aeroplane",
        "person",
        "tvmonitor",
    )
    assert source.classes == VOC_CLASSES


def test_what_is_wrong_is_named(pets, voc, tmp_path):
    trimap = pets / "oxford-iiit-pet/annotations/trimaps/Abyssinian_1.png"
    Pillow.fromarray(TRIMAP + 1).save(trimap)
    with pytest.raises(DataError, match=r"Abyssinian_1: gold: .* 2"):
        PetDataset(pets)[0]
    Pillow.fromarray(TRIMAP[:2]).save(trimap)
    with pytest.raises(DataError, match=r"3×4 .*2×4"):
        PetDataset(pets)[0]
    Pillow.fromarray(np.full((3, 4, 3), (1, 2, 3), np.uint8)).save(trimap)
    with pytest.raises(DataError, match="mode RGB"):
        PetDataset(pets)[0]
    trimap.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Abyssinian_1\.png"):
        PetDataset(pets)[0]
    with pytest.raises(DataError, match="'ignore' or 'class'"):
        PetDataset(pets, border="red")
    for kind in (PetDataset, VocDataset):
        with pytest.raises(DataError, match="download it once with"):
            kind(tmp_path / "nowhere")
