#include "agent/eligible.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "core/cleanup.h"

struct vma {
	uint64_t start, end, inode;
	char perms[5];
};

static const struct {
	const char *flag;
	int err;
	const char *why;
} refused[] = {
	{ "sh", -EOPNOTSUPP, "memory is shared" },	 { "lo", -EPERM, "memory is locked (mlock)" },
	{ "ht", -EOPNOTSUPP, "memory is hugetlb" },	 { "io", -EOPNOTSUPP, "memory is a device's" },
	{ "pf", -EOPNOTSUPP, "memory is a device's" },	 { "mm", -EOPNOTSUPP, "memory is a device's" },
	{ "sl", -EPERM, "memory is sealed (mseal)" },	 { "gd", -EOPNOTSUPP, "memory grows down" },
	{ "dp", -EOPNOTSUPP, "memory may be dropped" },	 { "ss", -EOPNOTSUPP, "memory is a shadow stack" },
	{ "wf", -EOPNOTSUPP, "memory is wiped on fork" },
};

static bool has_flag(const char *flags, const char *name)
{
	for (const char *p = flags; (p = strstr(p, name)); p++) {
		if (p[-1] == ' ' && (p[2] == ' ' || p[2] == '\n' || p[2] == '\0'))
			return true;
	}
	return false;
}

static int vma_attrs(const struct vma *v, const char *flags, bool registered, struct ram_attrs *a,
		     const char **ret_why)
{
	*ret_why = "memory is not private, readable and writable only";
	if (strcmp(v->perms, "rw-p") != 0)
		return -EOPNOTSUPP;
	*ret_why = "memory belongs to a file";
	if (v->inode != 0)
		return -EOPNOTSUPP;
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		*ret_why = refused[i].why;
		if (has_flag(flags, refused[i].flag))
			return refused[i].err;
	}
	*ret_why = "memory is registered by another userfaultfd (postcopy?)";
	if (!registered && (has_flag(flags, "um") || has_flag(flags, "uw") || has_flag(flags, "ui")))
		return -EBUSY;
	a->dontfork = has_flag(flags, "dc");
	a->dontdump = has_flag(flags, "dd");
	a->mergeable = has_flag(flags, "mg");
	a->hugepage = has_flag(flags, "hg");
	a->nohugepage = has_flag(flags, "nh");
	a->noreserve = has_flag(flags, "nr");
	return 0;
}

static int policy_get(uint64_t addr, struct ram_attrs *a)
{
	/* ENOSYS: a kernel without NUMA has no policies to lose. */
	if (syscall(SYS_get_mempolicy, &a->policy, a->nodes, sizeof(a->nodes) * 8, addr, MPOL_F_ADDR) < 0)
		return errno == ENOSYS ? 0 : -errno;
	return 0;
}

int eligible_check(uint64_t addr, size_t len, bool registered, struct ram_attrs *ret_attrs, const char **ret_why)
{
	auto_fclose FILE *f = fopen("/proc/self/smaps", "re");
	auto_free char *line = NULL;
	struct ram_attrs all = { 0 };
	struct vma v = { 0 };
	uint64_t covered = addr;
	size_t cap = 0;
	int err;

	*ret_why = "/proc/self/smaps cannot be read";
	if (!f)
		return -errno;
	while (covered < addr + len && getline(&line, &cap, f) > 0) {
		struct ram_attrs one = { 0 };
		struct vma next;

		/* Not into v: the A of "AnonHugePages:" is a number, too. */
		if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &next.start, &next.end, next.perms, &next.inode) == 4) {
			v = next;
			continue;
		}
		if (strncmp(line, "VmFlags:", 8) != 0 || v.end <= covered)
			continue;
		if (v.start > covered)
			break;
		err = vma_attrs(&v, line, registered, &one, ret_why);
		if (err == 0)
			err = policy_get(covered, &one);
		if (err < 0)
			return err;
		*ret_why = "memory has not the same attributes everywhere";
		if (covered != addr && memcmp(&one, &all, sizeof(one)) != 0)
			return -EOPNOTSUPP;
		all = one;
		covered = v.end;
	}
	*ret_why = "memory is not mapped";
	if (covered < addr + len)
		return -ENOMEM;
	*ret_attrs = all;
	return 0;
}

int eligible_process(const char **ret_why)
{
	auto_fclose FILE *f = fopen("/proc/self/status", "re");
	char line[128];
	unsigned long value;

	*ret_why = "/proc/self/status cannot be read";
	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		*ret_why = "a debugger is attached";
		if (sscanf(line, "TracerPid: %lu", &value) == 1 && value != 0)
			return -EBUSY;
	}
	return 0;
}

unsigned ram_attrs_apply(const struct ram_attrs *a, uint64_t addr, size_t len)
{
	const struct {
		bool on;
		int advice;
	} advices[] = {
		{ a->dontfork, MADV_DONTFORK },	  { a->dontdump, MADV_DONTDUMP },
		{ a->mergeable, MADV_MERGEABLE }, { a->hugepage, MADV_HUGEPAGE },
		{ a->nohugepage, MADV_NOHUGEPAGE },
	};
	unsigned refusals = 0;

	for (size_t i = 0; i < ARRAY_SIZE(advices); i++) {
		if (advices[i].on && syscall(SYS_madvise, addr, len, advices[i].advice) < 0)
			refusals++;
	}
	if (a->policy != MPOL_DEFAULT &&
	    syscall(SYS_mbind, addr, len, a->policy, a->nodes, sizeof(a->nodes) * 8, 0) < 0)
		refusals++;
	return refusals;
}

size_t mappings_count(void)
{
	auto_close int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	char buf[4096];
	size_t lines = 0;
	ssize_t n;

	if (fd < 0)
		return 0;
	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++)
			lines += buf[i] == '\n';
	}
	return n < 0 ? 0 : lines;
}

size_t mappings_limit(void)
{
	auto_close int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
	char buf[32] = "";

	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0)
		return 65530; /* the kernel's default */
	return strtoul(buf, NULL, 10);
}
