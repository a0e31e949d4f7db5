#!/usr/bin/env python3
"""ept_census.py PID QMP-SOCKET CENSUS.JSON: counts a stopped guest's pages by itself, and compares with memvirtctl ept.

Slots are QEMU's, from "info mtree -f" and gpa2hva; frames are the kernel's, from pagemap, kpageflags and smaps. Prints
what differs and exits with 1, or prints the counts."""
import array
import json
import re
import socket
import sys

PAGE = 4096
PRESENT, SWAPPED, FILE, FRAME = 1 << 63, 1 << 62, 1 << 61, (1 << 55) - 1
KPF_KSM, KPF_ZERO = 1 << 21, 1 << 24


def hmp(stream, line):
    request = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "return" in answer:
            return answer["return"]


def slots_of(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        stream = s.makefile("rw")
        stream.readline()
        stream.write('{"execute":"qmp_capabilities"}\n')
        stream.flush()
        stream.readline()
        views = hmp(stream, "info mtree -f").split("FlatView #")
        memory = next(v for v in views if ' AS "memory"' in v)
        slots = []
        for first, last, kind in re.findall(r"^  ([0-9a-f]+)-([0-9a-f]+) \(prio \d+, (\w+)\)", memory, re.M):
            first, last = (int(first, 16) + PAGE - 1) // PAGE * PAGE, (int(last, 16) + 1) // PAGE * PAGE
            if kind != "ram" or first >= last:
                continue
            hva = int(re.search(r"is (0x[0-9a-f]+)", hmp(stream, "gpa2hva %#x" % first)).group(1), 16)
            slots.append((hva, last - first))
    return slots


def mappings_of(pid):
    """start, end, is a store's, Rss, AnonHugePages, Swap"""
    found = []
    for line in open("/proc/%d/smaps" % pid):
        m = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if m:
            found.append([int(m.group(1), 16), int(m.group(2), 16), "memfd:memvirt-store" in line, 0, 0, 0])
        for i, key in ((3, "Rss:"), (4, "AnonHugePages:"), (5, "Swap:")):
            if line.startswith(key):
                found[-1][i] = int(line.split()[1])
    return found


def count(pid, slots, mappings):
    pages = dict.fromkeys(("total", "present", "swapped", "absent", "own", "zero", "ksm", "store", "file"), 0)
    stores = [(m[0], m[1]) for m in mappings if m[2]]
    with open("/proc/%d/pagemap" % pid, "rb", 0) as pagemap, open("/proc/kpageflags", "rb", 0) as kpageflags:
        for hva, size in slots:
            pagemap.seek(hva // PAGE * 8)
            entries = array.array("Q", pagemap.read(size // PAGE * 8))
            assert len(entries) == size // PAGE
            pages["total"] += len(entries)
            for i, entry in enumerate(entries):
                if not entry & PRESENT:
                    pages["swapped" if entry & SWAPPED else "absent"] += 1
                    continue
                pages["present"] += 1
                assert entry & FRAME
                kpageflags.seek((entry & FRAME) * 8)
                flags = int.from_bytes(kpageflags.read(8), "little")
                at = hva + i * PAGE
                if flags & KPF_ZERO:
                    kind = "zero"
                elif flags & KPF_KSM:
                    kind = "ksm"
                elif entry & FILE:
                    kind = "store" if any(s <= at < e for s, e in stores) else "file"
                else:
                    kind = "own"
                pages[kind] += 1
    return pages


def main():
    pid, census = int(sys.argv[1]), json.load(open(sys.argv[3]))
    slots, mappings = slots_of(sys.argv[2]), mappings_of(pid)
    mine = {"pages": count(pid, slots, mappings)}
    ram = [m for m in mappings if any(hva < m[1] and m[0] < hva + size for hva, size in slots)]
    mine["mappings"] = {"rss_kib": sum(m[3] for m in ram), "anon_huge_kib": sum(m[4] for m in ram),
                        "swap_kib": sum(m[5] for m in ram)}
    wrong = 0
    for part in mine:
        for key, value in mine[part].items():
            if census[part][key] != value:
                print("%s.%s: memvirtctl says %d, the kernel %d" % (part, key, census[part][key], value))
                wrong += 1
    leaves, host, table = census["leaves"], census["host_pages"], census["table"]
    for what, good in (
            ("leaves map what is present", leaves["4k"] + 512 * leaves["2m"] + 262144 * leaves["1g"] == mine["pages"]["present"]),
            ("host's sizes are of what is present", sum(host.values()) == mine["pages"]["present"]),
            ("nothing moves in a stopped guest", census["moved_pages"] == 0),
            ("the table is under 0.3 % of the VM", 0 < table["share"] < 0.003),
            ("all slots are there", table["slots"] == len(slots))):
        if not good:
            print("not so: " + what)
            wrong += 1
    print(json.dumps(mine), json.dumps(leaves))
    sys.exit(wrong != 0)


main()
