#!/usr/bin/env bats
# Futures: the result of a job that hasn't ended is a file that can be waited for (SPEC.md 2).
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# pending NAME: a job run/NAME whose result is pending until open_gate NAME.
pending() {
    gate "$1"
    path=$MNT/objects/$(result "$1")
}

@test "stat of a pending object returns at once: size 0, state pending" {
    pending stat-future
    equals "$(within 5 stat -c '%s %F' "$path")" "0 regular empty file"
    equals "$(attribute state "$path")" pending
    equals "$(attribute job "$path")" "$(job stat-future)"
    within 5 ls -lL "$MNT/run/stat-future/" >/dev/null
    open_gate stat-future
    ends stat-future succeeded
}

@test "a pending object is not listed, so that find and grep -r never hang" {
    pending listed-future
    run ! grep -q "${path##*/}" <(ls "$MNT/objects")
    within 10 grep -r no-such-text "$MNT/objects" || true
    equals "$(within 10 find "$MNT/objects" -name "${path##*/}")" ""
    open_gate listed-future found
    ends listed-future succeeded
    grep -q "${path##*/}" <(ls "$MNT/objects")
}

@test "cat of a pending object waits and gets the result" {
    pending cat-future
    background bash -c 'exec cat "$1" >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    open_gate cat-future "the result"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" "the result"
    equals "$(attribute state "$path")" ready
}

@test "the size is right for whoever looked while it was pending" {
    pending size-future
    equals "$(stat -c %s "$path")" 0
    open_gate size-future "twelve bytes"
    ends size-future succeeded
    equals "$(stat -c %s "$path")" 12
    equals "$(cat "$path")" "twelve bytes"
    equals "$(wc -c <"$path")" 12
}

@test "timeout(1) ends the wait for a pending object" {
    pending timeout-future
    run timeout 0.2 cat "$path"
    equals "$status" 124
    # Nothing is left of that wait: the next one works.
    open_gate timeout-future late
    equals "$(within 10 cat "$path")" late
}

@test "a signal with a handler ends the wait with EINTR" {
    pending signal-future
    refused EINTR open-alarm "$path" 100
    open_gate signal-future
    ends signal-future succeeded
}

@test "SIGKILL ends a waiting process at once" {
    pending kill-future
    background cat "$path"
    local pid=$!
    wait_until blocked_in_open "$pid"
    kill -KILL "$pid"
    wait_until pid_gone "$pid"
    open_gate kill-future x
    equals "$(within 10 cat "$path")" x
}

@test "a wait that ended leaves the others waiting" {
    pending others-future
    background bash -c 'exec cat "$1" >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until blocked_in_open "$pid"
    run timeout 0.1 cat "$path"
    equals "$status" 124
    open_gate others-future shared
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" shared
}

@test "opened with O_NONBLOCK, a pending object reads as EAGAIN" {
    pending nonblock-future
    refused EAGAIN open-nonblock "$path"
    open_gate nonblock-future now
    ends nonblock-future succeeded
    allowed open-nonblock "$path"
}

@test "poll and epoll wake when a pending object is ready" {
    local way
    for way in poll epoll; do
        pending "$way-future"
        background bash -c 'echo "$1" | pollmany "$2" 20 >"$3"' - "$path" "$way" "$BATS_TEST_TMPDIR/$way"
        local pid=$!
        wait_until grep -qs 'pending 1' "$BATS_TEST_TMPDIR/$way"
        open_gate "$way-future" 12345
        wait "$pid"
        equals "$(cat "$BATS_TEST_TMPDIR/$way")" "pending 1"$'\n'"ready $path 5"$'\ndone'
    done
}

# three_hundred NAME: jobs run/NAME/0 to 299 that pass the result of run/NAME-gate on.
three_hundred() {
    gate "$1-gate"
    bash -c '
        mkdir "$1" && cd "$1" || exit 1
        for ((i = 0; i < 300; i++)); do
            echo "{\"command\": [\"cat\", {\"object\": \"$2\"}], \"resources\": {\"cpu\": 0.1}}" >"$i"
        done' - "$MNT/run/$1" "$(result "$1-gate")"
    find "$MNT/run/$1" -type l -printf "%p/result\n" | xargs readlink | sed "s,.*/,$MNT/objects/," \
        >"$BATS_TEST_TMPDIR/paths"
    equals "$(sort -u "$BATS_TEST_TMPDIR/paths" | wc -l)" 300
}

wait_for_three_hundred() { # WAY
    three_hundred "$1"
    background bash -c 'exec pollmany "$1" 50 <"$2" >"$3"' - "$1" "$BATS_TEST_TMPDIR/paths" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs 'pending 300' "$BATS_TEST_TMPDIR/out"
    open_gate "$1-gate" seven77
    wait "$pid"
    equals "$(grep -c '^ready .* 7$' "$BATS_TEST_TMPDIR/out")" 300
    equals "$(tail -n 1 "$BATS_TEST_TMPDIR/out")" "done"
    rm -r "$MNT/run/$1"
}

@test "one poll waits for three hundred pending objects" {
    wait_for_three_hundred poll
}

@test "one epoll waits for three hundred pending objects" {
    wait_for_three_hundred epoll
}

@test "ten thousand opens of one pending object wait at once, and all get the result" {
    pending crowd-future
    local threads count=10000
    # ThreadSanitizer, which the helper is built with then too, has no room for so many threads.
    if ((MOBULA_TEST_SLOW > 1)); then count=2000; fi
    background bash -c 'exec openmany "$1" "$3" >"$2"' - "$path" "$BATS_TEST_TMPDIR/out" "$count"
    local pid=$! daemon
    wait_until -t 30 '[[ $(sed -n "s/^mobula_waiting_requests //p" "$MNT/metrics") -ge '"$count"' ]]'
    # No thread each: the daemon goes on with a few.
    daemon=$(node daemon pid)
    threads=$(find "/proc/$daemon/task" -mindepth 1 -maxdepth 1 | wc -l)
    ((threads < 100))
    # The mount isn't stopped by them.
    echo meanwhile | put meanwhile
    equals "$(within 5 cat "$MNT/staging/meanwhile")" meanwhile
    open_gate crowd-future "for all of you"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" "started"$'\n'"$count ok 14"
}

@test "two thousand opens of a pending object that fails all get EIO" {
    gate crowd-gate
    drop crowd-fails '{"command": ["sh", "-c", "exit 3", {"object": "'"$(result crowd-gate)"'"}]}'
    path=$MNT/objects/$(result crowd-fails)
    background bash -c 'exec openmany "$1" 2000 >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs started "$BATS_TEST_TMPDIR/out"
    open_gate crowd-gate
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" $'started\n2000 EIO'
}

@test "hundreds of opens can be given up again, and the mount goes on" {
    pending given-up
    background openmany "$path" 500
    local pid=$!
    wait_until '[[ $(find /proc/'"$pid"'/task -mindepth 1 -maxdepth 1 | wc -l) -ge 500 ]]'
    kill -KILL "$pid"
    wait_until pid_gone "$pid"
    echo alive | put alive
    equals "$(within 5 cat "$MNT/staging/alive")" alive
    open_gate given-up x
    equals "$(within 10 cat "$path")" x
}

# --- failures ---

@test "the result of a failed job is EIO, and says why" {
    drop fails '{"command": ["sh", "-c", "echo half; exit 7"]}'
    path=$MNT/objects/$(result fails)
    ends fails failed
    refused EIO open-read "$path"
    run cat "$path"
    matches "$output" 'Input/output error'
    equals "$(attribute state "$path")" failed
    matches "$(attribute error "$path")" "$(job fails).*7"
    # What it had printed is not its result, but can be read.
    equals "$(cat "$MNT/run/fails/stdout")" half
}

@test "the result of a cancelled job is ECANCELED, for who waits and who comes later" {
    gate cancelled
    path=$MNT/objects/$(result cancelled)
    background bash -c 'exec attempt open-read "$1" >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    echo cancel >"$MNT/run/cancelled/ctl"
    wait "$pid" || true
    equals "$(cat "$BATS_TEST_TMPDIR/out")" ECANCELED
    ends cancelled cancelled
    refused ECANCELED open-read "$path"
    equals "$(attribute state "$path")" failed
}

@test "the result of a job past its time limit is ETIMEDOUT" {
    drop slow '{"command": ["sleep", "600"], "timeout": 0.2}'
    path=$MNT/objects/$(result slow)
    refused ETIMEDOUT open-read "$path"
    ends slow timed-out
    [[ -n $(attribute error "$path") ]]
}

@test "opened with O_NONBLOCK, a result that fails is reported by poll, then by read" {
    gate fail-gate
    drop poll-fails '{"command": ["sh", "-c", "exit 1", {"object": "'"$(result fail-gate)"'"}]}'
    path=$MNT/objects/$(result poll-fails)
    background bash -c 'echo "$1" | pollmany poll 20 >"$2"' - "$path" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs 'pending 1' "$BATS_TEST_TMPDIR/out"
    open_gate fail-gate
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" "pending 1"$'\n'"failed $path EIO"$'\ndone'
}

@test "xattrs of a pending object can be read without waiting" {
    pending xattr-future
    within 5 getfattr -n user.mobula.owner "$path" >/dev/null
    within 5 getfattr -n user.mobula.refs "$path" >/dev/null
    matches "$(attribute holders "$path")" "job $(job xattr-future) output"
    open_gate xattr-future
    ends xattr-future succeeded
}
