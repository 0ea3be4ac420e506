/* What the files of recovery share. */
#ifndef MOBULA_CORE_STORE_RECOVER_INTERNAL_H
#define MOBULA_CORE_STORE_RECOVER_INTERNAL_H

#include "core/store/store_internal.h"

struct data_files {
    uint64_t *files; /* ascending */
    bool *named;
    size_t count, capacity;
};

struct lost_name {
    uint64_t parent, key;
    struct mob_id target;
};

struct recovery {
    struct store *store;
    struct data_files files;
    struct data_files disk_files; /* number << 8 | directory */
    uint64_t highest;
    struct mob_id *lost; /* objects whose data file is gone, sorted when all are known */
    uint64_t *lost_numbers, *lost_files;
    size_t lost_count, lost_capacity;
    uint64_t lost_on_disk, lost_unfinished; /* a spill directory had them */
    struct lost_name *names;                /* to be removed */
    size_t name_count, name_capacity;
    struct mob_error *err; /* has a sentence if disk_check_known() fails */
};

/* Finds a data file on disk that no record has named before, and names it: in which directory. */
bool recover_disk_file(struct recovery *it, uint64_t file, unsigned *dir);
/* A data file in memory that was just made, and has the highest number. -ENOMEM. */
MOB_MUST_CHECK errint_t recover_memory_file(struct recovery *it, uint64_t file);
MOB_MUST_CHECK errint_t recover_walk(struct store *store, enum meta_table table, void *argument,
                                     errint_t (*each)(void *argument, const MDB_val *key,
                                                      const MDB_val *value));
/* Takes a staged file up, which is then the store's. 1: its data is gone; the caller keeps it, as
 * after an error. */
MOB_MUST_CHECK errint_t recover_adopt(struct recovery *it, struct staged *staged,
                                      const struct staged_record *record);
/* Names, then lists of IDs: recover_names.c. When all objects are there and those lost are known.
 */
MOB_MUST_CHECK errint_t recover_names(struct recovery *it);
MOB_MUST_CHECK errint_t recover_references(struct recovery *it);
/* Removes from LMDB, and logs, the objects that were lost, and the names that are to go. */
MOB_MUST_CHECK errint_t recover_remove_lost(struct recovery *it);
/* What fsync(2) had made durable: recover_synced.c. After staged files and lost objects. */
MOB_MUST_CHECK errint_t recover_synced(struct recovery *it);

#endif
