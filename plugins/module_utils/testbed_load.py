"""Loads that show what a container gets: this file is sent into it as text, and needs the standard library alone.

Each ends with its standard input, and in any case after a time: nothing is left where the connection breaks.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import selectors
import signal
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

MIB = 1 << 20
MAP_NORESERVE = 0x4000  # of Linux; Python has no name for it before 3.13
LOST = 0.95  # s after which a connection's first packet, or its answer, was lost: the kernel sends it again after 1 s
RECORD = 16384  # bytes that TLS encrypts at once


def say(thing):
    print(json.dumps(thing), flush=True)


def busy(seconds):
    """Say the cores and the loop turns that one makes in a second of its time; then keep all of them busy.

    More than 256 cores are not: a container may not have so many processes.
    """
    cores = min(256, len(os.sched_getaffinity(0)))
    turns, number, began, wall = 0, 1, time.process_time(), time.monotonic()
    while time.process_time() - began < 0.5 and time.monotonic() - wall < 10:
        for _ in range(20_000):
            number = (number * 69069 + 1) & 0xFFFFFFFF
        turns += 20_000
    say({"cores": cores, "turns": turns / (time.process_time() - began)})
    until, parent = time.monotonic() + seconds, os.getpid()
    children = []
    for _ in range(cores):
        child = os.fork()
        if not child:
            while time.monotonic() < until and os.getppid() == parent:
                for _ in range(10_000):
                    pass
            os._exit(0)
        children.append(child)
    say("busy")
    select.select([0], [], [], seconds)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def fill(seconds):
    """Take memory: up to the first number of bytes in steps of 4 MiB, said; and, told to go on, up to the second.

    The kernel, where it has to kill, kills this process before any other of its container.
    """
    Path("/proc/self/oom_score_adj").write_text("1000")
    say(0)
    first, most = map(int, sys.stdin.readline().split())
    until = time.monotonic() + seconds
    area = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        area.madvise(mmap.MADV_NOHUGEPAGE)
    taken, block = 0, b"\1" * (4 * MIB)
    while taken < most and time.monotonic() < until:
        if taken == first:
            say("first")
            if not sys.stdin.readline():
                return
        step = min(len(block), first - taken) if taken < first else min(MIB // 4, most - taken)
        area[taken : taken + step] = block[:step]
        taken += step
        say(taken)
    say("whole")


def link(server, images, blob, fleet, seconds):
    """Measure the way to the server: its ports `images`, where `blob` can be fetched, and `fleet`.

    `down` and `up` are in bytes of TCP's payload a second, with `segment`, TCP's payload in a full packet; None where
    no byte came through. `round_trips` are in s, None for each that was lost.
    """
    round_trips = connects(server, fleet, 100, 0.02)
    context = ssl.create_default_context(cafile="/etc/fltestbed/ca.crt")
    answer = {"round_trips": round_trips}
    for way, port, transfer in (("down", images, fetch), ("up", fleet, send)):
        try:
            with socket.create_connection((server, port), timeout=20) as plain:
                if way == "up":  # what is not yet sent stays with us, where it can be counted
                    plain.setsockopt(socket.IPPROTO_TCP, 25, RECORD)  # TCP_NOTSENT_LOWAT
                with context.wrap_socket(plain, server_hostname=server) as secure:
                    answer[way] = rate(transfer(secure, server, blob, seconds))
                    answer[f"{way}_segment"] = secure.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        except OSError as error:
            answer[way], answer[f"{way}_error"] = None, str(error)
    say(answer)


def connects(server, port, count, gap):
    """Return how long each of `count` connections took to be made, one begun every `gap` s; None: lost on the way."""
    family, _, _, _, address = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM)[0]
    began, took = {}, []
    with selectors.DefaultSelector() as waiting:
        due = time.monotonic()
        while len(took) < count:
            now = time.monotonic()
            if len(began) < count and now >= due:
                due = now + gap
                door = socket.socket(family, socket.SOCK_STREAM)
                door.setblocking(False)
                began[door] = time.monotonic()
                door.connect_ex(address)
                waiting.register(door, selectors.EVENT_WRITE)
            more = len(began) < count
            ready = {key.fileobj for key, _ in waiting.select(max(0, due - now) if more else 0.05)}
            now = time.monotonic()
            for door in list(waiting.get_map().values()):
                door = door.fileobj
                is_late = now - began[door] > LOST
                if door in ready or is_late:
                    failed = is_late or door.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    took.append(None if failed else now - began[door])
                    waiting.unregister(door)
                    door.close()
    return took


def fetch(secure, server, blob, seconds):
    """Yield how many bytes have come of a blob, as they come."""
    secure.sendall(f"GET /v2/app/blobs/{blob} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n".encode())
    until = time.monotonic() + seconds
    while time.monotonic() < until and secure.recv(RECORD):
        yield time.monotonic(), transferred(secure)[1]


def send(secure, server, _blob, seconds):
    """Yield how many bytes the other side has acknowledged of a message that it refuses, and reads all the same."""
    size = 1 << 30
    secure.sendall(f"POST /verify HTTP/1.1\r\nHost: {server}\r\nContent-Length: {size}\r\n\r\n".encode())
    sent, until, block = 0, time.monotonic() + seconds, bytes(RECORD)
    while time.monotonic() < until and sent < size:
        secure.sendall(block)
        sent += len(block)
        yield time.monotonic(), transferred(secure)[0]


def transferred(connection):
    """Return how many bytes of TCP's payload the other side has, and how many have come from it.

    By struct tcp_info of linux/tcp.h, which grows at its end alone. What came past a gap counts as well.
    """
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    past_a_gap = struct.unpack_from("I", told, 28)[0]  # tcpi_sacked, in packets
    acknowledged, received = struct.unpack_from("QQ", told, 120)  # tcpi_bytes_acked, tcpi_bytes_received
    return acknowledged + past_a_gap * connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), received


def rate(progress):
    """Return bytes a second, by the straight line that fits best; None where there is too little for one.

    The first second is left out, in which a link gives what it had saved up.
    """
    began = time.monotonic()
    seen = list(progress)
    kept = [each for each in seen if each[0] > began + 1]
    if len(kept) < 2 or kept[-1][0] - kept[0][0] < 0.2:  # all came at once
        kept = seen
    if len(kept) < 2 or kept[-1][0] == kept[0][0]:
        return None
    middle = sum(at for at, _ in kept) / len(kept)
    return sum((at - middle) * count for at, count in kept) / sum((at - middle) ** 2 for at, _ in kept)


def main(what, *arguments):
    numbers = [json.loads(each) for each in arguments]
    {"busy": busy, "fill": fill, "link": link}[what](*numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
