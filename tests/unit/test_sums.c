/* Unit tests of the checksums of everything that is kept in LMDB: bits are flipped in a closed
 * store's values, in an open store's values, and anywhere in data.mdb. */
#include "core/store/store_internal.h"
#include "tests/unit/store_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* The store is opened thousands of times: in memory, where a sync costs nothing, and without
 * allocating ahead, which costs milliseconds there. */
int __real_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    if (mode != FALLOC_FL_KEEP_SIZE)
        return __real_fallocate64(fd, mode, offset, bytes);
    errno = EOPNOTSUPP;
    return -1;
}

enum { EMBEDDED_BYTES = 24, INLINE_BYTES = 1700, BLOCKS_FILE = 77777 };

struct known {
    struct mob_id id;
    struct object_info info;
    const char *name, *content;
    size_t bytes;
};

/* A closed store of which everything is known, and a copy of its data.mdb to begin again from. */
struct sums {
    struct fixture fixture;
    char path[128], secret[INLINE_BYTES + 1];
    struct known objects[4];
    struct name_info directory, symlink;
    char sha256[65];
    unsigned char *saved;
    size_t saved_bytes;
    int log, standard_error;
};

/* What a look at the store has found. */
enum finding { HARMLESS = 0, NOTICED = 1, WRONG = 2 };

static const char job_key[] = "job 1", job_value[] = "what a job says";

/* --- what is complained about --- */

static void catch_log(struct sums *sums)
{
    fflush(stderr);
    assert_int_equal(ftruncate(sums->log, 0), 0);
    sums->standard_error = dup(2);
    if (!getenv("MOBULA_TEST_LOUD"))
        dup2(sums->log, 2);
}

static void release_log(struct sums *sums)
{
    fflush(stderr);
    dup2(sums->standard_error, 2);
    close(sums->standard_error);
    sums->standard_error = -1;
}

static bool log_says(struct sums *sums, const char *text)
{
    char buffer[16384];
    ssize_t got = pread(sums->log, buffer, sizeof buffer - 1, 0);
    buffer[got > 0 ? got : 0] = '\0';
    return strstr(buffer, text) != NULL;
}

/* --- the store --- */

static struct known put_known(struct store *store, const char *name, const char *content,
                              size_t bytes, const struct mob_id *held)
{
    struct known known = {.name = name, .content = content, .bytes = bytes};
    struct staged_info info;
    struct mob_error err;
    char text[MOB_ID_STRING_BYTES];
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 7, 8, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, content, bytes, 0), bytes);
    if (held) {
        assert_int_equal(staged_xattr_set(store, info.number, "user.color", "purple", 6, 0, &err),
                         0);
        assert_int_equal(staged_xattr_set(store, info.number, "user.mobula.refs",
                                          mob_id_format(held, text), 40, 0, &err),
                         0);
    }
    assert_int_equal(staged_closed(store, info.number), 0);
    assert_int_equal(staged_commit(store, info.number, &known.id, NULL, &err), 0);
    assert_int_equal(store_find(store, &known.id, &known.info), 0);
    return known;
}

static void put_job(struct store *store)
{
    struct store_batch *batch;
    struct mob_error err;
    assert_int_equal(store_batch_new(store, &batch), 0);
    for (int t = 0; t < STORE_TABLE_COUNT; t++)
        assert_int_equal(store_batch_put(batch, (enum store_table)t, job_key, sizeof job_key,
                                         job_value, sizeof job_value),
                         0);
    assert_int_equal(store_batch_commit(batch, &err), 0);
}

static void put_blocks(struct store *store)
{
    const struct spill_sum sums[2] = {{{1, 2}}, {{3, 4}}};
    MDB_txn *txn;
    store_write_lock(store);
    assert_int_equal(meta_begin(&store->meta, 1000, &txn), 0);
    assert_int_equal(blocks_put(&store->meta, txn, BLOCKS_FILE, 2 * SPILL_BLOCK_BYTES, sums), 0);
    assert_int_equal(meta_commit(txn), 0);
    store_write_unlock(store);
}

static void save(struct sums *sums)
{
    struct stat info;
    int fd = open(sums->path, O_RDONLY);
    assert_int_equal(fstat(fd, &info), 0);
    sums->saved_bytes = (size_t)info.st_size;
    sums->saved = malloc(sums->saved_bytes);
    assert_int_equal(mob_pread_full(fd, sums->saved, sums->saved_bytes, 0), sums->saved_bytes);
    close(fd);
}

static void restore(struct sums *sums, const unsigned char *bytes)
{
    int fd = open(sums->path, O_WRONLY | O_TRUNC);
    assert_int_equal(mob_write_full(fd, bytes, sums->saved_bytes), 0);
    close(fd);
}

static int sums_setup(void **state)
{
    struct sums *sums = calloc(1, sizeof *sums);
    struct fixture *fixture = &sums->fixture;
    fixture_init(fixture);
    assert_int_equal(rmdir(fixture->state_dir), 0);
    snprintf(fixture->state_dir, sizeof fixture->state_dir, "/dev/shm/mobula-state-XXXXXX");
    assert_non_null(mkdtemp(fixture->state_dir));
    sums->standard_error = -1;
    fixture->options.spare_files = 1;
    fixture_open(fixture);
    struct store *store = fixture->store;
    store_collect(store);
    for (size_t i = 0; i < INLINE_BYTES; i++)
        sums->secret[i] = (char)('a' + i * 7 % 26);
    sums->log = memfd_create("log", MFD_CLOEXEC);
    assert_int_equal(fcntl(sums->log, F_SETFL, O_APPEND), 0);
    sums->objects[0] = put_known(store, "tiny", sums->secret, EMBEDDED_BYTES, NULL);
    sums->objects[1] = put_known(store, "small", sums->secret, INLINE_BYTES, NULL);
    sums->objects[2] = put_known(store, "empty", "", 0, NULL);
    sums->objects[3] = put_known(store, "holder", "h", 1, &sums->objects[0].id);
    assert_int_equal(
        names_make_directory(store, NAMES_STAGING, "dir", 0750, 7, 8, &sums->directory), 0);
    assert_int_equal(names_make_symlink(store, sums->directory.number, "link", "over/there", 7, 8,
                                        &sums->symlink),
                     0);
    assert_int_equal(store_sha256(store, sums->objects[1].info.number, sums->sha256), 0);
    put_job(store);
    put_blocks(store);
    fixture_close(fixture);
    snprintf(sums->path, sizeof sums->path, "%s/meta/data.mdb", fixture->state_dir);
    save(sums);
    *state = sums;
    return 0;
}

static int sums_teardown(void **state)
{
    struct sums *sums = *state;
    char said[16384];
    if (sums->standard_error >= 0) { /* it failed: what it said went there, too */
        release_log(sums);
        ssize_t got = pread(sums->log, said, sizeof said, 0);
        fprintf(stderr, "%.*s", got > 0 ? (int)got : 0, said);
    }
    if (sums->fixture.store)
        fixture_close(&sums->fixture);
    fixture_remove(&sums->fixture);
    close(sums->log);
    free(sums->saved);
    free(sums);
    return 0;
}

/* --- looking at all of it; nothing here asserts, since a child does it too --- */

static enum finding worse(enum finding a, enum finding b)
{
    return a > b ? a : b;
}

static enum finding judge(bool failed, bool equal)
{
    return failed ? NOTICED : equal ? HARMLESS : WRONG;
}

static enum finding look_at_content(struct store *store, const struct known *known)
{
    cleanup_free char *content = NULL;
    size_t bytes = 0;
    bool failed = store_read_all(store, &known->id, 1 << 20, &content, &bytes) != 0;
    return judge(failed,
                 !failed && bytes == known->bytes && memcmp(content, known->content, bytes) == 0);
}

/* By parts, as the kernel asks for it. */
static enum finding look_at_parts(struct store *store, const struct known *known)
{
    enum finding found = HARMLESS;
    char buffer[512];
    for (size_t at = 0; at < known->bytes; at += sizeof buffer) {
        ssize_t got = store_read_inline(store, known->info.number, buffer, sizeof buffer, at);
        size_t left = known->bytes - at, part = left < sizeof buffer ? left : sizeof buffer;
        found = worse(found, judge(got < 0, got == (ssize_t)part &&
                                                memcmp(buffer, known->content + at, part) == 0));
    }
    return found;
}

static enum finding look_at_object(struct store *store, const struct known *known)
{
    struct object_info info;
    struct name_info name;
    const struct object_info *want = &known->info;
    bool failed = store_info(store, want->number, &info) != 0;
    enum finding found =
        judge(failed, !failed && info.size == want->size && info.uid == want->uid &&
                          info.gid == want->gid && info.mode == want->mode &&
                          info.mtime_ns == want->mtime_ns && info.tier == want->tier &&
                          mob_id_equal(&info.id, &known->id));
    failed = names_find(store, NAMES_STAGING, known->name, &name) != 0;
    found = worse(found, judge(failed, !failed && name.type == NAME_OBJECT && name.uid == 7 &&
                                           name.number == want->number &&
                                           mob_id_equal(&name.target, &known->id)));
    found = worse(found, look_at_content(store, known));
    return worse(found, look_at_parts(store, known));
}

static enum finding look_at_names(struct store *store, const struct sums *sums)
{
    struct name_info name;
    cleanup_free char *text = NULL;
    bool failed = names_find(store, NAMES_STAGING, "dir", &name) != 0;
    enum finding found = judge(failed, !failed && name.type == NAME_DIRECTORY && name.uid == 7 &&
                                           name.number == sums->directory.number &&
                                           name.mode == sums->directory.mode);
    failed = names_find(store, sums->directory.number, "link", &name) != 0;
    found = worse(found, judge(failed, !failed && name.type == NAME_SYMLINK && name.gid == 8 &&
                                           name.number == sums->symlink.number &&
                                           name.mtime_ns == sums->symlink.mtime_ns));
    failed = names_symlink_text(store, sums->symlink.number, &text) != 0;
    return worse(found, judge(failed, !failed && strcmp(text, "over/there") == 0));
}

/* Every name of a directory is one that was there; fewer than `want` are noticed. */
static enum finding look_at_list(struct store *store, const struct sums *sums)
{
    static const char *const names[] = {"tiny", "small", "empty", "holder", "dir"};
    struct name_entry entries[16];
    ssize_t count = names_list(store, NAMES_STAGING, 0, entries, 16);
    (void)sums;
    for (ssize_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t n = 0; n < MOB_ARRAY_LENGTH(names); n++)
            known = known || strcmp(entries[i].name, names[n]) == 0;
        if (!known)
            return WRONG;
    }
    return count == MOB_ARRAY_LENGTH(names) ? HARMLESS : count < 5 ? NOTICED : WRONG;
}

static enum finding look_at_holder(struct store *store, const struct sums *sums)
{
    const struct known *holder = &sums->objects[3];
    cleanup_free char *refs = NULL;
    char id[MOB_ID_STRING_BYTES], color[8];
    size_t bytes = 0;
    mob_id_format(&sums->objects[0].id, id);
    bool failed = store_refs(store, holder->info.number, &refs, &bytes) != 0;
    enum finding found = judge(failed, !failed && bytes == MOB_ID_STRING_BYTES &&
                                           memcmp(refs, id, MOB_ID_DIGITS) == 0);
    ssize_t got = store_xattr_get(store, holder->info.number, "user.color", color, sizeof color);
    return worse(found, judge(got < 0, got == 6 && memcmp(color, "purple", 6) == 0));
}

static int count_job(void *argument, const void *key, size_t key_bytes, const void *value,
                     size_t value_bytes)
{
    enum finding *found = argument;
    *found = judge(false, key_bytes == sizeof job_key && memcmp(key, job_key, key_bytes) == 0 &&
                              value_bytes == sizeof job_value &&
                              memcmp(value, job_value, value_bytes) == 0);
    return 0;
}

static enum finding look_at_jobs(struct store *store)
{
    enum finding all = HARMLESS;
    for (int t = 0; t < STORE_TABLE_COUNT; t++) {
        cleanup_free void *value = NULL;
        size_t bytes = 0;
        enum finding found = NOTICED;
        bool failed = store_table_each(store, (enum store_table)t, count_job, &found) != 0;
        all = worse(all, failed ? NOTICED : found);
        failed = store_table_get(store, (enum store_table)t, job_key, sizeof job_key, &value,
                                 &bytes) != 0;
        all = worse(all, judge(failed, !failed && bytes == sizeof job_value &&
                                           memcmp(value, job_value, bytes) == 0));
    }
    return all;
}

static enum finding look_at_blocks(struct store *store)
{
    struct meta_reader *reader;
    const struct spill_sum *sums;
    const struct spill_sum want[2] = {{{1, 2}}, {{3, 4}}};
    const void *value;
    size_t bytes;
    if (meta_read_begin(&store->meta, &reader))
        return NOTICED;
    bool failed =
        meta_get_number(&store->meta, reader->txn, META_BLOCKS, BLOCKS_FILE, &value, &bytes) != 0 ||
        !blocks_decode(BLOCKS_FILE, 2 * SPILL_BLOCK_BYTES, value, bytes, &sums);
    enum finding found = judge(failed, !failed && memcmp(sums, want, sizeof want) == 0);
    meta_read_end(reader);
    return found;
}

static enum finding look_at_sha256(struct store *store, const struct sums *sums)
{
    char text[65];
    bool failed = store_sha256(store, sums->objects[1].info.number, text) != 0;
    return judge(failed, !failed && strcmp(text, sums->sha256) == 0);
}

static enum finding look(struct store *store, const struct sums *sums)
{
    enum finding found = HARMLESS;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sums->objects); i++)
        found = worse(found, look_at_object(store, &sums->objects[i]));
    found = worse(found, look_at_names(store, sums));
    found = worse(found, look_at_list(store, sums));
    found = worse(found, look_at_holder(store, sums));
    found = worse(found, look_at_jobs(store));
    found = worse(found, look_at_blocks(store));
    return worse(found, look_at_sha256(store, sums));
}

static enum finding open_and_look(struct sums *sums)
{
    struct mob_error err = {0};
    struct store *store;
    if (store_open(&sums->fixture.options, &store, &err))
        return err.message[0] ? NOTICED : WRONG;
    enum finding found = look(store, sums);
    store_collect(store);
    found = worse(found, look(store, sums));
    store_close(store);
    return found;
}

/* --- flips --- */

/* Else a start makes the tables anew from the journal, and nothing is found to be damaged. */
static void without_journal(struct sums *sums)
{
    char path[160];
    const struct dirent *entry;
    snprintf(path, sizeof path, "%s/journal", sums->fixture.state_dir);
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            assert_int_equal(unlinkat(dirfd(dir), entry->d_name, 0), 0);
    if (dir)
        closedir(dir);
    snprintf(path, sizeof path, "%s/clean", sums->fixture.state_dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/running", sums->fixture.state_dir);
    unlink(path);
}

static MDB_env *raw_open(struct sums *sums)
{
    char dir[128];
    MDB_env *env;
    without_journal(sums);
    snprintf(dir, sizeof dir, "%s/meta", sums->fixture.state_dir);
    assert_int_equal(mdb_env_create(&env), 0);
    mdb_env_set_mapsize(env, 1 << 28);
    mdb_env_set_maxdbs(env, 16);
    assert_int_equal(mdb_env_open(env, dir, MDB_NOSYNC, 0600), 0);
    return env;
}

/* Flips bit `bit` of the values of a table as if they were one string. False: there is none. */
static bool flip_in(MDB_txn *txn, MDB_dbi table, size_t bit)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    unsigned char copy[4096], own_key[64];
    bool done = false;
    assert_int_equal(mdb_cursor_open(txn, table, &cursor), 0);
    while (!done && mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
        if (bit >= value.mv_size * 8) {
            bit -= value.mv_size * 8;
            continue;
        }
        assert_true(value.mv_size <= sizeof copy && key.mv_size <= sizeof own_key);
        memcpy(copy, value.mv_data, value.mv_size);
        memcpy(own_key, key.mv_data, key.mv_size);
        copy[bit / 8] ^= (unsigned char)(1u << bit % 8);
        key.mv_data = own_key;
        value.mv_data = copy;
        assert_int_equal(mdb_cursor_put(cursor, &key, &value, MDB_CURRENT), 0);
        done = true;
    }
    mdb_cursor_close(cursor);
    return done;
}

static bool flip_closed(struct sums *sums, const char *table, size_t bit)
{
    MDB_txn *txn;
    MDB_dbi dbi;
    restore(sums, sums->saved);
    MDB_env *env = raw_open(sums);
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, table, 0, &dbi), 0);
    bool done = flip_in(txn, dbi, bit);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    return done;
}

static void an_undamaged_store_is_read_as_it_was_written(void **state)
{
    struct sums *sums = *state;
    restore(sums, sums->saved);
    assert_int_equal(open_and_look(sums), HARMLESS);
    assert_int_equal(open_and_look(sums), HARMLESS);
}

/* Of what is read at the start or may change what recovery does. Each fifth is: that takes seconds,
 * and each place of a byte comes up. */
static void bits_flipped_in_a_closed_store_are_noticed(void **state)
{
    struct sums *sums = *state;
    static const char *const tables[] = {"state",  "objects", "names", "symlinks", "refs",
                                         "xattrs", "sums",    "jobs",  "job_data", "blocks"};
    catch_log(sums);
    for (size_t t = 0; t < MOB_ARRAY_LENGTH(tables); t++) {
        size_t bit = 0;
        for (; flip_closed(sums, tables[t], bit); bit += 5) {
            assert_int_equal(ftruncate(sums->log, 0), 0);
            enum finding found = open_and_look(sums);
            if (found == WRONG || (found == HARMLESS && !log_says(sums, "damaged")))
                fail_msg("%s, bit %zu: %s", tables[t], bit,
                         found == WRONG ? "wrong bytes" : "nobody noticed");
        }
        assert_true(bit >= 64);
        print_message("%s: each fifth of %zu bits\n", tables[t], bit);
    }
    release_log(sums);
}

static bool flip_open(struct store *store, enum meta_table table, size_t bit)
{
    MDB_txn *txn;
    assert_int_equal(mdb_txn_begin(store->meta.env, NULL, 0, &txn), 0);
    bool done = flip_in(txn, store->meta.tables[table], bit);
    assert_int_equal(mdb_txn_commit(txn), 0);
    return done;
}

static void each_bit_flipped_in_inline_content_gives_an_error_that_names_the_object(void **state)
{
    struct sums *sums = *state;
    const struct known *small = &sums->objects[1];
    char id[MOB_ID_STRING_BYTES], *sentence;
    restore(sums, sums->saved);
    fixture_open(&sums->fixture);
    struct store *store = sums->fixture.store;
    store_collect(store);
    mob_id_format(&small->id, id);
    assert_int_equal(store_failure(store, small->info.number, &sentence), -ENOENT);
    catch_log(sums);
    size_t bit = 0;
    for (; flip_open(store, META_INLINE, bit); bit++) {
        char byte;
        assert_int_equal(ftruncate(sums->log, 0), 0);
        assert_int_equal(store_read_inline(store, small->info.number, &byte, 1, bit % INLINE_BYTES),
                         -EIO);
        assert_int_equal(look_at_content(store, small), NOTICED);
        assert_true(log_says(sums, id));
        assert_int_equal(store_failure(store, small->info.number, &sentence), 0);
        assert_non_null(strstr(sentence, "checksum"));
        free(sentence);
        assert_true(flip_open(store, META_INLINE, bit)); /* back again */
        assert_int_equal(look_at_content(store, small), HARMLESS);
    }
    assert_int_equal(bit, (INLINE_BYTES + 8) * 8);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "small", NULL, NULL), 0);
    assert_int_equal(store_failure(store, small->info.number, &sentence), -ENOENT);
    objects_flush(store);
    assert_int_equal(atomic_load(&store->spill.damaged), 0);
    release_log(sums);
    fixture_close(&sums->fixture);
}

/* The first object's value is the record, the content, the record's checksum. */
static void damaged_embedded_content_does_not_cost_the_object(void **state)
{
    struct sums *sums = *state;
    const struct known *tiny = &sums->objects[0];
    const size_t first = sizeof(struct object_record) * 8;
    char id[MOB_ID_STRING_BYTES];
    mob_id_format(&tiny->id, id);
    for (size_t bit = first; bit < first + (size_t)EMBEDDED_BYTES * 8; bit += 5) {
        struct object_info info;
        struct name_info name;
        char *sentence;
        assert_true(flip_closed(sums, "objects", bit));
        catch_log(sums);
        fixture_open(&sums->fixture);
        struct store *store = sums->fixture.store;
        store_collect(store);
        assert_int_equal(store_info(store, tiny->info.number, &info), 0);
        assert_int_equal(info.size, EMBEDDED_BYTES);
        assert_int_equal(names_find(store, NAMES_STAGING, "tiny", &name), 0);
        assert_int_equal(look_at_parts(store, tiny), NOTICED);
        assert_true(log_says(sums, id));
        assert_int_equal(store_failure(store, info.number, &sentence), 0);
        free(sentence);
        assert_int_equal(look_at_object(store, &sums->objects[1]), HARMLESS);
        fixture_close(&sums->fixture);
        release_log(sums);
    }
}

static void a_damaged_object_record_is_logged_by_number_and_the_others_are_kept(void **state)
{
    struct sums *sums = *state;
    const size_t uid_bit = offsetof(struct object_record, uid) * 8;
    struct object_info info;
    char number[24];
    assert_true(flip_closed(sums, "objects", uid_bit));
    catch_log(sums);
    fixture_open(&sums->fixture);
    struct store *store = sums->fixture.store;
    store_collect(store);
    snprintf(number, sizeof number, "%llu is damaged",
             (unsigned long long)sums->objects[0].info.number);
    assert_true(log_says(sums, number));
    assert_int_equal(store_info(store, sums->objects[0].info.number, &info), -ENOENT);
    for (int i = 1; i < 4; i++)
        assert_int_equal(look_at_object(store, &sums->objects[i]), HARMLESS);
    fixture_close(&sums->fixture);
    release_log(sums);
}

/* As after damage to its key. */
static void a_list_of_references_that_is_not_found_is_not_an_empty_one(void **state)
{
    struct sums *sums = *state;
    char *refs = NULL;
    size_t bytes;
    MDB_txn *txn;
    restore(sums, sums->saved);
    fixture_open(&sums->fixture);
    struct store *store = sums->fixture.store;
    store_write_lock(store);
    assert_int_equal(meta_begin(&store->meta, 0, &txn), 0);
    assert_int_equal(meta_delete_number(&store->meta, txn, META_REFS, sums->objects[3].info.number),
                     0);
    assert_int_equal(meta_commit(txn), 0);
    store_write_unlock(store);
    assert_int_equal(store_refs(store, sums->objects[3].info.number, &refs, &bytes), -EIO);
    assert_int_equal(store_refs(store, sums->objects[0].info.number, &refs, &bytes), 0);
    assert_int_equal(bytes, 0);
    free(refs);
    fixture_close(&sums->fixture);
}

static void a_value_under_another_key_or_in_another_table_is_noticed(void **state)
{
    struct sums *sums = *state;
    MDB_val key, value;
    MDB_txn *txn;
    uint8_t mine[8], other[8];
    const void *got;
    size_t bytes;
    restore(sums, sums->saved);
    fixture_open(&sums->fixture);
    struct meta *meta = &sums->fixture.store->meta;
    meta_store_be(mine, 500);
    meta_store_be(other, 501);
    catch_log(sums);
    assert_int_equal(meta_begin(meta, 100, &txn), 0);
    assert_int_equal(meta_put_number(meta, txn, META_JOBS, 500, "text", 4), 0);
    key = (MDB_val){8, mine};
    assert_int_equal(mdb_get(txn, meta->tables[META_JOBS], &key, &value), 0);
    assert_int_equal(value.mv_size, 12);
    char copy[12];
    memcpy(copy, value.mv_data, 12);
    value.mv_data = copy;
    assert_int_equal(mdb_put(txn, meta->tables[META_JOB_DATA], &key, &value, 0), 0);
    key.mv_data = other;
    assert_int_equal(mdb_put(txn, meta->tables[META_JOBS], &key, &value, 0), 0);
    assert_int_equal(meta_get_number(meta, txn, META_JOBS, 500, &got, &bytes), 0);
    assert_int_equal(bytes, 4);
    assert_memory_equal(got, "text", 4);
    assert_int_equal(meta_get_number(meta, txn, META_JOBS, 501, &got, &bytes), -EIO);
    assert_int_equal(meta_get_number(meta, txn, META_JOB_DATA, 500, &got, &bytes), -EIO);
    assert_int_equal(meta_end(txn, -ECANCELED), -ECANCELED);
    release_log(sums);
    fixture_close(&sums->fixture);
}

static void a_value_shorter_than_a_checksum_is_noticed(void **state)
{
    struct sums *sums = *state;
    MDB_txn *txn;
    uint8_t bytes[8];
    const void *got;
    size_t count;
    restore(sums, sums->saved);
    fixture_open(&sums->fixture);
    struct meta *meta = &sums->fixture.store->meta;
    catch_log(sums);
    assert_int_equal(meta_begin(meta, 100, &txn), 0);
    for (size_t size = 0; size < 8; size++) {
        meta_store_be(bytes, 500);
        MDB_val key = {8, bytes}, value = {size, "1234567"};
        assert_int_equal(mdb_put(txn, meta->tables[META_SUMS], &key, &value, 0), 0);
        assert_int_equal(meta_get_number(meta, txn, META_SUMS, 500, &got, &count), -EIO);
    }
    assert_int_equal(meta_put_number(meta, txn, META_SUMS, 500, NULL, 0), 0);
    assert_int_equal(meta_get_number(meta, txn, META_SUMS, 500, &got, &count), 0);
    assert_int_equal(count, 0);
    assert_int_equal(meta_end(txn, -ECANCELED), -ECANCELED);
    release_log(sums);
    fixture_close(&sums->fixture);
}

static void a_staged_file_goes_on_without_its_damaged_attributes(void **state)
{
    struct sums *sums = *state;
    struct staged_info info;
    struct mob_error err;
    char value[8];
    restore(sums, sums->saved);
    fixture_open(&sums->fixture);
    struct store *store = sums->fixture.store;
    store_collect(store);
    assert_int_equal(staged_create(store, NAMES_STAGING, "new", 0644, 7, 8, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, "abc", 3, 0), 3);
    assert_int_equal(staged_xattr_set(store, info.number, "user.x", "y", 1, 0, &err), 0);
    size_t bit = 0;
    while (flip_open(store, META_XATTRS, bit)) /* the last one's last byte: of its checksum */
        bit += 8;
    assert_int_equal(staged_xattr_get(store, info.number, "user.x", value, sizeof value),
                     1); /* in memory */
    catch_log(sums);
    fixture_close(&sums->fixture);
    without_journal(sums);
    fixture_open(&sums->fixture);
    store = sums->fixture.store;
    assert_true(log_says(sums, "new"));
    release_log(sums);
    assert_int_equal(staged_xattr_get(store, info.number, "user.x", value, sizeof value), -ENODATA);
    assert_int_equal(staged_read(store, info.number, value, 3, 0), 3);
    assert_memory_equal(value, "abc", 3);
    fixture_close(&sums->fixture);
}

static void a_store_of_the_version_before_is_refused_with_a_sentence(void **state)
{
    struct sums *sums = *state;
    struct mob_error err = {0};
    struct store *store;
    MDB_txn *txn;
    MDB_dbi dbi;
    unsigned char old[8 + MOB_ID_OWNER_BYTES + META_SECRET_BYTES] = {1, 0, 0, 0, 1};
    restore(sums, sums->saved);
    MDB_env *env = raw_open(sums);
    MDB_val key = {8, "identity"}, value = {sizeof old, old};
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, "state", 0, &dbi), 0);
    assert_int_equal(mdb_put(txn, dbi, &key, &value, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    assert_int_equal(store_open(&sums->fixture.options, &store, &err), -EINVAL);
    assert_non_null(strstr(err.message, "another version"));
}

/* --- anywhere in the file --- */

static void flip_anywhere(struct sums *sums, unsigned seed, unsigned char *bytes)
{
    memcpy(bytes, sums->saved, sums->saved_bytes);
    unsigned flips = 1u << (unsigned)rand_r(&seed) % 5;
    for (unsigned i = 0; i < flips; i++) {
        uint64_t bit =
            ((uint64_t)rand_r(&seed) << 20 ^ (uint64_t)rand_r(&seed)) % (sums->saved_bytes * 8);
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    restore(sums, bytes);
}

/* 200 starts, or more, on a damaged file; how many of them were well, noticed it, crashed, hung. */
struct outcome {
    unsigned counts[3], crashes, hangs;
};

static void flip_often(struct sums *sums, bool journal, struct outcome *out)
{
    enum { SEEDS = 200, FOUND = 40 };
    const char *more = getenv("MOBULA_TEST_SEEDS");
    unsigned seeds = more ? (unsigned)atoi(more) : SEEDS;
    cleanup_free unsigned char *bytes = malloc(sums->saved_bytes);
    *out = (struct outcome){0};
    catch_log(sums);
    for (unsigned seed = 1; seed <= seeds; seed++) {
        flip_anywhere(sums, seed, bytes);
        if (!journal)
            without_journal(sums);
        int status;
        pid_t child = fork();
        if (child == 0) {
            /* Neither a sanitizer nor cmocka is asked what a crash is. */
            static const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
            for (size_t i = 0; i < MOB_ARRAY_LENGTH(signals); i++)
                signal(signals[i], SIG_DFL);
            alarm(10);
            _exit(FOUND + (int)open_and_look(sums));
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) >= FOUND &&
            WEXITSTATUS(status) <= FOUND + WRONG)
            out->counts[WEXITSTATUS(status) - FOUND]++;
        else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
            out->hangs++;
        else
            out->crashes++;
        if (WIFEXITED(status) && WEXITSTATUS(status) == FOUND + WRONG)
            fail_msg("seed %u: wrong bytes", seed);
    }
    release_log(sums);
    print_message("%u seeds: %u harmless, %u noticed, %u crashed, %u hung, %u wrong\n", seeds,
                  out->counts[HARMLESS], out->counts[NOTICED], out->crashes, out->hangs,
                  out->counts[WRONG]);
    assert_int_equal(out->counts[WRONG], 0);
}

static void bits_flipped_anywhere_cost_nothing_where_there_is_a_journal(void **state)
{
    struct outcome outcome;
    flip_often(*state, true, &outcome);
    assert_int_equal(outcome.counts[NOTICED] + outcome.crashes + outcome.hangs, 0);
}

/* LMDB may crash on a damaged page; wrong bytes it must not give. */
static void bits_flipped_anywhere_never_give_wrong_bytes(void **state)
{
    struct outcome outcome;
    flip_often(*state, false, &outcome);
}

/* As if its server had been killed: data.mdb is believed. */
static void write_as_killed(struct sums *sums, const unsigned char *bytes)
{
    struct mob_error err = {0};
    char path[160];
    restore(sums, bytes);
    snprintf(path, sizeof path, "%s/clean", sums->fixture.state_dir);
    unlink(path);
    cleanup_fd int fd = open(sums->fixture.state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(trust_running(fd, &err), 0);
}

static void what_makes_the_metadata_useless_is_made_good_from_the_journal(void **state)
{
    struct sums *sums = *state;
    cleanup_free unsigned char *bytes = malloc(sums->saved_bytes);
    memcpy(bytes, sums->saved, sums->saved_bytes);
    unsigned char *at = bytes, *end = bytes + sums->saved_bytes;
    unsigned found = 0;
    while ((at = memmem(at, (size_t)(end - at), "identity", 8))) {
        at += 8;
        at[12] ^= 4;
        found++;
    }
    assert_true(found > 0);
    write_as_killed(sums, bytes);
    catch_log(sums);
    assert_int_equal(open_and_look(sums), HARMLESS);
    release_log(sums);
    assert_true(log_says(sums, "LMDB can't read what is in"));
    assert_int_equal(open_and_look(sums), HARMLESS);
}

/* The bytes of all values of a table, in what was saved. */
static size_t read_values(struct sums *sums, const char *table, unsigned char values[][64],
                          size_t lengths[], size_t limit)
{
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    size_t count = 0;
    char dir[128];
    MDB_env *env;
    restore(sums, sums->saved);
    snprintf(dir, sizeof dir, "%s/meta", sums->fixture.state_dir);
    assert_int_equal(mdb_env_create(&env), 0);
    mdb_env_set_maxdbs(env, 16);
    assert_int_equal(mdb_env_open(env, dir, MDB_RDONLY, 0600), 0);
    assert_int_equal(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, table, 0, &dbi), 0);
    assert_int_equal(mdb_cursor_open(txn, dbi, &cursor), 0);
    while (count < limit && mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
        lengths[count] = value.mv_size < 64 ? value.mv_size : 64;
        memcpy(values[count], value.mv_data, lengths[count]);
        count++;
    }
    mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    mdb_env_close(env);
    return count;
}

static void what_is_damaged_in_the_metadata_is_made_good_from_the_journal(void **state)
{
    static const char *const tables[] = {"objects", "names", "refs", "blocks", "sums", "jobs"};
    enum { VALUES = 16 };
    struct sums *sums = *state;
    unsigned char values[VALUES][64];
    size_t lengths[VALUES];
    cleanup_free unsigned char *bytes = malloc(sums->saved_bytes);
    catch_log(sums);
    for (size_t t = 0; t < MOB_ARRAY_LENGTH(tables); t++) {
        size_t count = read_values(sums, tables[t], values, lengths, VALUES);
        assert_true(count > 0);
        for (size_t i = 0; i < count; i++) {
            memcpy(bytes, sums->saved, sums->saved_bytes);
            unsigned char *at = bytes, *end = bytes + sums->saved_bytes;
            while ((at = memmem(at, (size_t)(end - at), values[i], lengths[i])))
                *at++ ^= 0x20;
            write_as_killed(sums, bytes);
            if (open_and_look(sums) != HARMLESS)
                fail_msg("value %zu of %s is not made good", i, tables[t]);
        }
    }
    release_log(sums);
    assert_true(log_says(sums, "LMDB can't read what is in"));
}

/* The last entry of each page in its turn, which LMDB then knows nothing of (mp_lower is too
 * small). Returns of how many pages nothing was amiss. */
static unsigned hide_entries(struct sums *sums, bool journal, unsigned *tried)
{
    enum { PAGE = 4096, FLAGS = 10, LEAF = 2, LOWER = 12, HEADER = 16 };
    unsigned good = 0;
    cleanup_free unsigned char *bytes = malloc(sums->saved_bytes);
    *tried = 0;
    for (size_t page = 0; page + PAGE <= sums->saved_bytes; page += PAGE) {
        uint16_t flags, lower;
        memcpy(bytes, sums->saved, sums->saved_bytes);
        memcpy(&flags, bytes + page + FLAGS, sizeof flags);
        memcpy(&lower, bytes + page + LOWER, sizeof lower);
        if (flags != LEAF || lower <= HEADER || lower > PAGE)
            continue;
        lower = (uint16_t)(lower - 2);
        memcpy(bytes + page + LOWER, &lower, sizeof lower);
        if (!journal)
            without_journal(sums);
        write_as_killed(sums, bytes);
        enum finding found = open_and_look(sums);
        if (found == WRONG)
            fail_msg("page %zu hides an entry, and nothing is missed", page / PAGE);
        good += found == HARMLESS;
        (*tried)++;
    }
    return good;
}

/* Contents that are gone are missed when they are read. */
static void entries_that_a_damaged_page_hides_are_missed(void **state)
{
    struct sums *sums = *state;
    unsigned tried;
    catch_log(sums);
    unsigned with = hide_entries(sums, true, &tried);
    unsigned without = hide_entries(sums, false, &tried);
    release_log(sums);
    print_message("%u pages, nothing amiss in %u with a journal, in %u without\n", tried, with,
                  without);
    assert_true(tried > 5 && with > without);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, sums_setup, sums_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_undamaged_store_is_read_as_it_was_written),
        TEST(bits_flipped_in_a_closed_store_are_noticed),
        TEST(each_bit_flipped_in_inline_content_gives_an_error_that_names_the_object),
        TEST(damaged_embedded_content_does_not_cost_the_object),
        TEST(a_damaged_object_record_is_logged_by_number_and_the_others_are_kept),
        TEST(a_list_of_references_that_is_not_found_is_not_an_empty_one),
        TEST(a_value_under_another_key_or_in_another_table_is_noticed),
        TEST(a_value_shorter_than_a_checksum_is_noticed),
        TEST(a_staged_file_goes_on_without_its_damaged_attributes),
        TEST(a_store_of_the_version_before_is_refused_with_a_sentence),
        TEST(what_makes_the_metadata_useless_is_made_good_from_the_journal),
        TEST(what_is_damaged_in_the_metadata_is_made_good_from_the_journal),
        TEST(entries_that_a_damaged_page_hides_are_missed),
        TEST(bits_flipped_anywhere_cost_nothing_where_there_is_a_journal),
        TEST(bits_flipped_anywhere_never_give_wrong_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
