/* metrics: OpenMetrics text (https://prometheus.io/docs/specs/om/open_metrics_spec/). */
#include <errno.h>

#include "fs/internal.h"

static void gauge(FILE *out, const char *name, const char *help, double value)
{
    fprintf(out, "# TYPE %s gauge\n# HELP %s %s\n%s %.17g\n", name, name, help, name, value);
}

static void counter(FILE *out, const char *name, const char *help, uint64_t value)
{
    fprintf(out, "# TYPE %s counter\n# HELP %s %s\n%s_total %llu\n", name, name, help, name,
            (unsigned long long)value);
}

static void spill_metrics(FILE *out, const struct store_usage *usage)
{
    gauge(out, "mobula_disk_budget_bytes", "What the spill directories can hold.",
          (double)usage->disk_bytes);
    gauge(out, "mobula_disk_used_bytes", "What objects on disk take.",
          (double)usage->disk_used_bytes);
    gauge(out, "mobula_disk_free_bytes", "What may still be written to disk.",
          (double)usage->disk_free_bytes);
    gauge(out, "mobula_spilling_bytes", "Bytes that are being written to disk.",
          (double)usage->spilling_bytes);
    gauge(out, "mobula_damaged_objects", "Objects whose bytes don't have their checksums.",
          (double)usage->damaged);
    counter(out, "mobula_spilled_bytes", "Bytes copied from memory to disk.", usage->spilled_bytes);
    counter(out, "mobula_restored_bytes", "Bytes that came back to memory.", usage->restored_bytes);
    counter(out, "mobula_spill_errors", "Copies to disk that failed.", usage->spill_errors);
    gauge(out, "mobula_journal_bytes", "The journal's newest snapshot and log.",
          (double)usage->journal_bytes);
    counter(out, "mobula_journal_syncs", "Flushes of the journal.", usage->journal_syncs);
    counter(out, "mobula_journal_snapshots", "Snapshots of the metadata.",
            usage->journal_snapshots);
    counter(out, "mobula_journal_errors", "Flushes and snapshots that failed.",
            usage->journal_errors);
}

static void store_metrics(FILE *out, struct fs *fs)
{
    struct store_usage usage;
    store_usage(fs->store, &usage);
    fputs("# TYPE mobula_objects gauge\n# HELP mobula_objects Objects by state and tier.\n", out);
    fprintf(out, "mobula_objects{state=\"ready\",tier=\"inline\"} %llu\n",
            (unsigned long long)usage.objects_inline);
    fprintf(out, "mobula_objects{state=\"ready\",tier=\"memory\"} %llu\n",
            (unsigned long long)usage.objects_memory);
    fprintf(out, "mobula_objects{state=\"ready\",tier=\"disk\"} %llu\n",
            (unsigned long long)usage.objects_disk);
    fprintf(out, "mobula_objects{state=\"pending\",tier=\"none\"} %llu\n",
            (unsigned long long)usage.objects_pending);
    fprintf(out, "mobula_objects{state=\"failed\",tier=\"none\"} %llu\n",
            (unsigned long long)usage.objects_failed);
    gauge(out, "mobula_object_bytes", "Sum of the sizes of ready objects.",
          (double)usage.object_bytes);
    gauge(out, "mobula_memory_budget_bytes", "Memory that the store may use.",
          (double)usage.memory_bytes);
    gauge(out, "mobula_memory_used_bytes", "Memory that data files use.",
          (double)usage.memory_used_bytes);
    gauge(out, "mobula_inline_bytes", "Bytes of inline objects in the database.",
          (double)usage.inline_bytes);
    gauge(out, "mobula_names", "Names in staging/ and run/.", (double)usage.names);
    gauge(out, "mobula_staged_files", "Files being written.", (double)usage.staged);
    counter(out, "mobula_commits", "Objects committed since the server began.", usage.commits);
    counter(out, "mobula_freed", "Objects freed since the server began.", usage.freed);
    spill_metrics(out, &usage);
}

static void job_metrics(FILE *out, struct fs *fs)
{
    struct jobs_usage usage;
    jobs_usage(fs->jobs, &usage);
    const struct {
        const char *state;
        uint64_t count;
    } states[] = {
        {"queued", usage.queued}, {"running", usage.running},     {"succeeded", usage.succeeded},
        {"failed", usage.failed}, {"cancelled", usage.cancelled}, {"timed-out", usage.timed_out},
        {"lost", usage.lost},     {"rejected", usage.rejected},
    };
    fputs("# TYPE mobula_jobs gauge\n# HELP mobula_jobs Jobs by state.\n", out);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(states); i++)
        fprintf(out, "mobula_jobs{state=\"%s\"} %llu\n", states[i].state,
                (unsigned long long)states[i].count);
    gauge(out, "mobula_cpus", "CPUs that jobs may use.", usage.cpus);
    gauge(out, "mobula_cpus_used", "CPUs that running jobs asked for.", usage.cpus_used);
    counter(out, "mobula_jobs_started", "Jobs started since the server began.", usage.started);
}

static void request_metrics(FILE *out, struct fs *fs)
{
    struct transport_counters counters;
    transport_count(fs->transport, &counters);
    fputs("# TYPE mobula_fuse_requests counter\n"
          "# HELP mobula_fuse_requests Requests since the server began, by kind.\n",
          out);
    for (unsigned i = 0; i < OP_COUNT; i++)
        fprintf(out, "mobula_fuse_requests_total{opcode=\"%s\"} %llu\n", fs_operation_names[i],
                (unsigned long long)__atomic_load_n(&fs->operations[i], __ATOMIC_RELAXED));
    counter(out, "mobula_ring_requests", "Requests that came over io_uring.",
            counters.ring_requests);
    counter(out, "mobula_device_requests", "Requests that came over /dev/fuse.",
            counters.device_requests);
    gauge(out, "mobula_ring_entries", "Registered ring entries.", (double)counters.ring_entries);
    gauge(out, "mobula_waiting_requests", "Requests that wait for an object, a job or a release.",
          (double)waiting_count(fs->waiting));
    gauge(out, "mobula_server_generation", "Servers of this mount that died before this one.",
          session_generation(fs->session));
}

errint_t metrics_text(struct fs *fs, char **text, size_t *bytes)
{
    *text = NULL;
    FILE *out = open_memstream(text, bytes);
    if (!out)
        return -errno;
    store_metrics(out, fs);
    job_metrics(out, fs);
    request_metrics(out, fs);
    fputs("# EOF\n", out);
    if (fclose(out)) {
        free(*text);
        *text = NULL;
        return -ENOMEM;
    }
    return 0;
}
