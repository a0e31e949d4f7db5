"""The host's side: a memory cgroup that is the budget, swap as a safety net, the lock, processor time."""

import contextlib
import fcntl
import os
import subprocess

LOCK = "/tmp/memvirt-ksm.lock"
MIB = 1 << 20


class Skip(Exception):
    """This machine cannot run the bench, and why."""


def read(path):
    with open(path, encoding="ascii") as f:
        return f.read()


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(text))


def pairs(path):
    """A file of "name value" lines, as numbers."""
    result = {}
    for line in read(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            result[words[0]] = int(words[1])
    return result


def meminfo(name):
    return pairs("/proc/meminfo").get(name, 0) << 10


class Cgroup:
    """A memory cgroup of our own, of whichever version this host has; gone when closed."""

    def __init__(self, name):
        self.name = "/" + name  # as in /proc/PID/cgroup
        base = self.find()
        self.path = base + self.name
        os.mkdir(self.path)

    def find(self):
        v2 = None
        for line in read("/proc/mounts").splitlines():
            _, where, kind, options = line.split()[:4]
            if kind == "cgroup" and "memory" in options.split(","):
                self.v1 = True
                return where
            if kind == "cgroup2":
                v2 = where
        if v2 and "memory" in read(v2 + "/cgroup.controllers").split():
            self.v1 = False
            if "memory" not in read(v2 + "/cgroup.subtree_control").split():
                write(v2 + "/cgroup.subtree_control", "+memory")
            return v2
        raise Skip("no memory cgroup: neither v1's nor v2's controller is mounted")

    def number(self, name):
        return int(read(f"{self.path}/{name}"))

    def set_limit(self, limit_bytes):
        write(self.path + ("/memory.limit_in_bytes" if self.v1 else "/memory.max"), limit_bytes)

    def used(self):
        """(in use, of it file pages that can be dropped, of it the kernel's own)"""
        stat = pairs(self.path + "/memory.stat")
        if self.v1:
            cache = stat["total_inactive_file"] + stat["total_active_file"]
            return self.number("memory.usage_in_bytes"), cache, self.number("memory.kmem.usage_in_bytes")
        return self.number("memory.current"), stat["inactive_file"] + stat["active_file"], stat.get("kernel", 0)

    def swapped(self):
        """Bytes of the cgroup that are in the host's swap."""
        return pairs(self.path + "/memory.stat").get("total_swap", 0) if self.v1 else self.number("memory.swap.current")

    def oom_kills(self):
        return pairs(self.path + ("/memory.oom_control" if self.v1 else "/memory.events")).get("oom_kill", 0)

    def close(self):
        os.rmdir(self.path)


@contextlib.contextmanager
def turn(say):
    """Every daemon on the host finds every guest: tests and benches take turns. Ours is inherited from a script that has
    the lock as descriptor 9."""
    if os.path.exists("/proc/self/fd/9") and os.path.realpath("/proc/self/fd/9") == LOCK:
        yield
        return
    with open(LOCK, "a", encoding="ascii") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for other tests and benches: " + LOCK)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def swap(mib):
    """Swap for the host, that no policy's guests be killed where swapping would have saved them. What is there already
    serves; else a compressed one in memory, taken away again. Gives a word for the report."""
    if meminfo("SwapTotal"):
        yield "as found"
        return
    zram = "/sys/block/zram0"
    if not os.path.exists(zram) or read(zram + "/disksize").strip() != "0":
        yield "none"
        return
    try:
        write(zram + "/disksize", f"{mib}M")
        subprocess.run(["mkswap", "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", "/dev/zram0"], check=True)
        yield "zram"
    finally:
        subprocess.run(["swapoff", "/dev/zram0"], check=False, stderr=subprocess.DEVNULL)
        write(zram + "/reset", 1)


def busy_seconds():
    """Processor time used on the whole host since boot."""
    fields = [int(x) for x in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid):
    """Processor time of a process; of one that is gone 0."""
    try:
        fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
