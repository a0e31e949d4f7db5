#include "ept/cpu_ask.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/text.h"
#include "ept/registers.h"

/* The widest that x86-64 allows, and what every processor with PAE has at least. */
#define PHYS_BITS_MAX 52
#define PHYS_BITS_MIN 32

struct cpu_ask {
	unsigned cpu;
	bool low_ram;
	cpu_answer_fn answer;
	void *userdata;
	struct walk_regs regs;
	char *qom_path;
	size_t step;
};

/* Asked one after the other. What an older QEMU does not know of its CPU model stays the most that is possible. */
static const char *const properties[] = { "phys-bits", "pse36", "pdpe1gb" };

struct cpu_ask *cpu_ask_free(struct cpu_ask *a)
{
	if (a)
		free(a->qom_path);
	free(a);
	return NULL;
}

__attribute__((format(printf, 3, 4))) static void ask_ends(struct cpu_ask *a, int result, const char *fmt, ...)
{
	char raw[512], why[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(raw, sizeof(raw), fmt, args);
	va_end(args);
	text_copy(why, sizeof(why), raw, strlen(raw)); /* it may quote the VMM */
	a->answer(result, result == 0 ? &a->regs : NULL, why, a->userdata);
	cpu_ask_free(a);
}

/* The reason for a lost connection names the command itself. */
static void ask_refused(struct cpu_ask *a, int result, const char *command, const char *error)
{
	if (result == -ECONNRESET)
		ask_ends(a, result, "QMP: %s", error ? error : strerror(-result));
	else
		ask_ends(a, result, "QMP refuses %s: %s", command, error ? error : strerror(-result));
}

static void on_registers(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct cpu_ask *a = userdata;
	const char *text = json_string_value(reply);
	bool cut;

	(void)q;
	if (result < 0)
		ask_refused(a, result, "info registers", error);
	else if (!text || registers_parse(text, &a->regs, &cut) < 0)
		ask_ends(a, -EBADMSG, "info registers: not understood; is it an x86 machine?");
	else if (cut && !a->low_ram)
		ask_ends(a, -ENODATA, "CPU %u runs 32-bit code at the moment, of which QEMU shows half of CR3; ask again",
			 a->cpu);
	else
		ask_ends(a, 0, "%s", "");
}

static int ask_registers(struct cpu_ask *a, struct qmp *q)
{
	return qmp_command(q, "human-monitor-command",
			   json_pack("{s:s, s:i}", "command-line", "info registers", "cpu-index", (int)a->cpu),
			   on_registers, a);
}

static int ask_property(struct cpu_ask *a, struct qmp *q);

static void property_take(struct cpu_ask *a, const json_t *value)
{
	json_int_t phys_bits = json_integer_value(value);

	if (a->step == 0 && phys_bits >= PHYS_BITS_MIN && phys_bits <= PHYS_BITS_MAX)
		a->regs.phys_bits = (unsigned)phys_bits;
	else if (a->step == 1 && json_is_boolean(value))
		a->regs.pse36 = json_is_true(value);
	else if (a->step == 2 && json_is_boolean(value))
		a->regs.gib_pages = json_is_true(value);
}

static void on_property(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct cpu_ask *a = userdata;
	int r;

	if (result == -ECONNRESET) {
		ask_refused(a, result, "qom-get", error);
		return;
	}
	property_take(a, reply);
	a->step++;
	r = a->step < ARRAY_SIZE(properties) ? ask_property(a, q) : ask_registers(a, q);
	if (r < 0)
		ask_ends(a, r, "QMP: %s", strerror(-r));
}

static int ask_property(struct cpu_ask *a, struct qmp *q)
{
	return qmp_command(q, "qom-get", json_pack("{s:s, s:s}", "path", a->qom_path, "property", properties[a->step]),
			   on_property, a);
}

/* NULL: there is none with this index. */
static const char *cpu_path(const json_t *cpus, unsigned index)
{
	const json_t *cpu;
	size_t i;

	json_array_foreach(cpus, i, cpu) {
		const char *path = json_string_value(json_object_get(cpu, "qom-path"));

		if (path && json_integer_value(json_object_get(cpu, "cpu-index")) == (json_int_t)index)
			return path;
	}
	return NULL;
}

static void on_cpus(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct cpu_ask *a = userdata;
	const char *path = result < 0 ? NULL : cpu_path(reply, a->cpu);
	int r;

	if (result < 0) {
		ask_refused(a, result, "query-cpus-fast", error);
		return;
	}
	if (!path) {
		ask_ends(a, -ENOENT, "there is no CPU %u; the VM has %zu, counted from 0", a->cpu, json_array_size(reply));
		return;
	}
	a->qom_path = strdup(path);
	r = a->qom_path ? ask_property(a, q) : -ENOMEM;
	if (r < 0)
		ask_ends(a, r, "QMP: %s", strerror(-r));
}

int cpu_ask_start(struct qmp *q, unsigned cpu, bool low_ram, cpu_answer_fn answer, void *userdata,
		  struct cpu_ask **ret_ask)
{
	struct cpu_ask *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->cpu = cpu;
	a->low_ram = low_ram;
	a->answer = answer;
	a->userdata = userdata;
	a->regs = (struct walk_regs){ .phys_bits = PHYS_BITS_MAX, .pse36 = true, .gib_pages = true };
	r = qmp_command(q, "query-cpus-fast", NULL, on_cpus, a);
	if (r < 0) {
		free(a);
		return r;
	}
	*ret_ask = a;
	return 0;
}
