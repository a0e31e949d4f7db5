"""Proxmox VE's rule for balloons, as pvestatd and PVE::AutoBalloon have it (pve-manager 4 to 9; the rule has not changed).

Every 10 s: what the host uses is to be 80 % of its memory. The difference, when it is more than 10 MiB, is shared out
among the VMs: each is to have its minimum and, of what all have above theirs, a part by its shares, but no VM moves by
more than 100 MiB at a time. To grow, VMs with free memory (MemFree, without the page cache) up to a quarter of their
minimum come first; to shrink, the others do. Only when that moves nothing are all taken.
"""

MIB = 1 << 20
PERIOD_S = 10
TARGET_PERCENT = 80
DEAD_BAND = 10 * MIB
STEP = 100 * MIB


class Vm:
    """One VM as the rule sees it, in bytes. free None: unknown."""

    def __init__(self, balloon, minimum, maximum, free, shares=1000):
        self.balloon, self.minimum, self.maximum = balloon, minimum, maximum
        self.free, self.shares = free, shares

    def short(self):
        return not self.free or self.free <= self.minimum * 0.25 or self.balloon < self.minimum


def desired(vm, pool, shares):
    """(what the VM should have, whether that is at one of its bounds)"""
    wanted = vm.minimum + int(pool / shares * vm.shares)
    bounded = min(max(wanted, vm.minimum), vm.maximum)
    return bounded, bounded != wanted


def change(result, vms, amount):
    """Shares amount out among vms, adding to result (vm -> new balloon). Returns what is left."""
    rest, again, progress, settled = amount, True, 1, set()
    while rest and again and progress:
        again, progress, changes = False, 0, 0
        open_vms = [v for v in vms if v not in settled]
        pool = rest + sum(result.get(v, v.balloon) - v.minimum for v in open_vms)
        shares = sum(v.shares for v in open_vms)
        for vm in open_vms:
            wanted, again_for_this = desired(vm, pool, shares)
            again |= again_for_this
            if amount > 0 and wanted > vm.balloon:
                new = min(vm.balloon + STEP, wanted)
            elif wanted < vm.balloon:
                new = max(vm.balloon - STEP, wanted)
            else:
                settled.add(vm)
                continue
            moved = new - result.get(vm, vm.balloon)
            result[vm] = new
            if moved:
                changes += moved
                progress += abs(new - vm.balloon)
                again = True
        rest -= changes
    return rest


def decide(vms, goal):
    """New balloons of the VMs that are to move: a dict."""
    result = {}
    if abs(goal) > DEAD_BAND:
        first = [v for v in vms if v.short() == (goal > 0)]
        rest = change(result, first, goal)
        if (rest >= goal) if goal > 0 else (rest <= goal):
            change(result, vms, rest)
    return {vm: int(new) for vm, new in result.items() if int(new) != vm.balloon}
