/* core/store/growing with a key: nothing is lost wherever the server is killed, the disk is full,
 * or a state can't be stored. */
#include "tests/unit/growing_fixture.h"

/* --- kills --- */

/* A sanitizer's program takes minutes for all of them. */
#if defined(__SANITIZE_ADDRESS__)
enum { SCENE_STEP = 4, QUARTERS = 2 };
#else
enum { SCENE_STEP = 1, QUARTERS = 4 };
#endif

#define SCENE_BYTES (UNIT + TAIL)
#define SCENE_LIMIT (5 * UNIT)

enum kind { WRITE, PUNCH, CUT, MOVE, ASSEMBLE };
enum before { MOVED, ASSEMBLED, LENGTHENED };

/* One operation on a file of SCENE_BYTES, of which the first unit is on disk, or all. */
static const struct scene {
    const char *name;
    enum before before;
    enum kind kind;
    uint64_t offset, bytes;
} scenes[] = {
    {"a few bytes", MOVED, WRITE, 100, 50},
    {"over the border of two blocks", MOVED, WRITE, (1 << 20) - 5000, 10000},
    {"a whole block", MOVED, WRITE, 1 << 20, 1 << 20},
    {"from disk to memory", MOVED, WRITE, (2 << 20) - 4096, 8192},
    {"an append", ASSEMBLED, WRITE, UNIT + TAIL, 70000},
    {"an append of blocks", ASSEMBLED, WRITE, UNIT + TAIL, 3 << 20},
    {"behind the end", ASSEMBLED, WRITE, UNIT + (1 << 20) + 500, 70000},
    {"behind a longer end", LENGTHENED, WRITE, 2 * UNIT + 5, 1000},
    {"a punch", MOVED, PUNCH, (1 << 20) - 5000, 10000},
    {"a punch at the end", ASSEMBLED, PUNCH, UNIT + 5, 1 << 20},
    {"to the middle of a block", MOVED, CUT, (1 << 20) + 77, 0},
    {"to the middle of a block of another unit", ASSEMBLED, CUT, (1 << 20) + 77, 0},
    {"to the end of a block", ASSEMBLED, CUT, 1 << 20, 0},
    {"to a unit", ASSEMBLED, CUT, UNIT, 0},
    {"to less of the last block", ASSEMBLED, CUT, UNIT + 5, 0},
    {"to nothing", ASSEMBLED, CUT, 0, 0},
    {"a move after it was made longer", LENGTHENED, MOVE, 0, 0},
    {"assembling", MOVED, ASSEMBLE, 0, 0},
    {"assembling what was made longer", LENGTHENED, ASSEMBLE, 0, 0},
};

static unsigned char *scene_bytes, *scene_model; /* what is written, and the model afterwards */

static void begin_scene(const struct scene *scene)
{
    disk_dir = fast_dir;
    file_new_encrypted(SCENE_LIMIT);
    put_new(SCENE_BYTES, 0);
    move_to(UNIT);
    if (scene->before != MOVED)
        assemble();
    if (scene->before == LENGTHENED) {
        cut(4 * UNIT);
        put_new(500, 3 * UNIT + 7);
    }
    make_bytes(scene_bytes, (size_t)scene->bytes);
    memcpy(scene_model, file.shared->model, SCENE_LIMIT);
    if (scene->kind == WRITE)
        memcpy(scene_model + scene->offset, scene_bytes, (size_t)scene->bytes);
    if (scene->kind == PUNCH)
        memset(scene_model + scene->offset, 0, (size_t)scene->bytes);
    if (scene->kind == CUT)
        memset(scene_model + scene->offset, 0, (size_t)(SCENE_LIMIT - scene->offset));
    faults.steps = faults.disk_writes = file.shared->notes = 0;
}

static errint_t play(const void *argument)
{
    const struct scene *scene = argument;
    switch (scene->kind) {
    case WRITE:
        return growing_write(&file.growing, scene_bytes, (size_t)scene->bytes, scene->offset);
    case PUNCH:
        return growing_punch(&file.growing, scene->offset, scene->bytes);
    case CUT:
        return growing_truncate(&file.growing, scene->offset);
    case MOVE:
        return growing_move(&file.growing, &file.mover, UINT64_MAX, &file.err);
    default:
        return growing_assemble(&file.growing, &file.mover, &file.err);
    }
}

/* Outside of [begin, end) it is the model; inside each byte is that or `other`'s. */
static void assert_reads_or(uint64_t begin, uint64_t end, const unsigned char *other)
{
    const unsigned char *model = file.shared->model;
    unsigned char *got = read_everything();
    for (uint64_t i = 0; i < file.size; i++)
        if (got[i] != model[i] && (i < begin || i >= end || got[i] != other[i]))
            fail_msg("byte %llu of %llu is %d, not %d", (unsigned long long)i,
                     (unsigned long long)file.size, got[i], model[i]);
    free(got);
}

/* Whatever was done of it, the rest is as it was. */
static void assert_scene_reads(const struct scene *scene)
{
    uint64_t size = size_in_memory(), before = file.size;
    uint64_t end = scene->offset + (scene->kind == CUT ? 0 : scene->bytes);
    assert_true(size == before || size == end ||
                (scene->kind == WRITE && size > before && size < end));
    file.size = size;
    if (scene->kind == CUT || scene->kind == MOVE || scene->kind == ASSEMBLE)
        assert_reads();
    else
        assert_reads_or(scene->offset, end, scene_model);
    assert_secret();
    file.size = before;
}

/* What there is can be gone on with: by another server, as an object, and when it is made longer.
 */
static void assert_scene_is_sound(void)
{
    uint64_t before = file.size;
    file.size = size_in_memory();
    unsigned char *got = read_everything();
    memset(file.shared->model, 0, (size_t)SCENE_LIMIT);
    memcpy(file.shared->model, got, (size_t)file.size);
    free(got);
    succeed();
    assert_reads();
    assemble();
    if (file.size < before)
        put_new(3, before);
    assert_reads();
}

/* The request comes again; and all is well. */
static void end_scene(const struct scene *scene)
{
    assert_int_equal(play(scene), 0);
    memcpy(file.shared->model, scene_model, SCENE_LIMIT);
    file.size = size_in_memory();
    if (scene->kind == CUT)
        assert_int_equal(file.size, scene->offset);
    assert_reads();
    cut(file.size + 3 * PAGE); /* nothing is behind the end */
    assert_reads();
    assemble();
}

static void a_kill_at_any_step_loses_nothing(void **state)
{
    (void)state;
    int kills = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i += SCENE_STEP) {
        bool killed = true;
        for (int at = 1; killed; at++)
            for (int quarters = 0; quarters < QUARTERS; quarters++) {
                begin_scene(&scenes[i]);
                killed = dies(at, quarters, play, &scenes[i]);
                bool in_write = killed && file.shared->in_write;
                kills += killed;
                succeed();
                assert_scene_reads(&scenes[i]);
                if (quarters % 2)
                    assert_scene_is_sound();
                else
                    end_scene(&scenes[i]);
                file_close();
                if (quarters && !in_write)
                    break; /* the other quarters are the same */
            }
    }
    print_message("%d kills\n", kills);
}

static void a_kill_of_the_successor_loses_nothing_either(void **state)
{
    (void)state;
    int kills = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i += SCENE_STEP) {
        bool killed = true;
        for (int at = 1; killed; at++) {
            bool again = true;
            for (int then = 1; again; then++) {
                begin_scene(&scenes[i]);
                killed = dies(at, 2, play, &scenes[i]);
                restart();
                again = dies_resuming(then, 1);
                kills += again;
                succeed();
                assert_scene_reads(&scenes[i]);
                if (then % 2)
                    assert_scene_is_sound();
                else
                    end_scene(&scenes[i]);
                file_close();
            }
        }
    }
    print_message("%d kills\n", kills);
}

/* --- faults --- */

static void a_full_disk_loses_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i += SCENE_STEP)
        for (int lasting = 0; lasting < 2; lasting++)
            for (int at = 1;; at++) {
                begin_scene(&scenes[i]);
                fail_disk_writes(at, lasting ? FOR_EVER : at + 1, ENOSPC);
                errint_t error = play(&scenes[i]);
                bool was_full = faults.disk_writes >= at;
                assert_int_equal(error, was_full ? -ENOSPC : 0);
                if (was_full && at == 1)
                    assert_reads(); /* nothing has changed */
                assert_scene_reads(&scenes[i]);
                mend_disk();
                if (at % 2) {
                    succeed();
                    assert_scene_reads(&scenes[i]);
                }
                end_scene(&scenes[i]);
                file_close();
                if (!was_full)
                    break;
            }
}

/* Then it goes on (0), or dies (1), or dies while it goes on. */
static bool fail_a_note(const struct scene *scene, int at, int then)
{
    begin_scene(scene);
    file.shared->note_fails_at = at;
    errint_t error = play(scene);
    bool failed = file.shared->notes >= at, killed = false;
    assert_int_equal(error, failed ? -ENOSPC : 0);
    file.shared->note_fails_at = 0;
    assert_scene_reads(scene);
    if (then > 1)
        killed = dies_resuming(then - 1, 2);
    if (then > 0)
        restart();
    resume();
    assert_scene_reads(scene);
    end_scene(scene);
    file_close();
    return failed && (then < 2 || killed);
}

static void a_note_that_fails_loses_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i += SCENE_STEP) {
        bool failed = true;
        for (int at = 1; failed; at++) {
            failed = fail_a_note(&scenes[i], at, 0);
            for (int then = 1; failed && fail_a_note(&scenes[i], at, then);)
                then++;
        }
    }
}

static void a_write_waits_for_the_note_that_failed(void **state)
{
    (void)state;
    file_new_encrypted(SCENE_LIMIT);
    put_new(2 * UNIT, 0);
    move_to(UNIT);
    assemble();
    file.shared->notes = 0;
    file.shared->note_fails_at = 2; /* the file was cut, and nothing says so */
    assert_int_equal(growing_truncate(&file.growing, UNIT + 5), -ENOSPC);
    file.shared->note_fails_at = 3;
    assert_int_equal(growing_write(&file.growing, "x", 1, UNIT + 100), -ENOSPC);
    memset(file.shared->model + UNIT + 5, 0, UNIT - 5);
    file.size = UNIT + 5;
    assert_reads();
    put_new(1000, UNIT + 100);
    succeed();
    assert_reads();
    file_close();
}

int main(void)
{
    if (UNDER_THREAD_SANITIZER)
        return 77; /* skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kill_at_any_step_loses_nothing),
        cmocka_unit_test(a_kill_of_the_successor_loses_nothing_either),
        cmocka_unit_test(a_full_disk_loses_nothing),
        cmocka_unit_test(a_note_that_fails_loses_nothing),
        cmocka_unit_test(a_write_waits_for_the_note_that_failed),
    };
    scene_bytes = malloc(SCENE_LIMIT);
    scene_model = malloc(SCENE_LIMIT);
    int failed =
        scene_bytes && scene_model ? cmocka_run_group_tests(tests, set_up_encrypted, tear_down) : 1;
    free(scene_bytes);
    free(scene_model);
    return failed;
}
