"""Judges what `verify` measured: is what was asked for what a client gets? If not, whose fault is it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fltestbed.inventory import Client

TOLERANCE = 0.03
"""Share by which a figure may differ from what was asked for."""

OK, OFF, BUSY, FREE = "ok", "off", "busy", "no limit"
"""Verdicts: as asked; not as asked; less than asked as something else was at work meanwhile; nothing was asked for."""

_PAGE = 65536  # bytes: kernels round a memory limit down to a page
_MIB = 2**20
_HEADERS = 66  # bytes of Ethernet, IPv4 and TCP with a time stamp around a segment, which a shaper counts too
_LAN = 0.01  # s that the way itself may add to a delay
_RARE = 0.005  # a number of lost packets that is less likely than this is no chance
MEND = (
    "fltestbed restore lifts a condition, and fltestbed up puts back what else the kernel has otherwise; "
    "what a device cannot give has to change in the inventory"
)
"""What to do about limits that are off."""

Row = dict[str, Any]
"""A figure of a client: device, client, figure, unit, asked, kernel, measured, error (a share), verdict, reason."""


def judge(
    clients: Iterable[Client],
    answers: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """Return a row for every figure of every client that was measured; `answers` are the module testbed_verify's."""
    clients = list(clients)
    found = {each["client"]: each for answer in answers.values() for each in answer["clients"]}
    fastest = max((each["cpu"]["turns"] for each in found.values() if "cpu" in each), default=1.0)
    rows = []
    for client in clients:
        answer = found.get(client["client"])
        if answer is None:
            continue
        of_device = answers[client["device"]]
        for figure in _figures(client, answer, fastest, of_device["asked"], of_device["shaped"]):
            error = figure["measured"] / figure["asked"] - 1 if figure["asked"] and figure["measured"] else None
            rows.append(
                {"device": client["device"], "client": client["client"]}
                | {key: figure[key] for key in ("figure", "unit", "asked", "kernel", "measured")}
                | {"error": error, "verdict": figure["verdict"], "reason": figure["reason"]}
            )
    return rows


def _figures(
    client: Client,
    answer: Mapping[str, Any],
    fastest: float,
    network: Mapping[str, float],
    shaped: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    if answer["state"] != "running":
        yield _figure("container", "", (), OFF, f"its container is {answer['state']}")
        return
    cpu, memory = answer["cpu"], answer["memory"]
    yield _figure("cpus", "cores", (client["cpus"], cpu["quota"], cpu["got"]), *judge_cpu(client["cpus"], cpu))
    verdict, reason = judge_memory(client["memory"], memory, survived=answer["survived"])
    sizes = (client["memory"], memory["limit"], memory["taken"])
    yield _figure("memory", "MiB", sizes, verdict, reason, scale=1 / _MIB)
    turns = f"{cpu['turns'] / 1e6:.3g} million loop turns a second"
    yield _figure("core speed", "of the fastest", (None, None, cpu["turns"] / fastest), FREE, turns)
    yield from _network(answer["network"], network, shaped)


def _figure(
    figure: str, unit: str, values: Sequence[float | None], verdict: str, reason: str, *, scale: float = 1.0
) -> dict[str, Any]:
    """Return a figure; `values` are what was asked for, what the kernel has, and what was measured."""
    asked, kernel, measured = (each and each * scale for each in values or (None, None, None))
    return {
        "figure": figure,
        "unit": unit,
        "asked": asked,
        "kernel": kernel,
        "measured": measured,
        "verdict": verdict,
        "reason": reason,
    }


def judge_cpu(asked: float | None, cpu: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict on a client's CPU, and the reason where it is not as asked.

    A quota bounds from above: a container gets less when others want the cores too. What tells the two apart is in how
    many of its periods the kernel stopped the container, as its quota was used up.
    """
    quota, got = cpu["quota"], cpu["got"]
    if (asked is None) != (quota is None) or abs((asked or 0) - (quota or 0)) >= 0.005:
        return OFF, f"the kernel has {_cores(quota)}, and {_cores(asked)} is asked for"
    if asked is None:
        return FREE, ""
    if asked > cpu["cores"]:
        return OFF, f"{asked:g} cores are asked for, and the device has {cpu['cores']}; ask for no more than it has"
    if got > asked * (1 + TOLERANCE):
        return OFF, f"it got {got:.3g} cores of {asked:g}: the kernel does not hold it to its limit"
    if got >= asked * (1 - TOLERANCE):
        return OK, ""
    stopped = cpu["throttled"] / max(1, cpu["periods"])
    if cpu["throttled_above"] > max(0.5, stopped):
        return OFF, (
            f"it got {got:.3g} cores of {asked:g}, as what the container lies in is held to less; raise that limit "
            "(virtual_device_cpus of a virtual device), or ask for less"
        )
    if got < asked * stopped * (1 - TOLERANCE):  # where it is stopped it has used its quota up
        return (
            OFF,
            f"it got {got:.3g} cores of {asked:g}, and the kernel stopped it although it had not used its quota up",
        )
    return BUSY, (
        f"it got {got:.3g} cores of {asked:g}, and its quota stopped it in {stopped:.0%} of the time: others had the "
        "cores; verify again when the machine is quiet"
    )


def _cores(cpus: float | None) -> str:
    return "no limit" if cpus is None else f"{cpus:g} cores"


def judge_memory(asked: int | None, memory: Mapping[str, Any], *, survived: bool) -> tuple[str, str]:
    """Return the verdict on a client's memory, and the reason where it is not as asked."""
    limit, room, taken = memory["limit"], memory["room"], memory["taken"]
    if (asked is None) != (limit is None) or abs((asked or 0) - (limit or 0)) >= _PAGE:
        return OFF, f"the kernel has {_size(limit)}, and {_size(asked)} is asked for"
    if asked is None:
        return FREE, ""
    if taken is None:
        return OFF, f"{_size(asked)} is asked for, and the device has {_size(room)} left; ask for less"
    if not survived:
        return OFF, "the kernel ended the whole container, and not only what took too much"
    if not memory["killed"]:
        return OFF, f"it took {_size(taken)} of {_size(asked)} and was not stopped: is there swap that is not counted?"
    if abs(taken / asked - 1) > TOLERANCE:
        return (
            OFF,
            f"it was stopped at {_size(taken)}, and {_size(asked)} is asked for; the device itself may have no more",
        )
    return OK, ""


def _size(size: int | None) -> str:
    return "no limit" if size is None else f"{size / _MIB:.4g}m"


def _network(
    found: Mapping[str, Any], asked: Mapping[str, float], shaped: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    if "error" in found:
        yield _figure("network", "", (), OFF, f"the server cannot be reached: {found['error']}")
        return
    for way in ("down", "up"):
        rate = on_the_wire(found[way], found.get(f"{way}_segment"))
        rates = (asked.get(f"rate_{way}"), shaped.get(f"rate_{way}"), rate)
        verdict, reason = judge_rate(*rates, found.get(f"{way}_error", ""))
        yield _figure(way, "Mbit/s", rates, verdict, reason, scale=1e-6)
    trips = found["round_trips"]
    came = sorted(each for each in trips if each is not None)
    times = (
        2 * asked.get("delay", 0) or None,
        shaped.get("delay_up", 0) + shaped.get("delay_down", 0) or None,
        came[len(came) // 2] if came else None,
    )
    yield _figure("round trip", "ms", times, *judge_delay(*times), scale=1e3)
    lost, count = len(trips) - len(came), len(trips)
    loss = 1 - (1 - asked.get("loss", 0)) ** 2 or None
    kernel = 1 - (1 - shaped.get("loss_up", 0)) * (1 - shaped.get("loss_down", 0)) or None
    verdict, reason = judge_loss(loss, kernel, lost, count)
    yield _figure("lost", "%", (loss, kernel, lost / count), verdict, reason, scale=100)


def on_the_wire(payload: float | None, segment: int | None) -> float | None:
    """Return the bit/s that a shaper sees of so many bytes of TCP payload a second, in packets of so much of it."""
    return payload and segment and payload * 8 * (segment + _HEADERS) / segment


def judge_rate(asked: float | None, kernel: float | None, rate: float | None, error: str = "") -> tuple[str, str]:
    """Return the verdict on a rate, all in bit/s, and the reason where it is not as asked."""
    if not _alike(asked, kernel):
        return OFF, f"the kernel has {_rate(kernel)}, and {_rate(asked)} is asked for"
    if rate is None:
        return OFF, f"nothing could be transferred: {error or 'the connection gave too little'}"
    if asked is None:
        return FREE, ""
    if rate > asked * (1 + TOLERANCE):
        return OFF, f"{_rate(rate)} came through, and {_rate(asked)} is asked for: the way past the limit is open"
    if rate < asked * (1 - TOLERANCE):
        return BUSY, f"{_rate(rate)} came through of {_rate(asked)}: the way itself gave no more just now"
    return OK, ""


def _rate(rate: float | None) -> str:
    return "no limit" if rate is None else f"{rate / 1e6:.3g} Mbit/s"


def judge_delay(asked: float | None, kernel: float | None, trip: float | None) -> tuple[str, str]:
    """Return the verdict on a round trip's time, all in s, and the reason where it is not as asked."""
    if not _alike(asked, kernel):
        return OFF, f"the kernel has {_time(kernel)} for both ways, and {_time(asked)} is asked for"
    if trip is None:
        return OFF, "no connection to the server was made"
    if asked is None:
        return FREE, ""
    if trip < asked * (1 - TOLERANCE):
        return OFF, f"a round trip takes {_time(trip)}, and {_time(asked)} is asked for: the way past the limit is open"
    if trip > asked * (1 + TOLERANCE) + _LAN:
        return BUSY, f"a round trip takes {_time(trip)} of {_time(asked)}: the way itself adds the rest"
    return OK, ""


def _time(seconds: float | None) -> str:
    return "no delay" if seconds is None else f"{seconds * 1e3:.3g} ms"


def judge_loss(asked: float | None, kernel: float | None, lost: int, count: int) -> tuple[str, str]:
    """Return the verdict on how many of `count` round trips were lost, `asked` and `kernel` being the chance of one.

    It is off when so many, or so few, would come by chance in less than one of 200 tries, by the binomial distribution.
    """
    if not _alike(asked, kernel):
        return OFF, f"the kernel loses {kernel or 0:.2%} both ways, and {asked or 0:.2%} is asked for"
    if asked is None:
        return FREE, ""
    chances = [math.comb(count, k) * asked**k * (1 - asked) ** (count - k) for k in range(count + 1)]
    if min(sum(chances[: lost + 1]), sum(chances[lost:])) < _RARE:
        return OFF, f"{lost} of {count} probes were lost, and {asked:.2%} of round trips are asked for"
    return OK, ""


def _alike(asked: float | None, kernel: float | None) -> bool:
    """Return whether the kernel has what was asked for; it says its figures with a few digits."""
    return (asked is None) == (kernel is None) and abs((asked or 0) - (kernel or 0)) <= 0.01 * (asked or 0)
