/* Settings of a daemon: what the command line says, and the places that follow from it. */
#ifndef MOBULA_TOOLS_SETTINGS_H
#define MOBULA_TOOLS_SETTINGS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "fs/transport.h"
#include "tools/spill_place.h"

struct settings {
    char mountpoint[PATH_MAX]; /* absolute */
    char name[64];
    char state_dir[PATH_MAX];
    char memory_dir[PATH_MAX];
    char work_dir[PATH_MAX + 8];
    char saved_dir[PATH_MAX + 8];
    char log_path[PATH_MAX + 8];
    uint64_t memory_bytes;
    /* Absolute, NULL at the end; empty: nothing is spilled. */
    char *spill_dirs[SPILL_PLACES_LIMIT + 1];
    /* Absolute, NULL at the end: given up by --forget-spill. Emptied once a server has started:
     * what happens to its successors' directories was not foreseen. */
    char *forget_dirs[SPILL_PLACES_LIMIT + 1];
    bool no_spill;            /* --spill none */
    char spill_key[PATH_MAX]; /* absolute; "": what is spilled is not encrypted */
    const char *disk;         /* --disk as it was given, in argv; NULL: it was not */
    uint64_t disk_bytes; /* from settings_prepare(): budget of them all together; 0 = what their
                          * filesystems have */
    double cpus;
    enum transport_kind transport;
    bool passthrough;
    bool idle_polling;
    bool foreground;
    bool own_tmpfs; /* root: memory_dir is a tmpfs that we mount */
    int ready_fd;   /* -1: nobody waits */
    uint8_t owner[MOB_ID_OWNER_BYTES];
};

/* Reads argv, which must stay. 0; 1 = --help or --version was printed; -EINVAL with a sentence that
 * names the option. */
MOB_MUST_CHECK errint_t settings_parse(int argc, char **argv, struct settings *out,
                                       struct mob_error *err);

/* Makes the directories, but those for spilling: the path of each of these, and of those given up,
 * is then one without links, there or for the store to make. Loads the identity, mounts the tmpfs
 * or makes the folder under /dev/shm, and brings back what settings_save_memory() kept. -EBUSY:
 * another daemon has the state; *lock_fd holds it. */
MOB_MUST_CHECK errint_t settings_prepare(struct settings *settings, int *lock_fd,
                                         struct mob_error *err);

/* At an orderly end: memory's data files go to state_dir/saved, then the tmpfs (or folder) goes. If
 * the disk has no room, memory stays as it is, for the next `up` of this boot. */
MOB_MUST_CHECK errint_t settings_save_memory(const struct settings *settings,
                                             struct mob_error *err);

#endif
