/* The memfd of a store: how it is made, sealed, handed out, recognised again, and how its memory gets huge. */
#include "ksmd/store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "core/snapshot.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_EXEC /* Linux 6.3; set by MFD_NOEXEC_SEAL and by vm.memfd_noexec */
#define F_SEAL_EXEC 0x0020
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_COLLAPSE /* Linux 6.1 */
#define MADV_COLLAPSE 25
#endif

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define BLOCK_BYTES ((size_t)STORE_BLOCK_FRAMES * PAGE_BYTES)
#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* ---- mappings ---- */

static void *reserve(size_t bytes)
{
	void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

/* The file at an address aligned to 2 MiB, as huge mappings want it. NULL and errno. */
static char *map_file(int fd, size_t bytes)
{
	char *room = mmap(NULL, bytes + BLOCK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t head;

	if (room == MAP_FAILED)
		return NULL;
	head = BLOCK_BYTES - ((uintptr_t)room & (BLOCK_BYTES - 1));
	munmap(room, head);
	room += head;
	if (head < BLOCK_BYTES)
		munmap(room + bytes, BLOCK_BYTES - head);
	if (mmap(room, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
		int error = errno;

		munmap(room, bytes);
		errno = error;
		return NULL;
	}
	madvise(room, bytes, MADV_DONTFORK); /* a child would look like an agent that maps the store */
	return room;
}

static void place(struct store *s, int node)
{
	unsigned long mask[16] = { 0 };
	const unsigned long bits = 8 * sizeof(mask[0]);

	if (node < 0 || (unsigned long)node >= sizeof(mask) * 8)
		return;
	mask[(unsigned long)node / bits] |= 1ul << ((unsigned long)node % bits);
	if (mbind(s->map, (size_t)s->frames * PAGE_BYTES, MPOL_PREFERRED, mask, sizeof(mask) * 8, 0) < 0)
		log_warning("store: memory cannot be placed on node %d, ignoring: %s", node, strerror(errno));
}

int store_map(struct store *s, int node)
{
	size_t bytes = (size_t)s->frames * PAGE_BYTES;

	s->block_count = s->frames / STORE_BLOCK_FRAMES;
	s->states = reserve(s->frames * sizeof(*s->states));
	s->blocks = reserve(s->block_count * sizeof(*s->blocks));
	s->buffer = aligned_alloc(PAGE_BYTES, STORE_BUFFER_PAGES * PAGE_BYTES);
	if (!s->states || !s->blocks || !s->buffer)
		return -ENOMEM;
	s->map = map_file(s->fd, bytes);
	if (!s->map)
		return -errno;
	s->map_huge = map_file(s->fd, bytes);
	if (!s->map_huge)
		return -errno;
	madvise(s->map_huge, bytes, MADV_HUGEPAGE); /* refused by a kernel without: pages are small then */
	place(s, node);
	return 0;
}

/* With shmem_enabled = advise the touch is enough. With "never", MADV_COLLAPSE still does it (only "deny" is final):
 * collapsing one page costs 0.47 ms a block, and filling it is then 1.6 ms faster than with 512 small faults. */
bool store_block_make_huge(struct store *s, uint32_t block)
{
	char *at = s->map_huge + block * BLOCK_BYTES;

	(void)*(volatile char *)at; /* a read: never writes, whatever the state of the frame */
	return madvise(at, BLOCK_BYTES, MADV_COLLAPSE) == 0;
}

void store_punch(struct store *s, uint32_t first, uint32_t n)
{
	int r;

	do {
		r = fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * PAGE_BYTES,
			      (off_t)n * PAGE_BYTES);
	} while (r < 0 && errno == EINTR);
	if (r < 0) /* free all the same: filling overwrites what is there */
		log_warning("store: %u frames keep their memory, ignoring: %s", n, strerror(errno));
}

/* ---- the file ---- */

static int memfd_new(const char *name)
{
	char text[sizeof(STORE_NAME_PREFIX) + STORE_NAME_USED];
	int fd;

	snprintf(text, sizeof(text), STORE_NAME_PREFIX "%.*s", STORE_NAME_USED, name ? name : "");
	fd = memfd_create(text, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(text, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd < 0 ? -errno : fd;
}

/* Two daemons that fill and free frames of one file would each take for free what the other has published. The kernel
 * lets go of it with the daemon's last descriptor. A client can hold it only while there is no daemon, and costs its own
 * domain the adoption. */
static int lock_alone(const struct store *s)
{
	if (flock(s->fd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	return errno == EWOULDBLOCK ? -EBUSY : -errno;
}

static void huge_report(const struct fsio *fs)
{
	char text[128];

	if (fsio_read(fs, text, sizeof(text), SHMEM_ENABLED) < 0)
		log_info("store: the kernel has no huge pages for shared memory, frames are 4 KiB");
	else if (strstr(text, "[deny]"))
		log_info("store: shmem_enabled is deny, frames are 4 KiB");
}

int store_new(const struct fsio *fs, const struct store_options *options, struct store **ret_store)
{
	struct store *s;
	int r;

	if (options->frames == 0 || options->frames > STORE_FRAMES_MAX || options->frames % STORE_BLOCK_FRAMES)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->frames = options->frames;
	s->fd = r = memfd_new(options->name);
	if (r < 0)
		goto fail;
	if (ftruncate(s->fd, (off_t)s->frames * PAGE_BYTES) < 0 || fchmod(s->fd, 0400) < 0 ||
	    fcntl(s->fd, F_ADD_SEALS, SEALS) < 0) {
		r = -errno;
		goto fail;
	}
	r = lock_alone(s);
	if (r == 0)
		r = store_map(s, options->node);
	if (r < 0)
		goto fail;
	huge_report(fs);
	*ret_store = s;
	return 0;
fail:
	store_free(s);
	return r;
}

/* A client may hand back anything. What only our own user can have made and nobody else can write is a store;
 * another store of ours is told apart by the caller, who knows the domain. */
static int adopt_check(const struct fsio *fs, int fd, uint32_t *ret_frames)
{
	struct statfs fs_info;
	struct stat st;
	char link[128];
	int seals, r;

	r = fsio_readlink(fs, link, sizeof(link), "/proc/self/fd/%d", fd);
	if (r < 0)
		return r == -ENAMETOOLONG ? -EPERM : r;
	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs_info) < 0)
		return -errno;
	seals = fcntl(fd, F_GET_SEALS);
	if (strncmp(link, "/memfd:" STORE_NAME_PREFIX, strlen("/memfd:" STORE_NAME_PREFIX)) != 0 || !S_ISREG(st.st_mode) ||
	    st.st_nlink != 0 || fs_info.f_type != TMPFS_MAGIC || seals < 0 || (seals & ~F_SEAL_EXEC) != SEALS)
		return -EPERM;
	if (st.st_uid != geteuid() || (st.st_mode & 07777) != 0400)
		return -EPERM;
	if (st.st_size <= 0 || (uint64_t)st.st_size % BLOCK_BYTES ||
	    (uint64_t)st.st_size / PAGE_BYTES > STORE_FRAMES_MAX)
		return -EPERM;
	*ret_frames = (uint32_t)(st.st_size / PAGE_BYTES);
	return 0;
}

int store_adopt(const struct fsio *fs, int fd, const struct store_options *options, struct store **ret_store)
{
	struct store *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->fd = -1;
	r = adopt_check(fs, fd, &s->frames);
	if (r < 0)
		goto fail;
	s->fd = r = fsio_open(fs, O_RDWR, "/proc/self/fd/%d", fd);
	if (r < 0)
		goto fail;
	r = lock_alone(s);
	if (r == 0)
		r = store_map(s, options->node);
	if (r == 0)
		r = store_publish_existing(s);
	if (r < 0)
		goto fail;
	*ret_store = s;
	return 0;
fail:
	store_free(s);
	return r;
}

struct store *store_free(struct store *s)
{
	if (!s)
		return NULL;
	if (s->map)
		munmap(s->map, (size_t)s->frames * PAGE_BYTES);
	if (s->map_huge)
		munmap(s->map_huge, (size_t)s->frames * PAGE_BYTES);
	if (s->states)
		munmap(s->states, s->frames * sizeof(*s->states));
	if (s->blocks)
		munmap(s->blocks, s->block_count * sizeof(*s->blocks));
	if (s->fd >= 0)
		close(s->fd);
	free(s->buffer);
	free(s);
	return NULL;
}

int store_client_fd(const struct store *s)
{
	char path[32];
	int fd;

	/* Not a file of the host but our own descriptor again, so not through fsio's root. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

bool store_is(const struct store *s, int fd)
{
	struct stat ours, theirs;

	return fstat(s->fd, &ours) == 0 && fstat(fd, &theirs) == 0 && ours.st_dev == theirs.st_dev &&
	       ours.st_ino == theirs.st_ino;
}

uint64_t store_inode(const struct store *s)
{
	struct stat st;

	return fstat(s->fd, &st) == 0 ? st.st_ino : 0;
}
