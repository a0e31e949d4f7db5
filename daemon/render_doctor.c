/* The answer to "doctor": what each VM lacks for its balloon. */
#include "balloon/doctor.h"
#include "daemon/commands.h"
#include "daemon/daemon.h"

/* *ret_missing grows by what is more than a note. */
static json_t *render_findings(const struct doctor_facts *facts, json_int_t *ret_missing)
{
	struct doctor_finding findings[DOCTOR_FINDINGS_MAX];
	size_t count = balloon_doctor(facts, findings);
	json_t *list = json_array();

	for (size_t i = 0; i < count; i++) {
		*ret_missing += findings[i].severity != DOCTOR_NOTE;
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "severity",
						      doctor_severity_name(findings[i].severity), "what", findings[i].what,
						      "why", findings[i].why, "fix", findings[i].fix));
	}
	return list;
}

json_t *render_doctor(struct daemon *d)
{
	json_t *vms = json_array();
	json_int_t missing = 0;

	for (struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next) {
		const struct vm_snapshot *s = render_snapshot_of(d, vm);
		const struct balloon_vm_plan *plan = balloon_vm_plan(vm);
		const struct doctor_facts facts = {
			.vm = s,
			.told = balloon_vm_told(vm),
			.block = plan ? plan->block : BLOCK_NONE,
			.libvirt = vm->cmdline.libvirt && !*vm->qmp_path,
			.has_monitor = *vm->qmp_path != '\0',
			.asks = d->options.oneshot_fd < 0,
			.taken_ns = d->snapshot.taken_ns,
			.host_bytes = d->snapshot.mem_total_bytes,
		};

		/* Found after the last tick: it is there the next time. */
		if (s)
			json_array_append_new(vms, json_pack("{s:s, s:s, s:i, s:o}", "name", vm->name, "uuid", vm->uuid, "pid",
							     (int)vm->pid, "findings", render_findings(&facts, &missing)));
	}
	return json_pack("{s:o, s:I}", "vms", vms, "missing", missing);
}
