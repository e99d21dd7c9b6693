#!/bin/bash
# Makes a sensor of a Debian 12, without internet. Run from the folder that `make archive` packed; see --help.
#
#   /opt/edgetag/releases/VERSION-XXXXXXXX/   a venv each, and share/: the systemd/ and deploy/ it came with
#   /opt/edgetag/current -> releases/…        the one in force: exchanged in one step, after its doctor has passed
#   /opt/edgetag/previous -> releases/…       the one before, for --rollback
#   /opt/edgetag/trial -> releases/…          the one before, until the service of the one in force was ready once
#
# Who interrupts it, at whatever line, leaves the release before in force; who kills it while the new one is on trial
# leaves that, and the next run tries it again, or goes back. A release is built under another name, and gets its own
# when it is whole.

set -euo pipefail
shopt -s inherit_errexit nullglob

readonly OPT=/opt/edgetag ETC=/etc/edgetag STATE=/var/lib/edgetag CREDENTIALS=/etc/credstore
readonly UNIT=edgetag.service TIMER=edgetag.timer UNITS=/etc/systemd/system
readonly SYSUSERS=/etc/sysusers.d/edgetag.conf RULES=/etc/udev/rules.d/70-edgetag-microphone.rules
readonly APPLIANCE=(journald.conf.d/edgetag.conf system.conf.d/edgetag.conf) # in /etc/systemd
readonly COMMAND=/usr/local/bin/edgetag DOCTOR=/usr/local/sbin/edgetag-doctor
readonly LOCK=/run/edgetag-install.lock PRIVATE=/run/edgetag-install
readonly READY_LIMIT_S=300 # a first full window takes seconds, a bundle's self-test on a small board up to minutes
readonly UNPACKED=4        # a venv with its bytecode takes so many times what its wheels take
readonly USAGE=2 UNSUITABLE=3 ROLLED_BACK=4 UNHEALTHY=5

usage() {
    cat <<'END'
Makes a sensor of a Debian 12: edgetag in /opt/edgetag, its service enabled and started.

  install.sh [--identity FILE] [--appliance] [--no-start]
  install.sh --rollback            back to the release before, which is kept
  install.sh --uninstall           leaves configuration, credentials and outbox
  install.sh --uninstall --purge   and these, too, and the user edgetag

  --identity FILE   what `provision.sh` made for this sensor: configuration, certificates, credentials
  --appliance       also journald.conf.d and system.conf.d: a bounded journal, the hardware watchdog
  --no-start        install and enable only; so, too, where systemd is not running (an image that is being built)

Again: repairs what is missing. With another archive: upgrades. The new release's doctor looks first, as the service
would run; where it fails what the old release passes, or the new service does not become ready, the old one stays.
/etc/edgetag/edgetag.yaml is never overwritten, and another sensor's identity than it says is refused.
It can be interrupted at any time, and run again: what was killed before the new service was ready is asked once more.

Exit codes: 0 done, and the doctor found nothing; 1 something failed, as said, and the release before is in force;
2 usage, or the identity cannot be used; 3 this machine is not suited, or the archive is damaged; 4 the new
release was not fit and the one before is in force again; 5 installed, but the service is not ready or the doctor
found something.
END
}

say() {
    echo "edgetag: $1"
}

fail() { # SENTENCE [EXIT CODE]
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

# -- what must be so ---------------------------------------------------------------------------------------

check_archive() {
    [ -e "$here/SHA256SUMS" ] || fail "this is no archive but a checkout: \`make archive\` makes one, with all \
that a sensor needs; unpack it on the sensor and run the install.sh in there" "$USAGE"
    (cd "$here" && sha256sum --check --quiet --strict SHA256SUMS) >&2 ||
        fail "the archive is damaged, as said above; copy and unpack it once more" "$UNSUITABLE"
}

check_root() {
    [ "$(id -u)" = 0 ] || fail "only root can do that: sudo $0 …" "$UNSUITABLE"
}

check_machine() {
    local is has
    is=$(dpkg --print-architecture 2>/dev/null) || fail "this is no Debian: there is no dpkg" "$UNSUITABLE"
    has=$(dpkg-deb --field "$here"/debs/libportaudio2_*.deb Architecture)
    [ "$is" = "$has" ] || fail "the archive is for $has, this system is $is: it needs another archive" "$UNSUITABLE"
    # shellcheck source=/dev/null
    is=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    [ "$is" = bookworm ] || fail "the archive is for Debian 12, bookworm; this system is ${is:-another}" "$UNSUITABLE"
    is=$(python3 -I -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "there is no python3, or but a minimal one: apt install python3" "$UNSUITABLE"
    [ "$is" = 3.11 ] || fail "python3 is $is, the archive's wheels are for Debian 12's 3.11" "$UNSUITABLE"
}

check_disk() {
    local needs has
    { mkdir --parents "$OPT/releases" && [ -w "$OPT/releases" ]; } 2>/dev/null ||
        fail "$OPT cannot be written: a root that is read-only must be made writable first" "$UNSUITABLE"
    needs=$(du --bytes --summarize "$here/wheels" | cut -f1)
    needs=$((needs * UNPACKED))
    has=$(df --output=avail --block-size=1 "$OPT" | tail -n 1)
    [ "$has" -ge "$needs" ] ||
        fail "$OPT has $((has / 1000000)) MB free, a release needs $((needs / 1000000)) MB" "$UNSUITABLE"
}

check_identity() { # FILE
    local listed kind name
    [ -r "$1" ] || fail "there is no file $1 that can be read" "$USAGE"
    listed=$(tar --list --verbose --file "$1" 2>/dev/null) || fail "$1 is no identity: tar cannot read it" "$USAGE"
    while read -r kind _ _ _ _ name; do
        case $kind$name in
            *..* | */*/*) ;;
            d*/ | -*/edgetag.yaml | -*/ca.crt | -*/sensor.crt) continue ;;
            -*/edgetag.mqtt-password | -*/edgetag.mqtt-key) continue ;;
        esac
        fail "$1 is no identity of provision.sh: it holds ${name:-nothing}" "$USAGE"
    done <<<"$listed"
    for name in edgetag.yaml ca.crt edgetag.mqtt-…; do
        [[ $listed == *"/${name%…}"* ]] || fail "$1 is no identity of provision.sh: it holds no $name" "$USAGE"
    done
}

# -- files -------------------------------------------------------------------------------------------------

put() { # SOURCE DESTINATION MODE OWNER:GROUP; in one step, and only where it is another one
    local aside
    if cmp --silent "$1" "$2" && [ "$(stat --format='%a %U:%G' "$2")" = "$3 $4" ]; then return; fi
    aside=$(dirname "$2")/.$(basename "$2").new
    if install -D --mode="$3" --owner="${4%:*}" --group="${4#*:}" "$1" "$aside" && sync "$aside" &&
        mv --force "$aside" "$2"; then
        changed=1
    else # the disk is full: what is there stays, also for `finish`, which nothing stops
        rm --force "$aside"
        return 1
    fi
}

put_default() { # PATH IN SHARE, DESTINATION; not where a person has changed it: some release brought it so
    [ ! -e "$2" ] || is_as_brought "$1" "$2" || return 0
    put "$OPT/current/share/$1" "$2" 644 root:root
}

remove_default() { # PATH IN SHARE, FILE
    if [ -n "$purge" ] || is_as_brought "$1" "$2"; then rm --force "$2"; fi
}

is_as_brought() { # PATH IN SHARE, FILE
    local release
    for release in "$OPT"/releases/*; do ! cmp --silent "$release/share/$1" "$2" || return 0; done
    return 1
}

link() { # TARGET NAME; in one step
    if [ "$(readlink "$2")" = "$1" ]; then return; fi
    ln --symbolic --force --no-dereference "$1" "$2.new" && mv --no-target-directory --force "$2.new" "$2" ||
        return
    changed=1
}

in_force() { # current|previous|trial: the name of the release it leads to, or nothing
    local target
    target=$(readlink "$OPT/$1") || return 0
    [ ! -d "$OPT/$target" ] || basename "$target"
}

proven() { # the name of the release in force; of the one before, if that is on trial
    local name
    name=$(in_force trial)
    echo "${name:-$(in_force current)}"
}

# -- a release ---------------------------------------------------------------------------------------------

install_packages() {
    local deb missing=()
    ! is_installed libportaudio2 || return 0
    for deb in "$here"/debs/*.deb; do
        is_installed "$(dpkg-deb --field "$deb" Package)" || missing+=("$deb")
    done
    say "installing PortAudio"
    DEBIAN_FRONTEND=noninteractive dpkg --install "${missing[@]}" >/dev/null ||
        fail "PortAudio cannot be installed; dpkg says above why"
}

is_installed() { # PACKAGE
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

intact() { # RELEASE
    [ -e "$1/share/MANIFEST" ] && (cd "$1" && sha256sum --check --status --strict share/MANIFEST)
}

build() { # RELEASE
    local partial=$1.partial pip=("$here"/wheels/pip-*.whl)
    python3 -I -m venv --without-pip "$partial"
    # pip runs from its own wheel: Debian's python3 has neither pip nor ensurepip.
    "$partial/bin/python" -I "${pip[0]}/pip" --isolated install --quiet --disable-pip-version-check --no-cache-dir \
        --root-user-action=ignore --no-warn-script-location --no-index --find-links="$here/wheels" edgetag ||
        fail "the wheels cannot be installed; pip says above why"
    # Scripts begin with the place of their python.
    grep --files-with-matches --binary-files=without-match "$partial" "$partial"/bin/* "$partial/pyvenv.cfg" |
        xargs sed --in-place "s|$partial|$1|g"
    mkdir "$partial/share"
    cp --recursive "$here/systemd" "$here/deploy" "$partial/share"
    (cd "$partial" && find . -type f -print0 | sort --zero-terminated | xargs -0 sha256sum) >"$partial.sums"
    mv "$partial.sums" "$partial/share/MANIFEST"
    sync --file-system "$partial"
    rename_whole "$1"
}

rename_whole() { # RELEASE; one that was damaged makes room, and nobody interrupts it in between: it may be in force
    trap '' INT TERM HUP
    [ ! -e "$1" ] || mv "$1" "$1.damaged.partial"
    mv "$1.partial" "$1"
    heed_interruptions
    sync --file-system "$1"
    changed=1
}

activate() { # NAME; what is in force, and with it what is systemd's and the user's
    local share=$OPT/releases/$1/share unit
    link "releases/$1" "$OPT/current"
    put "$share/systemd/edgetag.sysusers.conf" "$SYSUSERS" 644 root:root
    for unit in "$share"/systemd/*.service "$share"/systemd/*.timer; do
        put "$unit" "$UNITS/$(basename "$unit")" 644 root:root
    done
    put "$share/deploy/edgetag-doctor" "$DOCTOR" 755 root:root
    put_defaults
    mkdir --parents "$(dirname "$COMMAND")"
    link "$OPT/current/bin/edgetag" "$COMMAND"
    systemctl --quiet enable "$UNIT"
    sync --file-system "$OPT" /etc /usr # so that the power finds it whole
    ! runs_systemd || systemctl daemon-reload
    [ ! -e /run/udev/control ] || name_microphone
}

name_microphone() { # one that is plugged in already, too
    udevadm control --reload
    udevadm trigger --action=change --subsystem-match=sound --settle ||
        say "a microphone that is plugged in gets its name when it is plugged in again"
}

put_defaults() { # what a person may change: the microphone's rule, and, where they are wanted, the appliance's files
    local path
    put_default "deploy/$(basename "$RULES")" "$RULES"
    for path in "${APPLIANCE[@]}"; do
        if [ -n "$with_appliance" ] || [ -e "/etc/systemd/$path" ]; then
            put_default "deploy/appliance/$path" "/etc/systemd/$path"
        fi
    done
}

remove_defaults() {
    local path
    remove_default "deploy/$(basename "$RULES")" "$RULES"
    for path in "${APPLIANCE[@]}"; do
        remove_default "deploy/appliance/$path" "/etc/systemd/$path"
        remove_empty "/etc/systemd/$(dirname "$path")"
    done
}

remove_empty() { # FOLDER…; some may not be there
    rmdir --ignore-fail-on-non-empty "$@" 2>/dev/null || true
}

prune() { # releases to which nothing leads
    local release kept
    kept=" $(in_force current) $(in_force previous) $(in_force trial) "
    for release in "$OPT"/releases/*; do
        case $kept in
            *" $(basename "$release") "*) ;;
            *) rm --recursive --force "$release" ;;
        esac
    done
}

# -- what is this sensor's ---------------------------------------------------------------------------------

make_user() {
    put "$1/systemd/edgetag.sysusers.conf" "$SYSUSERS" 644 root:root
    systemd-sysusers "$SYSUSERS"
    install --directory --mode=750 --owner=root --group=edgetag "$ETC"
    install --directory --mode=700 --owner=root --group=root "$CREDENTIALS"
}

first_configuration() {
    local scratch
    [ ! -s "$ETC/edgetag.yaml" ] || return 0
    scratch=$(mktemp -p "$private")
    cat - "$here/deploy/edgetag.yaml" >"$scratch" <<'END'
# This sensor's own. Edit at least sensor.id, audio.device and mqtt.url, then: sudo edgetag-doctor
# and: sudo systemctl restart edgetag
#
END
    # Who reads a journal wants to know when a microphone was opened and a broker reached.
    sed -i 's/^  level: warning$/  level: info/' "$scratch"
    put "$scratch" "$ETC/edgetag.yaml" 640 root:edgetag
}

open_identity() { # FILE RELEASE; no sensor is given another's secret, or one that its configuration does not use
    local own=$ETC/edgetag.yaml its known
    mkdir "$private/identity"
    tar --extract --no-same-owner --strip-components=1 --directory="$private/identity" --file="$1"
    its=$(owner "$private/identity/edgetag.yaml" "$2") ||
        fail "the configuration in $1 cannot be used, as said above" "$USAGE"
    [ -s "$own" ] || return 0
    known=$(owner "$own" "$2") || fail "$own cannot be used, as said above: mend it, or move it away first" "$USAGE"
    [ "$its" = "$known" ] || fail "$1 has $its, but $own has $known; if this sensor is to become that one, \
move $own away first" "$USAGE"
}

owner() { # CONFIGURATION RELEASE: whose it is, and which secret it has
    env --ignore-environment "$2/bin/edgetag" config show --config "$1" |
        sed --quiet --regexp-extended 's/  # .*//; /credential: null$/d; s/^  ((id|(password|key)_credential): )/\1/p' |
        paste --serial --delimiters=' '
}

take_identity() { # FILE, opened; the secrets last
    local folder=$private/identity file
    take_configuration "$folder/edgetag.yaml"
    for file in "$folder"/ca.crt "$folder"/sensor.crt; do
        [ ! -f "$file" ] || put "$file" "$ETC/$(basename "$file")" 640 root:edgetag
    done
    for file in "$folder"/edgetag.mqtt-*; do
        put "$file" "$CREDENTIALS/$(basename "$file")" 600 root:root
    done
    sync --file-system "$ETC" "$CREDENTIALS"
    say "$1 is not needed here any more, and it holds a secret: rm $1"
}

take_configuration() { # FILE
    if [ ! -s "$ETC/edgetag.yaml" ]; then
        put "$1" "$ETC/edgetag.yaml" 640 root:edgetag
    elif ! cmp --silent "$1" "$ETC/edgetag.yaml"; then
        put "$1" "$ETC/edgetag.yaml.new" 640 root:edgetag
        say "$ETC/edgetag.yaml was kept; the identity's own is beside it as edgetag.yaml.new"
    fi
}

# -- the service -------------------------------------------------------------------------------------------

runs_systemd() {
    [ -d /run/systemd/system ]
}

stop() { # who is killed while the service is stopped leaves it to the timer, which starts it after five minutes
    systemctl --quiet stop "$UNIT"
    systemctl --quiet start "$TIMER" || true
}

begin() { # to start it; however often that was tried
    systemctl reset-failed "$UNIT" 2>/dev/null || true
    systemctl start --no-block "$UNIT"
}

start() { # true once it says that it is ready
    local waited_s
    begin
    for ((waited_s = 0; waited_s < READY_LIMIT_S; waited_s++)); do
        case $(systemctl show --property=SubState --value "$UNIT") in
            running | reload) return 0 ;;
            auto-restart | failed) return 1 ;;
        esac
        sleep 1
    done
    return 1
}

last_words() { # of a service that has ended
    journalctl --unit="$UNIT" --lines=3 --output=cat --no-pager 2>/dev/null | paste --serial --delimiters=' '
}

examined() { # NAME REPORT: its doctor's, as the service, an object a line; true if it came to an end
    local release=$OPT/releases/$1 exit_code=0 first_failure
    "$release/share/deploy/edgetag-doctor" --release "$release" --json >"$2" || exit_code=$?
    first_failure=$(sed --quiet 's/.*"verdict":"failed".*"exit_code":\([0-9]*\).*/\1/p' "$2" | head --lines=1)
    [ -s "$2" ] && [ "$exit_code" = "${first_failure:-0}" ]
}

checks() { # REPORT VERDICTS: the names of those that ended so
    sed --quiet --regexp-extended "s/^\{\"check\":\"([^\"]*)\",\"verdict\":\"($2)\".*/\1/p" "$1" | sort
}

worse() { # NEW OLD: the checks that the new release's doctor fails and the old one's passes
    local new=$private/new.json old=$private/old.json
    if ! examined "$1" "$new"; then
        ! examined "$2" "$old" || echo "the doctor itself"
    elif [ -n "$(checks "$new" failed)" ] && examined "$2" "$old"; then
        comm -12 <(checks "$new" failed) <(checks "$old" 'ok|warning')
    fi
}

exchange() { # NEW OLD: the service of the one for that of the other, or, by `finish`, back
    local failed
    fallback=$2
    stop
    say "asking the doctor of $1"
    failed=$(worse "$1" "$2" | paste --serial --delimiters=,)
    [ -z "$failed" ] || fail "$1 fails what $2 passes ($failed)" "$ROLLED_BACK"
    link "releases/$2" "$OPT/trial"
    sync --file-system "$OPT"
    stop # once more: the timer may have started the old one while the doctors looked
    activate "$1"
    start || fail "the service of $1 does not become ready: $(last_words)" "$ROLLED_BACK"
    fallback=
    link "releases/$2" "$OPT/previous"
}

finish() { # whatever happened: nothing half done stays, and a service that was stopped runs
    local exit_code=$?
    trap '' INT TERM HUP
    set +e
    if [ -n "$fallback" ]; then
        stop
        activate "$fallback"
        [ "$(in_force current)" != "$fallback" ] || rm --force "$OPT/trial"
        prune
        begin
        say "$(in_force current) is in force"
    fi
    [ -z "$private" ] || remove_rests
    exit "$exit_code"
}

remove_rests() { # also of one that was killed
    rm --recursive --force "$private" "$OPT"/releases/*.partial*
}

# -- the three actions -------------------------------------------------------------------------------------

install_release() {
    local name version old
    check_archive
    check_machine
    [ -z "$identity" ] || check_identity "$identity"
    check_root
    alone
    version=$(basename "$here"/wheels/edgetag-*.whl | cut -d- -f2)
    name=$version-$(sha256sum "$here/SHA256SUMS" | cut -c1-8)
    old=$(proven)
    if ! intact "$OPT/releases/$name"; then
        check_disk
        say "installing $name"
        build "$OPT/releases/$name"
    fi
    [ -z "$identity" ] || open_identity "$identity" "$OPT/releases/$name"
    install_packages
    make_user "$OPT/releases/$name/share"
    [ -z "$identity" ] || take_identity "$identity"
    first_configuration
    put_in_force "$name" "$old"
    prune
    [ -z "$with_appliance" ] || ! runs_systemd || systemctl try-restart systemd-journald.service
    if [ -n "$no_start" ] || ! runs_systemd; then
        say "installed and enabled; it starts when this system boots, or with: systemctl restart edgetag"
        return
    fi
    report
}

put_in_force() { # NEW OLD; there may be no old one, or it is the same
    if [ -n "$no_start" ] || ! runs_systemd; then
        if [ -n "$2" ] && [ "$1" != "$2" ]; then link "releases/$2" "$OPT/previous"; fi
        activate "$1"
    elif [ -n "$2" ] && [ "$1" != "$2" ]; then
        exchange "$1" "$2"
    else
        activate "$1"
        if [ -n "$changed" ] || ! systemctl --quiet is-active "$UNIT"; then stop; fi
        start || not_ready=1
    fi
    rm --force "$OPT/trial"
}

report() {
    local is_fit=1
    if [ -n "$not_ready" ]; then say "the service is not ready: $(last_words)"; fi
    "$DOCTOR" || is_fit=
    say "its log: journalctl -u edgetag -f; its configuration: $ETC/edgetag.yaml, then systemctl restart edgetag"
    if [ -z "$is_fit" ] || [ -n "$not_ready" ]; then exit "$UNHEALTHY"; fi
}

rollback() {
    local new old
    check_root
    alone
    new=$(proven) old=$(in_force current)
    [ "$new" != "$old" ] || new=$(in_force previous)
    if [ -z "$new" ] || [ "$new" = "$old" ]; then fail "no release before this one is kept" "$UNSUITABLE"; fi
    ! runs_systemd || stop
    activate "$new"
    link "releases/$old" "$OPT/previous"
    rm --force "$OPT/trial"
    say "$new is in force"
    ! runs_systemd || start || fail "its service does not become ready: $(last_words)" "$UNHEALTHY"
}

uninstall() {
    check_root
    alone
    [ ! -e "$UNITS/$UNIT" ] || systemctl --quiet disable "$UNIT"
    ! runs_systemd || systemctl --quiet stop "$UNIT" 2>/dev/null || true
    remove_defaults
    rm --force "$UNITS/$UNIT" "$UNITS/$TIMER" "$SYSUSERS" "$COMMAND" "$DOCTOR"
    remove_empty "$(dirname "$SYSUSERS")"
    rm --recursive --force "$OPT" /run/edgetag
    ! runs_systemd || systemctl daemon-reload
    [ ! -e /run/udev/control ] || udevadm control --reload
    if [ -z "$purge" ]; then
        say "uninstalled; configuration, credentials and outbox are kept ($ETC, $CREDENTIALS/edgetag.*, $STATE)"
        return
    fi
    rm --recursive --force "$ETC"
    rm --force "$CREDENTIALS"/edgetag.*
    [ ! -d "$STATE" ] || find "$STATE" -mindepth 1 -delete # it may be a file system of its own
    remove_empty "$CREDENTIALS" "$STATE"
    ! id edgetag >/dev/null 2>&1 || userdel edgetag
    say "uninstalled, with configuration, credentials and outbox"
}

alone() { # a second install.sh does not get in between; and a place that is no disk's, for secrets
    (umask 077 && : >>"$LOCK") # who may read it may lock it
    exec 9>>"$LOCK"
    flock --nonblock 9 || fail "another install.sh is running"
    private=$PRIVATE
    remove_rests
    mkdir --mode=700 "$private"
}

main() {
    local action=install_release
    here=$(cd "$(dirname "$0")" && pwd)
    identity='' with_appliance='' no_start='' purge=''
    changed='' not_ready='' fallback='' private=''
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage && exit ;;
            --identity)
                [ $# -gt 1 ] || fail "--identity needs a file" "$USAGE"
                identity=$2
                shift
                ;;
            --appliance) with_appliance=1 ;;
            --no-start) no_start=1 ;;
            --rollback) action=rollback ;;
            --uninstall) action=uninstall ;;
            --purge) purge=1 ;;
            *) fail "$1 is no option; --help says what there is" "$USAGE" ;;
        esac
        shift
    done
    [ -z "$purge" ] || [ "$action" = uninstall ] || fail "--purge goes with --uninstall only" "$USAGE"
    umask 022
    unset PYTHONPATH PYTHONHOME
    export LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
    trap finish EXIT
    heed_interruptions
    "$action"
}

heed_interruptions() {
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

main "$@"
