/* The libvirt driver with the real library: its built-in test driver, and servers that refuse, hang or talk nonsense. */
#include "balloon/port_libvirt.h"

#include <libvirt/libvirt.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-event.h>

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define URI "test:///default"

static char dir[UNIT_DIR_MAX];
static struct fsio fs;
static sd_event *loop;
static struct port_libvirt *port;

static void on_changed(void *userdata)
{
	(void)userdata;
}

static const struct port_libvirt_ops ops = { .changed = on_changed };

static void begin(const char *uri)
{
	unit_dir_new(dir);
	unit_file(dir, "run/libvirt/qemu/test.pid", "4242");
	unit_must(fsio_open_root(dir, false, &fs) == 0, dir);
	unit_must(sd_event_new(&loop) >= 0, "sd-event");
	unit_must(port_libvirt_new(loop, uri, &fs, &ops, NULL, &port) == 0, "port");
}

static void end(void)
{
	port = port_libvirt_free(port);
	loop = sd_event_unref(loop);
	fsio_close(&fs);
	unit_dir_remove(dir);
}

static void tick(void)
{
	port_libvirt_want(port);
	port_libvirt_ask(port);
	sd_event_run(loop, 20000);
}

#define UNTIL(condition)                                                 \
	do {                                                             \
		uint64_t end_ = clock_mono_ns() + 60 * NSEC_PER_SEC;     \
		while (!(condition) && clock_mono_ns() < end_)           \
			tick();                                          \
		UNIT_CASE("in time", condition);                         \
	} while (0)

static void test_domain_of_the_test_driver_comes_and_goes(void)
{
	char uuid[VIR_UUID_STRING_BUFLEN];
	struct balloon_told t;
	virConnectPtr conn;
	virDomainPtr dom;

	begin(URI);
	port_libvirt_want(port); /* registers the event loop, which must be before our own connection */
	UNTIL(!port_libvirt_told(port, "6695eb01-f6a4-8304-79aa-000000000000", 4242, &t) &&
	      strcmp(t.why, "libvirt knows no such domain") == 0);
	conn = virConnectOpen(URI);
	unit_must(conn, URI);
	dom = virDomainLookupByName(conn, "test");
	unit_must(dom && virDomainGetUUIDString(dom, uuid) == 0, "domain test");

	UNTIL(port_libvirt_told(port, uuid, 4242, &t) && t.device == BALLOON_DEVICE_PRESENT);
	CU_ASSERT_FALSE(port_libvirt_told(port, uuid, 4243, &t));
	CU_ASSERT_EQUAL(port_libvirt_set(port, uuid, 4242, 1024 * MIB), 0);
	{
		virDomainInfo info = { 0 };

		UNTIL(virDomainGetInfo(dom, &info) == 0 && info.memory == 1024 * 1024);
	}
	unit_must(virDomainDestroy(dom) == 0, "destroy");
	UNTIL(!port_libvirt_told(port, uuid, 4242, &t));
	unit_must(virDomainCreate(dom) == 0, "create");
	UNTIL(port_libvirt_told(port, uuid, 4242, &t) && t.device == BALLOON_DEVICE_PRESENT);
	virDomainFree(dom);
	virConnectClose(conn);
	end();
}

static void test_uri_that_nobody_serves_reason_told(void)
{
	static const char *const uris[] = { "bogus:///system", "qemu+unix:///system?socket=/nonexistent/sock" };

	for (size_t i = 0; i < ARRAY_SIZE(uris); i++) {
		struct balloon_told t;

		begin(uris[i]);
		UNTIL(!port_libvirt_told(port, "6695eb01-f6a4-8304-79aa-97f2502e193f", 4242, &t) &&
		      strncmp(t.why, "no connection to libvirt: ", 26) == 0 && !strstr(t.why, "not asked") &&
		      !strstr(t.why, "connecting"));
		CU_ASSERT_EQUAL(port_libvirt_set(port, "6695eb01-f6a4-8304-79aa-97f2502e193f", 4242, MIB), -ENOTCONN);
		printf("    %s: %s\n", uris[i], t.why);
		end();
	}
}

static int listener_new(char uri[CONFIG_TEXT_MAX + 64])
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/memvirt-unit-%d.sock", getpid());
	unlink(addr.sun_path);
	unit_must(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 4) == 0, addr.sun_path);
	snprintf(uri, CONFIG_TEXT_MAX, "qemu+unix:///system?socket=%s", addr.sun_path);
	return fd;
}

static unsigned int thread_count(void)
{
	unsigned int count = 0;
	DIR *tasks = opendir("/proc/self/task");

	unit_must(tasks, "/proc/self/task");
	while (readdir(tasks))
		count++;
	closedir(tasks);
	return count - 2;
}

/* As a libvirtd that is stopped. */
static void test_server_silent_free_ends(void)
{
	char uri[CONFIG_TEXT_MAX + 64];
	int listener = listener_new(uri), peer;
	unsigned int before;
	struct balloon_told t;

	begin(uri);
	before = thread_count();
	port_libvirt_want(port);
	peer = accept(listener, NULL, NULL); /* it is connecting now */
	unit_must(peer >= 0, "accept");
	CU_ASSERT_FALSE(port_libvirt_told(port, "6695eb01-f6a4-8304-79aa-97f2502e193f", 4242, &t));
	end();
	close(peer);
	close(listener);
	unlink(strchr(uri, '=') + 1);
	/* The thread that was left to itself finds out. libvirt's event loop stays for good. */
	for (uint64_t give_up = clock_mono_ns() + 60 * NSEC_PER_SEC;
	     thread_count() > before + 1 && clock_mono_ns() < give_up;)
		usleep(10000);
	CU_ASSERT(thread_count() <= before + 1);
}

static void test_server_talks_nonsense_reason_told(void)
{
	static const char nonsense[] = "\xff\xff\xff\xff HTTP/1.1 400 Bad Request\r\n\r\n";
	char uri[CONFIG_TEXT_MAX + 64];
	int listener = listener_new(uri), peer;
	struct balloon_told t;

	begin(uri);
	port_libvirt_want(port);
	peer = accept(listener, NULL, NULL);
	unit_must(peer >= 0 && send(peer, nonsense, sizeof(nonsense), MSG_NOSIGNAL) > 0, "send");
	close(listener);
	UNTIL(!port_libvirt_told(port, "6695eb01-f6a4-8304-79aa-97f2502e193f", 4242, &t) && !strstr(t.why, "not asked") &&
	      !strstr(t.why, "connecting"));
	printf("    nonsense: %s\n", t.why);
	close(peer);
	unlink(strchr(uri, '=') + 1);
	end();
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "a domain of the test driver comes and goes", test_domain_of_the_test_driver_comes_and_goes },
		{ "a URI that nobody serves: the reason is told", test_uri_that_nobody_serves_reason_told },
		{ "a silent server: free ends", test_server_silent_free_ends },
		{ "a server that talks nonsense: the reason is told", test_server_talks_nonsense_reason_told },
		CU_TEST_INFO_NULL,
	};

	return unit_main("port_libvirt_real", tests);
}
