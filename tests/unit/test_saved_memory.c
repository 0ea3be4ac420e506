/* What is kept of memory between an orderly end and the next start. */
#include "log_fixture.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/util.h"
#include "tools/saved_memory.h"

enum { BYTES = (1 << 20) + 12345 };
static const char name[] = "0000000000000011", other[] = "0000000000000012";

struct places {
    char top[64], data[80], saved[80];
    unsigned char content[BYTES];
};

static char *path_of(const char *directory, const char *file, char out[160])
{
    snprintf(out, 160, "%s/%s", directory, file);
    return out;
}

static void put_file(const char *directory, const char *file, const void *bytes, size_t count)
{
    char path[160];
    assert_int_equal(mob_write_file(AT_FDCWD, path_of(directory, file, path), bytes, count, 0600),
                     0);
}

static bool is_there(const char *directory, const char *file)
{
    char path[160];
    return access(path_of(directory, file, path), F_OK) == 0;
}

static int set_up(void **state)
{
    struct places *places = calloc(1, sizeof *places);
    strcpy(places->top, "/tmp/mobula-saved-XXXXXX");
    assert_non_null(mkdtemp(places->top));
    snprintf(places->data, sizeof places->data, "%s/data", places->top);
    snprintf(places->saved, sizeof places->saved, "%s/saved", places->top);
    for (size_t i = 0; i < BYTES; i++)
        places->content[i] = (unsigned char)(i * 7 + i / 251);
    mkdir(places->data, 0700);
    put_file(places->data, name, places->content, BYTES);
    put_file(places->data, other, "x", 1);
    put_file(places->data, "0000000000000013", "", 0);
    assert_int_equal(saved_memory_keep(places->data, places->saved), 0);
    saved_memory_remove(places->data);
    mkdir(places->data, 0700);
    *state = places;
    return 0;
}

static int tear_down(void **state)
{
    struct places *places = *state;
    saved_memory_remove(places->data);
    saved_memory_remove(places->saved);
    rmdir(places->top);
    free(places);
    return 0;
}

static void check_restored(struct places *places, const char *file, const void *bytes, size_t count)
{
    char path[160], *text;
    size_t got;
    assert_int_equal(
        mob_read_file(AT_FDCWD, path_of(places->data, file, path), 2 * BYTES, &text, &got), 0);
    assert_int_equal(got, count);
    assert_memory_equal(text, bytes, count);
    free(text);
}

/* --- tests --- */

static void what_was_kept_comes_back(void **state)
{
    struct places *places = *state;
    assert_int_equal(saved_memory_restore(places->saved, places->data), 0);
    check_restored(places, name, places->content, BYTES);
    check_restored(places, other, "x", 1);
    assert_false(is_there(places->data, "0000000000000013"));
    assert_false(is_there(places->top, "saved"));
    assert_int_equal(saved_memory_restore(places->saved, places->data), 0);
}

/* What is a hole in memory is on the disk as well, and may be more than memory has room for. */
static void holes_stay_holes(void **state)
{
    enum { UNIT = 1 << 20, UNITS = 40 };
    struct places *places = *state;
    char path[160];
    struct stat info;
    assert_int_equal(saved_memory_restore(places->saved, places->data), 0);
    int fd = open(path_of(places->data, name, path), O_RDWR | O_TRUNC);
    assert_int_equal(ftruncate(fd, UNITS * (off_t)UNIT), 0);
    for (int unit = 7; unit < UNITS; unit += 20)
        assert_int_equal(mob_pwrite_full(fd, places->content, UNIT, unit * (off_t)UNIT), 0);
    close(fd);
    assert_int_equal(saved_memory_keep(places->data, places->saved), 0);
    assert_int_equal(stat(path_of(places->saved, name, path), &info), 0);
    assert_in_range(info.st_blocks, 2 * UNIT / 512, 3 * UNIT / 512);
    assert_int_equal(saved_memory_restore(places->saved, places->data), 0);
    assert_int_equal(stat(path_of(places->data, name, path), &info), 0);
    assert_int_equal(info.st_size, UNITS * (off_t)UNIT);
    assert_in_range(info.st_blocks, 2 * UNIT / 512, 3 * UNIT / 512);
    cleanup_free unsigned char *got = malloc(UNIT);
    cleanup_fd int again = open(path, O_RDONLY);
    assert_int_equal(mob_pread_full(again, got, UNIT, 27 * (off_t)UNIT), UNIT);
    assert_memory_equal(got, places->content, UNIT);
}

static void check_damaged(struct places *places)
{
    int kept = -1;
    log_caught(&kept);
    errint_t error = saved_memory_restore(places->saved, places->data);
    cleanup_free char *log = log_caught(&kept);
    assert_int_equal(error, 0);
    assert_false(is_there(places->data, name));
    assert_true(is_there(places->saved, SAVED_DAMAGED_PREFIX "0000000000000011"));
    assert_non_null(strstr(log, "saved/0000000000000011 is damaged"));
    check_restored(places, other, "x", 1);
    assert_int_equal(saved_memory_restore(places->saved, places->data), 0); /* it is left alone */
    assert_false(is_there(places->data, name));
}

static void flip(struct places *places, off_t at)
{
    char path[160];
    unsigned char byte;
    int fd = open(path_of(places->saved, name, path), O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void a_flipped_bit_of_its_bytes_is_noticed(void **state)
{
    flip(*state, BYTES / 2);
    check_damaged(*state);
}

static void a_flipped_bit_of_its_checksum_is_noticed(void **state)
{
    flip(*state, BYTES + 20);
    check_damaged(*state);
}

static void a_file_that_was_cut_short_is_noticed(void **state)
{
    struct places *places = *state;
    char path[160];
    assert_int_equal(truncate(path_of(places->saved, name, path), BYTES), 0);
    check_damaged(places);
}

static void another_file_under_its_name_is_noticed(void **state)
{
    struct places *places = *state;
    char from[160], to[160];
    assert_int_equal(rename(path_of(places->saved, other, from), path_of(places->saved, name, to)),
                     0);
    put_file(places->data, other, "x", 1);
    check_damaged(places);
}

/* A directory is in the way of a file that is to be kept. */
static void what_is_put_aside_stays_when_memory_can_t_be_kept(void **state)
{
    struct places *places = *state;
    char path[160];
    flip(places, BYTES / 2);
    check_damaged(places);
    assert_int_equal(mkdir(path_of(places->saved, other, path), 0700), 0);
    assert_int_equal(saved_memory_keep(places->data, places->saved), -EISDIR);
    assert_true(is_there(places->saved, SAVED_DAMAGED_PREFIX "0000000000000011"));
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(what_was_kept_comes_back),
        TEST(holes_stay_holes),
        TEST(a_flipped_bit_of_its_bytes_is_noticed),
        TEST(a_flipped_bit_of_its_checksum_is_noticed),
        TEST(a_file_that_was_cut_short_is_noticed),
        TEST(another_file_under_its_name_is_noticed),
        TEST(what_is_put_aside_stays_when_memory_can_t_be_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
