/* The disk's hands. See disk_hand.h. */
#include "core/store/disk_hand.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

#define MAKE_PATIENCE_NS UINT64_C(500000000)
#define REMOVE_PATIENCE_NS UINT64_C(100000000)
#define RETRY_NS UINT64_C(1000000000)
/* A spare file is taken without asking the disk if it has answered since then: what is written to
 * it may wait for the disk. */
#define FRESH_NS UINT64_C(20000000)

struct disk_task {
    struct disk_task *next;
    errint_t (*run)(struct store *store, struct disk_task *task);
    struct data_file file;
    uint64_t bytes;
    uint64_t after; /* removed once the journal is synced up to this */
    bool reusable;
    bool again; /* if it fails */
    bool asked; /* somebody waits for it, and frees it */
    errint_t error;
};

/* --- the tasks --- */

static errint_t remove_now(struct store *store, struct disk_task *task)
{
    const struct data_file *file = &task->file;
    errint_t error = task->after ? journal_sync(store->journal, task->after) : 0;
    if (error && error != -ENOSPC)
        return error;
    error = disk_unlink_file(&store->disk, file->dir, file->file);
    if (error && !task->error) { /* the first time */
        cleanup_free char *path = disk_path(&store->disk, file->dir, file->file);
        mob_log_error("store: can't remove %s: %s", path ? path : "a file", strerror(-error));
    }
    if (error)
        return error;
    mob_cleanup_fd(&task->file.fd);
    disk_count(&store->disk, -(int64_t)task->bytes);
    spill_room_came(store);
    return 0;
}

static errint_t give_back_now(struct store *store, struct disk_task *task)
{
    if (task->reusable && !spare_empty(store, task->file.fd) && spare_push(store, &task->file))
        return 0;
    if (store->hooks.file_gone)
        store->hooks.file_gone(store->hooks.context, task->file.file);
    task->run = remove_now; /* also when it is tried again */
    return remove_now(store, task);
}

/* A file that somebody took out of the directory is of no use. */
static bool is_there(int fd)
{
    struct stat info;
    return fstat(fd, &info) == 0 && info.st_nlink;
}

/* A spare one is changed, so that the disk is asked in any case. */
static errint_t take_now(struct store *store, struct disk_task *task)
{
    while (spare_take(&store->spare_on_disk, &task->file)) {
        if (is_there(task->file.fd) && futimens(task->file.fd, NULL) == 0)
            return 0;
        disk_give_back(store, &task->file, false);
    }
    return data_make(store, true, &task->file);
}

/* --- the threads --- */

static void wait_until(struct disk_hand *hand, pthread_cond_t *condition, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_cond_timedwait(condition, &hand->lock, &until);
}

static void append(struct disk_hand *hand, struct disk_task *task)
{
    task->next = NULL;
    *hand->last = task;
    hand->last = &task->next;
}

/* The task is done, or failed and is kept for later. Locked. */
static void conclude(struct disk_hand *hand, struct disk_task *task)
{
    hand->begun_ns = 0;
    hand->done++;
    if (!task->error)
        hand->answered_ns = mob_monotonic_ns();
    pthread_cond_broadcast(&hand->finished);
    if (task->asked)
        return;
    if (task->error && task->again) {
        task->next = hand->later;
        hand->later = task;
        return;
    }
    free(task);
}

/* Locked. */
static void run_first(struct disk_hand *hand)
{
    struct disk_task *task = hand->first;
    hand->first = task->next;
    if (!hand->first)
        hand->last = &hand->first;
    hand->begun_ns = mob_monotonic_ns();
    pthread_mutex_unlock(&hand->lock);
    task->error = task->run(hand->store, task);
    pthread_mutex_lock(&hand->lock);
    /* Who asked for a file has gone: it is kept. */
    if (!task->asked && !task->again && !task->error) {
        pthread_mutex_unlock(&hand->lock);
        disk_give_back(hand->store, &task->file, true);
        pthread_mutex_lock(&hand->lock);
    }
    conclude(hand, task);
}

/* Locked. */
static void take_up_later(struct disk_hand *hand)
{
    while (hand->later) {
        struct disk_task *task = hand->later;
        hand->later = task->next;
        hand->given++;
        append(hand, task);
    }
}

static void *hand_main(void *argument)
{
    struct disk_hand *hand = argument;
    pthread_mutex_lock(&hand->lock);
    uint64_t retry_ns = 0;
    while (hand->first || !hand->stop) {
        if (hand->first)
            run_first(hand);
        else if (!hand->later)
            pthread_cond_wait(&hand->wake, &hand->lock);
        else if (retry_ns < mob_monotonic_ns()) {
            take_up_later(hand);
            retry_ns = mob_monotonic_ns() + RETRY_NS;
        } else {
            wait_until(hand, &hand->wake, retry_ns);
        }
    }
    take_up_later(hand);
    while (hand->first)
        run_first(hand);
    pthread_mutex_unlock(&hand->lock);
    return NULL;
}

static errint_t start(struct store *store, struct disk_hand *hand, uint64_t patience_ns,
                      const char *name)
{
    pthread_condattr_t attributes;
    *hand = (struct disk_hand){.store = store, .patience_ns = patience_ns, .last = &hand->first};
    pthread_mutex_init(&hand->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&hand->wake, &attributes);
    pthread_cond_init(&hand->finished, &attributes);
    pthread_condattr_destroy(&attributes);
    int code = pthread_create(&hand->thread, NULL, hand_main, hand);
    hand->runs = !code;
    if (!code)
        pthread_setname_np(hand->thread, name);
    return -code;
}

errint_t disk_hands_open(struct store *store)
{
    errint_t error = start(store, &store->disk_removes, REMOVE_PATIENCE_NS, "disk removes");
    return error ? error : start(store, &store->disk_makes, MAKE_PATIENCE_NS, "disk makes");
}

static void end(struct disk_hand *hand)
{
    if (!hand->runs)
        return;
    pthread_mutex_lock(&hand->lock);
    hand->stop = true;
    pthread_cond_signal(&hand->wake);
    pthread_mutex_unlock(&hand->lock);
    pthread_join(hand->thread, NULL);
    hand->runs = false;
    while (hand->later) { /* the next start removes them: nothing names them */
        struct disk_task *task = hand->later;
        hand->later = task->next;
        mob_cleanup_fd(&task->file.fd);
        free(task);
    }
}

void disk_hands_close(struct store *store)
{
    end(&store->disk_makes); /* it may give to the other */
    end(&store->disk_removes);
}

/* --- giving them tasks --- */

/* Locked. */
static uint64_t give(struct disk_hand *hand, struct disk_task *task)
{
    append(hand, task);
    pthread_cond_signal(&hand->wake);
    return ++hand->given;
}

/* False: the task of that number is not done, and who waits has no more patience. Locked. */
static bool wait_for(struct disk_hand *hand, uint64_t number)
{
    uint64_t now_ns = mob_monotonic_ns(), until_ns = now_ns + hand->patience_ns;
    while (hand->done < number) {
        bool stalls = hand->begun_ns && hand->begun_ns + hand->patience_ns <= now_ns;
        if (stalls || now_ns >= until_ns)
            return false;
        wait_until(hand, &hand->finished, until_ns);
        now_ns = mob_monotonic_ns();
    }
    return true;
}

static struct disk_task *new_task(errint_t (*run)(struct store *, struct disk_task *),
                                  const struct data_file *file)
{
    struct disk_task *task = malloc(sizeof *task);
    if (task)
        *task = (struct disk_task){.run = run, .file = *file, .again = true};
    return task;
}

/* Without memory, or a thread, it is done at once. */
static void hand_over(struct store *store, struct disk_task *task, const struct disk_task *at_once)
{
    struct disk_hand *hand = &store->disk_removes;
    if (task && hand->runs) {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&hand->lock);
        give(hand, task);
        return;
    }
    struct disk_task now = *at_once;
    free(task);
    (void)now.run(store, &now); /* what it can't remove, the next start does */
    mob_cleanup_fd(&now.file.fd);
}

void disk_give_back(struct store *store, struct data_file *file, bool reusable)
{
    struct disk_task *task = new_task(give_back_now, file);
    struct disk_task now = {.run = give_back_now, .file = *file, .reusable = reusable};
    if (task)
        task->reusable = reusable;
    file->fd = -1;
    hand_over(store, task, &now);
}

static void drop(struct store *store, const struct data_file *file, uint64_t bytes, uint64_t after)
{
    struct disk_task *task = new_task(remove_now, file);
    struct disk_task now = {.run = remove_now, .file = *file, .bytes = bytes, .after = after};
    if (task) {
        task->bytes = bytes;
        task->after = after;
    }
    hand_over(store, task, &now);
}

void disk_drop(struct store *store, const struct data_file *file, uint64_t bytes)
{
    drop(store, file, bytes, 0);
}

void disk_drop_durable(struct store *store, const struct data_file *file, uint64_t bytes)
{
    drop(store, file, bytes, journal_written(store->journal));
}

void disk_settle(struct store *store)
{
    struct disk_hand *hand = &store->disk_removes;
    if (!hand->runs)
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&hand->lock);
    (void)wait_for(hand, hand->given);
}

static bool has_just_answered(struct disk_hand *hand)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&hand->lock);
    return hand->answered_ns && hand->answered_ns + FRESH_NS >= mob_monotonic_ns();
}

/* What it takes if nobody waits any more goes to the spare files. */
static errint_t ask(struct disk_hand *hand, struct data_file *out)
{
    struct disk_task *task = new_task(take_now, &(struct data_file){.fd = -1});
    if (!task)
        return -ENOMEM;
    task->again = false;
    task->asked = true;
    pthread_mutex_lock(&hand->lock);
    errint_t error = wait_for(hand, give(hand, task)) ? 0 : -ETIMEDOUT;
    task->asked = false;
    pthread_mutex_unlock(&hand->lock);
    if (error)
        return error;
    error = task->error;
    *out = task->file;
    free(task);
    return error;
}

errint_t disk_take(struct store *store, struct data_file *out)
{
    struct disk_hand *hand = &store->disk_makes;
    if (!hand->runs) {
        struct disk_task now = {.file.fd = -1};
        errint_t error = take_now(store, &now);
        *out = now.file;
        return error;
    }
    if (has_just_answered(hand) && spare_take(&store->spare_on_disk, out)) {
        if (is_there(out->fd))
            return 0;
        disk_give_back(store, out, false);
    }
    return ask(hand, out);
}
