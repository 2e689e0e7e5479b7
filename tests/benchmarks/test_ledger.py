"""Times, rows and files of the benchmarks."""

import json
import sys

import pytest

SCRIPT = """
def measured(count, text):
    held = bytearray(count)
    held[::4096] = b"x" * len(held[::4096])
    return {"text": text}

def broken():
    print("said before")
    raise ValueError("no such backend")

def tells_its_peak():
    return {"peak_memory_gib": 7.0}
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def given():
    from ledger import arguments

    return lambda *words: arguments("doc").parse_args(list(words))


def test_variants_take_turns_and_every_other_round_goes_backwards():
    from ledger import side_by_side

    called = []
    side_by_side({name: lambda name=name: called.append(name) for name in "abc"}, rounds=3, warmup=2)
    assert "".join(called) == "aabbcc" + "abc" + "cba" + "abc"


def test_a_timing_has_median_lowest_highest_and_spread():
    from ledger import Timing

    timing = Timing((4.0, 1.0, 2.0))
    assert (timing.median, timing.low, timing.high, timing.spread) == (2.0, 1.0, 4.0, 1.5)
    assert timing.columns() == {"step_seconds": 2.0, "low_seconds": 1.0, "high_seconds": 4.0}


def test_a_ratio_is_taken_round_by_round_so_that_drift_cancels():
    from ledger import Timing

    drift = (1.0, 3.0, 10.0, 2.0, 30.0)
    fast, slow = Timing(drift), Timing(tuple(2.5 * seconds for seconds in drift))
    assert fast.faster_than(slow) == 2.5
    # The machine was slow in one round, for one of the two: the ratio of medians would not notice the others either.
    assert Timing((1.0, 1.0, 9.0)).faster_than(Timing((2.0, 2.0, 2.0))) == 2.0


def test_times_are_those_of_the_calls(monkeypatch):
    import ledger

    clock = [0.0]
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        clock[0] += seconds

    timings = ledger.side_by_side({"a": lambda: takes(1.0), "b": lambda: takes(0.25)}, rounds=4, warmup=1)
    assert timings["a"].seconds == (1.0,) * 4
    assert timings["b"].seconds == (0.25,) * 4


def test_a_process_of_its_own_returns_the_dict_and_its_own_peak(script):
    from ledger import in_process

    ballast = bytearray(300 * 2**20)  # in this process, which started the other
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = in_process("measured", script=script, count=2**20, text="β")
    large = in_process("measured", script=script, count=200 * 2**20, text="β")
    assert small["text"] == "β"
    assert small["peak_memory_gib"] < 0.2
    assert large["peak_memory_gib"] - small["peak_memory_gib"] == pytest.approx(199 / 1024, abs=0.02)
    assert in_process("tells_its_peak", script=script)["peak_memory_gib"] == 7.0


def test_a_process_that_fails_says_why(script):
    from ledger import in_process

    with pytest.raises(RuntimeError, match=r"broken failed \(1\): ValueError: no such backend"):
        in_process("broken", script=script)


def test_a_report_is_written_whole_with_all_that_a_number_needs(given, tmp_path, capsys, monkeypatch):
    from ledger import report

    monkeypatch.setattr(sys, "argv", ["benchmarks/try.py", "--device", "cpu"])
    path = tmp_path / "made" / "try.cpu.json"
    row = {"variant": "plain loop", "step_seconds": 0.25}
    settings = {"batch_size": 8}
    report("try", device="cpu", settings=settings, rows=[row], notes=["one"], arguments=given("--out", str(path)))
    assert [file.name for file in path.parent.iterdir()] == ["try.cpu.json"]
    result = json.loads(path.read_text())
    assert result["benchmark"] == "try"
    assert result["command"] == "python benchmarks/try.py --device cpu"
    assert (result["rows"], result["settings"], result["notes"]) == ([row], settings, ["one"])
    at = result["environment"]
    assert at["cores"] >= 1 and at["threads"] >= 1 and at["memory_gib"] > 0 and at["processor"]
    assert {"python", "torch", "redi"} <= set(at["versions"]) and at["date"]
    assert "| plain loop | 0.25 |" in capsys.readouterr().out


def test_a_number_that_is_none_is_refused_and_leaves_the_old_file(given, tmp_path):
    from ledger import report

    path = tmp_path / "try.json"
    path.write_text("{}")
    with pytest.raises(ValueError):
        report(
            "try", device="cpu", settings={}, rows=[{"loss": float("nan")}], arguments=given("--out", str(path))
        )  # fmt: skip
    assert path.read_text() == "{}"


def test_a_quick_run_writes_nothing_unless_asked(given, tmp_path, monkeypatch):
    import ledger

    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    ledger.report("try", device="cpu", settings={}, rows=[{"a": 1}], arguments=given("--quick"))
    assert list(tmp_path.iterdir()) == []
    ledger.report("try", device="cpu", settings={}, rows=[{"a": 1}], arguments=given())
    assert [file.name for file in tmp_path.iterdir()] == ["try.cpu.json"]


def test_some_measurements_anew_keep_the_others_of_the_same_machine(given, tmp_path):
    from ledger import report

    path = tmp_path / "try.json"

    def measure(*rows, keep):
        rows = [{"measurement": name, "value": value} for name, value in rows]
        report(
            "try", device="cpu", settings={}, rows=rows, keep_others=keep, arguments=given("--out", str(path))
        )  # fmt: skip
        return [(row["measurement"], row["value"]) for row in json.loads(path.read_text())["rows"]]

    measure(("a", 1), ("b", 1), ("b", 2), keep=False)
    assert measure(("b", 3), ("c", 1), keep=True) == [("a", 1), ("b", 3), ("c", 1)]
    other = json.loads(path.read_text())
    other["environment"]["processor"] = "another"
    path.write_text(json.dumps(other))
    assert measure(("b", 4), keep=True) == [("b", 4)]


def test_a_table_has_every_column_and_readable_numbers():
    from markdown_table import table, tables

    rows = [{"variant": "a|b", "images_per_second": 12345.6}, {"variant": "c", "mfu": 0.61234, "count": 3}]
    assert table(rows).splitlines() == [
        "| variant | images per second | mfu | count |",
        "| --- | --: | --: | --: |",
        "| a\\|b | 12,346 |  |  |",
        "| c |  | 0.6123 | 3 |",
    ]
    grouped = tables([{"measurement": "one", "a": 1}, {"measurement": "two", "b": True}])
    assert grouped.split("\n\n")[::2] == ["**one**", "**two**"]
    assert "| yes |" in grouped
