/* tests/kvm/guest.h - what the guest and its VMM agree on: where things are in guest RAM, ports, contents of pages.
 *
 * The guest has no operating system: each vCPU starts in long mode in guest_main() with identity-mapped memory, and
 * owns every second block of 16 pages. It fills its pages, changes words, gives blocks back, has blocks read from a
 * "disk", and compares what is there with its own model of it. */
#ifndef TESTS_KVM_GUEST_H
#define TESTS_KVM_GUEST_H

#include <stdint.h>

#define GUEST_VCPUS 2u
#define GUEST_PAGE 4096u
#define GUEST_PAGE_WORDS (GUEST_PAGE / 8)

/* ---- guest-physical addresses ---- */

#define GUEST_PML4 0x1000u
#define GUEST_PDPT 0x2000u
#define GUEST_PD 0x3000u
#define GUEST_CODE 0x10000u
#define GUEST_STACKS 0x40000u /* 16 KiB for each vCPU */
#define GUEST_STACK_BYTES 0x4000u
#define GUEST_SHARED 0x80000u /* struct guest_shared */
#define GUEST_MODEL 0x100000u /* struct guest_page for each page of RAM */
#define GUEST_DATA 0x200000u  /* up to the end of RAM: pages with owners */

#define GUEST_BLOCK 16u /* pages that one vCPU owns */

struct guest_page {
	uint32_t content; /* 0: zeroes */
	uint32_t word;	  /* this word of it is replaced .. */
	uint64_t value;	  /* .. if this is not 0 */
};

struct guest_shared {
	uint64_t ram_bytes;
	uint64_t seed;
	uint64_t ticks;			    /* one for each action of any vCPU: locked increments */
	uint64_t disk_content[GUEST_VCPUS]; /* what a vCPU wants to read */
};

/* ---- ports, 32 bits wide ---- */

#define PORT_COMMAND 0x10u /* in: 0 go on, 1 end */
#define PORT_BAD 0x11u	   /* out: the number of a page that is wrong */
#define PORT_DISCARD 0x12u /* out: first page of a block that is given back, as a balloon does; zeroes from now on */
#define PORT_DISK 0x13u	   /* out: first page of a block to read disk_content into */
#define PORT_TICKS 0x14u   /* out: how many actions this vCPU has done; it ends */

/* ---- contents ---- */

/* As many are common to all guests; the higher ones belong to one. */
#define GUEST_CONTENTS 4096u

static inline __attribute__((always_inline)) uint64_t guest_mix(uint64_t z)
{
	z += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static inline __attribute__((always_inline)) uint64_t guest_word(uint32_t content, uint32_t i)
{
	return content == 0 ? 0 : guest_mix((uint64_t)content * GUEST_PAGE_WORDS + i);
}

/* Does the page hold what its model says? */
static inline __attribute__((always_inline)) int guest_page_right(const volatile uint64_t *words,
								  const struct guest_page *m)
{
	for (uint32_t i = 0; i < GUEST_PAGE_WORDS; i++) {
		uint64_t want = m->value != 0 && i == m->word ? m->value : guest_word(m->content, i);

		if (words[i] != want)
			return 0;
	}
	return 1;
}

/* The guest's code, to be copied to GUEST_CODE; the linker sets both ends of its section. */
extern const uint8_t __start_guest_code[], __stop_guest_code[];
void guest_main(uint64_t vcpu);

#endif
