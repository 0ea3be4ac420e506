/* core/store/journal: power cuts, failing disks and kills, as an adversary would have them.
 *
 * The calls that make something durable are wrapped, and note what the disk has for certain. A cut
 * leaves of everything else any part: sectors of what was appended, old names or new ones. Then the
 * tables are made anew, and must be as they were after one of the transactions, not before the last
 * that was synced. MOBULA_SEED and MOBULA_ROUNDS repeat a run. */
#include "journal_fixture.h"

#include <dirent.h>
#include <time.h>

enum {
    SECTOR = 512,
    IMAGE_LIMIT = 4096,
    NAME_LIMIT = 1024,
    HISTORY = 8,
    STATE_LIMIT = 1 << 14,
    LOG_BYTES = 6000,
};

/* --- the disk --- */

struct image {
    ino_t ino;
    uint8_t *durable; /* what the disk has of it */
    size_t bytes;
    size_t lost_from, lost_to; /* what a failed sync has dropped */
};

struct name {
    char name[JOURNAL_NAME_BYTES];
    ino_t history[HISTORY]; /* what it may be on disk; 0: nothing. The last is what it is */
    unsigned count;
};

static struct {
    pthread_mutex_t lock;
    bool on;
    ino_t dir;
    char path[128], graveyard[128]; /* every file ever seen has a name in the graveyard */
    struct image images[IMAGE_LIMIT];
    size_t image_count;
    struct name names[NAME_LIMIT];
    size_t name_count;
    unsigned fail_percent; /* of syncs */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local uint64_t random_state;
static uint64_t seed;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t below(uint64_t limit)
{
    if (!random_state)
        random_state = seed ^ UINT64_C(0x9e3779b97f4a7c15);
    return (random_next() >> 11) % limit;
}

static struct image *image_of(ino_t ino)
{
    for (size_t i = 0; i < disk.image_count; i++)
        if (disk.images[i].ino == ino)
            return &disk.images[i];
    assert_true(disk.image_count < IMAGE_LIMIT);
    disk.images[disk.image_count] = (struct image){.ino = ino};
    return &disk.images[disk.image_count++];
}

static char *grave(ino_t ino, char out[160])
{
    snprintf(out, 160, "%s/%llu", disk.graveyard, (unsigned long long)ino);
    return out;
}

static void bind_name(const char *text, ino_t ino)
{
    size_t i = 0;
    while (i < disk.name_count && strcmp(disk.names[i].name, text) != 0)
        i++;
    if (i == disk.name_count) {
        assert_true(disk.name_count < NAME_LIMIT);
        disk.names[disk.name_count] = (struct name){.count = 1};
        snprintf(disk.names[disk.name_count++].name, JOURNAL_NAME_BYTES, "%.31s", text);
    }
    struct name *name = &disk.names[i];
    if (name->history[name->count - 1] == ino)
        return;
    if (name->count == HISTORY)
        memmove(&name->history[1], &name->history[2], (--name->count - 1) * sizeof(ino_t));
    name->history[name->count++] = ino;
}

/* Which names there are now. */
static void look(void)
{
    DIR *dir = opendir(disk.path);
    struct dirent *entry;
    bool there[NAME_LIMIT] = {false};
    char from[512], to[160];
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        bind_name(entry->d_name, entry->d_ino);
        for (size_t i = 0; i < disk.name_count; i++)
            there[i] |= !strcmp(disk.names[i].name, entry->d_name);
        snprintf(from, sizeof from, "%s/%s", disk.path, entry->d_name);
        link(from, grave(entry->d_ino, to));
    }
    closedir(dir);
    for (size_t i = 0; i < disk.name_count; i++)
        if (!there[i])
            bind_name(disk.names[i].name, 0);
}

static bool is_in_journal(int fd, struct stat *info)
{
    char path[160];
    struct stat other;
    return fstat(fd, info) == 0 && S_ISREG(info->st_mode) &&
           stat(grave(info->st_ino, path), &other) == 0 && other.st_dev == info->st_dev;
}

/* What the disk has once the sync returns: what the file is now, less what was dropped before. */
static void sync_image(int fd, const struct stat *info, bool fails)
{
    struct image *image = image_of(info->st_ino);
    size_t size = (size_t)info->st_size;
    if (fails) {
        if (image->lost_to == 0)
            image->lost_from = image->bytes;
        image->lost_to = size > image->lost_to ? size : image->lost_to;
        return;
    }
    uint8_t *now = calloc(1, size + 1);
    assert_true(pread(fd, now, size, 0) == (ssize_t)size);
    for (size_t i = image->lost_from; i < image->lost_to && i < size; i++)
        now[i] = 0;
    free(image->durable);
    image->durable = now;
    image->bytes = size;
}

static bool sync_fails(void)
{
    return disk.fail_percent && below(100) < disk.fail_percent;
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    struct stat info;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    if (!disk.on)
        return 0;
    look();
    if (!is_in_journal(fd, &info))
        return 0;
    bool fails = sync_fails();
    sync_image(fd, &info, fails);
    errno = EIO;
    return fails ? -1 : 0;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    struct stat info;
    if (fstat(fd, &info) < 0 || !S_ISDIR(info.st_mode))
        return __wrap_fdatasync(fd);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    if (!disk.on || info.st_ino != disk.dir)
        return 0;
    look();
    if (sync_fails()) {
        errno = EIO;
        return -1;
    }
    for (size_t i = 0; i < disk.name_count; i++) {
        struct name *name = &disk.names[i];
        name->history[0] = name->history[name->count - 1];
        name->count = 1;
    }
    return 0;
}

int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    if (disk.on)
        look();
    int result = __real_renameat(from_dir, from, to_dir, to);
    if (disk.on)
        look();
    return result;
}

int __real_unlinkat(int dir, const char *name, int flags);
int __wrap_unlinkat(int dir, const char *name, int flags);
int __wrap_unlinkat(int dir, const char *name, int flags)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    if (disk.on)
        look();
    int result = __real_unlinkat(dir, name, flags);
    if (disk.on)
        look();
    return result;
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    (void)fd, (void)mode, (void)offset, (void)bytes;
    return 0; /* costs time on a tmpfs */
}

/* --- the cut --- */

/* Any part of what was not synced, in any order. */
static uint8_t *adversary(const struct image *image, uint8_t *now, size_t now_bytes, size_t *bytes)
{
    size_t most = now_bytes > image->bytes ? now_bytes : image->bytes;
    uint8_t *out = calloc(1, most + 1);
    unsigned keep = (unsigned[]){100, 90, 50, 10}[below(4)];
    if (image->bytes)
        memcpy(out, image->durable, image->bytes);
    for (size_t at = 0; at < most; at += SECTOR) {
        size_t end = at + SECTOR < most ? at + SECTOR : most;
        bool take = below(100) < keep, garbage = !take && below(4) == 0;
        for (size_t i = at; i < end; i++)
            if (take && i < now_bytes)
                out[i] = now[i];
            else if (garbage && i >= image->bytes)
                out[i] = (uint8_t)below(256);
    }
    *bytes = most;
    if (image->bytes < most && below(2))
        *bytes = image->bytes + below(most - image->bytes + 1);
    /* What a failed sync has dropped may yet have been written, or what was there before. */
    for (size_t at = 0; at < *bytes; at += SECTOR)
        for (size_t i = at, dropped = below(2); dropped && i < at + SECTOR && i < *bytes; i++)
            if (i >= image->lost_from && i < image->lost_to && i >= image->bytes)
                out[i] = 0;
    return out;
}

/* The journal's directory as it is found after a cut, at `to`. */
static void cut_power(const char *to)
{
    char path[192];
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    look();
    mkdir(to, 0700);
    for (size_t i = 0; i < disk.name_count; i++) {
        struct name *name = &disk.names[i];
        ino_t ino = name->history[below(name->count)];
        size_t now_bytes, bytes;
        if (!ino)
            continue;
        char *now = read_whole(grave(ino, path), &now_bytes);
        uint8_t *left = adversary(image_of(ino), (uint8_t *)now, now_bytes, &bytes);
        snprintf(path, sizeof path, "%s/%s", to, name->name);
        write_whole(path, left, bytes);
        free(left);
        free(now);
    }
}

/* All that is there is on disk. */
static void watch(const struct life *life)
{
    struct stat info;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    for (size_t i = 0; i < disk.image_count; i++)
        free(disk.images[i].durable);
    disk.image_count = disk.name_count = 0;
    path_in(life, "journal", disk.path);
    path_in(life, "graveyard", disk.graveyard);
    mkdir(disk.path, 0700);
    mkdir(disk.graveyard, 0700);
    assert_int_equal(stat(disk.path, &info), 0);
    disk.dir = info.st_ino;
    look();
    for (size_t i = 0; i < disk.name_count; i++) {
        char path[160];
        struct name *name = &disk.names[i];
        name->history[0] = name->history[name->count - 1];
        name->count = 1;
        int fd = open(grave(name->history[0], path), O_RDONLY | O_CLOEXEC);
        assert_int_equal(fstat(fd, &info), 0);
        sync_image(fd, &info, false);
        close(fd);
    }
    disk.on = true;
}

static void unwatch(void)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&disk.lock);
    disk.on = false;
}

/* --- the run --- */

static struct {
    uint64_t sums[STATE_LIMIT]; /* of the tables, after each transaction */
    uint64_t count, synced;
    uint64_t cuts, kills, transactions, failed_syncs;
} run;

static errint_t change(struct life *life, MDB_txn *txn, uint64_t number)
{
    uint8_t value[1500];
    static const enum meta_table tables[] = {META_OBJECTS, META_NAMES, META_JOBS};
    errint_t error = 0;
    for (uint64_t left = below(4); left && !error; left--) {
        enum meta_table table = tables[below(MOB_ARRAY_LENGTH(tables))];
        uint64_t key = below(20);
        size_t bytes = (size_t)(below(8) ? below(100) : below(sizeof value));
        void *place;
        memset(value, (int)below(256), bytes);
        if (below(4) == 0)
            error = meta_delete_number(&life->meta, txn, table, key);
        else if (below(3))
            error = meta_put_number(&life->meta, txn, table, key, value, bytes);
        else if (!(error = meta_reserve(&life->meta, txn, table, key, bytes, &place))) {
            memcpy(place, value, bytes);
            meta_seal(table, key, place, bytes);
        }
    }
    return error ? error
                 : meta_put(&life->meta, txn, META_STATE, "last", 4, &number, sizeof number);
}

static void transaction(struct life *life)
{
    MDB_txn *txn;
    assert_true(run.count + 1 < STATE_LIMIT);
    pthread_mutex_lock(&writer);
    if (meta_begin(&life->meta, 16384, &txn) == 0) {
        assert_int_equal(change(life, txn, run.count + 1), 0);
        if (below(12) == 0) { /* LMDB doesn't commit what was appended */
            assert_int_equal(journal_append(life->journal, mdb_txn_id(txn)), 0);
            mdb_txn_abort(txn);
            journal_take_back(life->journal);
        } else {
            assert_int_equal(meta_commit(txn), 0);
            run.sums[++run.count] = sum_of_tables(life);
            run.transactions++;
        }
    }
    pthread_mutex_unlock(&writer);
}

static void want_snapshot(struct life *life)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&life->journal->lock);
    life->journal->wanted = life->journal->urgent = true;
    pthread_cond_broadcast(&life->journal->changed);
}

static void steps(struct life *life)
{
    for (uint64_t left = below(40); left; left--) {
        uint64_t what = below(24), count = run.count;
        if (what == 0)
            want_snapshot(life);
        else if (what == 1)
            usleep((useconds_t)below(300));
        else if (what > 4)
            transaction(life);
        else if (life_sync(life))
            run.failed_syncs++;
        else
            run.synced = count;
    }
}

/* The server is killed, maybe between the journal and LMDB; a new one takes over. */
static void be_killed(struct life *life)
{
    MDB_txn *txn;
    pthread_mutex_lock(&writer);
    if (below(3) == 0 && meta_begin(&life->meta, 16384, &txn) == 0) {
        assert_int_equal(change(life, txn, UINT64_MAX), 0);
        assert_int_equal(journal_append(life->journal, mdb_txn_id(txn)), 0);
        mdb_txn_abort(txn);
    }
    pthread_mutex_unlock(&writer);
    life_end(life);
    life_resume(life);
    life_start(life);
    run.kills++;
}

/* Returns in a new directory, which the journal was found in. */
static void be_cut(struct life *life)
{
    struct life next;
    char path[128];
    make_state_dir(&next);
    cut_power(path_in(&next, "journal", path));
    unwatch();
    life_remove(life);
    *life = next;
    life->log_bytes = LOG_BYTES;
    watch(life);
    life_open(life);
    bool found = journal_has_snapshot(life->journal);
    if (!found && run.synced)
        fail_msg("seed %llu: no snapshot is left", (unsigned long long)seed);
    life_end(life);
    if (found)
        life_replay(life);
    else {
        remove_meta(life);
        life_resume(life);
    }
    run.cuts++;
}

static void check_tables(struct life *life)
{
    uint64_t last = get_number(life, "last");
    if (last == UINT64_MAX) { /* what had not been answered when the server was killed */
        run.sums[run.count = run.synced = run.synced + 1] = sum_of_tables(life);
        return;
    }
    if (last < run.synced)
        fail_msg("seed %llu: transaction %llu of %llu was synced, found %llu",
                 (unsigned long long)seed, (unsigned long long)run.synced,
                 (unsigned long long)run.count, (unsigned long long)last);
    if (last > run.count || sum_of_tables(life) != run.sums[last])
        fail_msg("seed %llu: the tables are not as transaction %llu left them (%llu synced)",
                 (unsigned long long)seed, (unsigned long long)last,
                 (unsigned long long)run.synced);
    if (life->damaged)
        fail_msg("seed %llu: a power cut was taken for damage", (unsigned long long)seed);
    /* From here on it is what there is; but nobody has been told that it is durable. */
    run.count = last;
}

static void one_round(void)
{
    struct life life;
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    disk.fail_percent = below(3) ? 0 : 15;
    run.count = run.synced = 0;
    make_state_dir(&life);
    life.log_bytes = LOG_BYTES;
    watch(&life);
    life_resume(&life);
    run.sums[0] = sum_of_tables(&life);
    life_start(&life);
    for (uint64_t lives = 1 + below(6); lives; lives--) {
        steps(&life);
        if (below(4) == 0) {
            be_killed(&life);
            continue;
        }
        be_cut(&life);
        check_tables(&life);
        if (below(4))
            life_start(&life);
        else /* it is cut again before anything else */
            steps(&life);
        if (!life.journal->runs)
            life_start(&life);
    }
    unwatch();
    life_remove(&life);
}

static void what_was_synced_survives_any_power_cut_as_the_state_after_one_transaction(void **state)
{
    (void)state;
    const char *given = getenv("MOBULA_SEED"), *rounds = getenv("MOBULA_ROUNDS");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t first = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec;
    uint64_t count = rounds ? strtoull(rounds, NULL, 10) : 300;
    print_message("MOBULA_SEED=%llu\n", (unsigned long long)first);
    for (seed = first; seed < first + count; seed++)
        one_round();
    print_message("%llu cuts, %llu kills, %llu transactions, %llu failed syncs\n",
                  (unsigned long long)run.cuts, (unsigned long long)run.kills,
                  (unsigned long long)run.transactions, (unsigned long long)run.failed_syncs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_synced_survives_any_power_cut_as_the_state_after_one_transaction),
    };
    mob_log_set_level(MOB_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
