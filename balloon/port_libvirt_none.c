/* In place of all that needs libvirt, where it was not there to build with. */
#include "balloon/port_libvirt.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct port_libvirt {
	char nothing;
};

static struct port_libvirt none;

int port_libvirt_new(sd_event *loop, const char *uri, const struct fsio *fs, const struct port_libvirt_ops *ops,
		     void *userdata, struct port_libvirt **ret_port)
{
	(void)loop;
	(void)uri;
	(void)fs;
	(void)ops;
	(void)userdata;
	*ret_port = &none;
	return 0;
}

struct port_libvirt *port_libvirt_free(struct port_libvirt *p)
{
	(void)p;
	return NULL;
}

void port_libvirt_want(struct port_libvirt *p)
{
	(void)p;
}

void port_libvirt_ask(struct port_libvirt *p)
{
	(void)p;
}

bool port_libvirt_told(const struct port_libvirt *p, const char *uuid, pid_t pid, struct balloon_told *ret_told)
{
	(void)p;
	(void)uuid;
	(void)pid;
	memset(ret_told, 0, sizeof(*ret_told));
	snprintf(ret_told->why, sizeof(ret_told->why), "built without libvirt");
	return false;
}

int port_libvirt_set(struct port_libvirt *p, const char *uuid, pid_t pid, uint64_t bytes)
{
	(void)p;
	(void)uuid;
	(void)pid;
	(void)bytes;
	return -ENOTCONN;
}
