/* Server: opens the store and the jobs, serves the mount, closes in the opposite order. */
#include "tools/server.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "config.h"
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/job/job.h"
#include "core/store/store.h"
#include "fs/fs.h"

/* Metadata is written through the map: a put costs a third less CPU, an unlink half. The store
 * allocates blocks before each transaction, so a full disk is ENOSPC all the same. ThreadSanitizer
 * takes LMDB's own unlocked reads of the map for races. */
#if defined(__SANITIZE_THREAD__)
#define MAP_WRITES false
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MAP_WRITES false
#endif
#endif
#ifndef MAP_WRITES
#define MAP_WRITES true
#endif

/* What the signal handler stops. */
static struct fs *volatile serving;

static void on_terminate(int signal_number)
{
    (void)signal_number;
    if (serving)
        fs_stop(serving);
}

static void tell(int fd, const char *verdict, const char *sentence)
{
    char line[512];
    int length = snprintf(line, sizeof line, "%s%s\n", verdict, sentence);
    if (fd >= 0 && length > 0 && write(fd, line, (size_t)length) < 0)
        mob_log_warning("nobody hears that the server is ready");
}

struct server {
    struct fs *fs;
    struct store *store;
    struct jobs *jobs;
};

static errint_t open_fs(const struct server_options *options, struct server *server,
                        bool *passthrough, struct mob_error *err)
{
    const struct settings *settings = options->settings;
    struct fs_options fs_options = {
        .session = options->session,
        .transport = {.fd = options->connection_fd,
                      .session = options->session,
                      .kind = settings->transport,
                      .want_passthrough = settings->passthrough,
                      .idle_polling = settings->idle_polling},
        .identity = {.node_name = settings->name,
                     .version = PACKAGE_VERSION,
                     .state_dir = settings->state_dir,
                     .memory_dir = settings->memory_dir,
                     .mountpoint = settings->mountpoint,
                     .keeper_pid = options->keeper_pid,
                     .cpus = settings->cpus},
    };
    memcpy(fs_options.identity.owner, settings->owner, MOB_ID_OWNER_BYTES);
    errint_t error = fs_create(&fs_options, &server->fs, err);
    if (error)
        return error;
    serving = server->fs;
    return fs_negotiate(server->fs, passthrough, err);
}

static errint_t open_all(const struct server_options *options, struct server *server,
                         struct mob_error *err)
{
    const struct settings *settings = options->settings;
    bool passthrough = false;
    errint_t error = open_fs(options, server, &passthrough, err);
    if (error)
        return error;
    struct store_options store_options = {
        .state_dir = settings->state_dir,
        .memory_dir = settings->memory_dir,
        .memory_bytes = settings->memory_bytes,
        .pipes = options->pipes,
        .spill_dirs = (const char *const *)settings->spill_dirs,
        .forget_spill_dirs = (const char *const *)settings->forget_dirs,
        .disk_bytes = settings->disk_bytes,
        .spill_key = settings->spill_key[0] ? settings->spill_key : NULL,
        .passthrough = passthrough,
        .map_writes = MAP_WRITES,
        .distrust_meta = options->distrust_meta,
        .hooks = fs_store_hooks(server->fs),
    };
    memcpy(store_options.owner, settings->owner, MOB_ID_OWNER_BYTES);
    error = store_open(&store_options, &server->store, err);
    if (error)
        return error;
    struct jobs_options jobs_options = {
        .store = server->store,
        .mount_path = settings->mountpoint,
        .work_dir = settings->work_dir,
        .disk_work_dir = store_work_dir(server->store),
        .launcher_fd = options->launcher_fd,
        .cpus = settings->cpus,
        .node_name = settings->name,
        .hooks = fs_jobs_hooks(server->fs),
    };
    memcpy(jobs_options.owner, settings->owner, MOB_ID_OWNER_BYTES);
    error = jobs_open(&jobs_options, &server->jobs, err);
    if (!error)
        error = fs_attach(server->fs, server->store, server->jobs, err);
    if (error)
        return error;
    store_collect(server->store);
    return jobs_start(server->jobs, err);
}

/* At an orderly end memory goes to disk, whence it need not come back before it is asked for. What
 * can't, the keeper copies (settings_save_memory()). */
static void keep_memory(struct store *store)
{
    errint_t error = store_spill_all(store);
    if (error && error != -EOPNOTSUPP)
        mob_log_warning("memory can't be spilled: %s", strerror(-error));
}

static void close_all(struct server *server, bool stop_jobs)
{
    if (server->jobs)
        jobs_close(server->jobs, stop_jobs);
    serving = NULL;
    if (server->fs)
        fs_detach(server->fs);
    if (server->store && stop_jobs)
        keep_memory(server->store);
    if (server->store)
        store_close(server->store);
    fs_destroy(server->fs);
}

int server_run(const struct server_options *options)
{
    prctl(PR_SET_NAME, "mobula-server");
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* without its keeper a server has no successor */
    if (getppid() != options->keeper_pid)
        return 1;
    struct sigaction terminate = {.sa_handler = on_terminate};
    sigaction(SIGTERM, &terminate, NULL);
    sigaction(SIGINT, &terminate, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGIO, SIG_IGN); /* a lease of staged_has_writers() that is broken */

    struct server server = {0};
    struct mob_error err = {0};
    errint_t error = open_all(options, &server, &err);
    if (error) {
        mob_log_error("the server can't start: %s", err.message);
        tell(options->ready_fd, "error ", err.message);
        close_all(&server, false);
        return 1;
    }
    tell(options->ready_fd, "ok", "");
    if (options->ready_fd >= 0)
        close(options->ready_fd);
    error = fs_serve(server.fs, &err);
    if (error)
        mob_log_error("the server ends: %s", err.message);
    close_all(&server, !error);
    return error ? 1 : 0;
}
