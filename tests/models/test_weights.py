"""Weights come back bit for bit or not at all; an old file outlives a full disk and Ctrl-C."""

import builtins
import errno
import json
import os
import random
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segdpo.files import DataError, write_atomically
from segdpo.models import fingerprint, load_weights, read_header, save_weights, weights
from segdpo.models.weights import read_tensors


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_weights_and_header_come_back(tiny, tmp_path):
    path = tmp_path / "new" / "policy.safetensors"
    saved, loaded = tiny(seed=0), tiny(seed=1)
    save_weights(path, saved, {"config": json.dumps({"classes": ["background", "ß"]})})
    assert not same(saved, loaded)
    load_weights(path, loaded)
    assert same(saved, loaded)
    assert json.loads(read_header(path)["config"]) == {"classes": ["background", "ß"]}


def test_equal_weights_and_headers_give_equal_bytes(tiny, tmp_path):
    """The library writes the header in the order of a table that is shuffled anew each time."""
    for number in range(8):
        save_weights(tmp_path / f"{number}.safetensors", tiny(), {"config": "{}", "seed": "3", "task": "x"})
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}) == 1


def test_the_file_is_what_the_format_says(tiny, tmp_path):
    """Read by hand: 8 bytes of length, that much JSON, then the tensors' bytes."""
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(), {"seed": "3"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["seed"] == "3"
    entry = header["network.head.weight"]
    begin, end = entry["data_offsets"]
    values = struct.unpack("<6f", content[8 + length + begin : 8 + length + end])
    assert (entry["dtype"], entry["shape"]) == ("F32", [1, 6, 1, 1])
    assert list(values) == tiny().network.head.weight.flatten().tolist()


@pytest.mark.parametrize("prefix", ["policy.", "network.", ""])
@pytest.mark.parametrize("name", ["last.ckpt", "bare.pt"])
def test_checkpoints_of_lightning_and_state_dicts_are_read(tiny, tmp_path, prefix, name):
    saved, loaded = tiny(seed=0), tiny(seed=1)
    state = {prefix + key: value for key, value in saved.state_dict().items()}
    state |= {"reference." + key: value * 0 for key, value in saved.state_dict().items()}
    if prefix == "":
        state = saved.state_dict()
    torch.save(
        {"state_dict": state, "epoch": 3, "hyper_parameters": {}} if name == "last.ckpt" else state, tmp_path / name
    )
    load_weights(tmp_path / name, loaded)
    assert same(saved, loaded)


def test_tied_weights_and_views_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
            self.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))

    save_weights(tmp_path / "w.safetensors", Tied())
    tensors = read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["a.weight"], tensors["b.weight"])
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["short"].dtype == torch.bfloat16


def test_the_fingerprint_sees_one_weight_a_name_and_a_type(tiny):
    first = fingerprint(tiny())
    assert first == fingerprint(tiny())
    assert len(first) == 32
    changed = tiny()
    with torch.no_grad():
        weight = changed.network.head.weight.view(-1)
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    counted = tiny()
    counted.network.encoder[1].num_batches_tracked += 1
    others = [changed, counted, tiny().bfloat16(), tiny().network, tiny(seed=1)]
    assert len({first, *map(fingerprint, others)}) == 6
    # Neither mode, gradients nor the layout in memory are weights.
    laid_out = tiny().to(memory_format=torch.channels_last).train().requires_grad_(False)
    assert fingerprint(laid_out) == first


def test_another_architecture_is_named_and_nothing_is_loaded(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(width=8))
    segmenter = tiny()
    before = fingerprint(segmenter)
    with pytest.raises(
        ValueError, match=r"of another shape \(network.encoder.0.weight \(8, 3, 3, 3\) instead of \(6, 3"
    ):
        load_weights(path, segmenter)
    save_weights(path, nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    found = r"11 missing \(network.encoder.0.weight, .*, …\), 7 unexpected \(0.bias, 0.weight, 1.bias, …\); choose"
    with pytest.raises(ValueError, match=found):
        load_weights(path, segmenter)
    assert fingerprint(segmenter) == before


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (2, 3, r"the file's network predicts 1 channel \(2 classes\) and this one 3 classes"),
        (21, 2, r"predicts 21 classes and this one 1 channel \(2 classes\): take the data set .* model.classes"),
    ],
)
def test_another_number_of_classes_is_named(tiny, tmp_path, theirs, ours, message):
    save_weights(tmp_path / "w.safetensors", tiny(theirs))
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "w.safetensors", tiny(ours))


def test_a_missing_file_says_what_is_beside_it(tiny, tmp_path):
    save_weights(tmp_path / "policy.safetensors", tiny())
    with pytest.raises(FileNotFoundError, match=r"at .*polcy.safetensors but there is none; .* has policy.safetensors"):
        load_weights(tmp_path / "polcy.safetensors", tiny())
    with pytest.raises(FileNotFoundError, match="but there is none; check the path"):
        read_header(tmp_path / "nowhere" / "policy.safetensors")


def test_damaged_files_are_refused(tiny, tmp_path):
    save_weights(tmp_path / "w.safetensors", tiny())
    torch.save(tiny().state_dict(), tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.ckpt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"Expected weights in .*{name} but it cannot be read .* damaged"):
            load_weights(tmp_path / name, tiny())
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Expected weights in .*w\.safetensors but it cannot be read"):
        read_header(tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="found no tensors in it"):
        load_weights(tmp_path / "w.ckpt", tiny())


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_a_flipped_bit_is_an_error_and_never_another_network(tiny, tmp_path, name):
    path, saved, rng = tmp_path / name, tiny(), random.Random(0)
    if name == "w.ckpt":
        torch.save({"state_dict": saved.state_dict(), "epoch": 3}, path)
    else:
        save_weights(path, saved, {"config": json.dumps({"mean": [0.5]})})
    whole, refused = path.read_bytes(), []
    for _ in range(300):
        place, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        loaded = tiny(seed=1)
        try:
            load_weights(path, loaded)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert same(saved, loaded)
    assert all(str(path) in message for message in refused)
    # Padding between the parts of an archive may change.
    assert len(refused) == 300 if name == "w.safetensors" else len(refused) > 100


def test_the_header_is_refused_before_the_weights_are_read(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(), {"config": '{"mean": [0.5]}'})
    whole = path.read_bytes()
    for old, new in ((b"[0.5]", b"[0.4]"), (b"header_crc32", b"header_crc33"), (b"tensors_crc32", b"tensors_crc33")):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(DataError, match=r"w\.safetensors.*checksum"):
            read_header(path)


def test_files_without_checksums_open(tiny, tmp_path):
    saved, loaded = tiny(), tiny(seed=1)
    save_file(saved.state_dict(), tmp_path / "w.safetensors", {"format": "pt"})
    load_weights(tmp_path / "w.safetensors", loaded)
    assert same(saved, loaded)
    assert read_header(tmp_path / "w.safetensors") == {"format": "pt"}


def test_a_damaged_file_of_the_old_kind_is_named(tiny, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(tiny().state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in (len(whole) // 4, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"w\.pt"):
            load_weights(path, tiny())


@pytest.mark.parametrize(
    "error", [OSError(22, "Invalid argument"), KeyError("storage"), TypeError("unhashable"), AssertionError()]
)
def test_every_error_of_torch_names_the_file(tiny, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=r"w\.pt"):
        load_weights(tmp_path / "w.pt", tiny())


def test_sparse_tensors_are_refused_before_any_is_copied(tiny, tmp_path):
    state = tiny(seed=1).state_dict()
    last = list(state)[-1]
    torch.save({**state, last: state[last].to_sparse()}, tmp_path / "w.pt")
    network = tiny()
    before = fingerprint(network)
    with pytest.raises(ValueError, match=rf"w\.pt but {last}"):
        load_weights(tmp_path / "w.pt", network)
    assert fingerprint(network) == before


def test_code_in_a_checkpoint_is_not_run(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": tiny().state_dict(), "extra": Evil()}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        load_weights(tmp_path / "w.ckpt", tiny())
    assert not (tmp_path / "ran").exists()


def test_a_header_of_other_things_than_strings_is_refused(tiny, tmp_path):
    with pytest.raises(TypeError, match=r"w\.safetensors.*'epoch'"):
        save_weights(tmp_path / "w.safetensors", tiny(), {"epoch": 3})
    assert list(tmp_path.iterdir()) == []


class _FullDisk:
    """A file on a disk with room for `room` more bytes; then the write fails as the system's does."""

    def __init__(self, file, room, error):
        self.file, self.room, self.error = file, room, error

    def write(self, content):
        self.file.write(content[: self.room])
        raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


FULL = r"policy.safetensors but the disk is full; the file that was there before is whole; free 0.0 MB there or write"


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, FULL),
        (OSError(errno.EIO, "Input/output error"), OSError, "but Input/output error; the file that was .*; check"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_the_old_file_stays_whole_when_the_new_one_cannot_be_written(
    tiny, tmp_path, monkeypatch, error, raised, message
):
    path = tmp_path / "policy.safetensors"
    save_weights(path, tiny(seed=0))
    before = path.read_bytes()
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: _FullDisk(real(*a, **k), 100, error))
    with pytest.raises(raised, match=message) as caught:
        save_weights(path, tiny(seed=1))
    monkeypatch.undo()
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)
    assert os.listdir(tmp_path) == ["policy.safetensors"]
    assert path.read_bytes() == before


def test_what_fails_at_the_last_moment_leaves_the_old_file_too(tmp_path, monkeypatch):
    (tmp_path / "w").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="the disk is full"):
        write_atomically(tmp_path / "w", b"new")
    assert os.listdir(tmp_path) == ["w"]
    assert (tmp_path / "w").read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(
        OSError, match=r"Expected to write .*policy.* but .*; nothing was left behind; check that the folder"
    ):
        write_atomically(tmp_path / "run" / "policy.safetensors", b"new")


def test_the_hash_reads_what_the_device_has(tiny, monkeypatch):
    """A copy to the CPU comes before the bytes: the same digest on every device."""
    seen = []
    monkeypatch.setattr(weights.torch.Tensor, "cpu", lambda self: seen.append(self.shape) or self)
    fingerprint(tiny())
    assert len(seen) == len(tiny().state_dict())


def test_a_number_in_place_of_a_vector_is_named(tmp_path):
    layer = nn.Linear(2, 1)
    path = tmp_path / "a.safetensors"
    weights.save_tensors(path, {"weight": layer.weight, "bias": torch.tensor(0.5)}, {})
    with pytest.raises(ValueError, match=r"a\.safetensors.*bias \(\) instead of \(1,\)"):
        load_weights(path, layer)
