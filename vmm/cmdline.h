/* vmm/cmdline.h - what a QEMU command line says about its VM. Pure. */
#ifndef VMM_CMDLINE_H
#define VMM_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/text.h"

#define VM_NAME_MAX 256
#define VM_UUID_MAX TEXT_UUID_MAX
#define VM_MACHINE_MAX 64
#define VM_PATH_MAX 108 /* sockaddr_un */

struct vmm_cmdline {
	char name[VM_NAME_MAX];	      /* -name NAME or guest=NAME; empty: none given */
	char uuid[VM_UUID_MAX];	      /* lower case; empty: none given */
	char machine[VM_MACHINE_MAX]; /* -machine / -M type; empty: none given */
	char qmp_path[VM_PATH_MAX];   /* first QMP server socket on the file system; empty: none. Never libvirt's. */
	uint64_t ram_bytes;	      /* -m; QEMU's default of 128 MiB when absent */
	bool mem_merge;		      /* -machine mem-merge=; QEMU's default is on */
	bool mem_lock;		      /* -overcommit mem-lock=on (or the old -realtime mlock=on) */
	bool libvirt;		      /* libvirt's, by its master-key secret or the chardev of its monitor */
};

/* True when program (a path, as in argv[0] or /proc/PID/exe) names a QEMU system emulator. The kernel's
 * " (deleted)" behind the path of a replaced binary is ignored. */
bool vmm_cmdline_is_qemu(const char *program);

/* cmdline is the content of /proc/PID/cmdline (len bytes, arguments ended by NUL; the last may be cut).
 * True when argv[0] is a QEMU system emulator's and ret_cmdline was filled. Names may hold blanks, newlines
 * and UTF-8; bytes that are not UTF-8 become '?'. Values too long for their field are cut for name and
 * machine and dropped for the rest. A value is never taken for an option, whatever it looks like. */
bool vmm_cmdline_parse(const char *cmdline, size_t len, struct vmm_cmdline *ret_cmdline);

/* Same for a process that is known to be QEMU by other means: argv[0] is not looked at. */
void vmm_cmdline_parse_args(const char *cmdline, size_t len, struct vmm_cmdline *ret_cmdline);

#endif
