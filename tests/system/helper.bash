# shellcheck shell=bash disable=SC2016,SC2119,SC2120
# What the system tests share: a mount of its own for each file, waiting for what must happen, and
# a check at the end that nothing is left mounted, running or lying about.
#
# MOBULA_BIN             folder with mobula and mobulad (default: build/ at the root of the tree)
# MOBULA_TEST_HELPERS    folder with the compiled helpers/*.c
# MOBULA_TEST_TRANSPORT  io_uring or device (default: io_uring where the kernel has it on)
# MOBULA_TEST_SLOW       factor for deadlines, e.g. 5 under a sanitizer
# MOBULA_TEST_KEEP_LOGS  folder where the daemons' logs are kept
#
# The tests run as whoever runs bats. bats traces each command, so long loops stand in `bash -c`.

bats_require_minimum_version 1.5.0

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${MOBULA_BIN:=$repository/build}"
: "${MOBULA_TEST_HELPERS:=$MOBULA_BIN/tests/system/helpers}"
: "${MOBULA_TEST_SLOW:=1}"
if [[ -z ${MOBULA_TEST_TRANSPORT:-} ]]; then
    MOBULA_TEST_TRANSPORT=device
    if [[ $(cat /sys/module/fuse/parameters/enable_uring 2>/dev/null) == Y ]]; then
        MOBULA_TEST_TRANSPORT=io_uring
    fi
fi
PATH="$MOBULA_BIN:$MOBULA_TEST_HELPERS:$PATH"
LC_ALL=C.UTF-8
export MOBULA_BIN MOBULA_TEST_HELPERS MOBULA_TEST_SLOW MOBULA_TEST_TRANSPORT PATH LC_ALL
export BATS_TEST_TIMEOUT="${BATS_TEST_TIMEOUT:-$((40 * MOBULA_TEST_SLOW))}"
unset MOBULA MOBULA_JOB

background_pids=()

is_root() { [[ $EUID -eq 0 ]]; }

# --- the command ---

# m ARGUMENT...: the command with this file's mount.
m() { MOBULA=$MNT within 30 mobula "$@"; }

# exits STATUS COMMAND...: runs it; its output is in $output (errors too).
exits() {
    local expected=$1
    shift
    status=0
    output=$("$@" 2>&1) || status=$?
    # shellcheck disable=SC2034 # used by the tests
    mapfile -t lines <<<"$output"
    if [[ $status -ne $expected ]]; then
        printf '%s\nexpected status %s, got %s\n%s\n' "$*" "$expected" "$status" "$output"
        return 1
    fi
}

# --- waiting ---

# wait_until [-t SECONDS] COMMAND [ARGUMENT...]: runs the command every 10 ms until it succeeds.
# With one argument, it is evaluated as shell text.
wait_until() {
    local seconds=10
    if [[ $1 == -t ]]; then
        seconds=$2
        shift 2
    fi
    local -i deadline=$((${EPOCHREALTIME/./} + seconds * MOBULA_TEST_SLOW * 1000000))
    while true; do
        if [[ $# -eq 1 ]]; then
            if eval "$1"; then return 0; fi
        elif "$@"; then
            return 0
        fi
        if ((${EPOCHREALTIME/./} > deadline)); then
            echo "waited $((seconds * MOBULA_TEST_SLOW)) s in vain for: $*"
            return 1
        fi
        sleep 0.01
    done
}

# within SECONDS COMMAND...: the command, killed if it takes longer.
within() {
    local seconds=$1
    shift
    timeout -s KILL "$((seconds * MOBULA_TEST_SLOW))" "$@"
}

# --- saying what is expected ---

equals() { # ACTUAL EXPECTED [WHAT]
    if [[ $1 != "$2" ]]; then
        printf '%sexpected: %s\ngot:      %s\n' "${3:+$3: }" "$2" "$1"
        return 1
    fi
}

matches() { # ACTUAL EXTENDED-REGULAR-EXPRESSION
    if [[ ! $1 =~ $2 ]]; then
        printf 'expected to match: %s\ngot:               %s\n' "$2" "$1"
        return 1
    fi
}

# refused ERRNO[|ERRNO...] OPERATION PATH...: the helper `attempt` gets one of these errors.
refused() {
    local expected=$1 got
    shift
    got=$(within 10 attempt "$@") || true
    if [[ "|$expected|" != *"|$got|"* ]]; then
        printf 'attempt %s\nexpected: %s\ngot:      %s\n' "$*" "$expected" "$got"
        return 1
    fi
}

# allowed OPERATION PATH...: the helper `attempt` succeeds.
allowed() { refused ok "$@"; }

# same FILE FILE: the same bytes.
same() { within 30 cmp "$1" "$2"; }

digest() { sha256sum <"$1" | cut -d' ' -f1; }

# --- content ---

# bytes COUNT [OFFSET]: that much of 8 MiB of random bytes, made once a file.
bytes() {
    if [[ $1 -eq 0 ]]; then return 0; fi
    tail -c "+$((${2:-0} + 1))" "$ROOM/random" 2>/dev/null | head -c "$1"
}

# --- objects ---

# id_of NAME: the ID that staging/NAME links to.
id_of() {
    local target
    target=$(readlink "$MNT/staging/$1") || {
        echo "staging/$1 is no link" >&2
        return 1
    }
    echo "${target##*/}"
}

# put NAME: standard input becomes staging/NAME.
put() { cat >"$MNT/staging/$1"; }

# attribute FIELD PATH: the value of user.mobula.FIELD.
attribute() { within 20 getfattr --only-values -h -n "user.mobula.$1" -- "$2" 2>/dev/null; }

links() { stat -c %h "$1"; }

exists() { stat "$1" >/dev/null 2>&1; }

gone() { ! stat "$1" >/dev/null 2>&1; }

node_path() { echo "$MNT"/nodes/*; }

# node FILE KEY: a value out of nodes/ID/FILE.
node() { sed -n "s/^$2 //p" "$MNT"/nodes/*/"$1"; }

used_bytes() { node memory used_bytes; }

# requests KIND: how many of these the daemon has had. All the text comes by one read, as between two
# it would change; to ask is always one READ.
requests() {
    dd if="$MNT/metrics" bs=1M count=1 status=none | sed -n 's/^mobula_fuse_requests_total{opcode="'"$1"'"} //p'
}

object_count() { node objects ready; }

# --- jobs ---

# drop NAME TEXT: writes a job's spec; prints nothing.
drop() { printf '%s\n' "$2" >"$MNT/run/$1"; }

# job NAME: the ID that run/NAME links to.
job() {
    local target
    target=$(readlink "$MNT/run/$1") || {
        echo "run/$1 is no link" >&2
        return 1
    }
    echo "${target##*/}"
}

# result NAME: the ID of the job's result.
result() {
    local target
    target=$(readlink "$MNT/run/$1/result")
    echo "${target##*/}"
}

state() { cat "$MNT/run/$1/state"; }

has_state() { [[ $(state "$1") == "$2" ]]; }

# ends NAME STATE: waits for the end of the job, then compares its state.
ends() {
    within 20 cat "$MNT/run/$1/exit_code" >/dev/null || true
    equals "$(state "$1")" "$2" "state of run/$1 (error: $(cat "$MNT/run/$1/error"))"
}

# gate NAME: a job run/NAME that ends when open_gate NAME [TEXT] is called; TEXT is its result.
gate() {
    mkfifo "$BATS_TEST_TMPDIR/gate-$1"
    chmod 666 "$BATS_TEST_TMPDIR/gate-$1"
    drop "$1" "{\"command\": [\"cat\", \"$BATS_TEST_TMPDIR/gate-$1\"], \"resources\": {\"cpu\": 0.01}}"
    wait_until has_state "$1" running
}

open_gate() { within 10 bash -c 'printf %s "$2" >"$1"' - "$BATS_TEST_TMPDIR/gate-$1" "${2:-}"; }

# --- other users (as root) ---

as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }

# --- processes of a test ---

# background COMMAND...: starts it; its PID is in $!, and it is killed at the end of the test at the
# latest.
background() {
    "$@" 3>&- 4>&- &
    background_pids+=("$!")
}

# await: waits for all of them to succeed. (A bare `wait` would wait for bats' own time limit, too.)
await() {
    local pid
    for pid in "${background_pids[@]}"; do
        wait "$pid"
    done
    background_pids=()
}

# pid_gone PID: no such process any more, or only its remains.
pid_gone() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    stat=${stat##*) }
    [[ ${stat:0:1} == Z ]]
}

# blocked_in_open PID: it sleeps in the kernel, waiting for the filesystem to answer.
blocked_in_open() {
    local stack
    if stack=$(cat "/proc/$1/stack" 2>/dev/null) && [[ -n $stack ]]; then
        [[ $stack == *fuse* ]]
    else
        # Only root may see the stack; anybody sees the system call: openat.
        [[ $(cat "/proc/$1/syscall" 2>/dev/null) =~ ^(257|56)\  ]]
    fi
}

# --- the mount ---

is_mounted() { grep -q " $1 [^-]* - fuse.mobula " /proc/self/mountinfo; }

# up MNT STATE [OPTION...]: mounts; $memory is 1G unless set.
up() {
    local mountpoint=$1 state=$2
    shift 2
    within 30 mobula up "$mountpoint" --state "$state" --memory "${memory:-1G}" --cpus 2 \
        --transport "$MOBULA_TEST_TRANSPORT" "$@" 3>&- 4>&-
}

# remember_daemon [MNT]: notes the daemon's processes and its memory, so that leftovers are found.
remember_daemon() {
    local text
    text=$(within 10 bash -c 'cat "$1"/nodes/*/daemon' - "${1:-$MNT}")
    sed -n -E 's/^(keeper_)?pid //p' <<<"$text" >>"$ROOM/pids"
    sed -n 's/^memory_dir //p' <<<"$text" >>"$ROOM/memory-dirs"
}

# bats' own time limit can't end a shell that hangs in the mount. When no test has ended for longer
# than that, this ends the daemons of this room, so that whatever waits for them gets an error.
watch_over_room() {
    local pid limit=$((BATS_TEST_TIMEOUT + 20))
    while sleep 1 && [[ -e $ROOM/alive ]]; do
        if (($(date +%s) - $(stat -c %Y "$ROOM/alive") > limit)); then
            echo "a test hung for $limit s: the daemons were killed" >"$ROOM/hung"
            for pid in $(pgrep -f "mobulad $ROOM/"); do
                kill -KILL "$pid"
            done
            return
        fi
    done
}

# Called by each file's setup_file: makes a room under /tmp and a mount in it.
start_mount() {
    ROOM=$(mktemp -d "${TMPDIR:-/tmp}/mobula-test.XXXXXX")
    MNT=$ROOM/mnt
    STATE=$ROOM/state
    export ROOM MNT STATE
    chmod 755 "$ROOM"
    mkdir "$MNT"
    head -c 8M /dev/urandom >"$ROOM/random"
    touch "$ROOM/alive"
    watch_over_room </dev/null >/dev/null 2>&1 3>&- 4>&- &
    local program
    for program in attempt writespec mapwriter mapreader pollmany openmany readrace readways scatter; do
        if [[ ! -x $MOBULA_TEST_HELPERS/$program ]]; then
            echo "$MOBULA_TEST_HELPERS/$program is missing: build the helpers first (make check)"
            return 1
        fi
    done
    if ! up "$MNT" "$STATE" "$@"; then
        tail -n 20 "$STATE/log" || true
        return 1
    fi
    remember_daemon
}

# leftovers: prints what of this room is still mounted or running; fails if there is anything.
leftovers() {
    local found=0 process pid command directory
    if grep -F "$ROOM" /proc/self/mountinfo; then
        echo "^ still mounted"
        found=1
    fi
    while read -r pid; do
        if ! pid_gone "$pid"; then
            echo "process $pid still runs: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
            found=1
        fi
    done < <(sort -u "$ROOM/pids" 2>/dev/null)
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        if [[ $pid == "$$" || $pid == "$BASHPID" ]]; then continue; fi
        command=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
        if [[ $command == *"$ROOM"* ]] || grep -qzF "MOBULA=$ROOM" "$process/environ" 2>/dev/null; then
            if pid_gone "$pid"; then continue; fi
            echo "process $pid belongs to this test and still runs: $command"
            echo "$pid" >>"$ROOM/pids"
            found=1
        fi
    done
    while read -r directory; do
        if [[ $directory == /dev/shm/* && -e $directory ]]; then
            echo "left in memory: $(du -sh "$directory")"
            rm -rf "$directory"
            found=1
        fi
    done < <(sort -u "$ROOM/memory-dirs" 2>/dev/null)
    return "$found"
}

# Called by each file's teardown_file: `mobula down`, then nothing may be left.
stop_mount() {
    local status=0 pid mountpoint
    if [[ -z ${ROOM:-} || ! -d $ROOM ]]; then return 1; fi
    rm -f "$ROOM/alive"
    if [[ -e $ROOM/hung ]]; then
        cat "$ROOM/hung"
        status=1
    fi
    if is_mounted "$MNT"; then
        remember_daemon || status=1
        if ! within 40 mobula down "$MNT" --timeout 10; then
            echo "mobula down failed"
            status=1
        fi
    fi
    if ! leftovers; then
        status=1
        tail -n 20 "$STATE/log" || true
        while read -r pid; do
            if [[ -n $pid ]] && grep -qF "$ROOM" "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null; then
                kill -KILL "$pid" 2>/dev/null || true
            fi
        done < <(sort -u "$ROOM/pids" 2>/dev/null)
        while read -r mountpoint; do
            umount -l "$mountpoint" 2>/dev/null || fusermount3 -uz "$mountpoint" || true
        done < <(awk '{print $5}' /proc/self/mountinfo | grep -F "$ROOM" | sort -r)
    fi
    # A report of a sanitizer fails the file, whichever daemon of this room wrote it.
    local reports='ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|runtime error:'
    if grep -m 3 -A 40 -E "$reports" "$ROOM"/*/log; then
        echo "^ reports of a sanitizer in a daemon's log"
        status=1
    fi
    if [[ -n ${MOBULA_TEST_KEEP_LOGS:-} ]]; then
        cat "$ROOM"/*/log >"$MOBULA_TEST_KEEP_LOGS/${BATS_TEST_FILENAME##*/}.$MOBULA_TEST_TRANSPORT.$EUID.log"
    fi
    rm -rf --one-file-system "$ROOM"
    return "$status"
}

setup_file() { start_mount; }

teardown_file() { stop_mount; }

# Ends what a test left running: its background processes, and (if it failed) its jobs and mounts.
end_test() {
    local pid mountpoint
    touch "$ROOM/alive"
    for pid in "${background_pids[@]}"; do
        disown "$pid" 2>/dev/null || true # else the shell would say "Killed"
        kill -KILL "$pid" 2>/dev/null || true
    done
    if [[ -n ${BATS_TEST_COMPLETED:-} ]]; then return 0; fi
    within 10 bash -c 'for state in "$1"/jobs/*/state; do
            if grep -qE "queued|running|fetching" "$state"; then echo cancel >"${state%state}ctl"; fi
        done' - "$MNT" 2>/dev/null || true
    while read -r mountpoint; do
        if [[ $mountpoint != "$MNT" ]]; then
            within 10 mobula down "$mountpoint" --force || true
        fi
    done < <(awk -v room="$ROOM/" 'index($5, room) == 1 && / - fuse.mobula /{print $5}' \
        /proc/self/mountinfo)
}

teardown() { end_test; }
