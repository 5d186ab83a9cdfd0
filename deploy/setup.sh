#!/usr/bin/env bash
# Makes a bare Debian 12 (bash, apt; no Python, no curl) ready to run xacoord, its demo and its tests.
#
#   deploy/setup.sh [--engines mysql,mariadb] [--dev|--runtime]
#
# 1. Debian packages, only those that are missing, none of which has a service to start;
# 2. `.venv` with hash-checked requirements (--dev, the default, adds the test tools; --runtime does not);
# 3. database binaries: an installed server when there is a suitable one, else binaries without a service. MySQL, which
#    Debian 12 does not have, is unpacked with all its libraries into the user's cache and touches nothing else;
# 4. `.venv/xacoord-engines.json`, which tells deploy/private_servers.py how to start each engine.
#
# Safe to repeat: what is already there is left alone, and a run with nothing to do takes well under a second.
# With --runtime, MySQL that cannot be had is reported and left out as long as another engine is there; with --dev it is
# an error. Root, or sudo, is needed only while Debian packages are missing.
#
# Environment: PYTHON (the interpreter for .venv; default: Debian's python3), XDG_CACHE_HOME.
# Sourcing this file defines the functions and does nothing.

set -euo pipefail

xacoord_repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
xacoord_venv=$xacoord_repository/.venv
xacoord_cache=${XDG_CACHE_HOME:-$HOME/.cache}/xacoord
xacoord_log=$xacoord_cache/setup.log
# The first MySQL whose prepared branches survive a crash with the binary log on.
xacoord_mysql_minimum=8.0.30

step() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }
fail() { printf '[%3d s] set-up failed: %s\n' "$SECONDS" "$*" >&2; exit 1; }

# Runs a command silently; shows the end of its output when it fails.
quietly() {
    local status=0
    "$@" >"$xacoord_log" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        printf '%s: exit status %d\n' "$*" "$status" >&2
        tail -n 25 "$xacoord_log" >&2
    fi
    return "$status"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env=DEBIAN_FRONTEND "$@"
    else
        echo "this step needs root or sudo: $*" >&2
        return 1
    fi
}

# --- 1. Debian packages ---------------------------------------------------------------------------------------------

apt_install() {
    local name missing=()
    for name in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    step "Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quietly as_root apt-get -q -o Acquire::Retries=3 update || return
    # --no-remove: never trade an installed database for ours.
    quietly as_root apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 --no-install-recommends --no-remove \
        install "${missing[@]}"
}

# --- 2. Python ------------------------------------------------------------------------------------------------------

python_interpreter() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} /usr/bin/python3 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 with venv"
}

pip_install() { # venv, requirement arguments
    local venv=$1
    shift
    # Build tools are locked too (requirements/build.txt), hence no isolated build environments, which pip would fill
    # with whatever is newest.
    quietly "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --retries 5 \
        --no-build-isolation "$@"
}

# Makes a virtual environment, or keeps one of the same interpreter: someone may be using it.
make_venv() { # interpreter, directory
    if [[ $("$2/bin/python" -c 'import sys, pip; print(sys.base_prefix, sys.version)' 2>/dev/null) != \
        "$("$1" -c 'import sys; print(sys.base_prefix, sys.version)')" ]]; then
        quietly "$1" -m venv --clear "$2"
    fi
}

# True when `.venv` was made from these lock files, for this mode or (--runtime) for the larger one.
python_stamp_matches() {
    local mode=$1 stamp=$2
    [[ -x $xacoord_venv/bin/python && -f $xacoord_venv/xacoord-stamp ]] || return 1
    case $(cat "$xacoord_venv/xacoord-stamp") in
        "$mode $stamp" | "dev $stamp") "$xacoord_venv/bin/python" -c 'import MySQLdb' 2>/dev/null ;;
        *) return 1 ;;
    esac
}

python_environment() { # dev or runtime
    local mode=$1 python stamp
    python=$(python_interpreter)
    stamp=$({
        "$python" -VV
        readlink -f "$python"
        echo "$xacoord_repository"
        cat "$xacoord_repository"/pyproject.toml "$xacoord_repository"/requirements/*.txt
    } | sha256sum | cut -d ' ' -f 1)
    if python_stamp_matches "$mode" "$stamp"; then
        return
    fi
    step "Python environment (.venv, $mode, $("$python" -V))"
    rm -f "$xacoord_venv/xacoord-stamp"
    make_venv "$python" "$xacoord_venv" || return
    pip_install "$xacoord_venv" --require-hashes -r "$xacoord_repository/requirements/build.txt" || return
    step "Python packages, hash-checked"
    pip_install "$xacoord_venv" --require-hashes -r "$xacoord_repository/requirements/$mode.txt" || return
    pip_install "$xacoord_venv" --no-deps --editable "$xacoord_repository" || return
    if [[ $mode == dev ]]; then
        step "Python packages of the code generators (.venv/codegen)"
        make_venv "$python" "$xacoord_venv/codegen" || return
        pip_install "$xacoord_venv/codegen" --require-hashes -r "$xacoord_repository/requirements/codegen.txt" || return
    fi
    echo "$mode $stamp" >"$xacoord_venv/xacoord-stamp"
}

# --- 3. Database and test binaries ----------------------------------------------------------------------------------

# Prints the version of a server binary, e.g. 9.7.4, or nothing when it does not run.
server_version() { "$@" --no-defaults --version 2>/dev/null | sed -nE 's/.* Ver ([0-9]+\.[0-9]+\.[0-9]+).*/\1/p'; }

version_at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }

# An installed MySQL (not MariaDB, which also calls itself mysqld) that is recent enough.
installed_mysql() {
    local binary version
    binary=$(command -v mysqld) || return 1
    ! "$binary" --no-defaults --version 2>/dev/null | grep -qi mariadb || return 1
    version=$(server_version "$binary")
    [[ -n $version ]] && version_at_least "$version" "$xacoord_mysql_minimum" || return 1
    echo "$binary"
}

# The Debian mirror that this machine's own apt uses.
debian_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F '|' '$1 == "Debian" && $2 == "Debian" && $3 !~ /-/ { print $4; exit }'
}

# Downloads Debian's mysql-server-core with everything it depends on and unpacks it below a directory. apt runs with a
# state directory of its own and an empty list of installed packages, so that the machine's packages play no part.
unpack_mysql() { # suite, directory
    local suite=$1 directory=$2 apt=$2/apt mirror archive
    mirror=$(debian_mirror)
    if [[ -z $mirror ]]; then
        quietly as_root apt-get -q -o Acquire::Retries=3 update || return
        mirror=$(debian_mirror)
    fi
    if [[ -z $mirror ]]; then
        echo "apt knows no Debian mirror here" >&2
        return 1
    fi
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$directory/prefix"
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    local options=(
        -q -o Acquire::Retries=3 -o APT::Sandbox::User=root
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
        -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    )
    quietly apt-get "${options[@]}" update || return
    quietly apt-get "${options[@]}" -y --download-only --no-install-recommends install mysql-server-core || return
    for archive in "$apt"/cache/archives/*.deb; do
        quietly dpkg-deb --extract "$archive" "$directory/prefix" || return
    done
    rm -rf "$apt" "$directory"/prefix/usr/share/{doc,man,perl,locale} "$directory"/prefix/usr/lib/*/perl*
}

have_mysql() { [[ -d $xacoord_cache/mysql ]] || installed_mysql >/dev/null; }

xacoord_mysql() {
    local suite binary unpacked
    # The unpacked copy, then the installed one, then a new copy: a machine keeps the version that it began with.
    if ! have_mysql; then
        for suite in unstable testing; do
            step "MySQL from Debian $suite, into ${xacoord_cache/#"$HOME"/\~}/mysql"
            unpacked=$xacoord_cache/mysql.$$
            rm -rf "$unpacked"
            if unpack_mysql "$suite" "$unpacked" && mysql_prefix_runs "$unpacked/prefix"; then
                mv -T "$unpacked" "$xacoord_cache/mysql"
                break
            fi
            rm -rf "$unpacked"
        done
    fi
    if [[ -d $xacoord_cache/mysql ]]; then
        describe_unpacked_mysql "$xacoord_cache/mysql/prefix"
    else
        binary=$(installed_mysql) || return
        describe_engine mysql "$(server_version "$binary")" "$binary" --
    fi
}

# Sets mysql_command: the unpacked server, run by the dynamic loader and with the libraries that came with it, because
# a mixture with the machine's own C library does not run.
mysql_command() {
    local prefix=$1 loader
    loader=$(find "$prefix/usr/lib" -path '*-linux-gnu/ld-linux*.so.*' | head -n 1)
    mysql_command=("$loader" --library-path "${loader%/*}" "$prefix/usr/sbin/mysqld")
}

mysql_prefix_runs() {
    mysql_command "$1"
    [[ -n $(server_version "${mysql_command[@]}") ]]
}

describe_unpacked_mysql() {
    local prefix=$1
    mysql_command "$prefix"
    describe_engine mysql "$(server_version "${mysql_command[@]}")" "${mysql_command[@]}" -- \
        "--basedir=$prefix/usr" "--lc-messages-dir=$prefix/usr/share/mysql" \
        "--character-sets-dir=$prefix/usr/share/mysql/charsets" "--plugin-dir=$prefix/usr/lib/mysql/plugin"
}

have_mariadb() { command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null; }

xacoord_mariadb() {
    if ! have_mariadb; then
        apt_install mariadb-server-core mariadb-client-core || return
    fi
    local binary
    binary=$(command -v mariadbd)
    describe_engine mariadb "$(server_version "$binary")" "$binary" --
}

download_package() ( # package, directory
    cd "$2" && quietly apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$1"
)

# promtool, without the service that its Debian package would start.
xacoord_promtool() {
    local promtool=$xacoord_cache/promtool/usr/bin/promtool
    if [[ ! -x $promtool ]]; then
        step "promtool"
        local unpacked=$xacoord_cache/promtool.$$
        rm -rf "$unpacked"
        mkdir -p "$unpacked"
        if ! download_package prometheus "$unpacked"; then
            # The package lists are missing, or older than the mirror.
            quietly as_root apt-get -q -o Acquire::Retries=3 update || return
            download_package prometheus "$unpacked" || return
        fi
        quietly dpkg-deb --extract "$unpacked"/prometheus_*.deb "$unpacked" || return
        find "$unpacked" -type f ! -path '*/usr/bin/promtool' -delete
        rm -rf "$xacoord_cache/promtool"
        mv -T "$unpacked" "$xacoord_cache/promtool"
    fi
    ln -sf "$promtool" "$xacoord_venv/bin/promtool"
}

# --- 4. The description that deploy/private_servers.py reads --------------------------------------------------------

json_strings() {
    local text separator=''
    for text in "$@"; do
        text=${text//\\/\\\\}
        printf '%s"%s"' "$separator" "${text//\"/\\\"}"
        separator=', '
    done
}

# describe_engine NAME VERSION COMMAND... -- ARGUMENT...: one line of xacoord-engines.json, kept in xacoord_engines.
xacoord_engines=()
describe_engine() {
    local name=$1 version=$2 command=()
    shift 2
    while [[ $1 != -- ]]; do
        command+=("$1")
        shift
    done
    shift
    [[ -n $version ]] || return 1
    xacoord_engines+=("  \"$name\": {\"version\": \"$version\", \"mysqld\": [$(json_strings "${command[@]}")],
    \"arguments\": [$(json_strings "$@")]}")
    xacoord_summary+=" $name $version"
}

write_engines() {
    local line separator='' file=$xacoord_venv/xacoord-engines.json
    {
        echo '{'
        for line in "${xacoord_engines[@]}"; do
            printf '%s%s' "$separator" "$line"
            separator=$',\n'
        done
        printf '\n}\n'
    } >"$file.new"
    mv "$file.new" "$file"
}

main() {
    local engines=mysql,mariadb mode=dev engine packages
    while (($#)); do
        case $1 in
            --engines) engines=${2:?--engines needs a list} && shift 2 ;;
            --engines=*) engines=${1#*=} && shift ;;
            --dev) mode=dev && shift ;;
            --runtime) mode=runtime && shift ;;
            -h | --help) sed -nE '2,/^$/s/^# ?//p' "${BASH_SOURCE[0]}" && return ;;
            *) fail "unknown argument $1 (usage: deploy/setup.sh [--engines mysql,mariadb] [--dev|--runtime])" ;;
        esac
    done
    [[ $engines =~ ^(mysql|mariadb)(,(mysql|mariadb))?$ ]] || fail "unknown engines: $engines"
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # servers live there; an ordinary user's PATH lacks it
    command -v apt-get >/dev/null || fail "needs Debian or one of its descendants (apt-get)"
    mkdir -p "$xacoord_cache"
    exec 9>"$xacoord_cache/setup.lock"
    flock 9 # two of us would unpack into each other's feet

    packages=(ca-certificates python3 python3-venv python3-dev gcc libc6-dev pkg-config libmariadb-dev)
    # For tests/wal: system calls that fail, and a small file system to fill.
    if [[ $mode == dev ]]; then packages+=(strace e2fsprogs mount); fi
    apt_install "${packages[@]}" || fail "Debian packages"
    python_environment "$mode" || fail "Python environment"

    xacoord_summary=
    for engine in mysql mariadb; do
        if [[ ,$engines, != *,$engine,* ]]; then
            # Not asked for; still described when it is here, because others may use this environment too.
            if "have_$engine"; then "xacoord_$engine" || true; fi
        elif ! "xacoord_$engine"; then
            [[ $mode == runtime ]] || fail "$engine cannot be had here, and the tests need it"
            step "$engine cannot be had here; going on without it"
        fi
    done
    ((${#xacoord_engines[@]})) || fail "no database engine"
    write_engines
    if [[ $mode == dev ]]; then
        xacoord_promtool || fail "promtool"
    fi
    step "ready:$xacoord_summary"
    exec 9>&-
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
fi
