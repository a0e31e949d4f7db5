/* The libvirt driver by itself, for tests/e2e: libvirt-probe URI FILE. Ticks five times a second, and writes to FILE what is
 * told of each VM that it was given on standard input:
 *	watch UUID PID
 *	set UUID PID MIB	prints the result
 *	quit */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "balloon/port_libvirt.h"
#include "core/text.h"

#define WATCHED_MAX 8
#define TICK_USEC 200000

static struct probe {
	sd_event *loop;
	struct fsio fs;
	struct port_libvirt *port;
	const char *file;
	struct {
		char uuid[TEXT_UUID_MAX];
		int pid;
	} watched[WATCHED_MAX];
	size_t count;
} probe;

static void print_one(FILE *out, const char *uuid, int pid)
{
	struct balloon_told t;
	bool known = port_libvirt_told(probe.port, uuid, pid, &t);

	fprintf(out,
		"%s %d known=%d device=%d reporting=%d deflate=%d period=%" PRIu64 " max_mib=%" PRIu64 " actual_mib=%" PRIu64
		" resets=%" PRIu64 " updated=%" PRId64 " total_mib=%" PRId64 " free_mib=%" PRId64 " why=%s.\n",
		uuid, pid, known, t.device, t.reporting, t.deflate_on_oom, t.period_s, t.max_bytes >> 20, t.actual_bytes >> 20,
		t.resets, t.last_update_s, t.total_bytes == BALLOON_UNTOLD ? -1 : (int64_t)(t.total_bytes >> 20),
		t.free_bytes == BALLOON_UNTOLD ? -1 : (int64_t)(t.free_bytes >> 20), t.why);
}

/* Whole or not at all, for whoever reads it. */
static void print_all(void)
{
	char name[512];
	FILE *out;

	snprintf(name, sizeof(name), "%s.new", probe.file);
	out = fopen(name, "we");
	if (!out)
		return;
	for (size_t i = 0; i < probe.count; i++)
		print_one(out, probe.watched[i].uuid, probe.watched[i].pid);
	if (fclose(out) == 0 && rename(name, probe.file) < 0)
		perror(name);
}

static int on_tick(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)usec;
	(void)userdata;
	port_libvirt_want(probe.port);
	port_libvirt_ask(probe.port);
	print_all();
	sd_event_source_set_time_relative(source, TICK_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void command(const char *line)
{
	char uuid[TEXT_UUID_MAX];
	uint64_t mib;
	int pid;

	if (sscanf(line, "set %36s %d %" SCNu64, uuid, &pid, &mib) == 3) {
		int r = port_libvirt_set(probe.port, uuid, pid, mib << 20);

		printf("set %s %" PRIu64 ": %s\n", uuid, mib, r < 0 ? strerrorname_np(-r) : "taken on");
		fflush(stdout);
	} else if (strcmp(line, "quit") == 0) {
		sd_event_exit(probe.loop, 0);
	} else if (sscanf(line, "watch %36s %d", uuid, &pid) == 2 && probe.count < WATCHED_MAX) {
		memcpy(probe.watched[probe.count].uuid, uuid, sizeof(uuid));
		probe.watched[probe.count++].pid = pid;
	}
}

static int on_input(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	static char line[256];
	static size_t len;
	char byte;

	(void)source;
	(void)events;
	(void)userdata;
	if (read(fd, &byte, 1) != 1)
		return sd_event_exit(probe.loop, 0);
	if (byte != '\n' && len + 1 < sizeof(line)) {
		line[len++] = byte;
		return 0;
	}
	line[len] = '\0';
	len = 0;
	command(line);
	return 0;
}

static void on_changed(void *userdata)
{
	(void)userdata;
	print_all();
}

int main(int argc, char **argv)
{
	static const struct port_libvirt_ops ops = { .changed = on_changed };
	int r;

	if (argc != 3) {
		fprintf(stderr, "usage: libvirt-probe URI FILE\n");
		return 2;
	}
	probe.file = argv[2];
	r = fsio_open_root("/", false, &probe.fs);
	if (r == 0)
		r = sd_event_new(&probe.loop);
	if (r >= 0)
		r = port_libvirt_new(probe.loop, argv[1], &probe.fs, &ops, NULL, &probe.port);
	if (r >= 0)
		r = sd_event_add_time_relative(probe.loop, NULL, CLOCK_MONOTONIC, 0, 0, on_tick, NULL);
	if (r >= 0)
		r = sd_event_add_io(probe.loop, NULL, STDIN_FILENO, EPOLLIN, on_input, NULL);
	if (r >= 0)
		r = sd_event_loop(probe.loop);
	if (r < 0)
		fprintf(stderr, "libvirt-probe: %s\n", strerror(-r));
	probe.port = port_libvirt_free(probe.port);
	sd_event_unref(probe.loop);
	fsio_close(&probe.fs);
	return r < 0;
}
