/* tiny-vmm SOCKET SEED [huge] - a VMM of two vCPUs and 64 MiB that lets memvirtd merge its guest's RAM.
 *
 * It shows how a VMM uses agent/memvirt-agent.h: see merging_begin(), on_discard() and merging_end(). The guest checks
 * its own memory all the time (tests/kvm/guest.c). Ends when its standard input is closed; prints one line of figures,
 * and exits with 0 if every byte was right and nothing is merged any more. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/memvirt-agent.h"
#include "core/cleanup.h"
#include "tests/kvm/guest.h"

#define RAM_BYTES (64u << 20)
#define RAM_PAGES (RAM_BYTES / GUEST_PAGE)
#define HUGE_BYTES (2u << 20)

static struct {
	uint8_t *ram;
	struct memvirt_agent *agent;
	int vm_fd;
	atomic_bool stop;
	_Atomic unsigned bad;
	_Atomic uint64_t ticks, discards, disk_reads;
} vmm;

static void must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(2);
	}
}

static void complain(const char *what, unsigned page)
{
	if (vmm.bad++ < 10)
		fprintf(stderr, "BAD %s: page %u\n", what, page);
}

/* ---- merging: what a VMM has to do ---- */

/* After the guest's RAM is mapped, before or after the guest has started. A VMM that may run without a daemon goes
 * on when this fails; here it is what is tested. */
static void merging_begin(const char *socket_path)
{
	const char *why;

	if (memvirt_agent_attach(socket_path, &vmm.agent, &why) < 0 ||
	    memvirt_agent_add_slot(vmm.agent, vmm.ram, RAM_BYTES, &why) < 0) {
		fprintf(stderr, "memory is not merged: %s\n", why);
		exit(2);
	}
}

/* Balloon, free page reporting, virtio-mem: instead of madvise(MADV_DONTNEED). */
static void on_discard(uint32_t first)
{
	if (memvirt_agent_discard(vmm.agent, vmm.ram + (size_t)first * GUEST_PAGE, GUEST_BLOCK * GUEST_PAGE) < 0)
		complain("discard", first);
	vmm.discards++;
}

/* Memory may stay merged when a VMM ends; one that goes on and needs its memory plain discards it first. */
static void merging_end(void)
{
	const char *why = memvirt_agent_ended(vmm.agent);

	if (why)
		fprintf(stderr, "the daemon was gone before the end: %s\n", why);
	if (why || memvirt_agent_discard(vmm.agent, vmm.ram, RAM_BYTES) < 0)
		complain("end of merging", 0);
	vmm.agent = memvirt_agent_detach(vmm.agent);
}

/* ---- the guest's RAM ---- */

static uint64_t *page_words(uint32_t page)
{
	return (uint64_t *)(void *)(vmm.ram + (size_t)page * GUEST_PAGE);
}

static struct guest_page *model_of(uint32_t page)
{
	return (struct guest_page *)(void *)(vmm.ram + GUEST_MODEL) + page;
}

static void page_fill(uint32_t page, uint32_t content)
{
	uint64_t *words = page_words(page);

	for (uint32_t i = 0; i < GUEST_PAGE_WORDS; i++)
		words[i] = guest_word(content, i);
}

/* Aligned to 2 MiB, with room around it that keeps it a mapping of its own. */
static void ram_new(bool huge)
{
	uint8_t *room = mmap(NULL, RAM_BYTES + 2 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(room != MAP_FAILED, "mmap");
	vmm.ram = room + HUGE_BYTES - (uintptr_t)room % HUGE_BYTES;
	must(mmap(vmm.ram, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		     vmm.ram &&
		     madvise(vmm.ram, RAM_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0,
	     "guest RAM");
}

/* Most pages are the same in every guest, an eighth is this one's own, and the last eighth is zero. */
static void ram_fill(uint32_t seed)
{
	struct guest_shared *shared = (void *)(vmm.ram + GUEST_SHARED);

	*shared = (struct guest_shared){ .ram_bytes = RAM_BYTES, .seed = seed };
	for (uint32_t p = GUEST_DATA / GUEST_PAGE; p < RAM_PAGES / 8 * 7; p++) {
		bool own = p / GUEST_BLOCK % 8 == 7;

		model_of(p)->content = own ? (seed + 1) * RAM_PAGES + p : 1 + p % GUEST_CONTENTS;
		page_fill(p, model_of(p)->content);
	}
	memcpy(vmm.ram + GUEST_CODE, __start_guest_code, (size_t)(__stop_guest_code - __start_guest_code));
	/* Present, writable, for user mode too; the lowest level maps 2 MiB each. */
	*(uint64_t *)(void *)(vmm.ram + GUEST_PML4) = GUEST_PDPT | 7;
	*(uint64_t *)(void *)(vmm.ram + GUEST_PDPT) = GUEST_PD | 7;
	for (uint64_t i = 0; i < RAM_BYTES / HUGE_BYTES; i++)
		((uint64_t *)(void *)(vmm.ram + GUEST_PD))[i] = (i * HUGE_BYTES) | 0x87;
}

/* ---- vCPUs ---- */

struct vcpu {
	unsigned index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
};

static void on_disk(const struct vcpu *v, uint32_t first)
{
	const struct guest_shared *shared = (void *)(vmm.ram + GUEST_SHARED);
	uint32_t content = (uint32_t)shared->disk_content[v->index];

	for (uint32_t i = 0; i < GUEST_BLOCK; i++)
		page_fill(first + i, content + i);
	vmm.disk_reads++;
}

/* false: the vCPU has come to its end. */
static bool port_access(const struct vcpu *v)
{
	uint32_t *data = (uint32_t *)(void *)((uint8_t *)v->run + v->run->io.data_offset);

	switch (v->run->io.port) {
	case PORT_COMMAND:
		*data = vmm.stop;
		return true;
	case PORT_BAD:
		complain("seen by the guest", *data);
		return true;
	case PORT_DISCARD:
		on_discard(*data);
		return true;
	case PORT_DISK:
		on_disk(v, *data);
		return true;
	case PORT_TICKS:
		vmm.ticks += *data;
		return false;
	default:
		complain("port", v->run->io.port);
		return false;
	}
}

static void *vcpu_main(void *arg)
{
	const struct vcpu *v = arg;
	bool more = true;

	while (more) {
		if (ioctl(v->fd, KVM_RUN, 0) < 0 && errno != EINTR) {
			/* EFAULT is what a guest gets from a userfaultfd that does not see the kernel's faults. */
			fprintf(stderr, "KVM_RUN: %s\n", strerror(errno));
			complain("vCPU", v->index);
			more = false;
		} else if (v->run->exit_reason == KVM_EXIT_IO) {
			more = port_access(v);
		} else if (v->run->exit_reason != KVM_EXIT_INTR) {
			fprintf(stderr, "exit reason %u\n", v->run->exit_reason);
			complain("vCPU", v->index);
			more = false;
		}
	}
	return NULL;
}

/* Long mode at once. The first vCPU runs in user mode, the second as a kernel does. */
static void vcpu_registers(const struct vcpu *v)
{
	const bool user = v->index == 0;
	struct kvm_segment code = { .limit = 0xffffffff, .selector = user ? 0x1b : 0x8, .type = 11, .present = 1,
				    .dpl = user ? 3 : 0, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = 0xffffffff, .selector = user ? 0x23 : 0x10, .type = 3, .present = 1,
				    .dpl = user ? 3 : 0, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = {
		.rip = GUEST_CODE + (uint64_t)((const uint8_t *)guest_main - __start_guest_code),
		.rsp = GUEST_STACKS + (v->index + 1) * GUEST_STACK_BYTES - 8, /* as after a call */
		.rdi = v->index,
		.rflags = 0x3002, /* ports in user mode */
	};
	struct kvm_sregs sregs;

	must(ioctl(v->fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cr3 = GUEST_PML4;
	sregs.cr4 = 1u << 5;			/* PAE */
	sregs.cr0 = 1u << 31 | 1u << 16 | 1u | 1u << 5 | 1u << 4; /* PG WP PE NE ET */
	sregs.efer = 1u << 8 | 1u << 10;	/* LME LMA */
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	must(ioctl(v->fd, KVM_SET_SREGS, &sregs) == 0 && ioctl(v->fd, KVM_SET_REGS, &regs) == 0, "registers");
}

static int kvm_open(void)
{
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_BYTES,
						    .userspace_addr = (uint64_t)(uintptr_t)vmm.ram };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	must(kvm >= 0 && ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "/dev/kvm");
	vmm.vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
	must(vmm.vm_fd >= 0 && ioctl(vmm.vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000) == 0 &&
		     ioctl(vmm.vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) == 0,
	     "KVM");
	return kvm;
}

static void vcpus_start(int kvm, struct vcpu vcpus[GUEST_VCPUS])
{
	int run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	must(run_bytes > 0, "KVM_GET_VCPU_MMAP_SIZE");
	for (unsigned i = 0; i < GUEST_VCPUS; i++) {
		struct vcpu *v = &vcpus[i];

		v->index = i;
		v->fd = ioctl(vmm.vm_fd, KVM_CREATE_VCPU, i);
		must(v->fd >= 0, "KVM_CREATE_VCPU");
		v->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
		must(v->run != MAP_FAILED, "KVM_RUN");
		vcpu_registers(v);
	}
	for (unsigned i = 0; i < GUEST_VCPUS; i++)
		must(pthread_create(&vcpus[i].thread, NULL, vcpu_main, &vcpus[i]) == 0, "pthread_create");
}

/* ---- the account ---- */

/* Mappings within RAM, how many of them are merged, and how many merged pages the guest has copies of. */
struct ram_look {
	unsigned mappings, merged;
	unsigned long copied_pages;
};

static struct ram_look ram_look(void)
{
	auto_fclose FILE *f = fopen("/proc/self/smaps", "re");
	uint64_t ram = (uint64_t)(uintptr_t)vmm.ram, start, end, inode = 0;
	struct ram_look look = { 0 };
	unsigned long kib;
	bool here = false;
	char line[512];

	must(f != NULL, "smaps");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %*s %*x %*s %lu", &start, &end, &inode) == 3) {
			here = start < ram + RAM_BYTES && end > ram;
			look.mappings += here;
			look.merged += here && inode != 0;
		} else if (here && inode != 0 && sscanf(line, "Anonymous: %lu kB", &kib) == 1) {
			look.copied_pages += kib * 1024 / GUEST_PAGE;
		}
	}
	return look;
}

/* The same question that the guest asks, by the VMM's mapping. */
static void ram_check(void)
{
	for (uint32_t p = GUEST_DATA / GUEST_PAGE; p < RAM_PAGES; p++) {
		if (!guest_page_right(page_words(p), model_of(p)))
			complain("seen by the VMM", p);
	}
	if (((struct guest_shared *)(void *)(vmm.ram + GUEST_SHARED))->ticks != vmm.ticks)
		complain("the count of all actions", 0);
}

static void ram_check_plain(void)
{
	static const struct guest_page zero;
	struct ram_look look = ram_look();

	for (uint32_t p = 0; p < RAM_PAGES; p++) {
		if (!guest_page_right(page_words(p), &zero))
			complain("not zero after the end", p);
	}
	if (look.mappings != 1 || look.merged != 0) {
		fprintf(stderr, "%u mappings, %u merged\n", look.mappings, look.merged);
		complain("RAM is not one anonymous mapping again", 0);
	}
}

int main(int argc, char **argv)
{
	struct vcpu vcpus[GUEST_VCPUS];
	struct ram_look look;
	char c;
	int kvm;

	if (argc < 3) {
		fprintf(stderr, "usage: tiny-vmm SOCKET SEED [huge]\n");
		return 2;
	}
	ram_new(argc == 4);
	ram_fill((uint32_t)strtoul(argv[2], NULL, 10));
	kvm = kvm_open();
	merging_begin(argv[1]);
	vcpus_start(kvm, vcpus);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	vmm.stop = true;
	for (unsigned i = 0; i < GUEST_VCPUS; i++)
		pthread_join(vcpus[i].thread, NULL);
	look = ram_look();
	ram_check();
	merging_end();
	ram_check_plain();
	printf("actions %lu discards %lu disk_reads %lu mappings %u merged %u copied_pages %lu bad %u\n", vmm.ticks,
	       vmm.discards, vmm.disk_reads, look.mappings, look.merged, look.copied_pages, vmm.bad);
	return vmm.bad == 0 ? 0 : 1;
}
