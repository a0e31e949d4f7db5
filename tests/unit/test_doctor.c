/* balloon/doctor: for every lack its finding, with the fix for the way the VM was started. */
#include "balloon/doctor.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB UINT64_C(1048576)
#define GIB (MIB * 1024)

struct patient {
	struct vm_snapshot vm;
	struct balloon_told told;
	struct mem_region region;
	struct doctor_facts facts;
};

static void healthy(struct patient *p)
{
	memset(p, 0, sizeof(*p));
	p->region = (struct mem_region){ 0, 4 * GIB, MEM_ANON };
	p->vm = (struct vm_snapshot){ .running = true, .balloon_allowed = true, .shares = 1000, .found_ns = NSEC_PER_SEC,
				      .ram_bytes = 4 * GIB, .regions = &p->region, .region_count = 1 };
	p->vm.balloon = (struct vm_balloon){ .driver = "qmp", .why = "", .device = BALLOON_DEVICE_PRESENT,
					     .max_bytes = 4 * GIB, .actual_bytes = 4 * GIB, .stats = GUEST_STATS_GOOD };
	p->told = (struct balloon_told){ .device = BALLOON_DEVICE_PRESENT, .options_known = true, .reporting = true,
					 .deflate_on_oom = true, .period_s = 2, .stats_told_ns = 5 };
	p->facts = (struct doctor_facts){ .vm = &p->vm, .told = &p->told, .has_monitor = true, .asks = true,
					  .taken_ns = 100 * NSEC_PER_SEC, .host_bytes = 16 * GIB };
}

static void is_libvirt(struct patient *p) { p->facts.libvirt = true; p->vm.balloon.driver = "libvirt"; }
static void nothing(struct patient *p) { (void)p; }
static void off(struct patient *p) { p->vm.balloon_allowed = false; p->vm.mem_lock = true; }
static void no_driver(struct patient *p) { p->vm.balloon.driver = NULL; p->vm.balloon.why = "the reason"; p->facts.told = NULL; }
static void no_monitor(struct patient *p) { no_driver(p); p->facts.has_monitor = false; }
static void no_libvirt(struct patient *p) { no_driver(p); p->facts.libvirt = true; }
static void no_device(struct patient *p) { p->vm.balloon.device = BALLOON_DEVICE_ABSENT; }
static void device_unknown(struct patient *p) { p->vm.balloon.device = BALLOON_DEVICE_UNKNOWN; }
static void no_answer(struct patient *p) { p->vm.balloon.stats = GUEST_STATS_NONE; }
static void no_answer_yet(struct patient *p) { no_answer(p); p->vm.found_ns = 95 * NSEC_PER_SEC; }
static void not_asked(struct patient *p) { no_answer(p); p->told.period_s = 0; }
static void no_daemon(struct patient *p) { not_asked(p); p->facts.asks = false; }
static void paused(struct patient *p) { no_answer(p); p->vm.running = false; }
static void stale(struct patient *p) { p->vm.balloon.stats = GUEST_STATS_STALE; }
static void paused_stale(struct patient *p) { stale(p); p->vm.running = false; }
static void absurd(struct patient *p) { p->vm.balloon.stats = GUEST_STATS_ABSURD; p->vm.balloon.why = "more is free than there is"; }
static void no_reporting(struct patient *p) { p->told.reporting = false; }
static void no_deflate(struct patient *p) { p->told.deflate_on_oom = false; }
static void options_unknown(struct patient *p) { no_reporting(p); no_deflate(p); p->told.options_known = false; }
static void locked(struct patient *p) { p->vm.mem_lock = true; }
static void hugetlb(struct patient *p) { p->region.backing = MEM_HUGETLB; }
static void stalled(struct patient *p) { p->facts.block = BLOCK_STALLED; }
static void no_effect(struct patient *p) { p->facts.block = BLOCK_NO_EFFECT; }
static void limit_low(struct patient *p) { p->vm.reservation_bytes = 3 * GIB; p->vm.limit_bytes = 2 * GIB; }
static void reserves_more(struct patient *p) { p->vm.reservation_bytes = 5 * GIB; }
static void reserves_all(struct patient *p) { p->vm.reservation_bytes = 4 * GIB; }
static void reserves_host(struct patient *p) { p->vm.reservation_bytes = 17 * GIB; }
static void all_at_once(struct patient *p) { no_reporting(p); locked(p); reserves_all(p); }

#define N DOCTOR_NOTE
#define W DOCTOR_WARNING
#define E DOCTOR_ERROR
#define NAMED(change) #change, change
#define NONE { 0, NULL, NULL, NULL }

static const struct {
	const char *what;
	void (*change)(struct patient *p);
	struct want {
		enum doctor_severity severity;
		const char *what, *qemu, *libvirt; /* in the finding, and in its fix */
	} want[3];
} cases[] = {
	{ NAMED(nothing), { NONE } },
	{ NAMED(off), { { N, "off by configuration", "", "" }, NONE } },
	{ NAMED(no_driver), { { E, "its QMP socket is not reached: the reason", "a second -qmp unix:", NULL }, NONE } },
	{ NAMED(no_monitor), { { E, "it has no QMP socket", "-qmp unix:/run/NAME.qmp,server=on,wait=off", NULL }, NONE } },
	{ NAMED(no_libvirt), { { E, "libvirt is not reached: the reason", NULL, "[vmm] libvirt = qemu:///system" }, NONE } },
	{ NAMED(no_device),
	  { { E, "no balloon device", "-device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on",
	      "<memballoon model='virtio' autodeflate='on' freePageReporting='on'><stats period='5'/></memballoon>" },
	    NONE } },
	{ NAMED(device_unknown), { { N, "not known yet", "", "" }, NONE } },
	{ NAMED(no_answer), { { E, "no balloon driver in the guest", "modprobe virtio_balloon", "modprobe virtio_balloon" }, NONE } },
	{ NAMED(no_answer_yet), { { N, "found just now", "ask again", "ask again" }, NONE } },
	{ NAMED(not_asked), { { E, "", "modprobe", "<stats period='5'/>" }, NONE } },
	{ NAMED(no_daemon), { { N, "no daemon runs", "start memvirtd", "start memvirtd" }, NONE } },
	{ NAMED(paused), { { N, "paused", "", "" }, NONE } },
	{ NAMED(stale), { { E, "does not answer any more", "look at the guest", "look at the guest" }, NONE } },
	{ NAMED(paused_stale), { NONE } },
	{ NAMED(absurd), { { E, "more is free than there is", "update", "update" }, NONE } },
	{ NAMED(no_reporting), { { W, "free page reporting is off", "free-page-reporting=on", "freePageReporting='on'" }, NONE } },
	{ NAMED(no_deflate), { { W, "deflate-on-oom is off", "deflate-on-oom=on", "autodeflate='on'" }, NONE } },
	{ NAMED(options_unknown), { NONE } },
	{ NAMED(locked), { { E, "its memory is locked", "-overcommit mem-lock=off", "remove <locked/>" }, NONE } },
	{ NAMED(hugetlb), { { W, "huge page pool", "hugetlb", "remove <hugepages/>" }, NONE } },
	{ NAMED(stalled), { { W, "its balloon does not move", "look at the guest", "look at the guest" }, NONE } },
	{ NAMED(no_effect), { { E, "did not come back to the host", "VFIO", "VFIO" }, NONE } },
	{ NAMED(limit_low), { { E, "reservation of 3072 MiB above its limit of 2048 MiB", "limit = 0", "limit = 0" }, NONE } },
	{ NAMED(reserves_more), { { W, "reservation of 5120 MiB above its size of 4096 MiB", "reservation", "reservation" }, NONE } },
	{ NAMED(reserves_all), { { N, "all of its memory is reserved", "", "" }, NONE } },
	{ NAMED(reserves_host),
	  { { E, "reservation of 17408 MiB above the host's 16384 MiB", "less than the host's", "less than the host's" },
	    { W, "above its size", "", "" },
	    NONE } },
	{ NAMED(all_at_once),
	  { { E, "locked", "mem-lock", "<locked/>" },
	    { W, "free page reporting", "free-page", "freePage" },
	    { N, "reserved", "", "" } } },
};

static void check(const char *what, const struct patient *p, const struct want *want, bool libvirt)
{
	struct doctor_finding found[DOCTOR_FINDINGS_MAX];
	size_t count = balloon_doctor(&p->facts, found), wanted = 0;

	while (wanted < 3 && want[wanted].what)
		wanted++;
	UNIT_CASE(what, count == wanted);
	for (size_t i = 0; i < wanted && i < count; i++) {
		const char *fix = libvirt ? want[i].libvirt : want[i].qemu;

		UNIT_CASE(what, found[i].severity == want[i].severity);
		UNIT_CASE(what, strstr(found[i].what, want[i].what));
		UNIT_CASE(what, fix && strstr(found[i].fix, fix));
		/* What counts is said with its reason and what to do. */
		UNIT_CASE(what, found[i].severity == DOCTOR_NOTE || (*found[i].why && *found[i].fix));
	}
}

/* NULL as a fix: the case is not one of that way. */
static void test_doctor_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct want *first = &cases[i].want[0];
		struct patient p;

		healthy(&p);
		cases[i].change(&p);
		if (!first->what || first->qemu)
			check(cases[i].what, &p, first, false);
		healthy(&p);
		is_libvirt(&p);
		cases[i].change(&p);
		if (!first->what || first->libvirt)
			check(cases[i].what, &p, first, true);
	}
}

/* Everything that can be wrong at once fits, the worst first. */
static void test_doctor_worst_comes_first(void)
{
	struct doctor_finding found[DOCTOR_FINDINGS_MAX];
	struct patient p;
	size_t count;

	healthy(&p);
	absurd(&p);
	no_reporting(&p);
	no_deflate(&p);
	no_effect(&p);
	locked(&p);
	hugetlb(&p);
	reserves_host(&p);
	count = balloon_doctor(&p.facts, found);
	CU_ASSERT_EQUAL(count, 8);
	for (size_t i = 1; i < count; i++)
		CU_ASSERT_TRUE(found[i - 1].severity >= found[i].severity);
	CU_ASSERT_STRING_EQUAL(doctor_severity_name(found[0].severity), "error");
	CU_ASSERT_STRING_EQUAL(doctor_severity_name(found[count - 1].severity), "warning");
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "table", test_doctor_table_gives_expected },
		{ "worst_first", test_doctor_worst_comes_first },
		CU_TEST_INFO_NULL,
	};

	return unit_main("doctor", tests);
}
