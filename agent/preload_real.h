/* agent/preload_real.h - the system calls that libmemvirt-agent.so interposes, as the kernel has them.
 *
 * Included by the compiler before every source of the library: what the agent itself calls must not come back to the
 * interposed function, which would wait for the lock that the agent holds. Raw calls need no symbol looked up: they
 * work before the library's own relocation is through, from inside an allocator, and in the window. */
#ifndef AGENT_PRELOAD_REAL_H
#define AGENT_PRELOAD_REAL_H

#include <stdarg.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline void *real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return (void *)(intptr_t)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

static inline int real_munmap(void *addr, size_t len)
{
	return (int)syscall(SYS_munmap, addr, len);
}

static inline void *real_mremap(void *addr, size_t len, size_t new_len, int flags, void *new_addr)
{
	return (void *)(intptr_t)syscall(SYS_mremap, addr, len, new_len, flags, new_addr);
}

static inline int real_madvise(void *addr, size_t len, int advice)
{
	return (int)syscall(SYS_madvise, addr, len, advice);
}

static inline int real_mprotect(void *addr, size_t len, int prot)
{
	return (int)syscall(SYS_mprotect, addr, len, prot);
}

static inline int real_ioctl(int fd, unsigned long request, uintptr_t arg)
{
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

#define mmap(...) real_mmap(__VA_ARGS__)
#define munmap(...) real_munmap(__VA_ARGS__)
#define mremap(...) real_mremap(__VA_ARGS__)
#define madvise(...) real_madvise(__VA_ARGS__)
#define mprotect(...) real_mprotect(__VA_ARGS__)
#define ioctl(fd, request, arg) real_ioctl(fd, request, (uintptr_t)(arg))

#endif
