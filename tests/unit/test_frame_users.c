/* ksmd/frame_users: who maps which frames, as the kernel sees it. The clients are real processes. */
#include "ksmd/frame_look.h"

#include "tests/unit/store_help.h"

#define LAST (FRAMES - 1)

/* A process that maps and unmaps frames as it is told. */
struct client {
	pid_t pid;
	int pidfd, to, from;
};

enum order { MAP, MAP_VIEW, UNMAP, WRITE, FORK, KILL_CHILD, END };

struct command {
	enum order order;
	uint32_t first, n;
};

static char *frame_maps[FRAMES]; /* in the client */

static void client_map(int fd, const struct command *c)
{
	bool view = c->order == MAP_VIEW;
	char *map = mmap(NULL, (size_t)c->n * PAGE_BYTES, view ? PROT_READ : PROT_READ | PROT_WRITE,
			 view ? MAP_SHARED : MAP_PRIVATE, fd, (off_t)c->first * PAGE_BYTES);

	unit_must(map != MAP_FAILED, "mmap");
	for (uint32_t i = 0; i < c->n && !view; i++)
		frame_maps[c->first + i] = map + (size_t)i * PAGE_BYTES;
}

static void client_main(int fd, int from, int to)
{
	struct command c;
	pid_t child = -1;

	while (read(from, &c, sizeof(c)) == sizeof(c) && c.order != END) {
		if (c.order == MAP || c.order == MAP_VIEW)
			client_map(fd, &c);
		if (c.order == UNMAP)
			munmap(frame_maps[c.first], (size_t)c.n * PAGE_BYTES);
		for (uint32_t i = 0; c.order == WRITE && i < c.n; i++)
			frame_maps[c.first + i][0] = 1;
		if (c.order == FORK && (child = fork()) == 0)
			for (;;)
				pause();
		if (c.order == KILL_CHILD) {
			kill(child, SIGKILL);
			waitpid(child, NULL, 0);
		}
		unit_must(write(to, "", 1) == 1, "write");
	}
	_exit(0);
}

static void client_start(struct client *c, const struct store *s)
{
	int fd = store_client_fd(s), there[2], back[2];

	unit_must(fd >= 0 && pipe(there) == 0 && pipe(back) == 0, "pipe");
	c->pid = fork();
	unit_must(c->pid >= 0, "fork");
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(there[1]);
		client_main(fd, there[0], back[1]);
	}
	close(there[0]);
	close(back[1]);
	close(fd);
	c->to = there[1];
	c->from = back[0];
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	unit_must(c->pidfd >= 0, "pidfd_open");
}

static void tell(struct client *c, enum order order, uint32_t first, uint32_t n)
{
	struct command command = { order, first, n };
	char done;

	unit_must(write(c->to, &command, sizeof(command)) == sizeof(command), "write");
	if (order != END)
		unit_must(read(c->from, &done, 1) == 1, "read");
}

static void client_end(struct client *c)
{
	tell(c, END, 0, 0);
	waitpid(c->pid, NULL, 0);
	close(c->to);
	close(c->from);
	close(c->pidfd);
}

/* ---- the store, one client, and what is in use ---- */

static struct {
	struct store *store;
	struct frame_users *users;
	struct client client;
	struct frame_user *user;
} rig;

static void rig_start(void)
{
	rig.store = new_store(FRAMES);
	unit_must(frame_users_new(&fs, store_inode(rig.store), FRAMES, &rig.users) == 0, "frame_users_new");
	client_start(&rig.client, rig.store);
	rig.user = frame_users_client(rig.users, rig.client.pid, rig.client.pidfd);
	unit_must(rig.user, "frame_users_client");
}

static void rig_stop(void)
{
	frame_users_free(rig.users);
	client_end(&rig.client);
	store_free(rig.store);
}

/* How many frames are in use, and whether all of [first, first + n) are. */
static unsigned used(uint32_t first, uint32_t n, bool *ret_all)
{
	const uint64_t *bits = NULL;
	unsigned sum = 0, within = 0;

	CU_ASSERT_EQUAL_FATAL(frame_users_look(rig.users, &bits), 0);
	for (uint32_t f = 0; f < FRAMES; f++) {
		bool set = bits[f / 64] >> f % 64 & 1;

		sum += set;
		within += set && f >= first && f < first + n;
	}
	*ret_all = within == n;
	return sum;
}

static void test_users_mappings_tell(void)
{
	const struct hva_range *where;
	size_t ranges;
	bool all;

	rig_start();
	tell(&rig.client, MAP, 10, 20);
	tell(&rig.client, MAP, LAST, 1);
	CU_ASSERT_EQUAL(used(10, 20, &all), 21);
	CU_ASSERT_TRUE(all);
	CU_ASSERT_EQUAL(frame_user_figures(rig.user)->mapped_pages, 21);
	CU_ASSERT_EQUAL(frame_user_figures(rig.user)->broken_pages, 0);
	CU_ASSERT_TRUE(frame_user_figures(rig.user)->mappings > 5);
	frame_user_ranges(rig.user, &ranges);
	CU_ASSERT_TRUE(ranges == 1 || ranges == 2); /* the kernel may put both side by side */
	tell(&rig.client, WRITE, 12, 3); /* copied on write is mapped still */
	frame_user_changed(rig.user);
	CU_ASSERT_EQUAL(used(10, 20, &all), 21);
	CU_ASSERT_EQUAL(frame_user_figures(rig.user)->broken_pages, 3);
	where = frame_user_ranges(rig.user, &ranges);
	for (size_t i = 0, pages = 0; i < ranges; i++) {
		pages += (where[i].end - where[i].start) / PAGE_BYTES;
		CU_ASSERT_TRUE(i + 1 < ranges || pages == 21);
	}
	tell(&rig.client, UNMAP, 10, 20);
	CU_ASSERT_EQUAL(used(LAST, 1, &all), 21); /* nobody has said that it changed: what was known stands */
	CU_ASSERT_FALSE(frame_users_stale(rig.users));
	frame_user_changed(rig.user);
	CU_ASSERT_TRUE(frame_users_stale(rig.users));
	CU_ASSERT_EQUAL(used(LAST, 1, &all), 1);
	CU_ASSERT_TRUE(all);
	rig_stop();
}

static uint64_t breaks(void)
{
	CU_ASSERT_EQUAL_FATAL(frame_user_look(rig.users, rig.user), 0);
	return frame_user_figures(rig.user)->breaks;
}

/* Only copies are breaks: neither what is mapped anew, nor what is given back. */
static void test_users_breaks_are_counted_once(void)
{
	rig_start();
	tell(&rig.client, MAP, 100, 20);
	tell(&rig.client, WRITE, 100, 2);
	CU_ASSERT_EQUAL(breaks(), 0); /* the first look cannot tell since when */
	CU_ASSERT_EQUAL(breaks(), 0);
	tell(&rig.client, WRITE, 100, 5);
	CU_ASSERT_EQUAL(breaks(), 3);
	CU_ASSERT_EQUAL(breaks(), 3);
	tell(&rig.client, MAP, 10, 20); /* written before it was looked at */
	tell(&rig.client, WRITE, 12, 4);
	CU_ASSERT_EQUAL(breaks(), 7);
	tell(&rig.client, UNMAP, 10, 20);
	CU_ASSERT_EQUAL(breaks(), 7);
	CU_ASSERT_EQUAL(frame_user_figures(rig.user)->broken_pages, 5);
	tell(&rig.client, WRITE, 110, 1);
	CU_ASSERT_EQUAL(breaks(), 8);
	CU_ASSERT_EQUAL(frame_user_figures(rig.user)->looks, 7);
	rig_stop();
}

static void test_users_view_for_comparing_is_no_use(void)
{
	bool all;

	rig_start();
	tell(&rig.client, MAP_VIEW, 0, FRAMES);
	CU_ASSERT_EQUAL(used(0, 0, &all), 0);
	rig_stop();
}

static void test_users_commands_without_an_answer_count(void)
{
	bool all;

	rig_start();
	frame_user_ask(rig.user, 100, 50);
	CU_ASSERT_EQUAL(used(100, 50, &all), 50); /* not mapped, but it may still come */
	CU_ASSERT_EQUAL(used(100, 50, &all), 50);
	tell(&rig.client, MAP, 110, 5);
	frame_user_settle(rig.user);
	CU_ASSERT_EQUAL(used(110, 5, &all), 5);
	CU_ASSERT_TRUE(all);
	frame_user_ask(rig.user, 100, 50); /* asked anew: the old answer does not count for it */
	frame_user_changed(rig.user);
	CU_ASSERT_EQUAL(used(100, 50, &all), 50);
	rig_stop();
}

static void test_users_many_stretches_all_count(void)
{
	unsigned asked = 0;
	bool all;

	rig_start();
	for (uint32_t f = 0; f < FRAMES; f += 1 + f % 3, asked++)
		CU_ASSERT_EQUAL(frame_user_ask(rig.user, f, 1), 0);
	CU_ASSERT_EQUAL(used(0, 0, &all), asked);
	frame_user_ask(rig.user, 60, 140); /* over several words */
	used(60, 140, &all);
	CU_ASSERT_TRUE(all);
	frame_user_settle(rig.user);
	CU_ASSERT_EQUAL(used(0, 0, &all), 0);
	rig_stop();
}

static void test_users_ended_client_uses_nothing(void)
{
	struct client other;
	bool all;

	rig_start();
	client_start(&other, rig.store);
	unit_must(frame_users_client(rig.users, other.pid, other.pidfd), "client");
	tell(&other, MAP, 40, 4);
	frame_user_ask(frame_users_find(rig.users, other.pid), 50, 2);
	CU_ASSERT_EQUAL(used(40, 4, &all), 6);
	kill(other.pid, SIGKILL);
	waitpid(other.pid, NULL, 0);
	CU_ASSERT_TRUE(frame_users_stale(rig.users));
	CU_ASSERT_EQUAL(used(40, 4, &all), 0);
	CU_ASSERT_PTR_NULL(frame_users_find(rig.users, other.pid));
	close(other.to);
	close(other.from);
	close(other.pidfd);
	rig_stop();
}

static void test_users_forked_child_counts(void)
{
	bool all;

	rig_start();
	tell(&rig.client, MAP, 7, 3);
	tell(&rig.client, FORK, 0, 0);
	tell(&rig.client, UNMAP, 7, 3);
	frame_user_changed(rig.user);
	CU_ASSERT_EQUAL(used(7, 3, &all), 3); /* the child was never a client */
	CU_ASSERT_TRUE(all);
	tell(&rig.client, KILL_CHILD, 0, 0);
	CU_ASSERT_EQUAL(used(7, 3, &all), 0);
	rig_stop();
}

/* What maps the store as agents do and is no client may have old commands to carry out. */
static void test_users_stranger_with_a_view_nothing_known(void)
{
	const uint64_t *bits;
	struct client other;

	rig_start();
	client_start(&other, rig.store);
	tell(&other, MAP, 3, 1);
	CU_ASSERT_EQUAL(frame_users_look(rig.users, &bits), 0);
	tell(&other, MAP_VIEW, 0, FRAMES);
	CU_ASSERT_EQUAL(frame_users_look(rig.users, &bits), -EBUSY);
	unit_must(frame_users_client(rig.users, other.pid, other.pidfd), "client"); /* it has said hello */
	CU_ASSERT_EQUAL(frame_users_look(rig.users, &bits), 0);
	client_end(&other);
	rig_stop();
}

static void test_users_store_of_an_earlier_daemon_found(void)
{
	struct client other;
	int fd;

	rig_start();
	client_start(&other, rig.store);
	CU_ASSERT_EQUAL(frame_look_find_store(&fs, other.pid, "test"), -ENOENT);
	tell(&other, MAP, 3, 1);
	fd = frame_look_find_store(&fs, other.pid, "test");
	CU_ASSERT_TRUE(fd >= 0 && store_is(rig.store, fd));
	close(fd);
	CU_ASSERT_EQUAL(frame_look_find_store(&fs, other.pid, "tes"), -ENOENT);
	CU_ASSERT_EQUAL(frame_look_find_store(&fs, other.pid, "test2"), -ENOENT);
	client_end(&other);
	rig_stop();
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "mappings", test_users_mappings_tell },
		{ "breaks", test_users_breaks_are_counted_once },
		{ "view", test_users_view_for_comparing_is_no_use },
		{ "asked", test_users_commands_without_an_answer_count },
		{ "many", test_users_many_stretches_all_count },
		{ "ended", test_users_ended_client_uses_nothing },
		{ "child", test_users_forked_child_counts },
		{ "stranger", test_users_stranger_with_a_view_nothing_known },
		{ "find_store", test_users_store_of_an_earlier_daemon_found },
		CU_TEST_INFO_NULL,
	};
	int r;

	if (geteuid() != 0) {
		puts("skip: frame_users: needs root to see the mappings of all processes");
		return 77;
	}
	unit_must(fsio_open_root("/", false, &fs) == 0, "fsio_open_root");
	r = unit_main("frame_users", tests);
	fsio_close(&fs);
	return r;
}
