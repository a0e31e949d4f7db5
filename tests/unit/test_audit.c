/* The audit's judgement on made-up hosts: injected violations are found, each one, and nothing else. */
#include "ept/audit.h"

#include "tests/unit/unit.h"

#define KSM_FRAME 1000u
#define ZERO_FRAME 2000u
#define HUGE_FRAME (UINT64_C(1) << 39)

static unsigned asked;

static unsigned frame_is(void *userdata, uint64_t frame)
{
	(void)userdata;
	asked++;
	return frame == KSM_FRAME ? AUDIT_FRAME_KSM : frame == ZERO_FRAME ? AUDIT_FRAME_ZERO : 0;
}

static struct audit *start(void)
{
	struct audit *a;

	asked = 0;
	unit_must(audit_new(frame_is, NULL, &a) == 0, "audit");
	return a;
}

static void test_two_vms_and_one_frame_are_judged(void)
{
	static const struct {
		const char *what;
		const char *domains[2];
		uint64_t frame;
		enum audit_page kinds[2];
		int why; /* -1: clean */
	} cases[] = {
		{ "anonymous", { "x", "x" }, 7, { AUDIT_ANON, AUDIT_ANON }, AUDIT_SHARED },
		{ "anonymous, far up", { "x", "y" }, HUGE_FRAME, { AUDIT_ANON, AUDIT_ANON }, AUDIT_SHARED },
		{ "a file's", { "x", "x" }, 7, { AUDIT_FILE, AUDIT_FILE }, AUDIT_SHARED },
		{ "store and anonymous", { "x", "x" }, 7, { AUDIT_STORE, AUDIT_ANON }, AUDIT_SHARED },
		{ "anonymous and store", { "x", "x" }, 7, { AUDIT_ANON, AUDIT_STORE }, AUDIT_SHARED },
		{ "store, one domain", { "x", "x" }, 7, { AUDIT_STORE, AUDIT_STORE }, -1 },
		{ "store, two domains", { "x", "y" }, 7, { AUDIT_STORE, AUDIT_STORE }, AUDIT_OTHER_DOMAIN },
		{ "ksm, one domain", { "x", "x" }, KSM_FRAME, { AUDIT_ANON, AUDIT_ANON }, -1 },
		{ "ksm, two domains", { "x", "y" }, KSM_FRAME, { AUDIT_ANON, AUDIT_ANON }, AUDIT_OTHER_DOMAIN },
		{ "zero page, two domains", { "x", "y" }, ZERO_FRAME, { AUDIT_ANON, AUDIT_ANON }, -1 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct audit *a = start();
		const struct audit_finding *f;
		uint32_t first[2];
		uint64_t page;
		size_t n;

		CU_ASSERT_EQUAL(audit_vm(a, cases[i].domains[0], 100, &first[0]), 0);
		CU_ASSERT_EQUAL(audit_page(a, first[0] + 5, cases[i].frame, cases[i].kinds[0]), 0);
		CU_ASSERT_EQUAL(audit_vm(a, cases[i].domains[1], 100, &first[1]), 0);
		CU_ASSERT_EQUAL(audit_page(a, first[1] + 9, cases[i].frame, cases[i].kinds[1]), 0);
		f = audit_findings(a, &n);
		UNIT_CASE(cases[i].what, n == (cases[i].why >= 0));
		if (n == 1) {
			UNIT_CASE(cases[i].what, (int)f->why == cases[i].why && f->frame == cases[i].frame);
			UNIT_CASE(cases[i].what, audit_vm_of(a, f->page, &page) == 1 && page == 9);
			UNIT_CASE(cases[i].what, audit_vm_of(a, f->other, &page) == 0 && page == 5);
		}
		UNIT_CASE(cases[i].what, audit_counts(a)->pages == 2 && audit_counts(a)->frames == 1);
		audit_free(a);
	}
}

static void test_one_vm_may_map_a_frame_twice(void)
{
	struct audit *a = start();
	uint32_t first;
	size_t n;

	CU_ASSERT_EQUAL(audit_vm(a, "x", 10, &first), 0);
	CU_ASSERT_EQUAL(audit_page(a, first, 7, AUDIT_ANON), 0);
	CU_ASSERT_EQUAL(audit_page(a, first + 1, 7, AUDIT_ANON), 0);
	audit_findings(a, &n);
	CU_ASSERT_EQUAL(n, 0);
	CU_ASSERT_EQUAL(audit_counts(a)->within, 1);
	CU_ASSERT_EQUAL(asked, 0);
	audit_free(a);
}

static void test_a_store_of_two_domains_is_found(void)
{
	struct audit *a = start();
	const struct audit_finding *f;
	uint32_t first;
	size_t n;

	for (unsigned i = 0; i < 3; i++) {
		CU_ASSERT_EQUAL(audit_vm(a, i < 2 ? "x" : "y", 10, &first), 0);
		CU_ASSERT_EQUAL(audit_store(a, 4711, first + 3), 0);
		CU_ASSERT_EQUAL(audit_store(a, 4712 + i, first + 3), 0);
	}
	f = audit_findings(a, &n);
	CU_ASSERT_EQUAL_FATAL(n, 1);
	CU_ASSERT(f->why == AUDIT_STORE_TWICE && f->page == 23 && f->other == 3);
	audit_free(a);
}

static void test_too_many_pages_are_refused(void)
{
	struct audit *a = start();
	uint32_t first;

	CU_ASSERT_EQUAL(audit_vm(a, "x", AUDIT_PAGES_MAX - 1, &first), 0);
	CU_ASSERT_EQUAL(audit_vm(a, "y", 2, &first), -E2BIG);
	CU_ASSERT_EQUAL(audit_vm(a, "y", UINT64_MAX, &first), -E2BIG);
	CU_ASSERT_EQUAL(audit_vm(a, "y", 1, &first), 0);
	CU_ASSERT_EQUAL(first, AUDIT_PAGES_MAX - 1);
	audit_free(a);
}

static void test_endless_findings_are_counted(void)
{
	struct audit *a = start();
	uint32_t first;
	size_t n;

	CU_ASSERT_EQUAL(audit_vm(a, "x", 100, &first), 0);
	for (unsigned i = 0; i < AUDIT_FINDINGS_MAX + 5; i++)
		CU_ASSERT_EQUAL(audit_add(a, AUDIT_BACKING, first, 7), 0);
	audit_findings(a, &n);
	CU_ASSERT_EQUAL(n, AUDIT_FINDINGS_MAX);
	CU_ASSERT_EQUAL(audit_counts(a)->more, 5);
	audit_free(a);
}

/* Many VMs that share rightly, and some frames injected into another VM: exactly these are found. */
static void test_random_hosts_give_what_was_injected(void)
{
	enum { VMS = 12, PAGES = 4000, DOMAINS = 3, INJECTED = 40 };

	for (uint64_t seed = 1; seed <= 20; seed++) {
		static const char *const domains[DOMAINS] = { "a", "b", "c" };
		struct audit *a = start();
		const struct audit_finding *f;
		uint64_t random = seed, next = 10000, owned[VMS * PAGES];
		size_t owned_count = 0, injected = 0, n;

		for (size_t vm = 0; vm < VMS; vm++) {
			uint32_t first;

			unit_must(audit_vm(a, domains[vm % DOMAINS], PAGES, &first) == 0, "vm");
			for (uint32_t page = 0; page < PAGES; page++) {
				uint64_t choice = unit_random(&random) % 1000;

				if (choice < 300) { /* a store of the domain's */
					audit_page(a, first + page, 1000000 * (1 + vm % DOMAINS) + choice, AUDIT_STORE);
				} else if (choice < 400) {
					audit_page(a, first + page, ZERO_FRAME, AUDIT_ANON);
				} else if (choice < 402 && vm > 0 && injected < INJECTED && owned_count > PAGES) {
					audit_page(a, first + page, owned[unit_random(&random) % (PAGES / 4)], AUDIT_ANON);
					injected++; /* of the first VM */
				} else if (choice < 900) {
					owned[owned_count++] = next;
					audit_page(a, first + page, next++, AUDIT_ANON);
				}
			}
		}
		f = audit_findings(a, &n);
		CU_ASSERT(injected > 10);
		CU_ASSERT_EQUAL(n, injected);
		for (size_t i = 0; i < n; i++) {
			uint64_t page;

			CU_ASSERT_EQUAL(f[i].why, AUDIT_SHARED);
			CU_ASSERT_EQUAL(audit_vm_of(a, f[i].other, &page), 0);
			CU_ASSERT(audit_vm_of(a, f[i].page, &page) > 0);
		}
		audit_free(a);
	}
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "two_vms_and_one_frame_are_judged", test_two_vms_and_one_frame_are_judged },
		{ "one_vm_may_map_a_frame_twice", test_one_vm_may_map_a_frame_twice },
		{ "a_store_of_two_domains_is_found", test_a_store_of_two_domains_is_found },
		{ "too_many_pages_are_refused", test_too_many_pages_are_refused },
		{ "endless_findings_are_counted", test_endless_findings_are_counted },
		{ "random_hosts_give_what_was_injected", test_random_hosts_give_what_was_injected },
		CU_TEST_INFO_NULL,
	};

	return unit_main("audit", tests);
}
