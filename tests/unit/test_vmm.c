/* What vmm/ reads from /proc: command lines, stat lines, text. No processes. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "vmm/cmdline.h"
#include "vmm/discover.h"
#include "core/text.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* A command line as /proc has it: the literal's own NUL ends the last argument. */
#define ARGS(text) (text), sizeof(text)
#define QEMU "qemu-system-x86_64\0"

#define LIBVIRT_HEAD                                                                                         \
	"/usr/bin/qemu-system-x86_64\0-name\0guest=deb12,debug-threads=on\0-S\0-object\0"                   \
	"{\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":\"/var/lib/libvirt/"    \
	"qemu/domain-1-deb12/master-key.aes\"}\0-machine\0pc-q35-7.2,usb=off,dump-guest-core=off,"          \
	"memory-backend=pc.ram\0-accel\0kvm\0-cpu\0host,migratable=on\0-m\0size=2097152k\0-object\0"        \
	"{\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":2147483648}\0-overcommit\0"        \
	"mem-lock=off\0-smp\0" "2,sockets=2,cores=1,threads=1\0-uuid\0"                                     \
	"4DEA22B3-1D52-D8F3-2516-782E98AB3FA0\0-no-user-config\0-nodefaults\0"
#define LIBVIRT_TAIL                                                                                         \
	"-mon\0chardev=charmonitor,id=monitor,mode=control\0-rtc\0base=utc\0-no-shutdown\0-boot\0strict=on\0" \
	"-blockdev\0{\"driver\":\"file\",\"filename\":\"/d.img\",\"node-name\":\"n1\"}\0-msg\0timestamp=on"

struct cmdline_case {
	const char *what;
	const char *text;
	size_t len;
	const char *name, *uuid, *machine, *qmp_path; /* NULL: empty */
	uint64_t ram_bytes;			      /* 0: the default */
	bool no_merge, lock, libvirt;
};

static const struct cmdline_case cmdline_cases[] = {
	{ "program alone", ARGS("/usr/bin/qemu-system-aarch64"), NULL, NULL, NULL, NULL, 0, false, false, false },
	{ "libvirt, monitor by descriptor",
	  ARGS(LIBVIRT_HEAD "-chardev\0socket,id=charmonitor,fd=29,server=on,wait=off\0" LIBVIRT_TAIL), "deb12",
	  "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "pc-q35-7.2", NULL, 2 * GIB, false, false, true },
	{ "libvirt of old, monitor by path, no secret",
	  ARGS(QEMU "-name\0guest=a\0-chardev\0socket,id=charmonitor,path=/var/lib/libvirt/qemu/a/monitor.sock,"
		    "server,nowait\0" LIBVIRT_TAIL),
	  "a", NULL, NULL, NULL, 0, false, false, true },
	{ "libvirt with a second monitor for others",
	  ARGS(LIBVIRT_HEAD "-chardev\0socket,id=charmonitor,fd=29,server=on\0" LIBVIRT_TAIL
			    "\0-qmp\0unix:/run/other.qmp,server=on,wait=off"),
	  "deb12", "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "pc-q35-7.2", "/run/other.qmp", 2 * GIB, false, false,
	  true },
	{ "secret in key=value form", ARGS(QEMU "-object\0secret,id=masterKey0,format=raw"), NULL, NULL, NULL, NULL,
	  0, false, false, true },
	{ "another secret", ARGS(QEMU "-object\0secret,id=disk0\0-object\0rng-random,id=masterKey0"), NULL, NULL,
	  NULL, NULL, 0, false, false, false },
	{ "JSON object cut short", ARGS(QEMU "-object\0{\"qom-type\":\"secret\",\"id\":\"masterKey0\""), NULL, NULL,
	  NULL, NULL, 0, false, false, false },
	{ "plain", ARGS(QEMU "-name\0web\0-M\0q35,accel=kvm\0-m\0" "4G\0-qmp\0unix:/run/web.qmp,server=on,wait=off"),
	  "web", NULL, "q35", "/run/web.qmp", 4 * GIB, false, false, false },
	{ "two dashes, old flags", ARGS(QEMU "--name\0web\0--machine\0type=pc\0--qmp-pretty\0unix:/q,server,nowait"),
	  "web", NULL, "pc", "/q", 0, false, false, false },
	{ "proxmox",
	  ARGS("/usr/bin/kvm\0-id\0" "100\0-name\0vm100,debug-threads=on\0-no-shutdown\0-chardev\0"
	       "socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off\0-mon\0chardev=qmp,mode=control"
	       "\0-chardev\0socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5\0-mon\0"
	       "chardev=qmp-event,mode=control\0-daemonize\0-smbios\0type=1,uuid=x\0-m\0" "2048"),
	  "vm100", NULL, NULL, "/var/run/qemu-server/100.qmp", 2 * GIB, false, false, false },
	{ "mon before its chardev", ARGS(QEMU "-mon\0id=m,mode=control,chardev=c\0-chardev\0socket,path=/p,id=c,server"),
	  NULL, NULL, NULL, "/p", 0, false, false, false },
	{ "chardev in JSON",
	  ARGS(QEMU "-qmp\0chardev:c\0-chardev\0{\"id\":\"c\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":"
		    "{\"type\":\"unix\",\"data\":{\"path\":\"/j,x\"}},\"server\":true}}}"),
	  NULL, NULL, NULL, "/j,x", 0, false, false, false },
	{ "human monitors and clients are not servers",
	  ARGS(QEMU "-monitor\0unix:/hmp,server=on\0-qmp\0unix:/client\0-qmp\0unix:/off,server=off\0-qmp\0"
		    "tcp:localhost:4444,server=on\0-qmp\0stdio\0-qmp\0unix:/no,noserver\0-mon\0chardev=none,"
		    "mode=control\0-chardev\0socket,id=r,path=/r,server=on\0-mon\0chardev=r,mode=readline"),
	  NULL, NULL, NULL, NULL, 0, false, false, false },
	{ "first server of several, abstract and fd passed over",
	  ARGS(QEMU "-qmp\0unix:abs,server=on,abstract=on\0-qmp\0unix:fd=4,server=on\0-qmp\0unix:/b,server=on\0-qmp\0"
		    "unix:/c,server=on"),
	  NULL, NULL, NULL, "/b", 0, false, false, false },
	{ "comma escapes", ARGS(QEMU "-name\0a,,b=c,process=x\0-qmp\0unix:/tmp/a,,b,server=on"), "a,b=c", NULL, NULL,
	  "/tmp/a,b", 0, false, false, false },
	{ "name with blanks, quotes, newline and UTF-8", ARGS(QEMU "-name\0guest=\"a b\"\n\xc3\xa9\xe2\x82\xac,x=y"),
	  "\"a b\"\n\xc3\xa9\xe2\x82\xac", NULL, NULL, NULL, 0, false, false, false },
	{ "name that is not UTF-8", ARGS(QEMU "-name\0a\xff\xc3"), "a??", NULL, NULL, NULL, 0, false, false, false },
	{ "options inside values",
	  ARGS(QEMU "-append\0-name evil -m 5 -qmp unix:/e,server=on\0-kernel\0-name\0-initrd\0-qmp\0-S\0-name\0good\0"
		    "-serial\0-uuid\0disk.img"),
	  "good", NULL, NULL, NULL, 0, false, false, false },
	{ "merge off, lock on", ARGS(QEMU "-machine\0pc,mem-merge=off\0-overcommit\0mem-lock=on,cpu-pm=on"), NULL, NULL,
	  "pc", NULL, 0, true, true, false },
	{ "lock on fault", ARGS(QEMU "-overcommit\0mem-lock=on-fault"), NULL, NULL, NULL, NULL, 0, false, true, false },
	{ "realtime of old", ARGS(QEMU "-realtime\0mlock=off\0-machine\0mem-merge=off\0-M\0mem-merge=on"), NULL, NULL,
	  NULL, NULL, 0, false, false, false },
	{ "realtime locks by default", ARGS(QEMU "-realtime\0x=y"), NULL, NULL, NULL, NULL, 0, false, true, false },
	{ "bad and zero uuids are none",
	  ARGS(QEMU "-uuid\0" "4dea22b3-1d52-d8f3-2516-782e98ab3fag\0-uuid\0"
		    "00000000-0000-0000-0000-000000000000\0-uuid\0x"),
	  NULL, NULL, NULL, NULL, 0, false, false, false },
	{ "option at the end without its value", ARGS(QEMU "-name\0a\0-qmp"), "a", NULL, NULL, NULL, 0, false, false,
	  false },
	{ "cut in the middle of a value", QEMU "-name\0abc", sizeof(QEMU "-name\0abc") - 2, "ab", NULL, NULL, NULL, 0,
	  false, false, false },
	{ "machine in JSON is no machine", ARGS(QEMU "-machine\0{\"type\":\"q35\"}"), NULL, NULL, NULL, NULL, 0, false,
	  false, false },
	{ "dashes and empty arguments", ARGS(QEMU "\0-\0--\0\0-name\0"), NULL, NULL, NULL, NULL, 0, false, false, false },
};

static void test_cmdline_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(cmdline_cases); i++) {
		const struct cmdline_case *c = &cmdline_cases[i];
		struct vmm_cmdline got;
		bool ok = vmm_cmdline_parse(c->text, c->len, &got);

		if (ok)
			ok = strcmp(got.name, c->name ? c->name : "") == 0 && strcmp(got.uuid, c->uuid ? c->uuid : "") == 0 &&
			     strcmp(got.machine, c->machine ? c->machine : "") == 0 &&
			     strcmp(got.qmp_path, c->qmp_path ? c->qmp_path : "") == 0 &&
			     got.ram_bytes == (c->ram_bytes ? c->ram_bytes : 128 * MIB) && got.mem_merge == !c->no_merge &&
			     got.mem_lock == c->lock && got.libvirt == c->libvirt;
		if (!ok)
			fprintf(stderr, "case: %s\n", c->what);
		CU_ASSERT_TRUE(ok);
	}
}

static void test_cmdline_not_qemu_refused(void)
{
	static const struct {
		const char *text;
		size_t len;
	} cases[] = {
		{ "", 0 },
		{ "", 1 },
		{ ARGS("/bin/sh\0-c\0qemu-system-x86_64") },
		{ ARGS("qemu-system-") },
		{ ARGS("qemu-img\0convert") },
		{ ARGS("/usr/bin/qemu-system-x86_64/other") },
		{ ARGS("kvmtool") },
		{ ARGS("\xff\xfe\x01") },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vmm_cmdline got = { .ram_bytes = 7 };

		CU_ASSERT_FALSE(vmm_cmdline_parse(cases[i].text, cases[i].len, &got));
		CU_ASSERT_EQUAL(got.ram_bytes, 7);
	}
}

static void test_cmdline_program_names_known(void)
{
	CU_ASSERT_TRUE(vmm_cmdline_is_qemu("/usr/bin/qemu-system-x86_64"));
	CU_ASSERT_TRUE(vmm_cmdline_is_qemu("/usr/bin/qemu-system-x86_64 (deleted)"));
	CU_ASSERT_TRUE(vmm_cmdline_is_qemu("/usr/libexec/qemu-kvm"));
	CU_ASSERT_TRUE(vmm_cmdline_is_qemu("qemu-kvm (deleted)"));
	CU_ASSERT_TRUE(vmm_cmdline_is_qemu("kvm"));
	CU_ASSERT_FALSE(vmm_cmdline_is_qemu("kvm (deleted"));
	CU_ASSERT_FALSE(vmm_cmdline_is_qemu(" (deleted)"));
	CU_ASSERT_FALSE(vmm_cmdline_is_qemu(""));
}

static void test_cmdline_flags_take_no_value(void)
{
	static const char *const flags[] = {
		"-nographic", "-enable-kvm", "-daemonize", "-snapshot", "-usb", "-no-reboot", "-no-shutdown", "-no-hpet",
		"-no-acpi", "-s", "-S", "-nodefaults", "-no-user-config", "-mem-prealloc", "--preconfig", "-full-screen",
	};

	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		struct vmm_cmdline got;
		char text[64];
		int n = snprintf(text, sizeof(text), "kvm%c%s%c-name%cgood", 0, flags[i], 0, 0);

		CU_ASSERT_TRUE(vmm_cmdline_parse(text, (size_t)n + 1, &got));
		CU_ASSERT_STRING_EQUAL(got.name, "good");
	}
}

static void test_cmdline_memory_sizes_read(void)
{
	static const struct {
		const char *size;
		uint64_t bytes; /* 0: refused, the default stays */
	} cases[] = {
		{ "4096", 4096 * MIB },		{ "1G", GIB },		     { "1g", GIB },
		{ "1.5G", GIB + 512 * MIB },	{ "size=512M,slots=2", 512 * MIB }, { "slots=2,size=3G,maxmem=9G", 3 * GIB },
		{ "2097152k", 2 * GIB },	{ "1048576b", MIB },	     { "2T", 2048 * GIB },
		{ "0", 0 },			{ "", 0 },		     { "G", 0 },
		{ "-5", 0 },			{ "1GG", 0 },		     { "1Gx", 0 },
		{ "18446744073709551616", 0 },	{ "18446744073709551615", 0 }, { "9999999999E", 0 },
		{ "size=", 0 },			{ "1.", MIB },		     { ".5G", 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vmm_cmdline got;
		char text[128];
		int n = snprintf(text, sizeof(text), "kvm%c-m%c%s", 0, 0, cases[i].size);

		CU_ASSERT_TRUE(vmm_cmdline_parse(text, (size_t)n + 1, &got));
		CU_ASSERT_EQUAL(got.ram_bytes, cases[i].bytes ? cases[i].bytes : 128 * MIB);
	}
}

/* Builds "kvm OPTION PREFIX aaaa...SUFFIX" with count a's; the caller frees it. */
static char *long_cmdline(const char *option, const char *prefix, size_t count, const char *suffix, size_t *ret_len)
{
	size_t head = 4 + strlen(option) + 1 + strlen(prefix);
	char *text = calloc(1, head + count + strlen(suffix) + 1);

	if (!text)
		abort();
	sprintf(text, "kvm");
	sprintf(text + 4, "%s", option);
	sprintf(text + 4 + strlen(option) + 1, "%s", prefix);
	memset(text + head, 'a', count);
	memcpy(text + head + count, suffix, strlen(suffix));
	*ret_len = head + count + strlen(suffix) + 1;
	return text;
}

static void test_cmdline_huge_values_bounded(void)
{
	static const struct {
		const char *option, *prefix, *suffix;
	} cases[] = {
		{ "-name", "", "" },
		{ "-name", "\xc3\xa9", "" },
		{ "-machine", "type=", ",x=y" },
		{ "-qmp", "unix:/", ",server=on" },
		{ "-uuid", "", "" },
		{ "-m", "", "G" },
		{ "-chardev", "socket,id=", "" },
		{ "-object", "{\"id\":\"", "\"}" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vmm_cmdline got;
		size_t len;
		char *text = long_cmdline(cases[i].option, cases[i].prefix, 1 << 20, cases[i].suffix, &len);

		CU_ASSERT_TRUE(vmm_cmdline_parse(text, len, &got));
		CU_ASSERT_STRING_EQUAL(got.qmp_path, "");
		CU_ASSERT_STRING_EQUAL(got.uuid, "");
		CU_ASSERT_EQUAL(got.ram_bytes, 128 * MIB);
		CU_ASSERT_TRUE(i > 1 || strlen(got.name) == VM_NAME_MAX - 1);
		CU_ASSERT_TRUE(i != 2 || strlen(got.machine) == VM_MACHINE_MAX - 1);
		free(text);
	}
}

static void test_cmdline_path_at_limit_kept(void)
{
	struct vmm_cmdline got;
	size_t len;
	char *text = long_cmdline("-qmp", "unix:/", VM_PATH_MAX - 2, ",server=on", &len);

	CU_ASSERT_TRUE(vmm_cmdline_parse(text, len, &got));
	CU_ASSERT_EQUAL(strlen(got.qmp_path), VM_PATH_MAX - 1);
	free(text);
}

/* Every prefix of a real command line is read without a fault; the sanitizers watch. */
static void test_cmdline_truncated_anywhere_survives(void)
{
	static const char whole[] = LIBVIRT_HEAD "-chardev\0socket,id=charmonitor,fd=29,server=on\0" LIBVIRT_TAIL;

	for (size_t len = 0; len <= sizeof(whole); len++) {
		struct vmm_cmdline got;
		char *text = malloc(len ? len : 1);

		if (!text)
			abort();
		memcpy(text, whole, len);
		if (vmm_cmdline_parse(text, len, &got))
			CU_ASSERT(strlen(got.name) < sizeof(got.name));
		free(text);
	}
}

static void test_text_copy_cuts_between_characters(void)
{
	static const struct {
		const char *src, *want; /* into 6 bytes */
	} cases[] = {
		{ "", "" },
		{ "abcde", "abcde" },
		{ "abcdef", "abcde" },
		{ "abcd\xc3\xa9", "abcd" },
		{ "ab\xe2\x82\xac", "ab\xe2\x82\xac" },
		{ "a\xf0\x9f\x98\x80", "a\xf0\x9f\x98\x80" },
		{ "ab\xf0\x9f\x98\x80", "ab" },
		{ "\xc0\x80", "??" },		 /* overlong */
		{ "\xed\xa0\x80", "???" },	 /* surrogate */
		{ "\xf4\x90\x80\x80", "????" },	 /* above U+10FFFF */
		{ "\xe2\x82", "??" },		 /* cut */
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char got[6];

		text_copy(got, sizeof(got), cases[i].src, strlen(cases[i].src));
		CU_ASSERT_STRING_EQUAL(got, cases[i].want);
	}
}

static void test_stat_hostile_names_read(void)
{
#define REST " 33 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 987654321 11 12\n"
	static const struct {
		const char *text;
		int want;
	} cases[] = {
		{ "42 (qemu-system-x86) S" REST, 0 },
		{ "42 (a b) R 1 (x)) S" REST, 0 },
		{ "42 (a\n42 (x) Z 0) S" REST, 0 },
		{ "42 (:-() S" REST, 0 },
		{ "", -EBADMSG },
		{ "42 (a", -EBADMSG },
		{ "42 (a)", -EBADMSG },
		{ "42 (a) S", -EBADMSG },
		{ "42 (a) S 33 1 1 0 -1 5 5 5 5 5 5 5 5 5 5 5 5 5", -EBADMSG },
		{ "42 (a) S 99999999999 1 1 0 -1 5 5 5 5 5 5 5 5 5 5 5 5 5 5", -EBADMSG },
		{ "42 (a) S 33 1 1 0 -1 5 5 5 5 5 5 5 5 5 5 5 5 5 99999999999999999999999", -EBADMSG },
		{ "42 (a) S 33 x 1 0 -1 5 5 5 5 5 5 5 5 5 5 5 5 5 5", -EBADMSG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vmm_stat st = { .state = 0 };

		CU_ASSERT_EQUAL(vmm_stat_parse(cases[i].text, &st), cases[i].want);
		if (cases[i].want == 0) {
			CU_ASSERT_EQUAL(st.state, 'S');
			CU_ASSERT_EQUAL(st.ppid, 33);
			CU_ASSERT_EQUAL(st.start_ticks, 987654321);
		}
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "cmdline_table", test_cmdline_table_gives_expected },
		{ "cmdline_not_qemu", test_cmdline_not_qemu_refused },
		{ "cmdline_programs", test_cmdline_program_names_known },
		{ "cmdline_flags", test_cmdline_flags_take_no_value },
		{ "cmdline_memory", test_cmdline_memory_sizes_read },
		{ "cmdline_huge", test_cmdline_huge_values_bounded },
		{ "cmdline_path_limit", test_cmdline_path_at_limit_kept },
		{ "cmdline_truncated", test_cmdline_truncated_anywhere_survives },
		{ "text_copy", test_text_copy_cuts_between_characters },
		{ "stat", test_stat_hostile_names_read },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "vmm", NULL, NULL, NULL, NULL, tests }, CU_SUITE_INFO_NULL };
	unsigned int failed, run;

	if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS)
		return 1;
	CU_basic_set_mode(CU_BRM_NORMAL);
	CU_basic_run_tests();
	failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
	run = CU_get_number_of_tests_run();
	CU_cleanup_registry();
	return failed > 0 || run == 0;
}
