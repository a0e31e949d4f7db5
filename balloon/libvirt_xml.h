/* balloon/libvirt_xml.h - what a domain's XML says about its balloon. Pure: no I/O, clock or globals. */
#ifndef BALLOON_LIBVIRT_XML_H
#define BALLOON_LIBVIRT_XML_H

#include <stdbool.h>
#include <stdint.h>

#include "core/snapshot.h"

struct libvirt_memballoon {
	enum balloon_device device; /* ABSENT for models that are no virtio balloon */
	bool reporting, deflate_on_oom;
	uint64_t period_s; /* 0: none */
};

/* Looks at /domain/devices/memballoon and at nothing else: metadata of the domain's owner may hold any element. 0, or
 * -EBADMSG when it is no XML that libvirt writes. */
int libvirt_xml_memballoon(const char *xml, struct libvirt_memballoon *ret_balloon);

#endif
