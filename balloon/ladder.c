#include "balloon/ladder.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/clock.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* Memory: the thresholds are VMware ESX's (high 400 %, clear 100 %, soft 64 %, hard 32 % of minFree end there). A state ends
 * for the better a quarter (between clear and soft: a half) above where it began: free memory of a busy host moves by a few
 * hundredths of itself from tick to tick, and what a tick of ballooning brings must not end it at once.
 *
 * Pressure: systemd-oomd and Meta's oomd act on a memory pressure of 10 to 60 % over half a minute, Senpai keeps it at
 * 0.1 %. A tenth of a second out of one is far above what a host with room has, and far below what hurts. It only makes
 * worse what is scarce already: a host that is high by memory has tasks that wait for memory of their own cgroups, and a
 * balloon does not help these. */
const struct ladder_row ladder_rows[HOST_STATES] = {
	[HOST_HIGH] = { "high", 0, 0, 0, 0, .release = true, .admit = true },
	[HOST_CLEAR] = { "clear", 400, 500, 0, 0, .admit = true },
	[HOST_SOFT] = { "soft", 100, 150, 100, 0, .take_idle = true, .admit = true },
	[HOST_HARD] = { "hard", 64, 80, 0, 100, .take_idle = true, .take_all = true, .admit = true },
	[HOST_LOW] = { "low", 32, 40, 0, 0, .take_idle = true, .take_all = true },
};

/* Totals of two looks that are closer than this tell more of the moment than of the host. */
#define PRESSURE_NS_MIN (NSEC_PER_SEC / 2)

uint64_t ladder_min_free(uint64_t total_bytes)
{
	const uint64_t first = 28 * GIB;

	if (total_bytes <= first)
		return total_bytes / (first / MIB) * 899;
	return 899 * MIB + (total_bytes - first) / 100;
}

uint64_t ladder_free(const struct host_snapshot *s)
{
	uint64_t spoken_for = s->cow_debt_bytes + s->admitted_bytes;

	return s->mem_available_bytes > spoken_for ? s->mem_available_bytes - spoken_for : 0;
}

uint64_t ladder_leave_bytes(enum host_state state, uint64_t min_free_bytes)
{
	unsigned int percent = ladder_rows[state == HOST_HIGH ? HOST_CLEAR : state].above_percent;

	return min_free_bytes / 100 * percent;
}

const char *host_state_name(enum host_state state)
{
	return ladder_rows[state].name;
}

static unsigned int permille(uint64_t part_us, uint64_t then_us, uint64_t ns)
{
	uint64_t us = part_us > then_us ? part_us - then_us : 0;

	us = us < ns / 1000 ? us : ns / 1000;
	return (unsigned int)(us * 1000 / (ns / 1000));
}

static void pressure_look(struct ladder *l, const struct host_snapshot *s)
{
	uint64_t ns = s->taken_ns - l->looked_ns;

	if (!s->pressure.known || !l->pressure.known || s->taken_ns < l->looked_ns) {
		l->some_permille = l->full_permille = 0;
	} else if (ns < PRESSURE_NS_MIN) {
		return;
	} else {
		l->some_permille = permille(s->pressure.some_us, l->pressure.some_us, ns);
		l->full_permille = permille(s->pressure.full_us, l->pressure.full_us, ns);
	}
	l->pressure = s->pressure;
	l->looked_ns = s->taken_ns;
}

static bool by_memory(const struct ladder *l, enum host_state state)
{
	const struct ladder_row *row = &ladder_rows[state];
	uint64_t percent = l->min_free_bytes / 100;

	return l->free_bytes < percent * row->below_percent ||
	       (state <= l->state && l->free_bytes <= percent * row->above_percent);
}

/* Half of what began it keeps it going. */
static bool by_pressure(const struct ladder *l, enum host_state state)
{
	const struct ladder_row *row = &ladder_rows[state];
	unsigned int part = state <= l->state ? 2 : 1;

	return (row->some_permille && l->some_permille * part >= row->some_permille) ||
	       (row->full_permille && l->full_permille * part >= row->full_permille);
}

static enum host_state state_of(const struct ladder *l)
{
	enum host_state memory = HOST_LOW, pressure = HOST_LOW;

	while (memory > HOST_HIGH && !by_memory(l, memory))
		memory--;
	while (pressure > HOST_HIGH && !by_pressure(l, pressure))
		pressure--;
	return memory != HOST_HIGH && pressure > memory ? pressure : memory;
}

bool ladder_look(struct ladder *l, const struct host_snapshot *s, uint64_t min_free_bytes)
{
	enum host_state before = l->state;

	l->free_bytes = ladder_free(s);
	l->min_free_bytes = min_free_bytes ? min_free_bytes : ladder_min_free(s->mem_total_bytes);
	pressure_look(l, s);
	l->state = state_of(l);
	if (l->state == before)
		return false;
	l->entered_ns = s->taken_ns;
	snprintf(l->why, sizeof(l->why),
		 "%" PRIu64 " MiB free (%" PRIu64 " available, %" PRIu64 " debt, %" PRIu64 " promised), %" PRIu64
		 " %% of %" PRIu64 "; stalled some %.1f %%, full %.1f %%",
		 l->free_bytes / MIB, s->mem_available_bytes / MIB, s->cow_debt_bytes / MIB, s->admitted_bytes / MIB,
		 l->min_free_bytes ? l->free_bytes * 100 / l->min_free_bytes : 0, l->min_free_bytes / MIB,
		 l->some_permille / 10.0, l->full_permille / 10.0);
	return true;
}
