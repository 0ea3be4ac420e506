/* A store in fresh directories, for the unit tests of core/store: state on disk under /tmp, memory
 * under /dev/shm. */
#ifndef MOBULA_TESTS_STORE_FIXTURE_H
#define MOBULA_TESTS_STORE_FIXTURE_H

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/names.h"
#include "core/store/staged.h"
#include "core/store/store.h"
#include "tests/unit/unit.h"

struct fixture {
    char state_dir[64], memory_dir[64];
    struct store_options options;
    struct store *store;
};

static inline int fixture_remove_one(const char *path, const struct stat *info, int type,
                                     struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    return remove(path);
}

static inline void fixture_init(struct fixture *fixture)
{
    memset(fixture, 0, sizeof *fixture);
    snprintf(fixture->state_dir, sizeof fixture->state_dir, "/tmp/mobula-store-XXXXXX");
    snprintf(fixture->memory_dir, sizeof fixture->memory_dir, "/dev/shm/mobula-store-XXXXXX");
    assert_non_null(mkdtemp(fixture->state_dir));
    assert_non_null(mkdtemp(fixture->memory_dir));
    fixture->options = (struct store_options){
        .state_dir = fixture->state_dir,
        .memory_dir = fixture->memory_dir,
        .memory_bytes = 256u << 20,
        .owner = {1, 2, 3, 4, 5, 6, 7, 8},
        .map_writes = getenv("MOBULA_TEST_MAP_WRITES") != NULL,
    };
}

static inline void fixture_open(struct fixture *fixture)
{
    struct mob_error err = {0};
    if (store_open(&fixture->options, &fixture->store, &err))
        fail_msg("store_open: %s", err.message);
}

static inline void fixture_close(struct fixture *fixture)
{
    store_close(fixture->store);
    fixture->store = NULL;
}

static inline void fixture_reopen(struct fixture *fixture)
{
    fixture_close(fixture);
    fixture_open(fixture);
}

static inline void fixture_remove(struct fixture *fixture)
{
    nftw(fixture->state_dir, fixture_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    nftw(fixture->memory_dir, fixture_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline int fixture_setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    fixture_init(fixture);
    fixture_open(fixture);
    store_collect(fixture->store);
    *state = fixture;
    return 0;
}

static inline int fixture_setup_passthrough(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    fixture_init(fixture);
    fixture->options.passthrough = true;
    fixture_open(fixture);
    store_collect(fixture->store);
    *state = fixture;
    return 0;
}

static inline int fixture_teardown(void **state)
{
    struct fixture *fixture = *state;
    if (fixture->store)
        fixture_close(fixture);
    fixture_remove(fixture);
    free(fixture);
    return 0;
}

/* Puts an object under a name, as a FUSE create, write and release do. */
static inline struct mob_id fixture_put(struct store *store, uint64_t parent, const char *name,
                                        const void *content, size_t bytes)
{
    struct staged_info info;
    struct mob_id id;
    struct mob_error err = {0};
    assert_int_equal(staged_create(store, parent, name, 0644, 1000, 1000, 0, &info), 0);
    if (bytes)
        assert_int_equal(staged_write(store, info.number, content, bytes, 0), bytes);
    assert_int_equal(staged_closed(store, info.number), 0);
    errint_t error = staged_commit(store, info.number, &id, NULL, &err);
    if (error)
        fail_msg("staged_commit: %d %s", error, err.message);
    return id;
}

static inline size_t fixture_data_files(const struct fixture *fixture)
{
    char path[128];
    size_t count = 0;
    const struct dirent *entry;
    snprintf(path, sizeof path, "%s/data", fixture->memory_dir);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* All but what the journal does by itself. */
static inline void assert_same_usage(const struct store_usage *a, const struct store_usage *b)
{
    struct store_usage x = *a, y = *b;
    x.journal_bytes = x.journal_syncs = x.journal_snapshots = x.journal_errors = 0;
    y.journal_bytes = y.journal_syncs = y.journal_snapshots = y.journal_errors = 0;
    assert_memory_equal(&x, &y, offsetof(struct store_usage, durable)); /* then there is padding */
    assert_string_equal(x.spill_io, y.spill_io);
    assert_string_equal(x.spill_key, y.spill_key);
    assert_memory_equal(&x.objects_ready, &y.objects_ready,
                        sizeof x - offsetof(struct store_usage, objects_ready));
}

static inline bool fixture_exists(struct store *store, const struct mob_id *id)
{
    struct object_info info;
    return store_find(store, id, &info) == 0;
}

#endif
