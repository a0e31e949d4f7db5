"""Who moves the balloons. A policy is told of its run's start, of each second of it, and of its end."""

import json
import subprocess
import time

import proxmox
from host import MIB

STATS_S = 2  # PVE has guests asked this often
MIN_PERCENT = 25  # of its memory is left to each VM by every policy


class Policy:
    """Nobody moves them."""

    name = "unconstrained"
    limited = False  # by the budget
    qemu = "qemu-system-x86_64"
    state = None  # of the host, if somebody says

    def __init__(self, bench):
        self.bench = bench

    def guests(self):
        return self.bench.guests

    def begin(self, run):
        """Before guests are started."""

    def start(self, run):
        pass

    def second(self, run):
        pass

    def stop(self):
        pass


class Static(Policy):
    name = "static"
    limited = True

    def guests(self):
        return self.bench.budget // self.bench.mem


class Proxmox(Policy):
    """In place of the host's memory the rule sees the budget; its minimum is everybody's."""

    name = "proxmox"
    limited = True
    next = 0.0

    def start(self, run):
        for g in run.guests:
            g.qmp.run("qom-set", path="/machine/peripheral/balloon0", property="guest-stats-polling-interval",
                      value=STATS_S)

    def vm(self, guest):
        full = self.bench.mem * MIB
        stats = guest.qmp.run("qom-get", path="/machine/peripheral/balloon0", property="guest-stats") or {}
        free = stats.get("stats", {}).get("stat-free-memory")
        balloon = guest.balloon()
        if not balloon:
            return None  # the rule skips VMs without a driver that answers
        return proxmox.Vm(balloon, full * MIN_PERCENT // 100, full, free if free and free < 1 << 62 else None)

    def second(self, run):
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + proxmox.PERIOD_S
        by_vm = {vm: g for g in run.guests if (vm := self.vm(g))}
        goal = int(self.bench.budget * MIB * proxmox.TARGET_PERCENT / 100) - run.used_bytes
        for vm, target in proxmox.decide(list(by_vm), goal).items():
            by_vm[vm].qmp.run("balloon", value=target)


CONFIG = """[daemon]
control_socket = {dir}/control
agent_socket = {dir}/agent
state_dir = {dir}/state
tick = {tick_ms}ms
[host]
cgroup = {cgroup}
min_free = {min_free}MiB
[balloon]
max = {most}%
[merge]
engine = {engine}
"""


class Memvirt(Policy):
    name = "memvirt"
    limited = True
    engine = "off"
    process = None

    def begin(self, run):
        self.dir = run.dir
        config = CONFIG.format(dir=run.dir, tick_ms=self.bench.tick_ms, cgroup=run.cgroup.name,
                               min_free=self.bench.budget * self.bench.min_free_percent // 100,
                               most=100 - MIN_PERCENT, engine=self.engine)
        with open(run.dir + "/memvirt.conf", "w", encoding="ascii") as f:
            f.write(config)

    def start(self, run):
        with open(run.dir + "/daemon.log", "w", encoding="utf-8") as log:
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen([f"{self.bench.build}/memvirtd", "--config", run.dir + "/memvirt.conf"],
                                            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        for _ in range(100):
            if self.ask("status") is not None:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        with open(run.dir + "/daemon.log", encoding="utf-8") as log:
            raise RuntimeError("memvirtd did not start:\n" + log.read()[-2000:])

    def ask(self, *command):
        done = subprocess.run([f"{self.bench.build}/memvirtctl", "-s", self.dir + "/control", *command, "--json"],
                              capture_output=True, text=True, check=False)
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except ValueError:
            return None

    def second(self, run):
        if self.process.poll() is not None:
            raise RuntimeError("memvirtd ended by itself")
        answer = self.ask("balloon", "status")
        self.state = answer and answer["host"].get("state")
        with open(run.dir + "/balloon.jsonl", "a", encoding="ascii") as f:  # for whoever asks why
            f.write(json.dumps(dict(answer or {}, t=round(run.samples[-1]["t"], 1))) + "\n")

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class MemvirtMerge(Memvirt):
    """The same, and it merges, by agents inside the VMMs."""

    name = "memvirt_merge"
    engine = "auto"

    def begin(self, run):
        super().begin(run)
        with open(run.dir + "/memvirt.conf", "a", encoding="ascii") as f:
            f.write("[vm *]\ndomain = bench\n")
        self.qemu = f"{self.bench.build}/memvirtctl run --socket {run.dir}/agent -- qemu-system-x86_64"


ALL = {p.name: p for p in (Policy, Static, Proxmox, Memvirt, MemvirtMerge)}
