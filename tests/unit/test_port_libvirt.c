/* The libvirt driver against a library that the test makes hang, refuse and die (fake_libvirt.h). */
#include "balloon/port_libvirt.h"

#include <systemd/sd-event.h>

#include "balloon/libvirt_link.h"
#include "tests/unit/fake_libvirt.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)

static char dir[UNIT_DIR_MAX];
static struct fsio fs;
static sd_event *loop;
static struct port_libvirt *port;
static unsigned int changes;

static void on_changed(void *userdata)
{
	(void)userdata;
	changes++;
}

static const struct port_libvirt_ops ops = { .changed = on_changed };

static const char *uuid_of(size_t i)
{
	static char uuid[FAKE_DOMAINS][40];

	snprintf(uuid[i], sizeof(uuid[i]), "11111111-2222-3333-4444-%012zu", i + 1);
	return uuid[i];
}

static pid_t pid_of(size_t i)
{
	return (pid_t)(1000 + i);
}

static void pid_file(size_t i, pid_t pid)
{
	char name[64], text[16];

	snprintf(name, sizeof(name), "run/libvirt/qemu/dom%zu.pid", i);
	snprintf(text, sizeof(text), "%d", pid);
	unit_file(dir, name, text);
}

static void begin(bool dry_run)
{
	libvirt_hang_ns = 300 * NSEC_PER_MSEC;
	fake_lock();
	memset(fake.domains, 0, sizeof(fake.domains));
	fake.refuse = fake.open_hangs = fake.set_fails = false;
	fake_unlock();
	unit_dir_new(dir);
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		pid_file(i, pid_of(i));
	unit_must(fsio_open_root(dir, dry_run, &fs) == 0, dir);
	unit_must(sd_event_new(&loop) >= 0, "sd-event");
	unit_must(port_libvirt_new(loop, "fake:///", &fs, &ops, NULL, &port) == 0, "port");
}

static bool all_closed(void)
{
	return FAKE(fake_open_count() == 0 && fake.hanging == 0 && fake.queued == 0);
}

static bool told(size_t i, struct balloon_told *t)
{
	return port_libvirt_told(port, uuid_of(i), pid_of(i), t);
}

/* Ticks, with a question in each, until the condition holds; a minute is for a machine that is very busy. */
#define UNTIL(condition)                                                                        \
	do {                                                                                    \
		uint64_t end_ = clock_mono_ns() + 60 * NSEC_PER_SEC;                            \
		while (!(condition) && clock_mono_ns() < end_) {                                \
			if (port)                                                               \
				port_libvirt_want(port), port_libvirt_ask(port);                \
			sd_event_run(loop, 10000);                                              \
		}                                                                               \
		UNIT_CASE("in time", condition);                                                \
	} while (0)

static void end(void)
{
	port = port_libvirt_free(port);
	fake_lock();
	fake.open_hangs = false;
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		fake.domains[i].hangs = false;
	fake_unlock();
	UNTIL(all_closed()); /* threads that were left to themselves, too */
	loop = sd_event_unref(loop);
	fsio_close(&fs);
	unit_dir_remove(dir);
}

/* ---- what is found ---- */

static void test_domains_found_at_connecting_and_by_event(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	CU_ASSERT_FALSE(told(0, &t));
	CU_ASSERT_STRING_EQUAL(t.why, "no connection to libvirt: libvirt was not asked yet");
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), MIB), -ENOTCONN);
	UNTIL(told(0, &t) && t.options_known && t.stats_told_ns != 0);
	CU_ASSERT_EQUAL(t.device, BALLOON_DEVICE_PRESENT);
	CU_ASSERT(t.reporting && t.deflate_on_oom);
	CU_ASSERT_EQUAL(t.period_s, 5);
	CU_ASSERT_EQUAL(t.max_bytes, 1024 * MIB);
	CU_ASSERT_EQUAL(t.actual_bytes, 1024 * MIB);
	CU_ASSERT_EQUAL(t.total_bytes, 1023 * MIB);
	CU_ASSERT_EQUAL(t.free_bytes, 2 * MIB);
	CU_ASSERT_EQUAL(t.available_bytes, BALLOON_UNTOLD);
	CU_ASSERT(t.last_update_s > 0);
	CU_ASSERT_STRING_EQUAL(t.why, "");
	CU_ASSERT_FALSE(told(1, &t));
	CU_ASSERT_STRING_EQUAL(t.why, "libvirt knows no such domain");
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(1), pid_of(1), MIB), -ENOENT);

	fake_domain_start(1, "none", 0);
	fake_domain_start(2, "virtio", 2);
	UNTIL(told(1, &t) && t.device == BALLOON_DEVICE_ABSENT);
	CU_ASSERT_STRING_EQUAL(t.why, "the VM has no balloon device");
	UNTIL(told(2, &t) && t.device == BALLOON_DEVICE_PRESENT);
	CU_ASSERT(changes > 0);

	fake_domain_stop(0);
	UNTIL(!told(0, &t));
	CU_ASSERT(told(2, &t));
	CU_ASSERT_EQUAL(FAKE(fake_open_count()), 1);
	end();
}

static void test_domain_of_another_process_told_nothing(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	UNTIL(told(0, &t));
	CU_ASSERT_FALSE(port_libvirt_told(port, uuid_of(0), pid_of(1), &t));
	CU_ASSERT_STRING_EQUAL(t.why, "libvirt's domain of this uuid is another process");
	CU_ASSERT_EQUAL(t.actual_bytes, 0);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(1), MIB), -ENOENT);
	UNTIL(told(0, &t) && t.stats_told_ns != 0);
	/* Started anew while nobody told us: nothing of the old one is taken for the new one's. */
	pid_file(0, 77);
	CU_ASSERT(port_libvirt_told(port, uuid_of(0), 77, &t));
	CU_ASSERT_EQUAL(t.stats_told_ns, 0);
	CU_ASSERT_FALSE(told(0, &t));
	end();
}

static void test_figures_follow_setting_and_reboot(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	UNTIL(told(0, &t) && t.stats_told_ns != 0);
	FAKE(fake.domains[0].hangs = true);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 700 * MIB + 1), 0);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 600 * MIB), -EBUSY);
	FAKE(fake.domains[0].hangs = false);
	UNTIL(told(0, &t) && t.actual_bytes == 700 * MIB);
	fake_lock();
	fake_emit(FAKE_REBOOT, VIR_DOMAIN_EVENT_ID_REBOOT, &fake.domains[0], 0, 0);
	fake_unlock();
	UNTIL(told(0, &t) && t.resets == 1);
	end();
}

static void test_setting_that_fails_told(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	FAKE(fake.set_fails = true);
	UNTIL(told(0, &t) && t.stats_told_ns != 0);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 700 * MIB), 0);
	UNTIL(told(0, &t) && strcmp(t.why, "libvirt did not set its memory: fake error") == 0);
	fake_lock();
	fake.set_fails = false;
	fake.domains[0].controlled = true;
	fake_unlock();
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 700 * MIB), 0);
	UNTIL(told(0, &t) && strcmp(t.why, "libvirt did not set its memory: libvirt has a job at work with it") == 0);
	CU_ASSERT_EQUAL(t.actual_bytes, 1024 * MIB);
	fake_lock();
	fake.domains[0].controlled = false;
	fake_unlock();
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 700 * MIB), 0);
	UNTIL(told(0, &t) && t.actual_bytes == 700 * MIB && !*t.why);
	end();
}

static void test_period_set_once_and_put_back(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 0);
	fake_domain_start(1, "virtio", 7);
	UNTIL(told(0, &t) && t.period_s == 1);
	UNTIL(told(1, &t) && t.stats_told_ns != 0);
	/* libvirtd is another one, the domain is the same: still ours to put back. */
	fake_die();
	UNTIL(!told(0, &t));
	UNTIL(told(0, &t) && t.period_s == 1);
	/* The administrator turns it off: not our business any more. */
	FAKE(fake.domains[0].period_s = 0);
	UNTIL(told(0, &t));
	CU_ASSERT_EQUAL(FAKE(fake.domains[0].periods_set), 1);
	port = port_libvirt_free(port);
	CU_ASSERT_EQUAL(FAKE(fake.domains[0].period_s), 0);
	CU_ASSERT_EQUAL(FAKE(fake.domains[0].periods_set), 2);
	CU_ASSERT_EQUAL(FAKE(fake.domains[1].periods_set), 0);
	end();
}

static void test_dry_run_changes_nothing(void)
{
	struct balloon_told t;

	begin(true);
	fake_domain_start(0, "virtio", 0);
	UNTIL(told(0, &t) && t.options_known && t.last_update_s > 2);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), MIB), -EROFS);
	port = port_libvirt_free(port);
	CU_ASSERT_EQUAL(FAKE(fake.domains[0].periods_set), 0);
	end();
}

/* ---- what goes wrong ---- */

static void test_libvirtd_refuses_tried_again(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	FAKE(fake.refuse = true);
	UNTIL(!told(0, &t) && strcmp(t.why, "no connection to libvirt: fake error") == 0);
	fake_lock();
	fake.refuse = false;
	fake_unlock();
	UNTIL(told(0, &t));
	end();
}

static void test_libvirtd_dies_comes_back(void)
{
	struct balloon_told t;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	UNTIL(told(0, &t));
	fake_lock();
	fake.refuse = true;
	fake_unlock();
	fake_die();
	UNTIL(!told(0, &t));
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), MIB), -ENOTCONN);
	fake_domain_stop(0); /* nobody listens */
	fake_domain_start(1, "virtio", 5);
	fake_lock();
	fake.refuse = false;
	fake_unlock();
	UNTIL(told(1, &t));
	CU_ASSERT_FALSE(told(0, &t));
	end();
}

static void test_vmm_hangs_others_go_on(void)
{
	struct balloon_told t;
	int64_t seen;

	begin(false);
	for (size_t i = 0; i < 3; i++)
		fake_domain_start(i, "virtio", 5);
	UNTIL(told(0, &t) && told(1, &t) && told(2, &t) && t.stats_told_ns != 0);
	seen = t.last_update_s;
	fake_lock();
	fake.domains[1].hangs = true;
	fake_unlock();
	UNTIL(told(1, &t) && strcmp(t.why, "libvirt gets no answer from its VMM") == 0);
	UNTIL(told(2, &t) && t.last_update_s > seen + 3 && !*t.why);
	UNTIL(told(0, &t) && t.last_update_s > seen + 3);
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(1), pid_of(1), MIB), -EBUSY);
	CU_ASSERT_EQUAL(FAKE(fake.hanging), 1);
	fake_lock();
	fake.domains[1].hangs = false;
	fake_unlock();
	UNTIL(told(1, &t) && !*t.why && t.last_update_s > seen + 3);
	UNTIL(FAKE(fake_open_count()) == 1); /* the thread that hung has ended */
	end();
}

static void test_setting_hangs_domain_set_aside(void)
{
	struct balloon_told t;
	int64_t seen;

	begin(false);
	fake_domain_start(0, "virtio", 5);
	fake_domain_start(1, "virtio", 5);
	UNTIL(told(0, &t) && told(1, &t) && t.stats_told_ns != 0);
	seen = t.last_update_s;
	/* No figures are asked for meanwhile: it is the setting that hangs. */
	fake_lock();
	fake.domains[0].hangs = true;
	fake_unlock();
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid_of(0), pid_of(0), 700 * MIB), 0);
	UNTIL(told(0, &t) && strcmp(t.why, "libvirt gets no answer from its VMM") == 0);
	UNTIL(told(1, &t) && t.last_update_s > seen + 3);
	end();
}

static void test_many_vmms_hang_threads_bounded(void)
{
	struct balloon_told t;

	begin(false);
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		fake_domain_start(i, "virtio", 5);
	UNTIL(told(7, &t) && t.stats_told_ns != 0);
	fake_lock();
	for (size_t i = 0; i < FAKE_DOMAINS - 1; i++)
		fake.domains[i].hangs = true;
	fake_unlock();
	UNTIL(told(7, &t) && strcmp(t.why, "libvirt does not answer: 5 calls hang") == 0);
	for (unsigned int k = 0; k < 100; k++) {
		port_libvirt_want(port);
		port_libvirt_ask(port);
		sd_event_run(loop, 10000);
	}
	CU_ASSERT(FAKE(fake.hanging) <= LIBVIRT_HUNG_MAX + 1);
	fake_lock();
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		fake.domains[i].hangs = false;
	fake_unlock();
	UNTIL(told(7, &t) && !*t.why);
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		UNTIL(told(i, &t) && !*t.why && t.last_update_s > 5);
	end();
}

static void test_free_while_libvirtd_hangs_ends(void)
{
	struct balloon_told t;

	begin(false);
	FAKE(fake.open_hangs = true);
	fake_domain_start(0, "virtio", 5);
	UNTIL(FAKE(fake.hanging) == 1);
	UNTIL(!told(0, &t) && strcmp(t.why, "no connection to libvirt: libvirtd does not answer") == 0);
	CU_ASSERT_EQUAL(FAKE(fake.hanging), 1); /* another try would hang as well */
	port = port_libvirt_free(port);
	end();
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "domains are found at connecting and by event", test_domains_found_at_connecting_and_by_event },
		{ "a domain of another process is told nothing", test_domain_of_another_process_told_nothing },
		{ "figures follow a setting and a reboot", test_figures_follow_setting_and_reboot },
		{ "a setting that fails is told", test_setting_that_fails_told },
		{ "the period is set once and put back", test_period_set_once_and_put_back },
		{ "a dry run changes nothing", test_dry_run_changes_nothing },
		{ "libvirtd refuses and is tried again", test_libvirtd_refuses_tried_again },
		{ "libvirtd dies and comes back", test_libvirtd_dies_comes_back },
		{ "a VMM hangs, others go on", test_vmm_hangs_others_go_on },
		{ "a setting hangs, its domain is set aside", test_setting_hangs_domain_set_aside },
		{ "many VMMs hang, threads are bounded", test_many_vmms_hang_threads_bounded },
		{ "free ends while libvirtd hangs", test_free_while_libvirtd_hangs_ends },
		CU_TEST_INFO_NULL,
	};

	return unit_main("port_libvirt", tests);
}
