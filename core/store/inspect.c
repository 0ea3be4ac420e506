/* Who holds an object: for people who ask why it is still there. */
#include <string.h>

#include "core/store/store_internal.h"

struct text {
    char *bytes;
    size_t count, capacity;
    bool failed;
};

static void say(struct text *text, const char *what, const char *whom)
{
    size_t need = strlen(what) + strlen(whom) + 2;
    if (text->count + need > text->capacity && !text->failed) {
        size_t capacity = (text->count + need) * 2;
        char *bytes = realloc(text->bytes, capacity);
        text->failed = !bytes;
        if (bytes) {
            text->bytes = bytes;
            text->capacity = capacity;
        }
    }
    if (!text->failed)
        text->count += (size_t)sprintf(text->bytes + text->count, "%s%s\n", what, whom);
}

static void say_number(struct text *text, const char *what, uint64_t number)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)number);
    say(text, what, digits);
}

struct search {
    struct store *store;
    struct object_info info;
    struct text text;
    uint64_t found; /* links explained so far */
};

static void search_names(struct search *search, MDB_cursor *cursor)
{
    MDB_val key, value;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    for (; !code; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        uint64_t parent, position;
        struct name_record record;
        char name[NAMES_LENGTH_LIMIT + 1];
        cleanup_free char *path = NULL;
        if (!meta_unseal(META_NAMES, &key, &value) ||
            !name_record_decode(&key, &value, &parent, &position, &record) ||
            record.type != NAME_OBJECT || !mob_id_equal(&record.target, &search->info.id))
            continue;
        memcpy(name, record.name, record.name_bytes);
        name[record.name_bytes] = '\0';
        if (names_path(search->store, parent, name, &path))
            continue;
        cleanup_free char *line = mob_printable(path);
        if (line)
            say(&search->text, "name ", line);
        search->text.failed |= !line;
        search->found++;
    }
}

static void search_refs(struct search *search, MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    if (mdb_cursor_open(txn, search->store->meta.tables[META_REFS], &cursor))
        return;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    for (; !code; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        const struct mob_id *ids;
        size_t count;
        struct object_info holder;
        char id[MOB_ID_STRING_BYTES];
        if (key.mv_size != 8 || !meta_unseal(META_REFS, &key, &value) ||
            !refs_decode(0, value.mv_data, value.mv_size, &ids, &count))
            continue;
        size_t i = 0;
        while (i < count && !mob_id_equal(&ids[i], &search->info.id))
            i++;
        if (i == count || store_info(search->store, meta_load_be(key.mv_data), &holder))
            continue;
        say(&search->text, "object ", mob_id_format(&holder.id, id));
        search->found++;
    }
    mdb_cursor_close(cursor);
}

/* A staged file whose attribute lists the object holds it already. */
static void search_one_staged(void *argument, const struct staged_info *info)
{
    struct search *search = argument;
    struct staged *staged = staged_get(search->store, info->number);
    if (!staged)
        return;
    pthread_mutex_lock(&staged->lock);
    for (size_t i = 0; i < staged->ref_count; i++) {
        if (!mob_id_equal(&staged->refs[i], &search->info.id))
            continue;
        say_number(&search->text, "staged file ", info->number);
        search->found++;
    }
    pthread_mutex_unlock(&staged->lock);
    staged_put(search->store, staged);
}

errint_t store_holders(struct store *store, uint64_t number, char **text)
{
    struct search search = {.store = store};
    struct meta_reader *reader;
    errint_t error = store_info(store, number, &search.info);
    if (!error)
        error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    search_names(&search, reader->names);
    search_refs(&search, reader->txn);
    meta_read_end(reader);
    staged_each(store, search_one_staged, &search);
    if (search.info.links > search.found)
        say_number(&search.text, "jobs ", search.info.links - search.found);
    if (search.info.opens)
        say_number(&search.text, "open files ", search.info.opens);
    objects_settle(store);
    if (search.text.failed || (!search.text.bytes && !(search.text.bytes = strdup("")))) {
        free(search.text.bytes);
        return -ENOMEM;
    }
    *text = search.text.bytes;
    return 0;
}
