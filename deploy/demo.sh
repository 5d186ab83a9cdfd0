#!/usr/bin/env bash
# The main job on two real database servers: sets everything up (Debian 12; root or sudo), then runs it.
#
#   bash deploy/demo.sh            MySQL where it can be had, else MariaDB
#   DEMO_ENGINE=mariadb bash deploy/demo.sh
#   bash deploy/demo.sh --keep     leaves everything running and prints the addresses
#
# Progress goes to standard output; its last line is one JSON object. Exit 0 only if the books are consistent.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${DEMO_ENGINE:-}" in
    "") engines=mysql,mariadb ;;
    mysql | mariadb) engines=$DEMO_ENGINE ;;
    *)
        echo "DEMO_ENGINE=$DEMO_ENGINE: it must be mysql or mariadb" >&2
        exit 2
        ;;
esac
bash deploy/setup.sh --runtime --engines "$engines"
exec .venv/bin/python -m deploy.demo --engine "${DEMO_ENGINE:-any}" "$@"
