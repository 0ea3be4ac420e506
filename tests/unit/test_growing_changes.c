/* core/store/growing: what is cut, punched and written by way of us, wherever the bytes are. */
#include "tests/unit/growing_fixture.h"

#include <time.h>

static void truncating_is_exact_everywhere(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t sizes[] = {0,
                                     1,
                                     1 << 20,
                                     2 << 20,
                                     (2 << 20) + 1,
                                     3 << 20,
                                     4 << 20,
                                     (4 << 20) + 5,
                                     (6 << 20) + 100,
                                     (8 << 20) - 1,
                                     8 << 20,
                                     (8 << 20) + 3};
    for (int exclusive = 0; exclusive < 2; exclusive++)
        for (int assembled = 0; assembled < 2; assembled++)
            for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
                file_new(5 * UNIT, exclusive);
                put_pattern(0, SMALL);
                move_to(SMALL);
                if (assembled)
                    assert_assembles();
                cut(sizes[i]);
                assert_true(growing_moved(&file.growing) <= sizes[i] || sizes[i] >= SMALL);
                assert_false(is_torn());
                assert_reads();
                /* And longer again: there are zeros. */
                cut(4 * UNIT + 9);
                assert_reads();
                if (!exclusive) {
                    put_pattern(4 * UNIT, 5 * UNIT);
                    move_to(UINT64_MAX);
                }
                assert_reads();
                assert_assembles();
                file_close();
            }
}

static errint_t truncate_it(const void *size)
{
    return growing_truncate(&file.growing, *(const uint64_t *)size);
}

static void a_kill_while_truncating_loses_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t sizes[] = {5000, (4 << 20), (5 << 20) + 5};
    for (int assembled = 0; assembled < 2; assembled++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
            bool killed = true;
            for (int at = 1; killed; at++) {
                file_new(SMALL, false);
                put_pattern(0, SMALL);
                move_to(SMALL);
                if (assembled)
                    assert_assembles();
                killed = dies(at, 2, truncate_it, &sizes[i]);
                succeed();
                file.size = size_in_memory();
                assert_true(file.size == SMALL || file.size == sizes[i]);
                assert_reads();
                /* The request comes again; the model is still that of before. */
                file.size = SMALL;
                cut(sizes[i]);
                assert_reads();
                cut(SMALL);
                assert_reads();
                assert_assembles();
                file_close();
            }
        }
}

static void truncating_a_torn_file(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    move_to(SMALL);
    put("tear", 4, 2 * UNIT + UNIT / 2);
    assert_true(is_torn());
    assert_int_equal(growing_truncate(&file.growing, 3 * UNIT), -EIO);
    assert_int_equal(growing_punch(&file.growing, 0, UNIT), -EIO);
    /* What is cut off does no harm. */
    cut(UNIT + 10);
    assert_false(is_torn());
    assert_assembles();
    file_close();
}

static void punching_is_exact_everywhere(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int exclusive = 0; exclusive < 2; exclusive++) {
        file_new(SMALL, exclusive);
        put_pattern(0, SMALL);
        move_to(SMALL);
        static const uint64_t ranges[][2] = {
            {100, 50}, {(2 << 20) - 5, 10}, {(3 << 20) + 17, 99999}, {(6 << 20) - 4096, 8192}};
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(ranges); i++) {
            punch(ranges[i][0], ranges[i][1]);
            assert_reads();
        }
        assert_false(is_torn());
        assert_assembles();
        file_close();
    }
}

static void writes_through_us_go_where_the_bytes_are(void **state)
{
    (void)state;
    file_new(6 * UNIT, true);
    static unsigned char bytes[1 << 20];
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    for (int i = 0; i < 300; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % (5 * UNIT);
        size_t count = (size_t)rand_r(&seed) % sizeof bytes + 1;
        memset(bytes, rand_r(&seed), count);
        put_through(bytes, count, offset);
        if (i % 10 == 3)
            move_to((uint64_t)rand_r(&seed) % (6 * UNIT));
        if (i % 50 == 40)
            succeed();
        if (i % 70 == 60)
            assert_assembles();
        if (i % 30 == 20)
            cut((uint64_t)rand_r(&seed) % (6 * UNIT));
        if (i % 5 == 0)
            assert_reads();
    }
    assert_assembles();
    file_close();
    file_new(10, false);
    assert_int_equal(growing_write(&file.growing, "x", 1, 0), -EPERM);
    file_close();
}

int main(void)
{
    if (UNDER_THREAD_SANITIZER)
        return 77; /* skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(truncating_is_exact_everywhere),
        cmocka_unit_test(a_kill_while_truncating_loses_nothing),
        cmocka_unit_test(truncating_a_torn_file),
        cmocka_unit_test(punching_is_exact_everywhere),
        cmocka_unit_test(writes_through_us_go_where_the_bytes_are),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
