/* core/base: IDs, sizes, durations, UTF-8, errors, whole reads and writes. */
#include "log_fixture.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/base/log.h"
#include "core/base/util.h"

/* --- injected failures: -Wl,--wrap=write,--wrap=read --- */

static ssize_t write_at_most, fail_write_after = -1;
ssize_t __real_write(int fd, const void *buffer, size_t bytes);
ssize_t __wrap_write(int fd, const void *buffer, size_t bytes);
ssize_t __wrap_write(int fd, const void *buffer, size_t bytes)
{
    static int interrupted;
    if (!write_at_most)
        return __real_write(fd, buffer, bytes);
    if (fail_write_after == 0) {
        errno = ENOSPC;
        return -1;
    }
    if (fail_write_after > 0)
        fail_write_after--;
    if (interrupted++ % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return __real_write(fd, buffer, bytes < (size_t)write_at_most ? bytes : (size_t)write_at_most);
}

static ssize_t read_at_most;
ssize_t __real_read(int fd, void *buffer, size_t bytes);
ssize_t __wrap_read(int fd, void *buffer, size_t bytes);
ssize_t __wrap_read(int fd, void *buffer, size_t bytes)
{
    static int interrupted;
    if (!read_at_most)
        return __real_read(fd, buffer, bytes);
    if (interrupted++ % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return __real_read(fd, buffer, bytes < (size_t)read_at_most ? bytes : (size_t)read_at_most);
}

/* --- IDs --- */

static void an_id_survives_printing_and_parsing(void **state)
{
    (void)state;
    const uint8_t owner[MOB_ID_OWNER_BYTES] = {0xde, 0xad, 0xbe, 0xef, 0, 1, 2, 3};
    struct mob_id id, again;
    char text[MOB_ID_STRING_BYTES];
    assert_int_equal(mob_id_new(owner, 7, &id), 0);
    mob_id_format(&id, text);
    assert_int_equal(strlen(text), 40);
    assert_memory_equal(text, "deadbeef00010203", 16);
    assert_string_equal(text + 32, "00000007");
    assert_true(mob_id_parse(text, 40, &again));
    assert_true(mob_id_equal(&id, &again));
    assert_int_equal(mob_id_index(&again), 7);
    again = mob_id_with_index(&again, MOB_INDEX_STDERR);
    assert_int_equal(mob_id_index(&again), MOB_INDEX_STDERR);
    assert_memory_equal(again.bytes, id.bytes, 16);
}

static void what_is_no_id_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "0", "deadbeef000102030405060708090a0b0000000", "deadbeef000102030405060708090a0b000000000",
        "DEADBEEF000102030405060708090a0b00000000", "deadbeef000102030405060708090a0b0000000g",
        "deadbeef000102030405060708090a0b0000000/", "deadbeef000102030405060708090a0b 0000000"};
    struct mob_id id = {{1}};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        assert_false(mob_id_parse(bad[i], strlen(bad[i]), &id));
    assert_int_equal(id.bytes[0], 1);
}

static void ten_thousand_new_ids_differ(void **state)
{
    (void)state;
    enum { COUNT = 10000 };
    const uint8_t owner[MOB_ID_OWNER_BYTES] = {0};
    uint64_t *seen = calloc(COUNT, sizeof *seen);
    assert_non_null(seen);
    for (size_t i = 0; i < COUNT; i++) {
        struct mob_id id;
        assert_int_equal(mob_id_new(owner, 0, &id), 0);
        memcpy(&seen[i], id.bytes + 8, 8);
        for (size_t j = i > 200 ? i - 200 : 0; j < i; j++)
            assert_true(seen[i] != seen[j]);
    }
    free(seen);
}

/* --- sizes and durations --- */

static void sizes_are_read_as_people_write_them(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},         {"1024", 1024},         {"1K", 1024},        {"1k", 1024},
                {"512M", 512u << 20}, {"1.5G", 3ull << 29}, {"2 GiB", 2ull << 30}, {"1TB", 1ull << 40},
                {"50%", 500},     {"100B", 100}};
    uint64_t bytes;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(good); i++) {
        assert_int_equal(mob_parse_size(good[i].text, 1000, &bytes, NULL), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const bad[] = {"", "-1", "K", "1X", "1KK", "nan", "inf", "0x10", "1e3", "101%",
                                      "9999999999T", "1 2", "512Mx"};
    struct mob_error err;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(mob_parse_size(bad[i], 1000, &bytes, &err), -EINVAL);
        assert_non_null(strstr(err.message, "is no size"));
    }
}

static void durations_are_read_as_people_write_them(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ns;
    } good[] = {{"1", 1000000000}, {"1.5", 1500000000}, {"250ms", 250000000}, {"10m", 600000000000},
                {"2h", 7200000000000}, {"0", 0}};
    uint64_t ns;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(good); i++) {
        assert_int_equal(mob_parse_duration(good[i].text, &ns, NULL), 0);
        assert_int_equal(ns, good[i].ns);
    }
    static const char *const bad[] = {"", "-1", "1w", "m", "1m 2", "99999999999d"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        assert_int_equal(mob_parse_duration(bad[i], &ns, NULL), -EINVAL);
}

static void sizes_and_durations_are_printed_short(void **state)
{
    (void)state;
    char text[32];
    assert_string_equal(mob_format_size(0, text), "0 B");
    assert_string_equal(mob_format_size(1536, text), "1.5 KiB");
    assert_string_equal(mob_format_size(3ull << 30, text), "3.0 GiB");
    assert_string_equal(mob_format_duration(850000000, text), "850 ms");
    assert_string_equal(mob_format_duration(63000000000, text), "1 min 03 s");
}

static void utf8_is_told_from_what_is_not(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80\x80", "\xc3", "a\xe2\x82"};
    assert_true(mob_is_utf8("", 0));
    assert_true(mob_is_utf8("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\x9f", 15));
    assert_false(mob_is_utf8("a\0b", 3));
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        assert_false(mob_is_utf8(bad[i], strlen(bad[i])));
}

static void any_name_can_be_printed_in_a_line(void **state)
{
    (void)state;
    static const char *const names[][2] = {{"", ""},
                                           {"gr\xc3\xbc\xc3\x9f e", "gr\xc3\xbc\xc3\x9f e"},
                                           {"a\nb\\\x7f", "a\\012b\\134\\177"},
                                           {"a\xffg\xc3\xbc", "a\\377g\\303\\274"}};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(names); i++) {
        cleanup_free char *line = mob_printable(names[i][0]);
        assert_string_equal(line, names[i][1]);
    }
}

static void a_name_makes_no_lines_in_the_log(void **state)
{
    (void)state;
    int kept = -1;
    log_caught(&kept);
    mob_log_error("lost: %s", "a\n2000-01-01T00:00:00.000Z error forged\x1b[1m");
    cleanup_free char *log = log_caught(&kept);
    assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);
    assert_non_null(strstr(log, " error lost: a?2000-01-01T00:00:00.000Z error forged?[1m\n"));
}

static void an_error_names_its_place(void **state)
{
    (void)state;
    struct mob_error err;
    char text[600];
    assert_int_equal(mob_error_set_at(&err, -EINVAL, 3, 7, "command", "expected a %s", "list"),
                     -EINVAL);
    assert_string_equal(mob_error_format(&err, text, sizeof text),
                        "line 3, column 7: command: expected a list");
    assert_int_equal(mob_error_set(&err, -EIO, "broken"), -EIO);
    assert_string_equal(mob_error_format(&err, text, sizeof text), "broken");
    assert_int_equal(mob_error_set(NULL, -EIO, "nobody listens"), -EIO);
}

/* --- whole reads and writes --- */

static void short_and_interrupted_writes_are_finished(void **state)
{
    (void)state;
    char path[] = "/tmp/mobula-test-base-XXXXXX", out[1000], in[1000];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 7);
    write_at_most = 13;
    errint_t error = mob_write_full(fd, out, sizeof out);
    write_at_most = 0;
    assert_int_equal(error, 0);
    lseek(fd, 0, SEEK_SET);
    read_at_most = 11;
    ssize_t got = mob_read_full(fd, in, sizeof in);
    read_at_most = 0;
    assert_int_equal(got, sizeof in);
    assert_memory_equal(in, out, sizeof in);
    close(fd);
}

static void a_file_is_written_whole_or_not_at_all(void **state)
{
    (void)state;
    char dir[] = "/tmp/mobula-test-base-XXXXXX", path[64], *content = NULL;
    size_t bytes;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/file", dir);
    assert_int_equal(mob_write_file(AT_FDCWD, path, "old", 3, 0600), 0);
    write_at_most = 2;
    fail_write_after = 2;
    errint_t error = mob_write_file(AT_FDCWD, path, "something new", 13, 0600);
    write_at_most = 0;
    fail_write_after = -1;
    assert_int_equal(error, -ENOSPC);
    assert_int_equal(mob_read_file(AT_FDCWD, path, 100, &content, &bytes), 0);
    assert_string_equal(content, "old");
    free(content);
    assert_int_equal(mob_read_file(AT_FDCWD, path, 2, &content, &bytes), -EFBIG);
    unlink(path);
    assert_int_equal(rmdir(dir), 0); /* no temporary file is left */
}

static void directories_are_made_with_their_parents(void **state)
{
    (void)state;
    char dir[] = "/tmp/mobula-test-base-XXXXXX", path[96];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a/b/c", dir);
    assert_int_equal(mob_make_directories(path, 0700), 0);
    assert_int_equal(mob_make_directories(path, 0700), 0);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mob_write_file(AT_FDCWD, path, "", 0, 0600), 0);
    assert_int_equal(mob_make_directories(path, 0700), -ENOTDIR);
    unlink(path);
    for (int level = 0; level < 3; level++) {
        *strrchr(path, '/') = '\0';
        rmdir(path);
    }
    assert_int_equal(access(dir, F_OK), -1);
}

/* As <linux/sched/types.h> has it, which glibc's headers don't go with. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

static void *hurry_and_tell(void *argument)
{
    struct scheduling *out = argument;
    assert_true(mob_hurry(3)); /* to be nicer is allowed to everybody */
    assert_int_equal(syscall(SYS_sched_getattr, 0, out, sizeof *out, 0), 0);
    mob_no_hurry();
    return NULL;
}

static void who_hurries_has_its_priority_and_short_turns(void **state)
{
    struct scheduling inside = {0}, outside = {0};
    struct utsname kernel;
    int major = 0, minor = 0;
    pthread_t thread;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, hurry_and_tell, &inside), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(inside.nice, 3);
    assert_int_equal(syscall(SYS_sched_getattr, 0, &outside, sizeof outside, 0), 0);
    assert_int_equal(outside.nice, 0);
    assert_int_equal(uname(&kernel), 0);
    assert_int_equal(sscanf(kernel.release, "%d.%d", &major, &minor), 2);
    if (major > 6 || (major == 6 && minor >= 12))
        assert_int_equal(inside.runtime_ns, 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_id_survives_printing_and_parsing),
        cmocka_unit_test(what_is_no_id_is_refused),
        cmocka_unit_test(ten_thousand_new_ids_differ),
        cmocka_unit_test(sizes_are_read_as_people_write_them),
        cmocka_unit_test(durations_are_read_as_people_write_them),
        cmocka_unit_test(sizes_and_durations_are_printed_short),
        cmocka_unit_test(utf8_is_told_from_what_is_not),
        cmocka_unit_test(any_name_can_be_printed_in_a_line),
        cmocka_unit_test(a_name_makes_no_lines_in_the_log),
        cmocka_unit_test(an_error_names_its_place),
        cmocka_unit_test(short_and_interrupted_writes_are_finished),
        cmocka_unit_test(a_file_is_written_whole_or_not_at_all),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(who_hurries_has_its_priority_and_short_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
