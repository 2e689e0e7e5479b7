"""Artefacts are written atomically; damaged ones raise an error that names the file."""

import hashlib
import json
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from redi.runtime.artefact import (
    atomic_folder,
    load_artefact,
    optimizer_tensors,
    read_record,
    restore_optimizer,
    save_artefact,
    write_json,
)
from redi.runtime.checksums import BrokenArtefact


@pytest.fixture
def artefact(tmp_path):
    folder = tmp_path / "artefact"
    save_artefact(folder, {"weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}}, {"step": 3})
    return folder


def refused(folder, match):
    with pytest.raises(BrokenArtefact, match=match):
        load_artefact(folder)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64]
)
def test_tensors_come_back_as_they_were(tmp_path, dtype):
    tensors = {
        "a": torch.arange(12).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(7).to(dtype),
        "none": torch.empty(0, 2),
    }
    save_artefact(tmp_path / "x", {"group": tensors}, {})
    loaded, _ = load_artefact(tmp_path / "x")
    assert set(loaded["group"]) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded["group"][name].dtype == tensor.dtype
        assert torch.equal(loaded["group"][name], tensor)


def test_transposed_and_sliced_tensors_come_back(tmp_path):
    full = torch.arange(12.0).reshape(3, 4)
    save_artefact(tmp_path / "x", {"group": {"t": full.T, "slice": full[1:, 2:]}}, {})
    loaded = load_artefact(tmp_path / "x")[0]["group"]
    assert torch.equal(loaded["t"], full.T)
    assert torch.equal(loaded["slice"], full[1:, 2:])


def test_the_record_comes_back_with_a_hash_per_file(artefact):
    record = read_record(artefact)
    assert record["step"] == 3
    assert len(record["files"]["weights.safetensors"]["sha256"]) == 64


@pytest.fixture
def with_texts(tmp_path):
    extra = {"notes.md": "ä note", "raw.bin": b"\x00\xff"}
    save_artefact(tmp_path / "artefact", {"weights": {"a": torch.zeros(2)}}, {}, extra=extra)
    return tmp_path / "artefact"


def test_further_files_are_listed_like_those_of_tensors_and_not_parsed(with_texts):
    tensors, record = load_artefact(with_texts)
    assert list(tensors) == ["weights"]
    assert (with_texts / "notes.md").read_text(encoding="utf-8") == "ä note"
    contents = {path.name: path.read_bytes() for path in with_texts.iterdir() if path.name != "record.json"}
    expected = {name: (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in contents.items()}
    assert {name: (entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()} == expected


def test_an_altered_further_file_is_refused_unless_it_may_be_edited(with_texts):
    (with_texts / "notes.md").write_text("ä nose")
    refused(with_texts, "notes.md was altered")
    assert list(load_artefact(with_texts, editable=("notes.md",))[0]) == ["weights"]
    (with_texts / "raw.bin").unlink()
    with pytest.raises(BrokenArtefact, match="raw.bin is missing"):
        load_artefact(with_texts, editable=("notes.md",))


def test_a_further_file_that_cannot_be_written_leaves_the_old_artefact(with_texts):
    before = {path.name: path.read_bytes() for path in with_texts.iterdir()}
    with pytest.raises(OSError):
        save_artefact(with_texts, {"weights": {"a": torch.ones(2)}}, {}, extra={"no such folder/x": "text"})
    assert {path.name: path.read_bytes() for path in with_texts.iterdir()} == before
    assert [path.name for path in with_texts.parent.iterdir()] == ["artefact"]


def test_writing_again_replaces_the_artefact(artefact):
    save_artefact(artefact, {"weights": {"c": torch.zeros(1)}}, {"step": 4})
    tensors, record = load_artefact(artefact)
    assert list(tensors["weights"]) == ["c"]
    assert record["step"] == 4


def test_a_truncated_file_is_refused(artefact):
    path = artefact / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(artefact, "weights.safetensors has .* bytes instead of .*; it may be truncated")


@pytest.mark.parametrize("position", [0, 10, -1])
def test_one_flipped_bit_is_refused(artefact, position):
    path = artefact / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    refused(artefact, "weights.safetensors was altered")


def test_only_the_groups_that_are_asked_for_are_read_and_verified(tmp_path):
    groups = {name: {"x": torch.full((3,), float(number))} for number, name in enumerate(("large", "small", "other"))}
    save_artefact(tmp_path / "a", groups, {"step": 3}, extra={"note.txt": "a"})
    for name in ("large.safetensors", "note.txt"):
        (tmp_path / "a" / name).write_bytes(b"damaged")
    (tmp_path / "a" / "other.safetensors").unlink()
    tensors, record = load_artefact(tmp_path / "a", groups=("small", "absent"))
    assert list(tensors) == ["small"] and torch.equal(tensors["small"]["x"], groups["small"]["x"])
    assert record["step"] == 3
    with pytest.raises(BrokenArtefact, match="large.safetensors"):
        load_artefact(tmp_path / "a", groups=("small", "large"))
    refused(tmp_path / "a", match="large.safetensors|other.safetensors|note.txt")


def test_a_missing_file_is_refused(artefact):
    (artefact / "weights.safetensors").unlink()
    refused(artefact, "weights.safetensors is missing")


def test_another_program_s_file_in_place_of_ours_is_refused(artefact):
    save_file({"a": torch.zeros(2, 3)}, artefact / "weights.safetensors")
    refused(artefact, "weights.safetensors")


@pytest.mark.parametrize("content", [b"random bytes", b""])
def test_a_listed_file_that_is_no_safetensors_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    listed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(tmp_path / "record.json", {"files": {"x.safetensors": listed}})
    refused(tmp_path, "x.safetensors is not a safetensors file")


def test_a_pickled_checkpoint_is_refused_and_not_unpickled(tmp_path):
    marker = tmp_path / "unpickled"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    torch.save({"model": Trap()}, folder / "weights.safetensors")
    refused(folder, "record.json is missing: the folder was not written by redi")
    content = (folder / "weights.safetensors").read_bytes()
    listed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / "record.json", {"files": {"weights.safetensors": listed}})
    refused(folder, "weights.safetensors is not a safetensors file")
    assert not marker.exists()


def test_a_folder_of_another_program_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "record.json is missing")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"\x80\x04\x95pickle"])
def test_a_record_that_is_not_json_is_refused(artefact, content):
    (artefact / "record.json").write_bytes(content)
    refused(artefact, "record.json is not JSON")


@pytest.mark.parametrize("value", [[], 3, None, {}, {"files": []}, {"files": {"weights.safetensors": 5}}])
def test_a_record_of_another_form_is_refused(artefact, value):
    (artefact / "record.json").write_text(json.dumps(value))
    refused(artefact, "record.json was not written by redi")


def test_an_exception_leaves_the_old_folder_and_nothing_partial(tmp_path):
    folder = tmp_path / "x"
    save_artefact(folder, {}, {"version": 1})
    with pytest.raises(KeyError), atomic_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise KeyError
    assert read_record(folder)["version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_folder_is_not_there_before_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "x") as temporary:
        (temporary / "file").write_text("whole")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x" / "file").read_text() == "whole"


def test_more_than_the_free_space_is_refused_at_once(tmp_path):
    with pytest.raises(OSError, match="not enough disk space .*x: .* MiB needed"), atomic_folder(tmp_path / "x", 2**60):
        raise AssertionError("the block must not start")
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_leaves_no_artefact(tmp_path, python):
    program = """
        import os, signal, sys
        from pathlib import Path
        from redi.runtime.artefact import atomic_folder
        with atomic_folder(Path(sys.argv[1])) as temporary:
            (temporary / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python("-c", textwrap.dedent(program), tmp_path / "x").returncode == -9
    assert not (tmp_path / "x").exists()


def test_json_is_replaced_in_one_step(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, betas=(0.8, 0.99), weight_decay=0.1),
    "Adam with amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_equal_after_a_round_trip_through_files(tmp_path, name):
    torch.manual_seed(0)
    data = torch.randn(8, 4)

    def steps(network, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            network(data).square().mean().backward()
            optimizer.step()

    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    names = [key for key, _ in network.named_parameters()]
    optimizer = OPTIMIZERS[name](network.parameters())
    steps(network, optimizer, 3)
    tensors, record = optimizer_tensors(optimizer, names)
    save_artefact(tmp_path / "x", {"model": network.state_dict(), "optimizer": tensors}, {"optimizer": record})
    steps(network, optimizer, 3)

    loaded, record = load_artefact(tmp_path / "x")
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    other.load_state_dict(loaded["model"])
    other_optimizer = OPTIMIZERS[name](other.parameters())
    restore_optimizer(other_optimizer, names, loaded["optimizer"], record["optimizer"])
    steps(other, other_optimizer, 3)
    for expected, found in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_the_first_of_two_writers_of_a_shared_folder_stays(tmp_path):
    with atomic_folder(tmp_path / "x", shared=True) as slow:
        (slow / "file").write_text("second")
        with atomic_folder(tmp_path / "x", shared=True) as fast:
            assert fast != slow
            (fast / "file").write_text("first")
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_shared_artefact_that_is_there_is_kept(tmp_path):
    for version in (1, 2):
        save_artefact(tmp_path / "x", {"weights": {"a": torch.zeros(version)}}, {"version": version}, shared=True)
    assert read_record(tmp_path / "x")["version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_many_writers_of_one_shared_artefact_leave_a_whole_one(tmp_path):
    def write(version):
        save_artefact(tmp_path / "x", {"weights": {"a": torch.full((9,), version)}}, {"version": version}, shared=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    tensors, record = load_artefact(tmp_path / "x")
    assert tensors["weights"]["a"].tolist() == [record["version"]] * 9
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_shared_folder_that_cannot_be_made_raises_and_leaves_nothing_partial(tmp_path):
    (tmp_path / "x").symlink_to("nowhere")  # there for a rename, and yet not there
    with pytest.raises(OSError), atomic_folder(tmp_path / "x", shared=True) as temporary:
        (temporary / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_exception_leaves_no_shared_folder(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / "x", shared=True) as temporary:
        (temporary / "half").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("failing", ["x", ".partial"])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, failing, python):
    # The first rename moves the old folder x aside, the second the temporary one into its place. An audit hook, which
    # a process keeps for good, makes one of them fail as a file system would.
    program = """
        import errno, os, sys
        from pathlib import Path
        from redi.runtime.artefact import atomic_folder

        def refuse(event, arguments):
            if event == "os.rename" and str(arguments[0]).endswith(sys.argv[2]):
                raise OSError(errno.EIO, "no renaming today")

        folder = Path(sys.argv[1])
        folder.mkdir()
        (folder / "file").write_text("old")
        sys.addaudithook(refuse)
        try:
            with atomic_folder(folder) as temporary:
                (temporary / "file").write_text("new")
        except OSError as error:
            print(error.strerror)
    """
    done = python("-c", textwrap.dedent(program), tmp_path / "x", failing)
    assert done.stdout == "no renaming today\n"
    assert (tmp_path / "x" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", [atomic_folder, partial(atomic_folder, shared=True)])
def test_temporary_folders_lie_beside_the_final_one_under_unique_names(tmp_path, kind):
    with ExitStack() as stack:
        names = {
            stack.enter_context(kind(tmp_path / f"x{i}" if kind is atomic_folder else tmp_path / "x")).name[-20:]
            for i in range(20)
        }
        assert len(names) == 20 == len(list(tmp_path.glob(".x*.partial")))
