"""What was measured, for people, for programs, and as a picture."""

from host import MIB

COLUMNS = (
    ("policy", "name", 14), ("guests", "guests", 7), ("work", "work", 8), ("of unconstrained", "work_percent", 17),
    ("guest swap MiB", "guest_swap_mib", 15), ("storms", "guest_swap_storms", 7), ("OOM kills", "oom_kills", 10),
    ("host swap MiB", "host_swap_out_mib", 14), ("react ticks", "react_ticks_max", 12), ("ms", "react_ms_max", 7),
)
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
STATES = {"high": "#e8f5e9", "clear": "#c8e6c9", "soft": "#fff59d", "hard": "#ffb74d", "low": "#e57373"}


def compare(results, tick_ms):
    """Adds to each policy's result what it is worth against the unconstrained run of the same guests."""
    free = results.get("unconstrained")
    usual = {t["guest"]: t["ms"] for t in free["shifts"]} if free else {}
    for r in results.values():
        r["work_percent"] = round(100 * r["work"] / free["work"], 1) if free and free["work"] else None
        for t in r["shifts"]:
            own = usual.get(t["guest"])
            t["react_ms"] = None if own is None else max(0.0, t["ms"] - own)
        known = [t["react_ms"] for t in r["shifts"] if t["react_ms"] is not None]
        r["react_ms_max"] = round(max(known)) if known else None
        r["react_ticks_max"] = round(max(known) / tick_ms, 1) if known else None


def table(results):
    lines = ["".join(title.rjust(width) for title, _, width in COLUMNS)]
    for name, r in results.items():
        row = dict(r, name=name)
        lines.append("".join(("-" if row[key] is None else str(row[key])).rjust(width) for _, key, width in COLUMNS))
    for name, r in results.items():
        for t in r["shifts"]:
            lines.append(f"{name}: {t['guest']} hot at {t['t']:.0f} s: its memory was there after {t['ms']:.0f} ms"
                         f"{'' if t['finished'] else ' or never'}"
                         f"{'' if t['react_ms'] is None else ', %.0f more than unconstrained' % t['react_ms']}"
                         f"{'' if t['host_state'] is None else ', host ' + t['host_state']}")
        lines.append(f"{name}: guests took {r['guest_cores']} cores, others {r['other_cores']}; QEMU needs "
                     f"{r['overhead_mib']} MiB beside guest RAM; at most {r['host_used_mib_max']} MiB in use")
        if r["wrong"] or r["guests_died"]:
            lines.append(f"{name}: {r['wrong']} wrong pages, {r['guests_died']} guests died")
    return "\n".join(lines)


class Panel:
    """Memory over time of one policy: guest RAM stacked, the budget as a line, the host's state below."""

    width, height, left, step = 900, 180, 60, 250

    def __init__(self, number, name, samples, seconds, budget, top_mib):
        self.y0 = number * self.step + 40
        self.name, self.seconds, self.budget, self.top = name, seconds, budget, top_mib
        self.first = samples[0]["at"]
        self.samples = samples
        self.span = max(1.0, samples[-1]["at"] - self.first)
        started = [s for s in samples if s["t"] >= 0]
        self.go = started[0]["at"] - started[0]["t"] if started else self.first

    def x(self, at):
        return self.left + (at - self.first) / self.span * self.width

    def y(self, mib):
        return self.y0 + self.height * (1 - mib / self.top)

    def areas(self):
        below = [0.0] * len(self.samples)
        for g in range(len(self.samples[0]["ram"])):
            above = [b + s["ram"][g] / MIB for b, s in zip(below, self.samples)]
            points = [(self.x(s["at"]), self.y(v)) for s, v in zip(self.samples, above)]
            points += [(self.x(s["at"]), self.y(v)) for s, v in reversed(list(zip(self.samples, below)))]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield f'<polygon points="{path}" fill="{COLOURS[g % len(COLOURS)]}" fill-opacity="0.8"/>'
            below = above

    def states(self):
        for a, b in zip(self.samples, self.samples[1:]):
            if a["state"] in STATES:
                yield (f'<rect x="{self.x(a["at"]):.1f}" y="{self.y0 + self.height + 2}" height="10" '
                       f'width="{self.x(b["at"]) - self.x(a["at"]):.1f}" fill="{STATES[a["state"]]}"/>')

    def svg(self, guests):
        bottom = self.y0 + self.height
        yield f'<text x="{self.left}" y="{self.y0 - 8}" font-weight="bold">{self.name}</text>'
        yield from self.areas()
        yield from self.states()
        for mib in (0, self.budget, self.top):
            yield f'<text x="{self.left - 6}" y="{self.y(mib) + 4:.1f}" text-anchor="end">{mib:.0f}</text>'
        y = self.y(self.budget)
        yield f'<line x1="{self.left}" x2="{self.left + self.width}" y1="{y:.1f}" y2="{y:.1f}" stroke="black"/>'
        for i in range(guests):
            at = self.go + i * self.seconds / guests
            yield (f'<line x1="{self.x(at):.1f}" x2="{self.x(at):.1f}" y1="{self.y0}" y2="{bottom}" stroke="black" '
                   f'stroke-dasharray="3 3"/><text x="{self.x(at) + 3:.1f}" y="{self.y0 + 12}">guest {i} hot</text>')
        yield f'<rect x="{self.left}" y="{self.y0}" width="{self.width}" height="{self.height}" fill="none" stroke="#888"/>'


def svg(path, runs, bench):
    top = max(bench.guests * bench.mem, bench.budget)
    height = Panel.step * len(runs) + 50
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="{height}" '
                'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>\n'
                '<text x="60" y="16">Guest RAM that is resident, MiB, stacked by guest, over time; the line is the '
                'budget; below, the host\'s state</text>\n')
        for number, run in enumerate(runs):
            panel = Panel(number, run.policy.name, run.samples, bench.seconds, bench.budget, top)
            f.write("\n".join(panel.svg(bench.guests)) + "\n")
        x = 60
        for state, colour in STATES.items():
            f.write(f'<rect x="{x}" y="{height - 24}" width="12" height="12" fill="{colour}" stroke="#888"/>'
                    f'<text x="{x + 16}" y="{height - 14}">{state}</text>\n')
            x += 70
        f.write("</svg>\n")
