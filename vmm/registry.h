/* vmm/registry.h - the VMs of this host: found in /proc, identified by {uuid, pidfd, start time}, reached by
 * QMP. Loop thread only. */
#ifndef VMM_REGISTRY_H
#define VMM_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "core/config.h"
#include "core/fsio.h"
#include "vmm/cmdline.h"
#include "vmm/qmp.h"

/* More VMs than this are not taken in: anybody on the host may start processes that look like one. */
#define VM_COUNT_MAX 1024

enum vm_state {
	VM_FOUND,	/* seen in /proc, QMP being connected or asked */
	VM_READY,	/* QMP answers */
	VM_NO_QMP,	/* no QMP socket known, or it belongs to libvirt */
	VM_UNREACHABLE, /* connect failed or the peer closed; tried again */
	VM_HUNG,	/* QMP did not answer in time; tried again */
	VM_GARBAGE,	/* QMP answered nonsense; tried again, rarely */
	VM_FLOOD,	/* QMP sent too much; tried again, rarely */
};

/* One VM. Valid until its gone() callback returns. Fields are the registry's; others only read. */
struct vm {
	/* The command line's name or, without one, the one that QMP tells at the first ready(); "pid-N" till
	 * then. Chosen by whoever started the VM: several may have the same. Always valid UTF-8. */
	char name[VM_NAME_MAX];
	/* The command line's or, without one, QMP's at the first ready(); till then, and for a VM that has
	 * none, made from pid and start time: PPPPPPPP-0000-8000-8000-SSSSSSSSSSSS in hexadecimal. That is
	 * stable over restarts of the daemon and a valid version 8 (private) UUID. May repeat as well. */
	char uuid[VM_UUID_MAX];
	char machine[VM_MACHINE_MAX]; /* QMP's, else the command line's, without "-machine" behind it */
	pid_t pid;
	int pidfd;	      /* owned by the registry; dup it for a worker */
	char own_domain[40];  /* "=PID-START": a domain of one that nobody can choose; see core/snapshot.h */
	uid_t uid;	      /* the process's real user; (uid_t)-1 when unknown */
	uint64_t start_ticks; /* /proc/PID/stat field 22 */
	uint64_t found_ns;    /* CLOCK_MONOTONIC */
	uint64_t ram_bytes;   /* configured memory at boot: QMP's, else the command line's */
	struct vmm_cmdline cmdline;
	struct config_vm settings;  /* config_for_vm(name) */
	char qmp_path[VM_PATH_MAX]; /* the socket in use, absolute; empty: none */
	enum vm_state state;
	char why[256];	 /* reason of the state, for people; may be empty */
	bool migrating;	 /* as far as QMP says: events, and asked again by every discovery */
	bool running;	 /* likewise; true when unknown */
	uint64_t resets; /* of the guest, as far as QMP says */
	struct qmp *qmp; /* NULL unless VM_READY */
	void *ept;	 /* the ept module's view of this VM */
	void *balloon;	 /* the balloon module's */
	struct vm *next; /* registry's list, in order of discovery */
};

struct vmm_registry;

/* Every member must be set. Callbacks may call everything of qmp.h but qmp_free(), and of this header but
 * new, free, discover and reconfigure. */
struct vmm_registry_ops {
	void (*added)(struct vm *vm, void *userdata);	/* state VM_FOUND or VM_NO_QMP */
	void (*ready)(struct vm *vm, void *userdata);	/* QMP usable (again); name, uuid are final now */
	void (*changed)(struct vm *vm, void *userdata); /* state (other than to ready), running or migrating */
	void (*gone)(struct vm *vm, void *userdata);	/* process ended; vm is freed after the call */
};

const char *vm_state_name(enum vm_state state);

/* fs, config and ops are borrowed and must outlive the registry; config may change in place
 * (vmm_registry_reconfigure() afterwards). loop is referenced. 0 or -ENOMEM. */
int vmm_registry_new(sd_event *loop, const struct fsio *fs, const struct config *config,
		     const struct vmm_registry_ops *ops, void *userdata, struct vmm_registry **ret_registry);
struct vmm_registry *vmm_registry_free(struct vmm_registry *r); /* NULL ok; gives NULL; no callbacks */

/* One sweep over /proc for VMs not known yet; asks known ones whether they run and migrate (a VMM that does
 * not answer becomes VM_HUNG). Reconnects come from the loop. Returns how many VMs are known or -errno. */
int vmm_registry_discover(struct vmm_registry *r);
/* Re-reads every VM's settings after a reload. A VM whose QMP path changed, or which is not reached, is
 * connected at once. */
void vmm_registry_reconfigure(struct vmm_registry *r);

struct vm *vmm_registry_first(struct vmm_registry *r); /* NULL: no VM; then vm->next */
/* By exact name, uuid (in either case) or decimal pid. 0, -ENOENT, or -ENOTUNIQ when the text fits several,
 * in whichever way: a VM may have chosen another's pid as its name. *ret_vm is written only on 0. */
int vmm_registry_find(struct vmm_registry *r, const char *text, struct vm **ret_vm);
/* True while some VM_FOUND VM still waits for its QMP handshake. */
bool vmm_registry_settling(const struct vmm_registry *r);

#endif
