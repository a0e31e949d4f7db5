/* soak HOURS [SEED] - the world of chaos, gentler and for long: about once a minute the daemon is restarted, by SIGTERM
 * or SIGKILL; VMs come and go, contents shift, reloads of the policy move VMs between domains. A line a minute.
 *
 * Exit 0 only if every byte was right, nothing was left over, and the daemon's memory and descriptors did not keep
 * growing; 77 where it cannot run. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/cleanup.h"
#include "tests/world/account.h"
#include "tests/world/proc.h"
#include "tests/world/world.h"

#define SAMPLE_SECONDS 10
#define SAMPLES_MAX (24 * 3600 / SAMPLE_SECONDS * 7) /* a week */
#define ANON_SLACK_KIB (16u << 10)
#define FDS_SLACK 8u

/* How often, on average; each as likely from half to one and a half of it. */
static const struct {
	double restart, vm, shift, reload;
} every = { 60, 15, 60, 45 };

static struct {
	double restart, vm, shift, reload; /* when next, in world_seconds() */
	unsigned terms, kills, reloads, vms_ended;
	uint64_t anon_kib[SAMPLES_MAX];
	uint32_t fds[SAMPLES_MAX];
	size_t samples;
} soak;

static double next(struct world *w, double mean)
{
	return world_seconds(w) + mean * (0.5 + (double)world_random(w, 1000) / 1000);
}

/* ---- what happens ---- */

/* Mostly killed: a daemon that ends well is the easier case. */
static void restart(struct world *w)
{
	bool term = world_random(w, 3) == 0;

	if (daemon_stop(&w->daemon, term ? SIGTERM : SIGKILL) < 0)
		world_wrong(w, "the daemon did not end well");
	else if (daemon_start(&w->daemon) < 0)
		world_wrong(w, "the daemon cannot be started");
	soak.terms += term;
	soak.kills += !term;
	soak.restart = next(w, every.restart);
}

static void vm_replace(struct world *w)
{
	unsigned i = (unsigned)world_random(w, WORLD_VMS);

	if (world_random(w, 2))
		world_vm_kill(w, i);
	else
		world_vm_end(w, i);
	if (w->bad == 0 && world_vm_start(w, i) < 0)
		world_wrong(w, "a VM cannot be started");
	soak.vms_ended++;
	soak.vm = next(w, every.vm);
}

/* VMs whose number ends with one digit go to the other domain, and those that were there before come back. */
static void reload(struct world *w)
{
	auto_fclose FILE *f = NULL;
	char path[300];

	snprintf(path, sizeof(path), "%s/moved.conf", w->daemon.policy);
	f = fopen(path, "we");
	if (!f || fprintf(f, "[vm chaos-a-*%u]\ndomain = chaos-b\n", (unsigned)world_random(w, 10)) < 0 || fflush(f) != 0)
		world_wrong(w, "%s cannot be written", path);
	kill(w->daemon.pid, SIGHUP);
	soak.reloads++;
	soak.reload = next(w, every.reload);
}

static void events(struct world *w)
{
	double now = world_seconds(w);

	if (now >= soak.vm)
		vm_replace(w);
	if (now >= soak.reload && w->bad == 0)
		reload(w);
	if (now >= soak.restart && w->bad == 0)
		restart(w);
	if (now >= soak.shift) {
		world_shift(w);
		soak.shift = next(w, every.shift);
	}
}

/* ---- what is seen ---- */

static void sample(struct world *w)
{
	if (soak.samples == SAMPLES_MAX)
		return;
	soak.anon_kib[soak.samples] = proc_anon_kib(w->daemon.pid);
	soak.fds[soak.samples++] = proc_fds_count(w->daemon.pid);
}

static void status_line(struct world *w)
{
	double saved_mib, frames_mib;

	world_saved(w, &saved_mib, &frames_mib);
	printf("%.1f min: saved %.0f MiB, frames %.0f MiB; daemon %.1f MiB, %u fds, %.1f s of CPU in all; %u killed, %u "
	       "ended, %u reloads, %u VMs gone, %u rounds, %.1f M pages checked, %lu wrong\n",
	       world_seconds(w) / 60, saved_mib, frames_mib, (double)proc_anon_kib(w->daemon.pid) / 1024, proc_fds_count(w->daemon.pid),
	       w->daemon.cpu_seconds + proc_cpu_seconds(w->daemon.pid), soak.kills, soak.terms, soak.reloads,
	       soak.vms_ended, w->daemon.rounds, (double)world_checks(w) / 1e6, w->bad);
}

/* The most of the second half against that of the first: a life of a minute says little, all of them together do. */
static void growth_check(struct world *w)
{
	uint64_t anon[2] = { 0 };
	uint32_t fds[2] = { 0 };

	for (size_t i = 0; i < soak.samples; i++) {
		bool second = i >= soak.samples / 2;

		anon[second] = soak.anon_kib[i] > anon[second] ? soak.anon_kib[i] : anon[second];
		fds[second] = soak.fds[i] > fds[second] ? soak.fds[i] : fds[second];
	}
	printf("daemon at most: %.1f MiB, then %.1f MiB; %u fds, then %u\n", (double)anon[0] / 1024, (double)anon[1] / 1024,
	       fds[0], fds[1]);
	if (soak.samples < 6)
		return;
	if (anon[1] > anon[0] + anon[0] / 2 + ANON_SLACK_KIB)
		world_wrong(w, "the daemon's memory grows");
	if (fds[1] > fds[0] + FDS_SLACK)
		world_wrong(w, "the daemon's descriptors grow");
}

/* ---- the whole ---- */

static void begin(struct world *w)
{
	for (unsigned i = 0; i < WORLD_VMS && w->bad == 0; i++)
		if (world_vm_start(w, i) < 0)
			world_wrong(w, "a VM cannot be started");
	if (w->bad == 0 && daemon_start(&w->daemon) < 0)
		world_wrong(w, "the daemon cannot be started");
	world_await(w);
	soak.restart = next(w, every.restart);
	soak.vm = next(w, every.vm);
	soak.shift = next(w, every.shift);
	soak.reload = next(w, every.reload);
}

static void soak_for(struct world *w, double seconds)
{
	double next_sample = SAMPLE_SECONDS, next_line = 60;

	while (world_seconds(w) < seconds && w->bad == 0) {
		world_run(w, 0.5, NULL);
		if (w->bad == 0)
			events(w);
		if (world_seconds(w) >= next_sample && w->bad == 0) {
			sample(w);
			next_sample += SAMPLE_SECONDS;
		}
		if (world_seconds(w) >= next_line) {
			status_line(w);
			next_line += 60;
		}
	}
}

int main(int argc, char **argv)
{
	double hours = argc > 1 ? strtod(argv[1], NULL) : 0;
	struct world w;
	const char *why;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!(hours > 0) || argc > 3) {
		fprintf(stderr, "usage: soak HOURS [SEED]\n");
		return 2;
	}
	if (world_open(&w, argc > 2 ? strtoul(argv[2], NULL, 0) : 1, &why) < 0) {
		printf("skip: soak: %s\n", why);
		return 77;
	}
	begin(&w);
	soak_for(&w, hours * 3600);
	growth_check(&w);
	if (w.bad == 0 && w.daemon.rounds == 0)
		world_wrong(&w, "nothing was merged");
	if (w.bad == 0)
		account_close(&w, false);
	world_report(&w);
	world_close(&w);
	return w.bad == 0 ? 0 : 1;
}
