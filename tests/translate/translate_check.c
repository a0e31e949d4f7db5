/* translate-check SOCKET PID ADDRESSES SEED MODE [CPUS] - compares ept/translate with QEMU on a live guest, address by
 * address.
 *
 * SOCKET is a QMP monitor of its own. The guest is stopped while a few hundred addresses are compared, runs on, and is
 * stopped again, until ADDRESSES were compared and user memory was among them (in Linux guests: 4-level and 5-level).
 * MODE is what the guest's paging has to be. Of each address: gva2gpa, gpa2hva, gpa2hpa, and the byte by x, xp and the
 * frame's mapping. Prints a line of figures; exit 0 if nothing differed. */
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "core/log.h"
#include "ept/cpu_ask.h"
#include "ept/translate.h"
#include "tests/unit/unit.h"
#include "vmm/registry.h"

#define PER_STOP 400u
#define SAMPLE 256u	   /* mapped pages that are drawn of each kind, per stop */
#define TABLES_MAX 2000000u /* of a guest; a walk through them that takes longer goes in circles */
#define STOPS_MAX 400u
#define ANSWER_MS 60000
#define RUN_MS 50 /* between two stops */

struct leaf {
	uint64_t gva, bytes;
};

static struct {
	sd_event *loop;
	struct qmp *qmp;
	struct vm vm;
	struct fsio fs;
	struct ept_view *view;
	struct ept_target *target;
	bool ready, over;
	char *answer;
	bool answered;
	struct walk_regs regs;
	uint64_t state;
	uint64_t compared, mapped, user, faults, outside, absent, huge, bytes, bad;
	uint64_t sizes; /* of guest pages, ored */
	struct leaf kernel[SAMPLE], user_leaves[SAMPLE];
	uint64_t kernel_seen, user_seen, tables;
} c;

/* ---- QEMU ---- */

static void on_ready(struct qmp *q, void *userdata)
{
	(void)q;
	(void)userdata;
	c.ready = true;
}

static void on_event(struct qmp *q, const char *name, const json_t *data, void *userdata)
{
	(void)q;
	(void)name;
	(void)data;
	(void)userdata;
}

static void on_ended(struct qmp *q, enum qmp_end end, const char *why, void *userdata)
{
	(void)q;
	(void)end;
	(void)userdata;
	fprintf(stderr, "QMP ended: %s\n", why);
	exit(2);
}

static const struct qmp_ops ops = { .ready = on_ready, .event = on_event, .ended = on_ended };

static void on_answer(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	(void)q;
	(void)userdata;
	free(c.answer);
	c.answer = strdup(result < 0 ? error : json_is_string(reply) ? json_string_value(reply) : "");
	c.answered = true;
}

static void run_until(const bool *flag)
{
	while (!*flag)
		unit_must(sd_event_run(c.loop, UINT64_MAX) >= 0, "loop");
}

static void command(const char *name, json_t *arguments)
{
	c.answered = false;
	unit_must(qmp_command(c.qmp, name, arguments, on_answer, NULL) == 0, name);
	run_until(&c.answered);
}

/* The answer to a line of the monitor, good until the next one. */
__attribute__((format(printf, 2, 3))) static const char *monitor(unsigned cpu, const char *fmt, ...)
{
	char line[128];
	va_list args;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	command("human-monitor-command", json_pack("{s:s, s:i}", "command-line", line, "cpu-index", (int)cpu));
	return c.answer;
}

static void on_cpu(int result, const struct walk_regs *regs, const char *why, void *userdata)
{
	bool *done = userdata;

	if (result < 0) {
		fprintf(stderr, "registers: %s\n", why);
		exit(2);
	}
	c.regs = *regs;
	*done = true;
}

static void registers_ask(unsigned cpu)
{
	struct cpu_ask *ask;
	bool done = false;

	unit_must(cpu_ask_start(c.qmp, cpu, true, on_cpu, &done, &ask) == 0, "cpu_ask_start");
	run_until(&done);
}

/* ---- addresses ---- */

/* Each of all that were seen has the same chance to be kept. */
static void leaf_take(struct leaf *sample, uint64_t *seen, uint64_t gva, uint64_t bytes)
{
	uint64_t place = *seen < SAMPLE ? *seen : unit_random(&c.state) % (*seen + 1);

	if (place < SAMPLE)
		sample[place] = (struct leaf){ gva, bytes };
	++*seen;
}

/* Looks through whole tables, in another way than a walk does. */
static void table_look(enum walk_mode mode, unsigned level, uint64_t table, uint64_t gva, bool user)
{
	unsigned count = walk_entry_count(mode, level), size = walk_entry_bytes(mode), bits = walk_address_bits(mode);
	uint8_t raw[PAGE_BYTES];

	if (++c.tables > TABLES_MAX || ept_target_read(c.target, table, raw, (size_t)count * size) < 0)
		return;
	for (unsigned i = 0; i < count; i++) {
		uint64_t entry = 0, next, at = gva + i * walk_level_bytes(mode, level);
		enum walk_entry_kind kind;
		bool user_here = user;

		memcpy(&entry, raw + (size_t)i * size, size);
		if (bits > 32 && at >> (bits - 1) & 1)
			at |= ~UINT64_C(0) << (bits - 1);
		kind = walk_entry(&c.regs, mode, level, entry, &next);
		if (!(mode == WALK_PAE && level == 3))
			user_here &= (entry & WALK_USER) != 0;
		if (kind == WALK_ENTRY_TABLE)
			table_look(mode, level - 1, next, at, user_here);
		else if (kind == WALK_ENTRY_PAGE)
			leaf_take(user_here ? c.user_leaves : c.kernel, user_here ? &c.user_seen : &c.kernel_seen, at,
				  walk_level_bytes(mode, level));
	}
}

static uint64_t random_gva(enum walk_mode mode)
{
	unsigned bits = walk_address_bits(mode), kind = (unsigned)(unit_random(&c.state) % 16);
	uint64_t random = unit_random(&c.state), seen = kind < 6 ? c.user_seen : c.kernel_seen;
	const struct leaf *leaf = (kind < 6 ? c.user_leaves : c.kernel);

	if (kind < 12 && seen > 0) {
		leaf += random % (seen < SAMPLE ? seen : SAMPLE);
		random = unit_random(&c.state);
		return leaf->gva + random % leaf->bytes;
	}
	if (kind == 12 && seen > 0) { /* beside one that is mapped */
		leaf += random % (seen < SAMPLE ? seen : SAMPLE);
		random = leaf->gva + leaf->bytes * (random >> 32 & 1 ? 1 : (uint64_t)-1);
		return bits == 32 ? (uint32_t)random : random;
	}
	if (kind == 13 && bits > 32) /* seldom an address at all */
		return random;
	random >>= 64 - bits;
	return bits > 32 && random >> (bits - 1) ? random | ~UINT64_C(0) << bits : random;
}

/* ---- comparing ---- */

__attribute__((format(printf, 2, 3))) static void differs(uint64_t gva, const char *fmt, ...)
{
	va_list args;

	if (c.bad++ >= 10)
		return;
	va_start(args, fmt);
	printf("BAD gva 0x%" PRIx64 ": ", gva);
	vprintf(fmt, args);
	va_end(args);
	printf("; QEMU: %s\n", c.answer);
}

/* The number behind the last "0x" of an answer. */
static bool number_in(const char *answer, const char *before, uint64_t *value)
{
	const char *p = strstr(answer, before);

	return p && sscanf(p + strlen(before), "0x%" SCNx64, value) == 1;
}

static bool byte_in(const char *answer, unsigned *byte)
{
	const char *p = strstr(answer, ": 0x");

	return p && sscanf(p + 4, "%x", byte) == 1;
}

static void byte_compare(unsigned cpu, const struct translation *t)
{
	unsigned by_gva = 0, by_gpa = 0;
	uint8_t ours;

	if (!byte_in(monitor(cpu, "x /1xb 0x%" PRIx64, t->gva), &by_gva))
		differs(t->gva, "x says no byte");
	if (!byte_in(monitor(cpu, "xp /1xb 0x%" PRIx64, t->page.gpa), &by_gpa))
		differs(t->gva, "xp says no byte");
	if (pread(c.target->mem_fd, &ours, 1, (off_t)t->page.hva) != 1 || ours != by_gva || ours != by_gpa)
		differs(t->gva, "byte 0x%02x, 0x%02x by x", ours, by_gva);
	c.bytes++;
}

static void frame_compare(unsigned cpu, const struct translation *t)
{
	struct frame f = t->page.frame;
	uint64_t value;

	if (!number_in(monitor(cpu, "gpa2hva 0x%" PRIx64, t->page.gpa), ") is ", &value) || value != t->page.hva)
		differs(t->gva, "gpa 0x%" PRIx64 " at hva 0x%" PRIx64, t->page.gpa, t->page.hva);
	monitor(cpu, "gpa2hpa 0x%" PRIx64, t->page.gpa);
	/* For its answer QEMU writes to the page: what was absent, or the zero page, has a frame of its own now. */
	if (f.state != FRAME_PRESENT || f.kind != FRAME_OWN) {
		c.absent++;
		if (frame_look(c.target, t->page.hva, &f) < 0 || f.state != FRAME_PRESENT || f.kind != FRAME_OWN)
			differs(t->gva, "written, but %s, %s", frame_state_name(f.state), frame_kind_name(f.kind));
	}
	if (!number_in(c.answer, ") is ", &value) || value != f.hpa)
		differs(t->gva, "hpa 0x%" PRIx64, f.hpa);
	c.huge += f.page_bytes > PAGE_BYTES;
	byte_compare(cpu, t);
}

static void compare(unsigned cpu, uint64_t gva)
{
	struct translation t;
	uint64_t gpa = 0;
	bool mapped;
	int r = translate_gva(c.target, &c.regs, gva, &t);

	monitor(cpu, "gva2gpa 0x%" PRIx64, gva);
	c.compared++;
	mapped = number_in(c.answer, "gpa: ", &gpa);
	if (r != 0 && r != -EFAULT) {
		differs(gva, "%s", strerror(-r));
	} else if (t.walk.fault != WALK_MAPPED) {
		c.faults++;
		if (mapped || t.walk.fault > WALK_NOT_PRESENT)
			differs(gva, "level %u: %s 0x%" PRIx64, t.walk.fault_level, walk_fault_name(t.walk.fault),
				t.walk.reserved);
	} else if (!mapped || gpa != t.walk.gpa) {
		differs(gva, "gpa 0x%" PRIx64, t.walk.gpa);
	} else {
		c.mapped++;
		c.user += t.walk.user;
		c.sizes |= t.walk.page_bytes;
		if (r == 0)
			frame_compare(cpu, &t);
		else
			c.outside++;
	}
}

/* ---- stops ---- */

static void compare_stopped(unsigned cpu, enum walk_mode want)
{
	enum walk_mode mode = WALK_FLAT;

	registers_ask(cpu);
	if (walk_mode_of(&c.regs, &mode) < 0 || mode != want) {
		fprintf(stderr, "paging is %s, not %s\n", walk_mode_name(mode), walk_mode_name(want));
		exit(2);
	}
	c.kernel_seen = c.user_seen = c.tables = 0;
	table_look(mode, walk_levels(mode), walk_root(&c.regs, mode), 0, true);
	for (unsigned i = 0; i < PER_STOP; i++)
		compare(cpu, random_gva(mode));
}

static void guest_open(const char *socket_path, pid_t pid)
{
	c.vm.pid = pid;
	c.vm.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	unit_must(c.vm.pidfd >= 0 && fsio_open_root("/", false, &c.fs) == 0, "process");
	unit_must(sd_event_new(&c.loop) >= 0 &&
			  qmp_connect(c.loop, socket_path, ANSWER_MS, &ops, NULL, &c.qmp) == 0,
		  socket_path);
	run_until(&c.ready);
	c.vm.qmp = c.qmp;
	unit_must(ept_view_new(&c.fs, &c.vm, &c.view) == 0, "view");
	ept_view_refresh(c.view);
	while (c.view->asked_of)
		unit_must(sd_event_run(c.loop, UINT64_MAX) >= 0, "loop");
	errno = 0;
	unit_must(c.view->source == EPT_FROM_QMP && ept_target_new(c.view, &c.target) == 0, c.view->why);
}

static void guest_close(void)
{
	ept_target_free(c.target);
	ept_view_free(c.view);
	qmp_free(c.qmp);
	sd_event_unref(c.loop);
	fsio_close(&c.fs);
	close(c.vm.pidfd);
	free(c.answer);
}

int main(int argc, char **argv)
{
	uint64_t want, cpus;
	enum walk_mode mode = WALK_32;
	bool has_user;

	if (argc < 6) {
		fprintf(stderr, "usage: translate-check SOCKET PID ADDRESSES SEED MODE [CPUS]\n");
		return 2;
	}
	while (mode < WALK_5LEVEL && strcmp(walk_mode_name(mode), argv[5]) != 0)
		mode++;
	log_set_level(LOG_LEVEL_WARNING);
	want = strtoull(argv[3], NULL, 10);
	c.state = strtoull(argv[4], NULL, 10);
	cpus = argc > 6 ? strtoull(argv[6], NULL, 10) : 1;
	has_user = mode >= WALK_4LEVEL;
	guest_open(argv[1], (pid_t)strtol(argv[2], NULL, 10));
	for (unsigned stop = 0; stop < STOPS_MAX && (c.compared < want || (has_user && c.user < want / 8)); stop++) {
		command("stop", NULL);
		compare_stopped((unsigned)(stop % cpus), mode);
		command("cont", NULL);
		poll(NULL, 0, RUN_MS);
	}
	printf("%s: compared %lu, mapped %lu, of user memory %lu, not mapped %lu, outside of RAM %lu; bytes %lu, without a "
	       "frame of their own before %lu, in huge pages %lu; guest page sizes 0x%lx; bad %lu\n",
	       walk_mode_name(mode), c.compared, c.mapped, c.user, c.faults, c.outside, c.bytes, c.absent, c.huge, c.sizes,
	       c.bad);
	guest_close();
	if (c.compared < want || c.mapped < want / 4 || c.faults < want / 32 || (has_user && c.user < want / 8)) {
		fprintf(stderr, "too few of some kind to prove anything\n");
		return 1;
	}
	return c.bad ? 1 : 0;
}
