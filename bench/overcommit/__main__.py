"""bench/overcommit: guests with twice the memory there is, and who moves their balloons. See bench/README.md."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import host
import policies
import report
from guests import SWAP_MIB
from run import Run

DATA_MIB = 640  # more than a guest has: its page cache never holds all of it
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
OVERHEAD_MIB = 150  # of a QEMU, roughly: to see beforehand whether the host is large enough


def arguments():
    p = argparse.ArgumentParser(
        prog="overcommit", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Runs real guests, configured to twice a budget of memory, whose demand shifts from one to the next,\n"
                    "and compares the work they get done under several policies. About three minutes for each.",
        epilog="policies: " + ", ".join(policies.ALL) + "\nenvironment: KEEP=1 keeps consoles and logs")
    p.add_argument("--json", action="store_true", help="result as JSON on standard output")
    p.add_argument("--svg", metavar="FILE", help="memory over time as a picture")
    p.add_argument("--guests", type=int, default=4, metavar="N", help="default: 4")
    p.add_argument("--mem", type=int, default=512, metavar="MIB", help="of each guest; default: 512. The budget is half of all")
    p.add_argument("--seconds", type=int, default=120, metavar="S",
                   help="of each policy's run; every guest is hot for its part; default: 120")
    p.add_argument("--policies", metavar="LIST", help="default: unconstrained,static,proxmox,memvirt")
    p.add_argument("--merge", action="store_true", help="add the policy memvirt_merge")
    p.add_argument("--thp", choices=("on", "off"), default="off", help="huge pages for guest memory; default: off")
    p.add_argument("--quick", action="store_true", help="a third of the time, and without static")
    a = p.parse_args()
    if a.quick:
        a.seconds = min(a.seconds, 48)
    default = "unconstrained,proxmox,memvirt" if a.quick else "unconstrained,static,proxmox,memvirt"
    a.policies = (a.policies or default).split(",") + (["memvirt_merge"] if a.merge else [])
    unknown = [name for name in a.policies if name not in policies.ALL]
    if unknown:
        p.error(f"no policy {unknown[0]}; there are: {', '.join(policies.ALL)}")
    if not 2 <= a.guests <= 32 or not 384 <= a.mem <= 65536 or a.seconds < 4 * a.guests:
        p.error("want 2 to 32 guests of 384 to 65536 MiB, and at least 4 seconds for each")
    return a


class Bench:
    tick_ms = 1000
    min_free_percent = 10  # of the budget; Proxmox leaves 20 % free

    def __init__(self, a):
        self.build = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
        self.top = os.path.dirname(self.build)
        self.image = self.build + "/guest"
        self.guests, self.mem, self.seconds = a.guests, a.mem, a.seconds
        self.warm = 20 if a.quick else 45
        self.thp = a.thp
        self.budget = a.guests * a.mem // 2
        # A hot guest needs most of its memory, a cool one about a quarter, its kernel included.
        self.hot_mib, self.cool_mib = a.mem // 2, a.mem * 3 // 32
        self.passing = False

    def say(self, text, passing=False):
        """Progress; what is passing is overwritten on a terminal, and else told now and then."""
        if sys.stderr.isatty():
            sys.stderr.write(("\r\033[K" if self.passing else "") + text + ("" if passing else "\n"))
            self.passing = passing
        elif not passing or self.told % 10 == 0:
            sys.stderr.write(text + "\n")
        self.told = self.told + 1 if passing else 0
        sys.stderr.flush()

    told = 0


def check_host(b):
    if os.geteuid() != 0:
        raise host.Skip("needs root")
    for tool in ("qemu-system-x86_64", "socat", "mkswap"):
        if not shutil.which(tool):
            raise host.Skip(f"{tool} is not installed")
    need = b.guests * (b.mem + OVERHEAD_MIB + SWAP_MIB) + DATA_MIB
    if host.meminfo("MemAvailable") < need * host.MIB:
        raise host.Skip(f"the unconstrained run needs {need} MiB of free memory")
    if subprocess.run([b.top + "/tests/guest/build-image.sh", b.image], stdout=sys.stderr, check=False).returncode:
        raise host.Skip("no guest image")


def run_policies(b, names):
    runs, results = [], {}
    for name in names:
        with contextlib.ExitStack() as stack:
            for number in INTERRUPTS:
                stack.callback(signal.signal, number, signal.getsignal(number))
            stack.enter_context(host.turn(b.say))
            swap = stack.enter_context(host.swap(b.guests * b.mem))
            run = Run(b, policies.ALL[name](b))
            try:
                results[name] = run.main(stack)
            finally:
                # Whoever interrupts once more must not keep the host from being put back.
                for number in INTERRUPTS:
                    signal.signal(number, signal.SIG_IGN)
            runs.append(run)
        report.compare(results, b.tick_ms)
        b.say(f"{name}: work {results[name]['work']}")
    return runs, {"budget_mib": b.budget, "configured_mib": b.guests * b.mem, "tick_ms": b.tick_ms,
                  "seconds": b.seconds, "host_swap": swap, "policies": results}


def main():
    a = arguments()
    b = Bench(a)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        check_host(b)
        b.work = tempfile.mkdtemp(prefix="memvirt-overcommit.")
        if os.environ.get("KEEP") == "1":
            b.say("logs in " + b.work)
        else:
            stack.callback(shutil.rmtree, b.work, ignore_errors=True)
        # In memory, and not the budget's: disks are as fast as their throttle says, and no faster for anybody.
        b.shm = tempfile.mkdtemp(prefix="memvirt-overcommit.", dir="/dev/shm")
        stack.callback(shutil.rmtree, b.shm, ignore_errors=True)
        b.data = b.shm + "/data"
        subprocess.run([b.image + "/guest-shift", "disk", b.data, str(DATA_MIB)], check=True)
        runs, result = run_policies(b, a.policies)
    if a.svg:
        report.svg(a.svg, runs, b)
    print(json.dumps(result, indent=1) if a.json else report.table(result["policies"]))
    return 1 if any(r["wrong"] for r in result["policies"].values()) else 0


try:
    sys.exit(main())
except host.Skip as why:
    print(f"skip: overcommit: {why}")
    sys.exit(77)
except KeyboardInterrupt:
    sys.exit(130)
except (RuntimeError, OSError, subprocess.SubprocessError) as why:
    print(f"overcommit: {why}", file=sys.stderr)
    sys.exit(1)
