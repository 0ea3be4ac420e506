/* nodes/ID: this node in numbers, and the README of the mount. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "fs/internal.h"

/* File 0 is MNT/README. */
static const char *const names[] = {"",       "name",    "address", "state", "resources",
                                    "memory", "objects", "jobs",    "daemon"};
enum {
    TEXT_README,
    TEXT_NAME,
    TEXT_ADDRESS,
    TEXT_STATE,
    TEXT_RESOURCES,
    TEXT_MEMORY,
    TEXT_OBJECTS,
    TEXT_JOBS,
    TEXT_DAEMON
};

const char *node_file_name(unsigned file)
{
    return file < MOB_ARRAY_LENGTH(names) ? names[file] : NULL;
}

static const char readme[] =
    "This directory is an object store: mobula-fs(7).\n"
    "\n"
    "  objects/ID   an object: a file that never changes, by its ID\n"
    "  staging/     write a file here; closed, it is an object and its name a link to it\n"
    "  run/         write a job here; closed, it is submitted and its name a link to jobs/ID\n"
    "  jobs/ID/     spec state node stdout stderr exit_code result outputs/ error usage ctl\n"
    "  actors/      (empty: actors are not there yet)\n"
    "  nodes/ID/    this node: name address state resources memory objects jobs daemon\n"
    "  metrics      counters, in the OpenMetrics format\n"
    "\n"
    "Six commands to try, in this directory:\n"
    "\n"
    "  date > staging/now\n"
    "  ls -l staging/now && cat staging/now\n"
    "  echo '{\"command\": [\"seq\", \"3\"]}' > run/count\n"
    "  cat run/count/result            # waits until the job has ended\n"
    "  cat run/count/state run/count/usage\n"
    "  rm staging/now run/count        # the last name gone, the object is freed\n"
    "\n"
    "Why a job failed, or its spec was refused: run/NAME/error (a shell's '>' does not tell).\n"
    "Why anything else: user.mobula.error, by 'getfattr -d -m - FILE' or 'mobula stat NAME'.\n";

static errint_t format(char **text, size_t *bytes, const char *format_text, ...) MOB_PRINTF(3, 4);
static errint_t format(char **text, size_t *bytes, const char *format_text, ...)
{
    va_list args;
    va_start(args, format_text);
    int length = vasprintf(text, format_text, args);
    va_end(args);
    if (length < 0) {
        *text = NULL;
        return -ENOMEM;
    }
    *bytes = (size_t)length;
    return 0;
}

#define LLU(value) ((unsigned long long)(value))

static errint_t memory_text(struct fs *fs, char **text, size_t *bytes)
{
    struct store_usage usage;
    store_usage(fs->store, &usage);
    return format(text, bytes,
                  "budget_bytes %llu\nused_bytes %llu\ninline_bytes %llu\n"
                  "disk_budget_bytes %llu\ndisk_used_bytes %llu\ndisk_free_bytes %llu\n"
                  "spilling_bytes %llu\nspilled_bytes %llu\nrestored_bytes %llu\n"
                  "spill_errors %llu\ndamaged_objects %llu\nspill_io %s\nspill_key %s\n"
                  "journal_bytes %llu\njournal_syncs %llu\njournal_errors %llu\n",
                  LLU(usage.memory_bytes), LLU(usage.memory_used_bytes), LLU(usage.inline_bytes),
                  LLU(usage.disk_bytes), LLU(usage.disk_used_bytes), LLU(usage.disk_free_bytes),
                  LLU(usage.spilling_bytes), LLU(usage.spilled_bytes), LLU(usage.restored_bytes),
                  LLU(usage.spill_errors), LLU(usage.damaged), usage.spill_io, usage.spill_key,
                  LLU(usage.journal_bytes), LLU(usage.journal_syncs), LLU(usage.journal_errors));
}

static errint_t objects_text(struct fs *fs, char **text, size_t *bytes)
{
    struct store_usage usage;
    store_usage(fs->store, &usage);
    return format(
        text, bytes,
        "ready %llu\ninline %llu\nmemory %llu\ndisk %llu\npending %llu\nfailed %llu\nbytes %llu\n"
        "names %llu\nstaged %llu\ncommits %llu\nfreed %llu\n",
        LLU(usage.objects_ready), LLU(usage.objects_inline), LLU(usage.objects_memory),
        LLU(usage.objects_disk), LLU(usage.objects_pending), LLU(usage.objects_failed),
        LLU(usage.object_bytes), LLU(usage.names), LLU(usage.staged), LLU(usage.commits),
        LLU(usage.freed));
}

static errint_t jobs_usage_text(struct fs *fs, char **text, size_t *bytes)
{
    struct jobs_usage usage;
    jobs_usage(fs->jobs, &usage);
    return format(text, bytes,
                  "queued %llu\nrunning %llu\nsucceeded %llu\nfailed %llu\ncancelled %llu\n"
                  "timed_out %llu\nlost %llu\nrejected %llu\ncpus %g\ncpus_used %g\n",
                  LLU(usage.queued), LLU(usage.running), LLU(usage.succeeded), LLU(usage.failed),
                  LLU(usage.cancelled), LLU(usage.timed_out), LLU(usage.lost), LLU(usage.rejected),
                  usage.cpus, usage.cpus_used);
}

static errint_t daemon_text(struct fs *fs, char **text, size_t *bytes)
{
    const struct fs_identity *identity = &fs->identity;
    return format(text, bytes,
                  "pid %d\nkeeper_pid %d\nversion %s\ngeneration %u\ntransport %s\n"
                  "passthrough %s\nuptime_seconds %.3f\nstate_dir %s\nmemory_dir %s\n"
                  "mountpoint %s\n",
                  (int)getpid(), identity->keeper_pid, identity->version,
                  session_generation(fs->session), transport_describe(fs->transport),
                  transport_passthrough(fs->transport) ? "yes" : "no",
                  (double)(mob_monotonic_ns() - fs->started_ns) / 1e9, identity->state_dir,
                  identity->memory_dir, identity->mountpoint);
}

errint_t node_file_text(struct fs *fs, unsigned file, char **text, size_t *bytes)
{
    switch (file) {
    case TEXT_README:
        return format(text, bytes, "%s", readme);
    case TEXT_NAME:
        return format(text, bytes, "%s\n", fs->identity.node_name);
    case TEXT_ADDRESS:
        return format(text, bytes, "local\n");
    case TEXT_STATE:
        return format(text, bytes, "up\n");
    case TEXT_RESOURCES:
        return format(text, bytes, "cpu %g\n", fs->identity.cpus);
    case TEXT_MEMORY:
        return memory_text(fs, text, bytes);
    case TEXT_OBJECTS:
        return objects_text(fs, text, bytes);
    case TEXT_JOBS:
        return jobs_usage_text(fs, text, bytes);
    case TEXT_DAEMON:
        return daemon_text(fs, text, bytes);
    default:
        return -ENOENT;
    }
}
