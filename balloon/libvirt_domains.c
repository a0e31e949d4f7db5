#include "balloon/libvirt_domains.h"

#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "vmm/registry.h"

void libvirt_told_clear(struct balloon_told *told)
{
	memset(told, 0, sizeof(*told));
	told->total_bytes = told->free_bytes = told->available_bytes = told->cache_bytes = BALLOON_UNTOLD;
	told->swap_in_bytes = told->swap_out_bytes = told->major_faults = told->oom_kills = BALLOON_UNTOLD;
}

/* Where the uuid is, or would be. */
static size_t place_of(const struct libvirt_domains *t, const char *uuid)
{
	size_t low = 0, high = t->count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (strcmp(t->sorted[middle]->uuid, uuid) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct libvirt_domain *libvirt_domains_find(const struct libvirt_domains *t, const char *uuid)
{
	size_t i = place_of(t, uuid);

	return i < t->count && strcmp(t->sorted[i]->uuid, uuid) == 0 ? t->sorted[i] : NULL;
}

static struct libvirt_domain *insert(struct libvirt_domains *t, const char *uuid)
{
	size_t i = place_of(t, uuid);
	struct libvirt_domain *d;

	if (!t->sorted)
		t->sorted = calloc(VM_COUNT_MAX, sizeof(*t->sorted));
	if (!t->sorted || t->count >= VM_COUNT_MAX)
		return NULL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return NULL;
	memcpy(d->uuid, uuid, sizeof(d->uuid));
	memmove(&t->sorted[i + 1], &t->sorted[i], (t->count - i) * sizeof(*t->sorted));
	t->sorted[i] = d;
	t->count++;
	return d;
}

void libvirt_domain_forget(struct libvirt_domain *d)
{
	struct libvirt_domain fresh = { .id = d->id, .how = d->how };

	memcpy(fresh.uuid, d->uuid, sizeof(fresh.uuid));
	memcpy(fresh.name, d->name, sizeof(fresh.name));
	libvirt_told_clear(&fresh.told);
	*d = fresh;
}

struct libvirt_domain *libvirt_domains_see(struct libvirt_domains *t, const char *uuid, const char *name, int id,
					   const char *how)
{
	char key[TEXT_UUID_MAX];
	struct libvirt_domain *d;

	if (!uuid || !name || !text_uuid(key, uuid, strlen(uuid)) || !*name || strlen(name) >= LIBVIRT_NAME_MAX ||
	    strchr(name, '/') || id < 0)
		return NULL;
	d = libvirt_domains_find(t, key);
	if (d && d->id == id && strcmp(d->name, name) == 0) {
		d->missing = false;
		return d;
	}
	if (!d)
		d = insert(t, key);
	if (!d)
		return NULL;
	memcpy(d->name, name, strlen(name) + 1);
	d->id = id;
	d->how = how;
	libvirt_domain_forget(d);
	return d;
}

static void remove_at(struct libvirt_domains *t, size_t i)
{
	struct libvirt_domain *d = t->sorted[i];

	log_info("libvirt domain=%s uuid=%s gone", d->name, d->uuid);
	t->count--;
	memmove(&t->sorted[i], &t->sorted[i + 1], (t->count - i) * sizeof(*t->sorted));
	free(d);
}

void libvirt_domains_remove(struct libvirt_domains *t, const char *uuid)
{
	char key[TEXT_UUID_MAX];
	size_t i;

	if (!uuid || !text_uuid(key, uuid, strlen(uuid)))
		return;
	i = place_of(t, key);
	if (i < t->count && strcmp(t->sorted[i]->uuid, key) == 0)
		remove_at(t, i);
}

void libvirt_domains_mark(struct libvirt_domains *t)
{
	for (size_t i = 0; i < t->count; i++)
		t->sorted[i]->missing = true;
}

void libvirt_domains_sweep(struct libvirt_domains *t)
{
	for (size_t i = t->count; i-- > 0;)
		if (t->sorted[i]->missing)
			remove_at(t, i);
}

void libvirt_domains_clear(struct libvirt_domains *t)
{
	for (size_t i = 0; i < t->count; i++)
		free(t->sorted[i]);
	free(t->sorted);
	*t = (struct libvirt_domains){ 0 };
}
