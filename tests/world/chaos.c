/* chaos KILLS [SEED] - kills the daemon with SIGKILL at random instants, KILLS times, and a VMM at every tenth, while VMs
 * write, read, discard and copy, and the agents in them merge. Every byte is checked all the time; in the end every
 * frame, mapping, descriptor and process is accounted for.
 *
 * Exit 0 only if every byte was right and nothing was left over; 1 also if hardly anything was merged, for then nothing
 * was tested; 77 where it cannot run. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/world/account.h"
#include "tests/world/world.h"

#define KILLS_BETWEEN_SHIFTS 40
#define WAIT_SECONDS 6.0 /* for a moment that may never come */

/* ---- when a life ends ---- */

static bool pass_begun(struct world *w)
{
	return w->daemon.life.passes > 0;
}

static bool round_begun(struct world *w)
{
	return w->daemon.life.rounds > 0;
}

static bool round_ended(struct world *w)
{
	return w->daemon.life.rounds_merged > 0;
}

/* A moment to wait for, and then at most so many seconds more, any of them as likely. By itself time would hardly ever
 * hit a round, which takes some 10 ms of a second. */
static const struct moment {
	const char *name;
	unsigned share; /* of 100 */
	bool (*until)(struct world *w);
	double seconds;
} moments[] = {
	{ "start", 20, NULL, 0.1 },	      { "any time", 28, NULL, 2.5 },
	{ "pass", 14, pass_begun, 0.1 },      { "round", 20, round_begun, 0.08 },
	{ "sweep", 14, round_ended, 0.15 },   { "long life", 4, NULL, 8 },
};

static const struct moment *moment_choose(struct world *w)
{
	uint64_t n = world_random(w, 100);
	const struct moment *m = moments;

	for (; n >= m->share; m++)
		n -= m->share;
	return m;
}

struct counts {
	unsigned kills, in_round, in_pass, before_pass;
};

static void count_phase(struct counts *c, const struct daemon_life *life)
{
	c->kills++;
	c->in_round += life->in_round;
	c->in_pass += life->in_pass && !life->in_round;
	c->before_pass += life->passes == 0;
}

/* The VM first, or the daemon, or both at once. */
static void kill_both(struct world *w, bool vm_first)
{
	unsigned i = (unsigned)world_random(w, WORLD_VMS);
	double apart = world_random(w, 2) ? 0 : (double)world_random(w, 30) / 1000;

	if (vm_first) {
		world_vm_kill(w, i);
		world_run(w, apart, NULL);
	}
	if (w->bad == 0 && daemon_stop(&w->daemon, SIGKILL) < 0)
		world_wrong(w, "the daemon ended by itself");
	if (!vm_first) {
		world_run(w, apart, NULL);
		world_vm_kill(w, i);
	}
	if (w->bad == 0 && world_vm_start(w, i) < 0)
		world_wrong(w, "a VM cannot be started");
}

static void life(struct world *w, struct counts *c)
{
	const struct moment *m = moment_choose(w);

	if (daemon_start(&w->daemon) < 0)
		world_wrong(w, "the daemon cannot be started");
	if (m->until)
		world_run(w, WAIT_SECONDS, m->until);
	world_run(w, m->seconds * (double)world_random(w, 1000000) / 1e6, NULL);
	if (w->bad > 0)
		return;
	count_phase(c, &w->daemon.life);
	if (c->kills % 10 == 0)
		kill_both(w, world_random(w, 2));
	else if (daemon_stop(&w->daemon, SIGKILL) < 0)
		world_wrong(w, "the daemon ended by itself");
	if (c->kills % KILLS_BETWEEN_SHIFTS == 0)
		world_shift(w);
}

/* ---- the whole ---- */

static void progress(const struct world *w, const struct counts *c)
{
	const struct chaos_daemon *d = &w->daemon;

	printf("%.0f s: %u kills (%u in a round, %u in a pass, %u before), %u of VMs; %u lives merged, %u rounds, %lu MiB, "
	       "%u stores taken over, %lu frames freed; %.1f M pages checked, %lu wrong\n",
	       world_seconds(w), c->kills, c->in_round, c->in_pass, c->before_pass, w->vm_kills, d->lives_merged, d->rounds,
	       d->merged_mib, d->adopted, d->freed_frames, (double)world_checks(w) / 1e6, w->bad);
}

static void kill_again_and_again(struct world *w, unsigned kills)
{
	struct counts c = { 0 };
	unsigned step = kills >= 200 ? kills / 20 : 10;

	for (unsigned i = 0; i < WORLD_VMS && w->bad == 0; i++)
		if (world_vm_start(w, i) < 0)
			world_wrong(w, "a VM cannot be started");
	world_await(w);
	while (c.kills < kills && w->bad == 0) {
		life(w, &c);
		if (c.kills % step == 0 || w->bad > 0)
			progress(w, &c);
	}
}

int main(int argc, char **argv)
{
	unsigned kills = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	uint64_t seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	struct world w;
	const char *why;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (kills == 0 || argc > 3) {
		fprintf(stderr, "usage: chaos KILLS [SEED]\n");
		return 2;
	}
	if (world_open(&w, seed, &why) < 0) {
		printf("skip: chaos: %s\n", why);
		return 77;
	}
	printf("%u kills, seed %lu, %u VMs of %u MiB\n", kills, seed, WORLD_VMS, CHAOS_RAM_MIB);
	kill_again_and_again(&w, kills);
	if (w.bad == 0 && w.daemon.lives_merged * 10 < kills)
		world_wrong(&w, "only %u lives of the daemon merged anything: nothing was tested", w.daemon.lives_merged);
	if (w.bad == 0 && daemon_start(&w.daemon) < 0)
		world_wrong(&w, "the daemon cannot be started");
	if (w.bad == 0)
		account_close(&w, true);
	world_report(&w);
	world_close(&w);
	return w.bad == 0 ? 0 : 1;
}
