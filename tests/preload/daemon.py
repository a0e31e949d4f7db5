#!/usr/bin/env python3
"""daemon.py SOCKET SECONDS [grant] - a small daemon for one agent: merges what is equal, pass after pass.

Prints what the agent says, one line each, and at the end how many pages were merged. With "grant" it gives
/dev/userfaultfd to an agent that asks; else it refuses. After SECONDS from the first slot, or when the agent is gone, it ends.
"""
import array
import collections
import fcntl
import os
import select
import socket
import struct
import sys
import time

HELLO, SLOT, UNSLOT, STORE, MERGE, MERGED, RELEASED, UFFD_ASK, UFFD = range(1, 10)
PAGE, WINDOW = 4096, 512 * 4096
FRAMES_MAX = 32768
ZERO = 0xFFFFFFFF
ZERO_PAGE = bytes(PAGE)
F_ADD_SEALS, SEALS = 1033, 0x2 | 0x4  # shrink, grow


class Agent:
    def __init__(self, sock, grant):
        self.sock, self.grant = sock, grant
        self.pid = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.mem = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        self.slots, self.frames, self.counts = {}, {}, collections.Counter()
        self.alive = True

    def send(self, data, fds=()):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], control)

    def receive(self, timeout):
        """One packet; its type and bytes, or None."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return None
        data, control, _, _ = self.sock.recvmsg(16384, socket.CMSG_SPACE(16))
        for _, _, fds in control:
            for fd in array.array("i", fds[: len(fds) // 4 * 4]):
                os.close(fd)
        if not data:
            self.alive = False
            return None
        kind = struct.unpack_from("<H", data)[0]
        self.take(kind, data)
        return kind, data

    def take(self, kind, data):
        if kind == UFFD_ASK:
            print("asks", flush=True)
            if self.grant:
                fd = os.open("/dev/userfaultfd", os.O_RDWR)
                self.send(struct.pack("<HHIII", UFFD, 0, 0, 1, 0), [fd])
                os.close(fd)
            else:
                self.send(struct.pack("<HHIII", UFFD, 0, 0, 0, 0))
        elif kind == HELLO:
            why = data[16:].rstrip(b"\0").decode()
            print("hello", why or "remap", flush=True)
        elif kind == SLOT:
            hva, size, can = struct.unpack_from("<QQI", data, 8)
            why = data[32:].rstrip(b"\0").decode()
            print(f"slot {size >> 20} MiB {why or 'remap'}", flush=True)
            if can:
                self.slots[hva] = size
        elif kind == UNSLOT:
            self.slots.pop(struct.unpack_from("<Q", data, 8)[0], None)
            print("unslot", flush=True)
        elif kind == RELEASED:
            self.counts["released"] += struct.unpack_from("<QQ", data, 8)[1] // PAGE

    def window(self, hva):
        try:
            return os.pread(self.mem, WINDOW, hva)
        except OSError:  # a page is in staging just now, or gone
            return b""

    def windows(self):
        for hva, size in list(self.slots.items()):
            for at in range((hva + WINDOW - 1) & -WINDOW, hva + size - WINDOW + 1, WINDOW):
                yield at

    def store(self):
        """What occurs twice, as frames."""
        seen = collections.Counter()
        for at in self.windows():
            data = self.window(at)
            seen.update(data[i : i + PAGE] for i in range(0, len(data), PAGE))
        del seen[ZERO_PAGE]
        pages = [page for page, n in seen.most_common(FRAMES_MAX) if n > 1] or [b"x" * PAGE]
        self.frames = {page: i for i, page in enumerate(pages)}
        fd = os.memfd_create("store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        for page in pages:
            os.write(fd, page)
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
        ro = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        self.send(struct.pack("<HHIII", STORE, 0, 0, len(pages), 0), [ro])
        os.close(ro)
        os.close(fd)

    def merge(self, at):
        data, runs = self.window(at), []
        for i in range(len(data) // PAGE):
            page = data[i * PAGE : (i + 1) * PAGE]
            frame = ZERO if page == ZERO_PAGE else self.frames.get(page)
            if frame is not None:
                runs.append(struct.pack("<HHI", i, 1, frame))
        if not runs:
            return
        self.send(struct.pack("<HHIQHHI", MERGE, len(runs), 1, at, 64, 1, 1) + b"".join(runs))
        while self.alive:
            answer = self.receive(20)
            if answer and answer[0] == MERGED:
                count = struct.unpack_from("<H", answer[1], 2)[0]
                for i in range(count):
                    merged, outcome = struct.unpack_from("<HB", answer[1], 24 + 8 * i)
                    self.counts["merged"] += merged
                    self.counts["unequal"] += outcome == 1
                return


def main():
    path, seconds, grant = sys.argv[1], float(sys.argv[2]), "grant" in sys.argv[3:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(1)
    print("listening", flush=True)
    agent = Agent(listener.accept()[0], grant)
    while agent.alive and not agent.slots:
        agent.receive(1)
    while agent.receive(1):  # the others
        pass
    end = time.monotonic() + seconds
    if agent.alive:
        agent.store()
    while agent.alive and time.monotonic() < end:
        for at in agent.windows():
            if agent.alive and time.monotonic() < end:
                agent.merge(at)
        agent.counts["passes"] += 1
        agent.receive(0.2)
    print("end", " ".join(f"{k}={v}" for k, v in sorted(agent.counts.items())), flush=True)


main()
