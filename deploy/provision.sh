#!/bin/bash
# Identities of sensors, from the authority that their broker trusts. Runs where that is, never on a sensor.

set -euo pipefail
umask 077
export LC_ALL=C # [A-Z] is 26 letters, wherever this runs

readonly AUTHORITY_DAYS=7300 # longer than any certificate that it signs
readonly SERVER_DAYS=825     # whoever runs a broker can renew this in a minute
readonly SENSOR_DAYS=3650    # nobody climbs a lamp post for a date; --revoke is what ends a sensor that is lost
ACL=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/mosquitto/acl

usage() {
    cat << 'END'
provision.sh NAME --broker HOST[:PORT] [--password | --certificate] [--renew]
             [--device DEVICE] [--days N]
provision.sh --reader NAME [--renew]
provision.sh --server HOST
provision.sh --revoke NAME

NAME            A sensor's identity, OUT/NAME.tar, for `install.sh --identity` there: its
                configuration, the authority's certificate and a secret. NAME is its id:
                letters, digits, . _ -, at most 64 of them.
  --broker        where it publishes, by TLS; without a port, 8883
  --password      a random password (this, if neither is said)
  --certificate   a key, and a certificate for it (P-256) in the name of NAME
  --renew         NAME has one already: give it another. A password that it had is void,
                  a certificate that it had stays good.
  --device        its microphone (audio.device), e.g. card:street; the default if absent
  --days          how long the certificate is good; 3650 if absent
--reader NAME   OUT/NAME.password, for who reads at the broker and is no sensor; what it
                may read is in mosquitto/acl.
--server HOST   DIR/server.key and DIR/server.crt of a broker that is called HOST, good
                for 825 days. They replace those that are there.
--revoke NAME   NAME is let in no more: its certificates are revoked, its password is
                struck out.

  --ca DIR        the authority, made when it is first needed; ca if absent
  --out DIR       . if absent

Of DIR the broker needs server.key, server.crt, ca.crt, ca.crl (what is revoked) and
passwords (hashed), anew after each change; mosquitto/README.md says how. ca.key is for
this script alone: whoever has it can be every sensor.

Exit codes: 0 done; 1 something failed (openssl, disk); 2 usage, or a name that cannot
be; 129, 130, 143 interrupted. After all but 0 nobody has another identity than before.
END
}

refuse() {
    printf 'provision.sh: %s\n' "$1" >&2
    exit 2
}

fail() {
    printf 'provision.sh: %s\n' "$1" >&2
    exit 1
}

# -- what is asked for -----------------------------------------------------------------------------------

task='' name='' broker='' kind='' device='' days='' ca=ca out=. is_renewal=false

parse() {
    while (($#)); do
        case $1 in
        --help)
            usage
            exit
            ;;
        --renew) is_renewal=true ;;
        --password | --certificate) take_kind "${1#--}" ;;
        --broker | --device | --days | --ca | --out | --reader | --server | --revoke)
            [[ -n ${2-} ]] || refuse "$1 needs a value; --help says which"
            take_value "$1" "$2"
            shift
            ;;
        -*) refuse "there is no ${1@Q}; --help says what there is" ;;
        *) take_task sensor "$1" ;;
        esac
        shift
    done
}

take_kind() {
    [[ -z $kind || $kind == "$1" ]] || refuse "--password and --certificate: one of them is enough"
    kind=$1
}

take_value() {
    case $1 in
    --broker) broker=$2 ;;
    --device) device=$2 ;;
    --days) days=$2 ;;
    --ca) ca=$2 ;;
    --out) out=$2 ;;
    *) take_task "${1#--}" "$2" ;;
    esac
}

take_task() {
    [[ -z $task ]] || refuse "one at a time: there is ${2@Q} beside ${name@Q}"
    task=$1 name=$2
}

check() {
    [[ -n $task ]] || refuse "expected the name of a sensor; --help says more"
    case $task in
    sensor) check_sensor ;;
    server) check_host "$name" ;;
    *) check_name ;;
    esac
    [[ $task == sensor || -z $broker$kind$device$days ]] || refuse "--$task takes --ca and --out only"
    [[ $task == sensor || $task == reader ]] || ! $is_renewal || refuse "--renew is for sensors and readers"
    [[ $task == server || $task == revoke || -w $out/. ]] || refuse "--out ${out@Q} is no folder in which anything can be written"
    command -v openssl > /dev/null || fail "openssl is not installed: sudo apt install openssl"
}

check_name() {
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        refuse "${name@Q} is no name: expected 1 to 64 letters, digits, . _ -, the first a letter or a digit"
}

check_sensor() {
    check_name
    ! grep -Fqsx "user $name" "$ACL" || refuse "$name has a reader's rights in $ACL: choose another name"
    [[ -n $broker ]] || refuse "--broker HOST[:PORT] is missing: where does $name publish?"
    check_broker
    [[ ! $device =~ [[:cntrl:]] ]] || refuse "--device holds a control character"
    [[ $kind == certificate || -z $days ]] || refuse "--days is for --certificate: a password has no end"
    [[ ${days:=$SENSOR_DAYS} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--days ${days@Q}: expected a number of days"
    [[ ! -e $out/$name.tar ]] || refuse "$out/$name.tar is there already: take it to its sensor, or delete it"
}

check_broker() {
    local host=$broker port=8883
    if [[ $broker =~ ^(.*[^:]):([0-9]{1,5})$ ]]; then
        host=${BASH_REMATCH[1]} port=$((10#${BASH_REMATCH[2]}))
    fi
    check_host "$host"
    ((port >= 1 && port <= 65535)) || refuse "--broker ${broker@Q}: expected a port from 1 to 65535"
}

check_host() {
    [[ $1 =~ ^([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+\])$ ]] ||
        refuse "${1@Q} is no host: expected a name or an address, without mqtts://, in [] if it is one of IPv6"
}

# -- the authority ---------------------------------------------------------------------------------------

# What the authority knows is changed in a copy, $work, and what is handed out is made in $made: both take their
# places when all is done. They have their names before they are there, so that who is interrupted leaves neither.
work='' made=''
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

clean() {
    trap '' INT TERM HUP # the second time, too
    rm -rf "$work" "$made"
}

open_authority() {
    [[ -e $ca/ca.key || -e $ca/ca.crt ]] || make_authority
    for file in ca.key ca.crt; do
        [[ -r $ca/$file ]] || refuse "$ca/$file cannot be read: an authority is both, ca.key and ca.crt"
    done
    ca=$(readlink -f "$ca")
    exec 9< "$ca"
    flock 9 # one at a time
    work=$ca/.work.$$
    mkdir "$work" "$work/issued"
    printf '01\n' > "$work/crlnumber"
    touch "$work/index.txt" "$work/passwords"
    for file in index.txt crlnumber passwords ca.crl; do
        [[ ! -e $ca/$file ]] || cp "$ca/$file" "$work/"
    done
    [[ -e $work/ca.crl ]] || list_revoked
    [[ $task == sensor || $task == reader ]] || out=$ca
    made=$out/.provision.$$
    mkdir "$made"
}

make_authority() {
    [[ $task != revoke ]] || refuse "there is no authority in ${ca@Q}, so there is nothing to revoke"
    work=$ca.$$
    mkdir "$work"
    configure_openssl
    quietly openssl req -x509 -config "$work/openssl.cnf" -extensions authority -subj "/CN=edgetag authority" \
        -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$AUTHORITY_DAYS" \
        -keyout "$work/ca.key" -out "$work/ca.crt"
    rm "$work/openssl.cnf" "$work/said"
    if mv -T "$work" "$ca" 2> /dev/null; then
        echo "$ca: a new authority; keep ca.key from everybody"
    else # somebody else was faster, or something else is there
        [[ -e $ca/ca.key ]] || refuse "${ca@Q} holds other things than an authority: choose another --ca"
        rm -r "$work"
    fi
}

take_over() {
    trap '' INT TERM HUP # all of it, once it has begun
    mkdir -p "$ca/issued"
    find "$work/issued" -type f -exec mv {} "$ca/issued/" \;
    (cd "$work" && mv index.txt crlnumber passwords ca.crl "$ca/")
    find "$made" -type f -exec mv {} "$out/" \;
}

check_whether_known() {
    if has_password || [[ -n $(serials) ]]; then
        $is_renewal || refuse "$name has an identity already: --renew gives it another one, --revoke takes it away"
    else
        ! $is_renewal || refuse "$name has no identity yet, so there is none to renew"
    fi
}

# -- certificates ----------------------------------------------------------------------------------------

configure_openssl() {
    cat > "$work/openssl.cnf" << END
[req]
distinguished_name = name
[name]
[ca]
default_ca = here
[here]
database = index.txt
crlnumber = crlnumber
new_certs_dir = issued
rand_serial = yes
unique_subject = no
default_md = sha256
policy = policy
[policy]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[sensor]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = ${1-DNS:localhost}
END
}

quietly() {
    "$@" 2> "$work/said" || fail "openssl failed: $(tr '\n' ' ' < "$work/said")"
}

sign() {
    (cd "$work" && quietly openssl ca -config openssl.cnf -batch -cert "$ca/ca.crt" -keyfile "$ca/ca.key" "$@")
}

# A key and its certificate: issue NAME DAYS KEY_FILE CERTIFICATE_FILE
issue() {
    openssl x509 -noout -checkend $(($2 * 86400)) -in "$ca/ca.crt" > /dev/null ||
        refuse "a certificate of $2 days would outlive the authority, which ends on $(end_of "$ca/ca.crt")"
    quietly openssl req -config "$work/openssl.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -subj "/CN=$1" -keyout "$3" -out "$work/request"
    sign -extensions "$task" -days "$2" -notext -in request -out certificate
    mv "$work/certificate" "$4"
}

end_of() {
    openssl x509 -noout -enddate -dateopt iso_8601 -in "$1" | sed 's/notAfter=//; s/ .*//'
}

# Good for as long as the authority: to a broker a list that has ended is one that has everybody.
list_revoked() {
    configure_openssl
    sign -gencrl -crldays "$AUTHORITY_DAYS" -out ca.crl
}

serials() {
    awk -F '\t' -v subject="/CN=$name" '$1 == "V" && $6 == subject { print $4 }' "$work/index.txt"
}

# -- passwords -------------------------------------------------------------------------------------------

# A random one in a file, and in the broker's list a salted SHA-512 of it, in Mosquitto's notation. A slow hash
# would protect no better: among 2^192 there is nothing to guess.
give_password() {
    local salt digest
    openssl rand -hex 24 > "$1"
    salt=$(openssl rand -base64 12)
    digest=$({ tr -d '\n' < "$1" && base64 -d <<< "$salt"; } | openssl dgst -sha512 -binary | base64 -w 0)
    printf "%s:\$6\$%s\$%s\n" "$name" "$salt" "$digest" >> "$work/passwords"
}

has_password() {
    awk -F : -v name="$name" '$1 == name { found = 1 } END { exit !found }' "$work/passwords"
}

strike_password() {
    awk -F : -v name="$name" '$1 != name' "$work/passwords" > "$work/others"
    mv "$work/others" "$work/passwords"
}

# -- what is done ----------------------------------------------------------------------------------------

make_sensor() {
    local folder=$work/$name secret
    check_whether_known
    strike_password
    mkdir "$folder"
    cp "$ca/ca.crt" "$folder/"
    write_settings > "$folder/edgetag.yaml"
    if [[ $kind == certificate ]]; then
        configure_openssl
        issue "$name" "$days" "$folder/edgetag.mqtt-key" "$folder/sensor.crt"
        secret="a certificate that is good until $(end_of "$folder/sensor.crt"), by which the broker knows it"
    else
        give_password "$folder/edgetag.mqtt-password"
        secret="a password, which the broker knows when it has $ca/passwords"
    fi
    tar --create --file "$made/$name.tar" --directory "$work" --owner root:0 --group root:0 "$name" ||
        fail "$name.tar cannot be written"
    take_over
    echo "$out/$name.tar: $name, with $secret"
}

write_settings() {
    echo "# What is $name's own; every other setting has its default."
    printf 'sensor:\n  id: %s\n' "$(quoted "$name")"
    [[ -z $device ]] || printf 'audio:\n  device: %s\n' "$(quoted "$device")"
    printf 'mqtt:\n  url: %s\n' "$(quoted "mqtts://$broker")"
    if [[ $kind == certificate ]]; then
        printf '  cert_file: /etc/edgetag/sensor.crt\n  key_credential: edgetag.mqtt-key\n'
    else
        printf '  user: %s\n  password_credential: edgetag.mqtt-password\n' "$(quoted "$name")"
    fi
    printf '  ca_file: /etc/edgetag/ca.crt\n'
    printf 'log:\n  level: info\n' # so that the journal also says what is well again
}

quoted() {
    printf "'%s'" "${1//\'/\'\'}"
}

make_reader() {
    check_whether_known
    strike_password
    give_password "$made/$name.password"
    take_over
    echo "$out/$name.password: for $name alone, whom the broker knows when it has $ca/passwords"
}

make_server() {
    local host=${name//[\[\]]/} kind=DNS
    [[ ! $host =~ ^[0-9.]+$ && $host != *:* ]] || kind=IP
    configure_openssl "$kind:$host"
    issue "${host:0:64}" "$SERVER_DAYS" "$made/server.key" "$made/server.crt"
    take_over
    echo "$out/server.key, $out/server.crt: of the broker $host, good until $(end_of "$out/server.crt")"
}

make_revoke() {
    local certificates
    certificates=$(serials)
    [[ -n $certificates ]] || has_password || refuse "$name has no identity of this authority"
    configure_openssl
    for serial in $certificates; do
        sign -revoke "$ca/issued/$serial.pem"
    done
    sleep 1 # of two lists of one second a broker that had both would go by the first
    list_revoked
    strike_password
    take_over
    echo "$name is let in no more when the broker has $ca/ca.crl and $ca/passwords"
}

parse "$@"
check
open_authority
"make_$task"
