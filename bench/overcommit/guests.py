"""A guest of tests/guest with the workload `shift`: starting it, its monitor, its console."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time

import host
from host import MIB

# Of each guest's volume, data and swap together: what a general-purpose cloud volume gives.
VOLUME_IOPS = 3000
VOLUME_BPS = 125 * MIB
SWAP_MIB = 384


class Qmp:
    """One command at a time; what comes unasked is skipped."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(path)
        self.lines = self.sock.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        """The answer, or None: the VM is gone, or does not answer, or refuses."""
        try:
            self.sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            while line := self.lines.readline():
                answer = json.loads(line)
                if "return" in answer or "error" in answer:
                    return answer.get("return")
        except (OSError, ValueError):
            pass
        return None


class Guest:
    def __init__(self, bench, index, count, phase_s, folder):
        self.bench, self.index, self.count, self.phase_s = bench, index, count, phase_s
        self.name = f"shift{index}"
        self.dir = f"{folder}/{self.name}"
        self.swap = f"{bench.shm}/{self.name}.swap"
        self.offset = 0
        self.rest = ""
        self.touches = []  # dicts of "touch" lines
        self.samples = []  # dicts of "shift" lines, since the start of the phases
        self.ready = self.done = self.died = False
        self.failed = ""
        self.ram_at = None

    def disks(self):
        # Written beforehand, and by us: what QEMU writes to them is then not charged to the budget.
        with open(self.swap, "wb") as f:
            block = bytes(MIB)
            for _ in range(SWAP_MIB):
                f.write(block)
        subprocess.run(["mkswap", self.swap], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = f"throttling.group=volume,throttling.iops-total={VOLUME_IOPS},throttling.bps-total={VOLUME_BPS}"
        for name, path, only in (("data", self.bench.data, "on"), ("swap", self.swap, "off")):
            yield from ("-drive", f"if=none,id={name},format=raw,readonly={only},file={path},{limit}",
                        "-device", f"virtio-blk-pci,drive={name}")

    def start(self, qemu):
        b = self.bench
        os.makedirs(self.dir, exist_ok=True)
        words = (f"shift_index={self.index} shift_count={self.count} phase_s={self.phase_s} run_s={b.seconds} "
                 f"hot_mib={b.hot_mib} cool_mib={b.cool_mib}")
        command = [f"{b.top}/tests/guest/run-guest.sh", "--dir", self.dir, "--name", self.name, "--mem", str(b.mem),
                   "--workload", "shift", "--seed", str(self.index + 1), "--append", words, "--thp", b.thp, "--", *self.disks(),
                   "-qmp", f"unix:{self.dir}/bench.sock,server=on,wait=off",
                   "-device", "virtio-serial-pci", "-chardev", f"socket,id=go,path={self.dir}/go.sock,server=on,wait=off",
                   "-device", "virtserialport,chardev=go,name=go"]
        environment = dict(os.environ, MEMVIRT_GUEST_IMAGE=b.image, MEMVIRT_QEMU=qemu,
                           MEMVIRT_ACCEL="tcg,thread=multi,tb-size=64")
        subprocess.run(command, check=True, env=environment)
        self.pid = int(host.read(self.dir + "/qemu.pid"))
        self.qmp = Qmp(self.dir + "/bench.sock")
        self.go = socket.socket(socket.AF_UNIX)
        self.go.connect(self.dir + "/go.sock")

    def stop(self):
        subprocess.run([f"{self.bench.top}/tests/guest/stop-guest.sh", self.dir], check=False)
        with contextlib.suppress(OSError):
            os.unlink(self.swap)

    def tell(self, word):
        with contextlib.suppress(OSError):
            self.go.sendall(word.encode() + b"\n")

    def listen(self):
        """Takes in what the console says since the last time."""
        with open(self.dir + "/serial.log", encoding="utf-8", errors="replace") as f:
            f.seek(self.offset)
            text = self.rest + f.read()
            self.offset = f.tell()
        *lines, self.rest = text.split("\n")
        for line in lines:
            kind, _, tail = line.partition(" ")
            values = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.]+)", tail)}
            if line.startswith("guest ready"):
                self.ready = True
            elif line.startswith("guest failed") or kind == "guest-shift:":
                self.failed = line
            elif kind == "touch" and "ms" in values:
                self.touches.append(values)
            elif kind in ("go", "shift", "done") and "wrong" in values:
                if kind != "shift" or self.samples:
                    self.samples.append(dict(values, at=time.monotonic()))
                self.done |= kind == "done"
        self.died = self.died or not os.path.exists(f"/proc/{self.pid}")

    def memory(self):
        """(resident guest RAM, what else QEMU has of its own), in bytes."""
        size_kib = self.bench.mem * 1024
        ram = anon = 0
        start = end = 0
        try:
            smaps = host.read(f"/proc/{self.pid}/smaps")
        except OSError:
            return 0, 0
        for line in smaps.splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                start, end = (int(x, 16) for x in words[0].split("-"))
                if self.ram_at is None and end - start == size_kib << 10:
                    self.ram_at = start
            elif words[0] == "Rss:" and self.ram_at is not None and \
                    self.ram_at <= start and end <= self.ram_at + (size_kib << 10):
                ram += int(words[1]) << 10
            elif words[0] == "Anonymous:" and not (self.ram_at is not None and self.ram_at <= start and
                                                   end <= self.ram_at + (size_kib << 10)):
                anon += int(words[1]) << 10
        return ram, anon

    def balloon(self):
        """Guest memory as the VMM says it, in bytes; None when it does not."""
        answer = self.qmp.run("query-balloon")
        return answer and answer.get("actual")

    def counter(self, name):
        """How much a counter grew since the phases began."""
        return self.samples[-1][name] - self.samples[0][name] if self.samples else 0.0
