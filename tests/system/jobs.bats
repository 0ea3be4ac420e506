#!/usr/bin/env bats
# Jobs: a spec dropped into run/ becomes a process, and what it writes becomes objects (SPEC.md 3).
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# reads NAME: the content of the job's result, waited for.
reads() { within 20 cat "$MNT/run/$1/result"; }

# marked TEXT: the processes whose command line has TEXT in it.
marked() { pgrep -f -- "$1" || true; }

# --- command ---

@test "a spec that is closed becomes a link to its job, and standard output is the result" {
    drop hello '{"command": ["echo", "hello", "world"]}'
    matches "$(readlink "$MNT/run/hello")" '^\.\./jobs/[0-9a-f]{40}$'
    equals "$(reads hello)" "hello world"
    ends hello succeeded
    equals "$(cat "$MNT/run/hello/exit_code")" 0
    equals "$(cat "$MNT/run/hello/stdout")" "hello world"
    equals "$(cat "$MNT/run/hello/stderr")" ""
    equals "$(cat "$MNT/run/hello/error")" ""
    equals "$(jq -c .command "$MNT/run/hello/spec")" '["echo","hello","world"]'
    [[ -n $(cat "$MNT/run/hello/node") ]]
}

@test "the ID of the result is known at once: the job's with index 1" {
    drop known '{"command": ["true"]}'
    local job
    job=$(job known)
    matches "$job" '00000000$'
    equals "$(readlink "$MNT/jobs/$job/result")" "../../objects/${job:0:32}00000001"
    ends known succeeded
}

@test "jobs/ID has its files, and lists them" {
    drop files '{"command": ["true"]}'
    ends files succeeded
    equals "$(ls "$MNT/run/files/" | tr '\n' ' ')" \
        "ctl error exit_code node outputs result spec state stderr stdout usage "
    grep -q "$(job files)" <(ls "$MNT/jobs")
    refused 'EPERM|EROFS|EACCES' unlink "$MNT/run/files/spec"
    refused 'EPERM|EROFS|EACCES' open-exclusive "$MNT/run/files/new"
    refused 'EPERM|EROFS|EACCES' open-write "$MNT/run/files/state"
    refused 'EPERM|EROFS|EACCES' rmdir "$MNT/jobs/$(job files)"
}

@test "arguments are passed as they are" {
    drop args '{"command": ["printf", "<%s>", "", " a  b ", "$HOME", "*", "\"q\"", "ünï", "line\nline", "-n"]}'
    equals "$(reads args)" $'<>< a  b ><$HOME><*><"q"><ünï><line\nline><-n>'
}

@test "stdin is empty by default, or a string, or an object" {
    drop stdin-none '{"command": ["wc", "-c"]}'
    equals "$(reads stdin-none)" 0
    drop stdin-text '{"command": ["rev"], "stdin": "abc\ndef\n"}'
    equals "$(reads stdin-text)" $'cba\nfed'
    bytes 500000 | put stdin-object
    drop stdin-object '{"command": ["sha256sum"], "stdin": {"object": "'"$(id_of stdin-object)"'"}}'
    equals "$(reads stdin-object)" "$(digest "$MNT/staging/stdin-object")  -"
}

@test "env adds to the environment, which has MOBULA, MOBULA_JOB, HOME, PATH and USER" {
    drop env '{"command": ["sh", "-c", "echo $GREETING; echo $MOBULA; echo $MOBULA_JOB; echo ${HOME:+home} ${PATH:+path} $USER"],
               "env": {"GREETING": "guten Tag"}}'
    equals "$(reads env)" "guten Tag
$MNT
$(job env)
home path $(id -un)"
}

@test "a job sees the mount through MOBULA" {
    echo "from the store" | put visible
    drop visible '{"command": ["sh", "-c", "cat $MOBULA/staging/visible"]}'
    equals "$(reads visible)" "from the store"
}

@test "the working directory is fresh, writable and removed at the end, or the one asked for" {
    drop cwd '{"command": ["sh", "-c", "pwd; ls -A; echo x > file; stat -c %a ."]}'
    local directory
    directory=$(reads cwd | head -n 1)
    equals "$(cat "$MNT/run/cwd/result")" "$directory"$'\n700'
    wait_until gone "$directory"
    drop cwd-given '{"command": ["pwd"], "cwd": "/usr/bin"}'
    equals "$(reads cwd-given)" /usr/bin
    drop cwd-missing '{"command": ["pwd"], "cwd": "/no/such/directory"}'
    ends cwd-missing failed
    matches "$(cat "$MNT/run/cwd-missing/error")" '/no/such/directory'
}

@test "a working directory full of read-only trees and links is removed, and nothing outside is" {
    mkdir "$BATS_TEST_TMPDIR/outside"
    chmod 755 "$BATS_TEST_TMPDIR/outside"
    echo kept >"$BATS_TEST_TMPDIR/outside/file"
    drop messy '{"command": ["sh", "-c", "pwd; mkdir -p a/b; echo x > a/b/c; ln -s $0 link; chmod 500 a/b; chmod 0 a", "'"$BATS_TEST_TMPDIR/outside"'"]}'
    local directory
    directory=$(reads messy)
    wait_until gone "$directory"
    equals "$(cat "$BATS_TEST_TMPDIR/outside/file")" kept
}

@test "a job that can't be found or run says so, with the shell's exit codes" {
    drop missing '{"command": ["no-such-command-anywhere"]}'
    ends missing failed
    equals "$(cat "$MNT/run/missing/exit_code")" 127
    matches "$(cat "$MNT/run/missing/error")" 'no-such-command-anywhere'
    echo text >"$BATS_FILE_TMPDIR/not-executable"
    chmod 644 "$BATS_FILE_TMPDIR/not-executable"
    drop not-executable '{"command": ["'"$BATS_FILE_TMPDIR/not-executable"'"]}'
    ends not-executable failed
    equals "$(cat "$MNT/run/not-executable/exit_code")" 126
}

@test "exit codes are passed on, and a signal counts 128 and its number" {
    drop exit-9 '{"command": ["sh", "-c", "echo to stderr >&2; exit 9"]}'
    ends exit-9 failed
    equals "$(cat "$MNT/run/exit-9/exit_code")" 9
    equals "$(cat "$MNT/run/exit-9/stderr")" "to stderr"
    matches "$(cat "$MNT/run/exit-9/error")" '9'
    drop by-signal '{"command": ["sh", "-c", "kill -SEGV $$"]}'
    ends by-signal failed
    equals "$(cat "$MNT/run/by-signal/exit_code")" 139
}

@test "usage says what a job took" {
    drop usage '{"command": ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]}'
    ends usage succeeded
    local usage
    usage=$(within 5 cat "$MNT/run/usage/usage")
    matches "$usage" 'wall_seconds [0-9.]+'
    matches "$usage" 'user_seconds [0-9.]+'
    matches "$usage" 'max_resident_bytes [1-9][0-9]+'
}

# --- arguments and results ---

@test "an argument by value is a path to the object, read by the job" {
    bytes 200000 | put argument
    drop by-value '{"command": ["sha256sum", {"object": "'"$(id_of argument)"'"}]}'
    equals "$(reads by-value | cut -d' ' -f1)" "$(digest "$MNT/staging/argument")"
}

@test "an argument by reference is not waited for" {
    local id
    gate ref-gate
    id=$(result ref-gate)
    drop by-ref '{"command": ["sh", "-c", "echo \"$1\"; getfattr --only-values -n user.mobula.state \"$1\"", "-", {"ref": "'"$id"'"}]}'
    matches "$(reads by-ref)" "objects/$id"
    matches "$(reads by-ref)" 'pending$'
    open_gate ref-gate
    ends ref-gate succeeded
}

@test "named outputs are objects, written by path or into the working directory" {
    drop outputs '{"command": ["sh", "-c", "echo one > \"$1\"; echo two > second; head -c 200000 /dev/zero > third; echo printed", "-", {"output": "first"}],
                   "outputs": ["first", "second", "third"]}'
    ends outputs succeeded
    equals "$(ls "$MNT/run/outputs/outputs" | tr '\n' ' ')" "first second third "
    equals "$(cat "$MNT/run/outputs/outputs/first")" one
    equals "$(cat "$MNT/run/outputs/outputs/second")" two
    equals "$(stat -Lc %s "$MNT/run/outputs/outputs/third")" 200000
    matches "$(readlink "$MNT/run/outputs/outputs/first")" '^\.\./\.\./\.\./objects/[0-9a-f]{40}$'
    equals "$(cat "$MNT/run/outputs/stdout")" printed
    # The first output is the result.
    equals "$(basename "$(readlink "$MNT/run/outputs/outputs/first")")" "$(result outputs)"
}

@test "outputs are pending, and waited for, from the moment the job is accepted" {
    gate output-gate
    drop output-job '{"command": ["sh", "-c", "cat \"$1\" > a; echo b > b", "-", {"object": "'"$(result output-gate)"'"}], "outputs": ["a", "b"]}'
    equals "$(attribute state "$MNT/objects/$(basename "$(readlink "$MNT/run/output-job/outputs/b")")")" pending
    open_gate output-gate content
    equals "$(within 10 cat "$MNT/run/output-job/outputs/a")" content
    equals "$(within 10 cat "$MNT/run/output-job/outputs/b")" b
}

@test "an output that was not written fails the job, and none is committed" {
    drop no-output '{"command": ["sh", "-c", "echo x > there"], "outputs": ["there", "not-there"]}'
    ends no-output failed
    matches "$(cat "$MNT/run/no-output/error")" 'not-there'
    refused EIO open-read "$MNT/run/no-output/outputs/there"
    refused EIO open-read "$MNT/run/no-output/outputs/not-there"
}

@test "an output that is a link or a directory is not taken" {
    drop link-output '{"command": ["ln", "-s", "/etc/passwd", "out"], "outputs": ["out"]}'
    ends link-output failed
    drop directory-output '{"command": ["mkdir", "out"], "outputs": ["out"]}'
    ends directory-output failed
    drop hard-link-output '{"command": ["sh", "-c", "echo x > other; ln other out"], "outputs": ["out"]}'
    within 20 cat "$MNT/run/hard-link-output/exit_code" >/dev/null
    # Whether it is refused or copied, nobody can change it by its other name.
    matches "$(state hard-link-output)" '^(failed|succeeded)$'
}

@test "an executable object can be the command" {
    printf '#!/bin/sh\necho "program says $1"\n' >"$BATS_TEST_TMPDIR/program"
    chmod 755 "$BATS_TEST_TMPDIR/program"
    cp "$BATS_TEST_TMPDIR/program" "$MNT/staging/program"
    drop program '{"command": [{"object": "'"$(id_of program)"'"}, "hello"]}'
    equals "$(reads program)" "program says hello"
    bytes 1000 | put no-program
    drop no-program '{"command": [{"object": "'"$(id_of no-program)"'"}]}'
    ends no-program failed
    equals "$(cat "$MNT/run/no-program/exit_code")" 126
}

@test "an executable output can be the command of the next job, before it exists" {
    drop compile '{"command": ["sh", "-c", "printf \"#!/bin/sh\\necho built\\n\" > program; chmod +x program"], "outputs": ["program"]}'
    drop run-built '{"command": [{"object": "'"$(result compile)"'"}]}'
    equals "$(reads run-built)" built
}

@test "a large result is committed as it was printed" {
    drop large '{"command": ["head", "-c", "5000000", "'"$ROOM/random"'"]}'
    ends large succeeded
    equals "$(digest "$MNT/run/large/result")" "$(bytes 5000000 | sha256sum | cut -d' ' -f1)"
    equals "$(attribute tier "$MNT/objects/$(result large)")" disk
}

@test "a script is a job, with its options in #MOBULA lines" {
    drop script '#!/bin/sh
#MOBULA timeout = 10m
echo "a script as $MOBULA_JOB"'
    equals "$(reads script)" "a script as $(job script)"
    drop script-slow '#!/bin/sh
#MOBULA timeout = 0.2
sleep 600'
    ends script-slow timed-out
}

# --- chains ---

@test "a result is the argument of the next job before it exists" {
    gate first
    drop second '{"command": ["tr", "a-z", "A-Z"], "stdin": {"object": "'"$(result first)"'"}}'
    drop third '{"command": ["rev", {"object": "'"$(result second)"'"}]}'
    equals "$(state third)" queued
    open_gate first $'hello\n'
    equals "$(reads third)" OLLEH
}

@test "a chain of a thousand jobs dropped at once runs to its end" {
    gate chain-start
    within 50 bash -c '
        mkdir "$1/run/chain" && cd "$1/run/chain" || exit 1
        previous=$2
        for ((i = 1; i <= 1000; i++)); do
            printf "{\"command\": [\"sh\", \"-c\", \"read n; echo \$((n + 1))\"], \"stdin\": {\"object\": \"%s\"}}" "$previous" >"$i" || exit 1
            read -r job < <(readlink "$i") || exit 1
            job=${job##*/}
            previous=${job:0:32}00000001
        done' - "$MNT" "$(result chain-start)"
    equals "$(cat "$MNT/run/chain/1000/state")" queued
    open_gate chain-start $'0\n'
    equals "$(within 50 cat "$MNT/run/chain/1000/result")" 1000
    equals "$(cat "$MNT"/run/chain/*/state | sort | uniq -c | sed 's/^ *//')" "1000 succeeded"
    rm -r "$MNT/run/chain"
}

@test "when a job fails, what depends on it fails, and every error names the first cause" {
    gate cause-gate
    drop cause '{"command": ["sh", "-c", "exit 5", {"object": "'"$(result cause-gate)"'"}]}'
    bash -c '
        mkdir "$1/run/failing" && cd "$1/run/failing" || exit 1
        previous=$2
        for ((i = 1; i <= 200; i++)); do
            printf "{\"command\": [\"cat\", {\"object\": \"%s\"}]}" "$previous" >"$i" || exit 1
            read -r job < <(readlink "$i")
            job=${job##*/}
            previous=${job:0:32}00000001
        done' - "$MNT" "$(result cause)"
    open_gate cause-gate
    ends cause failed
    wait_until -t 20 '[[ $(cat "$MNT/run/failing/200/state") == failed ]]'
    local link
    for link in 1 2 100 200; do
        equals "$(cat "$MNT/run/failing/$link/state")" failed
        matches "$(cat "$MNT/run/failing/$link/error")" "$(job cause)"
        matches "$(cat "$MNT/run/failing/$link/error")" '5'
        refused EIO open-read "$MNT/run/failing/$link/result"
        matches "$(attribute error "$MNT/objects/$(basename "$(readlink "$MNT/run/failing/$link/result")")")" "$(job cause)"
    done
    (($(wc -c <"$MNT/run/failing/200/error") < 1000))
}

@test "a job whose argument was cancelled or timed out says so" {
    gate to-cancel
    drop after-cancel '{"command": ["cat", {"object": "'"$(result to-cancel)"'"}]}'
    echo cancel >"$MNT/run/to-cancel/ctl"
    ends after-cancel failed
    matches "$(cat "$MNT/run/after-cancel/error")" "$(job to-cancel)"
    matches "$(cat "$MNT/run/after-cancel/error")" 'cancel'
}

@test "after: a job starts when others have succeeded, and fails when they fail" {
    gate before
    drop after '{"command": ["echo", "after"], "after": ["'"$(job before)"'"]}'
    equals "$(state after)" queued
    open_gate before
    equals "$(reads after)" after
    drop bad-before '{"command": ["false"]}'
    drop bad-after '{"command": ["echo", "never"], "after": ["'"$(job bad-before)"'"]}'
    ends bad-after failed
    matches "$(cat "$MNT/run/bad-after/error")" "$(job bad-before)"
}

# --- as it runs ---

@test "exit_code is waited for, and says EAGAIN to who won't wait" {
    gate exit-gate
    equals "$(state exit-gate)" running
    run timeout 0.2 cat "$MNT/run/exit-gate/exit_code"
    equals "$status" 124
    refused EAGAIN open-nonblock "$MNT/run/exit-gate/exit_code"
    background bash -c 'exec cat "$1" >"$2"' - "$MNT/run/exit-gate/exit_code" "$BATS_TEST_TMPDIR/code"
    local pid=$!
    background bash -c 'echo "$1" | pollmany poll 20 >"$2"' - "$MNT/run/exit-gate/exit_code" "$BATS_TEST_TMPDIR/poll"
    local poller=$!
    wait_until grep -qs 'pending 1' "$BATS_TEST_TMPDIR/poll"
    open_gate exit-gate
    wait "$pid"
    wait "$poller"
    equals "$(cat "$BATS_TEST_TMPDIR/code")" 0
    matches "$(cat "$BATS_TEST_TMPDIR/poll")" 'ready .* 2'
}

@test "stdout grows while the job runs, and tail -f follows it" {
    mkfifo -m 666 "$BATS_TEST_TMPDIR/lines"
    drop growing '{"command": ["sh", "-c", "while read -r line; do echo \"got $line\"; done < '"$BATS_TEST_TMPDIR/lines"'"]}'
    exec {lines}>"$BATS_TEST_TMPDIR/lines"
    echo one >&"$lines"
    wait_until '[[ $(cat "$MNT/run/growing/stdout") == "got one" ]]'
    background bash -c 'exec tail -n +1 -f "$1" >"$2" 2>/dev/null' - "$MNT/run/growing/stdout" "$BATS_TEST_TMPDIR/tail" {lines}>&-
    wait_until grep -qs 'got one' "$BATS_TEST_TMPDIR/tail"
    echo two >&"$lines"
    wait_until grep -qs 'got two' "$BATS_TEST_TMPDIR/tail"
    equals "$(stat -c %s "$MNT/run/growing/stdout")" 16
    exec {lines}>&-
    ends growing succeeded
    equals "$(cat "$MNT/run/growing/result")" $'got one\ngot two'
}

@test "stdout of a job that failed can be read afterwards" {
    drop failed-stdout '{"command": ["sh", "-c", "echo before the end; exit 1"]}'
    ends failed-stdout failed
    equals "$(cat "$MNT/run/failed-stdout/stdout")" "before the end"
    refused EIO open-read "$MNT/run/failed-stdout/result"
}

@test "cancel ends the whole process tree, also what has left its session" {
    local mark=31415$RANDOM
    drop tree '{"command": ["sh", "-c", "sleep '"$mark"'1 & setsid sleep '"$mark"'2 & (setsid sh -c \"sleep '"$mark"'3 & wait\" &) ; wait"]}'
    wait_until '[[ $(marked "sleep '"$mark"'[123]$" | wc -l) -ge 3 ]]'
    echo cancel >"$MNT/run/tree/ctl"
    ends tree cancelled
    wait_until '[[ -z $(marked "sleep '"$mark"'[123]$") ]]'
    refused ECANCELED open-read "$MNT/run/tree/result"
}

@test "a job that ignores SIGTERM is killed" {
    local mark=27182$RANDOM
    drop stubborn '{"command": ["sh", "-c", "trap \"\" TERM; sleep '"$mark"' & wait; wait; sleep '"$mark"'"]}'
    wait_until '[[ -n $(marked "sleep '"$mark"'$") ]]'
    echo cancel >"$MNT/run/stubborn/ctl"
    ends stubborn cancelled
    wait_until '[[ -z $(marked "sleep '"$mark"'$") ]]'
}

@test "what a job leaves in the background ends with it" {
    local mark=16180$RANDOM
    drop leaver '{"command": ["sh", "-c", "sleep '"$mark"' & setsid -f sleep '"$mark"'; echo started"]}'
    equals "$(reads leaver)" started
    wait_until '[[ -z $(marked "sleep '"$mark"'$") ]]'
}

@test "a queued job can be cancelled before it runs" {
    gate queue-gate
    drop never '{"command": ["touch", "'"$BATS_TEST_TMPDIR/never-made"'", {"object": "'"$(result queue-gate)"'"}]}'
    echo cancel >"$MNT/run/never/ctl"
    ends never cancelled
    open_gate queue-gate
    ends queue-gate succeeded
    [[ ! -e $BATS_TEST_TMPDIR/never-made ]]
}

@test "kill -SIGNAL in ctl sends the signal" {
    mkfifo -m 666 "$BATS_TEST_TMPDIR/ready"
    drop signalled '{"command": ["bash", "-c", "trap \"echo got it; exit 4\" USR1; echo >'"$BATS_TEST_TMPDIR/ready"'; while :; do sleep 0.05; done"]}'
    within 10 cat "$BATS_TEST_TMPDIR/ready" >/dev/null
    echo "kill -USR1" >"$MNT/run/signalled/ctl"
    ends signalled failed
    equals "$(cat "$MNT/run/signalled/exit_code")" 4
    equals "$(cat "$MNT/run/signalled/stdout")" "got it"
}

@test "nonsense in ctl is EINVAL, and a job that has ended is beyond control" {
    drop ended '{"command": ["true"]}'
    ends ended succeeded
    equals "$(echo nonsense | writespec "$MNT/run/ended/ctl")" "write EINVAL"
    equals "$(echo cancel | writespec "$MNT/run/ended/ctl")" "write ESRCH"
}

@test "a job past its time limit is ended, its tree as well" {
    local mark=14142$RANDOM
    drop late '{"command": ["sh", "-c", "sleep '"$mark"' & sleep '"$mark"'"], "timeout": "300ms"}'
    ends late timed-out
    wait_until '[[ -z $(marked "sleep '"$mark"'$") ]]'
    refused ETIMEDOUT open-read "$MNT/run/late/result"
    [[ -n $(cat "$MNT/run/late/error") ]]
}

# --- how many, and who first ---

@test "no more run at once than there are CPUs" {
    mkdir "$BATS_TEST_TMPDIR/running"
    chmod 777 "$BATS_TEST_TMPDIR/running"
    bash -c '
        mkdir "$1/run/crowd" && cd "$1/run/crowd" || exit 1
        for ((i = 0; i < 20; i++)); do
            echo "{\"command\": [\"sh\", \"-c\", \"touch $2/\$\$; ls $2 | wc -l; sleep 0.03; rm $2/\$\$\"]}" >"$i"
        done' - "$MNT" "$BATS_TEST_TMPDIR/running"
    local job
    for job in "$MNT"/run/crowd/*; do
        within 20 cat "$job/exit_code" >/dev/null
    done
    equals "$(cat "$MNT"/run/crowd/*/result | sort -n | tail -n 1)" 2
    rm -r "$MNT/run/crowd"
}

@test "resources.cpu counts: a job of two CPUs runs alone, fractions run together" {
    mkdir "$BATS_TEST_TMPDIR/running"
    chmod 777 "$BATS_TEST_TMPDIR/running"
    bash -c '
        mkdir "$1/run/heavy" && cd "$1/run/heavy" || exit 1
        for ((i = 0; i < 6; i++)); do
            echo "{\"command\": [\"sh\", \"-c\", \"touch $2/\$\$; ls $2 | wc -l; sleep 0.03; rm $2/\$\$\"], \"resources\": {\"cpu\": 2}}" >"$i"
        done' - "$MNT" "$BATS_TEST_TMPDIR/running"
    local job
    for job in "$MNT"/run/heavy/*; do
        within 20 cat "$job/exit_code" >/dev/null
    done
    equals "$(cat "$MNT"/run/heavy/*/result | sort -u)" 1
    # Twenty jobs of a tenth each all get going before any of them may end.
    for job in {1..20}; do
        gate "light-$job"
    done
    equals "$(node jobs running)" 20
    for job in {1..20}; do
        open_gate "light-$job"
    done
    for job in {1..20}; do
        ends "light-$job" succeeded
    done
}

@test "a job that asks for more CPUs than there are is not run at once, and says so" {
    # Refused at close, or waiting with the reason in its error: both are honest, hanging silently isn't.
    echo '{"command": ["true"], "resources": {"cpu": 64}}' | writespec "$MNT/run/too-many" || true
    if [[ $(state too-many) == queued ]]; then
        matches "$(cat "$MNT/run/too-many/error")" '64|CPU'
        echo cancel >"$MNT/run/too-many/ctl"
    else
        matches "$(state too-many)" '^(rejected|failed)$'
        matches "$(cat "$MNT/run/too-many/error")" '64|CPU'
    fi
}

@test "of jobs that wait, the one with the better priority runs first" {
    # Two gates with one CPU each fill the node while the others queue up.
    local order=$BATS_TEST_TMPDIR/order name
    : >"$order"
    chmod 666 "$order"
    for name in full-1 full-2; do
        mkfifo -m 666 "$BATS_TEST_TMPDIR/gate-$name"
        drop "$name" '{"command": ["cat", "'"$BATS_TEST_TMPDIR/gate-$name"'"]}'
        wait_until has_state "$name" running
    done
    drop prio-late '{"command": ["sh", "-c", "echo late >> '"$order"'"], "priority": 10, "resources": {"cpu": 2}}'
    drop prio-early '{"command": ["sh", "-c", "echo early >> '"$order"'"], "priority": -10, "resources": {"cpu": 2}}'
    open_gate full-1
    open_gate full-2
    ends prio-late succeeded
    ends prio-early succeeded
    equals "$(cat "$order")" $'early\nlate'
}

# --- names in run ---

@test "rm of the name while it runs lets the job end, then it goes" {
    local job id
    gate forgotten
    job=$(job forgotten)
    id=$(result forgotten)
    rm "$MNT/run/forgotten"
    equals "$(cat "$MNT/jobs/$job/state")" running
    background bash -c 'exec cat "$1" >"$2"' - "$MNT/objects/$id" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until blocked_in_open "$pid"
    open_gate forgotten result
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" result
    wait_until gone "$MNT/jobs/$job"
    wait_until gone "$MNT/objects/$id"
}

@test "a job has as many names as it is given, in directories, too" {
    local job
    mkdir -p "$MNT/run/a/b"
    drop a/b/deep '{"command": ["echo", "deep"]}'
    job=$(job a/b/deep)
    matches "$(readlink "$MNT/run/a/b/deep")" '^\.\./\.\./\.\./jobs/[0-9a-f]{40}$'
    ln -s "$MNT/jobs/$job" "$MNT/run/other"
    mv "$MNT/run/a/b/deep" "$MNT/run/a/shallow"
    equals "$(readlink "$MNT/run/a/shallow")" "../../jobs/$job"
    rm -r "$MNT/run/a"
    equals "$(within 10 cat "$MNT/run/other/result")" deep
    rm "$MNT/run/other"
    wait_until gone "$MNT/jobs/$job"
}

@test "jobs run as the user who dropped them" {
    if is_root; then
        chmod 1777 "$MNT/run" 2>/dev/null || true
        as_nobody bash -c 'echo "{\"command\": [\"id\", \"-u\"]}" >"$1"' - "$MNT/run/as-nobody"
        equals "$(reads as-nobody)" 65534
        as_nobody bash -c 'echo "{\"command\": [\"sh\", \"-c\", \"id -G; id -g; cat $2\"]}" >"$1"' - "$MNT/run/as-nobody-groups" "$STATE/log"
        ends as-nobody-groups failed
        equals "$(cat "$MNT/run/as-nobody-groups/stdout")" $'65534\n65534'
        equals "$(stat -Lc %u "$MNT/run/as-nobody/result")" 65534
        # And only they, or root, may control them.
        gate roots-job
        matches "$(echo cancel | as_nobody writespec "$MNT/run/roots-job/ctl" || true)" '^(open EACCES|write EPERM)$'
        open_gate roots-job
    else
        drop as-me '{"command": ["id", "-u"]}'
        equals "$(reads as-me)" "$EUID"
    fi
}

# --- bad specs ---

# rejected NAME SPEC PATTERN: close gives EINVAL, the state says rejected, the error matches.
rejected() {
    equals "$(printf '%s' "$2" | writespec "$MNT/run/$1" || true)" "close EINVAL" "$2"
    equals "$(state "$1")" rejected "state of $2"
    matches "$(cat "$MNT/run/$1/error")" "$3"
    rm "$MNT/run/$1"
}

@test "what a private spec has and gives is private; how its job stands is not" {
    is_root || skip "needs root, to be somebody else"
    local file
    (
        umask 077
        drop private '{"command": ["sh", "-c", "echo out; echo err >&2"], "env": {"TOKEN": "secret"}}'
        drop private-bad '{"command": "secret"}'
    )
    ends private succeeded
    for file in spec stdout stderr error result; do
        equals "$(as_nobody cat "$MNT/run/private/$file" 2>&1)" \
            "cat: $MNT/run/private/$file: Permission denied"
    done
    run ! as_nobody cat "$MNT/run/private-bad/error"
    run as_nobody mobula logs --mount "$MNT" private
    equals "$status" 77
    equals "$(as_nobody cat "$MNT/run/private/state" "$MNT/run/private/exit_code")" $'succeeded\n0'
    equals "$(cat "$MNT/run/private/stdout" "$MNT/run/private/stderr")" $'out\nerr'
    drop public '{"command": ["echo", "out"]}'
    ends public succeeded
    equals "$(as_nobody cat "$MNT/run/public/stdout")" out
    as_nobody grep -q command "$MNT/run/public/spec"
}

@test "a bad spec is refused by close with EINVAL, and its error has line, column, field and expectation" {
    local id unknown
    echo x | put spec-object
    id=$(id_of spec-object)
    unknown=${id:0:16}ffffffffffffffff00000000
    rejected bad '{"command": "sort"}' 'line 1, column 1?[0-9].*command.*list'
    rejected bad '{"command": []}' 'line 1, column .*command'
    rejected bad '{"command": ["true"], "colour": 1}' 'line 1, column 2[0-9].*colour'
    rejected bad $'{\n  "command": ["true"],\n  "timeout": -1\n}' 'line 3, column .*timeout'
    rejected bad $'{\n  "command": ["true"],\n  "timeout": "soon"\n}' 'line 3, column .*timeout'
    rejected bad $'{\n "command": ["true"]\n "env": {}}' 'line 3'
    rejected bad '' 'line 1|empty'
    rejected bad '   ' 'line|empty'
    rejected bad '[1, 2]' 'line 1, column 1.*object'
    rejected bad 'nonsense' 'line 1'
    rejected bad '{}' 'command'
    rejected bad '{"command": ["true"], "command": ["false"]}' 'command'
    rejected bad '{"command": ["true", 7]}' 'line 1, column .*command.*string'
    rejected bad '{"command": [{"object": "short"}]}' 'command.*40'
    rejected bad '{"command": ["cat", {"object": "'"$unknown"'"}]}' "command.*$unknown|$unknown"
    rejected bad '{"command": ["cat", {"ref": "'"$unknown"'"}]}' "$unknown"
    rejected bad '{"command": ["cat"], "stdin": {"object": "'"$unknown"'"}}' "$unknown"
    rejected bad '{"command": ["cat", {"object": "'"$id"'", "ref": "'"$id"'"}]}' 'command'
    rejected bad '{"command": ["cat", {"thing": "'"$id"'"}]}' 'command'
    rejected bad '{"command": ["true"], "stdin": 5}' 'stdin.*string'
    rejected bad '{"command": ["true"], "env": ["A=b"]}' 'env.*object'
    rejected bad '{"command": ["true"], "env": {"A": 1}}' 'env.*string'
    rejected bad '{"command": ["true"], "env": {"A=B": "c"}}' 'env'
    rejected bad '{"command": ["true"], "cwd": "relative"}' 'cwd.*absolute'
    rejected bad '{"command": ["true"], "outputs": ["a", "a"]}' 'outputs'
    rejected bad '{"command": ["true"], "outputs": ["../a"]}' 'outputs'
    rejected bad '{"command": ["true"], "outputs": [".."]}' 'outputs'
    rejected bad '{"command": ["true"], "resources": {"cpu": -1}}' 'resources\.cpu'
    rejected bad '{"command": ["true"], "resources": {"cpu": "two"}}' 'resources\.cpu.*number'
    rejected bad '{"command": ["true"], "priority": 50}' 'priority.*19'
    rejected bad '{"command": ["true"], "after": ["'"$unknown"'"]}' "after|$unknown"
    rejected bad '{"command": ["a\u0000b"]}' 'line 1|NUL|null'
    rejected bad '{"command": ["true"]} {"command": ["true"]}' 'line 1, column 2[0-9]'
    rejected bad $'{"command": ["\xff"]}' 'UTF-8|utf-8|line 1'
    rejected bad '{"actor": "counter", "command": ["true"]}' 'actor.*not supported yet'
    rejected bad '{"command": ["true"], "sandbox": "strict"}' 'sandbox.*not supported yet'
    rejected bad '{"command": ["true"], "resources": {"memory": "1G"}}' 'memory.*not supported yet'
    rejected bad $'#!/bin/sh\n#MOBULA colour = blue\ntrue' 'line 2.*colour'
}

@test "cat and cp report a bad spec" {
    echo '{"command": 1}' >"$BATS_TEST_TMPDIR/spec"
    run cp "$BATS_TEST_TMPDIR/spec" "$MNT/run/cp-bad"
    [[ $status -ne 0 ]]
    matches "$output" 'Invalid argument'
    run bash -c 'exec cat "$1" >"$2"' - "$BATS_TEST_TMPDIR/spec" "$MNT/run/cat-bad"
    [[ $status -ne 0 ]]
    matches "$output" 'Invalid argument'
    equals "$(state cat-bad)" rejected
    rm "$MNT/run/cat-bad" "$MNT/run/cp-bad"
}

@test "deep nesting and huge specs are refused, not followed" {
    local deep
    deep=$(printf '[%.0s' {1..5000})
    equals "$(printf '{"command": %s' "$deep" | writespec "$MNT/run/too-deep" || true)" "close EINVAL"
    equals "$(state too-deep)" rejected
    equals "$(head -c 18M /dev/zero | tr '\0' ' ' | writespec "$MNT/run/too-large" || true)" "close EINVAL"
    equals "$(state too-large)" rejected
    rm "$MNT/run/too-deep" "$MNT/run/too-large"
}

@test "a rejected spec has no result, and its waiters do not hang" {
    echo '{"command": 1}' | writespec "$MNT/run/no-result" || true
    equals "$(state no-result)" rejected
    within 5 cat "$MNT/run/no-result/exit_code" >/dev/null || true
    run within 5 cat "$MNT/run/no-result/result"
    [[ $status -ne 0 && $status -ne 137 ]]
    rm "$MNT/run/no-result"
}

@test "when the names are gone, so are the jobs" {
    rm -r "${MNT:?}"/run/*
    wait_until -t 20 '[[ $(ls "$MNT/jobs" | wc -l) -eq 0 ]]'
    equals "$(node jobs running)" 0
    equals "$(node jobs queued)" 0
}
