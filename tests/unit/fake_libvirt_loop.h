/* tests/unit/fake_libvirt_loop.h - the event loop of the fake library; part of fake_libvirt.h. */
#ifndef TESTS_UNIT_FAKE_LIBVIRT_LOOP_H
#define TESTS_UNIT_FAKE_LIBVIRT_LOOP_H

int virEventRegisterDefaultImpl(void)
{
	return 0;
}

static void fake_push(const struct fake_event *e)
{
	unit_must(fake.queued < FAKE_QUEUE, "fake events");
	fake.queue[fake.queued++] = *e;
}

static void fake_dispatch(struct fake_event *e, const struct fake_callback *c)
{
	switch (e->kind) {
	case FAKE_LIFECYCLE:
		((virConnectDomainEventCallback)(void *)c->call)(e->conn, &e->dom, e->event, 0, c->opaque);
		break;
	case FAKE_BALLOON:
		((virConnectDomainEventBalloonChangeCallback)(void *)c->call)(e->conn, &e->dom, e->kib, c->opaque);
		break;
	case FAKE_REBOOT:
		((virConnectDomainEventGenericCallback)(void *)c->call)(e->conn, &e->dom, c->opaque);
		break;
	case FAKE_CLOSED:
		((virConnectCloseFunc)(void *)c->call)(e->conn, e->event, c->opaque);
		break;
	case FAKE_RELEASE:
		c->release(c->opaque);
		break;
	}
}

int virEventRunDefaultImpl(void)
{
	struct fake_callback callback;
	struct fake_event e;

	fake_lock();
	while (fake.queued == 0)
		pthread_cond_wait(&fake.changed, &fake.lock);
	e = fake.queue[0];
	fake.queued--;
	memmove(fake.queue, fake.queue + 1, fake.queued * sizeof(e));
	callback = e.kind == FAKE_RELEASE ? e.callback : e.conn->callbacks[e.slot];
	fake.closing = e.kind == FAKE_CLOSED ? e.conn : NULL;
	fake_unlock();
	if (callback.call)
		fake_dispatch(&e, &callback);
	fake_lock();
	fake.closing = NULL;
	fake_unlock();
	return 0;
}

/* To everybody who listens. The lock is held. */
static void fake_emit(enum fake_kind kind, int id, const struct fake_domain *d, int event, unsigned long long kib)
{
	for (size_t k = 0; k < ARRAY_SIZE(fake.open); k++) {
		for (int s = 0; fake.open[k] && s < FAKE_CALLBACKS; s++) {
			struct fake_event e = { .kind = kind, .conn = fake.open[k], .slot = s, .event = event, .kib = kib };

			if (!fake.open[k]->callbacks[s].call || fake.open[k]->callbacks[s].id != id)
				continue;
			if (d) {
				memcpy(e.dom.uuid, d->uuid, sizeof(d->uuid));
				memcpy(e.dom.name, d->name, sizeof(d->name));
				e.dom.id = d->id;
			}
			fake_push(&e);
		}
	}
}

static int fake_register(virConnectPtr conn, int id, void (*call)(void), void *opaque, virFreeCallback release)
{
	int slot = -1;

	fake_lock();
	for (int s = 0; s < FAKE_CALLBACKS && slot < 0; s++)
		if (!conn->callbacks[s].call)
			slot = s;
	unit_must(slot >= 0, "fake callbacks");
	conn->callbacks[slot] = (struct fake_callback){ id, call, opaque, release };
	fake_unlock();
	return slot;
}

static int fake_deregister(virConnectPtr conn, int slot)
{
	fake_lock();
	/* As libvirt does: later, and on the event loop. */
	fake_push(&(struct fake_event){ .kind = FAKE_RELEASE, .callback = conn->callbacks[slot] });
	conn->callbacks[slot].call = NULL;
	fake_unlock();
	return 0;
}

int virConnectDomainEventRegisterAny(virConnectPtr conn, virDomainPtr dom, int eventID,
				     virConnectDomainEventGenericCallback cb, void *opaque, virFreeCallback freecb)
{
	unit_must(!dom, "all domains");
	return fake_register(conn, eventID, (void (*)(void))(void *)cb, opaque, freecb);
}

int virConnectDomainEventDeregisterAny(virConnectPtr conn, int callbackID)
{
	return fake_deregister(conn, callbackID);
}

int virConnectRegisterCloseCallback(virConnectPtr conn, virConnectCloseFunc cb, void *opaque, virFreeCallback freecb)
{
	fake_register(conn, FAKE_CLOSE, (void (*)(void))(void *)cb, opaque, freecb);
	return 0;
}

/* Not while it runs, as in libvirt; and no event loop. */
int virConnectUnregisterCloseCallback(virConnectPtr conn, virConnectCloseFunc cb)
{
	int r = -1;

	fake_lock();
	while (fake.closing == conn)
		pthread_cond_wait(&fake.changed, &fake.lock);
	for (int s = 0; s < FAKE_CALLBACKS; s++) {
		struct fake_callback *c = &conn->callbacks[s];

		if (c->call != (void (*)(void))(void *)cb)
			continue;
		if (c->release)
			c->release(c->opaque);
		c->call = NULL;
		r = 0;
	}
	fake_unlock();
	return r;
}

int virConnectSetKeepAlive(virConnectPtr conn, int interval, unsigned int count)
{
	return conn && interval > 0 && count > 0 ? 0 : -1;
}

#endif
