"""What a round took: a real run's record, logs and Prometheus answers, and what lies between two samples.

recorded/ has a run of one client on a virtual device. While round 3 trained, its memory limit was lowered until the
kernel killed the training, and raised again. The answers are those of the run's own Prometheus.
"""

import gzip
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas
import pytest

from fltestbed import events, figures, inventory, resources, series
from fltestbed.errors import FltestbedError
from fltestbed.inventory import Host
from fltestbed.monitoring import Prometheus, _seconds
from fltestbed.resources import COLUMNS, MACHINES, Moments, read_moments
from fltestbed.series import Key, Series, grown, summed

RECORDED = Path(__file__).parent / "recorded"
ANSWERS = json.loads(gzip.decompress((RECORDED / "prometheus.json.gz").read_bytes()))
RUN = json.loads((RECORDED / "run.json").read_text())
START, END = (pandas.Timestamp(RUN[key]).timestamp() for key in ("started", "updated"))
TIMES = ("waiting_seconds", "download_seconds", "training_seconds", "upload_seconds")
MIB = 2**20


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as the run's Prometheus did."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        key = parse_qs(asked.query)["query"][0] if asked.path.endswith("/query") else asked.path
        known = key in ANSWERS
        body = {"status": "success", "data": ANSWERS[key]} if known else {"status": "error", "error": f"what is {key}"}
        self.send_response(200 if known else 400)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Prometheus(server.server_port)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def seen(prometheus: Prometheus) -> Series:
    return series.fetch(prometheus, "server", START, END)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / RUN["run"]
    shutil.copytree(RECORDED, run)
    return run


def test_the_parts_of_each_round_make_its_wall_time(folder: Path, seen: Series) -> None:
    rows = resources.join(folder, seen)
    assert [(row["client"], row["round"]) for row in rows] == [("pi-3", number) for number in (1, 2, 3, 4)]
    for row in (rows[0], rows[1], rows[3]):
        wall = (pandas.Timestamp(row["end"]) - pandas.Timestamp(row["start"])).total_seconds()
        assert sum(row[part] for part in TIMES) == pytest.approx(wall)
        assert all(row[part] > 0 for part in TIMES)
        assert row["oom_killed"] is False


def test_each_rounds_figures_are_its_own(folder: Path, seen: Series) -> None:
    """A model of 425 KB comes and goes in each round, whenever Prometheus looked."""
    for row in resources.join(folder, seen):
        if row["round"] == 3:
            continue
        for way in ("received_bytes", "sent_bytes"):  # rounds of 10 s, looked at every 10 s
            assert 0.8 * 425_512 < row[way] < 1.5 * 425_512
        assert 5 < row["cpu_seconds"] < 12 and 0 <= row["throttled_seconds"] < 60
        assert 350 * MIB < row["memory_peak_bytes"] <= 640 * MIB
        if row["memory_mean_bytes"] is not None:  # a round may end before cAdvisor looks
            assert 90 * MIB < row["memory_mean_bytes"] < row["memory_peak_bytes"]
        assert row["energy_joules"] is row["energy_source"] is row["temperature_celsius"] is None


def test_a_training_that_the_kernel_killed_is_called_that(folder: Path, seen: Series) -> None:
    row = resources.join(folder, seen)[2]
    assert row["oom_killed"] is True
    assert row["download_seconds"] > 0
    assert row["training_seconds"] is row["waiting_seconds"] is None
    assert 200 * MIB < row["memory_peak_bytes"] <= 640 * MIB


def test_the_files_have_the_columns_of_the_reference(folder: Path, seen: Series) -> None:
    resources.save(resources.join(folder, seen), folder)
    series.save(seen, folder / "series.parquet")
    parquet, csv = pandas.read_parquet(folder / "resources.parquet"), pandas.read_csv(folder / "resources.csv")
    assert list(parquet.columns) == list(csv.columns) == list(COLUMNS)
    assert parquet["round"].tolist() == csv["round"].tolist() == [1, 2, 3, 4]
    assert parquet["oom_killed"].tolist() == [False, False, True, False]
    assert csv["cpu_seconds"].tolist() == pytest.approx(parquet["cpu_seconds"].tolist(), rel=1e-5)
    samples = pandas.read_parquet(folder / "series.parquet")
    assert list(samples.columns) == ["time", "metric", "device", "client", "value"]
    assert samples.dtypes["time"] == samples.dtypes["value"] == np.float64
    assert samples["time"].between(START - 60, END + 60).all()
    assert samples.loc[samples["metric"].str.startswith("device:"), "client"].isna().all()
    assert set(samples.loc[samples["metric"].str.startswith("client:"), "client"]) == {"pi-3"}
    assert {"device:monitoring_cpu_cores", "device:monitoring_memory_bytes"} <= set(samples["metric"])
    page = (Path(__file__).parents[2] / "docs" / "reference-results.md").read_text()
    for name in [*COLUMNS, "device:monitoring_cpu_cores", "device:monitoring_memory_bytes"]:
        assert f"`{name}`" in page


def test_events_are_in_order_and_name_who_and_what(folder: Path, seen: Series) -> None:
    found = events.events(folder, seen)
    assert [list(event) for event in found] == [["time", "kind", "device", "client", "text"]] * len(found)
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    assert found[0]["kind"] == "start" and found[-1]["kind"] in ("end", "alert")
    kinds = [event["kind"] for event in found]
    assert (kinds.count("round"), kinds.count("fault"), kinds.count("end")) == (4, 1, 1)
    fault = next(event for event in found if event["kind"] == "fault")
    assert fault["client"] == "pi-3" and "round 3: its training process died" in fault["text"]
    limits = [event["text"] for event in found if event["kind"] == "limit"]
    assert limits == [
        "memory limit 671088640 → 262144000 bytes",
        "memory limit 262144000 → 671088640 bytes",
    ]
    assert any(event["text"] == "ClientOutOfMemory (critical)" for event in found if event["kind"] == "alert")


def test_a_condition_is_told_when_it_begins_and_when_it_ends(folder: Path, seen: Series) -> None:
    looks = np.arange(START, START + 300, seen.step)
    seen.samples[Key("device:up:bool", "pi-3")] = looks, np.ones(len(looks))
    spells = np.concatenate([looks[4:8], looks[20:]])
    seen.samples[Key("condition:pause:bool", "pi-3", "pi-3")] = spells, np.ones(len(spells))
    found = [event for event in events.events(folder, seen) if event["kind"] == "condition"]
    assert [(event["client"], event["text"]) for event in found] == [
        ("pi-3", "pause begins"),
        ("pi-3", "pause ends"),
        ("pi-3", "pause begins"),
    ]
    assert datetime.fromisoformat(found[1]["time"]).timestamp() == pytest.approx(looks[8], abs=0.01)


def test_without_monitoring_there_is_what_the_logs_tell(folder: Path) -> None:
    testbed = inventory.Testbed("lab", folder, Host("server"), (Host("pi-3"),), (), "/opt/fltestbed/lab")
    assert figures.write(testbed, folder) == "no figures of the devices: no host is in group monitoring"
    assert not (folder / "series.parquet").exists()
    rows = pandas.read_parquet(folder / "resources.parquet")
    assert rows["training_seconds"].notna().tolist() == [True, True, False, True]
    assert rows["memory_peak_bytes"].notna().tolist() == [True, True, False, True]
    assert rows["oom_killed"].tolist() == [False, False, pandas.NA, False]
    assert rows[["cpu_seconds", "received_bytes", "energy_joules"]].isna().all(axis=None)
    assert len((folder / "events.jsonl").read_text().splitlines()) == 7


def test_a_prometheus_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(FltestbedError, match="Prometheus does not answer"):
        Prometheus(1).query("up")


def test_a_refused_query_is_shown(prometheus: Prometheus) -> None:
    with pytest.raises(FltestbedError, match="what is nothing"):
        prometheus.query("nothing")


def test_durations_are_read_as_prometheus_writes_them() -> None:
    assert [_seconds(text) for text in ("10s", "1m30s", "500ms", "1h", "1d")] == [10, 90, 0.5, 3600, 86400]


def test_a_log_of_another_run_tells_nothing(folder: Path) -> None:
    log = folder / "logs" / "client-pi-3.log"
    assert read_moments(log, "pi-3", "1") == {}
    assert read_moments(log, "pi", RUN["flwr_run_id"]) == {}
    assert read_moments(folder / "none.log", "pi-3", RUN["flwr_run_id"]) == {}
    assert sorted(read_moments(log, "pi-3", RUN["flwr_run_id"])) == [1, 2, 3, 4]


def test_a_process_that_starts_while_the_model_comes_in_does_not_train_yet() -> None:
    row = {
        "start": "2026-01-01T10:00:00+00:00",
        "end": "2026-01-01T10:00:20+00:00",
        "app_start": 100.0,
        "app_seconds": 12.0,
    }
    moments = Moments(receiving=98.0, received=103.0, sending=112.0, sent=114.0)
    assert resources._times(row, moments) == {
        "download_seconds": 5.0,
        "training_seconds": 9.0,
        "upload_seconds": 2.0,
        "waiting_seconds": 4.0,
    }


TEN = np.arange(0.0, 101.0, 10.0)


def test_a_counter_grows_evenly_between_samples() -> None:
    assert grown(TEN, 2 * TEN, 15, 45, 30) == pytest.approx(60)


def test_what_lies_between_two_samples_goes_where_the_counter_is_known_to_grow() -> None:
    values = np.where(TEN < 50, 0.0, 100.0)  # it grew between 40 s and 50 s
    assert grown(TEN, values, 0, 45, 30) == pytest.approx(50)
    assert grown(TEN, values, 0, 45, 30, [(41.0, 44.0)]) == pytest.approx(100, rel=0.02)
    assert grown(TEN, values, 45, 90, 30, [(41.0, 44.0)]) == pytest.approx(0, abs=2)


def test_a_counter_that_began_anew_counts_from_0() -> None:
    values = np.array([100.0, 110, 120, 5, 15, 25, 35, 45, 55, 65, 75])
    assert grown(TEN, values, 0, 100, 30) == pytest.approx(20 + 5 + 70)


@pytest.mark.parametrize(("start", "end"), [(-40, 50), (50, 140)])
def test_a_counter_that_was_not_seen_has_no_figure(start: float, end: float) -> None:
    assert grown(TEN, TEN, start, end, 30) is None
    assert grown(np.empty(0), np.empty(0), start, end, 30) is None


def test_power_over_time_is_energy() -> None:
    power = np.full(len(TEN), 5.0)
    assert grown(TEN, summed(TEN, power), 20, 80, 30) == pytest.approx(300)


ROW = {
    "device": "pi-1",
    "client": "pi-1-1",
    "round": 1,
    "start": "1970-01-01T00:00:20+00:00",
    "end": "1970-01-01T00:00:59+00:00",
    "failure": None,
}


def energy(profile: str, arch: str, samples: dict[Key, Any], clients: tuple[str, ...] = ("pi-1-1",)) -> Any:
    watched = Series(10.0, "server", samples, [], {"pi-1": (profile, arch)})
    rows = [ROW | {"client": client} for client in clients]
    return resources._energy(ROW, resources._Run(rows, {}, watched))


def test_the_best_source_of_energy_is_taken() -> None:
    used = {Key("device:cpu_used:ratio", "pi-1"): (TEN, np.full(len(TEN), 0.5))}
    rapl = {Key("device:energy_rapl:joules_total", "pi-1"): (TEN, 10 * TEN)}
    plug = {Key("device:power_plug:watts", "pi-1"): (TEN, np.full(len(TEN), 4.0))}
    hwmon = {Key("device:power_hwmon:watts", "pi-1"): (TEN, np.full(len(TEN), 3.0))}
    machine = MACHINES["rpi4"]
    expected = 39 * (machine.idle + machine.busy) / 2
    assert energy("rpi4", "aarch64", used) == (pytest.approx(expected), "model", machine.error)
    assert energy("rpi4", "aarch64", used | hwmon) == (pytest.approx(39 * 3), "hwmon", None)
    assert energy("rpi4", "aarch64", used | hwmon | rapl) == (pytest.approx(390), "rapl", None)
    assert energy("rpi4", "aarch64", used | rapl | plug) == (pytest.approx(39 * 4), "plug", None)


def test_a_machine_that_nobody_measured_has_no_energy() -> None:
    used = {Key("device:cpu_used:ratio", "pi-1"): (TEN, np.full(len(TEN), 0.5))}
    assert energy("rpi5", "aarch64", used) == (None, None, None)
    assert energy("rpi4", "x86_64", used) == (None, None, None), "a PC that plays a Raspberry Pi draws what a PC draws"


def test_clients_share_their_devices_energy_by_what_they_computed() -> None:
    samples = {
        Key("device:power_plug:watts", "pi-1"): (TEN, np.full(len(TEN), 4.0)),
        Key("client:cpu:seconds_total", "pi-1", "pi-1-1"): (TEN, 0.3 * TEN),
        Key("client:cpu:seconds_total", "pi-1", "pi-1-2"): (TEN, 0.1 * TEN),
    }
    joules, source, _error = energy("", "", samples, ("pi-1-1", "pi-1-2"))
    assert (joules, source) == (pytest.approx(0.75 * 39 * 4), "plug")


def test_what_an_evaluation_took_is_no_training(tmp_path: Path) -> None:
    lines = [
        (0, "[RUN 7, ROUND 1]"), (0, "Receiving: train message (ID: 1)"), (1, "Received successfully"),
        (3, "[RUN 7, ROUND 1]"), (3, "Sending: train message (ID: 2)"), (4, "Sent successfully"),
        (5, "[RUN 7]"), (5, "Receiving: evaluate message (ID: 3)"), (6, "Received successfully"),
    ]  # fmt: skip
    log = tmp_path / "client.log"
    log.write_text(
        "".join(f"supernode-pi-1  | 2026-11-22T16:36:4{at}.000000Z INFO :      {text}\n" for at, text in lines)
    )
    (found,) = read_moments(log, "pi", "7").values()
    assert (found.download, found.upload) == (1, 1)
