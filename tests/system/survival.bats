#!/usr/bin/env bats
# Survival: the server dies by SIGKILL, and the mount goes on; even the keeper's death loses nothing.
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

server_pid() { node daemon pid 2>/dev/null; }

# kill_server: kills it and notes its successor, which must come, with the generation one higher.
kill_server() {
    local pid generation
    pid=$(server_pid)
    generation=$(node daemon generation)
    kill -KILL "$pid"
    # This read is answered by the successor: nothing fails in between.
    [[ $(within 20 cat "$MNT"/nodes/*/daemon) == *"pid "* ]]
    wait_until '[[ $(server_pid) != '"$pid"' ]]'
    equals "$(node daemon generation)" "$((generation + 1))" generation
    remember_daemon
}

setup_file() {
    start_mount
    bytes 300000 | put large
    echo small | put small
}

# Whatever a test did, the mount must answer.
teardown() {
    end_test
    within 20 stat "$MNT/README" >/dev/null
}

@test "a killed server is replaced: objects, names and directories are all there" {
    mkdir -p "$MNT/staging/a/b"
    echo deep >"$MNT/staging/a/b/name"
    ls -f "$MNT/objects" | sort >"$BATS_TEST_TMPDIR/before"
    kill_server
    equals "$(cat "$MNT/staging/small")" small
    equals "$(digest "$MNT/staging/large")" "$(bytes 300000 | sha256sum | cut -d' ' -f1)"
    equals "$(cat "$MNT/staging/a/b/name")" deep
    equals "$(ls -f "$MNT/objects" | sort | diff "$BATS_TEST_TMPDIR/before" -)" ""
    echo after | put after
    equals "$(cat "$MNT/staging/after")" after
    rm "$MNT/staging/a/b/name"
    rmdir "$MNT/staging/a/b" "$MNT/staging/a"
}

@test "the keeper stays, and the new server is told apart by its pid and generation" {
    local keeper
    keeper=$(node daemon keeper_pid)
    kill_server
    equals "$(node daemon keeper_pid)" "$keeper"
}

@test "an open object reads on, inline and large, and so does a map" {
    local reader_1 reader_2
    bytes 300000 >"$BATS_TEST_TMPDIR/copy"
    exec {reader_1}<"$MNT/staging/small"
    exec {reader_2}<"$MNT/staging/large"
    coproc MAP { mapreader "$MNT/staging/large" "$BATS_TEST_TMPDIR/copy"; }
    local line out=${MAP[0]} in=${MAP[1]} pid=$MAP_PID
    read -ru "$out" line
    head -c 100000 <&"$reader_2" | cmp -n 100000 - "$BATS_TEST_TMPDIR/copy"
    kill_server
    equals "$(cat <&"$reader_1")" small
    equals "$(tail -c 1 "/proc/self/fd/$reader_2" | od -An -tx1)" "$(tail -c 1 "$BATS_TEST_TMPDIR/copy" | od -An -tx1)"
    equals "$(sha256sum <"/proc/self/fd/$reader_2")" "$(sha256sum <"$BATS_TEST_TMPDIR/copy")"
    echo >&"$in"
    read -ru "$out" line
    equals "$line" equal
    exec {in}>&- {reader_1}<&- {reader_2}<&-
    wait "$pid"
}

@test "an object that only an open file keeps is there after the kill, and goes with the close" {
    local path reader
    bytes 200000 | put unnamed
    path=$MNT/objects/$(id_of unnamed)
    exec {reader}<"$path"
    rm "$MNT/staging/unnamed"
    kill_server
    equals "$(sha256sum <"/proc/self/fd/$reader")" "$(bytes 200000 | sha256sum)"
    exists "$path"
    exec {reader}<&-
    wait_until gone "$path"
}

@test "an open that waits is answered by the next server, three kills in a row" {
    local path
    gate waiting
    path=$MNT/objects/$(result waiting)
    background bash -c 'exec cat "$1" >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$! round
    wait_until blocked_in_open "$pid"
    background bash -c 'echo "$1" | pollmany poll 50 >"$2"' - "$path" "$BATS_TEST_TMPDIR/poll"
    local poller=$!
    wait_until grep -qs 'pending 1' "$BATS_TEST_TMPDIR/poll"
    for round in 1 2 3; do
        kill_server
    done
    run ! pid_gone "$pid"
    open_gate waiting "answer"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" answer
    wait "$poller"
    matches "$(cat "$BATS_TEST_TMPDIR/poll")" "ready $path 6"
}

@test "hundreds of waiting opens are answered by the next server" {
    gate hundreds
    background bash -c 'exec openmany "$1" 500 >"$2"' - "$MNT/objects/$(result hundreds)" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs started "$BATS_TEST_TMPDIR/out"
    kill_server
    open_gate hundreds "for all"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" $'started\n500 ok 7'
}

@test "a file being written stays open, and what is written before and after the kill is committed" {
    local writer
    exec {writer}>"$MNT/staging/half"
    bytes 150000 >&"$writer"
    setfattr -n user.note -v kept "$MNT/staging/half"
    kill_server
    bytes 150000 150000 >&"$writer"
    [[ ! -L $MNT/staging/half ]]
    exec {writer}>&-
    [[ -L $MNT/staging/half ]]
    equals "$(digest "$MNT/staging/half")" "$(bytes 300000 | sha256sum | cut -d' ' -f1)"
    equals "$(getfattr --only-values -n user.note "$MNT/staging/half")" kept
}

@test "a file that was unlinked, or renamed, while it is written stays so after the kill" {
    local writer_1 writer_2
    exec {writer_1}>"$MNT/staging/unlinked"
    exec {writer_2}>"$MNT/staging/old-name"
    echo x >&"$writer_1"
    echo one >&"$writer_2"
    rm "$MNT/staging/unlinked"
    mv "$MNT/staging/old-name" "$MNT/staging/new-name"
    kill_server
    echo y >&"$writer_1"
    echo two >&"$writer_2"
    exec {writer_1}>&- {writer_2}>&-
    refused ENOENT stat "$MNT/staging/unlinked"
    refused ENOENT stat "$MNT/staging/old-name"
    equals "$(cat "$MNT/staging/new-name")" $'one\ntwo'
}

@test "a cp under way ends equal or with an error, never with a silent hole" {
    local round pid
    for round in 1 2 3; do
        bytes 8000000 "$round" >"$BATS_TEST_TMPDIR/source"
        # Slowly, in many writes, so that the kill comes between them.
        background bash -c 'dd if="$1" bs=4k status=none | dd of="$2" bs=4k iflag=fullblock status=none' - \
            "$BATS_TEST_TMPDIR/source" "$MNT/staging/under-way-$round"
        pid=$!
        wait_until '[[ $(stat -Lc %s "$MNT/staging/under-way-'"$round"'" 2>/dev/null || echo 0) -gt 100000 ]]'
        kill_server
        if wait "$pid"; then
            same "$BATS_TEST_TMPDIR/source" "$MNT/staging/under-way-$round"
        fi
    done
}

@test "puts go on through kills, and every one that was acknowledged is there" {
    # A writer that notes each name whose write and close succeeded.
    background bash -c '
        mkdir "$1/staging/stream" || exit 1
        for ((i = 0; ; i++)); do
            if ! echo "content $i" >"$1/staging/stream/$i"; then echo "put $i failed" >>"$2.errors"; exit 1; fi
            echo "$i" >>"$2"
        done' - "$MNT" "$BATS_TEST_TMPDIR/acknowledged"
    local pid=$! round
    for round in 1 2 3 4 5; do
        wait_until '[[ $(wc -l <"$BATS_TEST_TMPDIR/acknowledged" 2>/dev/null || echo 0) -gt '"$((round * 100))"' ]]'
        kill_server
    done
    kill -KILL "$pid"
    wait_until pid_gone "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/acknowledged.errors" 2>/dev/null)" "" "errors the writer saw"
    bash -c '
        while read -r i; do
            [[ -L $1/staging/stream/$i && $(<"$1/staging/stream/$i") == "content $i" ]] || { echo "lost $i"; exit 1; }
        done <"$2"' - "$MNT" "$BATS_TEST_TMPDIR/acknowledged"
    rm -r "$MNT/staging/stream"
}

@test "removals through kills stay removed, and their memory comes back" {
    local before objects round
    before=$(used_bytes)
    objects=$(object_count)
    bash -c 'mkdir "$1" && cd "$1" && for ((i = 0; i < 20; i++)); do head -c 500000 "$2" >"$i"; done' - "$MNT/staging/heavy" "$ROOM/random"
    rm "$MNT"/staging/heavy/1?
    kill_server
    equals "$(ls "$MNT/staging/heavy" | wc -l)" 10
    rm -r "$MNT/staging/heavy"
    kill_server
    wait_until '[[ $(object_count) -eq '"$objects"' ]]'
    wait_until '(( $(used_bytes) <= '"$before"' + 1000000 ))'
}

@test "a running job is adopted, and its result is right" {
    gate adopted
    local pid_before
    pid_before=$(pgrep -fx "cat $BATS_TEST_TMPDIR/gate-adopted")
    [[ -n $pid_before ]]
    kill_server
    equals "$(state adopted)" running
    equals "$(pgrep -fx "cat $BATS_TEST_TMPDIR/gate-adopted")" "$pid_before" "the job's process"
    open_gate adopted "the result"
    equals "$(within 20 cat "$MNT/run/adopted/result")" "the result"
    ends adopted succeeded
    rm "$MNT/run/adopted"
}

@test "a job that ends while there is no server is recorded by the next one" {
    gate ended-alone
    local pid
    pid=$(server_pid)
    # Stopped, it does nothing more; the job ends meanwhile; then it is killed.
    kill -STOP "$pid"
    background_pids+=("$pid")
    bash -c 'printf alone >"$1"' - "$BATS_TEST_TMPDIR/gate-ended-alone"
    wait_until '[[ -z $(pgrep -fx "cat $BATS_TEST_TMPDIR/gate-ended-alone") ]]'
    kill -KILL "$pid"
    equals "$(within 20 cat "$MNT/run/ended-alone/result")" alone
    ends ended-alone succeeded
    remember_daemon
}

@test "queued jobs run, ended jobs stay ended, failed results stay failed" {
    drop ended '{"command": ["echo", "ended"]}'
    ends ended succeeded
    drop failed '{"command": ["sh", "-c", "exit 2"]}'
    ends failed failed
    gate start
    drop queued '{"command": ["rev", {"object": "'"$(result start)"'"}]}'
    kill_server
    equals "$(state ended)" succeeded
    equals "$(cat "$MNT/run/ended/result")" ended
    equals "$(state failed)" failed
    equals "$(cat "$MNT/run/failed/exit_code")" 2
    refused EIO open-read "$MNT/run/failed/result"
    equals "$(state queued)" queued
    open_gate start abc
    equals "$(within 20 cat "$MNT/run/queued/result")" cba
}

@test "a job can be cancelled after the kill, its tree with it" {
    local mark=22360$RANDOM
    drop later '{"command": ["sh", "-c", "setsid sleep '"$mark"' & sleep '"$mark"'"]}'
    wait_until '[[ $(pgrep -fx "sleep '"$mark"'" | wc -l) -eq 2 ]]'
    kill_server
    echo cancel >"$MNT/run/later/ctl"
    ends later cancelled
    wait_until '[[ -z $(pgrep -fx "sleep '"$mark"'") ]]'
}

@test "references inside objects, and bad attempts, are the same after the kill" {
    local inner writer
    echo inner | put inner
    inner=$(id_of inner)
    exec {writer}>"$MNT/staging/outer"
    setfattr -n user.mobula.refs -v "$inner" "$MNT/staging/outer"
    exec {writer}>&-
    rm "$MNT/staging/inner"
    kill_server
    equals "$(cat "$MNT/objects/$inner")" inner
    equals "$(stat -c %h "$MNT/objects/$inner")" 1
    refused 'EPERM|EROFS|EACCES' open-write "$MNT/objects/$inner"
    rm "$MNT/staging/outer"
    wait_until gone "$MNT/objects/$inner"
}

@test "the transport is the same after the kill, and so is passthrough" {
    local transport passthrough
    transport=$(node daemon transport)
    passthrough=$(node daemon passthrough)
    kill_server
    equals "$(node daemon transport)" "$transport"
    equals "$(node daemon passthrough)" "$passthrough"
}

# --- the keeper dies as well ---

@test "keeper and server killed together: up on the same state brings all of it back" {
    local mnt=$ROOM/both-mnt state=$ROOM/both-state keeper server id
    mkdir "$mnt"
    up "$mnt" "$state"
    sed -n 's/^memory_dir //p' "$mnt"/nodes/*/daemon >>"$ROOM/memory-dirs"
    mkdir "$mnt/staging/directory"
    echo inline >"$mnt/staging/directory/inline"
    bytes 3000000 >"$mnt/staging/large"
    echo '{"command": ["echo", "job result"]}' >"$mnt/run/job"
    within 10 cat "$mnt/run/job/exit_code" >/dev/null
    id=$(basename "$(readlink "$mnt/staging/large")")
    keeper=$(sed -n 's/^keeper_pid //p' "$mnt"/nodes/*/daemon)
    server=$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)
    kill -KILL "$keeper" "$server"
    wait_until pid_gone "$keeper"
    wait_until pid_gone "$server"
    # The mount is stale now; up notices and replaces it, and the daemon waits for who has the state
    # still, as a process has that takes its time to die.
    background flock "$state/keeper.lock" sleep 1
    wait_until '! flock -n "'"$state"'/keeper.lock" true'
    up "$mnt" "$state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(cat "$mnt/staging/directory/inline")" inline
    equals "$(digest "$mnt/objects/$id")" "$(bytes 3000000 | sha256sum | cut -d' ' -f1)"
    equals "$(cat "$mnt/run/job/result")" "job result"
    equals "$(cat "$mnt/run/job/state")" succeeded
    equals "$(grep -c " $mnt " /proc/self/mountinfo)" 1
    within 20 mobula down "$mnt"
    equals "$(grep -c "$ROOM/both-" /proc/self/mountinfo || true)" 0
}

@test "a job that ran when keeper and server were killed is in a true state afterwards" {
    local mnt=$ROOM/true-mnt state=$ROOM/true-state mark=26457$RANDOM keeper server
    mkdir "$mnt"
    up "$mnt" "$state"
    echo '{"command": ["sh", "-c", "sleep '"$mark"' & wait"]}' >"$mnt/run/job"
    wait_until '[[ -n $(pgrep -fx "sleep '"$mark"'") ]]'
    sed -n 's/^memory_dir //p' "$mnt"/nodes/*/daemon >>"$ROOM/memory-dirs"
    keeper=$(sed -n 's/^keeper_pid //p' "$mnt"/nodes/*/daemon)
    server=$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)
    kill -KILL "$keeper" "$server"
    wait_until pid_gone "$keeper"
    wait_until pid_gone "$server"
    # Its processes end with the launcher: nothing runs that nobody knows of.
    wait_until '[[ -z $(pgrep -fx "sleep '"$mark"'") ]]'
    up "$mnt" "$state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    # It runs again, or it failed with the reason.
    wait_until 'grep -qE "running|failed|lost" "'"$mnt"'/run/job/state"'
    if grep -qE 'failed|lost' "$mnt/run/job/state"; then
        [[ -n $(cat "$mnt/run/job/error") ]]
    else
        wait_until '[[ -n $(pgrep -fx "sleep '"$mark"'") ]]'
        echo cancel >"$mnt/run/job/ctl"
        within 10 cat "$mnt/run/job/exit_code" >/dev/null
        equals "$(cat "$mnt/run/job/state")" cancelled
    fi
    within 20 mobula down "$mnt"
    equals "$(pgrep -fx "sleep $mark" || true)" ""
}

@test "only the keeper is killed: nothing hangs, and up brings it back" {
    local mnt=$ROOM/keeper-mnt state=$ROOM/keeper-state keeper server
    mkdir "$mnt"
    up "$mnt" "$state"
    echo kept >"$mnt/staging/name"
    sed -n 's/^memory_dir //p' "$mnt"/nodes/*/daemon >>"$ROOM/memory-dirs"
    keeper=$(sed -n 's/^keeper_pid //p' "$mnt"/nodes/*/daemon)
    server=$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)
    kill -KILL "$keeper"
    wait_until pid_gone "$keeper"
    # The server ends with its keeper, rather than going on as an orphan.
    wait_until pid_gone "$server"
    up "$mnt" "$state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(cat "$mnt/staging/name")" kept
    within 20 mobula down "$mnt"
}

@test "down unmounts the stale mount of a daemon that is dead" {
    local mnt=$ROOM/dead-mnt state=$ROOM/dead-state keeper server
    mkdir "$mnt"
    up "$mnt" "$state"
    keeper=$(sed -n 's/^keeper_pid //p' "$mnt"/nodes/*/daemon)
    server=$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)
    kill -KILL "$keeper" "$server"
    wait_until pid_gone "$keeper"
    wait_until pid_gone "$server"
    within 20 mobula down "$mnt"
    run ! is_mounted "$mnt"
    # What it left in memory goes with the next proper end.
    up "$mnt" "$state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    within 20 mobula down "$mnt"
    equals "$(grep -c "$ROOM/dead-" /proc/self/mountinfo || true)" 0
}

@test "no data file is left over after all these kills" {
    local memory files
    rm -rf "${MNT:?}"/staging/* "${MNT:?}"/run/*
    wait_until '[[ $(object_count) -eq 0 ]]'
    kill_server
    memory=$(node daemon memory_dir)
    # What is left are spare, empty files.
    wait_until '[[ -z $(find "'"$memory"'" -type f -size +0 -path "*/data/*" 2>/dev/null) ]]'
    files=$(find "$memory" -type f -path '*/data/*' | wc -l)
    ((files <= 300))
}
