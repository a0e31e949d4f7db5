/* Fuzzes what comes from a QMP socket: framing in pieces of the first byte's size, then the messages. The
 * same bytes in one piece must give the same messages. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "vmm/qmp_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take_message(const char *text, size_t len)
{
	struct qmp_message m;
	const char *why = NULL;
	int r;

	assert(len >= 2 && len <= QMP_LINE_MAX_BYTES && text[0] == '{' && text[len - 1] == '}');
	r = qmp_message_parse(text, len, &m, &why);
	if (r < 0) {
		assert(why);
		return;
	}
	assert((m.kind != QMP_MESSAGE_EVENT && m.kind != QMP_MESSAGE_ERROR) || m.text);
	assert(m.kind != QMP_MESSAGE_RETURN || m.value);
	qmp_message_clear(&m);
}

/* How many messages came, and in ret_result how the stream ended. */
static unsigned int feed(const char *data, size_t size, size_t piece, int *ret_result)
{
	struct qmp_frame f = { .buf = NULL };
	const char *text, *why = NULL;
	unsigned int count = 0;
	size_t len;
	int r = 0;

	for (size_t at = 0; at < size && r >= 0; at += piece) {
		if (qmp_frame_append(&f, data + at, size - at < piece ? size - at : piece) < 0)
			break;
		while ((r = qmp_frame_next(&f, &text, &len, &why)) > 0) {
			count++;
			take_message(text, len);
		}
	}
	assert(r >= 0 || (r == -EBADMSG && why));
	qmp_frame_clear(&f);
	*ret_result = r;
	return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int whole, pieces;
	unsigned int count;

	if (size < 2)
		return 0;
	count = feed((const char *)data + 1, size - 1, data[0] + 1u, &pieces);
	assert(count == feed((const char *)data + 1, size - 1, size, &whole));
	assert(whole == pieces);
	return 0;
}
