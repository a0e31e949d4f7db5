/* The pure parts of the libvirt driver: what is found in a domain's XML and figures, and the table of domains. */
#include "balloon/libvirt_domains.h"
#include "balloon/libvirt_figures.h"
#include "balloon/libvirt_xml.h"

#include "tests/unit/unit.h"

#define UUIDS 8

static const char *uuid_of(size_t i)
{
	static char uuid[UUIDS][40];

	snprintf(uuid[i], sizeof(uuid[i]), "11111111-2222-3333-4444-%012zu", i + 1);
	return uuid[i];
}

static void test_xml_only_the_real_memballoon_counts(void)
{
	static const struct {
		const char *name, *xml;
		int result;
		struct libvirt_memballoon want;
	} cases[] = {
		{ "empty", "", -EBADMSG, { 0 } },
		{ "no XML", "domain", -EBADMSG, { 0 } },
		{ "not closed", "<domain><devices>", -EBADMSG, { 0 } },
		{ "closed too often", "<domain></domain></domain>", -EBADMSG, { 0 } },
		{ "tag cut", "<domain><devices><memballoon model='virtio", -EBADMSG, { 0 } },
		{ "attribute without quotes", "<domain x=1></domain>", -EBADMSG, { 0 } },
		{ "comment without end", "<domain><!-- </domain>", -EBADMSG, { 0 } },
		{ "none", "<domain><devices/></domain>", 0, { .device = BALLOON_DEVICE_ABSENT } },
		{ "model none", "<domain><devices><memballoon model='none'/></devices></domain>", 0,
		  { .device = BALLOON_DEVICE_ABSENT } },
		{ "of Xen", "<domain><devices><memballoon model='xen'/></devices></domain>", 0,
		  { .device = BALLOON_DEVICE_ABSENT } },
		{ "all", "<?xml version='1.0'?>\n<domain type=\"kvm\">\n <devices>\n  <memballoon model='virtio-transitional'"
			 " autodeflate='on' freePageReporting=\"on\" >\n <stats period='12'/> <alias name='x'/>"
			 "</memballoon></devices></domain>\n",
		  0, { BALLOON_DEVICE_PRESENT, true, true, 12 } },
		{ "off", "<domain><devices><memballoon model='virtio' autodeflate='off'/></devices></domain>", 0,
		  { .device = BALLOON_DEVICE_PRESENT } },
		{ "in metadata", "<domain><metadata><domain><devices><memballoon model='virtio'/></devices></domain>"
				 "<devices><memballoon model='virtio'/></devices></metadata><devices></devices></domain>",
		  0, { .device = BALLOON_DEVICE_ABSENT } },
		{ "in a comment", "<domain><devices><!-- <memballoon model='virtio'/> --></devices></domain>", 0,
		  { .device = BALLOON_DEVICE_ABSENT } },
		{ "in text", "<domain><title>&lt;</title><devices><![CDATA[<memballoon model='virtio'/>]]></devices></domain>",
		  0, { .device = BALLOON_DEVICE_ABSENT } },
		{ "in an attribute", "<domain a='<devices><memballoon model=\"virtio\"/>'><devices></devices></domain>", 0,
		  { .device = BALLOON_DEVICE_ABSENT } },
		{ "stats of something else",
		  "<domain><devices><disk><stats period='9'/></disk><memballoon model='virtio'/><stats period='9'/></devices>"
		  "</domain>",
		  0, { .device = BALLOON_DEVICE_PRESENT } },
		{ "absurd period",
		  "<domain><devices><memballoon model='virtio'><stats period='99999999999999999999'/></memballoon></devices>"
		  "</domain>",
		  0, { .device = BALLOON_DEVICE_PRESENT } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libvirt_memballoon b = { .period_s = 3 }, *want = (struct libvirt_memballoon *)&cases[i].want;
		int r = libvirt_xml_memballoon(cases[i].xml, &b);

		UNIT_CASE(cases[i].name, r == cases[i].result);
		if (r == 0)
			UNIT_CASE(cases[i].name, b.device == want->device && b.reporting == want->reporting &&
							 b.deflate_on_oom == want->deflate_on_oom &&
							 b.period_s == want->period_s);
		else
			UNIT_CASE(cases[i].name, b.period_s == 3);
	}
}

static void test_xml_nested_too_deep_refused(void)
{
	enum { DEEP = 100000 };
	auto_free char *xml = malloc(3 * DEEP + 1);
	struct libvirt_memballoon b;

	unit_must(xml, "memory");
	for (size_t i = 0; i < DEEP; i++)
		memcpy(xml + 3 * i, "<a>", 3);
	xml[3 * DEEP] = '\0';
	CU_ASSERT_EQUAL(libvirt_xml_memballoon(xml, &b), -EBADMSG);
}

static void param(virTypedParameter *p, const char *field, int type, unsigned long long value)
{
	memset(p, 0, sizeof(*p));
	snprintf(p->field, sizeof(p->field), "%s", field);
	p->type = type;
	p->value.ul = value;
}

static void test_figures_absurd_not_taken(void)
{
	virTypedParameter params[6];
	struct balloon_told t;

	libvirt_told_clear(&t);
	CU_ASSERT_EQUAL(libvirt_figures_take(params, 0, 5, &t), LIBVIRT_ANSWER_NONE);
	CU_ASSERT_EQUAL(t.told_ns, 0);
	param(&params[0], "balloon.current", VIR_TYPED_PARAM_ULLONG, UINT64_MAX);
	param(&params[1], "balloon.maximum", VIR_TYPED_PARAM_DOUBLE, 1);
	param(&params[2], "balloon.available", VIR_TYPED_PARAM_ULLONG, UINT64_MAX / 1024);
	param(&params[3], "balloon.last-update", VIR_TYPED_PARAM_ULLONG, UINT64_MAX);
	param(&params[4], "balloon.rss", VIR_TYPED_PARAM_ULLONG, 1);
	CU_ASSERT_EQUAL(libvirt_figures_take(params, 5, 5, &t), LIBVIRT_ANSWER_VMM);
	CU_ASSERT_EQUAL(t.actual_bytes, 0);
	CU_ASSERT_EQUAL(t.max_bytes, 0);
	CU_ASSERT_EQUAL(t.total_bytes, BALLOON_UNTOLD);
	CU_ASSERT_EQUAL(t.last_update_s, 0);
	CU_ASSERT_EQUAL(t.stats_told_ns, 5);
	/* Without the VMM's answer the guest's figures stay what they were. */
	t.total_bytes = 7;
	param(&params[0], "balloon.current", VIR_TYPED_PARAM_ULLONG, 3);
	param(&params[1], "balloon.available", VIR_TYPED_PARAM_ULLONG, 9);
	CU_ASSERT_EQUAL(libvirt_figures_take(params, 2, 6, &t), LIBVIRT_ANSWER_BUSY);
	CU_ASSERT_EQUAL(t.actual_bytes, 3 * 1024);
	CU_ASSERT_EQUAL(t.told_ns, 6);
	CU_ASSERT_EQUAL(t.total_bytes, 7);
	CU_ASSERT_EQUAL(t.stats_told_ns, 5);
}

static void test_domains_with_bad_names_not_taken(void)
{
	struct libvirt_domains domains = { 0 };
	char name[LIBVIRT_NAME_MAX + 1];

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, uuid_of(0), name, 1, "test"));
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, uuid_of(0), "", 1, "test"));
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, uuid_of(0), "../x", 1, "test"));
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, uuid_of(0), NULL, 1, "test"));
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, "no uuid", "x", 1, "test"));
	CU_ASSERT_PTR_NULL(libvirt_domains_see(&domains, uuid_of(0), "x", -1, "test"));
	CU_ASSERT_EQUAL(domains.count, 0);
	for (size_t i = UUIDS; i-- > 0;)
		CU_ASSERT_PTR_NOT_NULL(libvirt_domains_see(&domains, uuid_of(i), "x", 1, "test"));
	for (size_t i = 0; i < UUIDS; i++)
		CU_ASSERT_PTR_NOT_NULL(libvirt_domains_find(&domains, uuid_of(i)));
	libvirt_domains_mark(&domains);
	libvirt_domains_see(&domains, uuid_of(3), "x", 1, "test");
	libvirt_domains_sweep(&domains);
	CU_ASSERT_EQUAL(domains.count, 1);
	libvirt_domains_clear(&domains);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "XML: only the real memballoon counts", test_xml_only_the_real_memballoon_counts },
		{ "XML nested too deep is refused", test_xml_nested_too_deep_refused },
		{ "absurd figures are not taken", test_figures_absurd_not_taken },
		{ "domains with bad names are not taken", test_domains_with_bad_names_not_taken },
		CU_TEST_INFO_NULL,
	};

	return unit_main("port_libvirt_parts", tests);
}
