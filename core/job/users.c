/* Users as jobs need them: name, home, shell, groups. Looking one up may ask a directory service,
 * so it is kept for a minute. The loop's own. */
#include <grp.h>
#include <pwd.h>
#include <string.h>

#include "core/job/users.h"

#define KEEP_NS (60 * SECOND_NS)

static void clear(struct user *user)
{
    free(user->name);
    free(user->home);
    free(user->shell);
    free(user->groups);
    *user = (struct user){0};
}

/* The groups of a named user, primary one included, as login(1) would give them. */
static errint_t read_groups(struct user *user)
{
    int count = 32;
    for (;;) {
        gid_t *groups = reallocarray(NULL, (size_t)count, sizeof *groups);
        if (!groups)
            return -ENOMEM;
        int room = count;
        if (getgrouplist(user->name, user->gid, groups, &count) >= 0) {
            user->groups = groups;
            user->group_count = (uint32_t)count;
            return 0;
        }
        free(groups);
        if (count <= room || (unsigned)count > LAUNCH_GROUPS_LIMIT)
            return -E2BIG;
    }
}

/* An ID without an entry is a user all the same: with its own group, no name and no home. */
static errint_t read_user(uid_t uid, gid_t gid, struct user *user)
{
    char buffer[16384];
    struct passwd entry, *found = NULL;
    user->uid = uid;
    user->gid = gid;
    if (!getpwuid_r(uid, &entry, buffer, sizeof buffer, &found) && found) {
        user->name = strdup(entry.pw_name);
        user->home = strdup(entry.pw_dir && entry.pw_dir[0] ? entry.pw_dir : "/");
        user->shell = strdup(entry.pw_shell && entry.pw_shell[0] ? entry.pw_shell : "/bin/sh");
        if (user->name && user->home && user->shell)
            return read_groups(user);
        return -ENOMEM;
    }
    user->home = strdup("/");
    user->shell = strdup("/bin/sh");
    user->groups = malloc(sizeof *user->groups);
    if (asprintf(&user->name, "%u", (unsigned)uid) < 0)
        user->name = NULL;
    if (!user->name || !user->home || !user->shell || !user->groups)
        return -ENOMEM;
    user->groups[0] = gid;
    user->group_count = 1;
    return 0;
}

errint_t user_find(struct jobs *jobs, uid_t uid, gid_t gid, const struct user **out)
{
    uint64_t now = jobs->clock.now_ns(jobs->clock.context);
    struct user *oldest = &jobs->users[0];
    for (size_t i = 0; i < USER_CACHE; i++) {
        struct user *user = &jobs->users[i];
        if (user->name && user->uid == uid && user->gid == gid && now - user->read_ns < KEEP_NS) {
            *out = user;
            return 0;
        }
        if (user->read_ns < oldest->read_ns)
            oldest = user;
    }
    clear(oldest);
    errint_t error = read_user(uid, gid, oldest);
    if (error) {
        clear(oldest);
        return error;
    }
    oldest->read_ns = now;
    *out = oldest;
    return 0;
}

void users_free(struct jobs *jobs)
{
    for (size_t i = 0; i < USER_CACHE; i++)
        clear(&jobs->users[i]);
}
