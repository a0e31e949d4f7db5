/* ksmd/engine: which engine a VM gets, and that every reason is named. */
#include "ksmd/engine.h"

#include "tests/unit/unit.h"

static struct mem_region regions[2];
static struct vm_snapshot vm;
static struct engine_facts facts;
static const char *const hazards[] = { "a device is assigned (VFIO)", "a debugger is attached" };

/* A VM that every engine would take. */
static void begin(void)
{
	regions[0] = (struct mem_region){ 4096, 4096, MEM_ANON };
	regions[1] = (struct mem_region){ 12288, 4096, MEM_ANON };
	vm = (struct vm_snapshot){ .regions = regions, .region_count = 2, .merge_allowed = true, .ksm_mergeable = true };
	facts = (struct engine_facts){ .has_agent = true, .ksm_present = true };
}

static bool refused(const struct engine_refusal *refusals, size_t count, enum merge_engine engine, const char *why)
{
	for (size_t i = 0; i < count; i++)
		if (refusals[i].engine == engine && strstr(refusals[i].why, why))
			return true;
	return false;
}

static enum merge_engine chosen(void)
{
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	size_t count;

	return engine_choose(&vm, &facts, refusals, &count);
}

static bool refuses(enum merge_engine engine, const char *why)
{
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	size_t count;

	engine_choose(&vm, &facts, refusals, &count);
	return refused(refusals, count, engine, why);
}

static void test_engine_first_that_nothing_speaks_against(void)
{
	begin();
	CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_REMAP);
	facts.hazards = hazards;
	facts.hazard_count = 2;
	CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_HINTED);
	CU_ASSERT_TRUE(refuses(MERGE_ENGINE_REMAP, "VFIO") && refuses(MERGE_ENGINE_REMAP, "debugger"));
	vm.mem_merge = true;
	CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_KERNEL);
	CU_ASSERT_TRUE(refuses(MERGE_ENGINE_HINTED, "mem-merge=off"));
	vm.ksm_mergeable = false;
	CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_OFF);
	CU_ASSERT_TRUE(refuses(MERGE_ENGINE_KERNEL, "mem-merge=on"));
}

static void test_engine_reasons_against_all(void)
{
	begin();
	vm.merge_allowed = false;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "merge = off"));
	begin();
	vm.region_count = 0;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "not known"));
	begin();
	regions[1].backing = MEM_HUGETLB;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "hugetlb"));
	regions[1].backing = MEM_SHARED;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "shared"));
	regions[1].backing = MEM_FILE;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "file-backed"));
	begin();
	facts.demoted_why = "its merges keep breaking";
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "keep breaking"));
	begin();
	facts.host_engine = MERGE_ENGINE_OFF;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "engine = off"));
}

static void test_engine_reasons_against_remap_only(void)
{
	begin();
	facts.agent_why = "this kernel has no UFFDIO_MOVE";
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_HINTED && refuses(MERGE_ENGINE_REMAP, "UFFDIO_MOVE"));
	begin();
	facts.slot_why = "memory is locked (mlock)";
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_HINTED && refuses(MERGE_ENGINE_REMAP, "mlock"));
	begin();
	vm.mem_lock = true;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_HINTED && refuses(MERGE_ENGINE_REMAP, "mem-lock=on"));
	begin();
	facts.apart = true;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_AUTO, "un-merged"));
	facts.apart = false;
	vm.migrating = true;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_HINTED && refuses(MERGE_ENGINE_REMAP, "migrating"));
	begin();
	facts.has_agent = false;
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_KERNEL && refuses(MERGE_ENGINE_REMAP, "memvirtctl run"));
	CU_ASSERT_TRUE(refuses(MERGE_ENGINE_HINTED, "memvirtctl run"));
	facts.ksm_why = "several domains";
	CU_ASSERT_TRUE(chosen() == MERGE_ENGINE_OFF && refuses(MERGE_ENGINE_KERNEL, "several domains"));
}

static void test_engine_settings_rule_others_out(void)
{
	static const enum merge_engine engines[] = { MERGE_ENGINE_REMAP, MERGE_ENGINE_HINTED, MERGE_ENGINE_KERNEL };

	for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
		begin();
		facts.host_engine = engines[i];
		CU_ASSERT_EQUAL(chosen(), engines[i]);
		vm.engine = engines[(i + 1) % 3]; /* the VM's goes before the host's */
		CU_ASSERT_EQUAL(chosen(), engines[(i + 1) % 3]);
		CU_ASSERT_TRUE(refuses(engines[i], "another engine"));
		facts.host_engine = MERGE_ENGINE_OFF;
		CU_ASSERT_EQUAL(chosen(), vm.engine);
		vm.engine = MERGE_ENGINE_OFF;
		facts.host_engine = MERGE_ENGINE_AUTO;
		CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_OFF);
	}
	begin();
	facts.host_engine = MERGE_ENGINE_REMAP;
	facts.has_agent = false;
	CU_ASSERT_EQUAL(chosen(), MERGE_ENGINE_OFF); /* what was asked for, or nothing */
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "order", test_engine_first_that_nothing_speaks_against },
		{ "all", test_engine_reasons_against_all },
		{ "remap", test_engine_reasons_against_remap_only },
		{ "settings", test_engine_settings_rule_others_out },
		CU_TEST_INFO_NULL,
	};

	return unit_main("engine", tests);
}
