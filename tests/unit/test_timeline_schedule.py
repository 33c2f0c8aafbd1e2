"""A timeline made into steps: what is drawn, what follows from what, and what is refused before a run."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fltestbed import experiment, inventory
from fltestbed.errors import ExperimentError
from fltestbed.timeline import schedule

DEVICES = ("laptop", "pi-3", "pi-4")
CLIENTS = {"laptop": ("laptop-1", "laptop-2"), "pi-3": ("pi-3",), "pi-4": ("pi-4",)}
TESTBED = inventory.Testbed(
    "lab",
    Path("lab"),
    inventory.Host("server"),
    tuple(inventory.Host(name) for name in DEVICES),
    tuple(
        {"device": device, "client": client, "cpus": None, "memory": None, "settings": {}}
        for device, clients in CLIENTS.items()
        for client in clients
    ),
    "/opt/fltestbed/lab",
    groups={"supernodes": DEVICES, "pis": ("pi-3", "pi-4")},
)


def expand(folder: Path, text: str, settings: Sequence[str] = (), *, reports: bool = True) -> list[schedule.Step]:
    file = folder / "mine.yml"
    file.write_text(f"name: mine\nrounds: 5\nseed: 3\n{text}")
    wanted = experiment.load(file, settings)
    assert wanted.timeline
    place = schedule.Place(
        folder, lambda key: experiment.where(file, settings, key), wanted.rounds, wanted.seed, reports
    )
    return schedule.expand(wanted.timeline, TESTBED, place)


def events(folder: Path, *entries: str, settings: Sequence[str] = ()) -> list[str]:
    lines = "".join(f"    - {{{entry}}}\n" for entry in entries)
    return told(expand(folder, f"timeline:\n  events:\n{lines}", settings))


def told(steps: list[schedule.Step]) -> list[str]:
    return [
        f"{step.when}: {step.target.device} {schedule.words(step.action)}" + (f" ends {step.ends}" if step.ends else "")
        for step in steps
    ]


def test_steps_are_in_the_order_of_their_moments_and_what_lasts_is_put_back(tmp_path: Path) -> None:
    assert events(
        tmp_path,
        "at: 1m, every: 2m, times: 2, devices: pi-4, partition: {}, for: 20s",
        "at: 30, devices: [pi-3], throttle: {cpus: 0.25, memory: 256m}, for: 60s",
        "round: 2, every: 2 rounds, devices: [pi-3], shape: {rate: 2mbit}, for: 1 round",
        "accuracy: 0.6, devices: [pi-4], kill: {}",
        "round: 4, devices: [pi-4], rejoin: {}",
    ) == [
        "30 s: pi-3 throttle cpus 0.25 memory 256m",
        "60 s: pi-4 partition",
        "80 s: pi-4 rejoin ends 2",
        "90 s: pi-3 unthrottle ends 1",
        "180 s: pi-4 partition",
        "200 s: pi-4 rejoin ends 5",
        "round 2: pi-3 shape rate_up 2mbit rate_down 2mbit",
        "round 3: pi-3 unshape ends 7",
        "round 4: pi-3 shape rate_up 2mbit rate_down 2mbit",
        "round 4: pi-4 rejoin",
        "round 5: pi-3 unshape ends 9",
        "accuracy 0.6: pi-4 kill",
    ]


def test_times_and_rounds_can_be_mixed(tmp_path: Path) -> None:
    assert events(
        tmp_path,
        "round: 2, devices: pi-3, pause: {}, for: 1m",
        "at: 90s, devices: pi-4, kill: {}, for: 2 rounds",
        "accuracy: 0.5, devices: laptop-2, throttle: {cpus: 1}, for: 1 round",
        "round: 5, devices: pi-4, shape: {rate: 1mbit}, for: 1 round",
    ) == [
        "90 s: pi-4 kill",
        "90 s + 2 rounds: pi-4 rejoin ends 1",
        "round 2: pi-3 pause",
        "round 2 + 60 s: pi-3 rejoin ends 3",
        "round 5: pi-4 shape rate_up 1mbit rate_down 1mbit",  # to the end of the run, which puts it back
        "accuracy 0.5: laptop throttle cpus 1",
        "accuracy 0.5 + 1 round: laptop unthrottle ends 6",
    ]


def test_a_share_is_drawn_anew_for_each_repetition_and_by_the_seed(tmp_path: Path) -> None:
    text = "timeline: {events: [{at: 1, every: 10, times: 20, devices: supernodes, share: 0.4, shape: {rate: 1mbit}}]}"
    first = expand(tmp_path, text)
    assert {step.target.device for step in first} == set(DEVICES)
    assert len(first) == 20
    assert expand(tmp_path, text) == first
    assert expand(tmp_path, text, ["seed=4"]) != first
    pinned = expand(tmp_path, text, ["timeline.seed=9"])
    assert expand(tmp_path, text, ["timeline.seed=9", "seed=4"]) == pinned != first


def test_another_event_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    churn = "timeline:\n  churn: [{devices: supernodes, model: markov, up: 2m, down: 30s, until: 1h}]\n"
    alone = told(expand(tmp_path, churn))
    with_event = told(expand(tmp_path, churn + "  events: [{at: 1, devices: pi-3, throttle: {cpus: 0.5}}]\n"))
    assert len(with_event) == len(alone) + 1
    assert [line.partition(" ends ")[0] for line in alone] == [
        line.partition(" ends ")[0] for line in with_event if "throttle" not in line
    ]


def spells(steps: list[schedule.Step], device: str) -> list[tuple[float, float]]:
    own = [step for step in steps if step.target.device == device]
    ends = {step.ends: step.when.value for step in own if step.ends}
    return [(step.when.value, ends[step.number]) for step in own if not step.ends]


def test_markov_churn_has_the_means_that_were_asked_for(tmp_path: Path) -> None:
    text = "timeline: {churn: [{devices: pis, model: markov, up: 2m, down: 30s, until: 10 h, action: pause}]}"
    steps = expand(tmp_path, text.replace("10 h", "50h"))
    assert {schedule.words(step.action) for step in steps} == {"pause", "rejoin"}
    found = spells(steps, "pi-3")
    assert found != spells(steps, "pi-4")
    assert all(begin < end for begin, end in found)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(found))
    down = [end - begin for begin, end in found]
    up = [begin - end for (_, end), (begin, _) in itertools.pairwise(found)]
    assert len(found) > 900
    assert sum(down) / len(down) == pytest.approx(30, rel=0.15)
    assert sum(up) / len(up) == pytest.approx(120, rel=0.15)


def test_diurnal_churn_is_online_for_its_share_around_the_start_of_each_period(tmp_path: Path) -> None:
    text = "timeline: {churn: [{devices: pis, model: diurnal, period: 100s, online: 0.6, spread: 0.2, until: 5m}]}"
    steps = expand(tmp_path, text)
    for device in ("pi-3", "pi-4"):
        found = spells(steps, device)
        late = found[0][0] - 30
        assert -10 <= late <= 10
        assert found == [
            (pytest.approx(30 + late + 100 * n, abs=0.01), pytest.approx(70 + late + 100 * n, abs=0.01))
            for n in range(3)
        ]
    assert spells(steps, "pi-3") != spells(steps, "pi-4")


def test_a_trace_says_when_who_is_offline(tmp_path: Path) -> None:
    rows = "device,second,state\npi-3,0,online\npi-4,5,offline\npi-3,10.5,off\npi-3,11,0\npi-3,20,up\npi-3,30,down\n"
    (tmp_path / "trace.csv").write_text(rows)
    assert told(expand(tmp_path, "timeline: {churn: [{model: trace, file: trace.csv}]}")) == [
        "5 s: pi-4 partition",
        "10.5 s: pi-3 partition",
        "20 s: pi-3 rejoin ends 2",
        "30 s: pi-3 partition",
    ]


def test_devices_of_a_foreign_trace_are_dealt_out(tmp_path: Path) -> None:
    rows = [f"phone-{number},{10 + number},offline" for number in range(20)]
    (tmp_path / "trace.csv").write_text("\n".join(["device,second,state", *rows]))
    text = "timeline: {churn: [{model: trace, file: trace.csv, devices: supernodes, action: kill}]}"
    steps = expand(tmp_path, text)
    assert sorted(step.target.device for step in steps) == sorted(DEVICES)
    assert len({step.when.value for step in steps}) == 3
    assert expand(tmp_path, text) == steps != expand(tmp_path, text, ["seed=8"])


@pytest.mark.parametrize(
    ("entries", "said", "hint"),
    [
        (["at: 1, devices: pi-5, kill: {}"], "has no device, client or group 'pi-5'", "pi-4 or pi-3"),
        (["at: 1, devices: server, kill: {}"], "has no device, client or group 'server'", "laptop"),
        (["at: 1, devices: laptop-1, shape: {rate: 1mbit}"], "shape acts on a device, and laptop-1 is a client", ""),
        (["at: 1, devices: pi-3, rejoin: {}"], "pi-3 is not cut off at 1 s", "before"),
        (["round: 6, devices: pi-3, kill: {}"], "round 6 is past the last one, which is 5", "raise rounds"),
        (["round: 4, every: 2 rounds, times: 2, devices: pi-3, kill: {}, for: 1 round"], "round 6 is past", ""),
        (
            ["at: 1, devices: pi-3, throttle: {cpus: 1}", "at: 1, devices: pis, throttle: {cpus: 0.5}"],
            "events.1: throttle of pi-3 at 1 s, at the same moment as throttle of timeline.events.0",
            "another moment",
        ),
        (
            ["at: 1, devices: laptop, pause: {}", "at: 9, devices: laptop-2, kill: {}"],
            "kill of laptop-2 at 9 s, while it is cut off by pause of timeline.events.0 at 1 s",
            "",
        ),
        (
            ["at: 1, every: 5, times: 2, devices: pi-3, kill: {}, for: 7"],
            "kill of pi-3 at 6 s, while it is cut off",
            "",
        ),
        (["at: 1, devices: pi-3, kill: {}, for: 9", "at: 5, devices: pi-3, rejoin: {}"], "rejoin of pi-3 at 5 s", ""),
        (["at: 1, devices: pi-3, kill: {}", "at: 1, devices: pi-3, restore: {}"], "restore of pi-3 at 1 s", ""),
        (
            ["at: 1, devices: pi-3, shape: {rate: 1mbit}", "at: 5, devices: pi-3, shape: {rate: 2mbit}, for: 9"],
            "shape of pi-3 at 5 s, which would be put back with it, within shape of timeline.events.0",
            "",
        ),
        (["at: 0, every: 1ms, times: 10001, devices: pis, reboot: {}"], "more than 20000 steps", "less"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, entries: list[str], said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        events(tmp_path, *entries)
    assert f"mine.yml:{5 + len(entries)}: timeline.events.{len(entries) - 1}: " in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "entries",
    [
        ["at: 1, devices: pi-3, throttle: {cpus: 1}", "at: 5, devices: pi-3, throttle: {cpus: 0.5}"],
        ["at: 1, devices: pi-3, kill: {}, for: 5", "at: 6, devices: pi-3, kill: {}"],
        ["accuracy: 0.5, devices: pi-3, kill: {}", "round: 3, devices: pi-3, rejoin: {}"],
        ["at: 1, devices: pi-3, kill: {}", "round: 2, devices: pi-3, rejoin: {}", "at: 9, devices: pi-3, pause: {}"],
        [
            "at: 1, devices: pi-3, kill: {}",
            "at: 1, devices: pi-4, kill: {}",
            "at: 1, devices: pi-3, throttle: {cpus: 1}",
        ],
        [
            "at: 1, devices: laptop-1, kill: {}",
            "at: 2, devices: laptop-2, kill: {}",
            "at: 3, devices: laptop, rejoin: {}",
        ],
    ],
)
def test_what_may_go_together_is_taken(tmp_path: Path, entries: list[str]) -> None:
    assert events(tmp_path, *entries)


def test_an_app_without_rounds_has_seconds_alone(tmp_path: Path) -> None:
    timed = "timeline: {events: [{at: 1, devices: pi-3, kill: {}}]}"
    assert expand(tmp_path, timed, reports=False)
    with pytest.raises(ExperimentError, match="the app reports no rounds"):
        expand(tmp_path, timed.replace("at: 1", "round: 1"), reports=False)


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ("device,second\npi-3,1\n", "trace.csv:1: has the columns device, second"),
        ("device,second,state\npi-3,soon,off\n", "trace.csv:2: is not a row: pi-3, soon, off"),
        ("device,second,state\npi-3,1,asleep\n", "trace.csv:2: is not a row"),
        ("device,second,state\npi-3,9,off\npi-3,3,on\n", "trace.csv:3: second 3 of pi-3 is not after the row before"),
        ("device,second,state\npi-9,9,off\n", "has no device, client or group 'pi-9'"),
        ("device,second,state\n", "has no rows"),
        ("", "trace.csv:1: has the columns none"),
    ],
)
def test_a_trace_that_is_wrong_is_refused(tmp_path: Path, trace: str, said: str) -> None:
    (tmp_path / "trace.csv").write_text(trace)
    with pytest.raises(ExperimentError) as caught:
        expand(tmp_path, "timeline: {churn: [{model: trace, file: trace.csv}]}")
    assert "mine.yml:4: timeline.churn.0: " in caught.value.message
    assert said in caught.value.message


def test_a_trace_that_is_not_there_or_too_small_is_refused(tmp_path: Path) -> None:
    text = "timeline: {churn: [{model: trace, file: trace.csv, devices: pis}]}"
    with pytest.raises(ExperimentError, match="cannot be read: No such file"):
        expand(tmp_path, text)
    (tmp_path / "trace.csv").write_text("device,second,state\nphone,9,off\n")
    with pytest.raises(ExperimentError, match="has 1 devices, and 2 are to have one each"):
        expand(tmp_path, text)


def test_a_setting_that_contradicts_is_named(tmp_path: Path) -> None:
    event: dict[str, Any] = {"at": 1, "devices": ["pi-9"], "kill": {}}
    with pytest.raises(ExperimentError) as caught:
        expand(tmp_path, "timeline: null", [f"timeline.events=[{event}]"])
    assert caught.value.message.startswith("setting \"timeline.events=[{'at': 1")
    assert ": timeline.events.0: the testbed lab has no device" in caught.value.message


@pytest.mark.parametrize(
    ("timeline", "said", "hint"),
    [
        ("{}", "timeline: has neither events nor churn", "timeline: null"),
        ("{events: [{at: 1, round: 2, devices: a, kill: {}}]}", "events.0: has two moments: at and round", "at: 30s"),
        ("{events: [{at: 1, devices: a}]}", "events.0: has no action", "kill: {}"),
        ("{events: [{at: 1, devices: a, kill: {}, pause: {}}]}", "has two actions: pause and kill", ""),
        ("{events: [{at: 1, devices: a, throttle: {cpu: 1}}]}", "events.0.throttle: throttle has no parameter", "cpus"),
        ("{events: [{at: 1, devices: a, throttle: {}}]}", "throttle needs a parameter", "cpus, memory"),
        ("{events: [{at: 1, devices: a, throttle: 0.5}]}", "events.0.throttle: cannot be 0.5", "{cpus: 0.5}"),
        ("{events: [{at: 1, devices: a, shape: {rate: fast}}]}", "rate cannot be 'fast'", "5mbit"),
        ("{events: [{at: soon, devices: a, kill: {}}]}", "events.0.at: cannot be 'soon'", "30s, 2m or 1h"),
        ("{events: [{at: 1, devices: [], kill: {}}]}", "events.0.devices: cannot be []", "[pi-3, pi-4]"),
        ("{events: [{at: 1, devices: a, kill: {}, for: 0}]}", "events.0.for: cannot be 0", "1 round"),
        ("{events: [{at: 1, devices: a, rejoin: {}, for: 9}]}", "rejoin is over at once", "take `for` out"),
        ("{events: [{at: 1, devices: a, kill: {}, every: 9}]}", "every without times", "times: 3"),
        ("{events: [{at: 1, devices: a, kill: {}, times: 9}]}", "times without every", "every: 2m"),
        ("{events: [{at: 1, devices: a, kill: {}, every: 2 rounds}]}", "every cannot be '2 rounds' after at", "2m"),
        ("{events: [{accuracy: 0.5, devices: a, kill: {}, every: 1 round}]}", "reached once", ""),
        ("{events: [{at: 1, device: a, kill: {}}]}", "events.0.device: no such key", "timeline.events.devices"),
        ("{churn: [{devices: a}]}", "churn.0: has no model", "{model: markov}"),
        ("{churn: [{devices: a, model: markow}]}", "churn.0: there is no 'markow'", "markov"),
        ("{churn: [{devices: a, model: markov, up: 0, down: 1}]}", "churn.0.up: cannot be 0", "above 0"),
        ("{churn: [{devices: a, model: diurnal, period: 9, online: 1}]}", "churn.0.online: cannot be 1", "below 1"),
    ],
)
def test_mistakes_name_line_and_key(tmp_path: Path, timeline: str, said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        expand(tmp_path, f"timeline: {timeline}")
    assert caught.value.message.startswith(f"{tmp_path / 'mine.yml'}:4: timeline")
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_the_resolved_experiment_can_be_read_again(tmp_path: Path) -> None:
    text = (
        "timeline:\n  events: [{round: 2, devices: pis, share: 0.5, shape: {rate: 2mbit}, for: 1 round}]\n"
        "  churn: [{devices: pi-3, model: markov, up: 2m, down: 30s}]\n"
    )
    (tmp_path / "mine.yml").write_text(f"name: mine\n{text}")
    resolved = experiment.load(tmp_path / "mine.yml")
    dumped = resolved.model_dump()
    assert dumped["timeline"]["events"] == [
        {"round": 2, "devices": ["pis"], "share": 0.5, "shape": {"rate": "2mbit"}, "for": "1 round"}
    ]
    assert experiment.Experiment.model_validate(dumped) == resolved
