/* core/store/trust: what a server that ended, was killed, or went down with its machine has left.
 */
#include "journal_fixture.h"

#include <stdatomic.h>

#include "core/store/trust.h"

static atomic_int fsync_error, fsyncs;

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    (void)fd;
    fsyncs++;
    errno = fsync_error;
    return fsync_error ? -1 : 0;
}

struct place {
    struct life life; /* only its directory */
    int fd;
};

static const char data[] = "these are the first pages; this is not in use";
enum { USED = 26 };

static void place_make(struct place *place)
{
    char path[128];
    fsync_error = 0;
    make_state_dir(&place->life);
    place->fd = open(place->life.state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(place->fd >= 0);
    mkdir(path_in(&place->life, "meta", path), 0700);
    write_whole(path_in(&place->life, "meta/data.mdb", path), data, sizeof data);
}

static void place_remove(struct place *place)
{
    close(place->fd);
    remove_tree(place->life.state_dir);
}

static struct trust read_trust(struct place *place)
{
    struct trust trust;
    assert_int_equal(trust_read(place->fd, &trust, &place->life.err), 0);
    return trust;
}

static bool is_there(struct place *place, const char *name)
{
    return faccessat(place->fd, name, F_OK, 0) == 0;
}

static void change_byte(struct place *place, size_t at)
{
    char path[128], changed[sizeof data];
    memcpy(changed, data, sizeof data);
    changed[at] ^= 1;
    write_whole(path_in(&place->life, "meta/data.mdb", path), changed, sizeof data);
}

static void run_server(struct place *place)
{
    assert_int_equal(trust_running(place->fd, &place->life.err), 0);
}

static void after_a_kill_all_is_trusted(void **state)
{
    struct place place;
    (void)state;
    place_make(&place);
    run_server(&place);
    change_byte(&place, 3); /* as it works */
    struct trust trust = read_trust(&place);
    assert_true(trust.meta && trust.memory && !trust.fresh && !trust.clean);
    place_remove(&place);
}

static void after_another_boot_nothing_is_trusted(void **state)
{
    struct place place;
    char path[128];
    size_t bytes;
    (void)state;
    place_make(&place);
    run_server(&place);
    char *text = read_whole(path_in(&place.life, "running", path), &bytes);
    char *boot = strstr(text, "running ") + strlen("running ");
    *boot = *boot == '0' ? '1' : '0';
    write_whole(path, text, bytes);
    struct trust trust = read_trust(&place);
    assert_true(!trust.meta && !trust.memory && !trust.fresh);
    free(text);
    place_remove(&place);
}

static void a_copy_of_a_directory_in_use_is_not_trusted(void **state)
{
    struct place place, copy;
    char command[256], path[128];
    (void)state;
    place_make(&place);
    run_server(&place);
    place_make(&copy);
    snprintf(command, sizeof command, "cp -a %s/. %s/", place.life.state_dir, copy.life.state_dir);
    assert_int_equal(system(command), 0);
    assert_true(is_there(&copy, "running"));
    struct trust trust = read_trust(&copy);
    assert_true(!trust.meta && !trust.memory);
    /* Nor one that has taken its place. */
    snprintf(command, sizeof command, "cd %s/meta && cp -a data.mdb new && mv new data.mdb",
             place.life.state_dir);
    assert_int_equal(system(command), 0);
    assert_false(read_trust(&place).meta);
    assert_int_equal(unlink(path_in(&copy.life, "running", path)), 0);
    assert_false(read_trust(&copy).meta);
    place_remove(&copy);
    place_remove(&place);
}

static void a_file_with_the_same_number_but_made_later_is_another_one(void **state)
{
    struct place place;
    char path[128];
    size_t bytes;
    (void)state;
    place_make(&place);
    run_server(&place);
    char *text = read_whole(path_in(&place.life, "running", path), &bytes);
    char *made = strrchr(text, ' ');
    if (!strcmp(made, " 0.0\n")) {
        free(text);
        place_remove(&place);
        skip(); /* the filesystem doesn't know it */
    }
    made[1] = made[1] == '1' ? '2' : '1';
    write_whole(path, text, bytes);
    struct trust trust = read_trust(&place);
    assert_true(!trust.meta && !trust.memory);
    free(text);
    place_remove(&place);
}

static void after_an_orderly_end_all_is_trusted_as_long_as_it_is_unchanged(void **state)
{
    struct place place;
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_clean(place.fd, USED), 0);
    struct trust trust = read_trust(&place);
    assert_true(trust.meta && trust.memory && trust.clean && !trust.fresh);
    for (size_t at = 0; at < sizeof data; at++) {
        change_byte(&place, at);
        assert_true(read_trust(&place).meta == (at >= USED));
    }
    change_byte(&place, USED);
    char path[128];
    assert_int_equal(truncate(path_in(&place.life, "meta/data.mdb", path), USED - 1), 0);
    assert_false(read_trust(&place).meta);
    place_remove(&place);
}

static void a_copy_after_an_orderly_end_is_trusted(void **state)
{
    struct place place, copy;
    char command[256];
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_clean(place.fd, USED), 0);
    place_make(&copy);
    snprintf(command, sizeof command, "cp -a %s/. %s/", place.life.state_dir, copy.life.state_dir);
    assert_int_equal(system(command), 0);
    assert_true(read_trust(&copy).meta);
    place_remove(&copy);
    place_remove(&place);
}

static void a_changed_byte_of_what_was_said_is_not_believed(void **state)
{
    static const char *const names[] = {"running", "clean"};
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(names); i++) {
        struct place place;
        char path[128];
        size_t bytes;
        place_make(&place);
        run_server(&place);
        if (i)
            assert_int_equal(trust_clean(place.fd, USED), 0);
        char *text = read_whole(path_in(&place.life, names[i], path), &bytes);
        for (size_t at = 0; at < bytes; at++) {
            text[at] ^= 1;
            write_whole(path, text, bytes);
            text[at] ^= 1;
            assert_false(read_trust(&place).meta);
        }
        write_whole(path, text, bytes - 1);
        assert_false(read_trust(&place).meta);
        write_whole(path, "", 0);
        assert_false(read_trust(&place).meta);
        char *long_text = calloc(1, 5000);
        memset(long_text, 'x', 5000);
        write_whole(path, long_text, 5000);
        assert_false(read_trust(&place).meta);
        free(long_text);
        free(text);
        place_remove(&place);
    }
}

static void without_a_word_of_it_nothing_is_trusted(void **state)
{
    struct place place;
    char path[128];
    (void)state;
    place_make(&place);
    struct trust trust = read_trust(&place);
    assert_true(!trust.meta && !trust.memory && !trust.fresh);
    unlink(path_in(&place.life, "meta/data.mdb", path));
    trust = read_trust(&place);
    assert_true(!trust.meta && trust.fresh);
    assert_int_equal(trust_running(place.fd, &place.life.err), -ENOENT);
    assert_true(place.life.err.message[0]);
    assert_int_equal(trust_clean(place.fd, USED), -ENOENT);
    place_remove(&place);
}

static void that_it_was_clean_is_gone_for_good_before_anything_changes(void **state)
{
    struct place place;
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_clean(place.fd, USED), 0);
    int before = fsyncs;
    run_server(&place);
    assert_false(is_there(&place, "clean"));
    assert_true(fsyncs > before);
    assert_int_equal(trust_clean(place.fd, USED), 0);
    fsync_error = EIO;
    assert_int_equal(trust_running(place.fd, &place.life.err), -EIO);
    assert_int_equal(trust_clean(place.fd, USED), -EIO);
    place_remove(&place);
}

static void pages_that_were_never_written_are_not_asked_for(void **state)
{
    struct place place;
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_clean(place.fd, 1 << 20), 0);
    assert_true(read_trust(&place).meta);
    place_remove(&place);
}

static void what_is_discarded_is_gone_with_all_that_was_said_of_it(void **state)
{
    struct place place;
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_clean(place.fd, USED), 0);
    for (int i = 0; i < 2; i++) {
        int before = fsyncs;
        assert_int_equal(trust_discard(place.fd, false, &place.life.err), 0);
        assert_true(!is_there(&place, "clean") && !is_there(&place, "running") &&
                    !is_there(&place, "meta/data.mdb"));
        assert_true(fsyncs > before);
    }
    struct trust trust = read_trust(&place);
    assert_true(trust.fresh && !trust.memory);
    fsync_error = EIO;
    assert_int_equal(trust_discard(place.fd, false, &place.life.err), -EIO);
    place_remove(&place);
}

static void that_memory_is_trusted_outlives_discarded_metadata_until_the_next_boot(void **state)
{
    struct place place;
    char path[128];
    size_t bytes;
    (void)state;
    place_make(&place);
    run_server(&place);
    assert_int_equal(trust_discard(place.fd, true, &place.life.err), 0);
    struct trust trust = read_trust(&place);
    assert_true(trust.fresh && !trust.meta && trust.memory && !trust.clean);
    write_whole(path_in(&place.life, "meta/data.mdb", path), data, sizeof data); /* half-way */
    trust = read_trust(&place);
    assert_true(!trust.fresh && !trust.meta && trust.memory);
    char *text = read_whole(path_in(&place.life, "running", path), &bytes);
    for (size_t at = 0; at < bytes; at++) { /* another boot, among others */
        text[at] ^= 1;
        write_whole(path, text, bytes);
        text[at] ^= 1;
        assert_false(read_trust(&place).memory);
    }
    write_whole(path, text, bytes);
    run_server(&place);
    trust = read_trust(&place);
    assert_true(trust.meta && trust.memory);
    free(text);
    place_remove(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(after_a_kill_all_is_trusted),
        cmocka_unit_test(after_another_boot_nothing_is_trusted),
        cmocka_unit_test(a_copy_of_a_directory_in_use_is_not_trusted),
        cmocka_unit_test(a_file_with_the_same_number_but_made_later_is_another_one),
        cmocka_unit_test(after_an_orderly_end_all_is_trusted_as_long_as_it_is_unchanged),
        cmocka_unit_test(a_copy_after_an_orderly_end_is_trusted),
        cmocka_unit_test(a_changed_byte_of_what_was_said_is_not_believed),
        cmocka_unit_test(without_a_word_of_it_nothing_is_trusted),
        cmocka_unit_test(that_it_was_clean_is_gone_for_good_before_anything_changes),
        cmocka_unit_test(pages_that_were_never_written_are_not_asked_for),
        cmocka_unit_test(what_is_discarded_is_gone_with_all_that_was_said_of_it),
        cmocka_unit_test(
            that_memory_is_trusted_outlives_discarded_metadata_until_the_next_boot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
