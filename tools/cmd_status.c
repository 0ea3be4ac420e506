/* mobula status: nodes, memory, objects, jobs. */
#include "tools/cli_daemon.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

static const char help[] =
    "Usage: mobula status [MNT] [--json]\n"
    "Show the node behind a mount: its state, memory, disk, objects, jobs and processes.\n"
    "\n"
    "      --json         print JSON, with everything\n"
    "      --mount DIR    the same as MNT\n"
    "\n"
    "Example:\n"
    "  mobula status --json | jq .pid\n";

/* A node's files of "key value" lines become objects, the others strings. */
static json_t *describe_node(const struct cli_mount *mount, const char *node)
{
    static const char *const values[] = {"name", "address", "state"};
    static const char *const tables[] = {"resources", "memory", "objects", "jobs", "daemon"};
    char path[PATH_MAX];
    json_t *out = json_object();
    if (mob_is_utf8(node, strlen(node)))
        json_object_set_new(out, "node", json_string(node));
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(values); i++) {
        snprintf(path, sizeof path, "nodes/%s/%s", node, values[i]);
        cleanup_free char *text = cli_mount_read(mount, path);
        if (text && mob_is_utf8(text, strlen(text)))
            json_object_set_new(out, values[i], json_string(text));
    }
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(tables); i++) {
        snprintf(path, sizeof path, "nodes/%s/%s", node, tables[i]);
        cleanup_free char *text = cli_mount_read(mount, path);
        if (text)
            json_object_set_new(out, tables[i], cli_parse_key_values(text));
    }
    return out;
}

static json_t *describe_nodes(const struct cli_mount *mount)
{
    json_t *nodes = json_array();
    int fd = openat(mount->fd, "nodes", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        mob_cleanup_fd(&fd);
        json_decref(nodes);
        return NULL;
    }
    for (const struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            json_array_append_new(nodes, describe_node(mount, entry->d_name));
    closedir(directory);
    return nodes;
}

/* What the daemon of this mount says of itself stands at the top, too: `mobula status --json | jq
 * .pid`. */
static json_t *make_status(const struct cli_mount *mount, json_t *nodes)
{
    json_t *status = json_object(), *node;
    size_t place;
    if (mob_is_utf8(mount->path, strlen(mount->path)))
        json_object_set_new(status, "mount", json_string(mount->path));
    json_array_foreach(nodes, place, node)
    {
        if (!json_object_get(node, "daemon"))
            continue;
        json_object_update_missing(status, node);
        json_object_update_missing(status, json_object_get(node, "daemon"));
        json_object_del(status, "daemon");
    }
    json_object_set_new(status, "nodes", nodes);
    return status;
}

/* --- as text --- */

static json_int_t number(const json_t *table, const char *key)
{
    return json_integer_value(json_object_get(table, key));
}

static const char *text_of(const json_t *table, const char *key)
{
    const char *text = json_string_value(json_object_get(table, key));
    return text ? text : "-";
}

static void print_memory(const json_t *memory)
{
    char used[32], budget[32];
    json_int_t budget_bytes = number(memory, "budget_bytes"),
               used_bytes = number(memory, "used_bytes");
    printf("memory     %s of %s", mob_format_size((uint64_t)used_bytes, used),
           mob_format_size((uint64_t)budget_bytes, budget));
    if (budget_bytes > 0)
        printf(" (%.0f %%)", 100.0 * (double)used_bytes / (double)budget_bytes);
    printf(", inline %s\n", mob_format_size((uint64_t)number(memory, "inline_bytes"), used));
}

/* A daemon without the spill tier says nothing of it. */
static void print_disk(const json_t *memory)
{
    const char *io = json_string_value(json_object_get(memory, "spill_io"));
    const char *key = json_string_value(json_object_get(memory, "spill_key"));
    json_int_t budget_bytes = number(memory, "disk_budget_bytes"),
               errors = number(memory, "spill_errors"), damaged = number(memory, "damaged_objects");
    char used[32], other[32];
    if (!io)
        return;
    if (!strcmp(io, "none")) {
        printf("disk       no spilling\n");
        return;
    }
    printf("disk       %s", mob_format_size((uint64_t)number(memory, "disk_used_bytes"), used));
    if (budget_bytes > 0)
        printf(" of %s", mob_format_size((uint64_t)budget_bytes, other));
    printf(" used, %s free", mob_format_size((uint64_t)number(memory, "disk_free_bytes"), other));
    if (number(memory, "spilling_bytes") > 0)
        printf(", %s pending", mob_format_size((uint64_t)number(memory, "spilling_bytes"), other));
    printf(" (spilled %s, restored %s; %s%s)\n",
           mob_format_size((uint64_t)number(memory, "spilled_bytes"), used),
           mob_format_size((uint64_t)number(memory, "restored_bytes"), other), io,
           key && strcmp(key, "none") ? ", encrypted" : "");
    if (errors > 0 || damaged > 0)
        printf("           %lld error%s while spilling, %lld damaged object%s: see the log\n",
               (long long)errors, errors == 1 ? "" : "s", (long long)damaged,
               damaged == 1 ? "" : "s");
}

static void print_journal(const json_t *memory)
{
    char size[32];
    json_int_t errors = number(memory, "journal_errors");
    if (!json_object_get(memory, "journal_bytes"))
        return;
    printf("journal    %s, %lld flushes\n",
           mob_format_size((uint64_t)number(memory, "journal_bytes"), size),
           (long long)number(memory, "journal_syncs"));
    if (errors > 0)
        printf("           %lld errors: see the log; fsync may fail\n", (long long)errors);
}

static void print_objects(const json_t *objects)
{
    static const char *const parts[] = {"inline", "memory", "disk", "pending", "failed"};
    const char *before = " (";
    char size[32];
    printf("objects    %lld ready, %s", (long long)number(objects, "ready"),
           mob_format_size((uint64_t)number(objects, "bytes"), size));
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(parts); i++) {
        if (!json_object_get(objects, parts[i]))
            continue; /* a daemon without the spill tier has no "disk" */
        printf("%s%lld %s", before, (long long)number(objects, parts[i]), parts[i]);
        before = ", ";
    }
    printf("); %lld names, %lld being written\n", (long long)number(objects, "names"),
           (long long)number(objects, "staged"));
}

static void print_jobs(const json_t *jobs)
{
    static const char *const states[] = {"queued",    "running",   "succeeded", "failed",
                                         "cancelled", "timed_out", "lost",      "rejected"};
    printf("jobs       ");
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(states); i++) {
        json_int_t count = number(jobs, states[i]);
        if (count || i < 4)
            printf("%s%lld %s", i ? ", " : "", (long long)count, states[i]);
    }
    printf("; %g of %g CPUs in use\n", json_number_value(json_object_get(jobs, "cpus_used")),
           json_number_value(json_object_get(jobs, "cpus")));
}

static void print_daemon(const json_t *daemon)
{
    char uptime[32];
    if (!daemon)
        return;
    const char *transport = text_of(daemon, "transport");
    bool passthrough = json_is_true(json_object_get(daemon, "passthrough"));
    printf("transport  %s%s\n", transport,
           strstr(transport, "passthrough") ? ""
           : passthrough                    ? ", passthrough"
                                            : ", no passthrough");
    printf("pid        %lld (server), keeper_pid %lld\n", (long long)number(daemon, "pid"),
           (long long)number(daemon, "keeper_pid"));
    double seconds = json_number_value(json_object_get(daemon, "uptime_seconds"));
    printf("up         %s, %lld restarts, version %s\n",
           mob_format_duration((uint64_t)(seconds * 1e9), uptime),
           (long long)number(daemon, "generation"), text_of(daemon, "version"));
    printf("state      %s\n", text_of(daemon, "state_dir"));
}

static void print_status(const char *mount_path, json_t *status)
{
    size_t place;
    json_t *node;
    printf("mount      %s\n", mount_path);
    json_array_foreach(json_object_get(status, "nodes"), place, node)
    {
        printf("%snode       %s (%s), %s\n", place ? "\n" : "", text_of(node, "name"),
               text_of(node, "node"), text_of(node, "state"));
        print_memory(json_object_get(node, "memory"));
        print_disk(json_object_get(node, "memory"));
        print_journal(json_object_get(node, "memory"));
        print_objects(json_object_get(node, "objects"));
        print_jobs(json_object_get(node, "jobs"));
        print_daemon(json_object_get(node, "daemon"));
    }
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS, CLI_JSON_OPTION, {NULL, 0, NULL, 0}};
    while (cli_getopt(cli, argc, argv, "", longs) != -1)
        continue;
    if (argc - optind > 1)
        cli_usage(cli, "expected one MNT");
    if (argc > optind)
        cli->mount_option = argv[optind];
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    json_t *nodes = describe_nodes(&mount);
    if (!nodes)
        return cli_fail(cli, cli_status(-errno), "%s/nodes: %s", mount.path, strerror(errno));
    json_t *status = make_status(&mount, nodes);
    if (cli->json) {
        cli_print_json(status);
        return EX_OK;
    }
    print_status(mount.path, status);
    json_decref(status);
    return EX_OK;
}

const struct cli_command cmd_status = {"status", "show the node behind a mount", help, run};
