"""One policy's run: guests started, warmed up, their phases watched, figures taken."""

import contextlib
import json
import math
import os
import time

import host
from guests import Guest
from host import MIB

READY_S = 240
# More pages per second than this, in and out together, for so many seconds: what KubeVirt's wasp-agent evicts a VM for
# (there over 30 s).
STORM_PAGES_S = 1000
STORM_S = 5


class Run:
    def __init__(self, bench, policy):
        self.bench, self.policy = bench, policy
        self.dir = f"{bench.work}/{policy.name}"
        self.guests = []
        self.samples = []  # per second: dict
        self.overhead = self.used_bytes = 0
        self.go_at = None

    def measure(self):
        """All the figures of a second; the limit follows what QEMU needs beside guest RAM."""
        usage, cache, kernel = self.cgroup.used()
        ram, other = zip(*(g.memory() for g in self.guests))
        overhead = sum(other) + kernel
        if overhead > self.overhead + MIB:
            self.overhead = overhead
            if self.policy.limited:
                with contextlib.suppress(OSError):  # tried again when it has grown further
                    self.cgroup.set_limit(self.bench.budget * MIB + overhead)
        self.used_bytes = usage - cache - self.overhead
        for g in self.guests:
            g.listen()
        self.samples.append({
            "t": time.monotonic() - (self.go_at or math.inf), "at": time.monotonic(), "used": self.used_bytes,
            "ram": ram, "balloon": [g.balloon() for g in self.guests], "state": self.policy.state,
            "swapped": self.cgroup.swapped()})
        with open(self.dir + "/samples.jsonl", "a", encoding="ascii") as f:  # for whoever asks why
            f.write(json.dumps(dict(self.samples[-1], usage=usage, cache=cache, kernel=kernel, other=other)) + "\n")

    def second(self):
        begin = time.monotonic()
        self.measure()
        self.policy.second(self)
        self.progress()
        time.sleep(max(0.0, 1 - (time.monotonic() - begin)))

    def progress(self):
        s = self.samples[-1]
        phase = "warming up" if self.go_at is None else f"{s['t']:4.0f}/{self.bench.seconds} s"
        work = sum(g.counter("work_hot") + g.counter("work_cool") for g in self.guests)
        self.bench.say(f"{self.policy.name}: {phase}  in use {s['used'] // MIB} of {self.bench.budget} MiB"
                       f"  guests {' '.join(str((b or 0) // MIB) for b in s['balloon'])}"
                       f"  host {s['state'] or '-'}  work {work:.0f}", passing=True)

    def wait_ready(self):
        deadline = time.monotonic() + READY_S
        while not all(g.ready for g in self.guests):
            for g in self.guests:
                g.listen()
                if g.failed or g.died or time.monotonic() > deadline:
                    raise RuntimeError(f"{g.name}: {g.failed or 'not ready in time'}; see {g.dir}")
            time.sleep(0.2)

    def qemu(self):
        """A word for run-guest.sh: QEMU, once it is in the cgroup."""
        path = self.dir + "/in-cgroup"
        with open(path, "w", encoding="ascii") as f:
            f.write(f'#!/bin/sh\necho $$ >{self.cgroup.path}/cgroup.procs\nexec "$@"\n')
        os.chmod(path, 0o755)
        return f"{path} {self.policy.qemu}"

    def main(self, stack):
        b, p = self.bench, self.policy
        os.makedirs(self.dir, exist_ok=True)
        self.cgroup = stack.enter_context(contextlib.closing(host.Cgroup(f"memvirt-bench-{os.getpid()}")))
        p.begin(self)
        phase_s = b.seconds // b.guests
        b.say(f"{p.name}: starting {p.guests()} guests")
        for i in range(p.guests()):
            guest = Guest(b, i, b.guests, phase_s, self.dir)
            stack.callback(guest.stop)
            guest.start(self.qemu())
            self.guests.append(guest)
        self.wait_ready()
        self.measure()
        stack.callback(p.stop)
        p.start(self)
        for g in self.guests:
            g.tell("warm")
        for _ in range(b.warm):
            self.second()
        self.phases()
        p.stop()
        return self.result()

    def phases(self):
        busy, own = host.busy_seconds(), self.own_seconds()
        for g in self.guests:
            g.tell("go")
        self.go_at = time.monotonic()
        while not all(g.done or g.died for g in self.guests) and \
                time.monotonic() < self.go_at + self.bench.seconds + 30:
            self.second()
        took = time.monotonic() - self.go_at
        self.guest_cores = (self.own_seconds() - own) / took
        self.other_cores = (host.busy_seconds() - busy) / took - self.guest_cores
        self.oom_kills = self.cgroup.oom_kills()

    def own_seconds(self):
        return sum(host.process_seconds(g.pid) for g in self.guests)

    def swapped_out(self):
        """By the host, of guests' and QEMU's memory, since the start: what the figure grew by each second."""
        return sum(max(0, b["swapped"] - a["swapped"]) for a, b in zip(self.samples, self.samples[1:]))

    def state_worst(self, begin, end):
        """The worst state between two moments of the phases; None when nobody says."""
        order = ["high", "clear", "soft", "hard", "low"]
        seen = [s["state"] for s in self.samples if begin - 1 <= s["t"] <= end + 1 and s["state"] in order]
        return max(seen, key=order.index) if seen else None

    def touches(self):
        for g in self.guests:
            for touch in g.touches:
                begin, ms = touch["t"], touch["ms"]
                yield {"guest": g.name, "t": begin, "ms": ms, "finished": True,
                       "host_state": self.state_worst(begin, begin + ms / 1000)}
            due = g.index * g.phase_s  # and never came back from it
            if not g.touches and due < self.bench.seconds:
                yield {"guest": g.name, "t": due, "ms": (self.bench.seconds - due) * 1000.0, "finished": False,
                       "host_state": self.state_worst(due, self.bench.seconds)}

    def result(self):
        swap = [(g.counter("swap_in") + g.counter("swap_out")) * 4096 / MIB for g in self.guests]
        return {
            "guests": len(self.guests),
            "work": round(sum(g.counter("work_hot") + g.counter("work_cool") for g in self.guests)),
            "work_per_guest": [round(g.counter("work_hot") + g.counter("work_cool")) for g in self.guests],
            "work_hot": round(sum(g.counter("work_hot") for g in self.guests)),
            "guest_swap_mib": round(sum(swap), 1),
            "guest_swap_mib_per_guest": [round(s, 1) for s in swap],
            "guest_swap_storms": sum(storms(g.samples) for g in self.guests),
            "guest_major_faults": round(sum(g.counter("majfault") for g in self.guests)),
            "oom_kills": round(sum(g.counter("oom") for g in self.guests)) + self.oom_kills +
                         sum(1 for g in self.guests if "status 137" in g.failed),
            "guests_died": sum(1 for g in self.guests if g.died or g.failed),
            "wrong": round(sum(g.samples[-1]["wrong"] for g in self.guests if g.samples)),
            "host_swap_out_mib": round(self.swapped_out() / MIB, 1),
            "host_used_mib_max": round(max(s["used"] for s in self.samples) / MIB),
            "overhead_mib": round(self.overhead / MIB),
            "guest_cores": round(self.guest_cores, 2),
            "other_cores": round(self.other_cores, 2),
            "shifts": sorted(self.touches(), key=lambda t: t["t"]),
        }


def storms(samples):
    """How often a guest swapped at more than STORM_PAGES_S for STORM_S seconds; each storm counts once."""
    count, since = 0, None
    for a, b in zip(samples, samples[1:]):
        pages = b["swap_in"] + b["swap_out"] - a["swap_in"] - a["swap_out"]
        if pages > STORM_PAGES_S * (b["t"] - a["t"]):
            since = a["t"] if since is None else since
            if since is not False and b["t"] - since >= STORM_S:
                count, since = count + 1, False  # not again until it has ended
        else:
            since = None
    return count
