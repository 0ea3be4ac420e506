/* The command's own logic: lines that come in pieces, "key value" files, exit codes, a mount that
 * is only a directory. What needs a daemon is in tests/system/command.bats. */
#include "unit.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/cli_job.h"
#include "tools/cli_lines.h"
#include "tools/cli_mount.h"
#include "tools/cli_target.h"
#include "tools/cmd_up_options.h"
#include "tools/spill_place.h"

#define OBJECT "0123456789abcdef00000000000000aa00000000"
#define RESULT "0123456789abcdef00000000000000bb00000001"
#define JOB "0123456789abcdef00000000000000bb00000000"

/* --- lines --- */

static void lines_arrive_in_pieces(void **state)
{
    (void)state;
    int ends[2];
    const char *line;
    assert_int_equal(pipe(ends), 0);
    struct cli_lines lines = {.fd = ends[0], .end = '\n'};
    assert_int_equal(cli_lines_next(&lines, &line), -EAGAIN);
    assert_int_equal(write(ends[1], "fir", 3), 3);
    assert_int_equal(cli_lines_next(&lines, &line), -EAGAIN);
    assert_int_equal(write(ends[1], "st\n\nla", 6), 6);
    assert_int_equal(cli_lines_next(&lines, &line), 1);
    assert_string_equal(line, "first");
    assert_int_equal(cli_lines_next(&lines, &line), 1);
    assert_string_equal(line, "");
    assert_int_equal(cli_lines_next(&lines, &line), -EAGAIN);
    assert_int_equal(write(ends[1], "st", 2), 2);
    close(ends[1]);
    /* The last line needs no newline. */
    assert_int_equal(cli_lines_next(&lines, &line), 1);
    assert_string_equal(line, "last");
    assert_int_equal(cli_lines_next(&lines, &line), 0);
    assert_int_equal(cli_lines_next(&lines, &line), 0);
    cli_lines_free(&lines);
    close(ends[0]);
}

static void a_zero_ends_a_line_or_has_no_place_in_it(void **state)
{
    (void)state;
    int ends[2];
    const char *line;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "a\nb\0c\0d\0e\n", 10), 10);
    close(ends[1]);
    struct cli_lines lines = {.fd = ends[0], .end = '\0'};
    assert_int_equal(cli_lines_next(&lines, &line), 1);
    assert_string_equal(line, "a\nb");
    assert_int_equal(cli_lines_next(&lines, &line), 1);
    assert_string_equal(line, "c");
    lines.end = '\n';
    assert_int_equal(cli_lines_next(&lines, &line), -EILSEQ);
    cli_lines_free(&lines);
    close(ends[0]);
}

static void a_line_without_an_end_is_refused(void **state)
{
    (void)state;
    char path[] = "/tmp/mobula-test-cli-XXXXXX";
    const char *line;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, (off_t)(3 * CLI_LINES_LIMIT_BYTES)), 0);
    struct cli_lines lines = {.fd = fd, .end = '\n'};
    assert_int_equal(cli_lines_next(&lines, &line), -EFBIG);
    cli_lines_free(&lines);
    close(fd);
}

static void many_lines_come_whole(void **state)
{
    (void)state;
    char path[] = "/tmp/mobula-test-cli-XXXXXX";
    const char *line;
    char expected[32];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    for (int i = 0; i < 20000; i++)
        dprintf(fd, "line %d\n", i);
    lseek(fd, 0, SEEK_SET);
    struct cli_lines lines = {.fd = fd, .end = '\n'};
    for (int i = 0; i < 20000; i++) {
        assert_int_equal(cli_lines_next(&lines, &line), 1);
        snprintf(expected, sizeof expected, "line %d", i);
        assert_string_equal(line, expected);
    }
    assert_int_equal(cli_lines_next(&lines, &line), 0);
    cli_lines_free(&lines);
    close(fd);
}

/* --- "key value" files --- */

static void key_values_get_types(void **state)
{
    (void)state;
    json_t *table = cli_parse_key_values("pid 12\ncpus 1.5\npassthrough yes\nversion 0.1\n"
                                         "transport io_uring, 2 queues\nno-value\n\nlast no");
    assert_int_equal(json_integer_value(json_object_get(table, "pid")), 12);
    assert_true(json_real_value(json_object_get(table, "cpus")) == 1.5);
    assert_true(json_is_true(json_object_get(table, "passthrough")));
    assert_string_equal(json_string_value(json_object_get(table, "version")), "0.1");
    assert_string_equal(json_string_value(json_object_get(table, "transport")),
                        "io_uring, 2 queues");
    assert_true(json_is_false(json_object_get(table, "last")));
    assert_int_equal(json_object_size(table), 6);
    json_decref(table);
}

static void key_values_outside_of_utf8_and_range_do_no_harm(void **state)
{
    (void)state;
    json_t *table = cli_parse_key_values("bad \xff\xfe\nlarge 99999999999999999999999\ngood 1\n");
    assert_null(json_object_get(table, "bad"));
    assert_true(json_is_real(json_object_get(table, "large")));
    assert_int_equal(json_integer_value(json_object_get(table, "good")), 1);
    json_decref(table);
}

/* --- exit codes --- */

static void a_job_decides_the_exit_code(void **state)
{
    (void)state;
    struct cli_job_end end = {
        .over = true, .succeeded = true, .has_code = true, .state = "succeeded"};
    assert_int_equal(cli_job_exit(&end), 0);
    assert_false(cli_job_needs_words(&end));
    end = (struct cli_job_end){.over = true,
                               .has_code = true,
                               .code = 3,
                               .state = "failed",
                               .sentence = "job x exited with status 3"};
    assert_int_equal(cli_job_exit(&end), 3);
    assert_false(cli_job_needs_words(&end));
    end = (struct cli_job_end){.over = true,
                               .has_code = true,
                               .code = 125,
                               .state = "failed",
                               .sentence = "needs y, whose cause is: job x exited with status 3"};
    assert_int_equal(cli_job_exit(&end), 125);
    assert_true(cli_job_needs_words(&end));
    end = (struct cli_job_end){.over = true, .has_code = true, .code = 143, .state = "timed-out"};
    assert_int_equal(cli_job_exit(&end), 124);
    assert_true(cli_job_needs_words(&end));
    end = (struct cli_job_end){.over = true, .state = "lost"};
    assert_int_equal(cli_job_exit(&end), EX_UNAVAILABLE);
    /* An output was not written: the process was happy, the job is not. */
    end = (struct cli_job_end){.over = true,
                               .has_code = true,
                               .code = 0,
                               .state = "failed",
                               .sentence = "output x was not written"};
    assert_int_equal(cli_job_exit(&end), 1);
    assert_true(cli_job_needs_words(&end));
}

/* --- options of `mobula up` --- */

static errint_t set(struct up_options *options, const char *key, const char *value,
                    struct mob_error *err)
{
    *err = (struct mob_error){0};
    return up_options_set(options, key, value, true, err);
}

static void what_is_not_there_yet_is_refused_by_name(void **state)
{
    static const char *const keys[] = {"resource", "cluster", "listen"};
    struct up_options options = {0};
    struct mob_error err;
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(keys); i++)
        assert_int_equal(set(&options, keys[i], "x", &err), -EOPNOTSUPP);
    assert_int_equal(set(&options, "spell", "x", &err), -ENOENT);
    assert_int_equal(set(&options, "disk", "40G", &err), 0);
    assert_int_equal(set(&options, "spill", "/x", &err), 0);
    up_options_free(&options);
}

static void up_to_eight_spill_directories_add_up(void **state)
{
    struct up_options options = {0};
    struct mob_error err;
    char path[] = "/spill/0";
    (void)state;
    for (int i = 0; i < SPILL_PLACES_LIMIT; i++) {
        path[7] = (char)('0' + i);
        assert_int_equal(set(&options, "spill", path, &err), 0);
    }
    assert_string_equal(options.spills[0], "/spill/0");
    assert_string_equal(options.spills[SPILL_PLACES_LIMIT - 1], "/spill/7");
    assert_null(options.spills[SPILL_PLACES_LIMIT]);
    assert_int_equal(set(&options, "spill", "/ninth", &err), -EINVAL);
    assert_non_null(strstr(err.message, "/ninth"));
    assert_null(options.spills[SPILL_PLACES_LIMIT]);
    up_options_free(&options);
}

static void no_spilling_stands_alone(void **state)
{
    struct up_options options = {0}, other = {0};
    struct mob_error err;
    (void)state;
    assert_int_equal(set(&options, "spill", "none", &err), 0);
    assert_int_equal(set(&options, "spill", "/a", &err), -EINVAL);
    assert_non_null(strstr(err.message, "none"));
    assert_int_equal(set(&options, "spill", "none", &err), -EINVAL);
    assert_int_equal(set(&other, "spill", "/a", &err), 0);
    assert_int_equal(set(&other, "spill", "none", &err), -EINVAL);
    assert_int_equal(set(&other, "spill", "", &err), -EINVAL);
    assert_null(other.spills[1]);
    up_options_free(&options);
    up_options_free(&other);
}

static void a_disk_budget_is_a_size_or_a_share(void **state)
{
    static const char *const bad[] = {"", "lots", "-1G", "101%", "1023K", "0"};
    static const char *const good[] = {"1M", "40G", "30%", "1.5T"};
    struct up_options options = {0};
    struct mob_error err;
    uint64_t bytes = 0;
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(set(&options, "disk", bad[i], &err), -EINVAL);
        assert_non_null(strstr(err.message, bad[i]));
    }
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(good); i++)
        assert_int_equal(set(&options, "disk", good[i], &err), 0);
    assert_string_equal(options.disk, "1.5T");
    up_options_free(&options);
    assert_int_equal(spill_disk_parse("25%", 4000u << 20, &bytes, &err), 0);
    assert_int_equal(bytes, 1000u << 20);
    /* A share of very little. */
    assert_int_equal(spill_disk_parse("25%", 1u << 20, &bytes, &err), -EINVAL);
}

/* A file with directories above any section and in the sections [one] and [two]. */
static void write_options(char path[32])
{
    static const char text[] = "spill = /all/a\n"
                               "spill = /all/b\n"
                               "disk = 40G\n"
                               "[one]\n"
                               "spill = /one/a\n"
                               "spill = /one/b\n"
                               "spill = /one/c\n"
                               "[two]\n"
                               "disk = 2G\n"
                               "[three]\n"
                               "spill = none\n";
    snprintf(path, 32, "/tmp/mobula-test-cli-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
}

/* What spills has for the node `name`, as one line. `given`: a directory on the command line. */
static void complete(const char *name, const char *given, char *line, size_t line_bytes,
                     char disk[16])
{
    char path[32];
    struct up_options options = {0};
    struct mob_error err;
    size_t used = 0;
    write_options(path);
    options.config = strdup(path);
    assert_int_equal(set(&options, "name", name, &err), 0);
    if (given)
        assert_int_equal(set(&options, "spill", given, &err), 0);
    assert_int_equal(up_options_complete(&options, &err), 0);
    *line = '\0';
    for (size_t i = 0; options.spills[i]; i++)
        used += (size_t)snprintf(line + used, line_bytes - used, "%s%s", i ? " " : "",
                                 options.spills[i]);
    snprintf(disk, 16, "%s", options.disk);
    up_options_free(&options);
    unlink(path);
}

static void the_first_source_that_names_spill_directories_names_all(void **state)
{
    char line[128], disk[16];
    (void)state;
    complete("other", NULL, line, sizeof line, disk);
    assert_string_equal(line, "/all/a /all/b");
    assert_string_equal(disk, "40G");
    complete("one", NULL, line, sizeof line, disk);
    assert_string_equal(line, "/one/a /one/b /one/c");
    complete("two", NULL, line, sizeof line, disk);
    assert_string_equal(line, "/all/a /all/b");
    assert_string_equal(disk, "2G");
    complete("three", NULL, line, sizeof line, disk);
    assert_string_equal(line, "none");
    complete("one", "/given", line, sizeof line, disk);
    assert_string_equal(line, "/given");
    complete("one", "none", line, sizeof line, disk);
    assert_string_equal(line, "none");
    complete("three", "/given", line, sizeof line, disk);
    assert_string_equal(line, "/given");
}

static void a_bad_spill_line_of_the_file_names_file_and_option(void **state)
{
    char path[] = "/tmp/mobula-test-cli-XXXXXX";
    static const char text[] = "spill = /a\nspill = none\n";
    struct up_options options = {0};
    struct mob_error err = {0};
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    options.config = strdup(path);
    assert_int_equal(up_options_complete(&options, &err), -EINVAL);
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "option 'spill'"));
    up_options_free(&options);
    unlink(path);
}

/* --- targets, in a directory that looks like a mount --- */

static char root[] = "/tmp/mobula-test-cli-XXXXXX";

static int make_tree(void **state)
{
    static const char *const directories[] = {"objects", "staging", "staging/d",
                                              "run",     "jobs",    ("jobs/" JOB)};
    static const char *const files[] = {"objects/" OBJECT, "objects/" RESULT, "staging/open"};
    static const char *const links[][2] = {{"../objects/" OBJECT, "staging/a"},
                                           {"../../objects/" OBJECT, "staging/d/b"},
                                           {"../jobs/" JOB, "run/j"},
                                           {"../../objects/" RESULT, "jobs/" JOB "/result"},
                                           {"/etc/passwd", "staging/outside"}};
    (void)state;
    if (!mkdtemp(root) || chdir(root))
        return -1;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(directories); i++)
        if (mkdir(directories[i], 0755))
            return -1;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(files); i++)
        if (mob_write_file(AT_FDCWD, files[i], "x", 1, 0644))
            return -1;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(links); i++)
        if (symlink(links[i][0], links[i][1]))
            return -1;
    return chdir("/");
}

static int remove_tree(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static void find_mount(struct cli_mount *mount)
{
    struct cli cli = {.mount_option = root};
    struct mob_error err = {0};
    assert_int_equal(cli_mount_find(&cli, mount, &err), 0);
}

static void names_ids_and_paths_find_the_same_object(void **state)
{
    char absolute[PATH_MAX + 16];
    struct cli_mount mount;
    struct cli_target target;
    struct mob_error err = {0};
    (void)state;
    find_mount(&mount);
    snprintf(absolute, sizeof absolute, "%s/staging/d/b", mount.path);
    const char *const texts[] = {OBJECT, "a", "d/b", "staging/a", "objects/" OBJECT, absolute};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(texts); i++) {
        assert_int_equal(cli_target_find(&mount, texts[i], &target, &err), 0);
        assert_int_equal(target.kind, CLI_TARGET_OBJECT);
        assert_string_equal(target.id_text, OBJECT);
        assert_string_equal(target.path, "objects/" OBJECT);
    }
    cli_mount_close(&mount);
}

static void a_job_stands_for_its_result(void **state)
{
    static const char *const texts[] = {JOB, "j", "run/j", ("jobs/" JOB)};
    struct cli_mount mount;
    struct cli_target target;
    struct mob_error err = {0};
    (void)state;
    find_mount(&mount);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(texts); i++) {
        assert_int_equal(cli_target_job(&mount, texts[i], &target, &err), 0);
        assert_string_equal(target.id_text, JOB);
        assert_int_equal(cli_target_object(&mount, texts[i], &target, &err), 0);
        assert_string_equal(target.id_text, RESULT);
    }
    cli_mount_close(&mount);
}

static void what_is_neither_says_why(void **state)
{
    static const struct {
        const char *text;
        errint_t error;
        const char *words;
    } cases[] = {
        {"", -ENOENT, "empty"},
        {"no-such-name", -ENOENT, "no-such-name"},
        {"0123456789abcdef00000000000000cc00000000", -ENOENT, "no such object or job"},
        {"0123456789abcdef00000000000000cc00000001", -ENOENT, "no such object or job"},
        {"outside", -ENOENT, "not in the mount"},
        {"/etc/passwd", -ENOENT, "not in the mount"},
        {"open", -EBUSY, "being written"},
        {"d", -EISDIR, "directory"},
        {"objects", -ENOENT, "neither"},
        {"../etc", -ENOENT, ""},
    };
    struct cli_mount mount;
    struct cli_target target;
    (void)state;
    find_mount(&mount);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
        struct mob_error err = {0};
        errint_t error = cli_target_object(&mount, cases[i].text, &target, &err);
        assert_int_equal(error, cases[i].error);
        assert_non_null(strstr(err.message, cases[i].words));
        assert_string_not_equal(err.message, "");
    }
    struct mob_error err = {0};
    assert_int_equal(cli_target_job(&mount, "a", &target, &err), -EINVAL);
    cli_mount_close(&mount);
}

/* --- spill directories, in the same directory --- */

static void a_spill_directory_that_is_not_there_is_located_and_not_made(void **state)
{
    char path[PATH_MAX + 32], expected[PATH_MAX + 32], again[PATH_MAX], real[PATH_MAX];
    struct mob_error err = {0};
    (void)state;
    assert_non_null(realpath(root, again));
    snprintf(expected, sizeof expected, "%s/spill/deep", again);
    snprintf(path, sizeof path, "%s/../%s/spill/.//deep/", root, strrchr(root, '/') + 1);
    assert_int_equal(spill_place_check(path, "/mnt/x", real, &err), 0);
    assert_string_equal(real, expected);
    assert_int_equal(access(real, F_OK), -1);
    snprintf(path, sizeof path, "%s/spill", root);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(mob_make_directories(real, 0700), 0);
    assert_int_equal(spill_place_check(real, "/mnt/x", again, &err), 0);
    assert_string_equal(again, real);
    assert_int_equal(spill_place_check("/no/such", "/mnt/x", real, &err), 0);
    assert_string_equal(real, "/no/such");
    /* Relative ones, of which nothing is there. */
    assert_int_equal(chdir(root), 0);
    assert_non_null(getcwd(again, sizeof again));
    static const char *const names[] = {"no-such", ".no-such", "./no-such", "..no-such/a"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(names); i++) {
        snprintf(expected, sizeof expected, "%s/%s", again, names[i] + 2 * (i == 2));
        assert_int_equal(spill_place_check(names[i], "/mnt/x", real, &err), 0);
        assert_string_equal(real, expected);
    }
    assert_int_equal(chdir("/"), 0);
}

static void up_to_eight_directories_can_be_given_up(void **state)
{
    struct up_options options = {0};
    struct mob_error err = {0};
    (void)state;
    assert_int_equal(up_options_forget(&options, "", &err), -EINVAL);
    for (int i = 0; i < SPILL_PLACES_LIMIT; i++)
        assert_int_equal(up_options_forget(&options, "/spill", &err), 0);
    assert_int_equal(up_options_forget(&options, "/one/more", &err), -EINVAL);
    assert_non_null(strstr(err.message, "'/one/more' is one too many"));
    assert_null(options.forgets[SPILL_PLACES_LIMIT]);
    assert_int_equal(up_options_set(&options, "forget-spill", "/spill", false, &err), -ENOENT);
    up_options_free(&options);
}

static void a_path_that_is_too_long_is_refused(void **state)
{
    char path[PATH_MAX + 16], real[PATH_MAX];
    struct mob_error err = {0};
    (void)state;
    memset(path, 'a', sizeof path);
    path[0] = '/';
    path[sizeof path - 1] = '\0';
    assert_int_equal(spill_place_locate(path, "--forget-spill", real, &err), -ENAMETOOLONG);
    assert_non_null(strstr(err.message, "--forget-spill"));
    path[PATH_MAX - 1] = '\0';
    assert_int_equal(spill_place_locate(path, "--spill", real, &err), 0);
    assert_int_equal(chdir("/tmp"), 0);
    assert_int_equal(spill_place_locate(path + 1, "--spill", real, &err), -ENAMETOOLONG);
    assert_int_equal(chdir("/"), 0);
}

static void a_spill_directory_is_not_where_the_mount_will_be(void **state)
{
    char path[PATH_MAX], mount_path[PATH_MAX], real[PATH_MAX];
    struct mob_error err = {0};
    (void)state;
    snprintf(mount_path, sizeof mount_path, "%s/objects", root);
    snprintf(path, sizeof path, "%s/objects/a/b", root);
    assert_int_equal(spill_place_check(path, mount_path, real, &err), -EINVAL);
    assert_non_null(strstr(err.message, "--spill"));
    snprintf(path, sizeof path, "%s/objects/a", root);
    assert_int_equal(access(path, F_OK), -1); /* nothing was made */
    snprintf(path, sizeof path, "%s/link", root);
    assert_int_equal(symlink("objects", path), 0);
    assert_int_equal(spill_place_check(path, mount_path, real, &err), -EINVAL);
    snprintf(path, sizeof path, "%s/not-there/../objects/a", root);
    assert_int_equal(spill_place_check(path, mount_path, real, &err), -EINVAL);
    /* Beside it, with a name that begins alike. */
    snprintf(path, sizeof path, "%s/objects-spilled", root);
    assert_int_equal(spill_place_check(path, mount_path, real, &err), 0);
}

static void what_cannot_be_a_spill_directory_says_why(void **state)
{
    char path[PATH_MAX], real[PATH_MAX];
    struct mob_error err = {0};
    (void)state;
    snprintf(path, sizeof path, "%s/staging/open/x", root);
    assert_int_equal(spill_place_check(path, "/mnt/x", real, &err), -ENOTDIR);
    assert_non_null(strstr(err.message, "--spill"));
    assert_non_null(strstr(err.message, path));
    if (geteuid() == 0)
        return; /* may write anywhere */
    snprintf(path, sizeof path, "%s/locked", root);
    assert_int_equal(mkdir(path, 0500), 0);
    assert_int_equal(spill_place_check(path, "/mnt/x", real, &err), -EACCES);
    assert_non_null(strstr(err.message, "--spill"));
}

static void filesystems_of_spill_directories_count_once(void **state)
{
    char first[PATH_MAX], second[PATH_MAX];
    char *one[] = {first, NULL}, *two[] = {first, second, NULL}, *none[] = {NULL};
    (void)state;
    snprintf(first, sizeof first, "%s/objects", root);
    snprintf(second, sizeof second, "%s/staging", root);
    uint64_t whole = spill_places_whole_bytes(one);
    assert_true(whole > 0);
    assert_true(spill_places_whole_bytes(two) == whole);
    assert_int_equal(spill_places_whole_bytes(none), 0);
    assert_false(spill_place_is_in_memory("/proc"));
    assert_false(spill_place_is_in_memory("/no/such/place"));
}

static void a_plain_directory_is_no_mount(void **state)
{
    struct cli cli = {.mount_option = "/tmp"};
    struct cli_mount mount;
    struct mob_error err = {0};
    (void)state;
    assert_int_equal(cli_mount_find(&cli, &mount, &err), -ENOENT);
    assert_non_null(strstr(err.message, "/tmp"));
    assert_false(cli_mount_is_mounted("/"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_arrive_in_pieces),
        cmocka_unit_test(a_zero_ends_a_line_or_has_no_place_in_it),
        cmocka_unit_test(a_line_without_an_end_is_refused),
        cmocka_unit_test(many_lines_come_whole),
        cmocka_unit_test(key_values_get_types),
        cmocka_unit_test(key_values_outside_of_utf8_and_range_do_no_harm),
        cmocka_unit_test(a_job_decides_the_exit_code),
        cmocka_unit_test(what_is_not_there_yet_is_refused_by_name),
        cmocka_unit_test(up_to_eight_spill_directories_add_up),
        cmocka_unit_test(no_spilling_stands_alone),
        cmocka_unit_test(a_disk_budget_is_a_size_or_a_share),
        cmocka_unit_test(the_first_source_that_names_spill_directories_names_all),
        cmocka_unit_test(a_bad_spill_line_of_the_file_names_file_and_option),
        cmocka_unit_test(names_ids_and_paths_find_the_same_object),
        cmocka_unit_test(a_job_stands_for_its_result),
        cmocka_unit_test(what_is_neither_says_why),
        cmocka_unit_test(a_spill_directory_that_is_not_there_is_located_and_not_made),
        cmocka_unit_test(a_path_that_is_too_long_is_refused),
        cmocka_unit_test(up_to_eight_directories_can_be_given_up),
        cmocka_unit_test(a_spill_directory_is_not_where_the_mount_will_be),
        cmocka_unit_test(what_cannot_be_a_spill_directory_says_why),
        cmocka_unit_test(filesystems_of_spill_directories_count_once),
        cmocka_unit_test(a_plain_directory_is_no_mount),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
