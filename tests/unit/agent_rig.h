/* tests/unit/agent_rig.h - an agent of a linked-in VMM, with a daemon played by the test in the same process. */
#ifndef TESTS_UNIT_AGENT_RIG_H
#define TESTS_UNIT_AGENT_RIG_H

#include <dirent.h>
#include <linux/fs.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "agent/exchange.h"
#include "agent/memvirt-agent.h"
#include "agent/packet.h"
#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/kernel_abi.h"
#include "tests/unit/unit.h"

#define FRAMES 600u
#define RAM_BYTES (2 * WINDOW_BYTES)
#define RAM_PAGES (2 * WINDOW_PAGES)

struct rig {
	char dir[UNIT_DIR_MAX], path[UNIT_DIR_MAX + 16];
	int listener, store_rw, store_ro;
	uint8_t *ram;
	/* of one attachment */
	struct memvirt_agent *agent;
	const char *why;
	int sock; /* the daemon's end */
	struct packet hello, in;
};

static struct rig rig;

/* A store of the right kind but for what `seals` and `flags` say; frame f holds content f + 1. */
static inline int store_make(unsigned frames, int seals, int flags, int *ret_rw)
{
	int rw = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING), fd;
	char page[PAGE_BYTES], path[64];

	unit_must(rw >= 0 && ftruncate(rw, (off_t)frames * PAGE_BYTES) == 0, "memfd");
	for (unsigned f = 0; f < frames; f++) {
		unit_page_fill(page, f + 1);
		unit_must(pwrite(rw, page, PAGE_BYTES, (off_t)f * PAGE_BYTES) == PAGE_BYTES, "pwrite");
	}
	unit_must(fcntl(rw, F_ADD_SEALS, seals) == 0, "seals");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
	fd = open(path, flags | O_CLOEXEC);
	unit_must(fd >= 0, path);
	if (ret_rw)
		*ret_rw = rw;
	else
		close(rw);
	return fd;
}

/* Page p of RAM holds content p + 1, as frame p does; pages 200 to 209 are zero. */
static inline uint64_t content_of(unsigned page)
{
	return page >= 200 && page < 210 ? 0 : page + 1;
}

static inline void ram_fill(void)
{
	unit_must(mmap(rig.ram, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
			  rig.ram,
		  "ram");
	madvise(rig.ram, RAM_BYTES, MADV_NOHUGEPAGE);
	for (unsigned p = 0; p < RAM_PAGES; p++)
		unit_page_fill((char *)rig.ram + p * PAGE_BYTES, content_of(p));
}

static inline bool page_is(const uint8_t *at, uint64_t content)
{
	char page[PAGE_BYTES];

	unit_page_fill(page, content);
	return memcmp(at, page, PAGE_BYTES) == 0;
}

static inline bool ram_right(void)
{
	for (unsigned p = 0; p < RAM_PAGES; p++) {
		if (!page_is(rig.ram + p * PAGE_BYTES, content_of(p)))
			return false;
	}
	return true;
}

static inline void rig_start(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint8_t *area = mmap(NULL, RAM_BYTES + 2 * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	unit_must(area != MAP_FAILED, "mmap");
	rig.ram = area + PAGE_BYTES + (-(uintptr_t)(area + PAGE_BYTES) & (WINDOW_BYTES - 1));
	ram_fill();
	unit_dir_new(rig.dir);
	snprintf(rig.path, sizeof(rig.path), "%s/sock", rig.dir);
	unit_must(strlen(rig.path) < sizeof(addr.sun_path), "path");
	memcpy(addr.sun_path, rig.path, strlen(rig.path));
	rig.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unit_must(rig.listener >= 0 && bind(rig.listener, (struct sockaddr *)&addr, sizeof(addr)) == 0 &&
			  listen(rig.listener, 8) == 0,
		  "listen");
	rig.store_ro = store_make(FRAMES, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, O_RDONLY, &rig.store_rw);
}

static inline int attach(void)
{
	struct timeval timeout = { .tv_sec = 20 };
	int err = memvirt_agent_attach(rig.path, &rig.agent, &rig.why);

	if (err < 0)
		return err;
	rig.sock = accept4(rig.listener, NULL, NULL, SOCK_CLOEXEC);
	unit_must(rig.sock >= 0, "accept");
	setsockopt(rig.sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)); /* a test that hangs, fails */
	return packet_receive(rig.sock, &rig.hello, 0);
}

static inline void detach(void)
{
	rig.agent = memvirt_agent_detach(rig.agent);
	packet_close(&rig.hello);
	close(rig.sock);
}

static inline int daemon_send_store(int fd, uint32_t frames)
{
	struct agent_store s = { .header.type = AGENT_STORE, .frames = frames };

	return packet_send(rig.sock, &s, sizeof(s), &fd, 1);
}

static inline int slot_offer(void)
{
	int err = memvirt_agent_add_slot(rig.agent, rig.ram, RAM_BYTES, &rig.why);

	return err < 0 ? err : packet_receive(rig.sock, &rig.in, 0);
}

/* Attached, RAM offered and the store sent. */
static inline void attach_all(void)
{
	unit_must(attach() == 0, "attach");
	unit_must(slot_offer() == 0, "slot");
	unit_must(daemon_send_store(rig.store_ro, FRAMES) == 0, "store");
}

static inline struct packet *merge_new(unsigned window)
{
	static struct packet p;
	struct agent_merge *m = packet_merge(&p);

	memset(&p, 0, sizeof(p));
	m->header = (struct agent_header){ .type = AGENT_MERGE, .sequence = 77 };
	m->window = (uint64_t)(uintptr_t)rig.ram + window * WINDOW_BYTES;
	m->min_pages_huge = m->min_pages = 1;
	m->min_piece = 1;
	p.len = sizeof(*m);
	return &p;
}

static inline void merge_run(struct packet *p, unsigned first, unsigned pages, uint32_t frame)
{
	struct agent_merge *m = packet_merge(p);

	m->runs[m->header.count++] =
		(struct agent_run){ .first = (uint16_t)first, .pages = (uint16_t)pages, .frame = frame };
	p->len += sizeof(m->runs[0]);
}

/* Sends it and waits for what comes back. */
static inline int merge_ask(struct packet *p)
{
	int err = packet_send(rig.sock, p->bytes, p->len, NULL, 0);

	return err < 0 ? err : packet_receive(rig.sock, &rig.in, 0);
}

static inline bool mapped_from_store(unsigned page)
{
	struct page_states s;
	auto_close int fd = pagemap_open(0);
	uint64_t base = (uint64_t)(uintptr_t)rig.ram + page / WINDOW_PAGES * WINDOW_BYTES;

	(void)*(volatile uint8_t *)(rig.ram + page * PAGE_BYTES); /* page tables of files are filled when read */
	unit_must(fd >= 0 && pagemap_read(fd, base, page % WINDOW_PAGES, 1, &s) == 0, "pagemap");
	return s.flags[page % WINDOW_PAGES] & PAGE_IS_FILE;
}

static inline unsigned count_fds(void)
{
	auto_closedir DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	unit_must(d, "/proc/self/fd");
	while (readdir(d))
		n++;
	return n;
}

static inline unsigned count_maps(void)
{
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	unsigned n = 0;
	int c;

	unit_must(f, "maps");
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	return n;
}

static inline void wait_ended(void)
{
	for (unsigned i = 0; i < 5000 && !memvirt_agent_ended(rig.agent); i++)
		poll(NULL, 0, 1); /* another thread's doing, with no descriptor to wait for */
}

#endif
