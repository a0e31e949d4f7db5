/* Fuzzes the configuration's text. What loads must stay in bounds and be usable, what does not must say why. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config_error error = { "" };
	struct config c, fresh;
	struct config_vm vm;
	char skipped[64];
	int r = config_load_text("fuzz", (const char *)data, size, &c, &error);

	if (r < 0) {
		assert(strncmp(error.text, "fuzz:", 5) == 0);
		return 0;
	}
	assert(c.control_socket[0] == '/' && strlen(c.control_socket) < 108);
	assert(c.tick_ms >= 100 && c.tick_ms <= 60000 && c.scan_interval_ms >= c.tick_ms);
	assert(c.merge_cpu_percent >= 1 && c.merge_cpu_percent <= 100 && c.merge_engine <= MERGE_ENGINE_OFF);
	config_for_vm(&c, "web-1", &vm);
	assert(strnlen(vm.domain, sizeof(vm.domain)) < sizeof(vm.domain));
	config_init(&fresh);
	config_adopt(&fresh, &c, skipped, sizeof(skipped));
	config_free(&c);
	config_free(&fresh);
	return 0;
}
