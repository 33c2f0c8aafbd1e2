"""A process' control group, version 1 or 2: what it has used, what it holds, and the groups that it lies in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Cgroup:
    """A control group. Times are in s, sizes in bytes; counters run since the group was made."""

    def __init__(self, folders):
        """`folders` are the group's by controller: ``cpu``, ``cpuacct``, ``memory``; version 2 has one, ``""``.

        A controller that is off in the kernel has none.
        """
        self._folders = folders
        self._is_v2 = "" in folders

    @classmethod
    def of(cls, pid):
        """Return the group of a process. Raises OSError when it has ended."""
        paths = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path.lstrip("/")
        controllers = [name for name in ("cpu", "cpuacct", "memory") if name in paths]
        if controllers:
            return cls({name: ROOT / name / paths[name] for name in controllers})
        return cls({"": ROOT / paths[""]})

    def above(self):
        """Return the groups that this one lies in, the nearest first; what cannot be limited is left out."""
        groups, folders = [], self._folders
        while all(folder not in (ROOT, ROOT / name) for name, folder in folders.items()):
            folders = {name: folder.parent for name, folder in folders.items()}
            group = Cgroup(folders)
            if group.has_limits():
                groups.append(group)
        return groups

    def has_limits(self):
        """Return whether this group can be held to anything: version 2's topmost cannot."""
        return not self._is_v2 or any((self._folders[""] / name).exists() for name in ("cpu.max", "memory.max"))

    def cpu(self):
        """Return ``seconds`` of CPU used, ``periods`` of the quota, and in how many of them it was used up."""
        if self._is_v2:
            stat = self._stat("", "cpu.stat")
            seconds = stat["usage_usec"] / 1e6
        else:
            stat = self._stat("cpu", "cpu.stat")
            seconds = int(self._read("cpuacct", "cpuacct.usage")) / 1e9
        return {"seconds": seconds, "periods": stat.get("nr_periods", 0), "throttled": stat.get("nr_throttled", 0)}

    def memory(self):
        """Return the ``limit`` (None: no limit), what is ``used`` without the cache of files, and the ``working_set``.

        The kernel gives the cache back before it refuses memory; what of it is in use counts to the working set. All is
        None where the kernel's memory controller is off.
        """
        folder = self._folders.get("" if self._is_v2 else "memory")
        if folder is None or not (folder / ("memory.max" if self._is_v2 else "memory.limit_in_bytes")).exists():
            return {"limit": None, "used": None, "working_set": None}
        if self._is_v2:
            limit, used, prefix = self._read("", "memory.max"), self._read("", "memory.current"), ""
            stat = self._stat("", "memory.stat")
        else:
            limit, used = self._read("memory", "memory.limit_in_bytes"), self._read("memory", "memory.usage_in_bytes")
            stat, prefix = self._stat("memory", "memory.stat"), "total_"
        working_set = int(used) - stat[f"{prefix}inactive_file"]
        is_limited = limit != "max" and int(limit) < 1 << 60
        return {
            "limit": int(limit) if is_limited else None,
            "used": working_set - stat[f"{prefix}active_file"],
            "working_set": working_set,
        }

    def processes(self):
        """Return the ids of the processes in this very group."""
        return list(map(int, self._read(next(reversed(self._folders)), "cgroup.procs").split()))

    def _read(self, controller, name):
        return (self._folders[controller] / name).read_text().strip()

    def _stat(self, controller, name):
        return {key: int(value) for key, value in map(str.split, self._read(controller, name).splitlines())}
