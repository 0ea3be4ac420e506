/* core/store/growing: a kill, a write, or a disk that fails, at each step of a move. */
#include "tests/unit/growing_fixture.h"

enum shape { DENSE, SPARSE, ALLOCATED, SHAPES };
enum after { NOTHING, SOME_BYTES, EVERY_PAGE, EVERY_BYTE, AFTERS };

static void make_shape(enum shape shape)
{
    file_new(SMALL, false);
    if (shape == DENSE) {
        put_pattern(0, SMALL);
        return;
    }
    if (shape == ALLOCATED)
        assert_int_equal(__real_fallocate64(file.writer_fd, 0, 0, (off_t)SMALL), 0);
    put_pattern(0, UNIT);
    if (shape == SPARSE)
        put_pattern(UNIT + 3 * PAGE, UNIT + 5 * PAGE);
    put_pattern(2 * UNIT, SMALL);
}

/* Into the unit that is moved first, partly into a page that is there and partly not. */
static void write_old_part(void)
{
    put("new bytes, written late", 23, UNIT + 5 * PAGE - 10);
}

static void write_after(enum after after)
{
    static unsigned char bytes[2 << 20];
    memset(bytes, 0xa5, sizeof bytes);
    if (after == SOME_BYTES)
        put(bytes, 100, UNIT + UNIT / 2 + 1);
    if (after == EVERY_PAGE)
        for (uint64_t at = UNIT; at < 2 * UNIT; at += PAGE)
            put(bytes, 1, at + 7);
    if (after == EVERY_BYTE)
        put(bytes, sizeof bytes, UNIT);
}

static errint_t move_a_unit(const void *unused)
{
    (void)unused;
    return growing_move(&file.growing, &file.mover, 2 * UNIT, NULL);
}

static void a_kill_at_any_step_loses_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0, torn = 0;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int after = 0; after < AFTERS; after++) {
            bool killed = true;
            for (int at = 1; killed; at++) {
                make_shape((enum shape)shape);
                killed = dies(at, 2, move_a_unit, NULL);
                write_after((enum after)after);
                succeed();
                torn += assert_exact_or_torn(after == NOTHING);
                cases++;
                file_close();
            }
        }
    print_message("%d kills, %d of them ended torn\n", cases, torn);
    assert_true(cases > 12 * 10);
    assert_true(torn > 0 && torn < cases);
}

static void a_kill_of_the_successor_loses_nothing_either(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0;
    bool first = true;
    for (int at = 1; first; at++) {
        bool second = true;
        for (int again = 1; second; again++) {
            make_shape(SPARSE);
            first = dies(at, 2, move_a_unit, NULL);
            restart();
            second = dies_resuming(again, 2);
            restart();
            if (second)
                dies_resuming(again + 1, 2);
            succeed();
            assert_exact_or_torn(true);
            cases++;
            file_close();
        }
    }
    print_message("%d pairs of kills\n", cases);
}

static void a_write_at_any_step_ends_exact_or_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int shape = 0; shape < SHAPES; shape++) {
        int exact = 0, torn = 0;
        bool reached = true;
        for (int at = 1; reached; at++) {
            make_shape((enum shape)shape);
            faults.write = write_old_part;
            faults.steps = 0;
            faults.write_at = at;
            move_to(2 * UNIT);
            reached = faults.steps >= at;
            faults.write_at = 0;
            bool is = assert_exact_or_torn(!reached);
            torn += is;
            exact += !is;
            /* Once past the punch, always past it. */
            if (torn && reached)
                assert_true(is);
            file_close();
        }
        print_message("shape %d: %d steps exact, %d torn\n", shape, exact, torn);
        assert_true(exact > 1);
        assert_true(torn > 0);
    }
}

static void a_write_and_then_a_kill_end_exact_or_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0;
    bool killed = true;
    for (int at = 2; killed; at++)
        for (int before = 1; before <= 3 && before < at; before++) {
            make_shape(SPARSE);
            faults.write = write_old_part;
            faults.write_at = at - before;
            killed = dies(at, 2, move_a_unit, NULL);
            /* The child wrote into the shared model, but its size is the same. */
            succeed();
            assert_exact_or_torn(false);
            cases++;
            file_close();
        }
    assert_true(cases > 20);
}

static void append_late(void)
{
    put("tail", 4, SMALL);
}

/* An append while the last unit, which isn't whole, is moved. */
static void a_late_end_of_file_is_noticed(void **state)
{
    (void)state;
    NEED_PIPES;
    int torn = 0;
    bool reached = true;
    for (int at = 1; reached; at++) {
        file_new(SMALL + 100, false);
        put_pattern(0, SMALL);
        faults.steps = 0;
        faults.write_at = at;
        faults.write = append_late;
        errint_t error = growing_assemble(&file.growing, &file.mover, &file.err);
        reached = faults.steps >= at;
        assert_true(error == 0 || error == -EIO);
        if (!error)
            assert_disk();
        else
            assert_true(is_torn());
        torn += error != 0;
        /* A successor knows it, too. */
        succeed();
        assert_int_equal(is_torn(), error != 0);
        file_close();
    }
    assert_true(torn > 0);
}

static void pipes_that_were_lost_make_the_file_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    bool found = false;
    for (int at = 1; !found; at++) {
        make_shape(DENSE);
        assert_true(dies(at, 2, move_a_unit, NULL));
        found = file.shared->state.intent != 0;
        if (!found)
            file_close();
    }
    growing_pipes_close(&pipes);
    assert_int_equal(growing_pipes_open(&pipes, NULL), 0);
    restart();
    assert_int_equal(growing_resume(&file.growing, &file.mover, &file.err), -EIO);
    assert_true(file.err.message[0]);
    assert_true(is_torn());
    cut(0);
    assert_false(is_torn());
    assert_assembles();
    file_close();
}

static void fail_disk(void)
{
    write_old_part();
    fail_disk_writes(1, FOR_EVER, EIO);
}

static void a_disk_that_fails_after_the_punch_costs_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    int pending = 0;
    bool reached = true;
    for (int at = 1; reached; at++) {
        make_shape(DENSE);
        faults.steps = 0;
        faults.write_at = at;
        faults.write = fail_disk;
        errint_t error = growing_move(&file.growing, &file.mover, 2 * UNIT, &file.err);
        reached = faults.steps >= at;
        faults.write_at = 0;
        if (error && file.shared->state.intent) {
            unsigned char byte;
            pending++;
            assert_int_equal(growing_read(&file.growing, &byte, 1, UNIT), -EIO);
            assert_int_equal(growing_read(&file.growing, &byte, 1, 2 * UNIT), 1);
            assert_int_equal(growing_move(&file.growing, &file.mover, SMALL, NULL), -EBUSY);
            assert_int_equal(growing_truncate(&file.growing, 0), -EBUSY);
            assert_int_equal(growing_punch(&file.growing, 0, 1), -EBUSY);
            assert_int_equal(growing_resume(&file.growing, &file.mover, NULL), -EIO);
            mend_disk();
            resume();
        }
        mend_disk();
        assert_exact_or_torn(false);
        file_close();
    }
    assert_true(pending > 0);
}

int main(void)
{
    if (UNDER_THREAD_SANITIZER)
        return 77; /* skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kill_at_any_step_loses_nothing),
        cmocka_unit_test(a_kill_of_the_successor_loses_nothing_either),
        cmocka_unit_test(a_write_at_any_step_ends_exact_or_torn),
        cmocka_unit_test(a_write_and_then_a_kill_end_exact_or_torn),
        cmocka_unit_test(a_late_end_of_file_is_noticed),
        cmocka_unit_test(pipes_that_were_lost_make_the_file_torn),
        cmocka_unit_test(a_disk_that_fails_after_the_punch_costs_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
