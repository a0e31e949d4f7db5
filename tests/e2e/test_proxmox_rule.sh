#!/bin/bash
# The rule that bench/overcommit runs as Proxmox's decides what Proxmox's does: the cases and results of pve-manager's own
# test of it (balloontest.pl), whose megabyte has 1000 x 1000 bytes.
set -eu
cd "$(dirname "$0")/../../bench/overcommit"
exec python3 -B - <<'END'
import proxmox

M, G = 10**6, 10**9
proxmox.STEP = 100 * M


def decide(state, goal):
    vms = {name: proxmox.Vm(balloon, least, 2 * G, free, shares)
           for name, (balloon, least, free, shares) in state.items()}
    result = proxmox.decide(list(vms.values()), goal)
    return {name: result[vm] for name, vm in vms.items() if vm in result}


def once(state, goal, want):
    got = decide(state, goal)
    assert got == want, (goal, got, want)


def until_rest(state, goal, want):
    """Again and again, until nothing moves; returns where all are then."""
    state, moved = dict(state), {}
    while step := decide(state, goal):
        for name, new in step.items():
            balloon, least, free, shares = state[name]
            state[name] = (new, least, max(0, free + new - balloon), shares)
            goal -= new - balloon
        moved.update(step)
    assert moved == want, (goal, moved, want)
    return state


#         balloon, least, free, shares
one = {100: (G, G, 0, 2000), 101: (G, G, 0, 1000)}
once(one, 0, {})
once(one, 90 * M, {100: 1060 * M, 101: 1030 * M})
once(one, 150 * M, {100: 1100 * M, 101: 1050 * M})
once(one, 270 * M, {100: 1100 * M, 101: 1090 * M})
until_rest(one, 180 * M, {100: 1120 * M, 101: 1060 * M})
until_rest(one, 270 * M, {100: 1180 * M, 101: 1090 * M})
until_rest(one, 600 * M, {100: 1300 * M, 101: 1300 * M})
until_rest(one, 900 * M, {100: 1600 * M, 101: 1300 * M})
two = {100: (2 * G, 2 * G, 0, 2000), 101: (G, G, 0, 1000)}
once(two, 0, {})
once(two, 18 * M, {101: 1018 * M})
once(two, 500 * M, {101: 1100 * M})
three = {100: (2 * G, 2 * G, 0, 2000), 101: (1007 * M, G, 0, 1000), 102: (G, G, 512 * M, 1000)}
once(three, 0, {})
once(three, 11 * M, {101: 1018 * M})
once(three, 80 * M, {101: 1087 * M})
once(three, 200 * M, {101: 1107 * M})
rest = until_rest(three, 593 * M, {101: 1300 * M, 102: 1300 * M})
until_rest(rest, -200 * M, {101: 1200 * M, 102: 1200 * M})
until_rest(rest, -400 * M, {101: 1200 * M, 102: G})
until_rest(rest, -593 * M, {101: 1007 * M, 102: G})
print("as Proxmox's")
END
