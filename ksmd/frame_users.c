#include "ksmd/frame_users.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/activity.h"
#include "ksmd/frame_look.h"

struct frame_user {
	pid_t pid;
	int pidfd;
	struct frame_list mapped; /* as its mappings said when last looked at */
	struct frame_list asked;  /* named in commands since then, or in commands without an answer */
	int stat_fd;		/* /proc/PID/stat; -1: none */
	struct activity active; /* at the last look */
	unsigned spared;	/* looks for figures since */
	bool settled;	  /* every command that "asked" is about was answered */
	bool changed;
	struct frame_user_figures figures;
	struct hva_range *ranges;
	size_t range_count;
};

struct frame_users {
	const struct fsio *fs;
	uint64_t inode;
	uint32_t frames;
	uint64_t *used;
	size_t used_words; /* none above was ever set */
	struct frame_user **clients;
	size_t count;
	bool ended; /* a client is gone since the last look */
};

int frame_users_new(const struct fsio *fs, uint64_t inode, uint32_t frames, struct frame_users **ret_users)
{
	struct frame_users *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	u->fs = fs;
	u->inode = inode;
	u->frames = frames;
	u->used = calloc((frames + 63) / 64, sizeof(*u->used)); /* takes memory where it is used */
	if (!u->used) {
		free(u);
		return -ENOMEM;
	}
	*ret_users = u;
	return 0;
}

static void user_free(struct frame_user *user)
{
	if (user->pidfd >= 0)
		close(user->pidfd);
	if (user->stat_fd >= 0)
		close(user->stat_fd);
	free(user->mapped.stretches);
	free(user->asked.stretches);
	free(user->ranges);
	free(user);
}

struct frame_users *frame_users_free(struct frame_users *u)
{
	if (!u)
		return NULL;
	for (size_t i = 0; i < u->count; i++)
		user_free(u->clients[i]);
	free(u->clients);
	free(u->used);
	free(u);
	return NULL;
}

/* ---- frames ---- */

static void bits_set(uint64_t *bits, uint32_t first, uint32_t n)
{
	for (uint32_t at = first, end = first + n, len; at < end; at += len) {
		len = 64 - at % 64 < end - at ? 64 - at % 64 : end - at;
		bits[at / 64] |= UINT64_MAX >> (64 - len) << at % 64;
	}
}

static void frames_mark(struct frame_users *u, const struct frame_list *f)
{
	for (size_t i = 0; i < f->count; i++) {
		const struct frame_stretch *s = &f->stretches[i];
		size_t words = (s->first + s->n - 1) / 64 + 1;

		bits_set(u->used, s->first, s->n);
		if (words > u->used_words)
			u->used_words = words;
	}
}

/* ---- clients ---- */

static bool process_ended(const struct frame_user *user)
{
	struct pollfd ended = { .fd = user->pidfd, .events = POLLIN };

	return poll(&ended, 1, 0) == 1;
}

struct frame_user *frame_users_find(const struct frame_users *u, pid_t pid)
{
	for (size_t i = 0; i < u->count; i++)
		if (u->clients[i]->pid == pid)
			return u->clients[i];
	return NULL;
}

/* Those whose process has ended map nothing any more. */
static void clients_drop_ended(struct frame_users *u)
{
	size_t kept = 0;

	for (size_t i = 0; i < u->count; i++) {
		if (process_ended(u->clients[i])) {
			user_free(u->clients[i]);
			u->ended = true;
		} else {
			u->clients[kept++] = u->clients[i];
		}
	}
	u->count = kept;
}

struct frame_user *frame_users_client(struct frame_users *u, pid_t pid, int pidfd)
{
	struct frame_user *user = frame_users_find(u, pid), **bigger;

	if (user && !process_ended(user))
		return user;
	if (user)
		clients_drop_ended(u); /* the pid is another process's now */
	bigger = reallocarray(u->clients, u->count + 1, sizeof(struct frame_user *));
	if (!bigger)
		return NULL;
	u->clients = bigger;
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	user->pid = pid;
	user->stat_fd = fsio_open(u->fs, O_RDONLY, "/proc/%d/stat", (int)pid);
	user->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	user->changed = true;
	if (user->pidfd < 0) {
		user_free(user);
		return NULL;
	}
	u->clients[u->count++] = user;
	return user;
}

int frame_user_ask(struct frame_user *user, uint32_t first, uint32_t n)
{
	int r = frame_list_add(&user->asked, first, n);

	if (r == 0)
		user->settled = false;
	return r;
}

void frame_user_settle(struct frame_user *user)
{
	user->settled = true;
	user->changed = true;
}

void frame_user_changed(struct frame_user *user)
{
	user->changed = true;
}

/* ---- looking ---- */

static struct frame_look look_begin(const struct frame_users *u, int pagemap_fd, bool keep_ranges)
{
	return (struct frame_look){ .fs = u->fs, .inode = u->inode, .frame_count = u->frames,
				    .pagemap_fd = pagemap_fd, .keep_ranges = keep_ranges };
}

/* Copied on write since the look before. What is merged anew begins whole, and ranges may have grown together: what is
 * broken beyond what was broken there before is new. Where a part of a range was given back its copies went with it, and
 * hide as many new ones. */
static uint64_t breaks_since(const struct frame_user *user, const struct frame_look *l)
{
	uint64_t breaks = 0;
	size_t at = 0;

	for (size_t i = 0; user->figures.looks > 0 && i < l->range_count; i++) {
		const struct hva_range *now = &l->ranges[i];
		uint64_t before = 0;

		while (at < user->range_count && user->ranges[at].end <= now->start)
			at++;
		for (size_t k = at; k < user->range_count && user->ranges[k].start < now->end; k++)
			before += user->ranges[k].broken_pages;
		breaks += now->broken_pages > before ? now->broken_pages - before : 0;
	}
	return breaks;
}

int frame_user_look(struct frame_users *u, struct frame_user *user)
{
	auto_close int pagemap_fd = pagestate_open(u->fs, user->pid);
	struct frame_look l = look_begin(u, pagemap_fd, true);
	struct activity active = { 0 };
	int r;

	activity_read(user->stat_fd, &active); /* before: what comes meanwhile counts for the next. Zeroes if it cannot be had */
	r = frame_look_process(&l, user->pid);
	if (r == 0 && l.figures.mappings == 0) /* its first thread has ended, others live on in its memory */
		r = -EAGAIN;
	if (r < 0 || process_ended(user)) { /* ended: the pid may have been another's meanwhile */
		free(l.ranges);
		free(l.frames.stretches);
		return process_ended(user) ? 0 : r;
	}
	l.figures.breaks = user->figures.breaks + breaks_since(user, &l);
	l.figures.looks = user->figures.looks + 1;
	free(user->ranges);
	user->ranges = l.ranges;
	user->range_count = l.range_count;
	free(user->mapped.stretches);
	user->mapped = l.frames;
	if (user->settled)
		user->asked.count = 0;
	user->changed = false;
	user->figures = l.figures;
	user->active = active;
	user->spared = 0;
	return 0;
}

const struct hva_range *frame_user_ranges(const struct frame_user *user, size_t *ret_count)
{
	*ret_count = user->range_count;
	return user->ranges;
}

/* Others: children of clients, or who was given the descriptor. */
static int others_look(struct frame_users *u)
{
	DIR *proc = fsio_opendir(u->fs, "/proc");
	struct dirent *entry;
	int r = 0;

	if (!proc)
		return -errno;
	while (r == 0 && (entry = readdir(proc))) {
		struct frame_look l = look_begin(u, -1, false);
		pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;

		if (pid <= 0 || pid == getpid() || frame_users_find(u, pid))
			continue;
		r = frame_look_process(&l, pid);
		if (r == 0 && l.figures.mappings == 0)
			r = frame_look_threads(&l, pid);
		frames_mark(u, &l.frames);
		free(l.frames.stretches);
		/* It has ended; or it is more privileged than this daemon, and so no child of a client, which are not,
		 * or their own mappings could not be read either. */
		if (r == -ENOENT || r == -ESRCH || r == -EACCES)
			r = 0;
		if (r == 0 && l.views)
			r = -EBUSY;
	}
	closedir(proc);
	return r;
}

int frame_users_look(struct frame_users *u, const uint64_t **ret_bits)
{
	int r = 0;

	clients_drop_ended(u);
	memset(u->used, 0, u->used_words * sizeof(*u->used));
	for (size_t i = 0; i < u->count && r == 0; i++) {
		struct frame_user *user = u->clients[i];

		if (user->changed)
			r = frame_user_look(u, user);
		frames_mark(u, &user->mapped);
		frames_mark(u, &user->asked);
	}
	if (r == 0)
		r = others_look(u);
	if (r < 0)
		return r;
	u->ended = false;
	*ret_bits = u->used;
	return 0;
}

bool frame_users_stale(const struct frame_users *u)
{
	bool stale = u->ended;

	for (size_t i = 0; i < u->count; i++)
		stale |= u->clients[i]->changed || process_ended(u->clients[i]);
	return stale;
}

/* A copy is a fault, so fewer faults than this share of what is mapped cannot be copies of more. A look lists thousands of
 * mappings; it is made all the same after some that were spared. */
#define CALM_SHARE 256
#define SPARED_LOOKS 8

static bool is_calm(struct frame_user *user)
{
	struct activity now;

	if (user->changed || user->figures.looks == 0 || activity_read(user->stat_fd, &now) < 0 ||
	    activity_pages(&user->active, &now) > user->figures.mapped_pages / CALM_SHARE)
		return false;
	return user->spared++ < SPARED_LOOKS;
}

int frame_users_look_clients(struct frame_users *u)
{
	int r = 0;

	clients_drop_ended(u);
	for (size_t i = 0; i < u->count && r == 0; i++) {
		if (is_calm(u->clients[i]))
			u->clients[i]->figures.looks++; /* as if it had found no copy more */
		else
			r = frame_user_look(u, u->clients[i]);
	}
	return r;
}

const struct frame_user_figures *frame_user_figures(const struct frame_user *user)
{
	return &user->figures;
}
