/* The guest: compiled with the VMM's program, in a section of its own that is copied to guest RAM. It must not call or
 * read anything outside of that section, nor use vector registers: see the flags in the Makefile. */
#include "tests/kvm/guest.h"

#define IN_GUEST __attribute__((section("guest_code"), used))

static inline __attribute__((always_inline)) void port_out(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline __attribute__((always_inline)) uint32_t port_in(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline __attribute__((always_inline)) volatile uint64_t *page_words(uint32_t page)
{
	return (volatile uint64_t *)((uint64_t)page * GUEST_PAGE);
}

static inline __attribute__((always_inline)) struct guest_page *model_of(uint32_t page)
{
	return (struct guest_page *)(uint64_t)GUEST_MODEL + page;
}

static inline __attribute__((always_inline)) struct guest_shared *shared(void)
{
	return (struct guest_shared *)(uint64_t)GUEST_SHARED;
}

static IN_GUEST void page_check(uint32_t page)
{
	if (!guest_page_right(page_words(page), model_of(page)))
		port_out(PORT_BAD, page);
}

static IN_GUEST void page_fill(uint32_t page, uint32_t content)
{
	volatile uint64_t *words = page_words(page);
	struct guest_page *m = model_of(page);

	for (uint32_t i = 0; i < GUEST_PAGE_WORDS; i++)
		words[i] = guest_word(content, i);
	m->content = content;
	m->value = 0;
}

static IN_GUEST void word_change(uint32_t page, uint64_t r)
{
	volatile uint64_t *words = page_words(page);
	struct guest_page *m = model_of(page);

	if (m->value != 0)
		words[m->word] = guest_word(m->content, m->word);
	m->word = (uint32_t)(r % GUEST_PAGE_WORDS);
	m->value = r | 1;
	words[m->word] = m->value;
}

/* By the VMM: the whole block gets other contents while we wait for the port. */
static IN_GUEST void block_replace(uint64_t vcpu, uint32_t first, uint32_t content)
{
	shared()->disk_content[vcpu] = content;
	port_out(content == 0 ? PORT_DISCARD : PORT_DISK, first);
	for (uint32_t i = 0; i < GUEST_BLOCK; i++) {
		model_of(first + i)->content = content == 0 ? 0 : content + i;
		model_of(first + i)->value = 0;
		page_check(first + i);
	}
}

static IN_GUEST void act(uint64_t vcpu, uint64_t r)
{
	const uint32_t data = GUEST_DATA / GUEST_PAGE, end = (uint32_t)(shared()->ram_bytes / GUEST_PAGE);
	const uint32_t blocks = (end - data) / GUEST_BLOCK / GUEST_VCPUS;
	uint32_t first = data + (uint32_t)((r >> 8) % blocks * GUEST_VCPUS + vcpu) * GUEST_BLOCK;
	uint32_t page = first + (uint32_t)(r >> 40) % GUEST_BLOCK;
	uint32_t content = 1 + (uint32_t)(r >> 20) % (GUEST_CONTENTS - GUEST_BLOCK);
	uint32_t what = (uint32_t)r % 64, step = r >> 63 ? 0 : 1;

	if (what == 0) { /* consecutive contents: what is merged comes in runs; or zeroes */
		for (uint32_t i = 0; i < GUEST_BLOCK; i++)
			page_fill(first + i, (content + i) * step);
	} else if (what == 1) {
		block_replace(vcpu, first, 0);
	} else if (what == 2) {
		block_replace(vcpu, first, content);
	} else if (what < 16) {
		word_change(page, guest_mix(r));
	} else {
		page_check(page);
	}
}

IN_GUEST void guest_main(uint64_t vcpu)
{
	uint64_t r = guest_mix(shared()->seed + vcpu);
	uint32_t ticks = 0;

	while (ticks % 16 != 0 || port_in(PORT_COMMAND) == 0) {
		page_check((uint32_t)(GUEST_DATA / GUEST_PAGE + vcpu * GUEST_BLOCK)); /* this one is always looked at */
		act(vcpu, r = guest_mix(r));
		__asm__ volatile("lock incq %0" : "+m"(shared()->ticks));
		ticks++;
	}
	port_out(PORT_TICKS, ticks);
	for (;;) /* the VMM does not come back */
		port_in(PORT_COMMAND);
}
