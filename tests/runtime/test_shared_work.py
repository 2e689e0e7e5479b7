"""Work divided over processes: each part is done once, locks end with processes, and the result is the same."""

import json

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from redi.runtime import shared_work
from redi.runtime.distributed import process_rank
from redi.runtime.shared_work import SharedJob, complete


class Letters:
    """A job that stores a letter per part and joins them; records its actions."""

    def __init__(self, folder, letters="abcde", **options):
        self.letters, self.did, self.result = letters, [], folder / "result"
        self.job = SharedJob(folder / "work", [1] * len(letters), **options)

    def do(self, index):
        self.did.append(self.letters[index])
        tensors = {"letter": torch.tensor([ord(self.letters[index])])}
        self.job.store(index, {"letters": tensors}, {"letter": self.letters[index]})

    def finish(self, records):
        self.did.append("finish")
        self.result.write_text("".join(record["letter"] for record in records))

    def run(self, **options):
        self.job.run(**{"do": self.do, "finish": self.finish, "finished": self.result.exists} | options)
        return self.did


@pytest.fixture
def letters(tmp_path):
    return Letters(tmp_path)


def interrupted(letters, after):
    """The job after Ctrl-C, with this number of parts done."""

    def do(index):
        if len(letters.did) == after:
            raise KeyboardInterrupt
        letters.do(index)

    with pytest.raises(KeyboardInterrupt):
        letters.run(do=do)
    letters.did.clear()


def test_one_process_does_every_part_once_in_order(letters):
    assert letters.run() == ["a", "b", "c", "d", "e", "finish"]
    assert letters.result.read_text() == "abcde"


def test_nothing_but_the_result_is_left(letters, tmp_path):
    letters.run()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_rank_does_its_own_share_first_and_then_what_nobody_does(letters):
    assert letters.run(rank=1, world_size=3) == ["b", "e", "a", "c", "d", "finish"]


def test_an_interrupted_job_resumes_with_the_parts_that_are_stored(letters, tmp_path):
    interrupted(letters, after=3)
    assert Letters(tmp_path).run() == ["d", "e", "finish"]
    assert letters.result.read_text() == "abcde"


def test_what_is_finished_is_left_alone(letters):
    letters.result.write_text("before")
    assert letters.run() == []


@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "record", "record gone"])
def test_a_part_that_was_damaged_since_is_done_again_and_no_other(letters, tmp_path, damage):
    interrupted(letters, after=4)
    path, record = letters.job.path("letters", 1), tmp_path / "work" / "records" / "part-00001.json"
    content = path.read_bytes()
    if damage == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "record":
        record.write_text(record.read_text().replace('"b"', '"x"'))
    else:
        record.unlink()
    did = Letters(tmp_path).run()
    assert sorted(did[:-1]) == ["b", "e"] and letters.result.read_text() == "abcde"


def test_a_stored_part_that_does_not_count_is_done_again(letters, tmp_path):
    interrupted(letters, after=2)
    again = Letters(tmp_path, "xb", counts=lambda index, record: record["letter"] == "xb"[index])
    assert again.run() == ["x", "finish"]


def test_an_error_gives_the_part_back(letters):
    with pytest.raises(ZeroDivisionError):
        letters.run(do=lambda index: 1 / 0)
    letters.run()
    assert letters.result.read_text() == "abcde"


def test_a_group_becomes_a_folder_without_strays_and_replaces_the_one_before(letters, tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "part-00009.safetensors").touch()

    def finish(records):
        (letters.job.path("letters") / ".part-00001.safetensors.0123.partial").touch()
        (letters.job.path("letters") / "notes").touch()
        letters.job.assemble("letters", folder, {"notes"})
        assert {path.name for path in folder.iterdir()} == {f"part-0000{i}.safetensors" for i in range(5)} | {"notes"}
        letters.result.touch()

    letters.run(finish=finish)
    assert load_file(folder / "part-00004.safetensors")["letter"].item() == ord("e")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "result"]


def test_a_disk_without_space_for_all_that_is_missing_is_refused(letters, monkeypatch):
    monkeypatch.setattr(shared_work.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 39}))
    with pytest.raises(OSError, match="not enough disk space for .*work: 0.00 GiB needed, .* finished parts are kept"):
        letters.run()


@pytest.fixture
def elsewhere(letters, tmp_path, monkeypatch):
    """Another process has part b; `elsewhere(then)` sets its action at the third time that this process waits."""
    (tmp_path / "work").mkdir()
    lock, sleeps = FileLock(tmp_path / "work" / "part-00001.lock"), []
    lock.acquire()

    def arrange(then):
        def sleep(seconds):
            sleeps.append(seconds)
            if len(sleeps) == 3:
                then()
                lock.release()

        clock = type("Clock", (), {"monotonic": staticmethod(lambda: 10.0 * len(sleeps)), "sleep": staticmethod(sleep)})
        monkeypatch.setattr(shared_work, "time", clock)

    yield arrange
    lock.release()


def test_a_part_that_another_process_is_doing_is_waited_for(letters, elsewhere, caplog):
    elsewhere(lambda: letters.job.store(1, {}, {"letter": "B"}))
    with caplog.at_level("INFO", logger="redi"):
        assert letters.run() == ["a", "c", "d", "e", "finish"]
    assert letters.result.read_text() == "aBcde"
    assert "waiting for other processes that are working on part-00001" in caplog.text


def test_a_part_that_another_process_gave_up_is_taken_over(letters, elsewhere):
    elsewhere(lambda: None)
    assert letters.run() == ["a", "c", "d", "e", "b", "finish"]


def test_work_without_parts_is_done_once(tmp_path):
    done = []
    for _ in range(2):
        complete(tmp_path / "work", finished=lambda: bool(done), finish=lambda: done.append(1))
    assert done == [1] and list(tmp_path.iterdir()) == []


@pytest.fixture
def bare_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, (), (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (), (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (), (3, 8)),
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (), (2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (1, 3), (1, 3)),
        ({"RANK": "2"}, (), (0, 1)),
    ],
)
def test_the_rank_is_as_given_or_else_the_environments(bare_environment, environment, given, expected):
    for name, value in environment.items():
        bare_environment.setenv(name, value)
    assert process_rank(*given) == expected


@pytest.mark.parametrize("given", [(3, 3), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(given):
    with pytest.raises(ValueError, match=r"rank, world_size = .* must be in \[0, "):
        process_rank(*given)


def test_half_a_rank_is_refused():
    with pytest.raises(ValueError, match="pass both or neither"):
        process_rank(rank=1)


def test_an_environment_that_is_no_number_is_refused(bare_environment):
    bare_environment.setenv("RANK", "first")
    bare_environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE = first, 2 must be integers"):
        process_rank()


# For each scenario (world size, ranks to start, the rank that is killed in its second batch): its exit codes.
SCENARIOS = {"alone": (1, 1, None), "two": (2, 2, None), "killed": (2, 2, 1)}
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from redi.models.codec import JointCodec, Representation
from redi.runtime import shared_work
from redi.data.cache import fits
from redi.data.datasets.digits import Digits
from redi.data.cache.prepare import prepare
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA

fits.BLOCK = 10
shared_work.POLL_SECONDS = 0.05
dataset = Digits().without(range(60, 1438))

def work(folder, rank, world_size, killed):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=5, batch_size=16)
    representation = Representation(encoder=encoder, reducer=PCA(rank=3))
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[representation])
    precompute, calls = codec.precompute, []
    def noted_fit(dataset):
        with open(folder.with_suffix(".fits"), "a") as file:
            file.write(f"{rank}\\n")
        torch.manual_seed(0)  # random weights will do
        for tensor in encoder.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
        encoder.trained.fill_(True)
    def noted_precompute(images):
        calls.append(rank)
        if rank == killed and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return precompute(images)
    encoder.fit, codec.precompute = noted_fit, noted_precompute
    cache = prepare(
        codec=codec, dataset=dataset, cache_dir=folder, num_fit_images=45, batch_size=4, rows_per_shard=8, mirror=True,
        rank=rank, world_size=world_size,
    )
    assert len(cache) == 60 and codec.fitted and len(calls) > 0
    cache.check(codec)

codes = {}
for name, (world_size, ranks, killed) in json.loads(sys.argv[2]).items():
    rank_of = {}
    for rank in range(ranks):
        if not (process := os.fork()):
            work(Path(sys.argv[1]) / name, rank, world_size, killed)
            os._exit(0)
        rank_of[process] = rank
    ended = dict(os.wait() for _ in range(ranks))
    codes[name] = [os.waitstatus_to_exitcode(ended[process]) for process in rank_of]
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, python):
    """The folder with the files of every scenario, and the exit codes of its processes."""
    folder = tmp_path_factory.mktemp("outcome")
    done = python("-c", SCRIPT, folder, json.dumps(SCENARIOS))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("scenario", "codes"), [("two", [0, 0]), ("killed", [0, -9])], ids=["two", "killed"])
def test_several_processes_leave_the_files_of_one_bit_for_bit(outcome, scenario, codes):
    folder, ended = outcome
    assert ended["alone"] == [0]
    assert ended[scenario] == codes
    alone = contents(folder / "alone")
    # Shards, fits, and what the codec learned.
    assert len([name for name in alone if name.endswith(".safetensors")]) == 8 + 2 + 1
    assert contents(folder / scenario) == alone


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_encoder_is_trained_by_one_process(outcome, scenario):
    folder, _ = outcome
    assert len((folder / f"{scenario}.fits").read_text().split()) == 1
