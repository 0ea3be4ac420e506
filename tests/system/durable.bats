#!/usr/bin/env bats
# Durable on request: what fsync, sync and put --sync have acknowledged is there after memory and
# everything that was not synced are lost. A crash of the machine is played by a copy of the state
# directory, taken while it is in use, without the memory: its metadata can't be trusted then, and is
# made anew from the journal.

# shellcheck disable=SC2016

load helper

setup_file() {
    start_mount
    export AFTER=$ROOM/after AFTER_STATE=$ROOM/after-state
    mkdir "$AFTER"
}

teardown() {
    if is_mounted "$AFTER"; then within 30 mobula down "$AFTER"; fi
    rm -rf "$AFTER_STATE"
}

teardown_file() { stop_mount; }

# snapshot FROM TO: the state directory as it is at one moment: the server stands still meanwhile.
snapshot() {
    local pid
    pid=$(sed -n 's/^pid //p' "$3"/nodes/*/daemon)
    kill -STOP "$pid"
    cp -ax --sparse=always "$1" "$2"
    kill -CONT "$pid"
    rm -f "$2/log"
}

# crash: what a crash now would leave, mounted on $AFTER.
crash() {
    snapshot "$STATE" "$AFTER_STATE" "$MNT"
    start_after
}

start_after() {
    up "$AFTER" "$AFTER_STATE" --spill "$AFTER_STATE/spill"
    remember_daemon "$AFTER"
}

after_log() { cat "$AFTER_STATE/log"; }

# synced NAME: standard input becomes staging/NAME, with fsync before the close.
synced() { dd of="$MNT/staging/$1" bs=1M conv=fsync iflag=fullblock status=none; }

@test "a file that was synced before its close is there after a crash, small or large" {
    bytes 300 | synced small
    bytes 60000 | synced inline
    bytes 5000000 | synced large
    id_of large
    crash
    same "$AFTER/staging/small" <(bytes 300)
    same "$AFTER/staging/inline" <(bytes 60000)
    same "$AFTER/staging/large" <(bytes 5000000)
}

@test "the name, its directory, attributes and references come back with it" {
    local held
    bytes 10 | synced held
    held=$(id_of held)
    mkdir -p "$MNT/staging/a/b"
    exec 7>"$MNT/staging/a/b/list"
    printf '%s\n' "$held" >&7
    setfattr -n user.mobula.refs -v "$held" "$MNT/staging/a/b/list"
    setfattr -n user.colour -v green "$MNT/staging/a/b/list"
    sync "$MNT/staging/a/b/list"
    exec 7>&-
    rm "$MNT/staging/held"
    crash
    equals "$(cat "$AFTER/staging/a/b/list")" "$held"
    equals "$(getfattr --only-values -n user.colour "$AFTER/staging/a/b/list")" green
    same "$AFTER/objects/$held" <(bytes 10)
    rm "$AFTER/staging/a/b/list"
    wait_until gone "$AFTER/objects/$held"
}

@test "a file that was never closed has what it had at its fsync" {
    local size
    for size in 2000 3000000; do
        exec 7>"$MNT/staging/open-$size"
        bytes "$size" >&7
        sync "$MNT/staging/open-$size"
        bytes 100 >&7
        cp -ax --sparse=always "$STATE" "$AFTER_STATE" # a stopped server couldn't hear of cp's end
        rm "$AFTER_STATE/log"
        exec 7>&-
        start_after
        same "$AFTER/staging/open-$size" <(bytes "$size")
        within 30 mobula down "$AFTER"
        rm -rf "$AFTER_STATE"
    done
}

@test "a second fsync has what the first had and more" {
    exec 7>"$MNT/staging/grows"
    bytes 1500000 >&7
    sync "$MNT/staging/grows"
    bytes 1500000 1500000 >&7
    sync "$MNT/staging/grows"
    exec 7>&-
    crash
    same "$AFTER/staging/grows" <(bytes 3000000)
}

@test "put --sync: the ID that it printed names the object after a crash" {
    local small large
    bytes 500 >"$ROOM/file"
    small=$(MOBULA=$MNT mobula put --sync "$ROOM/file")
    bytes 4000000 >"$ROOM/file"
    large=$(MOBULA=$MNT mobula put --sync --name put "$ROOM/file")
    crash
    same "$AFTER/objects/$small" <(bytes 500)
    same "$AFTER/objects/$large" <(bytes 4000000)
    same "$AFTER/staging/put" <(bytes 4000000)
}

@test "sync MNT: everything is durable, names, links, jobs and their results" {
    bytes 700000 | put plain
    mkdir "$MNT/staging/dir"
    ln -s "../../objects/$(id_of plain)" "$MNT/staging/dir/link"
    mv "$MNT/staging/plain" "$MNT/staging/dir/moved"
    drop job '{"command": ["sh", "-c", "head -c 900000 /dev/zero"]}'
    ends job succeeded
    within 30 sync "$MNT"
    crash
    same "$AFTER/staging/dir/moved" <(bytes 700000)
    same "$AFTER/staging/dir/link" <(bytes 700000)
    gone "$AFTER/staging/plain"
    equals "$(cat "$AFTER/run/job/state")" succeeded
    same "$AFTER/run/job/result" <(head -c 900000 /dev/zero)
}

@test "an fsync of an object that is there makes it durable" {
    bytes 800000 | put later
    sync "$MNT/staging/later"
    crash
    same "$AFTER/staging/later" <(bytes 800000)
}

@test "what was not durable is reported lost, by name, and nothing else is missing" {
    bytes 900000 | put not-durable
    bytes 900000 1 | synced durable
    [[ -L $MNT/staging/not-durable ]]
    crash
    gone "$AFTER/staging/not-durable"
    matches "$(after_log)" "lost: staging/not-durable"
    same "$AFTER/staging/durable" <(bytes 900000 1)
}

@test "removed names stay removed once that was synced" {
    bytes 600000 | synced removed
    rm "$MNT/staging/removed"
    sync "$MNT/staging"
    crash
    gone "$AFTER/staging/removed"
}

@test "what a crash has left starts again and again" {
    bytes 600000 | synced again
    crash
    for _ in 1 2; do
        snapshot "$AFTER_STATE" "$AFTER_STATE-copy" "$AFTER"
        within 30 mobula down "$AFTER"
        rm -rf "$AFTER_STATE"
        mv "$AFTER_STATE-copy" "$AFTER_STATE"
        start_after
        same "$AFTER/staging/again" <(bytes 600000)
    done
}

@test "a byte that changes in the metadata while it is down is noticed, and it is made anew" {
    bytes 700 | synced kept
    bytes 700000 | put kept-large
    sync "$MNT"
    crash
    within 30 mobula down "$AFTER"
    printf '\377\376' | dd of="$AFTER_STATE/meta/data.mdb" bs=1 seek=20000 conv=notrunc status=none
    start_after
    matches "$(after_log)" "not as it was left"
    same "$AFTER/staging/kept" <(bytes 700)
    same "$AFTER/staging/kept-large" <(bytes 700000)
}

@test "a damaged snapshot costs nothing: the one before it and the logs say the same" {
    local snapshots
    bytes 800 | synced good
    crash
    within 30 mobula down "$AFTER"
    start_after
    wait_until '(($(ls "$AFTER_STATE/journal" | grep -c snapshot) == 2))'
    within 30 mobula down "$AFTER"
    snapshots=("$AFTER_STATE"/journal/*.snapshot)
    printf '\377' | dd of="${snapshots[1]}" bs=1 seek=100 conv=notrunc status=none
    rm "$AFTER_STATE/meta/data.mdb"
    start_after
    matches "$(after_log)" "snapshot .* is damaged"
    same "$AFTER/staging/good" <(bytes 800)
}

@test "without a spill directory a large file can't be durable, and fsync says so" {
    within 30 mobula up "$AFTER" --state "$AFTER_STATE" --memory 64M --spill none \
        --transport "$MOBULA_TEST_TRANSPORT" 3>&- 4>&-
    remember_daemon "$AFTER"
    bytes 1000 | dd of="$AFTER/staging/small" conv=fsync status=none
    run dd if=<(bytes 1000000) of="$AFTER/staging/large" bs=1M conv=fsync iflag=fullblock
    [[ $status -ne 0 ]]
    matches "$output" "not supported"
}

@test "the server is killed between fsync and close: nothing is lost" {
    exec 7>"$MNT/staging/survives"
    bytes 2000000 >&7
    sync "$MNT/staging/survives"
    kill -KILL "$(node daemon pid)"
    bytes 10 >&7
    exec 7>&-
    wait_until '[[ -L $MNT/staging/survives ]]'
    same "$MNT/staging/survives" <(bytes 2000000; bytes 10)
}

# Both leave no memory, in the same boot, and metadata that is as it was left.
@test "a synced file that is open while its mount is taken away is there at the next start" {
    is_root || skip "only root takes a busy mount away"
    start_after
    exec 7>"$AFTER/staging/open"
    bytes 2000000 >&7
    sync "$AFTER/staging/open"
    umount -f "$AFTER" || true # the connection ends, though it says that the mount is busy
    exec 7>&-
    wait_until '[[ -e $AFTER_STATE/clean && ! -e $AFTER_STATE/memory ]]'
    start_after
    same "$AFTER/staging/open" <(bytes 2000000)
}

@test "a synced file that is open is there after memory alone was lost, as in a container" {
    local daemon memory_dir pids
    start_after
    exec 7>"$AFTER/staging/open"
    bytes 2000000 >&7
    sync "$AFTER/staging/open"
    daemon=$(cat "$AFTER"/nodes/*/daemon)
    memory_dir=$(sed -n 's/^memory_dir //p' <<<"$daemon")
    mapfile -t pids < <(sed -n -E 's/^(keeper_)?pid //p' <<<"$daemon")
    kill -KILL "${pids[@]}"
    exec 7>&-
    wait_until pid_gone "${pids[0]}"
    wait_until pid_gone "${pids[1]}"
    if is_root; then umount -l "$memory_dir"; else rm -rf "${memory_dir:?}"; fi
    start_after
    same "$AFTER/staging/open" <(bytes 2000000)
}

@test "a server that crashes again and again makes its metadata anew, and nothing is lost" {
    local pid
    bytes 900 | put small-one
    bytes 900000 | put large-one
    wait_until '[[ -L $MNT/staging/large-one ]]'
    for _ in 1 2 3; do
        pid=$(node daemon pid)
        kill -ABRT "$pid"
        wait_until pid_gone "$pid"
        equals "$(within 20 cat "$MNT/staging/small-one" | wc -c)" 900
    done
    matches "$(cat "$STATE/log")" "made anew"
    same "$MNT/staging/small-one" <(bytes 900)
    same "$MNT/staging/large-one" <(bytes 900000)
}
