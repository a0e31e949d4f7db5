/* ksmd/frame_index against a model. */
#include "ksmd/frame_index.h"

#include "tests/unit/plan_world.h"

static void test_frame_index_puts_and_drops_as_model(void)
{
	enum { FRAMES = 6000, STEPS = 60000 };
	struct frame_index *x;
	uint64_t *held = calloc(FRAMES, sizeof(*held)), state = 5; /* content; 0: none. Frame f holds f + k * FRAMES */
	size_t count = 0;

	unit_must(held && frame_index_new(FRAMES, &x) == 0, "frame_index_new");
	for (int i = 0; i < STEPS; i++) {
		uint32_t frame = (uint32_t)(unit_random(&state) % FRAMES);

		count -= held[frame] != 0;
		if (unit_random(&state) % 3 == 0) {
			frame_index_drop(x, frame);
			held[frame] = 0;
		} else {
			held[frame] = frame + FRAMES * (1 + unit_random(&state) % 1000);
			CU_ASSERT_EQUAL(frame_index_put(x, content_hash(held[frame]), frame), 0);
			count++;
		}
	}
	CU_ASSERT_EQUAL(frame_index_count(x), count);
	for (uint32_t f = 0; f < FRAMES; f++) {
		CU_ASSERT_EQUAL(held[f] ? find(x, held[f]) : FRAME_NONE, held[f] ? f : FRAME_NONE);
		CU_ASSERT_TRUE(!held[f] || frame_index_is(x, f, content_hash(held[f])));
		CU_ASSERT_FALSE(frame_index_is(x, f, content_hash(f + 1)));
		CU_ASSERT_EQUAL(find(x, f + 1), FRAME_NONE);
	}
	CU_ASSERT_TRUE(frame_index_bytes(x) < FRAMES * 15 + 200);
	free(held);
	frame_index_free(x);
}

static void test_frame_index_edges(void)
{
	struct frame_index *x;

	CU_ASSERT_EQUAL(frame_index_new(0, &x), -EINVAL);
	CU_ASSERT_EQUAL(frame_index_new(UINT32_MAX, &x), -EINVAL);
	unit_must(frame_index_new(100, &x) == 0, "frame_index_new");
	CU_ASSERT_EQUAL(frame_index_put(x, content_hash(1), 100), -EINVAL);
	CU_ASSERT_EQUAL(frame_index_put(x, PAGE_HASH_NONE, 1), -EINVAL);
	CU_ASSERT_EQUAL(frame_index_put(x, PAGE_HASH_ZERO, 1), 0); /* known by frame, not by content */
	CU_ASSERT_TRUE(frame_index_is(x, 1, PAGE_HASH_ZERO));
	CU_ASSERT_EQUAL(find(x, 0), FRAME_NONE);
	CU_ASSERT_FALSE(frame_index_is(x, 100, PAGE_HASH_ZERO));
	CU_ASSERT_FALSE(frame_index_is(x, UINT32_MAX, PAGE_HASH_ZERO));
	CU_ASSERT_EQUAL(frame_index_put(x, content_hash(9), 4), 0); /* one content twice: the first is found */
	CU_ASSERT_EQUAL(frame_index_put(x, content_hash(9), 3), 0);
	CU_ASSERT_EQUAL(find(x, 9), 4);
	CU_ASSERT_TRUE(frame_index_is(x, 3, content_hash(9)));
	frame_index_drop(x, 3);
	CU_ASSERT_EQUAL(find(x, 9), 4);
	frame_index_drop(x, 4);
	frame_index_drop(x, 4);
	frame_index_drop(x, 1000);
	CU_ASSERT_EQUAL(find(x, 9), FRAME_NONE);
	CU_ASSERT_PTR_NULL(frame_index_free(x));
	CU_ASSERT_PTR_NULL(frame_index_free(NULL));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "model", test_frame_index_puts_and_drops_as_model },
		{ "edges", test_frame_index_edges },
		CU_TEST_INFO_NULL,
	};
	int r;

	rcu_register_thread();
	r = unit_main("frame_index", tests);
	rcu_unregister_thread();
	return r;
}
