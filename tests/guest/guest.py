"""A Python heap that changes: the workload=python part of a test guest.

Every object can be made again from (seed, slot, generation), so checking one means making it again
and comparing: nothing read back from the memory under test takes part in its own proof. Reads round
numbers on stdin and answers OK or BAD; guest-work puts the answer into its line.
"""
import random
import sys

SLOTS = 640        # about 35 MiB in all
REPLACED = 32      # slots per round that are freed and made anew
CHECKED = 64       # slots per round that are compared


def make(seed, slot, generation):
    # Even slots do not depend on the seed: two guests with the same program share some of their heap.
    rng = random.Random(f"{seed if slot % 2 else 'common'}/{slot}/{generation}")
    blob = rng.randbytes(rng.randrange(4096, 65536))
    table = {f"{slot}.{i}": rng.getrandbits(64) for i in range(128)}
    return {"blob": blob, "table": table, "zero": bytes(rng.randrange(0, 16384))}


def play(seed):
    generation = [0] * SLOTS
    heap = [make(seed, slot, 0) for slot in range(SLOTS)]
    print("READY", flush=True)
    for line in sys.stdin:
        number = int(line)
        good = True
        for i in range(CHECKED):
            slot = (number * CHECKED + i) % SLOTS
            good = good and heap[slot] == make(seed, slot, generation[slot])
        for i in range(REPLACED):
            slot = (number * REPLACED + i) * 7 % SLOTS
            generation[slot] += 1
            heap[slot] = None
            heap[slot] = make(seed, slot, generation[slot])
        print("OK" if good else "BAD", flush=True)


play(sys.argv[1])
