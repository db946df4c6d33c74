#!/bin/sh
# Make the database cluster on an empty volume, then become the server.
set -eu
: "${PGDATA:?}" "${POSTGRES_USER:?}" "${POSTGRES_DB:?}" "${POSTGRES_PASSWORD_FILE:?}"

# A pod that is deleted by force still runs for a while: two servers on one volume destroy it.
exec 9>"$PGDATA.lock"
flock 9

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --no-sync --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
    --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -j postgres >/dev/null
fi
# No fsync, as with this cluster's etcd and broker: it has to outlive killed processes, not a power cut.
exec postgres -c fsync=off -c full_page_writes=off -c listen_addresses='*' -c unix_socket_directories=/tmp \
  -c max_connections=200 -c timezone=UTC -c log_timezone=UTC "$@"
