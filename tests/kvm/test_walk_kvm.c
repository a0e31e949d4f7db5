/* ept/walk against the walker of KVM (KVM_TRANSLATE): random and hostile tables in every mode of a virtual CPU whose
 * registers are read back from KVM. No guest code runs. */
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "ept/walk.h"
#include "tests/unit/unit.h"

#define RAM_BYTES (64u << 10)
#define CPUID_MAX 256

static struct {
	int kvm, vm, cpu;
	uint8_t *ram;
	unsigned phys_bits;
	bool la57, gib_pages;
} guest = { .kvm = -1, .vm = -1, .cpu = -1 };

/* ---- a virtual CPU ---- */

static void cpuid_set(void)
{
	auto_free struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPUID_MAX * sizeof(c->entries[0]));

	unit_must(c != NULL, "calloc");
	c->nent = CPUID_MAX;
	unit_must(ioctl(guest.kvm, KVM_GET_SUPPORTED_CPUID, c) == 0, "KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < c->nent; i++) {
		struct kvm_cpuid_entry2 *e = &c->entries[i];

		if (e->function == 7 && e->index == 0)
			guest.la57 = e->ecx >> 16 & 1;
		if (e->function == 0x80000001)
			guest.gib_pages = e->edx >> 26 & 1;
		if (e->function == 0x80000008)
			guest.phys_bits = e->eax & 0xff;
	}
	unit_must(ioctl(guest.cpu, KVM_SET_CPUID2, c) == 0, "KVM_SET_CPUID2");
}

static bool guest_start(void)
{
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_BYTES };

	guest.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	guest.vm = guest.kvm < 0 ? -1 : ioctl(guest.kvm, KVM_CREATE_VM, 0);
	if (guest.vm < 0)
		return false;
	guest.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unit_must(guest.ram != MAP_FAILED, "mmap");
	slot.userspace_addr = (uintptr_t)guest.ram;
	unit_must(ioctl(guest.vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	guest.cpu = ioctl(guest.vm, KVM_CREATE_VCPU, 0);
	unit_must(guest.cpu >= 0, "KVM_CREATE_VCPU");
	cpuid_set();
	return true;
}

static struct walk_regs regs_read(void)
{
	struct walk_regs r = { .pse36 = true, .phys_bits = guest.phys_bits, .gib_pages = guest.gib_pages };
	struct kvm_sregs s;

	unit_must(ioctl(guest.cpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
	r.cr0 = s.cr0;
	r.cr3 = s.cr3;
	r.cr4 = s.cr4;
	r.efer = s.efer;
	return r;
}

/* Some hosts' KVM (without hardware for guests) has no other mode than the host's own, and says so by what is read back. */
static bool mode_enter(enum walk_mode mode, uint64_t cr3, bool nxe)
{
	struct kvm_sregs s;
	uint64_t efer = nxe ? 0x800 : 0;
	enum walk_mode entered;
	struct walk_regs r;

	unit_must(ioctl(guest.cpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
	s.cr3 = cr3;
	s.cr0 = 0x80000011;
	s.cr4 = mode == WALK_32 ? 0x10 : 0x20;
	s.cs.l = mode >= WALK_4LEVEL;
	s.cs.db = !s.cs.l;
	if (mode >= WALK_4LEVEL)
		efer |= 0x500;
	if (mode == WALK_5LEVEL)
		s.cr4 |= 0x1000;
	s.efer = efer;
	if (ioctl(guest.cpu, KVM_SET_SREGS, &s) < 0)
		return false;
	r = regs_read();
	return walk_mode_of(&r, &entered) == 0 && entered == mode;
}

static int ram_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	(void)userdata;
	if (gpa >= RAM_BYTES || RAM_BYTES - gpa < n)
		return -ENXIO;
	memcpy(buf, guest.ram + gpa, n);
	return 0;
}

/* ---- random tables ---- */

static uint64_t random_entry(uint64_t *state, bool wide)
{
	uint64_t e = unit_random(state), r = unit_random(state);

	if (r % 32 < 29)
		e = (e & 0xfff) | 1 | (unit_random(state) % (RAM_BYTES + 0x1000) & ~UINT64_C(0xfff));
	if (r >> 8 & 3)
		e &= ~UINT64_C(0x80);
	else if (r >> 10 & 1) /* a large page with an address of its own */
		e = (e & 0x1fff) | (unit_random(state) & UINT64_C(0xfc0000000));
	if ((r >> 16 & 15) == 0)
		e |= UINT64_C(1) << (r >> 32 & 63);
	/* AMD's processors, and KVM in their name, reserve bit 8 where a table is named. */
	return wide ? e & ~UINT64_C(0x100) : (uint32_t)e;
}

/* Aside from these PAE's pointers have to be right, or KVM does not take them. */
static void tables_fill(uint64_t *state, enum walk_mode mode)
{
	size_t n = mode == WALK_32 ? 4 : 8;

	for (size_t at = 0; at < RAM_BYTES; at += n) {
		uint64_t e = random_entry(state, n == 8);

		if (mode == WALK_PAE && at < PAGE_BYTES)
			e = (e & 0xf000) | (e >> 20 & 1);
		memcpy(guest.ram + at, &e, n);
	}
}

static uint64_t random_gva(uint64_t *state, enum walk_mode mode)
{
	unsigned bits = walk_address_bits(mode);
	uint64_t gva = unit_random(state) >> (64 - bits);

	return bits > 32 && gva >> (bits - 1) ? gva | ~UINT64_C(0) << bits : gva;
}

struct count {
	unsigned mapped, faults[WALK_UNREADABLE + 1];
	uint64_t sizes;
};

/* KVM has no word for why; it walks in the name of the kernel, as we do. */
static void compare(enum walk_mode mode, uint64_t gva, struct count *n)
{
	struct kvm_translation k = { .linear_address = gva };
	struct walk_regs regs = regs_read();
	struct walk w;

	if (mode == WALK_32)
		regs.phys_bits = 36; /* as many as KVM has for 4 MiB pages */
	walk_gva(&regs, ram_read, NULL, gva, &w);
	unit_must(ioctl(guest.cpu, KVM_TRANSLATE, &k) == 0, "KVM_TRANSLATE");
	n->faults[w.fault]++;
	n->sizes |= w.page_bytes;
	if (w.mode != mode || k.valid != (w.fault == WALK_MAPPED) || (k.valid && k.physical_address != w.gpa)) {
		printf("\n    %s gva %lx: KVM %s %llx, walk %s level %u entry %lx gpa %lx\n", walk_mode_name(mode), gva,
		       k.valid ? "mapped" : "not mapped", k.physical_address, walk_fault_name(w.fault), w.fault_level,
		       w.step_count ? w.steps[w.step_count - 1].entry : 0, w.gpa);
		CU_FAIL("KVM and walk differ");
	}
}

static void mode_compared(enum walk_mode mode, uint64_t sizes)
{
	uint64_t state = 100 + mode;
	struct count n = { 0 };

	for (unsigned round = 0; round < 60; round++) {
		tables_fill(&state, mode);
		if (!mode_enter(mode, mode == WALK_PAE ? 0x20 * (round % 16) : 0x1000 * (round % 16), round % 4 != 0))
			UNIT_SKIP("KVM has no such mode here");
		for (unsigned i = 0; i < 200; i++)
			compare(mode, random_gva(&state, mode), &n);
	}
	printf("\n    %s: mapped %u, not present %u, reserved %u, outside %u; sizes %lx\n", walk_mode_name(mode),
	       n.faults[WALK_MAPPED], n.faults[WALK_NOT_PRESENT], n.faults[WALK_RESERVED], n.faults[WALK_OUTSIDE], n.sizes);
	CU_ASSERT_TRUE(n.faults[WALK_MAPPED] > 100);
	CU_ASSERT_TRUE(n.faults[WALK_NOT_PRESENT] > 100);
	CU_ASSERT_TRUE(n.faults[WALK_RESERVED] > 100);
	CU_ASSERT_TRUE(n.faults[WALK_OUTSIDE] > 100);
	CU_ASSERT_EQUAL(n.sizes, sizes);
}

static void test_kvm_32bit_equals(void)
{
	mode_compared(WALK_32, 0x1000 | 0x400000);
}

static void test_kvm_pae_equals(void)
{
	mode_compared(WALK_PAE, 0x1000 | 0x200000);
}

static void test_kvm_4level_equals(void)
{
	mode_compared(WALK_4LEVEL, 0x1000 | 0x200000 | (guest.gib_pages ? 0x40000000 : 0));
}

static void test_kvm_5level_equals(void)
{
	if (!guest.la57)
		UNIT_SKIP("this processor has no 5-level paging");
	mode_compared(WALK_5LEVEL, 0x1000 | 0x200000 | (guest.gib_pages ? 0x40000000 : 0));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "32-bit", test_kvm_32bit_equals },
		{ "PAE", test_kvm_pae_equals },
		{ "4-level", test_kvm_4level_equals },
		{ "5-level", test_kvm_5level_equals },
		CU_TEST_INFO_NULL,
	};

	if (!guest_start()) {
		printf("skip: walk_kvm: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	return unit_main("walk_kvm", tests);
}
